"""The table of model names and the networks that they build, and networks of the user's own."""

import dataclasses
import fnmatch
import inspect
import sys
from collections.abc import Callable, Collection, Mapping
from typing import Any

import flax.linen as nn

from attention_jax import tree
from attention_jax.config import plugins
from attention_jax.config.plugins import get_saved_code, load_file, load_object, strip_origin
from attention_jax.errors import UserError, suggest_name

FACTS = ("num_classes", "vocab_size")  # facts of the data; a network without such a field does not get them
_MODELS: dict[str, tuple[Callable[..., nn.Module], dict[str, Any]]] = {}
_FILES: dict[str, str] = {}  # name -> the user's file that registers it


def register_model(name: str, make: Callable[..., nn.Module], **defaults: Any) -> None:
    """Makes `create_model(name)` build `make(**defaults)`, also from a config file. A name is given once."""
    # A user's file may be the first to import the package, whose own names it does not register.
    by_package = sys._getframe(1).f_globals.get("__name__", "").startswith("attention_jax.")
    file = plugins.running[0] if plugins.running and not by_package else None
    if file and (code := get_saved_code(file)):
        name = f"{code.name}/{name}"  # as the config of its run calls it
    if name in _MODELS and (file is None or _FILES.get(name) != file):  # a file that failed is loaded again
        old: Any = _MODELS[name][0]
        raise UserError(f"the model name {name!r} is taken by {old.__module__}.{old.__qualname__}: give another one.")
    _MODELS[name] = (make, defaults)
    if file:
        _FILES[name] = file


def list_origins() -> dict[str, str | None]:
    """Returns {name of a network: the user's file that registers it, None for any other}."""
    return {name: _FILES.get(name) for name in _MODELS}


def list_models(pattern: str = "*") -> list[str]:
    """Returns the sorted names that match a shell-style pattern, e.g. "bam_*"."""
    return sorted(name for name in fnmatch.filter(_MODELS, pattern) if get_saved_code(name) is None)


def find_model(name: str) -> tuple[Callable[..., nn.Module], dict[str, Any]]:
    """Returns the function that builds network `name`, and its fields' values; {} for a dotted path or `file.py:Network`."""
    code = get_saved_code(name)
    if code and name not in _MODELS and strip_origin(name) in code.names:
        load_file(name)  # registers it
    if name in _MODELS:
        return _MODELS[name]
    unknown = UserError(
        f"unknown model {name!r}{suggest_name(name, _MODELS)}: attention_jax.list_models() lists the names; a network of "
        "your own is path/to/file.py:Network or a dotted path."
    )
    if strip_origin(name) == name and not any(sign in name for sign in ".:"):
        raise unknown
    try:
        make = load_object(name, {}, "model")
    except UserError as error:
        if strip_origin(name) != name or ".py" in name or not suggest_name(name, _MODELS):
            raise
        raise unknown from error  # a misspelled name with a dot, as in resnet20.plian
    if not callable(make):
        raise UserError(f"model {name!r} is {type(make).__name__}: give a flax.linen.Module or a function that returns one.")
    return make, {}


def list_model_fields(name: str) -> set[str] | None:
    """Returns the names of the fields that a network takes; None for a function that takes any."""
    make, _ = find_model(name)
    if dataclasses.is_dataclass(make):
        return {field.name for field in dataclasses.fields(make) if field.init} - {"parent", "name"}
    parameters = inspect.signature(make).parameters.values()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return None
    return {parameter.name for parameter in parameters}


def check_model(model: Mapping[str, Any]) -> None:
    """Raises UserError unless the section `model` of a config names a network, and fields that it has and reads."""
    name, own = model["name"], {key: value for key, value in model.items() if key not in ("name", *FACTS)}
    _refuse_unknown_fields(name, own)
    if own.get("features") is True:  # in networks for text, `features` is a width
        raise UserError(
            f"config.model.features=True: model {name!r} would return its maps and no logits to train: leave it out."
        )
    if ({**find_model(name)[1], **own}).get("gate") is None:
        for key in ("gate_args", "gate_stages", "gate_at"):
            if own.get(key):
                raise UserError(
                    f"config.model.{key}={own[key]!r} is read by nothing: model {name!r} has no gate here; give model.gate."
                )


def refuse_unread_reduction(model: Mapping[str, Any], shapes: Callable[[], Any]) -> None:
    """Raises UserError where squeeze-and-excitation's reduction in the section `model` is above the number of channels.

    Its default gives one hidden unit there. `shapes` returns the network's parameters or their shapes.
    """
    gate, reduction = ({**find_model(model["name"])[1], **model}).get("gate"), model.get("gate_args", {}).get("reduction", 0)
    for path, kernel in tree.flatten_by_path(shapes()).items() if gate == "se" else ():
        place, is_gate, _ = path.rpartition("/reduce/kernel")
        if is_gate and reduction > (channels := kernel.shape[0]):
            raise UserError(
                f"config.model.gate_args.reduction={reduction} is more than the {channels} channels of {place}, where it gives "
                f"one hidden unit as {channels} does: give 1 to {channels}."
            )


def _refuse_unknown_fields(name: str, fields: Collection[str]) -> None:
    takes = list_model_fields(name)
    for key in fields:
        if takes is not None and key not in takes:
            raise UserError(
                f"model {name!r} has no field {key!r}{suggest_name(key, takes)}: it has {', '.join(sorted(takes)) or 'none'}."
            )


def create_model(name: str, **overrides: Any) -> nn.Module:
    """Returns the network called `name`, with any of its fields overridden by keyword.

    Args:
        name: as `list_models` lists them, a dotted path, or `path/to/file.py:Network`: a Linen module, or a function that
            returns one.

    Raises:
        UserError: unknown name or field, with the nearest known one; a field without a value; something else than a module.
    """
    make, defaults = find_model(name)
    _refuse_unknown_fields(name, overrides)
    try:
        module = make(**{**defaults, **overrides})
    except TypeError as error:
        raise UserError(f"model {name!r}: these fields do not make a network ({error}).") from error
    if not isinstance(module, nn.Module):
        raise UserError(
            f"model {name!r} made {type(module).__name__}: give a flax.linen.Module or a function that returns one."
        )
    return module


def describe_model(model: nn.Module) -> dict[str, Any]:
    """Returns the section `model` of a config that builds a network: its name and the fields that differ from the name's.

    Of several names the one that leaves the fewest fields to say. Raises UserError for a field that no config can hold.
    """
    kind: Any = type(model)
    values = {field.name: getattr(model, field.name) for field in dataclasses.fields(kind) if field.init}
    del values["parent"], values["name"]
    known = {name: create_model(name) for name, (make, _) in _MODELS.items() if make is kind}
    differing = {
        name: {key: value for key, value in values.items() if value != getattr(other, key)} for name, other in known.items()
    }
    if not differing:
        file = inspect.getsourcefile(kind)
        name = f"{file}:{kind.__qualname__}" if file else f"{kind.__module__}.{kind.__qualname__}"
        defaults = {field.name: field.default for field in dataclasses.fields(kind)}
        differing = {name: {key: value for key, value in values.items() if value is not defaults[key]}}
    name, fields = min(differing.items(), key=lambda item: (len(item[1].keys() - {*FACTS}), len(item[0]), item[0]))
    if (count := values.get("num_classes")) is not None:
        fields["num_classes"] = count
    for key, value in fields.items():
        if not _is_plain(value):
            raise UserError(f"model.{key}={value!r}: no config can hold it: give a name for it, such as file.py:Name.")
    return {"name": name, **{key: dict(value) if isinstance(value, Mapping) else value for key, value in fields.items()}}


def _is_plain(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(isinstance(key, str) and _is_plain(item) for key, item in value.items())
    if isinstance(value, (tuple, list)):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, (str, int, float, bool))
