"""Every command on every page is run by a test, or the page says beside it what it needs, such as a TPU slice.

Trainings in blocks run in test_readme.py with small budgets. Here the other commands run: of tables the dry run of a row, and
launch.sh's own with substitutes for Python.
"""

import ast
import contextlib
import io
from pathlib import Path

import pytest

from attention_jax.cli import main as cli
from attention_jax.models.summary import Summary
from attention_jax.tables import dry_run, results
from attention_jax.tables.table import load_table
from tests.helpers import commands, pages
from tests.helpers.commands import Command
from tests.helpers.small import ROOT
from tests.launch.test_launch import Checkout
from tests.project.test_readme import REDUCED, RUN

# Commands that other tests run: the beginning of a command -> file::function.
ELSEWHERE = {
    ".ci/run": "tests/project/test_project_files.py::test_workflow_runs_what_ci_runs",
    "./launch.sh compare-runs": "tests/tables/test_text_comparisons.py::test_",
    "./launch.sh local": "tests/distributed/test_parallel.py::test_two_processes_are_one",
    "./launch.sh probe": "tests/analysis/test_probes.py::test_the_command",
    "./launch.sh python experiments/reliability/fuzz.py": "tests/project/test_fuzz.py::test_",
    "./launch.sh python experiments/reliability/paper_scale.py": "tests/project/test_paper_scale.py::test_",
    "./launch.sh summary *": "tests/models/test_names.py::test_",
    "./launch.sh table all": "tests/tables/test_all_tables.py::test_everything_is_run_and_the_page_written",
    "./launch.sh table merge": "tests/tables/test_all_tables.py::test_merged_shards_say_what_one_machine_says",
    "./launch.sh tpu stop": "tests/launch/test_tpu.py::test_",
    "./launch.sh tpu watch NAME --zone=ZONE --type=v5e-16 --dry-run": "tests/launch/test_clusters_page.py::test_commands",
    "./launch.sh table page": "tests/project/test_results_page.py::test_the_page_is_what_its_command_writes",
    "./launch.sh preflight scaling": "tests/preflight/test_scaling.py::test_",
    "./launch.sh watch": "tests/analysis/test_terminal.py::test_",
    "experiments/on_device.sh": "tests/preflight/test_preflight.py::test_a_question_that_fails_keeps_none_of_the_others",
    "pip install .": "tests/project/test_wheel.py::test_installs_beside_what_is_here_and_changes_no_version",
    "pre-commit install": "tests/project/test_project_files.py::test_hooks_use_the_environment",
    "python -m attention_jax": "tests/project/test_newcomer.py::test_the_page_about_extending_runs_where_only_the_wheel_is",
    "source <(./launch.sh completion)": "tests/cli/test_config_command.py::test_completion_in_bash",
}
OWN = ("docs", "notebook", "python", "setup", "test")  # commands of launch.sh itself, run with substitutes for Python
# `./launch.sh train` in a sentence names a command; these do something without further words.
COMPLETE = ("quickstart", "completion", "notebook", "docs", "test", "setup")
EXAMPLES = {"FILE": "configs/quickstart.py", "DIR": "data", "PATH": "python3", "PYTHON": "python3"}
ALL = list(dict.fromkeys(found for page, text in commands.read_all_pages() for found in commands.find_commands(page, text)))


def is_name(command: Command) -> bool:
    """True for a command's name, which is no command to run as it stands."""
    words = command.words
    if words[:1] != ["./launch.sh"]:
        return not command.fenced and len(words) == 1
    return not command.fenced and len(words) > 1 and words[1] not in COMPLETE and words[2:] in ([], ["…"])


def runs_in_blocks(command: Command) -> bool:
    """True for a command of a block that test_readme.py or test_newcomer.py runs, also where a sentence repeats it."""
    words = " ".join(command.words[1:])
    if command.words[0] != "./launch.sh" or command.words[1:2] == ["config"]:
        return False
    trains = words.startswith("train ") and any(words.startswith(begin) for begin in REDUCED)
    is_run = trains or words.partition(" ")[0] in (set(RUN) - {"train"}) or words.startswith("table my_")
    return is_run and command.words in IN_BLOCKS


IN_BLOCKS = [each.words for each in ALL if each.fenced and (each.page.startswith("docs/") or each.page == "README.md")]
LEFT = [each for each in ALL if not each.needs and not is_name(each) and not runs_in_blocks(each)]
HERE = [each for each in LEFT if not any(" ".join(each.words).startswith(begin) for begin in ELSEWHERE)]


def test_marks_and_commands_are_found():
    text = (
        "# A\n\nRun `./launch.sh evaluate --workdir=x` (needs a GPU or TPU), or\nwrap it.\n\n| a | `docker push X` |\n"
        "| b | needs\n\n## B\n\n**Needs a TPU slice.** Then:\n\n```bash\n# no heading\n./launch.sh tpu list # now\n```\n\n"
        "## C\n\n- `git pull`\n"
    )
    assert [(each.text, each.fenced, each.needs) for each in commands.find_commands("a.md", text)] == [
        ("./launch.sh evaluate --workdir=x", False, "needs a GPU or TPU"),
        ("docker push X", False, ""),
        ("./launch.sh tpu list # now", True, "Needs a TPU slice"),
        ("git pull", False, ""),
    ]
    assert len(ALL) > 200
    assert {each.page.partition("/")[0] for each in ALL} == {"README.md", "CONTRIBUTING.md", "docs", "experiments"}


@pytest.mark.parametrize("test", dict.fromkeys(ELSEWHERE.values()))
def test_other_tests_that_run_commands_exist(test):
    file, _, name = test.partition("::")
    functions = [node.name for node in ast.walk(ast.parse((ROOT / file).read_text())) if isinstance(node, ast.FunctionDef)]
    assert any(function.startswith(name) for function in functions), f"{test} is gone: which test runs this command now?"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty folder with the checkout's files and the pages' own; networks of tables are not counted, which takes seconds."""
    for name in ("launch.sh", "configs", "experiments"):
        (tmp_path / name).symlink_to(ROOT / name)
    for page in pages.list_pages():
        for block in pages.read_blocks(page):
            if block.name:
                (tmp_path / block.name).write_text(block.text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(results, "_count", lambda network, shape: None)
    monkeypatch.setattr(results, "summary", lambda model, inputs: Summary(0, 0, {}))
    monkeypatch.setattr(dry_run, "_measure_rate", lambda: 1e9)
    return tmp_path


@pytest.mark.slow
def test_every_command_runs_or_says_what_it_needs(folder, root, tmp_path_factory):
    checkout = Checkout(root, tmp_path_factory.mktemp("substitutes"))
    done: set[tuple[str, ...]] = set()
    for command in HERE:
        words = [EXAMPLES.get(word, word) for word in command.words]
        words = ["./launch.sh", "table", "experiments/quickstart.py"] if words[1:3] == ["table", EXAMPLES["FILE"]] else words
        known = tuple(word for word in words if not word.startswith("--output="))
        if known in done:
            continue
        done.add(known)
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            problem = _run(words, checkout)
        assert not problem, f"{command.page}: {command.text!r}: {problem}\n{printed.getvalue()[-2000:]}"
    assert len(done) > 50


def _run(words: list[str], checkout: Checkout) -> str:
    """Runs a command; returns what is wrong, or "" if nothing is."""
    program, *rest = words
    if program == "python" and rest:
        program, rest = "./launch.sh", words
    if program != "./launch.sh":
        return f"no test runs {program}: run it, or say beside it what it needs ({', '.join(commands.THINGS)})"
    command, *arguments = rest or ["help"]
    if command == "quickstart":
        command, arguments = "table", [f"experiments/{'_'.join(['quickstart', *arguments[:1]])}.py", *arguments[1:]]
    if command in OWN:
        return _run_own(command, arguments, checkout)
    if command == "help":
        return "" if checkout.launch(command)[0] == 0 else "it fails"
    if command == "table":
        arguments = _shorten_table(arguments)
    if command == "compare":
        arguments = [*arguments, "--dry-run"]
    if command not in ("table", "compare", "config", "completion"):
        return f"no test runs {command}: run it, or say beside it what it needs ({', '.join(commands.THINGS)})"
    return "" if cli.main([command, *arguments]) == 0 else "it fails"


def _shorten_table(arguments: list[str]) -> list[str]:
    """The dry run of a table's first row."""
    table = load_table(Path(arguments[0]))
    kept = [word for word in arguments if word not in ("--dry-run", "--aa")]
    rows = [f"--rows={table.keep_rows(table.scale(None)).rows[0].label}"] if table.rows else []
    return [*kept, *rows, "--dry-run"]


def _run_own(command: str, arguments: list[str], checkout: Checkout) -> str:
    if command == "python":
        script, options = ROOT / arguments[0], [word.partition("=")[0] for word in arguments[1:] if word.startswith("--")]
        unknown = set(options) - commands.list_options(script) if script.exists() else {arguments[0]}
        if unknown:
            return f"there is no {', '.join(sorted(unknown))}"
        return f"no test runs {arguments[0]}: run it, or say beside it what it needs"
    arguments = [word for word in arguments if word != "--newest"]  # has a test of its own in test_launch.py
    code, said = checkout.launch(command, *arguments)
    return "" if code == 0 else said
