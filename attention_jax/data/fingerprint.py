"""Fingerprints of data: whether a split is the one that a run was made with.

They come from a few examples at fixed places and not from paths or dates, so that they cost little, and moving or copying data
changes nothing. A change of other examples is not seen; a source that knows better has `fingerprint()`, which gives a text.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from attention_jax.data.images.decoding import BrokenImage

DATA = "data.json"  # in a workdir, and among a checkpoint's assets
SAMPLE = 64  # examples that are read


def read_sample(source: Any) -> list[Any]:
    """Returns the examples at 64 fixed places of a source, or all of fewer; None for an image that cannot be decoded."""

    def read(place: int) -> Any:
        try:
            return source[place]
        except BrokenImage:
            return None

    with ThreadPoolExecutor(8) as pool:  # remote examples wait for their store
        return list(pool.map(read, np.linspace(0, len(source) - 1, min(len(source), SAMPLE)).astype(int).tolist()))


def compute_fingerprint(source: Any, sample: Sequence[Any] | None = None) -> dict[str, Any]:
    """Returns the fingerprint of a split: its source's own, or its length, class names and the hash of a sample.

    There is no hash where an example is another one each time that it is read.
    """
    if callable(own := getattr(source, "fingerprint", None)):
        return {"fingerprint": str(own())}
    sample = read_sample(source) if sample is None else sample
    is_fixed = not sample or sample[0] is None or _hash(sample[0]) == _hash(source[0])
    classes = [str(name) for name in getattr(source, "label_names", ())]
    return {"examples": len(source), "classes": classes, "contents": _hash(sample).hex() if is_fixed else None}


def _hash(value: Any) -> bytes:
    """The SHA-256 of an example, part by part."""
    if isinstance(value, Mapping):
        parts = [_hash(part) for item in sorted(value.items()) for part in item]
    elif isinstance(value, (tuple, list)):
        parts = [_hash(part) for part in value]
    elif isinstance(value, (bytes, str)):
        parts = [value if isinstance(value, bytes) else value.encode(errors="surrogatepass")]
    else:
        array = np.asarray(value)
        content = repr(value).encode() if array.dtype == object else array.tobytes()
        parts = [f"{array.dtype.str}{array.shape}".encode(), content]
    return hashlib.sha256(b"".join(parts)).digest()


def compare_data(saved: bytes | None, given: bytes | None) -> str:
    """Returns what differs between two `data.json`, as a phrase: "" where nothing does or nothing is known."""
    old, new = _read(saved), _read(given)
    changes = {split: _describe_change(old[split], new[split]) for split in old if split in new}
    return "; ".join(f"split {split!r} has {change}" for split, change in changes.items() if change)


def _read(content: bytes | None) -> dict[str, dict[str, Any]]:
    """{split: fingerprint}; nothing is known of a file that is missing or damaged."""
    try:
        found = json.loads(content or b"{}")
        return {split: {**fingerprint} for split, fingerprint in found.items()}
    except (ValueError, AttributeError, TypeError):
        return {}


def _describe_change(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    changes = []
    for name, before in old.items():
        now = new.get(name)
        if before == now or before is None or now is None:
            continue
        if name == "examples":
            changes.append(f"{now} examples instead of {before}")
        elif name == "classes":
            sides = (("no more", before, now), ("new", now, before))
            lists = [
                f"{word}: {', '.join([c for c in one if c not in other][:8])}"
                for word, one, other in sides
                if {*one} - {*other}
            ]
            changes.append(f"other classes ({'; '.join(lists) or 'in another order'})")
        else:
            changes.append("other contents")
    return ", ".join(changes)
