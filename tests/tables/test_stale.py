"""A row whose code has changed since says so, and is trained again on request; nothing is lost."""

import json
import shutil
from pathlib import Path

import pytest

import attention_jax as aj
from attention_jax.config.code import read_code
from attention_jax.tables.runner import run_table
from attention_jax.train import restore
from tests.helpers.gcs import empty_server
from tests.helpers.small_table import SMALL, call, write_table

GATE = "import flax.linen as nn\n\n\nclass Gate(nn.Module):\n    def __call__(self, x):\n        return x * 2\n"
ROWS = "{'label': 'without'}, {'label': 'gated', 'overrides': {'model.gate': 'my_gate.py:Gate'}, 'pieces': ()},"


def write(folder: Path, gate: str = GATE) -> Path:
    """A table file and its gate; every folder is new, as a process reads a file once."""
    folder.mkdir()
    (folder / "my_gate.py").write_text(gate)
    scale = {"seeds": 1, "overrides": {**SMALL, "model.stage_sizes": (1,), "model.widths": (4,), "total_steps": 2}}
    return write_table(folder, ROWS, scales={"tiny": scale})


@pytest.fixture(scope="module")
def done(tmp_path_factory) -> Path:
    """A table's workdir, `runs`, and the user's state."""
    folder = tmp_path_factory.mktemp("stale")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(folder / "state"))
        file = write(folder / "first")
        patch.chdir(folder / "first")
        assert call(file, workdir=folder / "runs")[0] == 0
    return folder


@pytest.fixture
def workdir(done, tmp_path, monkeypatch) -> Path:
    """A copy of it, and another version of the gate in the folder where the user works."""
    monkeypatch.setenv("XDG_STATE_HOME", str(done / "state"))
    write(tmp_path / "now", GATE.replace("* 2", "* 3"))
    monkeypatch.chdir(tmp_path / "now")
    return shutil.copytree(done / "runs", tmp_path / "runs")


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_comment_is_no_change(workdir, tmp_path, monkeypatch):
    file = write(tmp_path / "comment", "# A gate.\n" + GATE)
    monkeypatch.chdir(file.parent)
    assert "stale" not in call(file, workdir=workdir, dry_run=True)[1]


def test_a_finished_row_says_that_it_is_stale(workdir, tmp_path):
    before = content(workdir / "gated")
    said = call("table0.py", workdir=workdir, dry_run=True)[1]
    assert f"seed 0: done, stale: its code has changed since; --rerun-stale trains it again: {workdir}/gated/0" in said
    assert said.count("stale:") == 1
    code, said = call("table0.py", workdir=workdir)
    assert code == 0 and "2 of them done; 0 steps to go" in said
    note = "Stale: code or data have changed since these rows were trained (--rerun-stale trains them again): gated."
    assert note in said and note in (workdir / "table0.md").read_text()
    assert content(workdir / "gated") == before


def test_it_is_trained_again_on_request(workdir):
    before = content(workdir / "gated" / "0")
    code, said = call("table0.py", workdir=workdir, rerun_stale=True)
    assert code == 0 and "1 of them done; 2 steps to go" in said and "Stale" not in said
    assert content(workdir / "gated" / "0-stale-0") == before, "nothing is lost"
    assert content(workdir / "gated" / "0")["code.json"] != before["code.json"]
    assert sorted(path.name for path in (workdir / "without").iterdir()) == ["0"]
    assert call("table0.py", workdir=workdir, rerun_stale=True)[1].count("2 of them done") == 1
    assert (
        aj.load_run(workdir / "gated" / "0-stale-0").config.model.gate != aj.load_run(workdir / "gated" / "0").config.model.gate
    )


def test_data_are_looked_at_as_code_is(workdir):
    run = workdir / "without" / "0"
    assert json.loads((run / "data.json").read_text()) == {
        "train": {"fingerprint": "digits 1"},
        "test": {"fingerprint": "digits 1"},
    }
    (run / "data.json").write_text('{"test": {"fingerprint": "digits 0"}}')
    (run / "evaluation.npz").unlink()
    with pytest.raises(
        aj.UserError, match=r"was begun with other data: .*\ndata changed \(split 'test' has other fingerprint\)"
    ):
        run_table("table0.py", workdir=workdir, rows=["without"])
    assert call("table0.py", workdir=workdir, rows=["without"], rerun_stale=True)[0] == 0
    assert "digits 1" in (run / "data.json").read_text() and (workdir / "without" / "0-stale-0" / "data.json").exists()


def test_an_unfinished_run_is_refused_with_the_difference(workdir, tmp_path):
    (workdir / "gated" / "0" / "evaluation.npz").unlink()
    assert "seed 0: begun, stale: its code has changed since" in call("table0.py", workdir=workdir, dry_run=True)[1]
    with pytest.raises(
        aj.UserError,
        match=r"row 'gated', seed 0: .* was begun with other code: give --rerun-stale(.|\n)*\+        return x \* 3",
    ):
        run_table("table0.py", workdir=workdir)
    assert call("table0.py", workdir=workdir, rows=["without"])[0] == 0, "other rows go on"
    assert call("table0.py", workdir=workdir, rerun_stale=True)[0] == 0


def test_a_remote_one_too(done, workdir, tmp_path):
    server, uri = empty_server(), "gs://bucket/runs"

    def there(run: str) -> dict[str, bytes]:
        start = f"bucket/runs/{run}/"
        return {name.removeprefix(start): each.content for name, each in server.objects.items() if name.startswith(start)}

    for path in (done / "runs" / "gated" / "0", done / "runs" / "without" / "0"):
        shutil.rmtree(workdir / path.relative_to(done / "runs"))
    for path in workdir.rglob("*"):
        if path.is_file():
            server.put(f"bucket/runs/{path.relative_to(workdir)}", path.read_bytes())
    file = write(tmp_path / "remote")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AJ_STAGING", str(tmp_path / "staging"))
        patch.chdir(file.parent)
        assert call(file, workdir=uri, output=tmp_path / "out")[0] == 0
        before = there("gated/0")
        assert "code.json" in before
        patch.chdir(tmp_path / "now")
        assert "done, stale" in call("table0.py", workdir=uri, dry_run=True)[1]
        assert call("table0.py", workdir=uri, output=tmp_path / "out", rerun_stale=True)[0] == 0
    assert there("gated/0-stale-0") == before
    assert there("gated/0")["code.json"] != before["code.json"]


def test_a_run_keeps_the_files_of_its_table(done):
    code = read_code(restore.read_newest(done / "runs" / "without" / "0")[1]["assets"]["code.json"])
    assert code.folders == () and "table0.py" in code.others[0].files
