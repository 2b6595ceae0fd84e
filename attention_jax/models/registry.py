"""The table of model names and the Linen modules that they build."""

import dataclasses
import fnmatch
from typing import Any

import flax.linen as nn

from attention_jax.errors import UserError, suggest_name

_MODELS: dict[str, tuple[type[nn.Module], dict[str, Any]]] = {}


def register(name: str, module: type[nn.Module], **defaults: Any) -> None:
    """Makes `create_model(name)` build `module(**defaults)`; a name can be taken once."""
    if name in _MODELS:
        raise ValueError(f"the model name {name!r} is registered twice")
    _MODELS[name] = (module, defaults)


def list_models(pattern: str = "*") -> list[str]:
    """Returns the sorted names that match a shell-style pattern, e.g. "bam_*"."""
    return sorted(fnmatch.filter(_MODELS, pattern))


def create_model(name: str, **overrides: Any) -> nn.Module:
    """Returns the network called `name`, with any of its fields overridden by keyword.

    Raises:
        UserError: unknown name or field, with the nearest known one.
    """
    if name not in _MODELS:
        raise UserError(f"unknown model {name!r}{suggest_name(name, _MODELS)}: attention_jax.list_models() lists the names.")
    module, defaults = _MODELS[name]
    fields = {f.name for f in dataclasses.fields(module) if f.name not in ("parent", "name")}
    for key in overrides:
        if key not in fields:
            raise UserError(
                f"model {name!r} has no field {key!r}{suggest_name(key, fields)}: it has {', '.join(sorted(fields))}."
            )
    return module(**{**defaults, **overrides})
