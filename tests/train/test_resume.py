"""The law of resuming: interrupted any number of times ≡ left alone, bitwise, log included."""

import signal
import time
from pathlib import Path

import numpy as np
import pytest

from attention_jax import tree
from attention_jax.train import restore
from tests.helpers.small import as_options

OPTIONS = as_options(total_steps=400, evaluation__every_steps=100, checkpoint__every_steps=25, logging__every_steps=10)


def final(workdir: Path) -> tuple[dict[str, np.ndarray], bytes]:
    """Every array of the last checkpoint, and the log."""
    state, about, _ = restore.read_newest(workdir)
    assert about["step"] == 400
    return tree.flatten_by_path(state), (workdir / "metrics.jsonl").read_bytes()


def assert_same_end(workdir: Path, alone: tuple[dict[str, np.ndarray], bytes]) -> None:
    arrays, log = final(workdir)
    assert arrays.keys() == alone[0].keys()
    for path, array in arrays.items():
        assert array.tobytes() == alone[0][path].tobytes(), path
    assert log == alone[1]


@pytest.fixture(scope="module")
def alone(run_cli, tmp_path_factory):
    """The end of an uninterrupted run, and how it was started."""
    workdir = tmp_path_factory.mktemp("alone") / "run"
    done = run_cli("train", *OPTIONS, f"--workdir={workdir}")
    assert done.returncode == 0, done.stderr
    return final(workdir)


def wait_for(condition, process, seconds: float = 120):
    """Returns what `condition` returns once it is true; None when the process ended first."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        value = condition()
        if value:
            return value
        if process.poll() is not None:
            return None
        time.sleep(0.0005)
    raise AssertionError(f"nothing happened within {seconds} s")


def saving(workdir: Path) -> list[Path]:
    """Folders of checkpoints that are being written."""
    folder = workdir / "checkpoints"
    return [path for path in folder.iterdir() if "tmp" in path.name] if folder.exists() else []


@pytest.mark.slow
def test_killed_runs_end_like_one_left_alone(start_cli, run_cli, alone, tmp_path):
    workdir = tmp_path / "run"
    log = workdir / "metrics.jsonl"

    def last_logged() -> int:
        return log.read_text().count('"epoch"') * 10 if log.exists() else 0

    # Before the first save, after a save, during a save (twice tried), after another save.
    kills = []
    for moment in ("before a save", "after a save", "during a save", "after a save", "during a save"):
        process = start_cli("train", *OPTIONS, f"--workdir={workdir}")
        saved = restore.list_steps(workdir)
        if moment == "before a save":
            happened = wait_for(lambda: last_logged() >= 10, process)
        elif moment == "after a save":
            happened = wait_for(lambda saved=saved: restore.list_steps(workdir) > saved, process)
        else:
            happened = wait_for(lambda: saving(workdir), process)
        assert happened, (moment, process.stdout.read())
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        kills.append((moment, restore.list_steps(workdir), bool(saving(workdir))))

    # The kills hit what they were meant to hit: two after a save had ended, one that left a half-written checkpoint.
    assert sum(bool(steps) for moment, steps, _ in kills if moment == "after a save") == 2, kills
    assert any(half_written for *_, half_written in kills), kills

    done = run_cli("train", *OPTIONS, f"--workdir={workdir}")
    assert done.returncode == 0, done.stderr
    assert not saving(workdir)
    assert_same_end(workdir, alone)


@pytest.mark.slow
def test_sigterm_saves_at_once_and_the_rest_follows(start_cli, run_cli, alone, tmp_path):
    workdir = tmp_path / "run"
    log = workdir / "metrics.jsonl"
    process = start_cli("train", *OPTIONS, f"--workdir={workdir}", env={"AJ_STOPPED_CODE": "75"})
    assert wait_for(lambda: log.exists() and '"step": 30,' in log.read_text(), process)
    asked = time.monotonic()
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 75
    assert time.monotonic() - asked < 10
    assert "stopped after step" in process.stdout.read()
    stopped_at = restore.list_steps(workdir)[-1]
    assert 30 <= stopped_at < 400

    done = run_cli("train", *OPTIONS, f"--workdir={workdir}")
    assert done.returncode == 0, done.stderr
    assert_same_end(workdir, alone)


@pytest.mark.slow
def test_finished_run_started_again_changes_nothing(run_cli, alone, tmp_path):
    workdir = tmp_path / "run"
    options = [*as_options(), f"--workdir={workdir}"]
    assert run_cli("train", *options).returncode == 0
    before = {path: path.read_bytes() for path in workdir.rglob("*") if path.is_file() and path.name != "timing.jsonl"}
    again = run_cli("train", *options)
    assert again.returncode == 0
    after = {path: path.read_bytes() for path in workdir.rglob("*") if path.is_file() and path.name != "timing.jsonl"}
    assert before == after
