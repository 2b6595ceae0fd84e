"""Data: the order of examples, transforms, sources, and data sets of one's own."""

import dataclasses
import json
import os

import numpy as np
import pytest

from attention_jax import cli
from attention_jax.data import ArraySource, image
from attention_jax.data.embedded import digits_split
from attention_jax.data.loader import Loader, Plan, example_generator
from attention_jax.data.sources import open_source
from attention_jax.errors import UserError
from attention_jax.tasks import classification, get_task
from tests.small import as_options, small_config

# The plan


def epoch_of(plan: Plan, epoch: int) -> np.ndarray:
    return np.concatenate([plan.indices(epoch, batch) for batch in range(plan.steps_per_epoch)])


@pytest.mark.parametrize(("examples", "batch"), [(12, 3), (10, 3), (7, 7), (5, 1)])
def test_every_epoch_is_another_permutation(examples, batch):
    plan = Plan(examples, batch, seed=3)
    assert plan.steps_per_epoch == examples // batch
    epochs = [epoch_of(plan, epoch) for epoch in range(20)]
    for order in epochs:
        assert len(order) == plan.steps_per_epoch * batch  # as many steps in every epoch
        assert len(set(order)) == len(order) and set(order) <= set(range(examples))
    assert len({tuple(order) for order in epochs}) > 15
    # What sits one epoch out is in the others.
    assert set(np.concatenate(epochs)) == set(range(examples))
    assert any((epoch_of(Plan(examples, batch, seed=4), epoch) != order).any() for epoch, order in enumerate(epochs))
    assert all((epoch_of(Plan(examples, batch, seed=3), epoch) == order).all() for epoch, order in enumerate(epochs))


def test_every_example_comes_first_about_equally_often():
    first = [Plan(6, 2, seed).indices(epoch, 0)[0] for seed in range(40) for epoch in range(30)]
    counts = np.bincount(first, minlength=6)
    assert counts.min() > 150 and counts.max() < 250  # 200 expected, standard deviation 13


def test_position_counts_epochs_and_batches():
    plan = Plan(10, 3, 0)
    assert [plan.position(step) for step in (0, 2, 3, 7)] == [(0, 0), (0, 2), (1, 0), (2, 1)]


def test_batch_larger_than_the_data():
    with pytest.raises(UserError, match="batch_size=11 is more than the 10 training examples"):
        Plan(10, 11, 0)


# The loader


class Numbers:
    """Images that hold their own index."""

    num_classes = 3

    def __init__(self, length: int):
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict:
        return {"image": np.full((2, 2, 1), index, np.uint8), "label": np.int32(index % 3)}


def loader_of(length: int, batch: int, **fields) -> Loader:
    def transform(example, rng):
        return {**example, "draw": np.float64(-1.0 if rng is None else rng.random())}

    return Loader(Numbers(length), batch, seed=5, transform=transform, collate=lambda batch: batch, **fields)


def same(a: list[dict], b: list[dict]) -> bool:
    return len(a) == len(b) and all(x.keys() == y.keys() and all((x[k] == y[k]).all() for k in x) for x, y in zip(a, b))


def test_batches_do_not_depend_on_threads_or_on_where_one_starts():
    whole = list(loader_of(20, 3, threads=1).training(0, 15))
    assert len(whole) == 15
    for threads in (1, 2, 5):
        loader = loader_of(20, 3, threads=threads)
        assert same(list(loader.training(0, 15)), whole)
        for start in (1, 6, 14):  # inside an epoch, at its beginning, at the end
            assert same(list(loader.training(start, 15)), whole[start:])
    assert list(loader_of(20, 3).training(15, 15)) == []


def test_training_sees_an_epochs_examples_once():
    batches = list(loader_of(20, 5).training(0, 8))
    for epoch in (batches[:4], batches[4:]):
        assert sorted(int(i) for batch in epoch for i in batch["image"][:, 0, 0, 0]) == list(range(20))
    assert all((batch["weight"] == 1).all() for batch in batches)
    # The same example draws anew in another epoch.
    draws: list[dict] = [{}, {}]
    for position, batch in enumerate(batches):
        draws[position // 4].update(zip(batch["image"][:, 0, 0, 0].tolist(), batch["draw"]))
    assert all(draws[0][i] != draws[1][i] for i in range(20))


def test_processes_share_each_batch_in_order():
    whole = loader_of(20, 4)
    parts = [dataclasses.replace(whole, process=(i, 2)) for i in range(2)]
    for step in (0, 3, 7):
        rows = [part.training_batch(step) for part in parts]
        for name, values in whole.training_batch(step).items():
            assert (np.concatenate([row[name] for row in rows]) == values).all()
    for batch, *rows in zip(whole.evaluation(), *(part.evaluation() for part in parts), strict=True):
        assert all((np.concatenate([row[name] for row in rows]) == values).all() for name, values in batch.items())


@pytest.mark.parametrize(("length", "batch"), [(10, 4), (8, 4), (3, 4), (4, 1)])
def test_evaluation_sees_every_example_once_and_masks_padding(length, batch):
    batches = list(loader_of(length, batch).evaluation())
    assert all(len(b["weight"]) == batch for b in batches)
    seen, weight = (np.concatenate(parts) for parts in zip(*((b["image"][:, 0, 0, 0], b["weight"]) for b in batches)))
    assert seen[weight == 1].tolist() == list(range(length))
    assert weight.sum() == length and set(weight) <= {0.0, 1.0}
    assert all((b["draw"] == -1).all() for b in batches), "no random transform in evaluation"
    assert same(list(loader_of(length, batch, threads=5).evaluation()), batches)


def test_generator_of_an_example_depends_on_nothing_but_its_name():
    def draw(*name: int) -> float:
        return example_generator(*name).random()

    names = [(seed, epoch, index) for seed in range(3) for epoch in range(3) for index in range(20)]
    forwards = {name: draw(*name) for name in names}
    assert {name: draw(*name) for name in reversed(names)} == forwards
    assert len(set(forwards.values())) == len(names)
    # Nor does it repeat the stream that shuffles an epoch.
    assert draw(0, 0, 0) != np.random.default_rng((0, 0, 0)).random()


# Transforms


def test_pad_and_crop_is_a_window_of_the_padded_image():
    pixels = np.arange(1, 5 * 4 * 2 + 1, dtype=np.uint8).reshape(5, 4, 2)
    padding = 2
    padded = np.pad(pixels, ((padding, padding), (padding, padding), (0, 0)))
    windows = {padded[i : i + 5, j : j + 4].tobytes(): (i, j) for i in range(5) for j in range(5)}
    transform, rng = image.pad_and_crop(padding), np.random.default_rng(0)
    crops = [transform(pixels, rng) for _ in range(400)]
    assert all(crop.shape == pixels.shape and crop.dtype == np.uint8 for crop in crops)
    assert {windows[crop.tobytes()] for crop in crops} == set(windows.values()), "every window, and nothing else"
    assert pixels[0, 0, 0] == 1 and pixels.sum() == sum(range(1, 41)), "the input stays as it was"


def test_padding_as_large_as_the_image_and_no_padding():
    pixels = np.full((3, 3, 1), 9, np.uint8)
    rng = np.random.default_rng(0)
    crops = [image.pad_and_crop(3)(pixels, rng) for _ in range(200)]
    assert {int((crop > 0).sum()) for crop in crops} == {0, 1, 2, 3, 4, 6, 9}  # what a 3x3 image shows through a 3x3 window
    assert (image.pad_and_crop(0)(pixels, rng) == pixels).all()


def test_flip_mirrors_left_and_right_half_of_the_time():
    pixels = np.arange(12, dtype=np.uint8).reshape(2, 3, 2)
    rng = np.random.default_rng(0)
    outcomes = [image.flip()(pixels, rng).tolist() for _ in range(400)]
    mirrored = pixels[:, ::-1].tolist()
    assert all(outcome in (pixels.tolist(), mirrored) for outcome in outcomes)
    assert 160 < outcomes.count(mirrored) < 240


def test_chain_draws_from_one_generator_in_order():
    pixels = np.arange(50, dtype=np.uint8).reshape(5, 5, 2)
    crop, flip = image.pad_and_crop(2), image.flip()
    for seed in range(8):
        rng = np.random.default_rng(seed)
        expected = flip(crop(pixels, rng), rng)
        assert (image.chain([crop, flip])(pixels, np.random.default_rng(seed)) == expected).all()


def test_normalise():
    pixels = np.random.default_rng(0).integers(0, 256, (2, 3, 3, 3), np.uint8)
    mean, std = (0.1, 0.5, 0.9), (0.2, 0.3, 0.4)
    normal = image.normalise(pixels, mean, std)
    assert normal.dtype == np.float32
    np.testing.assert_allclose(normal, (pixels / 255 - np.array(mean)) / np.array(std), rtol=1e-5, atol=2e-6)


def test_training_augments_and_evaluation_does_not():
    config = classification.resolve(small_config(data__crop_padding=2, data__flip=True))
    source = open_source("digits", "train", {})
    training = classification.loader(config, "train", (0, 1), training=True)
    batch, indices = training.training_batch(0), training.plan.indices(0, 0)
    plain = classification.preprocess(config, source.images[indices])
    moved = [(a != b).any() for a, b in zip(batch["image"], plain)]
    assert sum(moved) > 24 and (batch["label"] == source.labels[indices]).all()
    first = next(iter(classification.loader(config, "train", (0, 1), training=False).evaluation()))
    assert (first["image"] == classification.preprocess(config, source.images[:200])).all()


# Sources


def test_digits_split_is_stratified_disjoint_and_complete():
    split = digits_split()
    train, test = split["train"], split["test"]
    assert len(test) == 599 and len(train) == 1198
    assert sorted([*train, *test]) == list(range(1797))
    counts = [np.bincount(open_source("digits", name, {}).labels, minlength=10) for name in ("train", "test")]
    share = counts[1] / (counts[0] + counts[1])
    assert np.abs(share - 599 / 1797).max() * 180 < 1.5, "each class by a third, to the nearest example"


def test_digits_are_scikit_learns():
    from sklearn.datasets import load_digits

    source, split = open_source("digits", "test", {}), digits_split()["test"]
    bunch = load_digits()
    assert source.images.shape == (599, 8, 8, 1) and source.images.dtype == np.uint8
    np.testing.assert_allclose(source.images[..., 0] / 255, bunch.images[split] / 16, atol=0.5 / 255)
    assert (source.labels == bunch.target[split]).all() and source.label_names == tuple("0123456789")


def test_array_source():
    pixels = np.zeros((4, 2, 2, 3), np.uint8)
    source = ArraySource(pixels, [0, 2, 1, 1], label_names="abc")
    assert len(source) == 4 and source.num_classes == 3 and source.label_names == ("a", "b", "c")
    assert source[1]["label"] == 2 and source[1]["image"].shape == (2, 2, 3)
    assert ArraySource(pixels, [0, 0, 0, 0], num_classes=7).num_classes == 7


@pytest.mark.parametrize(
    ("pixels", "labels", "said"),
    [
        (np.zeros((4, 2, 2, 3), np.float32), [0] * 4, r"images are float32 \(4, 2, 2, 3\); give uint8"),
        (np.zeros((4, 2, 2), np.uint8), [0] * 4, r"images are uint8 \(4, 2, 2\); give uint8 of shape \[N, H, W, C\]"),
        (np.zeros((4, 2, 2, 1), np.uint8), [0] * 3, "4 images but 3 labels"),
    ],
)
def test_array_source_of_something_else(pixels, labels, said):
    with pytest.raises(UserError, match=said):
        ArraySource(pixels, labels)


def test_source_that_is_empty_or_gives_no_images(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        "import numpy as np\n"
        "from attention_jax.data import ArraySource\n\n\n"
        "def empty(split):\n    return ArraySource(np.zeros((0, 2, 2, 1), np.uint8), [])\n\n\n"
        "def grey(split):\n    return [{'image': np.zeros((2, 2), np.uint8), 'label': 0}]\n"
    )
    with pytest.raises(UserError, match="split 'train' is empty"):
        open_source(f"{path}:empty", "train", {})
    with pytest.raises(UserError, match=r"give uint8 \[H, W, C\]"):
        open_source(f"{path}:grey", "train", {})
    with pytest.raises(UserError, match="has no 'gray'"):
        open_source(f"{path}:gray", "train", {})


def test_more_classes_than_the_network_has():
    config = small_config(model__num_classes=7)
    with pytest.raises(UserError, match=r"model.num_classes=7 is fewer than the 10 classes of data.source=digits"):
        get_task(config.task).loader(classification.resolve(config), "train", (0, 1), training=True)


def test_number_of_examples_that_the_data_do_not_have():
    config = classification.resolve(small_config(data__num_examples=1000))
    with pytest.raises(UserError, match="data.num_examples=1000 but split 'train' of data.source=digits has 1198"):
        classification.loader(config, "train", (0, 1), training=True)


STRIPES = '''
"""Stripes at ten angles: a data set that is computed."""

import numpy as np

from attention_jax.data import ArraySource


def make(split, examples=400, noise=40):
    rng = np.random.default_rng({"train": 0, "test": 1}[split])
    labels = np.arange(examples) % 10
    angle = labels[:, None, None] * np.pi / 10
    y, x = np.mgrid[:8, :8]
    images = 128 + 80 * np.sin(1.5 * (x * np.cos(angle) + y * np.sin(angle))) + rng.normal(0, noise, (examples, 8, 8))
    return ArraySource(images.clip(0, 255).astype(np.uint8)[..., None], labels, label_names=[f"{18 * i}°" for i in range(10)])
'''


def test_a_strangers_data_set(tmp_path, capsys, monkeypatch):
    assert len(STRIPES.strip().splitlines()) <= 30
    (tmp_path / "stripes.py").write_text(STRIPES.lstrip())
    monkeypatch.chdir(tmp_path)
    data = ["--config.data.source=stripes.py:make", "--config.data.args.noise=5"]
    assert cli.main(["train", *as_options(), *data, "--workdir=run"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1].partition(": ")[2])["eval_ema/accuracy"] > 0.15
    assert cli.main(["evaluate", "--workdir=run"]) == 0
    scores = json.loads(capsys.readouterr().out.splitlines()[-1])
    # 400 examples in batches of 200: a count of whole examples.
    assert scores["accuracy"] > 0.15 and abs(scores["accuracy"] * 400 - round(scores["accuracy"] * 400)) < 1e-6
    # What its author wrote reaches `predict`.
    import attention_jax as aj

    run = aj.load_run("run")
    assert run.labels[1] == "18°" and run.config.data.args.noise == 5


@pytest.fixture
def pretended_tfds():
    """TFDS with random records in place of prepared files."""
    testing = pytest.importorskip("tensorflow_datasets").testing
    with testing.mock_data(num_examples=20):
        yield


@pytest.mark.parametrize(("name", "shape"), [("cifar10", (32, 32, 3)), ("mnist", (28, 28, 1))])
def test_tfds_classification_sets(pretended_tfds, tmp_path, name, shape):
    config = small_config(
        data__source="tfds",
        data__args={"name": name, "data_dir": str(tmp_path)},
        data__mean=(0.5,) * shape[-1],
        data__std=(0.25,) * shape[-1],
        batch_size=8,
        evaluation__batch_size=8,
    )
    config = classification.resolve(config)
    assert config.data.image_shape == shape and config.model.num_classes == 10
    loader = classification.loader(config, "train", (0, 1), training=True)
    batch = loader.training_batch(0)
    assert batch["image"].shape == (8, *shape) and batch["image"].dtype == np.float32
    assert batch["label"].dtype == np.int32 and batch["label"].max() < 10
    # The records are pretended, the names of the classes too; without any, a source has none.
    assert len(open_source("tfds", "train", config.data.args.to_dict()).label_names) == 10


def test_prepared_cifar10():
    folder = os.environ.get("ATTENTION_JAX_TEST_DATA")
    if not folder:
        pytest.skip("ATTENTION_JAX_TEST_DATA names no folder with CIFAR-10 as TFDS prepares it")
    source = open_source("tfds", "test", {"name": "cifar10", "data_dir": folder})
    assert len(source) == 10_000 and source.num_classes == 10 and source.label_names[0] == "airplane"
    assert source[0]["image"].shape == (32, 32, 3) and source[0]["image"].dtype == np.uint8
    labels = [int(source[i]["label"]) for i in range(0, 10_000, 100)]
    assert min(labels) >= 0 and max(labels) <= 9 and len(set(labels)) == 10
    assert len(open_source("tfds", "train[:45000]", {"name": "cifar10", "data_dir": folder})) == 45_000
