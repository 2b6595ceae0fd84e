"""Plain words of the field: no private ones in names, docstrings and messages, and a first line that says something.

A word is forbidden where the field has a plainer one, which the error names. Exceptions are listed beside the words.
"""

import ast
import io
import json
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

from tests.helpers.pages import list_pages, read_prose

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted([*(ROOT / "attention_jax").rglob("*.py"), *(ROOT / "experiments" / "studies").glob("*.py")])
TEXTS = {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in FILES}

# Part of an identifier, as `is_far` or `FarTree` have one -> what it is called.
NAMES = {
    "door": "launcher",
    "doors": "launchers",
    "rollcall": "rendezvous",
    "far": "remote",
    "near": "local",
    "heap": "malloc",
    "verb": "command",
    "verbs": "commands",
    "mend": "fix",
    "mended": "fixed",
    "asked": "recording, requested or stopped",
    "told": "notified",
    "shown": "plotted or printed",
    "claimed": "locked",
    "claim": "lock",
    "taken": "computed",
    "whole": "complete",
    "standin": "staging folder or substitute",
    "picture": "plot, figure or image",  # `pictures` is a key of table files
    "placement": "sharding",
}
# Public functions of these names say nothing without their module.
EMPTY_NAMES = {"measure", "picture", "draw", "run", "read", "take", "check", "start", "place", "call", "keep", "update"}
# Words of docstrings, comments and messages: regular expression -> what to write.
WORDS = {
    r"doors?": "launcher",
    r"roll ?call": "rendezvous",
    r"who (is|are) to come|who has come|who has(?= |$)": "expected processes, rendezvous",
    r"far[- ]away|files? far|far files?": "remote",
    r"at (an )?address(es)?": "remote, at a URI",
    r"heap": "malloc",
    r"verbs?": "command",
    r"mend(s|ed|ing)?": "fix",
    r"laws?(?! of (large|motion))": "invariant or guarantee",
    r"(of )?one's own": "your own, custom",
    r"so many": "n",
    r"of which|of whom": "(rewrite the sentence)",
    r"for that(?=[,.;:])": "(rewrite the sentence)",
    r"(is|are|was|were) said": "(say who says it)",
    r"stand(s|ing)?[- ]ins?": "staging folder, substitute",
    r"wholes?(?! number)": "complete, entire",
    r"what is there": "(name it)",
    r"(is|are) told": "is notified, is given",
    r"at will": "any time",
}
# The first word of a public docstring: these begin a fragment.
FRAGMENTS = ("Of", "What", "Who", "Whose", "Whether", "How", "Where", "Which", "When")


def definitions(tree: ast.Module) -> Iterator[ast.FunctionDef | ast.ClassDef]:
    """Public functions, classes and methods of a module."""

    def of(body: list[ast.stmt]) -> Iterator[ast.FunctionDef | ast.ClassDef]:
        for node in body:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
                yield node
                if isinstance(node, ast.ClassDef):
                    yield from of(node.body)

    return of(tree.body)


def parts(name: str) -> list[str]:
    """The words of `snake_case`, `CamelCase` and `UPPER_CASE`, in small letters."""
    return [word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)]


def identifiers(text: str) -> Iterator[tuple[int, str]]:
    """(line, name) of every name in a module's code."""
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.NAME:
            yield token.start[0], token.string


def prose(text: str) -> Iterator[tuple[int, str]]:
    """(line, text) of docstrings, other strings with a space in them, and comments."""
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        kind = tokenize.tok_name[token.type]
        if kind == "COMMENT" or (kind in ("STRING", "FSTRING_MIDDLE") and " " in token.string):
            for number, line in enumerate(token.string.splitlines()):
                yield token.start[0] + number, line


def test_names_are_plain():
    found = {
        f"{path}:{line}: {name!r}: say {NAMES[word]}"
        for path, text in TEXTS.items()
        for line, name in identifiers(text)
        for word in parts(name)
        if word in NAMES
    }
    assert not found, "\n".join(sorted(found))


def test_prose_is_plain():
    patterns = {re.compile(rf"(?<![\w-])(?:{pattern})(?![\w-])", re.IGNORECASE): say for pattern, say in WORDS.items()}
    found = [
        f"{path}:{line}: {match[0]!r}: say {say}"
        for path, text in TEXTS.items()
        for line, words in prose(text)
        for pattern, say in patterns.items()
        if (match := pattern.search(words))
    ]
    assert not found, "\n".join(found)


def test_prose_of_pages_and_notebooks_is_plain():
    """CHANGELOG.md is left out: it has the old names of modules."""
    texts = {page.name: read_prose(page) for page in (*list_pages(), ROOT / "CONTRIBUTING.md")}
    for path in (ROOT / "experiments" / "notebooks").glob("*.ipynb"):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        texts[path.name] = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    found = [
        f"{name}: {text[max(0, match.start() - 40) : match.end()]!r}: say {say}"
        for name, text in texts.items()
        for pattern, say in WORDS.items()
        for match in re.finditer(rf"(?<![\w-])(?:{pattern})(?![\w-])", text, re.IGNORECASE)
    ]
    assert not found, "\n".join(found)


def test_public_docstrings_begin_with_a_shape_or_a_sentence():
    found = []
    for path, content in TEXTS.items():
        tree = ast.parse(content)
        for node in (tree, *definitions(tree)):
            where = f"{path}:{getattr(node, 'lineno', 1)}: {getattr(node, 'name', 'module')}"
            text = ast.get_docstring(node)
            if text is None:
                if not isinstance(node, ast.FunctionDef) or node.name not in ("setup", "main"):
                    found.append(f"{where}: no docstring")
                continue
            first = text.split("\n\n")[0].replace("\n", " ")
            if first.split(" ")[0].rstrip(",") in FRAGMENTS:
                found.append(f"{where}: begins a fragment: {first!r}")
            if not re.match(r"[A-Z0-9\[(`'\"]|√", first) or not first.endswith((".", ":", "?", "`", "]")):
                found.append(f"{where}: give a shape or a full sentence: {first!r}")
    assert not found, "\n".join(found)


def test_public_functions_are_named_for_what_they_do():
    empty = [
        f"{path}: {node.name}"
        for path, text in TEXTS.items()
        for node in ast.parse(text).body
        if isinstance(node, ast.FunctionDef) and node.name in EMPTY_NAMES
    ]
    assert not empty, f"give verb and object, as measure_gradient_flow: {', '.join(empty)}"


# The two tasks answer to the same functions; commands are started by `main`; `__getattr__` is Python's.
SHARED_NAMES = {"main"}
TASKS = {"attention_jax/tasks/classification.py", "attention_jax/tasks/translation.py"}


def test_public_names_are_unique():
    places: dict[str, set[str]] = {}
    for path, text in TEXTS.items():
        for node in ast.parse(text).body:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
                places.setdefault(node.name, set()).add(path)
    twice = {name: sorted(at) for name, at in places.items() if len(at) > 1 and name not in SHARED_NAMES and not at <= TASKS}
    assert not twice, "\n".join(f"{name}: {', '.join(at)}" for name, at in sorted(twice.items()))


def test_modules_of_a_folder_have_unique_names():
    places: dict[tuple[Path, str], list[str]] = {}
    for path in FILES:
        places.setdefault((path.parent, path.stem.rstrip("s")), []).append(path.name)
    assert not [names for names in places.values() if len(names) > 1]
