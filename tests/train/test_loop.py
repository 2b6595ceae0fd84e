"""What one training run leaves behind."""

import dataclasses
import json
import os
import shutil
import signal
import time
import weakref

import numpy as np
import pytest

import attention_jax as aj
from attention_jax.config import override
from attention_jax.data.loader import Loader
from attention_jax.errors import UserError
from attention_jax.tables.results import SeedRun
from attention_jax.tasks.resolve import resolve_config
from attention_jax.train import loop, report, restore
from attention_jax.train.checkpoint import Checkpoints
from attention_jax.train.early_stop import RECORD, find_early_stop
from attention_jax.train.loop import replace_seed, train_model
from attention_jax.train.program import build_program
from attention_jax.train.workdir import EVALUATION, lock_workdir, read_config
from tests.helpers.small import small_config

CONFIG = small_config(logging__tensorboard=True, profile__first_step=3, profile__num_steps=2)


@pytest.fixture(scope="module")
def program():
    return build_program(CONFIG)


@pytest.fixture(scope="module")
def finished(program, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    steps = []
    result = train_model(CONFIG, folder, program, steps.append)
    assert (result.step, result.stopped) == (36, False)
    assert steps == list(range(1, 37))
    return folder


def lines(folder, name="metrics.jsonl"):
    return [json.loads(line) for line in (folder / name).open()]


@pytest.mark.slow
def test_a_run_is_extended_on_purpose(tmp_path, caplog):
    def use(extend=False, **fields):
        with lock_workdir(tmp_path, small_config(**fields), extend=extend):
            return read_config(tmp_path).total_steps

    with pytest.raises(UserError, match=r"--extend: workdir=.* has no run: leave --extend out"):
        use(extend=True)
    assert use() == 36
    (tmp_path / "metrics.jsonl").write_text("{}\n")
    with pytest.raises(UserError, match=r"another config \(total_steps: saved 36, given 72\): give --extend, another workdir"):
        use(total_steps=72)
    changes = ({"total_steps": 72, "seed": 1}, {"total_steps": 35}, {"total_epochs": 99.0}, {"seed": 1})
    for fields in changes:
        with pytest.raises(UserError, match="can be given a larger total, in the unit that it has, and nothing else"):
            use(extend=True, **fields)
    assert use(extend=True, total_steps=72) == 72 and "is extended: total_steps: saved 36, given 72;" in caplog.text
    assert use(extend=True, total_steps=72) == use(total_steps=72) == 72, "the same command, or one without it, resumes"
    with pytest.raises(UserError, match="another config"):
        use()


def test_log_has_each_interval_and_each_evaluation_once(finished):
    log = lines(finished)
    assert [line["step"] for line in log if "train/loss" in line] == list(range(4, 37, 4))
    assert [line["step"] for line in log if "headline" in line] == [12, 24, 36]
    assert [line["step"] for line in log] == sorted(line["step"] for line in log)
    for line in log:
        if "headline" in line:  # both weights are evaluated; the average is what counts
            assert {"eval/accuracy", "eval/loss", "eval_ema/accuracy", "eval_ema/loss"} < line.keys()
            assert line["headline"] == line["eval_ema/accuracy"]
        else:
            assert {"train/loss", "train/accuracy", "train/grad_norm", "train/learning_rate", "epoch"} < line.keys()
    assert log[0]["epoch"] == pytest.approx(4 / 37)


def test_wall_clock_is_kept_apart(finished):
    assert not any("second" in name for line in lines(finished) for name in line)
    assert {"first step dispatched", "training", "evaluation", "save"} <= {
        line["event"] for line in lines(finished, "timing.jsonl")
    }
    first = next(line for line in lines(finished, "timing.jsonl") if line["event"] == "first step dispatched")
    assert 0 < first["seconds"] < first["since_call"]


@pytest.mark.slow
def test_logged_training_metrics_are_means_of_the_steps(program, tmp_path):
    every = train_with(tmp_path / "every", program, logging__every_steps=1)
    fourth = train_with(tmp_path / "fourth", program, logging__every_steps=4)
    loss = [line["train/loss"] for line in every if "train/loss" in line]
    means = [line["train/loss"] for line in fourth if "train/loss" in line]
    np.testing.assert_allclose(means, np.reshape(loss, (-1, 4)).mean(1), rtol=1e-6)


def train_with(folder, program, **fields):
    config = small_config(**fields)
    train_model(config, folder, build_program(config, program.mesh))
    return lines(folder)


def test_outputs_of_the_last_evaluation_are_those_of_its_accuracy(finished):
    with np.load(finished / EVALUATION) as outputs:
        assert outputs["step"] == 36
        assert outputs["correct"].shape == (599,)
        assert outputs["correct"].mean() == lines(finished)[-1]["headline"]


def test_checkpoints_kept_are_the_last_two_and_the_best(finished):
    scores = {line["step"]: line["headline"] for line in lines(finished) if "headline" in line}
    best = max(scores, key=lambda step: (scores[step], -step))
    assert restore.list_steps(finished) == sorted({30, 36, best})


def test_tensorboard_is_the_log(finished):
    from tensorboardX.proto.event_pb2 import Event

    (path,) = (finished / "tensorboard").iterdir()
    data, seen = path.read_bytes(), []
    while data:  # records: length, its checksum, event, its checksum
        size = int.from_bytes(data[:8], "little")
        event = Event.FromString(data[12 : 12 + size])
        seen += [(event.step, value.tag, np.float32(value.simple_value)) for value in event.summary.value]
        data = data[16 + size :]
    logged = [
        (line["step"], name, np.float32(value)) for line in lines(finished) for name, value in line.items() if name != "step"
    ]
    assert sorted(seen) == sorted(logged)


def test_profile_of_the_window_is_there(finished):
    assert list((finished / "profile").rglob("*.xplane.pb"))


def test_seed_changes_the_run_and_only_the_seed_does(program, finished, tmp_path):
    for name, seed in (("same", 0), ("other", 1)):
        train_model(replace_seed(CONFIG, seed), tmp_path / name, program)
    assert lines(tmp_path / "same") == lines(finished)
    assert lines(tmp_path / "other")[0]["train/loss"] != lines(finished)[0]["train/loss"]


def test_stop_in_an_evaluation_saves_and_the_evaluation_follows(program, finished, tmp_path, monkeypatch):
    evaluation = Loader.evaluation

    def stopped_at_the_second_batch(self):
        for number, batch in enumerate(evaluation(self)):
            if number == 1:
                os.kill(os.getpid(), signal.SIGTERM)
            yield batch

    with monkeypatch.context() as patch:
        patch.setattr(Loader, "evaluation", stopped_at_the_second_batch)
        for _ in range(2):  # also where the run begins with the evaluation that it owes
            result = train_model(CONFIG, tmp_path, program)
            assert result.stopped and result.step == 12
    assert restore.list_steps(tmp_path)[-1] == 12 and not any("headline" in line for line in lines(tmp_path))
    assert not train_model(CONFIG, tmp_path, program).stopped
    assert lines(tmp_path) == lines(finished)


def test_an_extension_that_is_killed_and_stopped_ends_like_one_left_alone(program, tmp_path):
    """Bitwise, log included: from 22 steps, an end within an interval, to 36."""
    short = dataclasses.replace(program, resolved=resolve_config(override(CONFIG, {"total_steps": 22})))
    alone, stopped = tmp_path / "alone", tmp_path / "stopped"
    train_model(short.config, alone, short)
    shutil.copytree(alone, stopped)
    train_model(CONFIG, alone, program, extend=True)

    def fail(step):
        if step == 29:
            while restore.list_steps(stopped)[-1] < 24:  # a kill ends a save in the background too, an exception does not
                time.sleep(0.01)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_model(CONFIG, stopped, program, fail, extend=True)
    stop = lambda step: step == 33 and os.kill(os.getpid(), signal.SIGTERM)  # noqa: E731
    result = train_model(CONFIG, stopped, program, stop, extend=True)
    assert result.stopped and 33 <= result.step < 36
    assert train_model(CONFIG, stopped, program).step == 36
    ends = [(restore.read_newest(folder)[1]["checksums"], lines(folder)) for folder in (alone, stopped)]
    assert ends[0] == ends[1] and [line["step"] for line in ends[0][1] if "headline" in line] == [12, 22, 24, 36]


@pytest.mark.parametrize("ignored", [False, True])
def test_hanging_up_saves_unless_it_is_ignored_as_under_nohup(program, finished, tmp_path, ignored):
    def hang_up(step):
        if step == 9:
            os.kill(os.getpid(), signal.SIGHUP)

    before = signal.signal(signal.SIGHUP, signal.SIG_IGN if ignored else signal.SIG_DFL)
    try:
        result = train_model(CONFIG, tmp_path, program, hang_up)
        assert signal.getsignal(signal.SIGHUP) == (signal.SIG_IGN if ignored else signal.SIG_DFL)
    finally:
        signal.signal(signal.SIGHUP, before)
    assert (result.stopped, result.step) == ((False, 36) if ignored else (True, 10))
    assert not train_model(CONFIG, tmp_path, program).stopped
    assert lines(tmp_path) == lines(finished)


def test_damaged_newest_checkpoint_costs_steps_and_nothing_else(program, finished, tmp_path, caplog):
    train_model(CONFIG, tmp_path, program)
    for path in (tmp_path / "checkpoints" / "36" / "state" / "d").iterdir():
        path.write_bytes(path.read_bytes()[:-1])
    with caplog.at_level("WARNING", "attention_jax"):
        train_model(CONFIG, tmp_path, program)
    assert "checkpoint 36 is damaged" in caplog.text
    assert lines(tmp_path) == lines(finished)
    ours, theirs = (restore.read_newest(folder)[1]["checksums"] for folder in (tmp_path, finished))
    assert ours == theirs


def test_workdir_has_one_writer(program, tmp_path):
    with lock_workdir(tmp_path, program.config), pytest.raises(UserError, match="in use by another process"):
        train_model(CONFIG, tmp_path, program)


def test_ema_and_raw_weights_are_both_loaded(finished):
    ema, raw = aj.load_run(finished), aj.load_run(finished, weights="params")
    assert (ema.weights, raw.weights) == ("ema", "params")
    leaves = [run.variables["batch_stats"]["stem_norm"]["mean"] for run in (ema, raw)]
    assert not np.array_equal(*leaves)


def test_what_evaluation_lacks_is_said_before_the_first_step_and_the_corrected_command_follows(tmp_path):
    steps = []
    late = small_config(data__eval_split="tests")
    with pytest.raises(UserError, match=r"split 'tests'"):
        train_model(late, tmp_path, progress=steps.append)
    assert not steps and (tmp_path / "config.json").exists()
    other = small_config(total_steps=4, schedule__warmup_steps=1, evaluation__every_steps=4, checkpoint__every_steps=4)
    assert train_model(other, tmp_path, progress=steps.append).step == 4
    saved = (tmp_path / "config.json").read_bytes()
    with pytest.raises(UserError, match=r"belongs to another config"):  # now something is saved
        train_model(late, tmp_path)
    assert (tmp_path / "config.json").read_bytes() == saved and len(steps) == 4


def test_seeds_of_a_row_open_their_evaluation_once(program, tmp_path, monkeypatch):
    calls, evaluation = [], Loader.evaluation
    monkeypatch.setattr(loop, "_OPENED", weakref.WeakSet())
    monkeypatch.setattr(Loader, "evaluation", lambda self: calls.append(1) or evaluation(self))
    for seed in (0, 1):
        train_model(replace_seed(CONFIG, seed), tmp_path / str(seed), program)
        calls.append(0)
    first = calls.index(0)
    assert calls[first + 1 :] == calls[1 : first + 1]  # one less: that before the first step


# Early stopping


SCORES = {2: 0.5, 4: 0.7, 6: 0.7, 8: 0.6, 10: 0.9}
PATIENT = small_config(
    data__eval_split="validation",
    evaluation__every_steps=2,
    evaluation__patience=2,
    checkpoint__every_steps=3,
)


@pytest.mark.parametrize(
    ("patience", "lower", "expected"),
    [(0, False, None), (1, False, (6, 4)), (2, False, (8, 4)), (3, False, None), (2, True, (6, 2)), (3, True, (8, 2))],
)
def test_equal_scores_are_no_better(patience, lower, expected):
    assert find_early_stop(SCORES, patience, lower) == expected


def test_scores_that_are_not_finite_are_no_better():
    assert find_early_stop({1: float("nan"), 2: 0.1, 3: float("inf"), 4: float("nan")}, 2) == (4, 2)


@pytest.fixture
def patient(program):
    """The program of this file with another config, compiled already."""
    return dataclasses.replace(program, resolved=resolve_config(PATIENT))


@pytest.fixture
def train(patient, monkeypatch):
    """`train(folder, progress)` trains with the scores above; nothing is evaluated."""

    def evaluate(program, variables, config, stop, watch, loader):
        return {"accuracy": SCORES[now[0]]}, {"correct": np.ones(3, np.float32)}

    now = [0]
    monkeypatch.setattr(loop, "evaluate_model", evaluate)
    monkeypatch.setattr(loop._Run, "open_evaluation", lambda self: None)
    whole = loop._Run.evaluate
    monkeypatch.setattr(loop._Run, "evaluate", lambda self: (now.__setitem__(0, self.step), whole(self)))
    return lambda folder, progress=lambda step: None: train_model(PATIENT, folder, patient, progress)


def test_stops_where_a_run_that_was_killed_stops(patient, train, tmp_path, monkeypatch):
    result = train(tmp_path / "alone")
    assert (result.step, result.stopped) == (8, False) and restore.list_steps(tmp_path / "alone")[-1] == 8
    log = (tmp_path / "alone" / "metrics.jsonl").read_bytes()
    (said,) = [line[RECORD] for line in map(json.loads, log.splitlines()) if RECORD in line]
    assert said == result.early_stop and "accuracy on split 'validation' was not better than 0.7 at step 4 for 2" in said
    assert "the schedule has not ended: the rate was" in said and f"stopped early: {said}" in report.describe_outcome(result)
    again = train(tmp_path / "alone")
    assert (again.step, again.early_stop, again.first_step) == (8, said, None), "no step is left"

    def kill(step):
        if step == 5:
            wait_for_checkpoint(tmp_path / "killed", 3)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "killed", kill)
    save = Checkpoints.save

    def fail(self, state, *rest):
        self.wait()
        return 1 / (int(state.step) != 8) and save(self, state, *rest)

    monkeypatch.setattr(Checkpoints, "save", fail)
    with pytest.raises(ZeroDivisionError):  # after the last evaluation, before its checkpoint
        train(tmp_path / "killed")
    monkeypatch.setattr(Checkpoints, "save", save)
    assert restore.list_steps(tmp_path / "killed")[-1] == 6
    assert train(tmp_path / "killed").step == 8 and (tmp_path / "killed" / "metrics.jsonl").read_bytes() == log

    run = SeedRun(0, tmp_path / "alone", 36)
    assert (run.total_steps, run.stopped_early, run.correct.tolist()) == (8, True, [1.0, 1.0, 1.0])
    assert "early stop" in report.describe_run(patient, {})


def wait_for_checkpoint(folder, step):
    while step not in restore.list_steps(folder):
        time.sleep(0.01)


def test_a_test_split_ends_nothing(tmp_path):
    with pytest.raises(UserError, match="ends training by the scores on split 'test': choose on examples that judge nothing"):
        train_model(small_config(evaluation__patience=1), tmp_path)
