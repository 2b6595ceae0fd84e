"""All tables of a folder: one call, shards that are merged, failures, and what is left out."""

import json
import shutil
from pathlib import Path

import pytest

from attention_jax.cli import main as cli
from attention_jax.errors import UserError
from attention_jax.tables import all_tables, publish
from attention_jax.tables.all_tables import merge_workdirs, run_all_tables
from tests.helpers.small_table import SMALL, table_text

pytestmark = pytest.mark.usefixtures("quickly")

_SCALES = {"quick": {"seeds": 1, "overrides": SMALL}, "other": {"seeds": 1, "overrides": SMALL}}
_COMPUTED = "title = source = 'x'\ncomputed = [{'label': 'one', 'function': lambda: {'n': 1}}]\nscales = {'quick': {}}\n"
_CLAIMS = """
title, notes = "P", "N"
statements = [
    {"section": "1. S", "text": "x", "table": "a_trained", "judged": (("b", "a"),)},
    {"section": "1. S", "text": "y", "table": "b_computed", "rows": ("one",), "columns": ("n",)},
]
"""


def write_folder(folder: Path) -> Path:
    """Two tables of which one is computed, one that fails, one without the scale, one that is broken, and no table."""
    (folder / "docs").mkdir()
    tables = folder / "experiments"
    tables.mkdir()
    (tables / "a_trained.py").write_text(table_text("{'label': 'a'}, {'label': 'b'}", scales=_SCALES))
    (tables / "b_computed.py").write_text(_COMPUTED)
    (tables / "c_fails.py").write_text(_COMPUTED.replace("{'n': 1}", "1 / 0"))
    (tables / "d_other.py").write_text(table_text("{'label': 'a'}", scales={"other": {"seeds": 1}}))
    (tables / "e_broken.py").write_text("title = 'x'\nscales = {}\n")
    (tables / "claims.py").write_text(_CLAIMS)
    return tables


@pytest.fixture(scope="module")
def story(tmp_path_factory):
    """One call for everything; then two shards, merged, and everything again on what was merged."""
    folder = tmp_path_factory.mktemp("all")
    tables = write_folder(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(publish, "_plots", lambda *_: {})  # half of the time
        codes = [run_all_tables(tables, workdir=folder / "alone")]
        for i in (1, 2):
            codes.append(run_all_tables(tables, shard=f"{i}/2", workdir=folder / f"shard{i}"))
        count = merge_workdirs([folder / "shard1", folder / "shard2"], folder / "merged")
        codes.append(run_all_tables(tables, workdir=folder / "merged", output=folder / "again"))
    return folder, codes, count


def test_everything_is_run_and_the_page_written(story):
    folder, codes, _ = story
    assert codes == [1, 1, 1, 1]  # by the table that fails and the one that is broken
    results = folder / "experiments/results"
    assert {path.name for path in results.glob("*.json")} == {"a_trained.json", "b_computed.json", "c_fails.json"}
    page = (folder / "docs/results.md").read_text()
    assert "| cannot tell here | yes, one seed | 0 of 1 | no |" in page and "](../experiments/results/b_computed.md)" in page


def test_shards_have_each_row_once_and_no_page(story):
    folder, _, count = story
    rows = [{path.parent.name for path in (folder / name / "a_trained").glob("*/0")} for name in ("shard1", "shard2")]
    assert rows == [{"a"}, {"b"}] and count == 2
    assert not [*folder.glob("shard*/results.md")]


def test_merged_shards_say_what_one_machine_says(story):
    folder, _, _ = story
    one, other = (folder / place / "a_trained.json" for place in ("experiments/results", "again"))
    assert one.read_text() == other.read_text()
    assert (folder / "again/results.md").read_text().partition("## 1.")[0] == (
        (folder / "docs/results.md").read_text().partition("## 1.")[0]
    )
    for row in "ab":  # was copied, and not trained again
        name = f"a_trained/{row}/0/timing.jsonl"
        shard = folder / ("shard1" if row == "a" else "shard2")
        assert (folder / "merged" / name).read_text() == (shard / name).read_text()


def test_what_is_left_out_and_what_failed_is_said(tmp_path, capsys, monkeypatch):
    write_folder(tmp_path)
    (tmp_path / "experiments/a_trained.py").unlink()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "w").mkdir()
    (tmp_path / "w/b_computed").touch()  # a file where its workdir should be
    assert cli.main(["table", "all", "--workdir=w"]) == 1
    out = capsys.readouterr().out
    assert "claims.py is left out: it has no scales" in out
    assert "d_other.py is left out: it has no scale 'quick', but other." in out
    last = out[out.index("\nnot done:") :]
    assert "b_computed.py: w/b_computed cannot be made" in last and "c_fails.py: rows failed" in last
    assert "e_broken.py: experiments/e_broken.py: a table file has no 'source'" in last
    assert cli.main(["table", "page"]) == 0
    assert capsys.readouterr().out.endswith("docs/results.md is written.\n")


def test_a_dry_run_makes_nothing(tmp_path, capsys):
    tables = write_folder(tmp_path)
    assert run_all_tables(tables, workdir=tmp_path / "w", dry_run=True) == 1
    assert "\nb: 4 steps" in capsys.readouterr().out
    assert not (tmp_path / "w").exists() and not (tables / "results").exists() and not [*(tmp_path / "docs").iterdir()]


def test_the_scale_before_is_run_first(tmp_path, monkeypatch, capsys):
    tables = tmp_path / "experiments"
    tables.mkdir()
    scales = {"quick": {"seeds": 1, "after": "first", "rows": ["b"]}, "first": {"rows": ["a"]}}
    (tables / "t.py").write_text(table_text("{'label': 'a'}, {'label': 'b'}", scales=scales))
    monkeypatch.chdir(tmp_path)
    ran, stop = [], False

    def run_request(request, *_, on_stop, **__):
        ran.append((str(request.folder), sorted(request.selected)))
        if stop:
            on_stop()
        return 0

    monkeypatch.setattr(all_tables, "run_request", run_request)
    assert run_all_tables(tables, workdir="w", output="o") == 0 and ran == [("runs/t-first", ["a"]), ("w/t", ["b"])]
    ran, stop = [], True
    assert run_all_tables(tables, workdir="w", output="o") == 0 and ran == [("runs/t-first", ["a"])]


@pytest.mark.parametrize("shard", ["0/2", "3/2", "1", "a/b"])
def test_a_shard_that_is_not_right(shard, tmp_path):
    with pytest.raises(UserError, match=f"--shard={shard} is not right: give i/n"):
        run_all_tables(tmp_path, shard=shard)


def test_options_that_do_not_go_together(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for words, message in (
        (["all"], "there are no table files in"),
        (["all", "--rows=a"], "takes no --rows, --files or --aa"),
        (["x.py", "--shard=1/2"], "--shard=1/2 goes with table all"),
        (["all", "x"], "takes no folders such as x"),
        (["merge", "a"], "give the folders of the shards, and --workdir=DIR"),
        (["merge", "a", "--workdir=b"], "a is no folder of a shard"),
    ):
        assert cli.main(["table", *words]) == 2
        assert message in capsys.readouterr().err


# --- merging, with runs that are made up -----------------------------------------------------------------------------------


def write_run(place: Path, steps: int, rate: float = 0.1, loss: float = 1.0) -> Path:
    run = place / "t/a/0"
    (run / f"checkpoints/{steps}").mkdir(parents=True)
    (run / "config.json").write_text(json.dumps({"rate": rate}))
    (run / "metrics.jsonl").write_text("".join(f'{{"step": {step}, "loss": {loss}}}\n' for step in range(1, steps + 1)))
    return run


def test_of_one_run_in_two_shards_the_longer_is_taken(tmp_path):
    short, long = (write_run(tmp_path / name, steps) for name, steps in (("one", 2), ("two", 4)))
    assert merge_workdirs([tmp_path / "one", tmp_path / "two"], tmp_path / "all") == 1
    merged = tmp_path / "all/t/a/0"
    assert (merged / "metrics.jsonl").read_text() == (long / "metrics.jsonl").read_text()
    assert merge_workdirs([tmp_path / "one", tmp_path / "two"], tmp_path / "all") == 0  # again: all is there
    assert short.exists() and long.exists()


@pytest.mark.parametrize("change", [{"rate": 0.2}, {"loss": 2.0}])
def test_different_runs_are_refused_before_anything_is_copied(tmp_path, change):
    write_run(tmp_path / "one", 3)
    write_run(tmp_path / "two", 3, **change)
    (tmp_path / "one/t/b").mkdir()
    shutil.copytree(tmp_path / "one/t/a/0", tmp_path / "one/t/b/0")
    what = "config" if "rate" in change else "log"
    with pytest.raises(UserError, match=rf"one/t/a/0 and .*two/t/a/0 are the same run with a different {what}"):
        merge_workdirs([tmp_path / "one", tmp_path / "two"], tmp_path / "all")
    assert not (tmp_path / "all").exists()


def test_a_shorter_run_at_the_target_stays(tmp_path):
    write_run(tmp_path / "one", 3)
    kept = write_run(tmp_path / "all", 2)
    with pytest.raises(UserError, match="all/t/a/0 is behind .*one/t/a/0: move it away"):
        merge_workdirs([tmp_path / "one"], tmp_path / "all")
    assert len((kept / "metrics.jsonl").read_text().splitlines()) == 2


def test_what_is_trained_just_now_is_refused(tmp_path):
    import fcntl

    run = write_run(tmp_path / "one", 3)
    with (run.parents[1] / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="one/t is in use by another process"):
            merge_workdirs([tmp_path / "one"], tmp_path / "all")
