"""Loads what a user names: a built-in name, a dotted path, or `path/to/file.py:Name`."""

import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from attention_jax.errors import UserError, suggest_name


def load_file(path: str | Path) -> ModuleType:
    """Runs a Python file once per process and returns its module. Raises UserError when it is missing or does not run."""
    resolved = Path(path).expanduser().resolve()
    if not resolved.is_file():
        raise UserError(f"{path}: there is no such file.")
    # The name depends on the path alone, so that an object keeps its identity (and its compiled programs) in one process.
    name = f"{resolved.stem}_{hashlib.sha1(str(resolved).encode()).hexdigest()[:8]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, resolved)
    if spec is None or spec.loader is None:
        raise UserError(f"{resolved}: this is no Python file: give one whose name ends in .py.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    # A file imports its neighbours, and those in experiments/ `experiments.studies`, from any working directory. Their
    # folders come last: nothing that is installed is hidden.
    sys.path += [str(folder) for folder in resolved.parents[:2] if str(folder) not in sys.path]
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        if isinstance(error, UserError):
            raise
        raise UserError(f"{resolved}: this file does not run: {type(error).__name__}: {error}.") from error
    return module


def load_object(spec: str | Callable, builtin: Mapping[str, Any], kind: str) -> Any:
    """Returns the object that `spec` names.

    Args:
        spec: a name in `builtin`, `package.module:Name`, `package.module.Name`, `path/to/file.py:Name`, or the object itself.
        builtin: the names that need no path.
        kind: what the error calls it ("gate", "data source").

    Raises UserError that says what would be accepted.
    """
    if not isinstance(spec, str):
        return spec
    if spec in builtin:
        return builtin[spec]
    where, _, name = spec.rpartition(":") if ":" in spec else spec.rpartition(".")
    if where.endswith(".py"):
        module = load_file(where)
    elif where:
        try:
            module = importlib.import_module(where)
        except ImportError as error:
            raise UserError(f"{kind} {spec!r}: the module {where!r} cannot be imported ({error}).") from error
    else:
        raise UserError(
            f"unknown {kind} {spec!r}{suggest_name(spec, builtin)}: give one of {', '.join(sorted(builtin))}, "
            "a dotted path, or path/to/file.py:Name."
        )
    if not hasattr(module, name):
        raise UserError(f"{kind} {spec!r}: {where} has no {name!r}{suggest_name(name, vars(module))}.")
    return getattr(module, name)
