"""What becomes of an image on its way from a source to a batch."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from ml_collections import ConfigDict

from attention_jax.cli import main as cli
from attention_jax.config import config as configs
from attention_jax.config import defaults, fields, versions
from attention_jax.data.images.decoding import decode_image
from attention_jax.data.images.randaugment import make_randaugment
from attention_jax.data.images.sources import open_source
from attention_jax.data.images.transforms import chain_transforms, flip_at_random, normalise_images, pad_and_crop
from attention_jax.errors import UserError
from attention_jax.tasks import classification
from tests.helpers.photos import write_photos
from tests.helpers.small import same_batches, small_config


@pytest.fixture
def folder(tmp_path) -> Path:
    return write_photos(tmp_path / "photos")


def test_pad_and_crop_is_a_window_of_the_padded_image():
    pixels = np.arange(1, 5 * 4 * 2 + 1, dtype=np.uint8).reshape(5, 4, 2)
    padding = 2
    padded = np.pad(pixels, ((padding, padding), (padding, padding), (0, 0)))
    windows = {padded[i : i + 5, j : j + 4].tobytes(): (i, j) for i in range(5) for j in range(5)}
    transform, rng = pad_and_crop(padding), np.random.default_rng(0)
    crops = [transform(pixels, rng) for _ in range(400)]
    assert all(crop.shape == pixels.shape and crop.dtype == np.uint8 for crop in crops)
    assert {windows[crop.tobytes()] for crop in crops} == set(windows.values()), "every window, and nothing else"
    assert pixels[0, 0, 0] == 1 and pixels.sum() == sum(range(1, 41)), "the input stays as it was"


def test_padding_as_large_as_the_image_and_no_padding():
    pixels = np.full((3, 3, 1), 9, np.uint8)
    rng = np.random.default_rng(0)
    crops = [pad_and_crop(3)(pixels, rng) for _ in range(200)]
    assert {int((crop > 0).sum()) for crop in crops} == {0, 1, 2, 3, 4, 6, 9}  # what a 3x3 image shows through a 3x3 window
    assert (pad_and_crop(0)(pixels, rng) == pixels).all()


def test_flip_mirrors_left_and_right_half_of_the_time():
    pixels = np.arange(12, dtype=np.uint8).reshape(2, 3, 2)
    rng = np.random.default_rng(0)
    outcomes = [flip_at_random(pixels, rng).tolist() for _ in range(400)]
    mirrored = pixels[:, ::-1].tolist()
    assert all(outcome in (pixels.tolist(), mirrored) for outcome in outcomes)
    assert 160 < outcomes.count(mirrored) < 240


def test_chain_draws_from_one_generator_in_order():
    pixels = np.arange(50, dtype=np.uint8).reshape(5, 5, 2)
    crop, flip = pad_and_crop(2), flip_at_random
    for seed in range(8):
        rng = np.random.default_rng(seed)
        expected = flip(crop(pixels, rng), rng)
        assert (chain_transforms([crop, flip])(pixels, np.random.default_rng(seed)) == expected).all()


def test_normalise():
    pixels = np.random.default_rng(0).integers(0, 256, (2, 3, 3, 3), np.uint8)
    mean, std = (0.1, 0.5, 0.9), (0.2, 0.3, 0.4)
    normal = normalise_images(pixels, mean, std)
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
        assert same_batches(list(other.training(0, 6)), batches)
    evaluation = list(classification.loader(config, "val", (0, 1), training=False).evaluation())
    assert sum(batch["weight"].sum() for batch in evaluation) == 6
    assert np.concatenate([batch["label"] for batch in evaluation])[:6].tolist() == [0, 0, 1, 1, 2, 2]
    # In a notebook the same pixels come out of raw photographs of any size.
    source = open_source("folder", "val", {"path": str(folder)})
    predictor = classification.Predictor(config, list("abc"), lambda images: images)
    ready = predictor.preprocess([source[i]["image"] for i in range(4)])
    assert (ready == evaluation[0]["image"]).all()
    assert (predictor.preprocess(decode_image(source[2]["image"])) == ready[2]).all()


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
    config = photos_config(folder, data__randaugment_layers=2, data__randaugment_magnitude=7, data__flip=True)
    plain = photos_config(folder, data__flip=True)
    with_it, without = (classification.make_training_transform(c) for c in (config, plain))
    data = open_source("folder", "train", {"path": str(folder)})[0]["image"]
    operate = make_randaugment(2, 7, "paper")
    for seed in range(6):
        rng = np.random.default_rng(seed)
        expected = operate(without(data, rng), rng)
        assert (with_it(data, np.random.default_rng(seed)) == expected).all()


@pytest.mark.slow
def test_a_folder_with_broken_files_trains_and_is_counted(folder, tmp_path, capsys, monkeypatch, caplog):
    cut = folder / "val" / "bee" / "0.jpg"
    cut.write_bytes(cut.read_bytes()[:-200])
    (folder / "train" / "cat" / "0.jpg").write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    config = photos_config(
        folder, total_steps=4, schedule__warmup_steps=0, evaluation__every_steps=4, checkpoint__every_steps=4, batch_size=4
    )
    from attention_jax.train.loop import train_model

    train_model(config, "run")
    assert any(f"{cut} cannot be decoded (image file is truncated" in message for message in caplog.messages)
    assert f"data: {folder}/train/cat/0.jpg cannot be decoded (an empty file) and is left out." in caplog.messages
    assert {"data: 1 of 12 images could not be decoded.", "data: 1 of 6 images could not be decoded."} <= set(caplog.messages)
    with np.load("run/evaluation.npz") as outputs:
        kept = ["correct", "index", "label", "loss", "name", "step", "top_classes", "top_probabilities"]
        assert sorted(outputs) == kept
        assert len(outputs["correct"]) == len(outputs["loss"]) == 5
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
    new = configs.config_from_json(json.dumps(old))
    configs.complete_config(new)
    assert new.version == fields.VERSION and new.data.to_dict() == now["data"]


@pytest.mark.parametrize(("make", "has"), [(defaults.classification, True), (defaults.translation, False)])
def test_version_5_adds_a_field_of_images_alone(make, has):
    plain = {**make().to_dict(), "version": 4}
    plain["data"] = {name: value for name, value in plain["data"].items() if name != "exif_rotation"}
    upgraded = versions.upgrade_config(ConfigDict(plain))
    assert upgraded.version == fields.VERSION and ("exif_rotation" in upgraded.data) == has
    assert upgraded.data.get("exif_rotation", False) is False
