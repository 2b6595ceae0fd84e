"""Configs are data: checks, durations, overrides, versions.

A config file defines `get_config()` (or `get_config(arg)`) that returns an `ml_collections.ConfigDict` in which every
field of `config_fields` is present.
"""

import ast
import inspect
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from attention_jax.config.fields import COMMON, OF_TASK, OPEN, VERSION, Field, fields_of
from attention_jax.config.plugins import load_file, load_object
from attention_jax.errors import UserError, suggestion

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
    """(alternative dotted names, Field or OPEN) of every field."""
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
    return tuple(f"{name}." for name, field in _known_names(task).items() if field is OPEN)


def _task(config: Mapping[str, Any]) -> str:
    task = config.get("task")
    if task is None:
        raise UserError("config: give exactly one of task; this config has none.")
    if task not in OF_TASK:
        raise UserError(f"config.task={task!r} is not right: give {COMMON['task'].accepts}.")
    return task


def check(config: ConfigDict) -> None:
    """Raises UserError that names the first field that is unknown, missing or of a wrong value."""
    task = _task(config)
    flat, known = flatten(config), _known_names(task)
    for name in flat:
        if name not in known and not name.startswith(_open_sections(task)):
            raise UserError(f"unknown config field {name!r}{suggestion(name, known)}.")
    for names, field in _fields(fields_of(task)):
        if field is OPEN:
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
    field = next((known[name] for known in map(_known_names, OF_TASK) if name in known), None)
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
