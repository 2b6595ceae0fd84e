"""launch.sh local: several processes, with a package of the same name in place of the library's commands."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.launch.test_launch import wait_for

# --- local: a package of the same name replaces the library's commands ------------------------------------------------

COMMANDS = """
import os, pathlib, signal, sys, time
index, count, folder = int(os.environ["AJ_PROCESS"]), int(os.environ["AJ_PROCESSES"]), pathlib.Path(os.environ["FOLDER"])
def stop(*_):
    (folder / f"{index}.stopped").touch()
    sys.exit(int(os.environ.get("AT_TERM", "0")))
signal.signal(signal.SIGTERM, stop)
(folder / f"{index}.pid").write_text(str(os.getpid()))  # from here on it listens
print("process", index, "of", os.environ["AJ_PROCESSES"], os.environ["JAX_PLATFORMS"], os.environ["XLA_FLAGS"], *sys.argv[1:])
sys.stdout.flush()
if sys.argv[1] in ("fail", "die") and index == 1:
    while len(list(folder.glob("*.pid"))) < count:
        time.sleep(0.01)
    if sys.argv[1] == "fail":
        sys.exit(3)
    os.kill(os.getpid(), signal.SIGKILL)
if sys.argv[1] != "end":
    time.sleep(60)
"""


class Local:
    """`python -m attention_jax.launch local`, whose children run COMMANDS in place of the library."""

    def __init__(self, root: Path, folder: Path):
        self.folder = folder
        package = folder / "attention_jax"
        package.mkdir()
        (package / "__init__.py").write_text("")
        (package / "__main__.py").write_text(COMMANDS)
        shutil.copy(root / "attention_jax" / "errors.py", package)
        shutil.copytree(root / "attention_jax" / "launch", package / "launch")

    def start(self, *arguments: str, **env: str) -> subprocess.Popen:
        return subprocess.Popen(
            [sys.executable, "-m", "attention_jax.launch", "local", *arguments],
            cwd=self.folder,
            env={**os.environ, "PYTHONPATH": str(self.folder), "FOLDER": str(self.folder), "XLA_FLAGS": "--users", **env},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def pids(self, count: int) -> list[int]:
        """Waits until the children run."""
        files = [self.folder / f"{index}.pid" for index in range(count)]
        wait_for(lambda: all(file.exists() and file.read_text() for file in files), "the processes had started")
        return [int(file.read_text()) for file in files]


def is_alive(pid: int) -> bool:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, 0)
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    return False


@pytest.fixture
def local(root, tmp_path) -> Local:
    return Local(root, tmp_path)


def test_local_gives_each_process_its_place(local):
    stdout, stderr = (process := local.start("--processes=2", "--devices=3", "--", "end", "--a=b c")).communicate(timeout=30)
    assert process.returncode == 0, stderr
    printed = "of 2 cpu --users --xla_force_host_platform_device_count=3 end --a=b c\n"
    assert (stdout, stderr) == (f"process 0 {printed}", f"[1] process 1 {printed}")


@pytest.mark.parametrize(
    ("command", "at_term", "code", "how"),
    [
        ("fail", "0", 3, "ended with exit code 3"),
        ("die", "5", 137, "was ended by SIGKILL (by hand, or by the kernel because memory ran out)"),
    ],
)
def test_local_names_the_process_that_failed_and_stops_the_rest(local, command, at_term, code, how):
    process = local.start("--processes=3", "--", command, AT_TERM=at_term)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == code
    assert f"local: process 1 of 3 on {socket.gethostname()} {how}; stopping the others.\n" in stderr
    assert sorted(path.name for path in local.folder.glob("*.stopped")) == ["0.stopped", "2.stopped"]  # by SIGTERM, not killed
    assert not any(map(is_alive, local.pids(3)))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("at_term", [0, 4])
def test_local_passes_a_request_to_stop_on(local, number, at_term):
    process = local.start("--processes=2", "--", "run", AT_TERM=str(at_term))
    pids = local.pids(2)
    process.send_signal(number)
    process.communicate(timeout=30)
    assert process.returncode == at_term
    assert not any(map(is_alive, pids))


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's parent-death signal")
def test_local_leaves_no_process_when_it_is_killed(local):
    process = local.start("--processes=2", "--", "run")
    pids = local.pids(2)
    process.kill()
    process.wait()
    wait_for(lambda: not any(map(is_alive, pids)), "the processes had ended", seconds=10)
    process.communicate()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--processes=2"], "the command is missing"),
        (["--processes=0", "--", "train"], "both must be at least 1"),
        (["--process=x", "--", "train"], "--process"),
        (["--hosts=2", "--", "train"], "unrecognized arguments: --hosts=2"),
    ],
)
def test_local_mistakes(local, arguments, message):
    _, stderr = (process := local.start(*arguments)).communicate(timeout=30)
    assert process.returncode == 2
    assert stderr.startswith("error: local: ")
    assert message in stderr
    assert stderr.count("\n") == 1
