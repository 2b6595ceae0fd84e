"""Configs are data: checks, durations, overrides, versions.

A config file defines `get_config()` (or `get_config(arg)`) that returns an `ml_collections.ConfigDict` in which every
field of `config/fields.py` is present.
"""

import ast
import functools
import inspect
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from attention_jax.config.fields import COMMON, OF_TASK, OPEN, UNITS, VERSION, get_fields
from attention_jax.config.plugins import load_file, load_object
from attention_jax.errors import UserError, suggest_name

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
    """Returns the checked result of `get_config` in `path/to/file.py` or, with an argument, `path/to/file.py:arg`."""
    path, _, arg = spec.partition(":")
    module = load_file(path)
    if not hasattr(module, "get_config"):
        raise UserError(f"{path}: a config file defines get_config(), this one does not.")
    if arg and not inspect.signature(module.get_config).parameters:
        raise UserError(f"{path}: get_config() takes no argument, so {arg!r} has no meaning.")
    config = module.get_config(arg) if arg else module.get_config()
    if not isinstance(config, ConfigDict):
        raise UserError(f"{path}: get_config() returned {type(config).__name__}; return an ml_collections.ConfigDict.")
    config = upgrade_config(config)
    check_config(config)
    return config


def flatten_config(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns `{"a.b": value}`, with every sequence as a tuple."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, (Mapping, ConfigDict)):
            flat.update(flatten_config(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = _to_tuples(value)
    return flat


def _to_tuples(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _to_tuples(item) for key, item in value.items()}
    return tuple(map(_to_tuples, value)) if isinstance(value, (tuple, list)) else value


def _fields_by_name(section: Mapping[Any, Any], prefix: str = "") -> dict[str, tuple[tuple[str, ...], Any]]:
    """Dotted name -> (the names it is an alternative of, Field or OPEN)."""
    found: dict[str, tuple[tuple[str, ...], Any]] = {}
    for key, field in section.items():
        names = tuple(prefix + name for name in (key if isinstance(key, tuple) else (key,)))
        found |= _fields_by_name(field, f"{names[0]}.") if isinstance(field, dict) else dict.fromkeys(names, (names, field))
    return found


def _get_task(config: Mapping[str, Any]) -> str:
    task = config.get("task")
    if task not in OF_TASK:
        raise UserError(f"config.task={task!r} is not right: give {COMMON['task'].accepts}.")
    return task


def _refuse_unknown(name: str, known: Mapping[str, tuple[tuple[str, ...], Any]]) -> None:
    if name not in known and not any(name.startswith(f"{key}.") for key, (_, field) in known.items() if field is OPEN):
        raise UserError(f"unknown config field {name!r}{suggest_name(name, known)}.")


def check_config(config: ConfigDict) -> None:
    """Raises UserError that names the first field that is unknown, missing or of a wrong value."""
    task, flat = _get_task(config), flatten_config(config)
    known = _fields_by_name(get_fields(task))
    for name in flat:
        _refuse_unknown(name, known)
    for names, field in dict.fromkeys(known.values()):
        if field is OPEN:
            *parents, last = names[0].split(".")
            section = functools.reduce(lambda part, name: part[name], parents, config)
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
    """Returns a checked copy with dotted fields replaced; a duration in another unit takes the place of the old one."""
    plain = config.copy_and_resolve_references().to_dict()
    known = _fields_by_name(get_fields(_get_task(plain)))
    for dotted, value in changes.items():
        _refuse_unknown(dotted, known)
        *parents, last = dotted.split(".")
        section = plain
        for parent in parents:
            section = section.setdefault(parent, {})
            if not isinstance(section, dict):
                raise UserError(f"unknown config field {dotted!r}: {parent!r} has no fields of its own.")
        for sibling in known.get(dotted, ((), None))[0]:
            section.pop(sibling.rpartition(".")[2], None)
        section[last] = value
    changed = ConfigDict(plain)
    check_config(changed)
    return changed


def parse_value(name: str, text: str) -> Any:
    """Returns the Python value that a command-line text stands for; a bare word is a string."""
    fields = [_fields_by_name(get_fields(task)).get(name, ((), None))[1] for task in OF_TASK]
    try:
        return text if any(getattr(field, "types", None) is str for field in fields) else ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def convert_duration(section: Mapping[str, Any], name: str, steps_per_epoch: int, batch_size: float) -> int:
    """Returns the duration `name` of a section in steps, whatever its unit; at least one step unless it is 0."""
    for unit, factor in zip(UNITS, (1.0, steps_per_epoch, 1 / batch_size)):
        value = section.get(f"{name}_{unit}")
        if value is not None:
            return max(1, round(value * factor)) if value else 0
    raise KeyError(name)


def apply_pieces(config: ConfigDict, pieces: tuple[str | Callable[[ConfigDict], ConfigDict], ...]) -> ConfigDict:
    """Returns the config after its recipe pieces, each a function ConfigDict -> ConfigDict or the name of one."""
    from attention_jax import recipes

    builtin = {name: piece for name, piece in vars(recipes).items() if inspect.isfunction(piece) and not name.startswith("_")}
    for piece in pieces:
        function = load_object(piece, builtin, "recipe piece")
        config = function(config) if callable(function) else None
        if not isinstance(config, ConfigDict):
            raise UserError(
                f"recipe piece {piece!r} gave {type(config).__name__}: a piece is a function ConfigDict -> ConfigDict."
            )
    check_config(config)
    return config


def config_to_json(config: ConfigDict) -> str:
    """Returns the config as JSON, in which tuples become lists; `config_from_json` makes them tuples again."""
    return json.dumps(config.to_dict(), indent=1, default=list)


def config_from_json(text: str) -> ConfigDict:
    """Returns a saved config of any version, upgraded."""
    return upgrade_config(ConfigDict(_to_tuples(json.loads(text))))


def save_config(path: Path, config: ConfigDict) -> None:
    """Writes a config as JSON so that a reader sees all of it or nothing."""
    partial = path.with_suffix(".partial")
    partial.write_text(config_to_json(config))
    partial.replace(path)


# version -> the fields that it added, with what the library did before they existed.
_ADDED: dict[int, dict[str, Any]] = {
    2: {
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
    },
    3: {"parallel": {"fsdp": 1, "model": 1, "rules": ()}},
}


def _add_fields(version: int, config: ConfigDict) -> ConfigDict:
    plain = config.copy_and_resolve_references().to_dict()
    for name, default in _ADDED[version].items():
        plain[name] = {**default, **plain.get(name, {})} if isinstance(default, dict) else plain.get(name, default)
    if version == 2 and plain["optimizer"].get("name") == "adamw":  # version 1 called its first-moment decay momentum
        plain["optimizer"]["b1"] = plain["optimizer"]["momentum"]
    return ConfigDict({**plain, "version": version})


# One function for each old version: ConfigDict of that version -> ConfigDict of the next.
UPGRADES = {version - 1: functools.partial(_add_fields, version) for version in _ADDED}


def upgrade_config(config: ConfigDict) -> ConfigDict:
    """Returns a config of any earlier version as one of this version."""
    version = config.get("version")
    if not isinstance(version, int) or not 1 <= version <= VERSION:
        raise UserError(f"config.version={version!r} is not right: this installation reads versions 1 to {VERSION}.")
    for old in range(version, VERSION):
        config = UPGRADES[old](config)
    return config


def list_differences(saved: ConfigDict, given: ConfigDict) -> list[str]:
    """Returns lines "field: saved … , given …" of the fields that differ and must not on a rerun."""
    old, new = flatten_config(saved), flatten_config(given)
    pairs = {name: (old.get(name, "nothing"), new.get(name, "nothing")) for name in sorted(old.keys() | new.keys())}
    return [
        f"{name}: saved {before!r}, given {after!r}"
        for name, (before, after) in pairs.items()
        if before != after and not any(f"{name}.".startswith(f"{field}.") for field in MAY_DIFFER)
    ]
