"""Configs are data: fields, checks, durations, overrides, versions.

A config file defines `get_config()` (or `get_config(arg)`) that returns an `ml_collections.ConfigDict` in which every
field below is present. Sections marked open take any key; whoever reads them checks them (`create_model` its fields).
"""

import ast
import dataclasses
import inspect
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from attention_jax.errors import UserError, suggestion
from attention_jax.plugins import load_file, load_object

VERSION = 3


@dataclasses.dataclass(frozen=True)
class Field:
    """What one field accepts: types, a further condition, and the words of the error."""

    types: type | tuple[type, ...]
    accepts: str
    ok: Callable[[Any], bool] = lambda value: True

    def error(self, value: Any) -> str | None:
        """None, or what would be right."""
        types = self.types if isinstance(self.types, tuple) else (self.types,)
        is_type = isinstance(value, types) and (bool in types or not isinstance(value, bool))
        return None if is_type and self.ok(value) else self.accepts


def _choice(*names: str) -> Field:
    return Field(str, "one of " + ", ".join(map(repr, names)), lambda value: value in names)


def _positive(unit: str) -> Field:
    return Field(int, f"a whole number of {unit} from 1", lambda value: value >= 1)


def _not_negative(what: str) -> Field:
    return Field((int, float), f"{what}, 0 or more", lambda value: value >= 0)


_NAME = Field(str, "a name")
_FLAG = Field(bool, "True or False")
_PROBABILITY = Field((int, float), "a number from 0 to 1", lambda value: 0 <= value <= 1)
_SHARE = Field((int, float), "a number from 0 up to, but not including, 1", lambda value: 0 <= value < 1)
_STEP = Field(int, "a step, 0 or more", lambda value: value >= 0)
_DURATION = Field((int, float), "a positive number", lambda value: 0 < value < math.inf)
_DURATION_OR_0 = Field((int, float), "a number, 0 or more", lambda value: 0 <= value < math.inf)
_UNITS = ("steps", "epochs", "examples")
_OPEN = object()  # a section that takes any key


def _duration(name: str, field: Field = _DURATION) -> dict[tuple[str, ...], Field]:
    return {tuple(f"{name}_{unit}" for unit in _UNITS): field}


def _numbers(low: float, high: float = math.inf) -> Callable[[Any], bool]:
    """Whether a sequence holds numbers between low and high, both excluded."""
    return lambda value: all(isinstance(number, (int, float)) and low < number < high for number in value)


def _is_range(high: float) -> Callable[[Any], bool]:
    """Whether a sequence is (a, b) with 0 < a <= b <= high."""
    return lambda value: len(value) == 2 and _numbers(0)(value) and value[0] <= value[1] <= high


def _is_shape(value: Any) -> bool:
    return value is None or (len(value) == 3 and all(isinstance(side, int) and side > 0 for side in value))


def _is_rules(value: Any, ok: Callable[[Any], bool] = lambda value: isinstance(value, bool)) -> bool:
    try:
        return all(len(rule) == 2 and ok(rule[1]) and re.compile(rule[0]) for rule in value)
    except (re.error, TypeError):
        return False


_PLACEMENTS = "'fsdp', 'replicated' or a tuple with None, 'fsdp' or 'model' for each dimension"


def _is_placing(value: Any) -> bool:
    def ok(placement: Any) -> bool:
        if isinstance(placement, str):
            return placement in ("fsdp", "replicated")
        axes = [axis for axis in placement if axis is not None]
        return set(axes) <= {"fsdp", "model"} and len(axes) == len(set(axes))

    return _is_rules(value, ok)


_OWN_NUMBER = Field((int, type(None)), "a whole number, or None for the data's own", lambda v: v is None or v >= 1)

# Of every task. A key is a name, or the names of which exactly one must be present (a duration in any one unit).
_COMMON: dict[Any, Any] = {
    "version": Field(int, f"a whole number from 1 to {VERSION}", lambda value: 1 <= value <= VERSION),
    "task": _choice("classification", "translation"),
    "seed": Field(int, "a whole number from 0 to 2**31 - 1", lambda value: 0 <= value < 2**31),
    "batch_size": _positive("examples, or of a translation's tokens,"),
    "accumulation": _positive("micro-batches"),
    **_duration("total"),
    "precision": _choice("float32", "bfloat16"),
    "model": _OPEN,
    "optimizer": {
        "name": _choice("sgd", "rmsprop", "adamw"),
        "momentum": _SHARE,
        "nesterov": _FLAG,
        "rate_in_velocity": _FLAG,
        "rmsprop": _choice("tensorflow", "keras", "torch"),
        "b1": _SHARE,
        "b2": _SHARE,
        "eps": Field((int, float), "a positive number", lambda value: 0 < value < math.inf),
        "clip_norm": _not_negative("a norm"),
        "weight_decay": _not_negative("a factor"),
        "decay": _choice("l2", "decoupled"),
        "decay_rules": Field((tuple, list), "a tuple of (path regex, True or False)", _is_rules),
    },
    "schedule": {
        "name": _choice("constant", "step", "cosine", "linear", "noam"),
        "learning_rate": _not_negative("a rate"),
        **_duration("warmup", _DURATION_OR_0),
        "warmup_start": _not_negative("a rate"),
        "final_share": _PROBABILITY,
        "boundaries": Field((tuple, list), "a tuple of shares of the run, between 0 and 1", _numbers(0, 1)),
        "factor": _not_negative("a factor"),
        "d_model": _positive("channels"),
    },
    "loss": {"label_smoothing": _SHARE, "smoothing_over": _choice("uniform", "others")},
    "ema": {"decay": _SHARE, "warmup": _FLAG},
    "evaluation": {**_duration("every"), "batch_size": _positive("examples")},
    "checkpoint": {**_duration("every"), "keep_last": _positive("checkpoints"), "keep_best": _positive("checkpoints")},
    "logging": {**_duration("every"), "tensorboard": _FLAG},
    "parallel": {
        "mode": _choice("jit", "pmap"),
        "data": Field(
            int,
            "a whole number of devices, or -1 for all of them that fsdp and model leave",
            lambda value: value == -1 or value >= 1,
        ),
        "fsdp": _positive("devices"),
        "model": _positive("devices"),
        "rules": Field((tuple, list), f"a tuple of (path regex, {_PLACEMENTS})", _is_placing),
    },
    "profile": {"first_step": _STEP, "num_steps": _STEP},
}

_IMAGES: dict[Any, Any] = {
    "batch_norm": {
        "granularity": Field(
            (str, int),
            "'all', 'per_replica', or a whole number of examples",
            lambda value: value in ("all", "per_replica") if isinstance(value, str) else value >= 1,
        ),
    },
    "data": {
        "source": _NAME,
        "args": _OPEN,
        "train_split": _NAME,
        "eval_split": _NAME,
        "crop": _choice("pad", "random_resized", "none"),
        "crop_padding": Field(int, "a number of pixels, 0 or more", lambda value: value >= 0),
        "crop_scale": Field((tuple, list), "(smallest, largest) share of the area, above 0 and up to 1", _is_range(1)),
        "crop_ratio": Field((tuple, list), "(smallest, largest) width / height, above 0", _is_range(math.inf)),
        "flip": _FLAG,
        "randaugment_layers": Field(int, "a number of layers, 0 for none", lambda value: value >= 0),
        "randaugment_magnitude": _not_negative("a magnitude"),
        "randaugment_std": _not_negative("a deviation of the magnitude"),
        "randaugment_ops": _choice("paper", "tf1", "timm"),
        "interpolation": _choice("bilinear", "bicubic"),
        "eval_resize": Field(
            (int, type(None)), "a number of pixels, or None to take images as they are", lambda v: v is None or v >= 1
        ),
        "on_broken": _choice("skip", "stop"),
        "mean": Field((tuple, list), "a tuple of numbers, one a channel", lambda value: value and _numbers(-math.inf)(value)),
        "std": Field((tuple, list), "a tuple of positive numbers, one a channel", lambda value: value and _numbers(0)(value)),
        "image_shape": Field(
            (tuple, list, type(None)),
            "(height, width, channels), or None for the data's own",
            _is_shape,
        ),
        "num_examples": _OWN_NUMBER,
        "threads": _positive("threads"),
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
        "source": _NAME,
        "args": _OPEN,
        "train_split": _NAME,
        "eval_split": _NAME,
        "tokenizer": Field(str, "'sentencepiece', 'words', or the path of a tokenizer's file"),
        "tokenizer_options": _OPEN,
        "vocab_size": Field(
            (int, type(None)), "a whole number of tokens from 5, or None for every word", lambda v: v is None or v >= 5
        ),
        "joiner": Field(str, "the end of a word that goes on in the next one, or '' for none"),
        "max_length": Field(int, "a whole number of tokens from 2", lambda value: value >= 2),
        "too_long": _choice("drop", "truncate"),
        "bucket_lengths": Field(
            (int, tuple, list),
            "a whole number of buckets, or a tuple of ascending lengths in tokens",
            lambda value: (
                value >= 1
                if isinstance(value, int)
                else bool(value) and _numbers(0)(value) and list(value) == sorted(set(value))
            ),
        ),
        "rows_multiple": _positive("rows"),
        "on_broken": _choice("skip", "stop"),
        "num_examples": _OWN_NUMBER,
        "num_batches": _OWN_NUMBER,
        "threads": _positive("threads"),
    },
    "search": {
        "beam": _positive("hypotheses"),
        "alpha": _not_negative("an exponent"),
        "penalty": _choice("gnmt", "length"),
        "min_length": Field(int, "a number of tokens, 0 or more", lambda value: value >= 0),
        "max_extra": Field(int, "a number of tokens, 0 or more", lambda value: value >= 0),
        "max_length": Field(
            (int, type(None)),
            "a whole number of tokens, or None for max_extra beyond the source",
            lambda v: v is None or v >= 1,
        ),
    },
    "evaluation": {
        "translate": _FLAG,
        "bleu": _choice("13a", "intl", "char", "zh", "ja-mecab", "ko-mecab", "none"),
        "headline": _choice("token_accuracy", "bleu", "chrf", "exact_match"),
    },
}
_OF_TASK = {"classification": _IMAGES, "translation": _TEXT}


def fields_of(task: str) -> dict[Any, Any]:
    """The fields of a task's configs, those common to all tasks first."""
    own = _OF_TASK[task]
    both = {name: {**fields, **own.get(name, {})} if isinstance(fields, dict) else fields for name, fields in _COMMON.items()}
    return {**both, **{name: fields for name, fields in own.items() if name not in both}}


# What may differ between a workdir's config and the one given on a rerun: nothing that changes the numbers.
MAY_DIFFER = (
    "parallel",
    "logging",
    "profile",
    "data.threads",
    "data.on_broken",  # what a strict run did before it stopped is the same
    "data.args.data_dir",
    "data.args.path",
    "data.args.source",
    "data.args.target",
    "checkpoint.keep_last",
    "checkpoint.keep_best",
)


def load_config(spec: str) -> ConfigDict:
    """`path/to/file.py` or `path/to/file.py:arg` -> the checked result of its `get_config`."""
    path, _, arg = spec.partition(":")
    module = load_file(path)
    if not hasattr(module, "get_config"):
        raise UserError(f"{path}: a config file defines get_config(), this one does not.")
    takes_arg = bool(inspect.signature(module.get_config).parameters)
    if arg and not takes_arg:
        raise UserError(f"{path}: get_config() takes no argument, so {arg!r} has no meaning.")
    config = module.get_config(arg) if arg else module.get_config()
    if not isinstance(config, ConfigDict):
        raise UserError(f"{path}: get_config() returned {type(config).__name__}; return an ml_collections.ConfigDict.")
    config = upgrade(config)
    check(config)
    return config


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{"a.b": value}`; sequences come as tuples."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, (Mapping, ConfigDict)):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = _as_tuple(value)
    return flat


def _as_tuple(value: Any) -> Any:
    return tuple(map(_as_tuple, value)) if isinstance(value, (tuple, list)) else value


def _fields(section: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[tuple[str, ...], Any]]:
    """(alternative dotted names, Field or _OPEN) of every field."""
    for key, field in section.items():
        names = key if isinstance(key, tuple) else (key,)
        if isinstance(field, dict):
            yield from _fields(field, f"{prefix}{key}.")
        else:
            yield tuple(prefix + name for name in names), field


def _known_names(task: str) -> dict[str, Any]:
    return {name: field for names, field in _fields(fields_of(task)) for name in names}


def _open_sections(task: str) -> tuple[str, ...]:
    """Prefixes of the names that may be anything."""
    return tuple(f"{name}." for name, field in _known_names(task).items() if field is _OPEN)


def _task(config: Mapping[str, Any]) -> str:
    task = config.get("task")
    if task is None:
        raise UserError("config: give exactly one of task; this config has none.")
    if task not in _OF_TASK:
        raise UserError(f"config.task={task!r} is not right: give {_COMMON['task'].accepts}.")
    return task


def check(config: ConfigDict) -> None:
    """Raises UserError that names the first field that is unknown, missing or of a wrong value."""
    task = _task(config)
    flat, known = flatten(config), _known_names(task)
    for name in flat:
        if name not in known and not name.startswith(_open_sections(task)):
            raise UserError(f"unknown config field {name!r}{suggestion(name, known)}.")
    for names, field in _fields(fields_of(task)):
        if field is _OPEN:
            *parents, last = names[0].split(".")
            section = config
            for parent in parents:
                section = section[parent]
            if not isinstance(section.get(last), ConfigDict):
                raise UserError(f"config.{names[0]} is a section of fields: give it as a ConfigDict.")
            continue
        present = [name for name in names if name in flat]
        if len(present) != 1:
            wanted = " or ".join(names)
            raise UserError(f"config: give exactly one of {wanted}; this config has {' and '.join(present) or 'none'}.")
        expected = field.error(flat[present[0]])
        if expected:
            raise UserError(f"config.{present[0]}={flat[present[0]]!r} is not right: give {expected}.")
    if "name" not in config.get("model", {}):
        raise UserError("config.model.name is missing: give the name of a model, as attention_jax.list_models() lists them.")
    if task == "classification" and config.batch_size % config.accumulation:
        raise UserError(
            f"config.accumulation={config.accumulation} does not divide batch_size={config.batch_size}: give one that does."
        )


def override(config: ConfigDict, changes: Mapping[str, Any]) -> ConfigDict:
    """A copy with dotted fields replaced and checked. A duration given in another unit replaces the old one."""
    plain = config.copy_and_resolve_references().to_dict()
    task = _task(plain)
    siblings = {name: names for names, _ in _fields(fields_of(task)) for name in names}
    for dotted, value in changes.items():
        is_open = dotted.startswith(_open_sections(task))
        if dotted not in siblings and not is_open:
            raise UserError(f"unknown config field {dotted!r}{suggestion(dotted, siblings)}.")
        *parents, last = dotted.split(".")
        section = plain
        for parent in parents:
            section = section.setdefault(parent, {})
            if not isinstance(section, dict):
                raise UserError(f"unknown config field {dotted!r}: {parent!r} has no fields of its own.")
        for sibling in siblings.get(dotted, ()):
            section.pop(sibling.rpartition(".")[2], None)
        section[last] = value
    changed = ConfigDict(plain)
    check(changed)
    return changed


def parse_value(name: str, text: str) -> Any:
    """The Python value that a command-line text stands for, a bare word being a string."""
    field = next((known[name] for known in map(_known_names, _OF_TASK) if name in known), None)
    if isinstance(field, Field) and field.types is str:
        return text
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def duration_steps(section: Mapping[str, Any], name: str, steps_per_epoch: int, batch_size: float) -> int:
    """The duration `name` of a section in steps, from whichever unit it is given in; at least one step unless it is 0."""
    in_steps = {"steps": 1.0, "epochs": steps_per_epoch, "examples": 1 / batch_size}
    for unit, factor in in_steps.items():
        value = section.get(f"{name}_{unit}")
        if value is not None:
            return max(1, round(value * factor)) if value else 0
    raise KeyError(name)


def apply_pieces(config: ConfigDict, pieces: tuple[str | Callable[[ConfigDict], ConfigDict], ...]) -> ConfigDict:
    """The config after its recipe pieces, each a function ConfigDict -> ConfigDict or the name of one."""
    from attention_jax import recipes

    own = {name: piece for name, piece in vars(recipes).items() if inspect.isfunction(piece) and not name.startswith("_")}
    for piece in pieces:
        function = load_object(piece, own, "recipe piece")
        config = function(config) if callable(function) else None
        if not isinstance(config, ConfigDict):
            raise UserError(
                f"recipe piece {piece!r} gave {type(config).__name__}: a piece is a function ConfigDict -> ConfigDict."
            )
    check(config)
    return config


def to_json(config: ConfigDict) -> str:
    """The config as JSON, with which `from_json` is loss-free up to tuple against list."""
    return json.dumps(config.to_dict(), indent=1, default=list)


def from_json(text: str) -> ConfigDict:
    """A saved config, brought up to date."""
    return upgrade(ConfigDict(_tuples(json.loads(text))))


def _tuples(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _tuples(item) for key, item in value.items()}
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


# What the library did before the field of version 2 existed.
_BEFORE_2: dict[str, Any] = {
    "precision": "float32",
    "optimizer": {
        "rate_in_velocity": False,
        "rmsprop": "tensorflow",
        "b1": 0.9,
        "b2": 0.999,
        "eps": 1e-8,
        "clip_norm": 0.0,
        "decay": "l2",
    },
    "schedule": {"warmup_start": 0.0, "final_share": 0.0, "d_model": 512},
    "loss": {"smoothing_over": "uniform"},
    "mix": {"mixup_alpha": 0.0, "cutmix_alpha": 0.0, "probability": 1.0, "switch_probability": 0.5},
    "data": {
        "crop": "pad",
        "crop_scale": (0.08, 1.0),
        "crop_ratio": (3 / 4, 4 / 3),
        "randaugment_layers": 0,
        "randaugment_magnitude": 9,
        "randaugment_std": 0.0,
        "randaugment_ops": "paper",
        "interpolation": "bilinear",
        "eval_resize": None,
        "on_broken": "skip",
    },
}


def _upgrade_1(config: ConfigDict) -> ConfigDict:
    """Version 2 has more fields; AdamW's first-moment decay was called momentum."""
    plain = config.copy_and_resolve_references().to_dict()
    for name, default in _BEFORE_2.items():
        plain[name] = {**default, **plain.get(name, {})} if isinstance(default, dict) else plain.get(name, default)
    if plain["optimizer"].get("name") == "adamw":
        plain["optimizer"]["b1"] = plain["optimizer"]["momentum"]
    return ConfigDict({**plain, "version": 2})


# What the library did before the field of version 3 existed.
_BEFORE_3: dict[str, Any] = {"parallel": {"fsdp": 1, "model": 1, "rules": ()}}


def _upgrade_2(config: ConfigDict) -> ConfigDict:
    """Version 3 can divide the state over devices."""
    plain = config.copy_and_resolve_references().to_dict()
    for section, fields in _BEFORE_3.items():
        plain[section] = {**fields, **plain.get(section, {})}
    return ConfigDict({**plain, "version": 3})


# One function for each old version: ConfigDict of that version -> ConfigDict of the next.
UPGRADES: dict[int, Callable[[ConfigDict], ConfigDict]] = {1: _upgrade_1, 2: _upgrade_2}


def upgrade(config: ConfigDict) -> ConfigDict:
    """A config of any earlier version as one of this version."""
    version = config.get("version")
    if not isinstance(version, int) or not 1 <= version <= VERSION:
        raise UserError(f"config.version={version!r} is not right: this installation reads versions 1 to {VERSION}.")
    for old in range(version, VERSION):
        config = UPGRADES[old](config)
    return config


def difference(saved: ConfigDict, given: ConfigDict) -> list[str]:
    """Lines "field: saved … , given …" of the fields that differ and must not on a rerun."""
    old, new = flatten(saved), flatten(given)
    lines = []
    for name in sorted(old.keys() | new.keys()):
        if any(name == field or name.startswith(f"{field}.") for field in MAY_DIFFER):
            continue
        if old.get(name, "nothing") != new.get(name, "nothing"):
            lines.append(f"{name}: saved {old.get(name, 'nothing')!r}, given {new.get(name, 'nothing')!r}")
    return lines


def save_json(path: Path, config: ConfigDict) -> None:
    """Writes a config so that a reader sees all of it or nothing."""
    partial = path.with_suffix(".partial")
    partial.write_text(to_json(config))
    partial.replace(path)
