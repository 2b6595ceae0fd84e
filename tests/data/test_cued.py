"""Images made of digits: what a network is shown and what is known of it."""

import numpy as np
import pytest

from attention_jax.data.fingerprint import compute_fingerprint
from attention_jax.data.images.cued import ClutteredDigits, CuedDigits, read_base_digits
from attention_jax.data.images.sources import open_source
from attention_jax.errors import UserError

RED, GREEN = 0, 1


def test_an_image_is_a_function_of_split_index_and_arguments():
    for source in (CuedDigits, ClutteredDigits):
        one, other = source("train")[7], source("train", number=8)[7]
        assert (one["image"] == other["image"]).all() and one["label"] == other["label"]
        assert (one["image"] != source("train")[8]["image"]).any() and (one["image"] != source("validation")[7]["image"]).any()
        places = [[source(split).make(index)["box"] for index in range(8)] for split in ("train", "validation", "test")]
        assert places[0] != places[1] != places[2] != places[0]
        assert len(source("train")) == 10_000 and len(source("test", number=3)) == 3
        assert compute_fingerprint(source("train")) != compute_fingerprint(source("train", number=8))
        assert compute_fingerprint(source("train")) == compute_fingerprint(source("train"))
        assert (source("train", version=1)[7]["image"] == one["image"]).all()
        assert (source("train", version=2)[7]["image"] != one["image"]).any()
        assert compute_fingerprint(source("train", version=2)) != compute_fingerprint(source("train"))
        with pytest.raises(IndexError):
            source("test", number=3)[3]


def test_splits_have_other_digits():
    numbers = {split: {image.tobytes() for image in read_base_digits(split)[0]} for split in ("train", "validation", "test")}
    assert [len(read_base_digits(split)[1]) for split in numbers] == [799, 399, 599]
    assert not numbers["train"] & numbers["validation"] and not numbers["train"] & numbers["test"]
    with pytest.raises(UserError, match="no split 'dev'"):
        CuedDigits("dev")


@pytest.mark.parametrize("key", ["colour", "arrow"])
def test_the_label_is_the_digit_of_the_cue(key):
    source = CuedDigits("train", key=key, noise=0.0)
    digits, labels, numbers = read_base_digits("train")
    for index in range(20):
        example = source.make(index)
        top, left, bottom, right = example["box"]
        inside = example["image"][top:bottom, left:right].max(-1) / example["image"][top:bottom, left:right].max()
        near = np.abs(digits - inside).mean((1, 2))
        assert labels[near.argmin()] == example["label"] and near.min() < 0.02
        assert example["boxes"][example["cue"]] == example["box"]
        middle = example["image"][5:11, 13:19]
        if key == "colour":
            colour = example["image"][top:bottom, left:right].reshape(-1, 3).sum(0).argmax()
            assert middle[3, 3].argmax() == colour
        else:
            assert (middle[1, 1].max() > 0) == (example["cue"] == 0), "the arrow points to the left for the first"
        group = np.abs(digits[list(numbers).index(example["group"])] - digits[near.argmin()]).max()
        assert (group == 0) == (example["cue"] == 0)


def test_the_same_image_under_the_other_cue():
    source = CuedDigits("test")
    for index in range(5):
        one, other = source.make(index, cue=0), source.make(index, cue=1)
        assert source.make(index)["cue"] in (0, 1) and one["box"] != other["box"]
        changed = (one["image"] != other["image"]).any(-1)
        assert changed.any() and not changed[:, :12].any() and not changed[:, 20:].any(), "only the cue differs"


def test_without_information_the_cue_says_nothing():
    source = CuedDigits("train", informative=False, noise=0.0)
    agree = []
    for index in range(200):
        example = source.make(index)
        top, left, bottom, right = example["box"]
        colour = example["image"][top:bottom, left:right].reshape(-1, 3).sum(0).argmax()
        agree.append(example["image"][8, 16].argmax() == colour)
    assert 0.4 < np.mean(agree) < 0.6


def test_arguments():
    wide = CuedDigits("train", digits=4, canvas=(16, 64), clutter=5)
    assert wide[0]["image"].shape == (16, 64, 3) and len(wide.make(0)["boxes"]) == 4
    near = CuedDigits("train", distance=8).make(0)["boxes"]
    assert near[1][1] - near[0][3] == 8
    clutter = [CuedDigits("train", noise=0.0, clutter=n)[0]["image"].astype(int).sum() for n in (0, 6)]
    assert clutter[1] > clutter[0]
    source = open_source("cluttered_digits", "train", {"pieces": 0, "noise": 0.0})
    top, left, bottom, right = source.make(3)["box"]
    outside = source[3]["image"].copy()
    outside[top:bottom, left:right] = 0
    assert outside.max() == 0 and source[3]["image"].max() > 200
    assert len(ClutteredDigits("test", number=9).groups()) == 9
    for wrong in (
        {"key": "shape"},
        {"key": "arrow", "digits": 3},
        {"digits": 1},
        {"canvas": (16, 16)},
        {"canvas": (4, 32)},
        {"distance": 2},
        {"version": 0},
    ):
        with pytest.raises(UserError, match=r"data\.args"):
            CuedDigits("train", **wrong)
    with pytest.raises(UserError, match=r"data\.args"):
        ClutteredDigits("train", piece=9)


def test_number_and_halves_are_of_training_and_of_the_other_splits():
    both = ClutteredDigits("train", number=(5, 3), noise=0.0)
    assert (len(both), len(ClutteredDigits("validation", number=(5, 3))), len(CuedDigits("test", number=(5, 3)))) == (5, 3, 3)
    assert (both[4]["image"] == ClutteredDigits("train", noise=0.0)[4]["image"]).all()
    for split, (first, last) in {"train": (0, 12), "validation": (12, 24), "test": (12, 24)}.items():
        source = ClutteredDigits(split, number=200, noise=0.0, halves=("left", "right"))
        boxes = np.array([source.make(index)["box"] for index in range(200)])
        assert (boxes[:, 1].min(), boxes[:, 3].max()) == (first, last) and {*np.diff(boxes[:, 1::2])[:, 0]} == {8}
        assert {*boxes[:, 0]} == set(range(17)), "any row"
        other = slice(12, None) if split == "train" else slice(0, 12)
        assert any(source[index]["image"][:, other].any() for index in range(5)), "pieces lie in both halves"
        assert "halves" in source.fingerprint() and "halves" not in both.fingerprint()
    for wrong in (("left",), ("left", "top"), "left"):
        with pytest.raises(UserError, match="halves"):
            ClutteredDigits("train", halves=wrong)
    with pytest.raises(UserError, match="16 pixels wide"):
        ClutteredDigits("train", canvas=(24, 15), halves=("left", "left"))
