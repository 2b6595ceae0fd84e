"""Runs on a terminal: curves of known points, and a line about each run."""

import json
import os
import shutil

import pytest

from attention_jax.analysis import terminal
from attention_jax.cli import main as cli
from attention_jax.errors import UserError
from tests.helpers.make_tiny_run import RUN


def test_points_are_where_they_belong():
    drawn = terminal.draw_curves({"up": [(0, 1.0), (10, 3.0)], "flat": [(5, 2.0), (6, float("nan"))]}, "title", 20, 8)
    title, *rows = drawn.split("\n")
    assert title == "title" and [row[:3] for row in rows[:5]] == [" 3|", "  |", "  |", "  |", " 1|"]
    assert rows[0].find("o") == 19 and rows[4].find("o") == 3 and rows[2].find("x") == 11
    assert drawn.count("o") == 2 and drawn.count("x") == 1 and rows[5].split() == ["0", "10"] and len(rows) == 6
    assert terminal.draw_curves({"none": []}, "title", 20, 8) == ""
    assert "o" in terminal.draw_curves({"one": [(3, 1.0)]}, "title", 4, 2)


def test_what_is_said_of_runs(tmp_path, capsys):
    for name in ("table/a/0", "table/a/1", "table/b/0"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(RUN, tmp_path / name, ignore=shutil.ignore_patterns("checkpoints", "evaluation.npz"))
    running, failed, done = (tmp_path / "table" / name for name in ("a/0", "a/1", "b/0"))
    log = (running / "metrics.jsonl").read_text().splitlines(keepends=True)[:4]
    (running / "metrics.jsonl").write_text("".join(log) + '{"step": 9')  # a line that is being written
    time = {"event": "training", "step": 74, "examples_per_second": 1234.5, "seconds_per_step": 2.0}
    (running / "timing.jsonl").write_text(json.dumps(time) + "\n")
    (failed / "failure.txt").write_text("loss is not finite\nmore\n")
    os.utime(running / "metrics.jsonl", (1000, 1000))
    os.utime(running / "timing.jsonl", (1000, 1000))
    folders = terminal.list_runs([str(tmp_path)])
    assert folders == [running, failed, done] == terminal.list_runs([str(tmp_path), str(done)])
    lines = terminal.describe_runs_now(folders, 300, 30, now=1000 + 600).splitlines()
    assert (
        lines[0].startswith("o a/0: step 74 of 370 (20 %), loss ")
        and ", 1,234 examples/s, 00:09:52 left, quiet for 10 min" in lines[0]
    )
    assert lines[1].startswith("x a/1: ") and lines[1].endswith("FAILED: loss is not finite")
    assert lines[2].startswith("+ b/0: ") and lines[2].endswith(", done")
    narrow = terminal.describe_runs_now(folders, 60, 30).splitlines()
    assert max(map(len, narrow)) <= 60 and len(narrow) <= 30 and "score by step" in narrow
    assert cli.main(["watch", str(running), "--once"]) == 0 and "training loss by step" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"there is no metrics.jsonl in it or below"):
        terminal.list_runs([str(tmp_path / "nothing")])
