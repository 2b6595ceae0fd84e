"""Data that every installation has."""

import functools
from importlib import resources

import numpy as np

from attention_jax.errors import UserError


@functools.cache
def _all_digits() -> tuple[np.ndarray, np.ndarray]:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    # Grey levels 0..16 become 0..255, so that digits are preprocessed like any other uint8 image.
    images = np.round(bunch.images * (255 / 16)).astype(np.uint8)[..., None]
    return images, bunch.target.astype(np.int32)


@functools.cache
def digits_split() -> dict[str, np.ndarray]:
    """Indices of the fixed stratified split of UCI digits, {"train": [1198], "test": [599]}, as committed."""
    text = resources.files("attention_jax.data").joinpath("digits_test_indices.txt").read_text()
    test = np.array([int(line) for line in text.split() if line.isdigit()])
    train = np.setdiff1d(np.arange(len(_all_digits()[1])), test)
    return {"train": train, "test": test}


def digits(split: str) -> tuple[np.ndarray, np.ndarray]:
    """UCI digits: images uint8 [N, 8, 8, 1] and labels int32 [N] of split "train" or "test"."""
    splits = digits_split()
    if split not in splits:
        raise UserError(f"data.source=digits: there is no split {split!r}; it has 'train' and 'test'.")
    images, labels = _all_digits()
    return images[splits[split]], labels[splits[split]]
