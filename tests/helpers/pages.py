"""README.md and docs/*.md: their fenced blocks, and commands that are checked without being run."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from attention_jax.cli import main as cli
from attention_jax.cli.parser import make_parser
from attention_jax.config.config import load_config
from attention_jax.preflight.chips import find_slice
from attention_jax.tables.table import load_table
from tests.helpers.small import ROOT

# Files that an example names come into being in this order: what one page trains, later pages load.
_FIRST = ("README.md", "index.md", "tables.md", "translation.md", "extending.md")


class Block(NamedTuple):
    """A fenced block: "bash" has a command per line, "python" is a file if it has a name and else is run."""

    page: Path
    kind: str
    name: str
    text: str


def list_pages() -> list[Path]:
    """Returns README.md and every page of docs/."""
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    return sorted(pages, key=lambda page: _FIRST.index(page.name) if page.name in _FIRST else len(_FIRST))


def read_blocks(page: Path) -> list[Block]:
    """Returns the fenced blocks of a page."""
    found = re.findall(r"^```(\w*)(?: file=(\S+))?\n(.*?)^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    return [Block(page, *block) for block in found]


def read_prose(page: Path) -> str:
    """Returns a page without its fenced blocks."""
    return re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


def read_inline_code(page: Path) -> Iterator[str]:
    """Yields `code` of the running text."""
    yield from re.findall(r"`([^`\n]+)`", read_prose(page))


def check_library_command(words: Sequence[str]) -> None:
    """Parses a command of the library, and resolves its config with all overrides, its table rows, or its slice."""
    arguments, overrides = cli._split_overrides(list(words))
    options = make_parser().parse_args(arguments)
    if getattr(options, "config", None):
        cli._apply_overrides(load_config(str(_find(options.config))), overrides)
    if options.command == "table" and options.file.endswith(".py"):  # all, merge and page are run by their own tests
        table = load_table(_find(options.file))
        scale = table.scale(options.scale)
        assert all(table.config(row, scale) for row in table.rows)
    if getattr(options, "topology", None):
        find_slice(options.topology)


def _find(file: str) -> Path:
    """A file of the working directory, else of the checkout."""
    return Path(file) if Path(file).exists() else ROOT / file
