"""Sources: embedded, arrays, folders, archives, TensorFlow Datasets, a stranger's own."""

import hashlib
import io
import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from attention_jax.cli import main as cli
from attention_jax.config import load_config, override
from attention_jax.data import ArraySource, embedded
from attention_jax.data.embedded import read_digits_split
from attention_jax.data.images.decoding import decode_image
from attention_jax.data.images.sources import open_npz, open_source
from attention_jax.errors import UserError
from attention_jax.tasks import classification, get_task
from tests.helpers.photos import write_photos
from tests.helpers.small import as_options, small_config


@pytest.fixture
def folder(tmp_path) -> Path:
    return write_photos(tmp_path / "photos")


def test_digits_split_is_stratified_disjoint_and_complete():
    split = read_digits_split()
    train, test = split["train"], split["test"]
    assert len(test) == 599 and len(train) == 1198
    assert sorted([*train, *test]) == list(range(1797))
    counts = [np.bincount(open_source("digits", name, {}).labels, minlength=10) for name in ("train", "test")]
    share = counts[1] / (counts[0] + counts[1])
    assert np.abs(share - 599 / 1797).max() * 180 < 1.5, "each class by a third, to the nearest example"


def test_digits_are_bitwise_what_they_always_were():
    images, labels = embedded._all_digits()
    assert images.shape == (1797, 8, 8, 1) and (images.dtype, labels.dtype) == (np.uint8, np.int32)
    kept = "ed5d0ee6d5a61b611d6cad96c6bd69386d32550c51b259a59996b65ad132fa6c"  # of those that scikit-learn 1.9.1 carries
    assert hashlib.sha256(images.tobytes() + labels.tobytes()).hexdigest() == kept
    source, split = open_source("digits", "test", {}), read_digits_split()["test"]
    assert (source.images == images[split]).all() and (source.labels == labels[split]).all()
    assert source.label_names == tuple("0123456789")


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

from attention_jax.data import ArraySource, embedded


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
    # 400 examples in batches of 200: a count of examples, no fraction.
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
    config = load_config("configs/imagenet_resnet50.py")
    fields = {"data.args.data_dir": str(tmp_path), "data.num_examples": None, "data.image_shape": (40, 32, 3)}
    config = override(config, {**fields, "data.eval_resize": 48, "batch_size": 4, "evaluation.batch_size": 8})
    config = classification.resolve(config)
    assert config.data.num_examples == 20 and config.model.num_classes == 1000
    source = open_source("tfds", "validation", config.data.args.to_dict())
    assert source[0]["image"][:2] == b"\xff\xd8" and source.channels == 3 and len(source.label_names) == 1000
    batch = classification.loader(config, "train", (0, 1), training=True).training_batch(0)
    assert batch["image"].shape == (4, 40, 32, 3) and batch["image"].std() > 0.1 and (batch["label"] < 1000).all()
    batches = list(classification.loader(config, "validation", (0, 1), training=False).evaluation())
    assert len(batches) == 3 and sum(batch["weight"].sum() for batch in batches) == 20


def test_a_prepared_set_imports_no_module_that_its_features_name(tmp_path, monkeypatch):
    """features.json of version 1.0.0 of a set called "strange"; the module lies in the working directory."""
    pytest.importorskip("tensorflow_datasets")
    folder = tmp_path / "strange" / "1.0.0"
    folder.mkdir(parents=True)
    (folder / "dataset_info.json").write_text('{"name": "strange", "version": "1.0.0", "fileFormat": "array_record"}')
    (folder / "features.json").write_text('{"pythonClassName": "planted.Feature", "jsonFeature": {"json": "{}"}}')
    (tmp_path / "planted.py").write_text("raise SystemExit('it runs')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match="its features.json names a class of planted, which is not imported"):
        open_source("tfds", "train", {"name": "strange", "data_dir": str(tmp_path)})


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
    assert decode_image(source[0]["image"]).shape == (32, 32, 3) and isinstance(source[0]["image"], bytes)
    labels = [int(source[i]["label"]) for i in range(0, 10_000, 100)]
    assert min(labels) >= 0 and max(labels) <= 9 and len(set(labels)) == 10
    assert len(open_source("tfds", "train[:45000]", {"name": "cifar10", "data_dir": folder})) == 45_000


@pytest.mark.parametrize(("labels", "said"), [([-1, 0, 1, 2], "label -1 of example 0 (1 such) is not from 0 to 2")])
def test_labels_that_are_no_classes(tmp_path, labels, said):
    np.savez(tmp_path / "set.npz", x_train=np.zeros((4, 8, 8, 1), np.uint8), y_train=np.array(labels))
    with pytest.raises(UserError) as raised:
        open_npz("train", str(tmp_path / "set.npz"))
    assert said in str(raised.value) and "split 'train'" in str(raised.value)
    with pytest.raises(UserError, match=r"label 3 of example 1 \(1 such\) is not from 0 to 2"):
        ArraySource(np.zeros((2, 8, 8, 1), np.uint8), np.array([0, 3]), num_classes=3)


def test_labels_of_a_strangers_source_are_held_to_its_classes(tmp_path, monkeypatch):
    path = tmp_path / "mine.py"
    path.write_text(
        "import numpy as np\n"
        "class Odd:\n"
        "    num_classes = 2\n"
        "    def __len__(self): return 40\n"
        "    def __getitem__(self, i): return {'image': np.zeros((8, 8, 1), np.uint8), 'label': -1 if i == 7 else i % 2}\n"
        "def make(split): return Odd()\n"
    )
    config = classification.resolve(small_config(data__source=f"{path}:make", data__args={}, batch_size=40))
    loader = classification.loader(config, "train", (0, 1), training=True)
    with pytest.raises(UserError, match=r"split 'train' has the label -1, which is not from 0 to 1"):
        loader.training_batch(0)


def test_a_class_that_training_never_shows(tmp_path):
    pixels = np.zeros((4, 8, 8, 1), np.uint8)
    arrays = {"x_train": pixels, "y_train": np.array([0, 1, 2, 0]), "x_test": pixels, "y_test": np.array([0, 1, 2, 7])}
    np.savez(tmp_path / "set.npz", **arrays)
    fields = {"data__source": "npz", "data__args": {"path": str(tmp_path / "set.npz")}, "batch_size": 4}
    config = classification.resolve(small_config(**fields))
    with pytest.raises(UserError, match=r"split 'test' has 8 classes, more than the network's 3.*never shows the class 3"):
        classification.loader(config, "test", (0, 1), training=False)


def test_what_systems_leave_in_folders_is_no_class_and_other_kinds_are_counted(folder, caplog):
    before = open_source("folder", "train", {"path": str(folder)})
    for name in ("train/__MACOSX/ant/a.jpg", "train/@eaDir/b.jpg", "train/bee/@eaDir/c.jpg", "train/bee/.d/e.jpg"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")
    for name in ("ant/1.jfif", "ant/2.JFIF", "bee/3.avif", "cat/4.pgm", "cat/notes"):
        (folder / "train" / name).write_bytes(b"")
    with caplog.at_level("INFO", "attention_jax"):
        after = [open_source("folder", "train", {"path": str(folder)}) for _ in range(2)][1]
    assert after.label_names == before.label_names and len(after) == len(before) == 12
    said = [message for message in caplog.messages if ".jfif" in message]
    assert len(said) == 1 and "passed over: 2 .jfif, 1 .txt, 1 .avif, 1 .pgm, 1 without an ending" in said[0]


def test_a_folder_that_is_linked_into_itself_is_read_once(folder, caplog):
    expected = open_source("folder", "train", {"path": str(folder)})
    names = [expected.name(i) for i in range(len(expected))]
    for link, target in (("ant/loop", "ant"), ("ant/deep/up", "ant"), ("bee/top", "."), ("all", "."), ("cat/data", "..")):
        (folder / "train" / link).symlink_to(folder / "train" / target, target_is_directory=True)
    (folder / "train" / "cat" / "again").symlink_to(folder / "train" / "cat" / "deep")
    with caplog.at_level("INFO", "attention_jax"):
        found = open_source("folder", "train", {"path": str(folder)})
    files = [found.name(i) for i in range(len(found))]
    assert found.label_names == expected.label_names
    assert [name for name in files if "/cat/" not in name] == [name for name in names if "/cat/" not in name]
    assert len([name for name in files if "/cat/" in name]) == 4, "one of two names of a folder counts"
    assert len([message for message in caplog.messages if "which is read already" in message]) == 5
    elsewhere = folder / "more"
    elsewhere.mkdir()
    (elsewhere / "x.jpg").write_bytes(b"")
    (folder / "train" / "ant" / "linked").symlink_to(elsewhere)
    assert len(open_source("folder", "train", {"path": str(folder)})) == 13


def test_images_that_carry_a_rotation_are_counted_and_turned_on_request(tmp_path, caplog):
    exif, rng = Image.Exif(), np.random.default_rng(0)
    exif[0x0112] = 6  # the right side is the top
    for number in range(4):
        image = Image.fromarray(rng.integers(0, 256, (6, 10, 3), np.uint8))
        for folder, options, content in (("marked", {"exif": exif}, image), ("upright", {}, image.rotate(-90, expand=True))):
            for split in ("train", "test"):
                (tmp_path / folder / split / "a").mkdir(parents=True, exist_ok=True)
                content.save(tmp_path / folder / split / "a" / f"{number}.png", **options)
    plain = {"data__source": "folder", "data__mean": (0.5,) * 3, "data__std": (0.5,) * 3, "batch_size": 4, "data__crop": "none"}
    crops = {"data__crop": "random_resized", "data__eval_resize": 9, "data__image_shape": (8, 8, 3)}
    task = get_task("classification")
    for fields in (plain, {**plain, **crops}):
        marked = small_config(**fields, data__args={"path": str(tmp_path / "marked")})
        turned = task.resolve(override(marked, {"data.exif_rotation": True}))
        upright = task.resolve(small_config(**fields, data__args={"path": str(tmp_path / "upright")}))
        assert turned.data.image_shape == upright.data.image_shape and turned.data.image_shape[1] in (6, 8)
        for name, number in (("training_batch", 0), ("evaluation_batch", 0)):
            one, other = (getattr(task.loader(c, "train", (0, 1), True), name)(number)["image"] for c in (turned, upright))
            assert (one == other).all()
        with caplog.at_level("WARNING", "attention_jax"):
            for config in (marked, turned, upright):
                task.fingerprint(config, "train")
    said = "data: 4 images looked at in split 'train', 4 carry an EXIF rotation, which data.exif_rotation=True applies."
    assert caplog.messages == [said.replace("data: ", "data: of ")] * 2
