"""README.md and docs/*.md do what they say: their samples run, in order, in an empty folder beside the checkout.

Commands that train run with small budgets; other long commands are parsed, and their configs and table rows resolved.
"""

import io
import re
import shlex
import subprocess
import sys

import jax
import pytest

from attention_jax.cli import main as cli
from attention_jax.config.describe import render_fields_page
from tests.helpers import pages
from tests.helpers.small import FIELDS, ROOT

README = ROOT / "README.md"
PAGES = pages.list_pages()
RESULTS = ROOT / "experiments" / "results" / "quickstart.md"
each_page = pytest.mark.parametrize("page", PAGES, ids=[page.stem for page in PAGES])

# Overrides that make a training take seconds, by how its command begins. Other trainings are resolved and not run.
REDUCED = {
    "train --config=my_": {},
    "train --config=configs/quickstart.py": {**FIELDS, "total_steps": 8, "evaluation.every_steps": 4, "logging.every_steps": 2},
    "train --config=configs/translate_quickstart.py": {
        **{"model.layers": 1, "model.features": 16, "model.hidden": 16, "total_steps": 6, "schedule.warmup_steps": 2},
        **{"evaluation.translate": False, "evaluation.headline": "token_accuracy", "search.max_extra": 2},
    },
}
RUN = (
    "train",
    "evaluate",
    "export",
    "translate",
    "score",
    "report",
    "summary",
    "config",
)  # are run, as is the table of a page's own files
RESOLVED = ("table", "plot", "preflight", "prepare")  # commands that are parsed and resolved


@each_page
def test_blocks_are_of_known_kinds(page):
    blocks = pages.read_blocks(page)
    assert page.read_text().count("```") == 2 * len(blocks)
    kinds = {"bash", "python", "text"} | (
        {""} if page.name in ("clusters.md", "launchers.md") else set()
    )  # test_clusters_page.py reads those
    assert {block.kind for block in blocks} <= kinds


@each_page
def test_samples_are_short(page):
    for block in pages.read_blocks(page):
        assert not block.name or len(block.text.splitlines()) <= 30
        assert block.kind == "" or all(len(line) <= 160 for line in block.text.splitlines())


def test_readme_is_short():
    assert len(README.read_text().splitlines()) <= 120


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working directory with what the commands name; programs are compiled without optimisation, which is quicker."""
    for name in ("launch.sh", "configs", "experiments"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    jax.config.update("jax_disable_most_optimizations", True)
    yield tmp_path
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.mark.slow
def test_everything_in_them_runs(folder, monkeypatch):
    namespace: dict = {}
    done, compared = [], []
    for page in PAGES:
        if page.name == "extending.md":
            continue  # test_newcomer.py runs it, with the wheel
        for block in pages.read_blocks(page):
            if block.name:
                (folder / block.name).write_text(block.text)
            elif block.kind == "python":
                exec(compile(block.text, page.name, "exec"), namespace)
            elif block.kind == "bash":
                lines = block.text.splitlines()
                compared += [line for line in lines if line.startswith("./launch.sh compare")]
                done += [_run(line, monkeypatch) for line in lines if line not in compared]
    done += [_run(line, monkeypatch) for line in compared]  # compare.md writes the block that README.md names
    assert {"quickstart", "table", "train", "evaluate", "translate", "score"} <= set(done)

    assert len(namespace["prediction"].labels) == 599
    assert namespace["maps"]["stage1_gate/map"].ndim == 4 and len(namespace["steps"]) == 2
    assert list((folder / "runs" / "mine" / "checkpoints").glob("[0-9]*"))
    assert len((folder / "translated.txt").read_text().splitlines()) == 3 and (folder / "attention.png").stat().st_size
    assert len(namespace["best"].texts) == 3 and namespace["first"].score < 0
    assert namespace["accuracy"] > 0.5


def _run(line: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """Runs one command with a smaller budget, or resolves it; returns its name."""
    text, pipe, line = line.rpartition(" | ")
    program, command, *arguments = shlex.split(line)
    assert program == "./launch.sh"
    if command == "quickstart":
        name = "_".join(["quickstart", *arguments[:1]])
        pages.check_library_command(["table", f"experiments/{name}.py", *arguments[1:]])
    elif command == "compare":
        assert cli.main([command, *arguments, "--dry-run"]) == 0, line
    elif command in RESOLVED and not any(word.startswith("my_") for word in arguments):
        pages.check_library_command([command, *arguments])
    elif command in (*RUN, "table"):
        if pipe:
            written = shlex.split(text)[1] + "\n"
            monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(written.encode())))
        reduced = [fields for start, fields in REDUCED.items() if f"{command} {shlex.join(arguments)}".startswith(start)]
        if command == "train" and not reduced:
            pages.check_library_command([command, *arguments])
        else:
            more = [f"--config.{name}={value}" for fields in reduced for name, value in fields.items()]
            assert cli.main([command, *arguments, *more]) == 0, line
    return command


@each_page
def test_links_and_pictures_exist(page):
    targets = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text())
    assert not [target for target in targets if "://" not in target and not (page.parent / target).exists()]


def test_the_page_of_fields_is_that_of_the_table():
    assert (ROOT / "docs" / "fields.md").read_text(encoding="utf-8") == render_fields_page(), "make it anew: config --fields"


def test_every_page_is_listed():
    listed = set(re.findall(r"\]\((\w+\.md)\)", (ROOT / "docs" / "index.md").read_text()))
    assert listed == {page.name for page in PAGES} - {"README.md", "index.md"}


def test_table_is_that_of_the_results():
    def rows(text: str) -> list[list[str]]:
        return [re.split(r" *\| *", line)[1:-1] for line in text.splitlines() if line.startswith("|")]

    head, _, *cells = rows(RESULTS.read_text().partition("\nAccuracy: ")[0])
    columns = [head.index(name) for name in ("row", "accuracy %", "Δ to none")]
    _, _, *shown = rows(re.search(r"<!-- quickstart table -->\n(.*?)\n<!-- end -->", README.read_text(), re.DOTALL).group(1))
    assert len(shown) == 3
    assert shown == [[row[column] for column in columns] for row in cells], "copy the cells of quickstart.md"


def listed_commands() -> list[str]:
    """Commands in the help of launch.sh."""
    text = subprocess.run([ROOT / "launch.sh"], capture_output=True, text=True, check=True).stdout
    return list(dict.fromkeys(re.findall(r"^  ([a-z]+)\b", text, re.MULTILINE)))


def test_every_command_of_the_texts_exists():
    listed = listed_commands()
    for page in PAGES:
        for command in re.findall(r"\./launch\.sh ([a-z]+)", page.read_text()):
            assert command in listed, f"{page.name}: {command}"


def test_every_command_is_documented():
    text = (ROOT / "docs" / "index.md").read_text()
    table = text[text.index("## Commands") :]
    assert not [command for command in listed_commands() if not re.search(rf"^\| .*[ `]{command}`.* \|", table, re.MULTILINE)]


def test_map_names_what_exists():
    (block,) = pages.read_blocks(ROOT / "docs" / "code.md")
    package = ROOT / "attention_jax"
    for name in re.findall(r"[\w/]+(?:\.py|\.sh|/)(?=\s)", block.text):
        places = (ROOT, package, package / "data", ROOT / "experiments")
        assert any((folder / name).exists() for folder in places), name
    parts = {f"{path.name}/" for path in package.iterdir() if path.is_dir() and not path.name.startswith("__")}
    modules = {path.name for path in package.glob("*.py") if not path.name.startswith("__")}
    assert not [name for name in parts | modules if name not in block.text], "every part of the package has its line"


@each_page
def test_names_no_machine(page):
    assert not re.search(r"/(home|root|Users|tmp|work)/", page.read_text())
