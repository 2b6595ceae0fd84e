"""Trackers mirror the log, and whatever they do, the run goes on."""

import sys
import threading
import types

import pytest

from attention_jax.train import trackers
from attention_jax.train.metrics import Log
from tests.helpers.small import small_config

FAILING = {"init": "raises on init", "log": "raises on log", "finish": "hangs at finish"}


def fake_wandb(fails: str, release: threading.Event) -> types.SimpleNamespace:
    """A module with wandb's interface that keeps what it gets, and fails in one place."""

    def act(place):
        if place == fails and place == "finish":
            release.wait(20)
        elif place == fails:
            raise {"init": KeyboardInterrupt}.get(place, RuntimeError)(f"no network in {place}")

    class Run:
        def log(self, values, step):
            act("log")
            module.lines.append((step, values))

        def finish(self):
            act("finish")
            module.finished = True

    def init(**options):
        act("init")
        module.options = options
        return Run()

    module = types.SimpleNamespace(init=init, lines=[], options=None, finished=False)
    return module


def write(folder, monkeypatch, fails="", patience=None) -> types.SimpleNamespace:
    """Writes two lines of a log and a time with a tracker beside."""
    release = threading.Event()
    monkeypatch.setitem(sys.modules, "wandb", module := fake_wandb(fails, release))
    config = small_config(logging__trackers=("wandb", "tensorboard"))
    (tracker,) = trackers.start_trackers(config, folder, active=True)
    log = Log(folder, tensorboard=False, mirrors=(tracker,))
    log.start(0)
    log.write(4, {"train/loss": 0.5})
    log.time({"event": "training", "step": 4, "examples_per_second": 10.0})
    log.time({"event": "start", "step": 4, "devices": 1})
    log.write(8, {"eval/accuracy": 0.25, "headline": 0.25})
    tracker.close(patience)
    log.close()
    release.set()
    assert (folder / "metrics.jsonl").read_text().count("\n") == 2, "the log has everything"
    return module


def test_a_tracker_gets_the_log_and_the_config(tmp_path, monkeypatch):
    seed = tmp_path / "table" / "row" / "3"
    seed.mkdir(parents=True)
    module = write(seed, monkeypatch)
    right = [(4, {"train/loss": 0.5}), (4, {"time/examples_per_second": 10.0}), (8, {"eval/accuracy": 0.25, "headline": 0.25})]
    assert module.lines == right and module.finished
    options = module.options
    assert (options["name"], options["group"], options["resume"]) == ("row/3", "table", "allow")
    assert options["config"]["optimizer.momentum"] == 0.9 and options["config"]["model.widths"] == "(4, 8)"
    (seed / "metrics.jsonl").unlink()
    assert write(seed, monkeypatch).options["id"] == options["id"], "a resumed run goes on there"
    assert trackers.start_trackers(small_config(logging__trackers=("wandb",)), seed, active=False) == []


@pytest.mark.parametrize("fails", FAILING, ids=FAILING.values())
def test_a_failing_tracker_costs_a_warning(fails, tmp_path, monkeypatch, caplog):
    module = write(tmp_path, monkeypatch, fails, patience=0.3)
    assert not module.finished or fails == "finish"
    (warning,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert ("did not end in time" if fails == "finish" else f"no network in {fails}") in warning


def test_a_missing_tracker_is_named(tmp_path, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "wandb", None)
    (tracker,) = trackers.start_trackers(small_config(logging__trackers=("wandb",)), tmp_path, active=True)
    tracker.close()
    assert "pip install wandb" in caplog.text
    caplog.clear()

    def init(**options):
        raise ImportError("cannot import name 'Hub' from 'hub'")  # a package that the tracker needs has another version

    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init))
    (tracker,) = trackers.start_trackers(small_config(logging__trackers=("wandb",)), tmp_path, active=True)
    tracker.close()
    assert "cannot import name 'Hub'" in caplog.text and "pip install" not in caplog.text


def test_a_table_is_a_run_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", module := fake_wandb("", threading.Event()))
    trackers.track_table(
        small_config(logging__trackers=("wandb",)), tmp_path / "bam", {"none": 90.0, "bam": 91.0}, "no difference"
    )
    assert module.lines == [(0, {"table/none": 90.0, "table/bam": 91.0, "verdict": "no difference"})]
    assert module.options["name"] == "bam" and module.finished


def test_runs_of_one_name_in_two_folders_are_two_in_trackio(tmp_path, monkeypatch):
    names = []
    for folder in ("a/mine", "b/mine", "a/mine"):
        monkeypatch.setitem(sys.modules, "trackio", module := fake_wandb("", threading.Event()))
        (tracker,) = trackers.start_trackers(small_config(logging__trackers=("trackio",)), tmp_path / folder, active=True)
        tracker.close()
        names.append(module.options["name"])
        assert "id" not in module.options and names[-1].startswith("mine-")
    assert names[0] == names[2] != names[1]
