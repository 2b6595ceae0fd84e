"""Loads what a user names: a built-in name, a dotted path, or `path/to/file.py:Name`.

A file imports its neighbours by name from any working directory, while it runs and later: it has an `import` of its own, so
that neither `sys.path` nor the names of other modules change. Code that was saved with a run is loaded in the same way from
memory, by names that begin with `saved-<hash>/`; two versions of a file do not meet.
"""

import builtins
import functools
import hashlib
import importlib
import importlib.util
import json
import re
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from attention_jax.errors import UserError, suggest_name

UNTRUSTED = "untrusted/"  # begins a name of a saved config for which nothing may be imported
_FROM_RUN = re.compile(rf"(saved-[0-9a-f]{{16}}|{UNTRUSTED[:-1]})/", re.DOTALL)
_lock = threading.RLock()  # threads that read data may import at the same time
_running: list[str] = []  # the file that is being run, and after it those that it loads
_beside: dict[Path, "Neighbours"] = {}  # of the folders that files were loaded from
_saved: dict[str, "SavedCode"] = {}


@functools.cache  # a run saves the text that its process runs, whatever is edited meanwhile
def read_source(path: Path) -> str:
    """Returns the text of a Python file, as it was when this process first read it."""
    return importlib.util.decode_source(path.read_bytes())


class Neighbours:
    """Modules that import each other by name; in `sys.modules` they are below the name of this set.

    Args:
        folders: where they are looked for, after what is installed.
    """

    def __init__(self, name: str, *folders: Path):
        self.name, self._folders = name, folders
        self._root = sys.modules[name] = ModuleType(name)

    def find(self, dotted: str) -> tuple[str, str | None] | None:
        """Returns (path, text) of a module, text None for a folder without `__init__.py`; None where there is no module."""
        for path in (folder.joinpath(*dotted.split(".")) for folder in self._folders):
            for file in (path / "__init__.py", path.with_name(f"{path.name}.py")):
                if file.is_file():
                    return str(file), read_source(file)
            if path.is_dir():
                return str(path), None
        return None

    def is_first(self, top: str) -> bool:
        """True if the module `top` of this set hides one that is installed: here only where it is used already."""
        return f"{self.name}.{top}" in sys.modules

    def load(self, dotted: str) -> ModuleType:
        """Returns a module, run when it is first needed. Raises ModuleNotFoundError."""
        name, (above, _, last) = f"{self.name}.{dotted}", dotted.rpartition(".")
        with _lock:
            parent = self.load(above) if above else self._root
            if name not in sys.modules:
                if (found := self.find(dotted)) is None:
                    raise ModuleNotFoundError(f"No module named {dotted!r}", name=dotted)
                setattr(parent, last, self.run(dotted, *found))
            return sys.modules[name]

    def run(self, dotted: str, path: str, text: str | None) -> ModuleType:
        """Runs a text as a module. Raises what it raises."""
        name, is_package = f"{self.name}.{dotted}", text is None or path.endswith("__init__.py")
        loader: Any = _Loader(self, path, text or "")
        parts: list[str] | None = [] if is_package else None
        spec = importlib.util.spec_from_file_location(name, path, loader=loader, submodule_search_locations=parts)
        assert spec is not None
        module = sys.modules[name] = importlib.util.module_from_spec(spec)
        try:
            loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
        return module

    def import_name(self, name: str, globals: Any = None, locals: Any = None, fromlist: Any = None, level: int = 0) -> Any:
        """Imports as `builtins.__import__` does, for the files of this set."""
        dotted = name
        if level:
            absolute = importlib.util.resolve_name("." * level + name, globals["__package__"])
            dotted = absolute.removeprefix(self.name).removeprefix(".")
        elif not self.is_first(name.partition(".")[0]):
            try:
                return builtins.__import__(name, globals, locals, fromlist, 0)
            except ModuleNotFoundError as error:
                if not error.name or not f"{name}.".startswith(f"{error.name}.") or self.find(name) is None:
                    raise
        module = self.load(dotted) if dotted else self._root
        for item in fromlist or ():
            below = f"{dotted}.{item}" if dotted else item
            if not hasattr(module, item) and (hasattr(module, "__path__") or not dotted) and self.find(below):
                self.load(below)
        return module if fromlist else self.load(dotted.partition(".")[0])


class SavedCode(Neighbours):
    """Files that were saved with a run and import each other; installed modules come after them.

    Args:
        names: what a config names -> the file that has it.
        files: path relative to the folder they are imported from -> text.
    """

    def __init__(self, names: Mapping[str, str], files: Mapping[str, str]):
        self.names, self.files = names, files
        content = json.dumps([names, files], sort_keys=True)
        super().__init__(f"saved-{hashlib.sha256(content.encode()).hexdigest()[:16]}")

    def find(self, dotted: str) -> tuple[str, str | None] | None:
        """Returns (path, text) of a saved module, as of one in a folder."""
        base = dotted.replace(".", "/")
        for path in (f"{base}/__init__.py", f"{base}.py"):
            if path in self.files:
                return f"{self.name}/{path}", self.files[path]
        return (f"{self.name}/{base}", None) if any(path.startswith(f"{base}/") for path in self.files) else None

    def is_first(self, top: str) -> bool:
        """True if the run has a module of this name."""
        return self.find(top) is not None


class _Loader:
    """Runs a text in which `import` finds the neighbours."""

    def __init__(self, neighbours: Neighbours, path: str, text: str):
        self._neighbours, self._path, self._text = neighbours, path, text

    def create_module(self, spec: Any) -> None:
        """Leaves it to Python."""

    def get_source(self, name: str) -> str:
        """Returns the text, for tracebacks."""
        return self._text

    def exec_module(self, module: ModuleType) -> None:
        """Runs the text."""
        vars(module)["__builtins__"] = {**vars(builtins), "__import__": self._neighbours.import_name}
        exec(compile(self._text, self._path, "exec", dont_inherit=True), vars(module))


def get_neighbours(folder: Path) -> Neighbours:
    """Returns the modules that a file in a folder may import: those beside it, and `experiments.studies` in experiments/."""
    if folder not in _beside:
        name = f"beside_{hashlib.sha1(str(folder).encode()).hexdigest()[:8]}"
        _beside[folder] = Neighbours(name, folder, folder.parent)
    return _beside[folder]


def name_module(path: Path) -> str:
    """Returns the name of a file's module among its neighbours."""
    return path.stem.replace(".", "_")


def add_saved_code(code: SavedCode) -> str:
    """Makes saved code loadable in this process, once; returns what its names begin with."""
    _saved.setdefault(code.name, code)
    return f"{code.name}/"


def get_saved_code(name: str) -> SavedCode | None:
    """Returns the code that a name of a run's config belongs to; None for a name that does not come from saved code."""
    found = _FROM_RUN.match(name)
    return _saved.get(found[1]) if found else None


def is_from_run(name: str) -> bool:
    """True if a name comes from the config of a saved run, with its saved code or without being trusted."""
    return bool(_FROM_RUN.match(name))


def strip_origin(name: str) -> str:
    """Returns a name as the config had it that was saved, without the prefix of saved or untrusted code."""
    return _FROM_RUN.sub("", name, count=1)


def get_running_file() -> str | None:
    """Returns the file whose loading is going on, by its path or its name in saved code."""
    return _running[0] if _running else None


def load_file(path: str | Path) -> ModuleType:
    """Runs a Python file once per process and returns its module. Raises UserError when it is missing or does not run."""
    if is_from_run(str(path)):
        return _load_saved_file(str(path))
    resolved = Path(path).expanduser().resolve()
    if not resolved.is_file():
        raise UserError(f"{path}: there is no such file.")
    if resolved.suffix != ".py":
        raise UserError(f"{resolved}: this is no Python file: give one whose name ends in .py.")
    neighbours, name = get_neighbours(resolved.parent), name_module(resolved)
    if known := sys.modules.get(f"{neighbours.name}.{name}"):
        return known
    return _run_file(str(resolved), lambda: neighbours.run(name, str(resolved), read_source(resolved)))


def _load_saved_file(name: str) -> ModuleType:
    """The module that has what a run's config names `name`."""
    code, plain = get_saved_code(name), strip_origin(name)
    if name.startswith(UNTRUSTED):
        raise UserError(
            f"{plain}: this code came with a run and is not trusted: read it, then give load_run(..., trust_code=True) or "
            "--trust-code."
        )
    if code is None or plain not in code.names:
        raise UserError(f"{name}: this is code of a run that is not open: open it with load_run in this process.")
    path = code.names[plain]
    dotted = path.removesuffix("/__init__.py").removesuffix(".py").replace("/", ".")
    return _run_file(f"{code.name}/{path}", lambda: code.load(dotted))


def _run_file(path: str, run: Callable[[], ModuleType]) -> ModuleType:
    with _lock:
        _running.append(path)
        try:
            return run()
        except Exception as error:
            if isinstance(error, UserError):
                raise
            raise UserError(f"{path}: this file does not run: {type(error).__name__}: {error}.") from error
        finally:
            _running.pop()


def _import_path(dotted: str) -> ModuleType:
    """A module that is installed, or beside a file that was loaded."""
    try:
        return importlib.import_module(dotted)
    except ModuleNotFoundError:
        for neighbours in list(_beside.values()):
            if neighbours.find(dotted):
                return neighbours.load(dotted)
        raise


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
    where, name = split_name(spec)
    if where.endswith(".py") or is_from_run(spec):
        module = load_file(where or spec)
    elif where:
        try:
            module = _import_path(where)
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


def split_name(spec: str) -> tuple[str, str]:
    """Returns the file or module that a name names, empty for a name without one, and the name in it."""
    where, _, name = spec.rpartition(":") if ":" in spec else spec.rpartition(".")
    return where, name
