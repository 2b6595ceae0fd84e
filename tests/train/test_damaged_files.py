"""Every file of a workdir may be damaged, lost, exchanged or removed: what happens then to the run."""

import json
import logging
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

import attention_jax as aj
from attention_jax.errors import UserError
from attention_jax.train import metrics, restore
from attention_jax.train.array_saver import ArraySaver
from attention_jax.train.loop import train_model
from attention_jax.train.program import build_program
from tests.helpers.small import small_config

pytestmark = pytest.mark.usefixtures("quickly")

CONFIG = small_config(total_steps=12, evaluation__every_steps=6, checkpoint__every_steps=6, logging__every_steps=2)


@pytest.fixture(scope="module")
def program():
    return build_program(CONFIG)


@pytest.fixture(scope="module")
def finished(program, tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    train_model(CONFIG, folder, program)
    return folder


@pytest.fixture
def run(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "run")


@pytest.fixture(scope="module")
def log(finished):
    content = (finished / "metrics.jsonl").read_bytes()
    assert [json.loads(line)["step"] for line in content.splitlines()] == [2, 4, 6, 6, 8, 10, 12, 12]
    return content


@pytest.fixture
def heard(caplog):
    caplog.set_level(logging.WARNING, "attention_jax")
    return caplog


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# A line -> what it becomes, and whether it can be told from a right one without the checkpoint's copy.
LINES = {
    "a character": lambda line: line.replace(b'"step"', b'step"'),
    "not UTF-8": lambda line: line.replace(b"epoch", b"ep\xffch"),
    "no step": lambda line: b'{"epoch": 0.1}',
    "a step in words": lambda line: line.replace(b'"step": 4', b'"step": "four"'),
    "a step out of order": lambda line: line.replace(b'"step": 4', b'"step": 900'),
    "not an object": lambda line: b"[4, 0.1]",
    "a list": lambda line: line.replace(b"{", b'{"other": [], ', 1),
    "brackets": lambda line: b"[" * 100_000,
    "another number": lambda line: line.replace(b'"epoch": 0.', b'"epoch": 7.'),
}


@pytest.mark.parametrize("kind", LINES)
def test_a_damaged_line_is_moved_aside_and_the_log_is_as_before(kind, program, run, log, heard):
    lines = log.splitlines()
    damaged = LINES[kind](lines[1])
    assert damaged != lines[1]
    (run / "metrics.jsonl").write_bytes(b"\n".join([lines[0], damaged, *lines[2:], b""]))
    before = contents(run)
    assert [json.dumps(line).encode() for line in aj.load_run(run).metrics] == lines  # the checkpoint has the right one
    assert metrics.read_log(run) == aj.load_run(run).metrics and contents(run) == before
    assert heard.text.count("1 damaged lines are left out; the log of checkpoint 12 replaces them") == 1
    train_model(CONFIG, run, program)
    assert (run / "metrics.jsonl").read_bytes() == log and (run / "metrics.jsonl.damaged").read_bytes() == damaged + b"\n"
    assert "1 damaged lines are moved to" in heard.text
    # A run of an older version has no copy.
    kept, aside = metrics.repair_log(b"\n".join([lines[0], damaged, *lines[2:], b""]), {"log": None, "step": 12}, 12)
    assert kept.splitlines() == [lines[0], *([damaged] if kind == "another number" else []), *lines[2:]]
    assert aside == ([] if kind == "another number" else [damaged])


@pytest.mark.parametrize("kind", ["deleted", "empty", "cut"])
def test_a_log_that_is_lost_or_cut_is_restored(kind, program, run, log, heard):
    path = run / "metrics.jsonl"
    path.unlink() if kind == "deleted" else path.write_bytes(log[:130] if kind == "cut" else b"")
    assert b"".join(json.dumps(line).encode() + b"\n" for line in aj.load_run(run).metrics) == log
    train_model(CONFIG, run, program)
    assert path.read_bytes() == log and not (run / "metrics.jsonl.damaged").exists()
    assert "was cut short or is missing: it is restored from checkpoint 12" in heard.text


class Killed(BaseException):
    pass


def kill(after):
    def progress(step):
        if step == after:
            raise Killed

    return progress


def test_a_run_that_goes_on_with_a_damaged_log_ends_like_one_left_alone(program, finished, log, tmp_path):
    with pytest.raises(Killed):
        train_model(CONFIG, tmp_path / "killed", program, kill(9))
    tmp_path = shutil.copytree(tmp_path / "killed", tmp_path / "run")  # the other one is still open
    lines = log.splitlines(keepends=True)
    (tmp_path / "metrics.jsonl").write_bytes(
        lines[0] + b"?\n" + b"".join(lines[3:5]) + lines[5][:20]
    )  # the last one by the kill
    train_model(CONFIG, tmp_path, program)
    assert (tmp_path / "metrics.jsonl").read_bytes() == log
    assert (tmp_path / "metrics.jsonl.damaged").read_bytes() == b"?\n"
    ours, theirs = (restore.read_newest(folder)[1]["checksums"] for folder in (tmp_path, finished))
    assert ours == theirs


def test_the_longest_ascending_lines_count():
    def steps(*numbers):
        kept, aside = metrics.repair_log(b"".join(b'{"step": %d}\n' % number for number in numbers), None)
        return [json.loads(line)["step"] for line in kept.splitlines()], len(aside)

    assert steps(2, 4, 4 + 2**30, 6, 1, 8) == ([2, 4, 6, 8], 2)
    assert steps(10**6, 2, 4, 6) == ([2, 4, 6], 1) and steps() == ([], 0)


def test_damaged_times_are_left_out(run, heard):
    times = (run / "timing.jsonl").read_bytes()
    (run / "timing.jsonl").write_bytes(b'[]\n{"event": 3}\n{"event": "call", "seconds": "long"}\n\xff\n' + times)
    assert metrics.read_timing(run / "timing.jsonl") == [json.loads(line) for line in times.splitlines()]
    assert "timing.jsonl: 4 damaged lines are left out" in heard.text


CONFIGS = {"empty": b"", "cut": b'{"batch_size": 3', "not UTF-8": b"\xff{}", "a list": b"[1, 2]", "deleted": None}


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_config_is_read_from_the_checkpoint_and_restored(kind, program, run, heard):
    path, content = run / "config.json", CONFIGS[kind]
    right = path.read_bytes()
    path.unlink() if content is None else path.write_bytes(content)
    before = contents(run)
    assert aj.load_run(run).config.batch_size == 32
    assert aj.train.workdir.read_config(run).batch_size == 32 and contents(run) == before
    assert "config.json is damaged or missing: the newest checkpoint's copy is read" in heard.text
    train_model(CONFIG, run, program)
    assert path.read_bytes() == right and "it is restored from the newest checkpoint" in heard.text
    kept = run / "config.json.damaged"
    assert kept.read_bytes() == content if content else not kept.exists()


def test_a_value_that_has_changed_in_a_config_is_damage_and_another_config_is_refused(program, run, heard):
    path = run / "config.json"
    right = path.read_bytes()
    path.write_bytes(right.replace(b'"batch_size": 32', b'"batch_size": 33'))
    with pytest.raises(UserError, match=r"belongs to another config \(ema.decay: saved 0.9, given 0.5\)"):
        train_model(small_config(**{**CHANGED, "ema__decay": 0.5}), run)
    path.unlink()  # any config was taken
    with pytest.raises(UserError, match="belongs to another config"):
        train_model(small_config(**{**CHANGED, "ema__decay": 0.5}), run)
    path.write_bytes(right.replace(b'"batch_size": 32', b'"batch_size": 33'))
    train_model(CONFIG, run, program)
    assert path.read_bytes() == right


CHANGED = dict(total_steps=12, evaluation__every_steps=6, checkpoint__every_steps=6, logging__every_steps=2)


@pytest.mark.parametrize("content", [b"", b'{"batch', b"5", b"\xff"])
def test_a_config_without_a_checkpoint_is_one_sentence_unless_nothing_was_logged(content, program, tmp_path):
    with pytest.raises(Killed):
        train_model(CONFIG, tmp_path / "killed", program, kill(3))
    tmp_path = shutil.copytree(tmp_path / "killed", tmp_path / "run")
    (tmp_path / "metrics.jsonl").write_text('{"step": 2}\n')
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(UserError, match=r"config.json is damaged, and no checkpoint has a copy: give another workdir.$"):
        train_model(CONFIG, tmp_path, program)
    (tmp_path / "metrics.jsonl").unlink()
    with pytest.raises(Killed):
        train_model(CONFIG, tmp_path, program, kill(1))


@pytest.mark.parametrize("name", ["config.json", "metrics.jsonl", "timing.jsonl", "data.json", ".lock", "evaluation.npz"])
def test_a_folder_in_the_place_of_a_file_is_one_sentence_and_nothing_is_lost(name, program, run):
    (run / name).unlink()
    (run / name).mkdir()
    (run / name / "inside").touch()
    if name == "data.json":
        (run / "data.json.partial").mkdir()
    before = {path: content for path, content in contents(run).items() if path.name != "timing.jsonl"}
    with pytest.raises(UserError, match=r"annot be read \(is a directory\)|could not be written \(|cannot be written to \("):
        train_model(CONFIG, run, program)
    assert before.items() <= contents(run).items()


@pytest.mark.parametrize("damage", [lambda data: b"", lambda data: data[:-9], lambda data: data[:60] + b"?" + data[61:]])
def test_outputs_of_the_evaluation_that_are_damaged_are_made_again(damage, program, run, finished, log):
    path = run / "evaluation.npz"
    path.write_bytes(damage(path.read_bytes()))
    train_model(CONFIG, run, program)
    with np.load(path) as ours, np.load(finished / "evaluation.npz") as theirs:
        assert ours.files == theirs.files and all((ours[name] == theirs[name]).all() for name in ours.files)
    assert (run / "metrics.jsonl").read_bytes() == log


def exchange(run):
    folder = run / "checkpoints"
    for old, new in (("6", "x"), ("12", "6"), ("x", "12")):
        (folder / old).rename(folder / new)


def test_exchanged_checkpoints_are_seen_and_put_back(program, run, log, heard):
    before = {name: contents(run / "checkpoints" / name) for name in ("6", "12")}
    exchange(run)
    with pytest.raises(UserError, match=r"no checkpoint here is complete \(damaged: 12\)"):
        restore.read_newest(run / "checkpoints" / "12")
    assert "12 is damaged (it is the checkpoint of step 6)" in heard.text
    assert train_model(CONFIG, run, program).first_step is None, "no step was left to take"
    assert "checkpoints/12 is the checkpoint of step 6: it is renamed" in heard.text
    assert before == {name: contents(run / "checkpoints" / name) for name in ("6", "12")}
    assert (run / "metrics.jsonl").read_bytes() == log


def test_a_copy_under_the_name_of_another_step_is_moved_aside(program, run, log):
    shutil.rmtree(run / "checkpoints" / "12")
    shutil.copytree(run / "checkpoints" / "6", run / "checkpoints" / "12")
    assert train_model(CONFIG, run, program).first_step is not None, "it goes on from step 6"
    assert (run / "checkpoints_damaged" / "12-0").is_dir() and (run / "metrics.jsonl").read_bytes() == log


@pytest.mark.parametrize(("how", "after"), [("removed", 6), ("renamed", 3), ("renamed and begun anew", 11)])  # 6: in a save
def test_a_workdir_that_goes_away_is_said_and_no_part_of_it_is_made_again(how, after, program, tmp_path):
    run, steps = tmp_path / "run", []

    def go_away(step):
        steps.append(step)
        if step == after:
            while how == "removed" and run.exists():  # a save may write just now
                shutil.rmtree(run, ignore_errors=True)
            if how != "removed":
                run.rename(tmp_path / "elsewhere")
            if how == "renamed and begun anew":
                run.mkdir()
                for name in (".lock", "metrics.jsonl"):
                    (run / name).write_text("of another run")

    with pytest.raises(UserError, match="was removed, renamed or replaced: training has stopped and wrote nothing there since"):
        train_model(CONFIG, run, program, go_away)
    assert steps[-1] <= after + 2  # an interval of the log
    if how != "renamed and begun anew":
        assert not run.exists()
    else:
        assert {path.name: path.read_text() for path in run.iterdir() if path.is_file()} == {
            ".lock": "of another run",
            "metrics.jsonl": "of another run",
        }
    if how == "renamed":
        (tmp_path / "elsewhere").rename(run)
        assert train_model(CONFIG, run, program).step == 12


def test_a_save_that_ends_after_the_removal_makes_no_checkpoint(program, tmp_path, monkeypatch):
    run, save = tmp_path / "run", ArraySaver.save

    def save_late(self, folder, state, complete):
        def remove_and_complete():
            shutil.rmtree(run)
            (Path(folder) / "state").mkdir(parents=True)  # as TensorStore does for what it still writes
            complete()

        save(self, folder, state, remove_and_complete)

    monkeypatch.setattr(ArraySaver, "save", save_late)
    with pytest.raises(UserError, match="was removed, renamed or replaced"):
        train_model(CONFIG, run, program)
    assert not run.exists()


def test_the_lock_alone_may_be_removed(program, tmp_path, log):
    train_model(CONFIG, tmp_path, program, lambda step: (tmp_path / ".lock").unlink(missing_ok=True))
    assert (tmp_path / "metrics.jsonl").read_bytes() == log


def test_a_run_that_ends_well_has_no_failure(program, run):
    (run / "failure.txt").write_text("of an attempt before")
    train_model(CONFIG, run, program)
    assert not (run / "failure.txt").exists()


def test_names_that_tensorstore_would_write_otherwise_are_one_sentence(program, tmp_path, run_python):
    module, place = "attention_jax.train.restore", tmp_path / "실험"
    code = f"import sys; from pathlib import Path; import {module} as r; r.refuse_undecodable(Path(sys.argv[1]))"
    ascii_names = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = run_python("-c", code, place, env=ascii_names)
    assert "UserError" in done.stderr and "where names of files are in ascii: set PYTHONUTF8=1" in done.stderr
    assert train_model(CONFIG, place, program).step == 12 and aj.load_run(place).step == 12
    with pytest.raises(UserError, match="checkpoints cannot be kept in a folder of this name"):
        train_model(CONFIG, tmp_path / os.fsdecode(b"\xff"), program)
