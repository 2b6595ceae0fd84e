"""`./launch.sh tpu`: with a substitute for gcloud that runs the workers here, and against gcloud's own help."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from attention_jax import tree
from attention_jax.launch import worker
from attention_jax.launch.gcloud import TpuSlice, parse_accelerator
from attention_jax.train import restore
from tests.conftest import ROOT, child_environment
from tests.helpers import fake_gcloud
from tests.helpers.small import as_options

pytestmark = pytest.mark.usefixtures("quickly")

# In place of the environment's Python on a worker: does what the last word of the command says.
PYTHON = f"""#!/usr/bin/env bash
[[ "$1 $2" == "-m attention_jax" ]] || exec {sys.executable} "$@"
exec {sys.executable} -u -c '
import json, os, signal, sys, time
print(json.dumps([sys.argv[1:], os.getcwd(), *map(os.environ.get, ("TOKEN", "AJ_PROCESS", "AJ_HOSTS"))]))
stopped = lambda number, frame: (print("saved"), sys.exit(0))
signal.signal(signal.SIGTERM, stopped)
last = sys.argv[-1]
if last == "--fail" and os.environ["AJ_PROCESS"] == "1":
    print("the cause"); sys.exit(2)
if last.startswith("--ends=") and os.environ["AJ_PROCESS"] == "1":  # how each start ends: an exit code, or a signal below 0
    ends = last[7:].split(",")
    count = os.path.join(os.environ["HOME"], "starts")
    open(count, "a").write("x")
    end = int(ends[min(os.path.getsize(count), len(ends)) - 1])
    if end < 0:
        os.kill(os.getpid(), -end)
    sys.exit(end)
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
    """The launcher on a machine where the substitute for gcloud comes first in PATH."""

    def __init__(self, folder: Path, python: str | None):
        self.folder = folder / "fleet"
        self.folder.mkdir()
        (folder / "bin").mkdir()
        gcloud = f'#!/usr/bin/env bash\nexec {sys.executable} {ROOT}/tests/helpers/fake_gcloud.py "$@"\n'
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
                "AJ_XLA_FLAGS": "off",  # the huge pages of this machine stay as they are
            }
        )
        self.env["PATH"] = f"{folder}/bin:{self.env['PATH']}"

    def start(self, action: str, *arguments: str, **env: str) -> subprocess.Popen:
        """Starts the launcher, without the check of configs: test_check.py has that."""
        unchecked = ["--no-check"] if action in ("create", "run", "watch") else []
        words = [ROOT / "launch.sh", "tpu", action, "pod", *WHERE, *unchecked, *arguments]
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

    def preempt(self) -> None:
        """Takes the slice away, as Google does one of spot machines."""
        (self.folder / "state").write_text("SUSPENDED")
        fake_gcloud.end(self.folder)

    def end(self) -> None:
        """Ends what a failing test has left."""
        fake_gcloud.end(self.folder)


@pytest.fixture
def fleet(tmp_path):
    fleet = Fleet(tmp_path, PYTHON)
    yield fleet
    fleet.end()


def wait_for(condition, what: str, seconds: float = 300, every: float = 0.1) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain until {what}"
        time.sleep(every)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_every_word_arrives_unchanged_and_secrets_only_when_named(fleet):
    secret = f"secret {os.getpid()}"
    command = ["--", "train", "--config=configs/quickstart.py", "--workdir=gs://bucket/x", *NASTY]
    code, stdout, stderr = fleet("watch", *CREATE, "--every=0.1", "--commit=HEAD", "--env=TOKEN", *command, TOKEN=secret)
    assert code == 0, stdout + stderr
    names = "pod worker 0,pod worker 1"
    for number in (0, 1):
        place = str(fleet.folder / f"worker-{number}" / "attention_jax" / "code")
        assert json.loads(fleet.log(number).splitlines()[0]) == [command[1:], place, secret, str(number), names]
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
    command = ["--", "train", "--workdir=gs://bucket/x", "--fail"]
    code, stdout, stderr = fleet("watch", *CREATE, "--every=0.1", "--commit=HEAD", *command)
    assert code == 1
    assert "worker 1 of 2 ended first, with exit code 2; stopping the others: an error of the user is not restarted" in stderr
    assert "restart 1" not in stderr and "pod is kept and costs until stop deletes it" in stderr
    assert "[worker 1] the cause\n" in stdout
    wait_for(lambda: "saved" in fleet.log(0), "the other worker had stopped")


def test_signals_runtime_errors_and_a_network_that_is_away_end_nothing(fleet):
    dns = "ERROR: gcloud crashed (TransportError): [Errno -3] Temporary failure in name resolution. Run: gcloud auth login"
    trouble = [(["queued-resources", "describe"], dns), (["create"], dns), (["tpu-vm", "describe"], dns), (["scp"], "reset")]
    (fleet.folder / "trouble").write_text("".join(json.dumps(line) + "\n" for line in trouble))
    command = ["--", "train", "--workdir=gs://bucket/x", "--ends=-9,1,0"]
    code, stdout, stderr = fleet("watch", *CREATE, "--every=0.1", "--commit=HEAD", "--delete-at-end", *command)
    assert code == 0, stdout + stderr
    assert stderr.count("Temporary failure in name resolution. Run: gcloud auth login); trying again in") == 3
    assert "the code was not sent; gcloud says: reset. Looking again" in stderr
    ended = "worker 1 of 2 ended first, with exit code"
    assert f"{ended} 137 (signal 9); stopping the others; restart 1 of 5 follows, from the last checkpoint" in stderr
    assert f"{ended} 1; stopping the others; restart 2 of 5 follows" in stderr and "restart 3" not in stderr
    assert "bill: 16 chips x 0.0 hours = 0.0 chip-hours so far" in stderr
    assert "pod is deleted, as --delete-at-end says" in stderr and not (fleet.folder / "state").exists()


@pytest.mark.slow
def test_a_run_is_started_looked_at_and_stopped(fleet):
    command = ["--commit=HEAD", "--", "train", "--workdir=gs://bucket/x", "--wait"]
    code, stdout, _ = fleet("create", *CREATE)
    assert code == 0 and "./launch.sh preflight --config=FILE --topology=v5e-16" in stdout
    code, stdout, stderr = fleet("run", *command)
    assert code == 0, stderr
    assert stdout.startswith("2 workers have started; this terminal may close.")
    wait_for(lambda: fleet.log(0) and fleet.log(1), "both workers ran")
    code, stdout, _ = fleet("status")
    assert code == 0 and "pod: ACTIVE\n  worker 0: running" in stdout and "  worker 1: running" in stdout
    assert "bill: 16 chips x " in stdout
    code, _, stderr = fleet("run", *command, "--other")
    assert code == 2 and "another run is going on this slice: end it first with stop --keep" in stderr
    code, stdout, _ = fleet("logs", "--worker=1")
    assert code == 0 and stdout.startswith("[worker 1] [[") and "--other" not in stdout
    code, stdout, stderr = fleet("stop", "--every=0.1")
    assert code == 0, stderr
    assert "worker 0: ended with exit code 0, stopped by a signal" in stdout and "pod is deleted." in stdout
    assert not (fleet.folder / "worker-0").exists()


@pytest.mark.slow
def test_a_dry_run_shows_every_command_and_contacts_nothing(fleet):
    command = ["--", "train", "--workdir=gs://bucket/x", *NASTY]
    shown = []
    for action, arguments in (("watch", [*CREATE, "--commit=HEAD", "--dry-run", *command]), ("stop", ["--dry-run"])):
        code, stdout, stderr = fleet(action, *arguments)
        assert code == 0, stderr
        shown += stdout.splitlines()
    assert not fleet.calls()
    assert any(line.startswith("./launch.sh preflight --config=FILE '--config.a=(0.5, ") for line in shown)
    fleet("watch", *CREATE, "--every=0.1", "--commit=HEAD", *command)
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
        (["run", "--", "trian"], "'trian' cannot run elsewhere"),
        (["run", "--", "preflight"], "preflight describes a slice that need not exist, on this machine: give"),
        (["run", "--commit=nowhere", "--", "train", "--workdir=/x"], "--commit=nowhere: there is no such commit."),
        (["run", "--commit=HEAD", "--", "train", "--config=new.py", "--workdir=/x"], "new.py is not in commit"),
        (
            ["run", "--commit=HEAD", "--env=NOT_HERE", "--", "train", "--workdir=/x"],
            "--env=NOT_HERE: this variable is not set here.",
        ),
        (["create"], "there is no slice pod yet: give its --type"),
        (["create", "--type=x9-8"], "--type=x9-8 is of no known family"),
        (["create", "--type=tpu7x-8"], "--type=tpu7x-8: the Cloud TPU API, which this launcher uses, serves v4 to v6e"),
        (["run", "--commit=HEAD", "--", "train", "--workdir=/x"], "pod is ABSENT, not ACTIVE"),
    ],
)
def test_mistakes(fleet, arguments, message):
    code, _, stderr = fleet(*arguments)
    assert code == 2
    assert stderr.startswith(f"error: tpu: {message}") and stderr.count("\n") == 1


def test_uv_on_a_worker_is_a_file_of_known_hash(monkeypatch, tmp_path):
    monkeypatch.setattr(worker, "TOOLS", tmp_path / "tools")
    assert worker._install_uv({"ATTENTION_JAX_PYTHON": sys.executable}) == []
    env = {"PATH": "/nowhere"}
    *words, file = worker._install_uv(env)
    assert words[1:4] == ["-m", "pip", "install"] and "--require-hashes" in words and words[-1] == "-r"
    assert re.fullmatch(r"uv==\d+\.\d+\.\d+( --hash=sha256:[0-9a-f]{64}){2}", Path(file).read_text())
    assert env["PATH"].startswith(f"{tmp_path}/tools/bin:")


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
    assert parse_accelerator(name) == expected


COMMANDS = [
    TpuSlice("pod", "z", "p", internal_ip=True).create("v5litepod-16", "image", spot=True, flags=["--network=x"]),
    TpuSlice("pod", "z", "p").describe(),
    TpuSlice("pod", "z", "p").describe_node(),
    TpuSlice("pod", "z", "p").delete(),
    TpuSlice("pod", "z", "p", internal_ip=True).send(Path("folder")),
    TpuSlice("pod", "z", "p", internal_ip=True).remote("ls"),
]


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: "-".join(command[3:5]))
def test_gcloud_knows_the_options(command):
    if not shutil.which("gcloud"):
        pytest.skip("gcloud is not installed here, whose help the options are compared with")
    printed = subprocess.run([*command[:5], "--help"], capture_output=True, text=True, check=True).stdout
    known = set(re.findall(r"--[a-z-]+", re.sub(r"\x1b\[[0-9;]*m|.\x08", "", printed)))
    assert {word.split("=")[0] for word in command[5:] if word.startswith("--")} <= known


@pytest.mark.slow
def test_two_workers_train_lose_their_slice_and_end_like_those_left_alone(tmp_path):
    fleet = Fleet(tmp_path, None)
    options = as_options(total_steps=72, evaluation__every_steps=72, checkpoint__every_steps=12, logging__every_steps=12)
    here = {"AJ_COORDINATOR": f"127.0.0.1:{free_port()}", "AJ_PROCESSES": "2", "JAX_PLATFORMS": "cpu"}
    run = tmp_path / "run"
    try:
        words = [*CREATE, "--every=0.5", "--commit=HEAD", "--", "train", *options, f"--workdir={run}"]
        watching = fleet.start("watch", *words, **here)
        wait_for(lambda: restore.list_steps(run) or watching.poll() is not None, "there was a checkpoint", every=0.02)
        fleet.preempt()
        stdout, stderr = watching.communicate(timeout=300)
    finally:
        fleet.end()
    assert watching.returncode == 0, stdout + stderr
    assert "pod is SUSPENDED" in stderr and len([call for call in fleet.calls() if "create" in call]) == 2
    assert "[worker 0] devices     2 process(es) x 1 cpu" in stdout and "[worker 0] done after step 72" in stdout
    starts = [json.loads(line)["step"] for line in (run / "timing.jsonl").open() if '"start"' in line]
    assert starts[0] == 0 and all(0 < step < 72 for step in starts[1:]) and len(starts) > 1

    alone = tmp_path / "alone"
    words = [
        sys.executable,
        "-m",
        "attention_jax.launch",
        "local",
        "--processes=2",
        "--",
        "train",
        *options,
        f"--workdir={alone}",
    ]
    subprocess.run(words, env=child_environment(), capture_output=True, check=True)
    assert (run / "metrics.jsonl").read_bytes() == (alone / "metrics.jsonl").read_bytes()
    ends = [tree.flatten_by_path(restore.read_newest(workdir)[0]) for workdir in (run, alone)]
    assert ends[0].keys() == ends[1].keys()
    assert all(ends[0][path].tobytes() == ends[1][path].tobytes() for path in ends[0])
