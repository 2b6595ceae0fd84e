"""Fingerprints of data, which show whether a split is the one that a run was made with.

A fingerprint comes from a few examples at fixed positions, not from paths or dates: it costs little, and moving or copying data
does not change it. It misses changes in other examples; a source that knows better has `fingerprint()`, which returns a text.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from attention_jax.data.images.decoding import BrokenImage

DATA = "data.json"  # file name in a workdir, and among a checkpoint's assets
SAMPLE = 64  # number of examples that are read


def read_sample(source: Any, number: int = SAMPLE) -> list[Any]:
    """Returns examples at fixed positions of a source, or all of a small one; None for an image that cannot be decoded."""

    def read(place: int) -> Any:
        try:
            return source[place]
        except BrokenImage:
            return None

    with ThreadPoolExecutor(8) as pool:  # remote examples wait for their store
        return list(pool.map(read, np.linspace(0, len(source) - 1, min(len(source), number)).astype(int).tolist()))


def compute_fingerprint(source: Any, sample: Sequence[Any] | None = None) -> dict[str, Any]:
    """Returns the fingerprint of a split: its source's own, or its length, class names and the hash of a sample.

    The hash is left out if reading an example twice gives two different ones.
    """
    if callable(own := getattr(source, "fingerprint", None)):
        return {"fingerprint": str(own())}
    sample = read_sample(source) if sample is None else sample
    is_fixed = not sample or sample[0] is None or _hash(sample[0]) == _hash(source[0])
    classes = [str(name) for name in getattr(source, "label_names", ())]
    return {"length": len(source), "classes": classes, "contents": _hash(sample).hex() if is_fixed else None}


def _hash(value: Any) -> bytes:
    """Returns the SHA-256 of an example, part by part."""
    if isinstance(value, Mapping):
        value = sorted(value.items())
    if isinstance(value, (tuple, list)):
        content = b"".join(map(_hash, value))
    elif isinstance(value, (bytes, str)):
        content = value if isinstance(value, bytes) else value.encode(errors="surrogatepass")
    else:
        array = np.asarray(value)
        data = b"" if array.dtype == object else array.tobytes()  # the bytes of objects are memory addresses
        content = repr((array.dtype.str, array.shape)).encode() + data
    return hashlib.sha256(content).digest()


def compare_data(saved: bytes | None, given: bytes | None) -> str:
    """Returns the differences between two `data.json`, {split: fingerprint}; "" if there are none or nothing is known."""
    try:
        old, new = (json.loads(content or b"{}") for content in (saved, given))
        pairs = {
            split: [(name, old[split][name], new[split].get(name)) for name in old[split]] for split in old if split in new
        }
    except (ValueError, AttributeError, TypeError, LookupError):  # damaged
        return ""
    changed = {split: [name for name, a, b in values if a != b and None not in (a, b)] for split, values in pairs.items()}
    return "; ".join(f"split {split!r} has other {' and '.join(names)}" for split, names in changed.items() if names)
