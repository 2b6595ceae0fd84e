"""Data: the order of examples, transforms, sources, and data sets of one's own."""

import dataclasses
import functools
import io
import json
import logging
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from attention_jax import cli
from attention_jax import config as configs
from attention_jax.data import ArraySource, image
from attention_jax.data.decode import BrokenImage, decode
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


# Broken images


class Partly(Numbers):
    """Numbers, some of which cannot be decoded."""

    def __init__(self, length: int, broken: set[int]):
        super().__init__(length)
        self.without = broken

    def __getitem__(self, index: int) -> dict:
        if index in self.without:
            raise BrokenImage("cut short")
        return super().__getitem__(index)

    def name(self, index: int) -> str:
        return f"photos/{index}.jpg"


def partly(length: int, batch: int, broken: set[int], **fields) -> Loader:
    return dataclasses.replace(loader_of(length, batch, **fields), source=Partly(length, broken), broken={})


def test_a_broken_image_gives_way_to_the_next(caplog):
    sound, loader = loader_of(20, 5), partly(20, 5, {3, 4, 19})
    stands_in = {3: 5, 4: 5, 19: 0}
    with caplog.at_level(logging.WARNING):
        batches = list(loader.training(0, 8))
    for batch, whole in zip(batches, sound.training(0, 8), strict=True):
        expected = [stands_in.get(i, i) for i in whole["image"][:, 0, 0, 0].tolist()]
        assert batch["image"][:, 0, 0, 0].tolist() == expected
        assert (batch["label"] == np.array(expected) % 3).all() and (batch["weight"] == 1).all()
        assert (batch["draw"] == whole["draw"]).all(), "what is random stays where it was"
    assert loader.broken == {3: "cut short", 4: "cut short", 19: "cut short"}
    assert sorted(caplog.messages)[-3:] == [
        f"data: photos/{i}.jpg cannot be decoded (cut short) and is left out." for i in (19, 3, 4)
    ]
    assert caplog.messages[-1] == "data: 3 of 20 images could not be decoded."
    # The stream stays a function of (seed, epoch, index).
    for threads, start in ((1, 0), (5, 0), (2, 3)):
        again = partly(20, 5, {3, 4, 19}, threads=threads)
        assert same(list(again.training(start, 8)), batches[start:])


def test_evaluation_leaves_broken_images_out(caplog):
    loader = partly(10, 4, {0, 5, 9})
    batches = list(loader.evaluation())
    seen, weight = (np.concatenate(parts) for parts in zip(*((b["image"][:, 0, 0, 0], b["weight"]) for b in batches)))
    assert len(weight) == 12 and weight.dtype == np.float32
    assert seen[weight == 1].tolist() == [1, 2, 3, 4, 6, 7, 8]
    assert caplog.messages[-1] == "data: 3 of 10 images could not be decoded."
    caplog.clear()
    list(loader_of(10, 4).evaluation())
    assert not caplog.messages


def test_a_strict_loader_stops():
    for batches in (partly(20, 5, {7}, on_broken="stop").training(0, 4), partly(20, 5, {7}, on_broken="stop").evaluation()):
        with pytest.raises(UserError, match=r"photos/7.jpg cannot be decoded \(cut short\): mend or remove it"):
            list(batches)


def test_nothing_but_broken_images_is_an_error():
    with pytest.raises(UserError, match="100 images in a row cannot be decoded, the first is photos/2.jpg"):
        partly(200, 1, set(range(2, 200)) | {0, 1}).evaluation_batch(2)
    loader = partly(200, 1, set(range(2, 101)))  # 99 of them
    assert loader.evaluation_batch(2)["image"][0, 0, 0, 0] == 101


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


def jpeg(seed: int, width: int, height: int, mode: str = "RGB") -> bytes:
    """A picture whose colour tells its seed apart."""
    pixels = np.random.default_rng(seed).integers(0, 60, (height, width, 3)) + np.array([seed * 37 % 190, seed * 91 % 190, 90])
    buffer = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).convert(mode).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


@functools.cache
def shapes_of_folder() -> list[tuple[int, int, str]]:
    return [(60, 45, "RGB"), (40, 70, "L"), (150, 120, "CMYK"), (31, 32, "RGB")]


@pytest.fixture
def folder(tmp_path) -> Path:
    """path/{train,val}/{ant,bee,cat}, with 12 and 6 photographs of many sizes."""
    root = tmp_path / "photos"
    for split, count in (("train", 4), ("val", 2)):
        for label, name in enumerate(("cat", "ant", "bee")):
            for number in range(count):
                file = root / split / name / (f"deep/{number}.JPEG" if number == 1 else f"{number}.jpg")
                file.parent.mkdir(parents=True, exist_ok=True)
                width, height, mode = shapes_of_folder()[number]
                file.write_bytes(jpeg(label * 10 + number, width, height, mode))
    (root / "train" / "ant" / ".hidden.jpg").write_bytes(b"")
    (root / "train" / "ant" / "notes.txt").write_text("no picture")
    (root / "train" / ".cache").mkdir()
    return root


def photos_config(folder: Path, **fields):
    options = {
        "data__source": "folder",
        "data__args": {"path": str(folder)},
        "data__eval_split": "val",
        "data__crop": "random_resized",
        "data__eval_resize": 28,
        "data__image_shape": (24, 24, 3),
        "data__mean": (0.5,) * 3,
        "data__std": (0.25,) * 3,
        "batch_size": 4,
        "evaluation__batch_size": 4,
    }
    return classification.resolve(small_config(**{**options, **fields}))


def test_folder_trains_on_crops_and_evaluates_every_example(folder):
    config = photos_config(folder)
    assert config.data.num_examples == 12 and config.model.num_classes == 3
    training = classification.loader(config, "train", (0, 1), training=True)
    batches = [training.training_batch(step) for step in range(6)]
    assert all(batch["image"].shape == (4, 24, 24, 3) and batch["image"].dtype == np.float32 for batch in batches)
    # Another epoch crops anew.
    seen = {int(i): [] for i in range(12)}
    for step, batch in enumerate(batches):
        for index, pixels in zip(training.plan.indices(*training.plan.position(step)), batch["image"]):
            seen[int(index)].append(pixels)
    assert all((a != b).any() for a, b in seen.values())
    for threads in (1, 4):
        other = dataclasses.replace(training, threads=threads)
        assert same(list(other.training(0, 6)), batches)
    evaluation = list(classification.loader(config, "val", (0, 1), training=False).evaluation())
    assert sum(batch["weight"].sum() for batch in evaluation) == 6
    assert np.concatenate([batch["label"] for batch in evaluation])[:6].tolist() == [0, 0, 1, 1, 2, 2]
    # In a notebook the same pixels come out of raw photographs of any size.
    source = open_source("folder", "val", {"path": str(folder)})
    predictor = classification.Predictor(config, list("abc"), lambda images: images)
    ready = predictor.preprocess([source[i]["image"] for i in range(4)])
    assert (ready == evaluation[0]["image"]).all()
    assert (predictor.preprocess(decode(source[2]["image"])) == ready[2]).all()


@pytest.mark.parametrize(("crop", "padding"), [("none", 0), ("pad", 3)])
def test_other_crops_start_from_what_evaluation_sees(folder, crop, padding):
    config = photos_config(folder, data__crop=crop, data__crop_padding=padding, data__eval_split="train")
    training = classification.loader(config, "train", (0, 1), training=True)
    evaluation = np.concatenate(
        [batch["image"] for batch in classification.loader(config, "train", (0, 1), training=False).evaluation()]
    )
    batch, indices = training.training_batch(0), training.plan.indices(0, 0)
    if not padding:
        assert (batch["image"] == evaluation[indices]).all()
        return
    black = classification.preprocess(config, np.zeros((1, 30, 30, 3), np.uint8))[0]
    for pixels, index in zip(batch["image"], indices):
        padded = black.copy()
        padded[3:27, 3:27] = evaluation[index]
        assert any((pixels == padded[i : i + 24, j : j + 24]).all() for i in range(7) for j in range(7))


def test_rand_augment_follows_crop_and_flip(folder):
    augment = pytest.importorskip("attention_jax.data.augment")
    config = photos_config(folder, data__randaugment_layers=2, data__randaugment_magnitude=7, data__flip=True)
    plain = photos_config(folder, data__flip=True)
    with_it, without = (classification.training_pixels(c) for c in (config, plain))
    data = open_source("folder", "train", {"path": str(folder)})[0]["image"]
    operate = augment.rand_augment(2, 7, "paper")
    for seed in range(6):
        rng = np.random.default_rng(seed)
        expected = operate(without(data, rng), rng)
        assert (with_it(data, np.random.default_rng(seed)) == expected).all()


def test_a_folder_with_broken_files_trains_and_is_counted(folder, tmp_path, capsys, monkeypatch, caplog):
    cut = folder / "val" / "bee" / "0.jpg"
    cut.write_bytes(cut.read_bytes()[:-200])
    (folder / "train" / "cat" / "0.jpg").write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    config = photos_config(
        folder, total_steps=4, schedule__warmup_steps=0, evaluation__every_steps=4, checkpoint__every_steps=4, batch_size=4
    )
    from attention_jax.train.loop import train

    train(config, "run")
    assert any(f"{cut} cannot be decoded (image file is truncated" in message for message in caplog.messages)
    assert f"data: {folder}/train/cat/0.jpg cannot be decoded (an empty file) and is left out." in caplog.messages
    assert {"data: 1 of 12 images could not be decoded.", "data: 1 of 6 images could not be decoded."} <= set(caplog.messages)
    with np.load("run/evaluation.npz") as outputs:
        assert sorted(outputs) == ["correct", "loss", "step"] and len(outputs["correct"]) == len(outputs["loss"]) == 5
        correct = outputs["correct"]
    assert cli.main(["evaluate", "--workdir=run"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["accuracy"] == pytest.approx(correct.mean())
    assert cli.main(["evaluate", "--workdir=run", "--config.data.on_broken=stop"]) == 2
    assert "val/bee/0.jpg cannot be decoded (image file is truncated" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"data__image_shape": None}, "data.image_shape=None: data.crop and data.eval_resize need a size"),
        ({"data__eval_resize": 23}, "data.eval_resize=23 is less than a side of data.image_shape="),
        ({"data__mean": (0.5,)}, "data.mean=.* has 1 values for 3 channels"),
    ],
)
def test_sizes_that_contradict(folder, fields, said):
    with pytest.raises(UserError, match=said):
        photos_config(folder, **fields)


def test_images_of_many_sizes_need_a_resize(folder):
    config = photos_config(folder, data__crop="none", data__eval_resize=None)
    with pytest.raises(UserError, match="give data.eval_resize"):
        classification.loader(config, "train", (0, 1), training=True).training_batch(0)


def test_configs_of_version_1_get_the_fields_of_version_2():
    now = small_config(data__crop_padding=3).to_dict()
    brought = ("crop", "crop_scale", "crop_ratio", "interpolation", "eval_resize", "on_broken")
    brought += tuple(name for name in now["data"] if name.startswith("randaugment"))
    old = {**now, "version": 1, "data": {name: value for name, value in now["data"].items() if name not in brought}}
    new = configs.from_json(json.dumps(old))
    configs.check(new)
    assert new.version == configs.VERSION and new.data.to_dict() == now["data"]


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


def test_folder_classes_are_numbered_by_name(folder):
    source = open_source("folder", "train", {"path": str(folder)})
    assert source.label_names == ("ant", "bee", "cat") and source.num_classes == 3 and len(source) == 12
    names = [Path(source.name(i)).relative_to(folder / "train").as_posix() for i in range(12)]
    assert names[:4] == ["ant/0.jpg", "ant/2.jpg", "ant/3.jpg", "ant/deep/1.JPEG"] and names == sorted(names)
    assert [int(source[i]["label"]) for i in range(12)] == [0] * 4 + [1] * 4 + [2] * 4
    assert source[0]["image"] == (folder / "train/ant/0.jpg").read_bytes()
    # A class that a split lacks keeps its number.
    for file in sorted((folder / "val" / "bee").rglob("*"), reverse=True):
        file.unlink() if file.is_file() else file.rmdir()
    (folder / "val" / "bee").rmdir()
    val = open_source("folder", "val", {"path": str(folder)})
    assert val.label_names == ("ant", "bee", "cat") and [int(val[i]["label"]) for i in range(4)] == [0, 0, 2, 2]


def test_one_folder_is_held_out_by_name(folder):
    def files(split: str, share: float) -> set[str]:
        source = open_source("folder", split, {"path": str(folder / "train"), "holdout": share})
        assert source.label_names == ("ant", "bee", "cat")
        return {source.name(i) for i in range(len(source))}

    for number in range(100):
        (folder / "train" / "bee" / f"n{number}.png").write_bytes(b"")
    train, test = files("train", 0.25), files("test", 0.25)
    assert not train & test and len(train | test) == 112 and 14 < len(test) < 42
    (folder / "train" / "bee" / "another.png").write_bytes(b"")
    assert train <= files("train", 0.25) and test <= files("test", 0.25)
    assert test <= files("test", 0.5), "a larger share holds the smaller one"


@pytest.mark.parametrize(
    ("change", "split", "args", "said"),
    [
        (None, "vall", {}, r"has no folder of that name \(did you mean 'val'\?\); give one of train, val"),
        (None, "train", {"path": "nowhere"}, "data.args.path=nowhere: there is no such folder"),
        (None, "train", {"holdout": 1.0}, "data.args.holdout=1.0: give a share from 0"),
        (None, "val", {"holdout": 0.5}, "with data.args.holdout the splits are 'train' and 'test'"),
        ("train/dog", "train", {}, "train/dog has no image file"),
        ("val/dog", "val", {}, "class 'dog' of .*val is not in .*train, which names them"),
        ("test", "test", {}, "test has no folders: put the images of each class into a folder of its own"),
    ],
)
def test_folders_that_are_not_right(folder, change, split, args, said):
    if change:
        (folder / change).mkdir()
    with pytest.raises(UserError, match=said):
        open_source("folder", split, {"path": str(folder), **args})


def test_npz(tmp_path):
    rng = np.random.default_rng(0)
    pixels, labels = rng.integers(0, 256, (5, 4, 4, 3), np.uint8), np.array([[0], [1], [2], [1], [0]])
    np.savez(tmp_path / "a.npz", x_train=pixels, y_train=labels, x_test=pixels[:2, :, :, 0], y_test=labels[:2, 0])
    path = str(tmp_path / "a.npz")
    train = open_source("npz", "train", {"path": path})
    assert len(train) == 5 and train.num_classes == 3 and (train[3]["image"] == pixels[3]).all() and train[3]["label"] == 1
    assert open_source("npz", "test", {"path": path}).images.shape == (2, 4, 4, 1)
    np.savez(tmp_path / "b.npz", train_images=pixels, test_labels=labels, floats=pixels / 255, classes=labels / 2)
    other = {"path": str(tmp_path / "b.npz"), "images": "{split}_images", "labels": "test_labels"}
    assert len(open_source("npz", "train", other)) == 5
    wrong = {
        r"no array 'x_train' for split 'train'; it has train_images, test_labels, floats, classes": {"images": "x_{split}"},
        r"ArraySource: images are float64": {"images": "floats"},
        r"give integers of shape \[N\]": {"labels": "classes"},
        r"nothing.npz: this cannot be read": {"path": "nothing.npz"},
    }
    for said, args in wrong.items():
        with pytest.raises(UserError, match=said):
            open_source("npz", "train", {**other, **args})
    np.save(tmp_path / "c.npy", pixels)
    with pytest.raises(UserError, match="a single array"):
        open_source("npz", "train", {"path": str(tmp_path / "c.npy")})


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


def test_imagenet_by_way_of_tfds(pretended_tfds, tmp_path, monkeypatch):
    import tensorflow_datasets as tfds

    # TFDS encodes what it pretends with TensorFlow; Pillow does it here, so that JPEGs come out as from the real files.
    def to_jpeg(self, pixels: np.ndarray) -> bytes:
        buffer = io.BytesIO()
        Image.fromarray(np.kron(pixels, np.ones((6, 6, 1), np.uint8))).save(buffer, "JPEG")
        return buffer.getvalue()

    monkeypatch.setattr(tfds.features.Image, "encode_example", to_jpeg)
    config = configs.load_config("configs/imagenet_resnet50.py")
    fields = {"data.args.data_dir": str(tmp_path), "data.num_examples": None, "data.image_shape": (40, 32, 3)}
    config = configs.override(config, {**fields, "data.eval_resize": 48, "batch_size": 4, "evaluation.batch_size": 8})
    config = classification.resolve(config)
    assert config.data.num_examples == 20 and config.model.num_classes == 1000
    source = open_source("tfds", "validation", config.data.args.to_dict())
    assert source[0]["image"][:2] == b"\xff\xd8" and source.channels == 3 and len(source.label_names) == 1000
    batch = classification.loader(config, "train", (0, 1), training=True).training_batch(0)
    assert batch["image"].shape == (4, 40, 32, 3) and batch["image"].std() > 0.1 and (batch["label"] < 1000).all()
    batches = list(classification.loader(config, "validation", (0, 1), training=False).evaluation())
    assert len(batches) == 3 and sum(batch["weight"].sum() for batch in batches) == 20


def test_tfds_sets_that_are_not_for_classification(pretended_tfds, tmp_path):
    with pytest.raises(UserError, match="'wider_face' is no classification set"):
        open_source("tfds", "train", {"name": "wider_face", "data_dir": str(tmp_path)})
    # Two labels, and the supervised one counts.
    assert open_source("tfds", "train", {"name": "cifar100", "data_dir": str(tmp_path)}).num_classes == 100


def test_prepared_cifar10():
    folder = os.environ.get("ATTENTION_JAX_TEST_DATA")
    if not folder:
        pytest.skip("ATTENTION_JAX_TEST_DATA names no folder with CIFAR-10 as TFDS prepares it")
    source = open_source("tfds", "test", {"name": "cifar10", "data_dir": folder})
    assert len(source) == 10_000 and source.num_classes == 10 and source.label_names[0] == "airplane"
    assert decode(source[0]["image"]).shape == (32, 32, 3) and isinstance(source[0]["image"], bytes)
    labels = [int(source[i]["label"]) for i in range(0, 10_000, 100)]
    assert min(labels) >= 0 and max(labels) <= 9 and len(set(labels)) == 10
    assert len(open_source("tfds", "train[:45000]", {"name": "cifar10", "data_dir": folder})) == 45_000
