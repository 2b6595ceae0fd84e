"""The user's code behind a run: its files, whether they have changed, and the copies that the run keeps.

A run's `code.json` has the user's files that its config names or that register its network, and those that they import. When
the run is opened, names in its config lead to these copies, never to a path or a package unless it is trusted.
"""

import ast
import dataclasses
import difflib
import functools
import hashlib
import importlib.metadata
import inspect
import json
import logging
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from attention_jax.config import plugins, trust
from attention_jax.config.config import complete_config, config_from_json, flatten_config
from attention_jax.config.plugins import Neighbours, SavedCode, read_source, split_name
from attention_jax.errors import UserError, one_sentence

log = logging.getLogger(__name__)
CODE = "code.json"  # file name in a workdir, and among a checkpoint's assets
# Fields that may name code; any other field with a file's name, such as a network's own, counts too.
_NAMED = ("task", "model.name", "model.gate", "data.source", "optimizer.name", "schedule.name")
_FILE = re.compile(r".+\.py:\w+")
_BY_TEXT = ("import_module", "__import__")  # functions that import a module by a text
Models = Mapping[str, str | None]  # a network's name -> the user's file that registers it, None for a built-in one


@dataclasses.dataclass(frozen=True)
class RunCode:
    """The user's code that a run needs: files, folder by folder, and {dotted name: package} for installed code.

    `others` are files that made the run and that it does not need, such as its table file: kept, never run, never compared.
    """

    folders: tuple[SavedCode, ...] = ()
    packages: Mapping[str, str] = dataclasses.field(default_factory=dict)
    others: tuple[SavedCode, ...] = ()

    def to_assets(self) -> dict[str, bytes]:
        """Returns {"code.json": content}, or {} for a run with built-in names only."""
        parts = {name: [{"names": f.names, "files": f.files} for f in getattr(self, name)] for name in ("folders", "others")}
        content = json.dumps({**parts, "packages": self.packages}, indent=1, sort_keys=True).encode()
        return {CODE: content} if self.folders or self.packages or self.others else {}

    def find(self, spec: str) -> tuple[SavedCode, str, str] | None:
        """Returns (folder, text of the file, name in it) for a name in a config, if one of the user's files has it."""
        where, name = split_name(spec)
        for folder in self.folders:
            for key, found in ((spec, spec), (where, name)):
                if key in folder.names:
                    return folder, folder.files[folder.names[key]], found
        return None

    def files(self) -> dict[str, str]:
        """Returns {path: text} of all files; paths of files after the first folder start with the folder's number."""
        numbered = [(f" ({i + 1})" * bool(i), folder) for i, folder in enumerate(self.folders)]
        return {path + number: text for number, folder in numbered for path, text in folder.files.items()}


def read_code(content: bytes | None) -> RunCode:
    """Returns the code of a saved `code.json`, and no code for None. Raises UserError for any other content."""
    try:
        plain = {"others": [], **json.loads(content or b'{"folders": [], "packages": {}}')}
        folders, others = (
            tuple(SavedCode(dict(folder["names"]), dict(folder["files"])) for folder in plain[part])
            for part in ("folders", "others")
        )
        if any(path not in folder.files for folder in folders for path in folder.names.values()):
            raise ValueError("a file is missing")
        return RunCode(folders, dict(plain["packages"]), others)
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{CODE} has changed since the run was saved ({error}): open another checkpoint.") from error


def _list_names(config: ConfigDict) -> Iterator[tuple[str, str]]:
    """Lists (field, its value) for the fields that may name code."""
    for field, value in flatten_config(config).items():
        if isinstance(value, str) and (field in _NAMED or (_FILE.fullmatch(value) and not field.startswith("data.args."))):
            yield field, value


def collect_code(config: ConfigDict, models: Models, others: Iterable[str | Path] = ()) -> RunCode:
    """Returns the user's code that a config names, as this process has loaded it. Raises UserError for a missing file.

    Args:
        others: further files, `file.py:Name` and dotted names, whose copies are kept.
    """
    found: dict[Path, tuple[dict[str, str], dict[str, Path]]] = {}
    saved, packages = dict[str, SavedCode](), dict[str, str]()
    for field, spec in _list_names(config):
        where, _ = split_name(spec)
        registers = models.get(spec) if field == "model.name" else None
        if code := plugins.get_saved_code(spec):
            saved[code.name] = code
        elif registers or where.endswith(".py"):
            path = Path(registers or where).expanduser().resolve()
            if not path.is_file():
                raise UserError(f"{field}={spec!r}: there is no file {path}.")
            _add_found(found, spec if registers else where, {f"{path.stem.replace('.', '_')}.py": path})
        elif not where or (field == "model.name" and spec in models):
            continue
        elif not _add_found(found, where, _find_module(where, None)):
            packages[spec] = _name_package(where)
    folders = [*saved.values(), *_save_folders(found)]
    found = {}
    for name in map(str, others):
        path = Path(name if name.endswith(".py") else split_name(name)[0]).expanduser().resolve()
        is_file = path.suffix == ".py" and path.is_file()
        _add_found(found, name, {path.name: path} if is_file else _find_module(split_name(name)[0], None))
    return RunCode(tuple(sorted(folders, key=lambda code: sorted(code.names))), packages, tuple(_save_folders(found)))


def _add_found(all_found: dict[Path, tuple[dict[str, str], dict[str, Path]]], name: str, found: Mapping[str, Path]) -> bool:
    """Adds the files behind `name` to those of their folder; returns False if there are none."""
    if found:
        *_, last = found
        names, files = all_found.setdefault(found[last].parents[last.count("/")], ({}, {}))
        names[name] = last
        _add_files(files, found)
    return bool(found)


def _save_folders(found: Mapping[Path, tuple[dict[str, str], dict[str, Path]]]) -> Iterator[SavedCode]:
    """Returns the texts of files, and of the user's files that they import, folder by folder."""
    for folder, (names, files) in found.items():
        _follow_imports(files, plugins.get_neighbours(folder))
        yield SavedCode(names, {name: read_source(path) for name, path in sorted(files.items())})


def _add_files(files: dict[str, Path], found: Mapping[str, Path]) -> list[str]:
    """Adds the found files; returns the names that are new."""
    new = [name for name in found if name not in files]
    files.update({name: found[name] for name in new})
    for name, path in found.items():
        if files[name] != path:
            raise UserError(f"{files[name]} and {path} are imported under the same name, {name[:-3]}: rename one of them.")
    return new


def _follow_imports(files: dict[str, Path], neighbours: Neighbours) -> None:
    """Adds the user's files that these files import, directly or through others."""
    waiting = list(files)
    while waiting:
        name = waiting.pop()
        is_beside = files[name].parents[name.count("/")] in neighbours.folders  # others import from `sys.path` alone
        for dotted in _list_imports(read_source(files[name]), name):
            waiting += _add_files(files, _find_module(dotted, neighbours if is_beside else None))


def _list_imports(text: str, name: str) -> Iterator[str]:
    """Lists the dotted names of all imports in a file `name`; the last part of one may be an object instead of a module."""
    try:
        nodes = list(ast.walk(ast.parse(text)))
    except SyntaxError:  # a file that nothing has run so far
        return
    package = name.split("/")[:-1]
    for node in nodes:
        if isinstance(node, ast.Call) and getattr(node.func, "attr", getattr(node.func, "id", "")) in _BY_TEXT:
            _warn_of_import(name, node.lineno)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) + 1 - node.level] if node.level else []
            base = ".".join([*above, *filter(None, [node.module])])
            yield from (f"{base}.{alias.name}".strip(".") for alias in node.names)


@functools.cache  # seeds and rows have the same files
def _warn_of_import(name: str, line: int) -> None:
    log.warning("%s imports by a text in line %d: what it imports there is not kept with the run; use `import`.", name, line)


def _find_module(dotted: str, neighbours: Neighbours | None) -> dict[str, Path]:
    """Returns {path below its folder: file} for a module of the user's and its packages; {} for an installed module.

    With `neighbours`, it looks the module up as their files import it.
    """
    top, *below = dotted.split(".")
    places = [] if neighbours and neighbours.is_first(top) else plugins.find_places(top)
    if places is None:
        return {}
    beside = neighbours.folders if neighbours else [folder for each in plugins.beside.values() for folder in each.folders]
    for folders in [places, *([folder] for folder in beside)]:
        found: dict[str, Path] = {}
        for number in range(len(below) + 1):
            base = "/".join([top, *below[:number]])
            candidates = ((name, folder / name) for folder in folders for name in (f"{base}/__init__.py", f"{base}.py"))
            found.update(next(([pair] for pair in candidates if pair[1].is_file()), []))
        if found:
            return found
    return {}


@functools.cache  # it reads the metadata of every installed package
def _list_packages() -> Mapping[str, list[str]]:
    return importlib.metadata.packages_distributions()


def _name_package(dotted: str) -> str:
    names = _list_packages().get(dotted.partition(".")[0], [])
    return ", ".join(f"{name} {importlib.metadata.version(name)}" for name in sorted({*names})) or "no package"


def warn_of_packages(code: RunCode) -> None:
    """Warns of packages that the run used and whose version is different now."""
    for spec, was in code.packages.items():
        if (now := _name_package(split_name(spec)[0])) != was:
            log.warning("%s came from %s when the run began; now it is %s.", spec, was, now)


def compare_code(saved: RunCode, given: RunCode) -> str:
    """Returns the unified diff of the files that have changed; empty if only comments and docstrings have."""
    old, new = saved.files(), given.files()
    lines: list[str] = []
    for name in sorted(old.keys() | new.keys()):
        before, after = old.get(name, ""), new.get(name, "")
        if _read_tree(before) != _read_tree(after):
            sides = f"{name} of the run", f"{name} now"
            lines += difflib.unified_diff(before.splitlines(), after.splitlines(), *sides, lineterm="")
    return "\n".join(lines)


@functools.lru_cache(1000)
def _read_tree(text: str) -> str:
    """Returns the syntax tree of a text without docstrings, or the text itself if it has none."""
    try:
        tree = ast.parse(text)
    except SyntaxError:
        return text
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)) and ast.get_docstring(node):
            node.body = node.body[1:]
    return ast.dump(tree)


def hash_function(function: str | Callable[..., Any]) -> str:
    """Returns the hash of the file and the bound arguments of a user's function; "" for a function of this package."""
    bound, found = list[Any](), plugins.load_object(function, {}, "function")
    while isinstance(found, functools.partial):
        bound, found = [*bound, found.args, found.keywords], found.func
    if found.__module__.startswith("attention_jax."):
        return ""
    path = inspect.getsourcefile(found if inspect.isroutine(found) else type(found))
    plain = json.dumps(bound, sort_keys=True, default=lambda value: getattr(value, "__qualname__", type(value).__name__))
    return hashlib.sha256(f"{_read_tree(read_source(Path(path or '')))}{plain}".encode()).hexdigest()[:16]


def record_code(config: ConfigDict, code: RunCode, write: bool) -> None:
    """Trusts the code that the user has named: in this process and, with `write`, in the user's trust file."""
    found = [code.find(plugins.strip_origin(spec)) for _, spec in _list_names(config)]
    named = {trust.make_entry(text, name) for _, text, name in filter(None, found)}
    if entries := {*map(trust.make_entry, code.files().values()), *code.packages, *named}:
        trust.record_trust(entries, write)


def bind_code(config: ConfigDict, code: RunCode, models: Models, trust_code: bool) -> tuple[ConfigDict, list[str]]:
    """Returns a saved config whose names lead to the run's own code, and the list of untrusted code, which is not imported."""
    warn_of_packages(code)
    config, untrusted = config.copy_and_resolve_references(), list[str]()
    for field, spec in _list_names(config):
        where, _ = split_name(spec)
        found = code.find(spec)
        if plugins.get_saved_code(spec) or (not found and (not where or (field == "model.name" and spec in models))):
            continue  # a built-in name, or one that leads there already
        prefix = ""
        if not (trust_code or trust.are_trusted(_list_entries(spec, found))):
            prefix = plugins.UNTRUSTED
            untrusted += [name for name in (found[0].files if found else [spec]) if name not in untrusted]
        elif found:
            prefix = found[0].open()
        elif where.endswith(".py"):
            log.warning("%s=%s: this run has no copy of its code: the file is used as it is now.", field, spec)
        *parents, last = field.split(".")
        section = functools.reduce(lambda section, parent: section[parent], parents, config)
        with config.unlocked():
            section[last] = prefix + spec
    return config, untrusted


def load_saved_config(path: str | Path, models: Models, trust_code: bool) -> ConfigDict:
    """Returns the config of a run's `config.json`; its names lead to the code saved beside it.

    Raises UserError for a file that is no config, or code that is not trusted.
    """
    path = Path(path).expanduser()
    try:
        config, code = config_from_json(path.read_text(encoding="utf-8")), path.with_name(CODE)
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is no saved config ({one_sentence(error)}): give the config.json of a run.") from error
    bound, untrusted = bind_code(config, read_code(code.read_bytes() if code.exists() else None), models, trust_code)
    if untrusted:
        raise UserError(
            f"{path}: {', '.join(untrusted)}: you have not trained with this code: read it, then give --trust-code."
        )
    return complete_config(bound)


def _list_entries(spec: str, found: tuple[SavedCode, str, str] | None) -> list[str]:
    """Lists the entries to trust for a name: all saved files and the name, the present file, or a package's function."""
    if found:
        folder, text, name = found
        return [*map(trust.make_entry, folder.files.values()), trust.make_entry(text, name)]
    where, name = split_name(spec)
    path = Path(where).expanduser().resolve()
    return [trust.make_entry(read_source(path), name) if where.endswith(".py") and path.is_file() else spec]
