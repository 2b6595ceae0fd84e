"""The split "validation" of any source: its own, or a tenth of the training split, which training then leaves out."""

import functools
import json
import logging
from collections.abc import Callable
from typing import Any

import numpy as np

from attention_jax.data.fingerprint import compute_fingerprint, read_sample
from attention_jax.errors import NoSplit, UserError

VALIDATION, NAMES = "validation", ("validation", "val", "valid", "dev")  # names that sources give to it
VERSION = 1  # version of the permutation
_own: dict[str, tuple[str, str]] = {}  # (source, arguments) -> result of `_find_own`: a remote folder is slow to list
_report_once = functools.cache(logging.getLogger(__name__).info)  # a run opens its data several times


class Subset:
    """The examples of a source, `base`, at the positions `indices`, with the source's other attributes."""

    def __init__(self, base: Any, indices: np.ndarray):
        self.base, self.indices = base, indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Any:
        return self.base[int(self.indices[index])]

    def __getattr__(self, name: str) -> Any:
        """Returns an attribute of the source; if it has a value for each example, the values of these examples."""
        if name.startswith("__"):  # copying and pickling look these up before there is a source
            raise AttributeError(name)
        value = getattr(self.base, name)
        of_these: dict[str, Callable[..., Any]] = {
            "name": lambda index: value(int(self.indices[index])),
            "groups": lambda: np.asarray(value())[self.indices].tolist(),
            "fingerprint": lambda: f"{value()}, {len(self)} of {len(self.base)} examples, carved by version {VERSION}",
        }
        return np.asarray(value)[self.indices] if name == "labels" else of_these.get(name, value)


def open_split(data: Any, split: str, make: Callable[[str], Any]) -> Any:
    """Returns a split of a source; if `data.eval_split` is carved from the training split, training gets the rest.

    Args:
        data: the section `data` of a config.
        make: function that opens a split by the source's own name.
    """
    wanted = split == VALIDATION or (data.eval_split == VALIDATION and split == data.train_split)
    if not wanted or data.train_split == VALIDATION:
        return make(split)
    key = json.dumps([data.source, data.args.to_dict(), data.train_split], sort_keys=True, default=str)
    own, reason = _own[key] = _own.get(key) or _find_own(data, make)
    if own:
        return make(own if split == VALIDATION else split)
    base = make(data.train_split)
    carved = choose_validation(base)
    _report_once(
        f"data: {len(carved):,} of the {len(base):,} examples of split {data.train_split!r} are carved out for validation, and "
        f"training with data.eval_split={VALIDATION!r} leaves them out, as data.source={data.source} has none ({reason})."
    )
    return Subset(base, carved if split == VALIDATION else np.setdiff1d(np.arange(len(base)), carved))


def _find_own(data: Any, make: Callable[[str], Any]) -> tuple[str, str]:
    """Returns (the source's name of its validation split, ""), or ("", why it has none)."""
    reasons = []
    for name in NAMES:
        if isinstance(found := _identify(make, name), str):
            reasons.append(found)
            continue
        # A path without "{split}", or a function that ends in `else`, returns some split for any name; folders and TFDS do not.
        others = () if data.source in ("folder", "tfds") else (data.train_split, "test")
        if not (same := [other for other in others if _identify(make, other) == found]):
            return name, ""
        reasons.append(f"its {name!r} is its {same[0]!r}")
    return "", reasons[0]


def _identify(make: Callable[[str], Any], split: str) -> tuple | str:
    """Returns (number of examples, fingerprint of a sample), or the reason why there is no such split."""
    try:
        source = make(split)
    except UserError as error:
        cause = error.__cause__  # a KeyError may come from the user's own function, "Unknown split" from TFDS
        if isinstance(error, NoSplit) or isinstance(cause, (KeyError, FileNotFoundError)) or "Unknown split" in str(cause):
            return str(error).rstrip(".")
        raise
    return len(source), compute_fingerprint(read_sample(source))


def choose_validation(source: Any) -> np.ndarray:
    """Returns the positions, ascending, of a tenth of a source's examples: the start of a permutation that their number fixes.

    With fewer than 100 examples, one example of each class that has two is included. Raises UserError for a single example.
    """
    number = len(source)
    if number < 2:
        raise UserError("data.eval_split='validation': the training split has a single example, and validation needs one.")
    order, chosen = np.random.default_rng([VERSION, number]).permutation(number).tolist(), dict[Any, int]()
    labels = [x.get("label") for x in read_sample(source, 99) if isinstance(x, dict)] if number < 100 else []
    classes = [int(label) for label in labels if label is not None]
    for place in order if len(classes) == number else ():
        if classes.count(classes[place]) > 1:
            chosen.setdefault(classes[place], place)
    size = max(1, number // 10, len(chosen))
    return np.sort(list(dict.fromkeys([*chosen.values(), *order]))[:size])
