"""The fields of configs: what each accepts, and the words of the error when it does not.

Sections marked open take any key; whoever reads them checks them (`create_model` its fields).
"""

import dataclasses
import math
import re
from collections.abc import Callable
from typing import Any

VERSION = 3


@dataclasses.dataclass(frozen=True)
class Field:
    """A field accepts values of `types` for which `ok` is true; `accepts` says so in the error."""

    types: type | tuple[type, ...]
    accepts: str
    ok: Callable[[Any], bool] = lambda value: True

    def error(self, value: Any) -> str | None:
        """Returns None, or what would be right."""
        is_type = isinstance(value, self.types) and (self.types is bool or not isinstance(value, bool))
        return None if is_type and self.ok(value) else self.accepts


def _choice(*names: str) -> Field:
    return Field(str, "one of " + ", ".join(map(repr, names)), lambda value: value in names)


def _integer(unit: str, low: int = 1) -> Field:
    return Field(int, f"a whole number of {unit} from {low}", lambda value: value >= low)


def _number_or_none(what: str, none: str, low: int = 1) -> Field:
    return Field((int, type(None)), f"{what}, or None {none}", lambda value: value is None or value >= low)


def _not_negative(what: str) -> Field:
    return Field((int, float), f"{what}, 0 or more", lambda value: value >= 0)


_SEQUENCE = (tuple, list)
_NAME = Field(str, "a name")
_FLAG = Field(bool, "True or False")
_PROBABILITY = Field((int, float), "a number from 0 to 1", lambda value: 0 <= value <= 1)
_SHARE = Field((int, float), "a number from 0 up to, but not including, 1", lambda value: 0 <= value < 1)
_ABOVE_0 = Field((int, float), "a positive number", lambda value: 0 < value < math.inf)
_FINITE = Field((int, float), "a number, 0 or more", lambda value: 0 <= value < math.inf)
UNITS = ("steps", "epochs", "examples")
OPEN = object()  # a section that takes any key


def _duration(name: str, field: Field = _ABOVE_0) -> dict[tuple[str, ...], Field]:
    return {tuple(f"{name}_{unit}" for unit in UNITS): field}


def _numbers(low: float, high: float = math.inf) -> Callable[[Any], bool]:
    """True for a sequence of numbers between low and high, both excluded."""
    return lambda value: all(isinstance(number, (int, float)) and low < number < high for number in value)


def _range(high: float) -> Callable[[Any], bool]:
    """True for a sequence (a, b) with 0 < a <= b <= high."""
    return lambda value: len(value) == 2 and _numbers(0)(value) and value[0] <= value[1] <= high


def _is_granularity(value: Any) -> bool:
    return value in ("all", "per_replica") if isinstance(value, str) else value >= 1


def _is_shape(value: Any) -> bool:
    return value is None or (len(value) == 3 and all(isinstance(side, int) and side > 0 for side in value))


def _is_buckets(value: Any) -> bool:
    if isinstance(value, int):
        return value >= 1
    return bool(value) and _numbers(0)(value) and list(value) == sorted(set(value))


def _is_rules(value: Any, ok: Callable[[Any], bool]) -> bool:
    """True for a sequence of (regular expression, value) in which `ok` holds for every value."""
    try:
        return all(len(rule) == 2 and ok(rule[1]) and re.compile(rule[0]) for rule in value)
    except (re.error, TypeError):
        return False


_SHARDINGS = "'fsdp', 'replicated' or a tuple with None, 'fsdp' or 'model' for each dimension"


def _is_sharding(value: Any) -> bool:
    if isinstance(value, str):
        return value in ("fsdp", "replicated")
    axes = [axis for axis in value if axis is not None]
    return set(axes) <= {"fsdp", "model"} and len(axes) == len(set(axes))


# Fields of every task. A key is a name, or several names, exactly one of them present (a duration in any one unit).
COMMON: dict[Any, Any] = {
    "version": Field(int, f"a whole number from 1 to {VERSION}", lambda value: 1 <= value <= VERSION),
    "task": _choice("classification", "translation"),
    "seed": Field(int, "a whole number from 0 to 2**31 - 1", lambda value: 0 <= value < 2**31),
    "batch_size": _integer("examples, or of a translation's tokens,"),
    "accumulation": _integer("micro-batches"),
    **_duration("total"),
    "precision": _choice("float32", "bfloat16"),
    "model": OPEN,
    "data": {
        "source": _NAME,
        "args": OPEN,
        "train_split": _NAME,
        "eval_split": _NAME,
        "on_broken": _choice("skip", "stop"),
        "num_examples": _number_or_none("a whole number", "for the data's own"),
        "threads": _integer("threads"),
    },
    "optimizer": {
        "name": _choice("sgd", "rmsprop", "adamw"),
        "momentum": _SHARE,
        "nesterov": _FLAG,
        "rate_in_velocity": _FLAG,
        "rmsprop": _choice("tensorflow", "keras", "torch"),
        "b1": _SHARE,
        "b2": _SHARE,
        "eps": _ABOVE_0,
        "clip_norm": _not_negative("a norm"),
        "weight_decay": _not_negative("a factor"),
        "decay": _choice("l2", "decoupled"),
        "decay_rules": Field(
            _SEQUENCE, "a tuple of (path regex, True or False)", lambda rules: _is_rules(rules, lambda v: isinstance(v, bool))
        ),
    },
    "schedule": {
        "name": _choice("constant", "step", "cosine", "linear", "noam"),
        "learning_rate": _not_negative("a rate"),
        **_duration("warmup", _FINITE),
        "warmup_start": _not_negative("a rate"),
        "final_share": _PROBABILITY,
        "boundaries": Field(_SEQUENCE, "a tuple of shares of the run, between 0 and 1", _numbers(0, 1)),
        "factor": _not_negative("a factor"),
        "d_model": _integer("channels"),
    },
    "loss": {"label_smoothing": _SHARE, "smoothing_over": _choice("uniform", "others")},
    "ema": {"decay": _SHARE, "warmup": _FLAG},
    "evaluation": {**_duration("every"), "batch_size": _integer("examples")},
    "checkpoint": {**_duration("every"), "keep_last": _integer("checkpoints"), "keep_best": _integer("checkpoints")},
    "logging": {**_duration("every"), "tensorboard": _FLAG},
    "parallel": {
        "mode": _choice("jit", "pmap"),
        "data": Field(int, "a number of devices, or -1 for all of them that fsdp and model leave", lambda n: n == -1 or n >= 1),
        "fsdp": _integer("devices"),
        "model": _integer("devices"),
        "rules": Field(_SEQUENCE, f"a tuple of (path regex, {_SHARDINGS})", lambda rules: _is_rules(rules, _is_sharding)),
    },
    "profile": {"first_step": _integer("steps", low=0), "num_steps": _integer("steps", low=0)},
}

_IMAGES: dict[Any, Any] = {
    "batch_norm": {"granularity": Field((str, int), "'all', 'per_replica', or a whole number of examples", _is_granularity)},
    "data": {
        "crop": _choice("pad", "random_resized", "none"),
        "crop_padding": _integer("pixels", low=0),
        "crop_scale": Field(_SEQUENCE, "(smallest, largest) share of the area, above 0 and up to 1", _range(1)),
        "crop_ratio": Field(_SEQUENCE, "(smallest, largest) width / height, above 0", _range(math.inf)),
        "flip": _FLAG,
        "randaugment_layers": _integer("layers", low=0),
        "randaugment_magnitude": _not_negative("a magnitude"),
        "randaugment_std": _not_negative("a deviation of the magnitude"),
        "randaugment_ops": _choice("paper", "tf1", "timm"),
        "interpolation": _choice("bilinear", "bicubic"),
        "eval_resize": _number_or_none("a number of pixels", "to take images as they are"),
        "mean": Field(_SEQUENCE, "a tuple of numbers, one a channel", lambda value: value and _numbers(-math.inf)(value)),
        "std": Field(_SEQUENCE, "a tuple of positive numbers, one a channel", lambda value: value and _numbers(0)(value)),
        "image_shape": Field((tuple, list, type(None)), "(height, width, channels), or None for the data's own", _is_shape),
    },
    "mix": {
        "mixup_alpha": _not_negative("a parameter of Beta"),
        "cutmix_alpha": _not_negative("a parameter of Beta"),
        "probability": _PROBABILITY,
        "switch_probability": _PROBABILITY,
    },
}

_TEXT: dict[Any, Any] = {
    "data": {
        "tokenizer": Field(str, "'sentencepiece', 'words', or the path of a tokenizer's file"),
        "tokenizer_options": OPEN,
        "vocab_size": _number_or_none("a whole number of tokens from 5", "for every word", low=5),
        "joiner": Field(str, "the end of a word that goes on in the next one, or '' for none"),
        "max_length": _integer("tokens", low=2),
        "too_long": _choice("drop", "truncate"),
        "bucket_lengths": Field(
            (int, tuple, list), "a whole number of buckets, or a tuple of ascending lengths in tokens", _is_buckets
        ),
        "rows_multiple": _integer("rows"),
        "num_batches": _number_or_none("a whole number", "for the data's own"),
    },
    "search": {
        "beam": _integer("hypotheses"),
        "alpha": _not_negative("an exponent"),
        "penalty": _choice("gnmt", "length"),
        "min_length": _integer("tokens", low=0),
        "max_extra": _integer("tokens", low=0),
        "max_length": _number_or_none("a whole number of tokens", "for max_extra beyond the source"),
    },
    "evaluation": {
        "translate": _FLAG,
        "bleu": _choice("13a", "intl", "char", "zh", "ja-mecab", "ko-mecab", "none"),
        "headline": _choice("token_accuracy", "bleu", "chrf", "exact_match"),
    },
}
OF_TASK = {"classification": _IMAGES, "translation": _TEXT}


def get_fields(task: str) -> dict[Any, Any]:
    """Returns the table of fields of a task's configs, those common to all tasks first."""
    return COMMON | {name: COMMON.get(name, {}) | fields for name, fields in OF_TASK[task].items()}
