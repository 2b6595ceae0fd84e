"""Commands of all pages: in fenced blocks, in running text and in tables, with what the page says that they need."""

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tests.helpers import pages
from tests.helpers.small import ROOT

# Words that come before a program, and programs.
_BEFORE = r"(?:(?:[A-Z]\w+=\S+|nice|chrt -r 2|taskset -c 0,1|echo \"[^\"]*\" \|) )*"
_PROGRAMS = r"\./launch\.sh|experiments/\w+\.sh|\.ci/run|python|pip|gcloud|kubectl|docker|git|ssh-add|scancel|pre-commit|source"
COMMAND = re.compile(rf"^{_BEFORE}(?:{_PROGRAMS})(?= |$)")
# What a reader must bring: words of a page that excuse the commands beside them from being run by a test.
THINGS = (
    *("a TPU slice", "a Slurm cluster", "a Kubernetes cluster", "a Google Cloud project", "a GPU or TPU", "the network"),
    *("ImageNet", "CIFAR-10", "its data", "your own data", "timm", "PyTorch", "SkyPilot", "xpk", "a Ray cluster"),
    *("hosts with ssh", "a quiet machine", "a machine for some minutes", "the TPU compiler"),
)
MARK = re.compile(rf"\b[Nn]eeds? (?:{'|'.join(map(re.escape, THINGS))})\b")
SECTION_MARK = re.compile(rf"^\*\*{MARK.pattern}[^*]*\*\*", re.MULTILINE)


class Command(NamedTuple):
    """A command as its page has it, whether in a fenced block, and what the page says that it needs."""

    page: str
    text: str
    fenced: bool
    needs: str

    @property
    def words(self) -> list[str]:
        """The program and its arguments, without what comes before the program and without a comment."""
        line = re.sub(rf"^{_BEFORE}", "", self.text)
        return line.split() if line.startswith("source <(") else shlex.split(line, comments=True)


def read_all_pages() -> Iterator[tuple[str, str]]:
    """Yields (path, Markdown) of README, docs, results and other pages, and of the text of notebooks."""
    others = ("CONTRIBUTING.md", "attention_jax/kernels/README.md")
    results = sorted((ROOT / "experiments" / "results").glob("*.md"))
    for path in (*pages.list_pages(), *(ROOT / name for name in others), *results):
        yield path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8")
    for path in sorted((ROOT / "experiments" / "notebooks").glob("*.ipynb")):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        texts = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown"]
        yield path.relative_to(ROOT).as_posix(), "\n\n".join(texts)


def find_commands(page: str, text: str) -> Iterator[Command]:
    """Yields the commands of a page.

    A mark counts for the commands of its paragraph, list item or table row, for the fenced block after it, for the line of a
    block whose comment it is, and, in bold at the beginning of a section, for the section.
    """
    for section in re.split(r"^(?=#+ )", _hide_headings_in_code(text), flags=re.MULTILINE):
        of_section = match[0] if (match := SECTION_MARK.search(section)) else ""
        before = ""
        for kind, lines, prose in re.findall(r"^```(\w*)[^\n]*\n(.*?)^```$|((?:^(?!```)[^\n]+\n?)+)", section, re.M | re.S):
            if prose:
                for part in re.split(r"\n(?=\s*(?:[-*|] ?|\d+\. ))", prose):
                    mark = _find_mark(part) or of_section
                    code = re.findall(r"(?<!`)`([^`\n]+)`(?!`)", part)
                    yield from (Command(page, each, False, mark) for each in code if COMMAND.match(each))
                before = _find_mark(prose)
            elif kind in ("", "bash", "text"):
                for line in filter(str.strip if kind != "text" else COMMAND.match, lines.splitlines()):
                    if not line.lstrip().startswith("#"):
                        yield Command(page, line, True, _find_mark(line) or before or of_section)


def _find_mark(text: str) -> str:
    return match[0] if (match := MARK.search(" ".join(text.split()))) else ""


def _hide_headings_in_code(text: str) -> str:
    return re.sub(r"^```.*?^```$", lambda block: block[0].replace("\n#", "\n #"), text, flags=re.MULTILINE | re.DOTALL)


def list_options(script: Path) -> set[str]:
    """Options that a script's parser knows, read off its text."""
    return set(re.findall(r'"(--[a-zA-Z][\w-]*)"', script.read_text(encoding="utf-8"))) | {"--help"}
