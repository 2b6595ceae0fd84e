"""A newcomer with the wheel, an empty folder and docs/extending.md: each part of their own trains."""

import ast
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from attention_jax.load import load_run
from attention_jax.tables.table import Row
from attention_jax.train.workdir import read_config
from tests.helpers import pages

pytestmark = pytest.mark.usefixtures("quickly")


@pytest.mark.slow
def test_the_page_about_extending_runs_where_only_the_wheel_is(
    root: Path, elsewhere: tuple[Path, dict[str, str]], run_python: Callable
) -> None:
    folder, env = elsewhere
    done = []

    def start(*arguments: str) -> str:
        result = run_python(*arguments, cwd=folder, env=env)
        assert result.returncode == 0, f"{arguments}\n{result.stdout}\n{result.stderr}"
        return result.stdout

    for block in pages.read_blocks(root / "docs" / "extending.md"):
        if block.name:
            (folder / block.name).write_text(block.text)
        elif block.kind == "python":
            start("-c", f"{block.text}\nassert aj.__file__.startswith({env['PYTHONPATH']!r})")
        else:
            for line in block.text.splitlines():
                program, *arguments = shlex.split(line)
                assert program == "./launch.sh"
                start("-m", "attention_jax", *arguments)
                done.append(arguments[0])
    assert done.count("train") == 5 and {"summary", "evaluate", "table"} < set(done)
    rows = ast.literal_eval(start("-c", "import my_table; print([row['label'] for row in my_table.rows])"))
    for run in ("softmax", "bars", "patches", "signs", "sine", *(f"my_table/{Row(label).slug}/0" for label in rows)):
        assert list((folder / "runs" / run / "checkpoints").glob("[0-9]*")), run
    text = (folder / "runs" / "my_table" / "my_table.md").read_text()
    assert "failed" not in text and "| median loss |" in text
    assert load_run(folder / "runs" / "bars", trust_code=True).labels == ["horizontal", "vertical"]
    config = read_config(folder / "runs" / "my_table" / Row(rows[2]).slug / "0")
    assert config.optimizer.weight_decay == 0 and config.model.gate == "my_gate.py:SpatialSoftmax"
