"""What of a table runs, is left, fails or is refused: decided without training."""

import json
import os
import re
import shutil
import signal
import types

import jax
import numpy as np
import pytest

from attention_jax.config.config import config_to_json
from attention_jax.data.fingerprint import DATA
from attention_jax.errors import UserError
from attention_jax.tables import dry_run, publish, runner
from attention_jax.tables.runner import run_table
from attention_jax.tables.table import load_table
from attention_jax.tasks import classification
from attention_jax.tasks.base import pack_fingerprints
from attention_jax.tasks.resolve import resolve_config
from attention_jax.train.loop import TrainingResult
from tests.helpers.small_table import ROWS, call, write_table
from tests.tables.test_tables import records

# --- what decides who runs, without training ------------------------------------------------------------------------------


@pytest.fixture
def fake(monkeypatch):
    """Runs that "train" by writing what a finished run leaves; `fake.fail` and `fake.stop` are sets of (row, seed)."""
    state = types.SimpleNamespace(trained=[], fail=set(), stop=set(), kill=set())

    def build(resolved):
        return types.SimpleNamespace(config=resolved.config, mesh=types.SimpleNamespace(devices=np.array(jax.devices())))

    def train(config, path, program, progress, code, peak):
        key = (path.parent.name, config.seed)
        state.trained.append(key)
        path.mkdir(parents=True, exist_ok=True)
        (path / "config.json").write_text(config_to_json(config))
        progress(2)
        if key in state.fail:
            raise ValueError("no luck")
        if key in state.kill:
            os.kill(os.getpid(), signal.SIGTERM)
        stopped = key in state.stop
        step = 2 if stopped else config.total_steps
        (path / "checkpoints" / str(step)).mkdir(parents=True, exist_ok=True)
        correct = np.random.default_rng(config.seed).random(599) < 0.9
        np.savez(path / "evaluation.npz", step=step, correct=correct)
        lines = [{"step": 1, "epoch": 0.1, "train/loss": 1.0}, {"step": step, "headline": 0.9}]
        (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        progress(step)
        return TrainingResult(step, stopped, path)

    monkeypatch.setattr(runner, "build_program", build)
    monkeypatch.setattr(runner, "train_model", train)
    monkeypatch.setattr(publish, "_png", lambda figure: b"")  # most of the time that these tests would take
    return state


def test_seeds_of_a_row_come_one_after_another_and_are_not_repeated(fake, tmp_path):
    file = write_table(tmp_path, ROWS)
    assert call(file, workdir=tmp_path / "w")[0] == 0
    assert fake.trained == [("a", 0), ("a", 1), ("b", 0), ("b", 1)]
    code, text = call(file, workdir=tmp_path / "w", seeds=3, rows=["a"])
    assert code == 0 and fake.trained[4:] == [("a", 2)]
    page = (tmp_path / "w" / f"{file.stem}.md").read_text()
    assert "(2 of 3 seeds)" in page and "--rows=a --seeds=3" in page and "seeds 0 to 2" in page


def test_the_page_has_the_threads_of_the_runs_and_not_of_whoever_renders_it(fake, tmp_path):
    file = write_table(tmp_path, ROWS)
    assert call(file, workdir=tmp_path / "w")[0] == 0
    for row, threads in (("a", 11), ("b", 7)):
        line = {"event": "first step dispatched", "seconds": 1.0, "since_call": 2.0, "threads": threads}
        (tmp_path / "w" / row / "0" / "timing.jsonl").write_text(json.dumps(line) + "\n")
    assert call(file, workdir=tmp_path / "w")[0] == 0
    assert "7 or 11 CPU threads a process." in (tmp_path / "w" / f"{file.stem}.md").read_text()


def test_one_failing_seed_leaves_the_others(fake, tmp_path):
    file = write_table(tmp_path, ROWS)
    fake.fail = {("a", 0)}
    code, text = call(file, workdir=tmp_path / "w")
    assert code == 1 and fake.trained == [("a", 0), ("a", 1), ("b", 0), ("b", 1)]
    assert "a, seed 0: ValueError: no luck" in text and "(1 of 2 seeds)" in text
    assert "(one seed)" in text
    assert records(tmp_path / "w" / f"{file.stem}.csv")["a"]["status"] == "partial"


def test_what_an_attempt_left_goes_when_the_run_is_done(fake, tmp_path):
    file, left = write_table(tmp_path, ROWS), tmp_path / "w" / "a" / "0" / "failure.txt"
    assert call(file, workdir=tmp_path / "w")[0] == 0
    left.write_text("of an attempt before\n")
    assert call(file, workdir=tmp_path / "w")[0] == 0 and not left.exists() and len(fake.trained) == 4


def test_a_second_table_in_a_workdir_is_refused_and_the_first_is_undisturbed(fake, tmp_path, monkeypatch):
    file, seen = write_table(tmp_path, ROWS), []
    train = runner.train_model

    def second(config, path, *more, **options):
        before = {path: path.read_bytes() for path in (tmp_path / "w").rglob("*") if path.is_file()}
        with pytest.raises(UserError, match=r"w is in use by another process: wait for it or give another folder"):
            run_table(file, workdir=tmp_path / "w", rerun_stale=True)
        assert call(file, workdir=tmp_path / "w", dry_run=True)[0] == 0
        seen.append(before == {path: path.read_bytes() for path in (tmp_path / "w").rglob("*") if path.is_file()})
        return train(config, path, *more, **options)

    monkeypatch.setattr(runner, "train_model", second)
    assert call(file, workdir=tmp_path / "w")[0] == 0 and seen == [True] * 4 and len(fake.trained) == 4


def test_a_row_whose_network_cannot_be_built_fails_alone(fake, tmp_path):
    file = write_table(tmp_path, '{"label": "a", "overrides": {"model.name": "resnet2O"}}, {"label": "b"}')
    assert call(file, workdir=tmp_path / "w", dry_run=True)[0] == 1
    assert call(file, workdir=tmp_path / "w", dry_run=True, rows=["b"])[0] == 0
    code, text = call(file, workdir=tmp_path / "w")
    assert code == 1 and fake.trained == [("b", 0), ("b", 1)]
    assert "a, seed 0: unknown model 'resnet2O'" in text
    _, text = call(file, workdir=tmp_path / "w", dry_run=True)
    assert "would fail (unknown model 'resnet2O'" in text


@pytest.mark.parametrize("how", ["stop", "kill"])  # during a run, which the loop reports, and behind its back
def test_a_signal_ends_the_table_with_0_or_the_code_that_a_launcher_wants(fake, tmp_path, how, monkeypatch):
    file = write_table(tmp_path, ROWS)
    setattr(fake, how, {("a", 1)})
    if how == "stop":
        monkeypatch.setenv("AJ_STOPPED_CODE", "75")
    code, text = call(file, workdir=tmp_path / "w")
    assert code == (75 if how == "stop" else 0) and fake.trained == [("a", 0), ("a", 1)]
    assert "the same command goes on" in text and "not run" in text
    setattr(fake, how, set())
    assert call(file, workdir=tmp_path / "w")[0] == 0
    assert fake.trained[2:] == ([("a", 1)] if how == "stop" else []) + [("b", 0), ("b", 1)]


def test_a_run_is_done_when_its_checkpoint_and_its_evaluation_are_there(fake, tmp_path):
    file = write_table(tmp_path, ROWS)
    call(file, workdir=tmp_path / "w")
    evaluation = tmp_path / "w/b/1/evaluation.npz"
    evaluation.write_bytes(evaluation.read_bytes()[:100])
    shutil.rmtree(tmp_path / "w/a/1/checkpoints")
    earlier = dict(np.load(tmp_path / "w/a/0/evaluation.npz"))
    np.savez(tmp_path / "w/a/0/evaluation.npz", **{**earlier, "step": 2})
    fake.trained.clear()
    assert call(file, workdir=tmp_path / "w")[0] == 0
    assert fake.trained == [("a", 0), ("a", 1), ("b", 1)]


def test_another_config_is_refused_with_the_difference(fake, tmp_path):
    call(write_table(tmp_path, ROWS), workdir=tmp_path / "w")
    changed = write_table(tmp_path, '{"label": "a"}, {"label": "b", "overrides": {"loss.label_smoothing": 0.2}}')
    with pytest.raises(UserError, match=r"row 'b', seed 0: .*loss.label_smoothing: saved 0.0, given 0.2"):
        run_table(changed, workdir=tmp_path / "w")
    assert call(changed, workdir=tmp_path / "w", rows=["a"])[0] == 0  # the row itself is not asked for, and not shown
    assert records(tmp_path / "w" / f"{changed.stem}.csv")["b"]["status"] == "not run"
    assert "belongs to another config" in call(changed, workdir=tmp_path / "w", dry_run=True)[1]


def test_rows_are_trained_twice_to_see_how_often_equals_seem_to_differ(fake, tmp_path):
    code, text = call(write_table(tmp_path, ROWS), workdir=tmp_path / "w", seeds=2, aa=True)
    assert code == 0 and fake.trained == [(row, seed) for row in "ab" for seed in range(6)]
    page = (tmp_path / "w" / "table0_aa.md").read_text()
    assert "% of 20 comparisons different at 5 %" in page and "has 6 seeds" in page and "--seeds=2 --aa` (scale tiny)" in page
    assert page.splitlines()[2] in text


def test_dry_run_shows_all_and_runs_nothing(fake, tmp_path):
    file = write_table(tmp_path, ROWS)
    call(file, workdir=tmp_path / "w", rows=["a"], seeds=1)
    fake.trained.clear()
    before = sorted(tmp_path.rglob("*"))
    code, text = call(file, workdir=tmp_path / "w", rows=["a"], dry_run=True)
    assert (code, fake.trained, sorted(tmp_path.rglob("*"))) == (0, [], before)
    assert f"seed 0: done: {tmp_path / 'w/a/0'}" in text
    assert f"seed 1: would run: {tmp_path / 'w/a/1'}" in text
    assert f"seed 1: not selected: {tmp_path / 'w/b/1'}" in text
    assert "b: 4 steps of 32 examples" in text and "ema.decay=0.9999" in text


def test_a_dry_run_estimates_time_and_chip_hours(fake, tmp_path, monkeypatch):
    """Without finished runs from a measured rate; from the row's own; from other rows' by multiply-adds."""
    monkeypatch.setattr(dry_run, "_measure_rate", lambda: 1e6)
    file = write_table(tmp_path, '{"label": "a"}, {"label": "b", "overrides": {"model.widths": (8, 16)}}')

    def rows(**options) -> list[tuple[int, str]]:
        """(multiply-adds an example, what is said of a run) of each row, and the lines at the end."""
        text = call(file, workdir=tmp_path / "w", dry_run=True, **options)[1]
        found = re.findall(r"parameters, ([\d,]+) multiply-adds an example; a run: about (.*)", text)
        return [(int(macs.replace(",", "")), said) for macs, said in found], text.partition("what is missing: about ")[2]

    (a, said_a), (b, _) = (found := rows())[0]
    assert (
        said_a
        == f"{3 * a * 32 * 4 / 1e6:.0f} s here, a rough guess by its multiply-adds and the rate of one convolution's gradient"
    )
    assert b > 2 * a
    call(file, workdir=tmp_path / "w", rows=["a"])
    for seed, seconds in ((0, 10), (1, 30)):
        (tmp_path / f"w/a/{seed}/timing.jsonl").write_text(f'{{"event": "call", "seconds": {seconds}}}\n')
    found, end = rows(topology="v4-16")
    hours = [2 * 3 * macs * 32 * 4 / (0.3 * 275e12) / 3600 for macs in (a, b)]
    assert found[0][1] == f"20 s here, as its finished runs took; about {hours[0]:.2g} chip-hours"
    assert found[1][1].startswith(f"{20 * b / a:.0f} s here, by its multiply-adds, from finished runs of other rows;")
    assert end.startswith(f"{2 * 20 * b / a:.0f} s here\n") or end.startswith(f"{2 * 20 * b / a / 60:.3g} min here\n")
    assert f"on v4-16: about {2 * hours[1]:.2g} chip-hours, {2 * hours[1] / 8:.2g} hours: an estimate" in end
    assert "30 % of a chip's 275 TFLOP/s" in end
    with pytest.raises(UserError, match="--slice=v9-1 is not a slice"):
        rows(topology="v9-1")
    with pytest.raises(UserError, match="--slice=v4-16: a slice is for --dry-run"):
        run_table(file, workdir=tmp_path / "w", topology="v4-16")


def test_the_rate_of_this_machine_is_a_number():
    assert 1e6 < dry_run._measure_rate() < 1e16


def test_rows_that_were_made_on_other_data_are_stale(fake, tmp_path, monkeypatch):
    """Their data are read once for all rows; what cannot be read, or an older run does not know, is unknown."""
    rng = np.random.default_rng(0)
    arrays = {f"x_{split}": rng.integers(0, 256, (70, 8, 8, 1), np.uint8) for split in ("train", "test")}
    arrays |= {f"y_{split}": np.arange(70) % 10 for split in ("train", "test")}
    np.savez(tmp_path / "set.npz", **arrays)
    overrides = {"data.source": "npz", "data.args.path": str(tmp_path / "set.npz")}
    rows = f'{{"label": "a", "overrides": {overrides}}}, {{"label": "b", "overrides": {overrides}, "pieces": ("ema",)}},'
    file, opened = write_table(tmp_path, rows), []

    def dry() -> str:
        return call(file, workdir=tmp_path / "w", dry_run=True)[1]

    assert call(file, workdir=tmp_path / "w")[0] == 0 and dry().count(": done: ") == 4
    for row in "ab":  # as training leaves it
        resolved = resolve_config(load_table(file).config(load_table(file).rows[0], "tiny"))
        (tmp_path / "w" / row / "0" / DATA).write_bytes(pack_fingerprints(resolved.task, resolved.config))
    assert dry().count(": done: ") == 4

    fingerprint = classification.fingerprint
    monkeypatch.setattr(classification, "fingerprint", lambda *key: opened.append(key[1]) or fingerprint(*key))
    arrays["x_test"][69] ^= 1
    np.savez(tmp_path / "set.npz", **arrays)
    said = dry()
    stale = "seed 0: done, stale: data changed (split 'test' has other contents); --rerun-stale trains it again: "
    assert [f"{stale}{tmp_path}/w/{row}/0" in said for row in "ab"] == [True, True] and said.count(": done: ") == 2
    assert opened == ["train", "test"]
    fake.trained.clear()
    assert "Stale: code or data have changed since" in call(file, workdir=tmp_path / "w")[1] and not fake.trained

    (tmp_path / "w" / "a" / "0" / DATA).write_bytes(b"{")
    assert dry().count("stale: ") == 1
    np.savez(tmp_path / "set.npz", **{name: array for name, array in arrays.items() if "test" not in name})
    assert dry().count(": done: ") == 4, "unknown"
    (tmp_path / "set.npz").unlink()
    assert dry().count("whether its data have changed: unknown") == 4


def test_computed_rows_stand_above_trained_ones(fake, tmp_path):
    rows = [{"label": "numpy", "function": "numpy:array_api"}]  # replaced below by a function of the file's own
    file = write_table(tmp_path, ROWS, computed=rows, pictures={"both": "numpy:hypot"})
    own = "_computed = lambda: {'size': 3}\n_seen = []\n_draw = lambda measured: _seen.append(list(measured))\n"
    text = file.read_text().replace("'numpy:array_api'", "_computed").replace("'numpy:hypot'", "_draw")
    file.write_text(own + text)
    code, text = call(file, workdir=tmp_path / "w")
    assert code == 0 and fake.trained == [("a", 0), ("a", 1), ("b", 0), ("b", 1)]
    assert "1 of 1 rows to compute; 2 of 2 rows x 2 seeds = 4 runs" in text and "numpy: computed in" in text
    page = (tmp_path / "w" / f"{file.stem}.md").read_text()
    assert 0 < page.index("| numpy | 3 |") < page.index("| a |") < page.index("Accuracy: mean")
    found = records(tmp_path / "w" / f"{file.stem}.csv")
    assert [(row, record["status"]) for row, record in found.items()] == [("numpy", "computed"), ("a", "done"), ("b", "done")]
    assert found["numpy"]["size"] == "3" and found["a"]["size"] == "" and float(found["a"]["accuracy"]) > 0.8
    dry = call(file, workdir=tmp_path / "w", rows=["a"], dry_run=True)[1]
    assert "numpy: not selected" in dry and "seed 0: done" in dry


def test_default_workdirs(fake, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = write_table(tmp_path, ROWS)
    assert call(file.name, output=tmp_path / "results", rows=["a"])[0] == 0
    assert (tmp_path / "runs" / file.stem / "a/0").is_dir()
    assert (tmp_path / "results" / f"{file.stem}.csv").exists() and not (
        tmp_path / "runs" / file.stem / f"{file.stem}.csv"
    ).exists()
    assert f"`./launch.sh table {file.name} --rows=a`" in (tmp_path / "results" / f"{file.stem}.md").read_text()
    assert f"runs/{file.stem}-other/a/0" in call(file.name, scale="other", dry_run=True)[1]


def test_a_workdir_that_is_a_file(fake, tmp_path):
    (tmp_path / "w").touch()
    with pytest.raises(UserError, match="cannot be made"):
        run_table(write_table(tmp_path, ROWS), workdir=tmp_path / "w")
