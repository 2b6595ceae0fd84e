"""Docstrings and comments are sentences, not fragments: they name the thing that they speak of.

A function's first line is a shape or begins with a verb ("Returns …"); an argument is described by a noun, not by
"of the run"; a comment does not begin in the middle of a sentence. Properties are read like nouns.
"""

import ast
import functools
import io
import re
import tokenize
from collections.abc import Callable

import pytest

from tests.project.test_words import TEXTS

# Words that begin half a sentence, as in "seed: of the order" or "# what the file says".
FRAGMENT = r"(of|as of|whose|what|who|which|whether|that|where)\b"
OPENING = re.compile(r"(of|what|who|whose|whether|how|where|which|when|at|on|by|to|in)\b", re.IGNORECASE)
ARGUMENT = re.compile(rf"\s+`?\**\w+`?(, `?\**\w+`?)*: {FRAGMENT}")
COMMENT = re.compile(rf"#\s+{FRAGMENT}")
REPORTED = re.compile(r"\b(said|says so)\b")
SHAPE_OR_VERB = re.compile(r"\[|\(|True\b|`|[A-Z][a-z]+s\b|[^.]*->|See |Collective: |Inside a jitted function: ")


@functools.cache
def docstrings(text: str) -> list[str]:
    """All docstrings of a module, private ones too."""
    nodes = [node for node in ast.walk(ast.parse(text)) if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef))]
    return [words for node in nodes if (words := ast.get_docstring(node))]


def opens_a_fragment(text: str) -> list[str]:
    return [words for words in docstrings(text) if OPENING.match(words)]


def describes_an_argument_by_a_fragment(text: str) -> list[str]:
    return [line for words in docstrings(text) for line in words.splitlines() if ARGUMENT.match(line)]


def reports_in_the_passive(text: str) -> list[str]:
    if not REPORTED.search(text):
        return []
    lines = [line for words in docstrings(text) for line in words.splitlines()] + [words for _, words in comments(text)]
    return [line for line in lines if REPORTED.search(line)]


def comments_in_a_fragment(text: str) -> list[str]:
    if not COMMENT.search(text):  # saves reading the tokens of most files
        return []
    return [comment for first, comment in comments(text) if first and COMMENT.match(comment)]


def begins_without_a_verb(text: str) -> list[str]:
    return [
        f"{node.name}: {words}"
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.FunctionDef) and (words := ast.get_docstring(node))
        if not any("property" in ast.unparse(decorator) for decorator in node.decorator_list)
        if not SHAPE_OR_VERB.match(words)
    ]


@functools.cache
def comments(text: str) -> list[tuple[bool, str]]:
    """(False for a line that goes on from the comment above, comment)."""
    found, before = [], -1
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            found.append((before != token.start[0] - 1, token.string))
            before = token.start[0] if token.line.lstrip().startswith("#") else -1
    return found


RULES = [
    opens_a_fragment,
    describes_an_argument_by_a_fragment,
    reports_in_the_passive,
    comments_in_a_fragment,
    begins_without_a_verb,
]
WRONG = '''"""Of a file."""
def f(x):
    """The sum.

    Args:
        x: of numbers.
    """
    # where it is said
    return x'''


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_prose_of_the_library_names_its_subject(rule: Callable[[str], list[str]]):
    found = [f"{path}: {line.strip()!r}" for path, text in TEXTS.items() for line in rule(text)]
    assert not found, "\n".join(found)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_a_fragment_is_found(rule: Callable[[str], list[str]]):
    assert len(rule(WRONG)) == 1
