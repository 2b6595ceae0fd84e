"""Data sets that come with the package."""

import functools
import lzma
from importlib import resources

import numpy as np

from attention_jax.errors import NoSplit, UserError

DIGITS_VERSION, CLDR_VERSION = "digits 1", "cldr 1"  # part of the fingerprints; it changes if an image or a pair changes


@functools.cache
def _all_digits() -> tuple[np.ndarray, np.ndarray]:
    with resources.files("attention_jax.data").joinpath("digits.npz").open("rb") as file, np.load(file) as kept:
        levels, labels = kept["images"], kept["labels"]
    # Grey levels 0..16 become 0..255, so that digits are preprocessed like any other uint8 image.
    return np.round(levels * (255 / 16)).astype(np.uint8)[..., None], labels.astype(np.int32)


@functools.cache
def read_digits_split() -> dict[str, np.ndarray]:
    """Returns the indices of the fixed stratified split of UCI digits, {"train": [1198], "test": [599]}, as committed."""
    text = resources.files("attention_jax.data").joinpath("digits_test_indices.txt").read_text()
    test = np.array(text.split(), int)
    return {"train": np.setdiff1d(np.arange(len(_all_digits()[1])), test), "test": test}


def read_digits(split: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns uint8 images [N, 8, 8, 1] and int32 labels [N] of the UCI digits in split "train" or "test"."""
    splits = read_digits_split()
    if split not in splits:
        raise NoSplit(f"data.source=digits: there is no split {split!r}; it has 'train' and 'test'.")
    images, labels = _all_digits()
    return images[splits[split]], labels[splits[split]]


@functools.cache
def _all_pairs() -> list[tuple[str, ...]]:
    """Lists (split, kind, English, Korean) of every pair."""
    folder = resources.files("attention_jax.data")
    cldr_lines = lzma.decompress(folder.joinpath("cldr_en_ko.tsv.xz").read_bytes()).decode().splitlines()[1:]
    everyday = folder.joinpath("everyday_en_ko.tsv").read_text(encoding="utf-8").splitlines()[1:]
    return [tuple(line.split("\t")) for line in [*cldr_lines, *(f"train\teveryday\t{line}" for line in everyday)]]


def read_cldr(split: str, kind: str | None = None) -> tuple[list[str], list[str], list[str]]:
    """Returns English texts, their Korean answers and their kinds for split "train", "dev" or "test", as lists of equal length.

    Dates, times, relative times, units and currencies as Unicode CLDR writes them in both languages, and number words
    (experiments/data/make_cldr.py). Each date, time, … is in one split only, in any style. "train" also has the sentences of
    kind "everyday", written for this project; they are for memorising, and none is held out. An English text has the same
    answer everywhere. `kind`, such as "date_long" or "unit", chooses the pairs of one kind.

    Raises UserError if there is no such split, or no pair of this kind in it.
    """
    splits = dict.fromkeys(row[0] for row in _all_pairs())
    if split not in splits:
        raise NoSplit(f"data.source=cldr: there is no split {split!r}; it has 'train', 'dev' and 'test'.")
    rows = [row for row in _all_pairs() if row[0] == split and kind in (None, row[1])]
    if not rows:
        kinds = dict.fromkeys(row[1] for row in _all_pairs() if row[0] == split)
        raise UserError(f"data.source=cldr: split {split!r} has no kind {kind!r}; it has {', '.join(kinds)}.")
    return [row[2] for row in rows], [row[3] for row in rows], [row[1] for row in rows]
