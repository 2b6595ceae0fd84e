"""Configs are data: loaded, completed, overridden layer by layer, compared and saved.

A config file defines `get_config()` (or `get_config(arg)`) that returns an `ml_collections.ConfigDict`, which
`config/defaults.py` begins. The layers of a config, each over the one before: defaults, file, pieces, row, command line.
"""

import ast
import contextlib
import copy
import functools
import inspect
import json
import logging
import math
from collections.abc import Callable, Mapping
from typing import Any

from ml_collections import ConfigDict

from attention_jax.config.accepted import OPEN, REQUIRED, UNITS, Field
from attention_jax.config.fields import COMMON, get_own_fields, list_fields, merge_fields
from attention_jax.config.plugins import load_file, load_object, strip_origin
from attention_jax.config.unread import find_unread, refuse_unread
from attention_jax.config.versions import upgrade_config
from attention_jax.errors import UserError, suggest_name

logger = logging.getLogger(__name__)

# Fields that may differ between a workdir's config and that of a rerun: none of them changes the numbers.
MAY_DIFFER = (
    "parallel",
    "logging",
    "profile",
    "data.threads",
    "data.cache_dir",
    "data.on_broken",  # both values do the same until a strict run stops
    "data.args.data_dir",
    "data.args.path",
    "data.args.source",
    "data.args.target",
    "checkpoint.every_minutes",
    "checkpoint.megabytes_per_second",
    "checkpoint.keep_last",
    "checkpoint.keep_best",
)


def load_config(spec: str) -> ConfigDict:
    """Returns the complete result of `get_config` in `path/to/file.py`, or with an argument in `path/to/file.py:arg`."""
    path, arg = spec, ""
    if spec.rpartition(":")[0].endswith(".py"):  # a path may have colons too
        path, _, arg = spec.rpartition(":")
    module = load_file(path)
    if not hasattr(module, "get_config"):
        raise UserError(f"{path}: a config file defines get_config(), this one does not.")
    if arg and not inspect.signature(module.get_config).parameters:
        raise UserError(f"{path}: get_config() takes no argument: leave out {arg!r}.")
    try:
        config = module.get_config(arg) if arg else module.get_config()
    except KeyError as error:
        if arg and error.args == (arg,):  # the file looked it up in a table of variants
            raise UserError(f"{path}: {arg!r} is none of its variants, which its first lines name.") from error
        raise
    if not isinstance(config, ConfigDict):
        raise UserError(f"{path}: get_config() returned {type(config).__name__}; return an ml_collections.ConfigDict.")
    config = complete_config(upgrade_config(config))
    flat = flatten_config(config)
    refuse_unread(flat, flat, get_fields(config))
    return config


def flatten_config(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns `{"a.b": value}`, with every sequence as a tuple."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, (Mapping, ConfigDict)):
            flat.update(flatten_config(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = to_tuples(value)
    return flat


def to_tuples(value: Any) -> Any:
    """Returns a value whose lists, at any depth, are tuples."""
    if isinstance(value, dict):
        return {key: to_tuples(item) for key, item in value.items()}
    return tuple(map(to_tuples, value)) if isinstance(value, (tuple, list)) else value


def get_fields(config: Mapping[str, Any]) -> dict[str, Field]:
    """Returns {dotted name: Field} for the task of a config. Raises UserError for an unknown task."""
    task, field = config.get("task"), COMMON["task"]
    if wanted := field.error(task):
        raise UserError(f"config.task={task!r} is not right: give {wanted}.")
    return list_fields(merge_fields(get_own_fields(str(task))))


def _spell(fields: Mapping[str, Field]) -> dict[str, tuple[str, Field]]:
    """Returns {name as a config gives it: (name in the table, Field)}; a duration has three names, one per unit."""
    return {spelled: (name, field) for name, field in fields.items() for spelled in field.names(name)}


def _refuse_unknown(name: str, known: Mapping[str, tuple[str, Field]]) -> None:
    is_open = any(name.startswith(f"{key}.") for key, (_, field) in known.items() if field.default is OPEN)
    if name not in known and not is_open:
        raise UserError(f"unknown config field {name!r}{suggest_name(name, known)}.")


def complete_config(config: ConfigDict) -> ConfigDict:
    """Returns a copy with every field of the table, each with its type: 1 becomes 1.0, a list a tuple.

    Raises UserError that names the first field that is unknown, missing or has a wrong value.
    """
    fields = get_fields(config)
    known, plain = _spell(fields), to_tuples(config.copy_and_resolve_references().to_dict())
    for name in flatten_config(plain):
        _refuse_unknown(name, known)
    for name, field in fields.items():
        *parents, last = name.split(".")
        section = plain
        for parent in parents:
            section = section.setdefault(parent, {})
        _complete_field(section, last, name, field)
    if "name" not in plain["model"]:
        raise UserError(
            "config.model.name is missing: give the name of a model, as attention_jax.list_models() lists them, or "
            "path/to/file.py:Network."
        )
    search = plain.get("search", {})
    if (search.get("max_length") or math.inf) < search.get("min_length", 0):
        raise UserError(
            f"config.search.min_length={search['min_length']} is above max_length={search['max_length']}: give a smaller one."
        )
    if plain["task"] == "classification" and plain["batch_size"] % plain["accumulation"]:
        raise UserError(
            f"config.accumulation={plain['accumulation']} does not divide batch_size={plain['batch_size']}: give one that does."
        )
    return ConfigDict(plain, type_safe=False)


def _complete_field(section: Any, last: str, name: str, field: Field) -> None:
    """Adds a field's default to its section if the config has no value, or converts the config's value."""
    if field.default is OPEN:
        if isinstance(section, dict):
            section.setdefault(last, {})
        if (
            not isinstance(section, dict)
            or not isinstance(section[last], dict)
            or any(type(k) is not str for k in section[last])
        ):
            raise UserError(f"config.{name} is a section of fields: give a ConfigDict of names and values.")
        return
    if not isinstance(section, dict):
        raise UserError(f"config.{name.rpartition('.')[0]} is a section of fields: give it as a ConfigDict.")
    present = [spelled for spelled in field.names(last) if spelled in section]
    if not present and field.default is not REQUIRED:
        present = [f"{last}_{field.spelled_in}" if field.spelled_in else last]
        section[present[0]] = field.default
    prefix = name.removesuffix(last)
    if len(present) != 1:
        wanted = " or ".join(prefix + spelled for spelled in field.names(last))
        has = " and ".join(prefix + spelled for spelled in present)
        if has or field.spelled_in:
            raise UserError(f"config: give exactly one of {wanted}; this config has {has or 'none'}.")
        raise UserError(f"config.{wanted} is missing: give {field.accepts} ({field.meaning}).")
    value = section[present[0]]
    if right := field.error(value):
        raise UserError(f"config.{prefix}{present[0]}={value!r} is not right: give {right}.")
    section[present[0]] = convert_number(present[0], field, value)


def convert_number(name: str, field: Field, value: Any) -> Any:
    """Converts an integer to a float, or 3.0 to 3, if the field needs it."""
    if field.types != (int, float):
        return value
    if field.spelled_in and not name.endswith("_epochs") and value == int(value):
        return int(value)
    return float(value)


# Model fields about the data or the precision; they stay if the network changes.
KEPT = ("name", "num_classes", "vocab_size", "dtype")
# A field that selects something -> the fields of the selection: a section, or a prefix of names.
SELECTORS = {
    "model.name": "model.",
    "model.gate": "model.gate_args",  # without a gate, its places go too
    "data.source": "data.args.",
    "optimizer.name": "optimizer.args.",
    "schedule.name": "schedule.args.",
}


def _drop_fields(config: ConfigDict, selector: str, new: object) -> tuple[ConfigDict, dict[str, Any]]:
    """Returns a copy without the fields of a selector's old value, if the value changes, and those fields."""
    config = config.copy_and_resolve_references()
    prefix = "model.gate_" if (selector, new) == ("model.gate", None) else SELECTORS[selector]
    section = config
    for part in prefix.split(".")[:-1]:
        section = section.get(part, {})
    beginning = prefix.rpartition(".")[2]
    kept = KEPT if prefix == "model." else ()
    dropped = {name: section[name] for name in section if name.startswith(beginning) and name not in kept}
    with config.unlocked():
        for name in dropped:
            del section[name]
    return config, {f"{prefix.removesuffix(beginning)}{name}": value for name, value in dropped.items()}


@functools.cache  # the rows of a table share layers
def _report_dropped(selector: str, new: object, old: object, dropped: str) -> None:
    logger.info("%s=%r takes the place of %r, whose fields go with it: %s.", selector, new, old, dropped)


def _say_what_is_dropped(selector: str, before: ConfigDict, after: ConfigDict, dropped: Mapping[str, Any]) -> None:
    old, new = flatten_config(before), flatten_config(after)
    gone = [f"{name}={value!r}" for name, value in dropped.items() if not any(f"{n}.".startswith(f"{name}.") for n in new)]
    if gone:
        _report_dropped(selector, new[selector], old[selector], ", ".join(gone))


def override(config: ConfigDict, changes: Mapping[str, Any]) -> ConfigDict:
    """Returns a complete copy with dotted fields replaced, as a later layer of the config does it.

    A duration in another unit replaces the old one. A new value of one of the `SELECTORS`, such as another network or data
    source, drops the fields of the old selection, except for those in `KEPT` and those among the changes; the log names them.
    """
    before, flat, dropped = config, flatten_config(config), dict[str, dict[str, Any]]()
    for selector in SELECTORS:
        if flat.get(selector) is not None and changes.get(selector, flat[selector]) != flat[selector]:
            config, dropped[selector] = _drop_fields(config, selector, changes[selector])
    plain = config.copy_and_resolve_references().to_dict()
    known = _spell(get_fields(plain))
    for dotted, value in changes.items():
        _refuse_unknown(dotted, known)
        *parents, last = dotted.split(".")
        section = plain
        for parent in parents:
            section = section.setdefault(parent, {})
            if not isinstance(section, dict):
                raise UserError(f"unknown config field {dotted!r}: {parent!r} has no fields of its own.")
        if dotted in known:
            name, field = known[dotted]
            for sibling in field.names(name.rpartition(".")[2]):
                section.pop(sibling, None)
        section[last] = copy.deepcopy(value)  # a later change inside it must not reach the caller's
    changed = complete_config(ConfigDict(plain, type_safe=False))
    refuse_unread(flatten_config(changed), changes, get_fields(changed))
    for selector, fields in dropped.items():
        _say_what_is_dropped(selector, before, changed, fields)
    return changed


def parse_value(config: Mapping[str, Any], name: str, text: str) -> Any:
    """Returns the Python value of a command-line text for a config's field; a bare word is a string."""
    field = _spell(get_fields(config)).get(name)
    if (field and field[1].types is str) or (isinstance(flatten_config(config).get(name), str) and text != "None"):
        return text
    try:
        return ast.literal_eval(text)
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
        before, config = config, _apply_piece(piece, function, config)
        was, now, bare, dropped = flatten_config(before), flatten_config(config), before, dict[str, dict[str, Any]]()
        for selector in SELECTORS:
            if was.get(selector) not in (None, now.get(selector)):
                bare, dropped[selector] = _drop_fields(bare, selector, now.get(selector))
        # The piece's own changes are those it makes to a config without the fields of the old selection. A piece that reads
        # those
        # fields has carried over the ones it needs.
        with contextlib.suppress(KeyError, AttributeError):
            config = _apply_piece(piece, function, bare) if dropped else config
            for selector, fields in dropped.items():
                _say_what_is_dropped(selector, before, config, fields)
        now = flatten_config(config)
        refuse_unread(now, [name for name, value in now.items() if name not in was or was[name] != value], get_fields(config))
    return complete_config(config)


def _apply_piece(piece: object, function: Callable[[ConfigDict], ConfigDict], config: ConfigDict) -> ConfigDict:
    changed = function(config) if callable(function) else None
    if not isinstance(changed, ConfigDict):
        raise UserError(
            f"recipe piece {piece!r} gave {type(changed).__name__}: a piece is a function ConfigDict -> ConfigDict."
        )
    return changed


def config_to_json(config: ConfigDict) -> str:
    """Returns the config as JSON, in which tuples become lists; `config_from_json` makes them tuples again."""
    return json.dumps(strip_origin(config.to_dict()), indent=1, default=list)


def config_from_json(text: str) -> ConfigDict:
    """Returns a saved config of any version, upgraded."""
    return upgrade_config(ConfigDict(to_tuples(json.loads(text)), type_safe=False))


def list_differences(saved: ConfigDict, given: ConfigDict) -> list[str]:
    """Returns lines "field: saved … , given …" for fields that differ and must be the same on a rerun."""
    old, new = strip_origin(flatten_config(saved)), strip_origin(flatten_config(given))
    unread = set(find_unread(old, old)) & set(find_unread(new, new))
    pairs = {name: (old.get(name, "nothing"), new.get(name, "nothing")) for name in sorted(old.keys() | new.keys())}
    return [
        f"{name}: saved {before!r}, given {after!r}"
        for name, (before, after) in pairs.items()
        if before != after and name not in unread and not any(f"{name}.".startswith(f"{field}.") for field in MAY_DIFFER)
    ]
