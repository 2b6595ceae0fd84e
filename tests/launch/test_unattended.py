"""What keeps a run on a slice going without anyone: calls that are tried again, lost workers, limits, one run a machine."""

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from attention_jax.errors import UserError
from attention_jax.launch import data_address, gcloud_calls, tpu_watch, worker
from attention_jax.launch.gcloud import TpuSlice, count_chips, parse_accelerator
from attention_jax.launch.tpu_job import SliceClient, Unreachable

DNS = (
    "Traceback (most recent call last):\nERROR: (gcloud.compute.tpus) There was a problem refreshing your auth tokens: "
    "Max retries exceeded (Caused by NameResolutionError: Temporary failure in name resolution)\nrun:\n$ gcloud auth login"
)
QUOTA = (
    "ERROR: (gcloud) RESOURCE_EXHAUSTED: Quota limit 'TPUV5sLitepodPerProjectPerZone' has been exceeded. Limit: 0 in zone z."
)


def answer(monkeypatch, *failures: str) -> list[float]:
    """Has gcloud fail with these messages, one after the other, and then succeed; returns the pauses that were made."""
    left, pauses = list(failures), []

    def run(command, **options):
        return (
            subprocess.CompletedProcess(command, 1, "", left.pop(0)) if left else subprocess.CompletedProcess(command, 0, "{}")
        )

    monkeypatch.setattr(gcloud_calls.subprocess, "run", run)
    monkeypatch.setattr(gcloud_calls.time, "sleep", pauses.append)
    return pauses


def test_a_network_that_is_away_is_waited_for(monkeypatch, capsys):
    pauses = answer(monkeypatch, *[DNS] * 12)
    assert gcloud_calls.call_gcloud(["gcloud"], patience=float("inf")) == "{}"
    assert pauses == [2, 4, 8, 16, 32, 64, 128, 256, 300, 300, 300, 300]
    assert "trying again in 300 s" in capsys.readouterr().err
    answer(monkeypatch, *[DNS] * 12)
    with pytest.raises(UserError, match=r"^gcloud failed 6 times: ERROR: .* run: \$ gcloud auth login$"):
        gcloud_calls.call_gcloud(["gcloud"], patience=40)


@pytest.mark.parametrize(
    "message",
    [
        "ERROR: (gcloud) UNAVAILABLE: The service is currently unavailable.",
        "ERROR: (gcloud) HTTPError 503: backend error",
        "ERROR: (gcloud) RESOURCE_EXHAUSTED: Quota exceeded for quota metric 'Requests' and limit 'Requests per minute'",
        "ERROR: gcloud crashed (ConnectionError): ('Connection aborted.', ConnectionResetError(104, 'reset by peer'))",
        "something that nobody has seen before",
    ],
)
def test_what_can_pass_is_tried_again(monkeypatch, message):
    assert answer(monkeypatch, message) == [] and gcloud_calls.call_gcloud(["gcloud"]) == "{}"


@pytest.mark.parametrize(
    "message",
    [
        QUOTA,
        "ERROR: (gcloud) PERMISSION_DENIED: Permission 'tpu.nodes.create' denied on 'projects/p/locations/z'",
        "ERROR: (gcloud) INVALID_ARGUMENT: Unknown zone us-nowhere1-a",
        "ERROR: (gcloud) NOT_FOUND: Location us-nowhere1-a not found",
        "ERROR: (gcloud) unrecognized arguments: --internal-ip",
        "ERROR: (gcloud.auth) Reauthentication failed. cannot prompt during non-interactive execution.",
    ],
)
def test_a_refusal_ends_at_once_with_its_sentence(monkeypatch, message):
    pauses = answer(monkeypatch, message)
    with pytest.raises(UserError) as caught:
        gcloud_calls.call_gcloud(["gcloud"], patience=float("inf"))
    assert str(caught.value) == f"gcloud failed: {message}" and not pauses


def test_what_is_not_there_is_no_failure(monkeypatch):
    pauses = answer(
        monkeypatch, "ERROR: (gcloud) NOT_FOUND: Resource 'projects/p/locations/us-west4-a/queuedResources/pod' was not found"
    )
    assert gcloud_calls.read_json(["gcloud"]) == {} and not pauses


class Client(SliceClient):
    """A slice whose states and workers' answers are a script; an answer that is None is none."""

    def __init__(self, states, answers, made_hours_ago=2.0):
        super().__init__(TpuSlice("pod", "z"))
        self.states, self.answers, self.calls = states, answers, []
        self.made = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() - 3600 * made_hours_ago))

    def call(self, command):
        self.calls.append(command[4])
        return ""

    def read_state(self):
        state = self.states.pop(0) if self.states else "ACTIVE"
        self.node = {"acceleratorType": "v5litepod-16", "createTime": self.made} if state == "ACTIVE" else {}
        return state

    def ask(self, command):
        self.calls.append(command.split()[-1])
        found = self.answers.pop(0) if self.answers else None
        if found is None:
            raise Unreachable("0 workers answered; gcloud says: nothing.")
        return [{"worker": number, "id": "x", "code": 0, "ended": number, **status} for number, status in enumerate(found)]

    def print_log(self, worker, part):
        pass


class Starts:
    """A job that only counts its starts."""

    command, commit, id = ("train",), "c" * 40, "x"

    def __init__(self, client):
        self.client, self.starts = client, 0

    def ask_status(self):
        return self.client.ask("status")

    def start(self, workers):
        self.starts += 1

    def print_news(self, statuses):
        pass


RUNNING, DONE, VANISHED = [{"state": "running"}] * 2, [{"state": "ended"}] * 2, [{"state": "ended"}, {"state": "vanished"}]
NONE = [{"state": "none", "id": None}] * 2


def watch(states, answers, hours_ago=2.0, **options) -> tuple[int, Client, Starts, tpu_watch.Watch]:
    client = Client(states, answers, hours_ago)
    defaults = {"every": 0.0, "max_restarts": 2, "max_hours": None, "delete_at_end": False}
    watching = tpu_watch.Watch(client, Starts(client), argparse.Namespace(**{**defaults, **options}), ["preflight"])
    return watching.run(["gcloud", "compute", "tpus", "queued-resources", "create"]), client, watching.job, watching


def test_a_worker_that_no_longer_answers_is_lost_and_the_slice_replaced(capsys):
    silent = [None] * tpu_watch.UNANSWERED
    states = ["ACTIVE"] * (2 + len(silent)) + ["ABSENT"]
    code, client, job, _ = watch(states, [NONE, RUNNING, *silent, NONE, RUNNING, DONE])
    assert (
        code == 0
        and job.starts == 2
        and [call for call in client.calls if call in ("create", "delete")] == ["delete", "create"]
    )
    said = capsys.readouterr().err
    assert "it is lost; restart 1 of 2 follows, from the last checkpoint" in said
    assert "bill: 16 chips x 2.0 hours = 32.0 chip-hours so far and 32.0 of slices before it" in said


def test_restarts_are_counted(capsys):
    lost = [VANISHED, DONE]  # the second answers the stop of the others
    code, _, job, _ = watch([], [NONE, RUNNING, *lost, RUNNING, *lost, RUNNING, *lost])
    assert code == 1 and job.starts == 3
    assert (
        "worker 1 of 2 has vanished: its host was restarted; stopping the others, and --max-restarts=2"
        in capsys.readouterr().err
    )


def test_a_failure_while_the_slice_goes_down_is_no_failure():
    failed = [{"state": "ended", "code": 134}, {"state": "running"}]
    states = ["ACTIVE", "ACTIVE", "ACTIVE", "SUSPENDED", "SUSPENDED", "ABSENT"]
    code, _, job, watching = watch(states, [NONE, RUNNING, failed, NONE, DONE], max_restarts=0)
    assert code == 0 and job.starts == 2 and watching.restarts == 0


@pytest.mark.parametrize(("delete", "fate"), [(False, "kept"), (True, "deleted")])
def test_a_limit_of_hours_stops_the_run_and_says_what_becomes_of_the_slice(capsys, delete, fate):
    code, client, _, _ = watch([], [RUNNING, DONE], hours_ago=24.1, max_hours=24, delete_at_end=delete)
    assert code == 1 and client.calls == ["stop", "status"] + ["delete"] * delete
    assert f"--max-hours=24 are over: stopping train, which saves first; the slice is {fate} then" in capsys.readouterr().err


def test_workers_that_hang_are_killed(monkeypatch, capsys):
    monkeypatch.setattr(SliceClient, "stop_run", lambda self, every: self.ask("stop"))
    code, client, _, _ = watch([], [NONE, RUNNING, VANISHED, RUNNING, DONE, RUNNING, DONE])
    assert code == 0 and "kill" in client.calls
    assert "workers have not ended within ten minutes: they are killed" in capsys.readouterr().err


# In place of launch.sh on a worker: writes its process number into the log of the run, and stays.
STAYS = f"""#!/bin/sh
[ "$1" = setup ] && exit 0
exec {sys.executable} -c 'import os, time; print(os.getpid(), flush=True); time.sleep(300)'
"""


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Starts a run on a worker whose home is a folder; returns the process numbers of its supervisor and of its training."""
    env = {**os.environ, "HOME": str(tmp_path), "AJ_PROCESS": "0", "ATTENTION_JAX_PYTHON": sys.executable}
    env["AJ_XLA_FLAGS"] = "off"  # the huge pages of this machine stay as they are
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "launch.sh").write_text(STAYS)
    (tmp_path / "source" / "launch.sh").chmod(0o755)
    home, groups = tmp_path / "attention_jax", []

    def start() -> tuple[int, int]:
        incoming = tmp_path / "attention_jax_incoming"
        incoming.mkdir()
        subprocess.run(["tar", "-czf", incoming / "code.tar.gz", "-C", tmp_path / "source", "."], check=True)
        (incoming / "worker.py").write_bytes(Path(worker.__file__).read_bytes())
        (incoming / "job.json").write_text(json.dumps({"id": "x", "command": ["train"], "env": {}, "hosts": ["a"]}))
        subprocess.run([sys.executable, incoming / "worker.py", "start"], env=env, check=True, capture_output=True)
        log, deadline = home / "run" / "log", time.monotonic() + 120
        while not log.read_text().endswith("\n"):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        groups.append(int((home / "run" / "pid").read_text()))
        return groups[-1], int(log.read_text())

    yield start
    for group in groups:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(group, signal.SIGKILL)


def wait_until_gone(pid: int) -> None:
    deadline = time.monotonic() + 60
    while (stat := Path(f"/proc/{pid}/stat")).exists() and stat.read_text().split()[2] != "Z":
        assert time.monotonic() < deadline, f"{pid} lives on"
        time.sleep(0.02)


def test_a_supervisor_takes_its_child_with_it(machine):
    supervisor, training = machine()
    os.kill(supervisor, signal.SIGKILL)
    wait_until_gone(training)


def test_a_start_refuses_while_a_run_goes_and_kills_what_one_has_left(machine, tmp_path, monkeypatch):
    supervisor, training = machine()
    assert machine() == (supervisor, training), "a second start does nothing"
    os.kill(supervisor, signal.SIGSTOP)  # so that its death does not reach the child before the next start does
    (tmp_path / "attention_jax" / "run" / "pid").write_text("0")  # as after a supervisor that has gone
    _, other = machine()
    wait_until_gone(training)
    assert Path(f"/proc/{other}").exists() and other != training


def test_an_address_of_data_is_read_before_anything_is_requested(monkeypatch, capsys):
    addresses = [("data.args.data_dir", "gs://bucket/data")]
    monkeypatch.setattr(data_address.shutil, "which", lambda name: f"/bin/{name}")
    answer(monkeypatch)
    data_address.check_addresses(addresses)
    for message in ("ERROR: (gcloud.storage.ls) gs://bucket not found: 404.", "ERROR: HTTPError 403: no permission to list."):
        answer(monkeypatch, message)
        with pytest.raises(
            UserError, match=r"^data.args.data_dir=gs://bucket/data cannot be read from here \((there is no|gcloud st)"
        ):
            data_address.check_addresses(addresses)
    data_address.check_addresses([("data.args.path", "s3://bucket/data")])
    assert "data.args.path=s3://bucket/data: not checked: gcloud reads" in capsys.readouterr().err


def test_chips_of_gcloud_s_types():
    for name, chips in (("v5e-16", 16), ("v4:2x2x4", 16), ("v5p-8", 4), ("v6e-1", 1)):
        assert count_chips(parse_accelerator(name)[0]) == chips
    assert count_chips("tpu7x-8") == 0 and count_chips("") == 0
