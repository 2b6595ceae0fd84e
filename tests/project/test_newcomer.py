"""A newcomer with the wheel, an empty folder and docs/extending.md: each part of their own trains."""

import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.helpers import pages

pytestmark = pytest.mark.usefixtures("quickly")


@pytest.mark.slow
def test_the_page_about_extending_runs_where_only_the_wheel_is(
    root: Path, elsewhere: tuple[Path, dict[str, str]], run_python: Callable
) -> None:
    folder, env = elsewhere
    done = []

    def start(*arguments: str) -> None:
        result = run_python(*arguments, cwd=folder, env=env)
        assert result.returncode == 0, f"{arguments}\n{result.stdout}\n{result.stderr}"

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
    for run in ("softmax", "bars", "patches", "signs", "sine", "my_table/nnx-gate/0"):
        assert list((folder / "runs" / run / "checkpoints").glob("[0-9]*")), run
    assert "failed" not in (folder / "runs" / "my_table" / "my_table.md").read_text()
