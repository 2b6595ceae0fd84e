"""What a run says and keeps when something around it fails; `experiments/reliability/` tries more."""

import json
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from attention_jax.distributed.cluster import ProcessInfo
from attention_jax.distributed.rendezvous import wait_for_processes
from attention_jax.errors import UserError
from attention_jax.launch import local
from attention_jax.train import restore, stalls
from attention_jax.train.checkpoint import Checkpoints
from attention_jax.train.loop import train_model
from tests.conftest import child_environment, without_root
from tests.helpers.small import as_options, small_config

pytestmark = pytest.mark.usefixtures("quickly")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def call_roll(address: str, who: list[int], count: int, seconds: float, hosts=()) -> list[str]:
    """What each of the processes `who`, here threads, is told; "" when all have come."""
    told = {}

    def one(place: int) -> None:
        try:
            told[place] = wait_for_processes(ProcessInfo(address, who[place], count, tuple(hosts)), seconds) or ""
        except UserError as error:
            told[place] = str(error)

    threads = [threading.Thread(target=one, args=(place,)) for place in range(len(who))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [told[place] for place in range(len(who))]


def test_roll_is_called_and_its_port_free_again():
    address = f"localhost:{free_port()}"
    for _ in range(2):
        assert call_roll(address, [2, 0, 1], 3, 60) == ["", "", ""]


def test_every_process_that_came_is_told_who_did_not():
    for said in call_roll(f"localhost:{free_port()}", [0, 2], 4, 1, hosts=["a", "b", "c", "d"]):
        assert said.startswith("2 of 4 processes did not start within 1 s: 1 on b, 3 on d (started: 0 on ")


def test_process_0_that_is_missing_is_named():
    (said,) = call_roll(address := f"localhost:{free_port()}", [1], 2, 0.5)
    assert f"did not reach process 0 at {address} within 0.5 s (Connection refused)" in said


def test_what_else_talks_to_the_port_is_not_counted():
    port, told = free_port(), []
    roll = threading.Thread(target=lambda: told.extend(call_roll(f"localhost:{port}", [0, 1], 3, 2)))
    roll.start()
    for line in (b"GET / HTTP/1.1\r\n\r\n", b'{"word": "other", "process": 2, "host": "x", "pid": 1}\n'):
        while roll.is_alive():
            try:
                with socket.create_connection(("localhost", port), timeout=5) as stranger:
                    stranger.sendall(line)
                break
            except ConnectionRefusedError:  # process 0 does not listen yet
                time.sleep(0.01)
    roll.join()
    assert len(told) == 2 and all("1 of 3 processes did not start within 2 s: 2 (started" in said for said in told)


def test_start_that_waits_in_vain_ends_with_one_sentence(run_cli, tmp_path):
    alone = {
        "AJ_COORDINATOR": f"127.0.0.1:{free_port()}",
        "AJ_PROCESSES": "2",
        "AJ_PROCESS": "0",
        "AJ_START_SECONDS": "1",
        "AJ_HOSTS": "a,b",
    }
    done = run_cli("train", *as_options(), f"--workdir={tmp_path}", env=alone)
    assert done.returncode == 2
    assert done.stderr.startswith("error: 1 of 2 processes did not start within 1 s: 1 on b (started: 0 on ")
    assert done.stderr.count("\n") == 1


def test_launcher_names_the_cause_and_not_whom_the_runtime_aborted():
    def ended(code):
        return SimpleNamespace(returncode=code, poll=lambda: code)

    assert local._first_failed([ended(-signal.SIGABRT), ended(None), ended(-signal.SIGKILL)]) == 2
    assert local._first_failed([ended(0), ended(-signal.SIGABRT)]) == 1
    assert local._first_failed([ended(0), ended(None)]) is None


class Heard(logging.Handler):
    """Knows when something has been said that contains a text."""

    def __init__(self, text: str):
        super().__init__()
        self.text, self.said = text, threading.Event()

    def emit(self, record: logging.LogRecord) -> None:
        if self.text in record.getMessage():
            self.said.set()


@pytest.mark.slow
def test_stalled_input_is_said_and_training_goes_on(tmp_path, monkeypatch):
    heard = Heard("waiting for data since")
    monkeypatch.setattr(stalls, "DATA_SECONDS", 0.05)
    monkeypatch.setattr(stalls.Stalls.__init__, "__defaults__", (0.02, lambda kind, seconds: None))
    from attention_jax.data.loader import Loader

    batch = Loader.training_batch

    def stalled(self, step):
        if step == 7:  # the disk answers only when somebody has complained
            assert heard.said.wait(60)
        return batch(self, step)

    monkeypatch.setattr(Loader, "training_batch", stalled)
    logging.getLogger("attention_jax").addHandler(heard)
    try:
        assert train_model(small_config(total_steps=12), tmp_path).step == 12
    finally:
        logging.getLogger("attention_jax").removeHandler(heard)
    assert heard.said.is_set()
    assert any('"waited for data"' in line for line in (tmp_path / "timing.jsonl").open())


def test_save_that_failed_is_said_at_the_next_step(tmp_path, monkeypatch):
    steps = []
    check = Checkpoints.check

    def failing(self):
        if steps and steps[-1] >= 7:  # the save of step 6 has failed in the background; the next one would be at 12
            monkeypatch.setattr(self.saver, "check", lambda: (_ for _ in ()).throw(OSError(30, "Read-only")))
        check(self)

    monkeypatch.setattr(Checkpoints, "check", failing)
    with pytest.raises(UserError, match=r"could not be written .*Read-only.*the last good one is kept"):
        train_model(small_config(), tmp_path, progress=steps.append)
    assert steps[-1] == 7


READ_ONLY = """
cd "$0"
"$@" & training=$!
while [ -z "$(ls run/checkpoints 2>/dev/null | grep -x '[0-9]*')" ]; do sleep 0.1; done
mount --bind run/checkpoints run/checkpoints || exit 77
for trial in $(seq 200); do  # it fails while a file is being written there
  mount -o remount,bind,ro run/checkpoints 2>/dev/null && break
  sleep 0.05
done
wait $training; echo "first: $?"
umount run/checkpoints
"$@"; echo "second: $?"
"""


@pytest.mark.slow
def test_workdir_that_becomes_read_only_and_the_same_command_afterwards(tmp_path):
    unshare = shutil.which("unshare")
    if not unshare or subprocess.run([unshare, "-rm", "mount", "--bind", tmp_path, tmp_path], check=False).returncode:
        pytest.skip("this account may not mount a folder to make it read-only")
    options = as_options(total_steps=800, evaluation__every_steps=800, checkpoint__every_steps=50)
    train = [sys.executable, "-m", "attention_jax", "train", *options, "--workdir=run"]
    done = subprocess.run(
        [unshare, "-rm", "sh", "-c", READ_ONLY, tmp_path, *train],
        env=child_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert "first: 2" in done.stdout and "second: 0" in done.stdout, done.stdout + done.stderr
    assert "a checkpoint could not be written" in done.stderr and "Read-only file system" in done.stderr
    assert "Traceback" not in done.stderr
    log = [json.loads(line)["step"] for line in (tmp_path / "run" / "metrics.jsonl").open()]
    assert sorted(set(log)) == list(range(4, 801, 4)) and len(log) == 201  # each line once, and the evaluation's


@pytest.mark.slow
def test_run_whose_checkpoints_cannot_be_read_stops_and_goes_on_when_they_can(tmp_path):
    config, options = small_config(total_steps=12), [*as_options(total_steps=12), f"--workdir={tmp_path / 'run'}"]
    train_model(config, tmp_path / "run")
    arrays = sorted((tmp_path / "run" / "checkpoints").glob("*/state/manifest.ocdbt"))
    (metrics := tmp_path / "run" / "metrics.jsonl").open("a").write('{"step": 13, "train/loss": 1.0}\n')  # of a killed call
    names, log = sorted(tmp_path.rglob("*")), metrics.read_bytes()
    for path in arrays:
        path.chmod(0)
    for arguments in (["train", *options], ["evaluate", options[-1]]):
        command = [*without_root(), sys.executable, "-m", "attention_jax", *arguments]
        done = subprocess.run(command, env=child_environment(), capture_output=True, text=True, check=False)
        assert done.returncode == 2, done.stderr
        assert f"error: checkpoint 12 cannot be read (permission denied): {arrays[0]}: nothing was changed" in done.stderr
        assert "Traceback" not in done.stderr and "damaged" not in done.stderr
    assert sorted(tmp_path.rglob("*")) == names and metrics.read_bytes() == log
    for path in arrays:
        path.chmod(0o644)
    assert train_model(config, tmp_path / "run").first_step is None, "no step was left to take"
    assert metrics.read_bytes() == log[: log.index(b'{"step": 13')]


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


class Launched:
    """Two processes of one device each, and what they said."""

    def __init__(self, *options: str):
        command = [sys.executable, "-m", "attention_jax.launch", "local", "--processes=2", "--", "train", *options]
        self.launcher = subprocess.Popen(
            command, env=child_environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    def signal_one(self, index: int, number: int, when) -> str:
        """Sends a signal to one process when `when()` holds; returns what was said to the end."""
        deadline = time.monotonic() + 240
        while not when() and self.launcher.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        if self.launcher.poll() is None:
            os.kill(children(self.launcher.pid)[index], number)
        said, _ = self.launcher.communicate(timeout=120)
        return said


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds the processes in Linux's /proc")
def test_one_of_two_processes_is_killed_then_one_is_asked_to_stop_then_one_process_goes_on(run_cli, tmp_path):
    options = [
        *as_options(total_steps=400, evaluation__every_steps=400, checkpoint__every_steps=40, logging__every_steps=1),
        f"--workdir={tmp_path}",
    ]
    killed = Launched(*options)
    said = killed.signal_one(1, signal.SIGKILL, lambda: restore.list_steps(tmp_path))
    assert killed.launcher.returncode == 128 + signal.SIGKILL, said
    assert f"local: process 1 of 2 on {socket.gethostname()} was ended by SIGKILL" in said
    before = restore.list_steps(tmp_path)
    assert before

    asked = Launched(*options)
    said = asked.signal_one(1, signal.SIGTERM, lambda: restore.list_steps(tmp_path)[-1] > before[-1])
    assert asked.launcher.returncode == 0, said
    stopped = restore.list_steps(tmp_path)[-1]  # both at the same step: a save takes the two of them
    assert f"stopped after step {stopped} and saved" in said and before[-1] < stopped < 400

    done = run_cli("train", *options, env={"JAX_NUM_CPU_DEVICES": "2"})
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").open()]
    assert [line["step"] for line in lines if "train/loss" in line] == list(range(1, 401))


# The second process is asked to stop when it makes a batch of an evaluation, whose others then come no faster than JAX's
# preemption service looks for a signal, which is each second.
ASKED_IN_AN_EVALUATION = """
import os, signal, sys, time
from attention_jax.cli import main as cli
from attention_jax.data.loader import Loader

batch = Loader.evaluation_batch

def slow(self, number):
    if number == 5 and os.environ["AJ_PROCESS"] == "1":
        os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(0.1 if number > 5 else 0)
    return batch(self, number)

Loader.evaluation_batch = slow
sys.exit(cli.main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_one_of_two_is_asked_to_stop_in_an_evaluation_which_both_leave_and_do_again(run_cli, tmp_path):
    fields = {"total_steps": 6, "evaluation__every_steps": 6, "evaluation__batch_size": 4, "logging__every_steps": 1}
    options = [*as_options(**fields), f"--workdir={tmp_path}"]
    joined = {"AJ_COORDINATOR": f"127.0.0.1:{free_port()}", "AJ_PROCESSES": "2"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    words = [sys.executable, "-c", ASKED_IN_AN_EVALUATION, "train", *options]
    both = [subprocess.Popen(words, env=child_environment({**joined, "AJ_PROCESS": str(i)}), **pipes) for i in (0, 1)]
    said = [process.communicate(timeout=240)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert "stopped after step 6 and saved" in said[0]
    assert restore.list_steps(tmp_path)[-1] == 6 and not (tmp_path / "evaluation.npz").exists()

    def lines() -> list[dict]:
        return [json.loads(line) for line in (tmp_path / "metrics.jsonl").open()]

    before = lines()
    assert [line["step"] for line in before] == list(range(1, 7)) and not any("headline" in line for line in before)
    done = run_cli("train", *options, env={"JAX_NUM_CPU_DEVICES": "2"})
    assert done.returncode == 0, done.stderr
    assert lines()[:-1] == before and "headline" in lines()[-1] and (tmp_path / "evaluation.npz").exists()
