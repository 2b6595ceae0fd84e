"""Loads an object that the user names: a built-in name, a dotted path, or `path/to/file.py:Name`.

A file imports its neighbours by name from any working directory, while it runs and later: it has its own `import`, which
changes neither `sys.path` nor the names of other modules. Code that was saved with a run is loaded in the same way from
memory, under names that begin with `saved-<hash>/`; two versions of a file never mix.
"""

import builtins
import functools
import hashlib
import importlib
import importlib.util
import json
import linecache
import re
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from attention_jax.errors import UserError, suggest_name

UNTRUSTED = "untrusted-code/"  # prefix of names in a saved config for which nothing may be imported
_FROM_RUN = re.compile(rf"(saved-[0-9a-f]{{16}}|{UNTRUSTED[:-1]})/")
_lock = threading.RLock()  # threads that read data may import at the same time
running: list[str] = []  # the file that is being run (a path or a name in saved code), then the files that it loads
beside: dict[Path, "Neighbours"] = {}  # the folders of loaded files
_saved: dict[str, "SavedCode"] = {}


def find_places(top: str) -> list[Path] | None:
    """Returns the folders of `sys.path` with the user's module `top`; None for a module of Python or an installed package."""
    if top in sys.stdlib_module_names or top == "attention_jax":
        return None
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):  # a module without a specification
        spec = None
    found = (spec.submodule_search_locations or [spec.origin or ""]) if spec else []
    places = [Path(place).resolve().parent for place in found]
    return None if any({"site-packages", "dist-packages"} & {*place.parts} for place in places) else places


@functools.cache  # a run saves the text that its process runs, even if the file is edited meanwhile
def read_source(path: Path) -> str:
    """Returns the text of a Python file, as it was when this process first read it."""
    return importlib.util.decode_source(path.read_bytes())


class Neighbours:
    """Modules in `folders` that import each other by name; `sys.modules` has them below the name of this set.

    Installed modules come before them; other folders of `sys.path` come after them.
    """

    def __init__(self, name: str, *folders: Path):
        self.name, self.folders, self._root = name, folders, ModuleType(name)
        self._root.__path__, self._first = [], dict[str, bool]()

    def find(self, dotted: str) -> tuple[str, str | None] | None:
        """Returns (path, text) of a module; text None is a folder without `__init__.py`. Returns None without a module."""
        for path in (folder.joinpath(*dotted.split(".")) for folder in self.folders):
            for file in (path / "__init__.py", path.with_name(f"{path.name}.py")):
                if file.is_file():
                    return str(file), read_source(file)
            if path.is_dir():
                return str(path), None
        return None

    def is_first(self, top: str) -> bool:
        """True if a module `top` of this set comes before any other, unless `sys.path` has it at the same place."""
        if top not in self._first:  # runs at each import
            found, places = self.find(top), find_places(top)
            others = places is None or {*places} & {*self.folders} or (places and found and found[1] is None)
            self._first[top] = bool(found and not others)
        return self._first[top]

    def load(self, dotted: str) -> ModuleType:
        """Returns a module, which runs when it is first needed. Raises ModuleNotFoundError."""
        name, (above, _, last) = f"{self.name}.{dotted}", dotted.rpartition(".")
        with _lock:
            parent = self.load(above) if above else self._root
            if name not in sys.modules:
                if (found := self.find(dotted)) is None:
                    raise ModuleNotFoundError(f"No module named {dotted!r}", name=dotted)
                setattr(parent, last, self.run(dotted, *found))
            return sys.modules[name]

    def run(self, dotted: str, path: str, text: str | None) -> ModuleType:
        """Runs a text as a module whose `import` finds its neighbours. Raises the exceptions of the text."""
        name = f"{self.name}.{dotted}"
        module = sys.modules[name] = ModuleType(name)
        about: dict[str, Any] = {"__file__": path, "__package__": name.rpartition(".")[0]}
        if text is None or path.endswith("__init__.py"):
            about |= {"__package__": name, "__path__": []}
        vars(module).update(about, __builtins__={**vars(builtins), "__import__": self.import_name})
        text = text or ""
        linecache.cache[path] = len(text), None, text.splitlines(True), path  # for tracebacks
        try:
            exec(compile(text, path, "exec", dont_inherit=True), vars(module))
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
        for item in (fromlist or ()) if hasattr(module, "__path__") else ():
            if not hasattr(module, item) and self.find(below := f"{dotted}.{item}".strip(".")):
                self.load(below)
        return module if fromlist else self.load(dotted.partition(".")[0])


class SavedCode(Neighbours):
    """Files saved with a run, {path: text}, that import each other; `names` is {name in the config: path}."""

    def __init__(self, names: Mapping[str, str], files: Mapping[str, str]):
        self.names, self.files = names, files
        content = json.dumps([dict(names), dict(files)], sort_keys=True)
        super().__init__(f"saved-{hashlib.sha256(content.encode()).hexdigest()[:16]}")

    def find(self, dotted: str) -> tuple[str, str | None] | None:
        """Returns (path, text) of a saved module, like `Neighbours.find`."""
        base = dotted.replace(".", "/")
        for path in (f"{base}/__init__.py", f"{base}.py"):
            if path in self.files:
                return f"{self.name}/{path}", self.files[path]
        return (f"{self.name}/{base}", None) if any(path.startswith(f"{base}/") for path in self.files) else None

    def is_first(self, top: str) -> bool:
        """True if the run has a module of this name."""
        return self.find(top) is not None

    def open(self) -> str:
        """Makes the code loadable in this process; returns the prefix of its names."""
        _saved.setdefault(self.name, self)
        return f"{self.name}/"


def get_neighbours(folder: Path) -> Neighbours:
    """Returns the modules that a file in a folder may import: its neighbours, and `experiments.studies` in experiments/."""
    name = f"beside_{hashlib.sha1(str(folder).encode()).hexdigest()[:8]}"
    return beside.setdefault(folder, Neighbours(name, folder, folder.parent))


def get_saved_code(name: str) -> SavedCode | None:
    """Returns the saved code that a name in a run's config belongs to; None for any other name."""
    found = _FROM_RUN.match(name)
    return _saved.get(found[1]) if found else None


def strip_origin(value: Any) -> Any:
    """Returns a name, or the names in a dict, as in the saved config."""
    if isinstance(value, Mapping):
        return {key: strip_origin(item) for key, item in value.items()}
    return value[found.end() :] if isinstance(value, str) and (found := _FROM_RUN.match(value)) else value


def load_file(path: str | Path) -> ModuleType:
    """Runs a Python file once per process and returns its module. Raises UserError if it is missing or does not run."""
    if _FROM_RUN.match(str(path)):
        return _load_saved_file(str(path))
    resolved = Path(path).expanduser().resolve()
    if not resolved.is_file():
        raise UserError(f"{path}: there is no such file.")
    if resolved.suffix != ".py":
        raise UserError(f"{resolved} is no Python file: give a file whose name ends in .py.")
    neighbours, name = get_neighbours(resolved.parent), resolved.stem.replace(".", "_")
    if known := sys.modules.get(f"{neighbours.name}.{name}"):
        return known
    return _run_file(str(resolved), lambda: neighbours.run(name, str(resolved), read_source(resolved)))


def _load_saved_file(name: str) -> ModuleType:
    """Returns the module that holds `name` of a run's config."""
    code, plain = get_saved_code(name), strip_origin(name)
    if code is None or plain not in code.names:
        raise UserError(
            f"{plain}: this code came with a run and is not trusted: give load_run(..., trust_code=True) or --trust-code."
        )
    path = code.names[plain]
    dotted = path.removesuffix("/__init__.py").removesuffix(".py").replace("/", ".")
    return _run_file(f"{code.name}/{path}", lambda: code.load(dotted))


def _run_file(path: str, run: Callable[[], ModuleType]) -> ModuleType:
    with _lock:
        running.append(path)
        try:
            return run()
        except UserError:
            raise
        except Exception as error:
            raise UserError(f"{path}: this file does not run: {type(error).__name__}: {error}.") from error
        finally:
            running.pop()


def _import_path(dotted: str) -> ModuleType:
    """Returns a module that is installed, or lies beside a loaded file."""
    try:
        return importlib.import_module(dotted)
    except ModuleNotFoundError:
        for neighbours in list(beside.values()):
            if neighbours.find(dotted):
                return neighbours.load(dotted)
        raise


def load_object(spec: str | Callable, builtin: Mapping[str, Any], kind: str) -> Any:
    """Returns the object that `spec` names.

    Args:
        spec: a name in `builtin`, `package.module:Name`, `package.module.Name`, `path/to/file.py:Name`, or the object itself.
        builtin: the names that need no path.
        kind: word for the object in errors ("gate", "data source").

    Raises UserError with the accepted names.
    """
    if not isinstance(spec, str):
        return spec
    if spec in builtin:
        return builtin[spec]
    where, name = split_name(spec)
    if where.endswith(".py") or _FROM_RUN.match(spec):
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
    """Returns the file or module in a name, empty if there is none, and the rest of the name."""
    where, _, name = spec.rpartition(":") if ":" in spec else spec.rpartition(".")
    return where, name
