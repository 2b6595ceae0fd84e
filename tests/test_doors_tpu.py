"""`./launch.sh tpu`: with a stand-in for gcloud that runs the workers here, and against gcloud's own help."""

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from attention_jax.doors.gcloud import Slice, accelerator
from tests.conftest import ROOT, child_environment
from tests.small import as_options

# Stands for the environment's Python on a worker: does what the last word of the verb says.
PYTHON = f"""#!/usr/bin/env bash
[[ "$1 $2" == "-m attention_jax" ]] || exec {sys.executable} "$@"
exec {sys.executable} -u -c '
import json, os, signal, sys, time
print(json.dumps([sys.argv[1:], os.getcwd(), *map(os.environ.get, ("TOKEN", "AJ_PROCESS", "AJ_HOSTS"))]))
stopped = lambda number, frame: (print("saved"), sys.exit(0))
signal.signal(signal.SIGTERM, stopped)
last = sys.argv[-1]
if last == "--fail" and os.environ["AJ_PROCESS"] == "1":
    print("the cause"); sys.exit(3)
if last in ("--fail", "--wait"):
    time.sleep(60)
' "${{@:3}}"
"""
WHERE = ["--zone=us-central1-a", "--project=my-project"]
CREATE = ["--type=v5e-16", "--spot"]
NASTY = [
    "--config.a=(0.5, 'a b')",
    '--config.b="it\'s $HOME `id` \\ * [x] {y} ; & | # !"',
    "",
    "--config.c=one\ntwo",
    "--config.d=ü",
]


class Fleet:
    """The door on a machine where the stand-in comes first in PATH."""

    def __init__(self, folder: Path, python: str | None):
        self.folder = folder / "fleet"
        self.folder.mkdir()
        (folder / "bin").mkdir()
        gcloud = f'#!/usr/bin/env bash\nexec {sys.executable} {ROOT}/tests/stand_in_gcloud.py "$@"\n'
        python3 = f'#!/bin/sh\nexec {sys.executable} "$@"\n'
        for name, text in {"gcloud": gcloud, "python3": python3, "worker-python": python or python3}.items():
            (folder / "bin" / name).write_text(text)
            (folder / "bin" / name).chmod(0o755)
        self.env = child_environment(
            {
                "FLEET": str(self.folder),
                "XDG_CACHE_HOME": str(folder / "cache"),
                "ATTENTION_JAX_PYTHON": str(folder / "bin" / "worker-python"),
                "PYTHONPATH": None,
            }
        )
        self.env["PATH"] = f"{folder}/bin:{self.env['PATH']}"

    def start(self, action: str, *arguments: str, **env: str) -> subprocess.Popen:
        words = [ROOT / "launch.sh", "tpu", action, "pod", *WHERE, *arguments]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen(words, env={**self.env, **env}, stdin=subprocess.DEVNULL, **pipes)

    def __call__(self, action: str, *arguments: str, **env: str) -> tuple[int, str, str]:
        """(exit code, standard output, standard error)"""
        process = self.start(action, *arguments, **env)
        stdout, stderr = process.communicate(timeout=400)
        return process.returncode, stdout, stderr

    def calls(self) -> list[list[str]]:
        file = self.folder / "calls"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    def log(self, worker: int) -> str:
        file = self.folder / f"worker-{worker}" / "attention_jax" / "run" / "log"
        return file.read_text() if file.exists() else ""

    def end(self) -> None:
        """Ends what a failing test has left."""
        for pid in self.folder.glob("worker-*/attention_jax/run/pid"):
            with contextlib.suppress(ProcessLookupError, ValueError):
                os.killpg(int(pid.read_text()), signal.SIGKILL)


@pytest.fixture
def fleet(tmp_path):
    fleet = Fleet(tmp_path, PYTHON)
    yield fleet
    fleet.end()


def wait_for(condition, what: str, seconds: float = 300) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain until {what}"
        time.sleep(0.1)


def test_every_word_arrives_unchanged_and_secrets_only_when_named(fleet):
    secret = f"secret {os.getpid()}"
    verb = ["--", "train", "--config=configs/quickstart.py", "--workdir=gs://bucket/x", *NASTY]
    code, stdout, stderr = fleet("watch", *CREATE, "--every=0.1", "--commit=HEAD", "--env=TOKEN", *verb, TOKEN=secret)
    assert code == 0, stdout + stderr
    names = "pod worker 0,pod worker 1"
    for worker in (0, 1):
        place = str(fleet.folder / f"worker-{worker}" / "attention_jax" / "code")
        assert json.loads(fleet.log(worker).splitlines()[0]) == [verb[1:], place, secret, str(worker), names]
    assert secret not in (fleet.folder / "calls").read_text() + stderr
    left = [path for path in fleet.folder.rglob("*") if path.is_file() and path.name != "log"]
    assert not [path for path in left if secret.encode() in path.read_bytes()], "no file keeps the value"
    sent = {
        path.relative_to(fleet.folder / "worker-0/attention_jax/code")
        for path in left
        if "worker-0/attention_jax/code" in str(path)
    }
    tracked = subprocess.run(["git", "-C", ROOT, "ls-files"], capture_output=True, text=True, check=True).stdout.splitlines()
    assert {str(path) for path in sent if "__pycache__" not in str(path)} <= set(tracked)


def test_a_failing_worker_is_named_with_its_last_lines_and_the_rest_is_stopped(fleet):
    verb = ["--", "train", "--workdir=gs://bucket/x", "--fail"]
    code, stdout, stderr = fleet("watch", *CREATE, "--every=0.1", "--commit=HEAD", *verb)
    assert code == 1
    assert "worker 1 of 2 ended first, with exit code 3; stopping the others" in stderr
    assert "[worker 1] the cause\n" in stdout
    wait_for(lambda: "saved" in fleet.log(0), "the other worker had stopped")


def test_a_preempted_slice_is_made_anew_and_the_run_started_again(fleet):
    verb = ["--", "train", "--workdir=gs://bucket/x", "--wait"]
    watching = fleet.start("watch", *CREATE, "--every=0.1", "--commit=HEAD", *verb)
    wait_for(lambda: fleet.log(0) and fleet.log(1), "both workers ran")
    pids = [int(path.read_text()) for path in fleet.folder.glob("worker-*/attention_jax/run/pid")]
    (fleet.folder / "state").write_text("SUSPENDED")
    for pid in pids:
        os.killpg(pid, signal.SIGKILL)
    created = lambda: [call for call in fleet.calls() if "create" in call]  # noqa: E731
    wait_for(lambda: len(created()) == 2 and fleet.log(0) and fleet.log(1), "the workers ran again")
    code, stdout, _ = fleet("status")
    assert code == 0 and "pod: ACTIVE\n  worker 0: running" in stdout and "  worker 1: running" in stdout
    watching.terminate()
    watching.communicate()
    code, stdout, _ = fleet("logs", "--worker=1")
    assert code == 0 and stdout.startswith("[worker 1] [[")
    code, stdout, stderr = fleet("stop", "--every=0.1")
    assert code == 0, stderr
    assert "worker 0: ended with exit code 0, stopped by a signal" in stdout and "pod is deleted." in stdout
    assert not (fleet.folder / "worker-0").exists()


def test_a_dry_run_shows_every_command_and_contacts_nothing(fleet):
    verb = ["--", "train", "--workdir=gs://bucket/x", *NASTY]
    shown = []
    for action, arguments in (("watch", [*CREATE, "--commit=HEAD", "--dry-run", *verb]), ("stop", ["--dry-run"])):
        code, stdout, stderr = fleet(action, *arguments)
        assert code == 0, stderr
        shown += stdout.splitlines()
    assert not fleet.calls()
    assert any(line.startswith("./launch.sh preflight --config=FILE '--config.a=(0.5, ") for line in shown)
    fleet("watch", *CREATE, "--every=0.1", "--commit=HEAD", *verb)
    fleet("stop", "--every=0.1")
    read = "import json, sys; print(json.dumps(sys.argv[1:]))"
    words = [
        json.loads(
            subprocess.run(["bash", "-c", f"{sys.executable} -c '{read}' {line}"], capture_output=True, text=True).stdout
        )
        for line in shown
        if line.startswith("gcloud")
    ]
    for call in fleet.calls():
        call = [re.sub(r"log \d+ \d+$", "log 0 BYTES", word) for word in call]
        assert call in words, call


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "--", "train", "--workdir=runs/x"], "--workdir=runs/x would lie on each worker's own disk"),
        (["run", "--", "trian"], "'trian' is nothing to run elsewhere"),
        (["run", "--", "preflight"], "preflight describes a slice that need not be there, on the machine you sit at: give"),
        (["run", "--commit=nowhere", "--", "train", "--workdir=/x"], "--commit=nowhere: there is no such commit."),
        (["run", "--commit=HEAD", "--", "train", "--config=new.py", "--workdir=/x"], "new.py is not in commit"),
        (
            ["run", "--commit=HEAD", "--env=NOT_HERE", "--", "train", "--workdir=/x"],
            "--env=NOT_HERE: this variable is not set here.",
        ),
        (["create"], "there is no slice pod yet: give its --type"),
        (["create", "--type=v9-8"], "--type=v9-8 is of no known family"),
        (["run", "--commit=HEAD", "--", "train", "--workdir=/x"], "pod is ABSENT, not ACTIVE"),
    ],
)
def test_mistakes(fleet, arguments, message):
    code, _, stderr = fleet(*arguments)
    assert code == 2
    assert stderr.startswith(f"error: tpu: {message}") and stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("v5e-16", ("v5litepod-16", "v2-alpha-tpuv5-lite")),
        ("v5litepod-16", ("v5litepod-16", "v2-alpha-tpuv5-lite")),
        ("v5e:4x4", ("v5litepod-16", "v2-alpha-tpuv5-lite")),
        ("v4:2x2x4", ("v4-32", "tpu-ubuntu2204-base")),
        ("v5p-8", ("v5p-8", "v2-alpha-tpuv5")),
        ("v6e:4x4", ("v6e-16", "v2-alpha-tpuv6e")),
        ("tpu7x-8", ("tpu7x-8", None)),
    ],
)
def test_types(name, expected):
    assert accelerator(name) == expected


COMMANDS = [
    Slice("pod", "z", "p", internal_ip=True).create("v5litepod-16", "image", spot=True, flags=["--network=x"]),
    Slice("pod", "z", "p").describe(),
    Slice("pod", "z", "p").describe_node(),
    Slice("pod", "z", "p").delete(),
    Slice("pod", "z", "p", internal_ip=True).send(Path("folder")),
    Slice("pod", "z", "p", internal_ip=True).remote("ls"),
]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: "-".join(command[3:5]))
def test_gcloud_knows_the_options(command):
    if not shutil.which("gcloud"):
        pytest.skip("gcloud is not installed here, whose help the options are compared with")
    asked = subprocess.run([*command[:5], "--help"], capture_output=True, text=True, check=True).stdout
    known = set(re.findall(r"--[a-z-]+", re.sub(r"\x1b\[[0-9;]*m|.\x08", "", asked)))
    assert {word.split("=")[0] for word in command[5:] if word.startswith("--")} <= known


def test_two_workers_train_through_the_door(tmp_path):
    fleet = Fleet(tmp_path, None)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    here = {"AJ_COORDINATOR": f"127.0.0.1:{port}", "AJ_PROCESSES": "2", "JAX_PLATFORMS": "cpu"}
    options = as_options(total_steps=6, evaluation__every_steps=6, checkpoint__every_steps=3, logging__every_steps=3)
    verb = ["--", "train", *options, f"--workdir={tmp_path}/run"]
    try:
        code, stdout, stderr = fleet("watch", *CREATE, "--every=0.5", "--commit=HEAD", *verb, **here)
        assert code == 0, stdout + stderr
        assert "[worker 0] devices     2 process(es) x 1 cpu" in stdout
        assert "[worker 0] done after step 6" in stdout
    finally:
        fleet.end()
