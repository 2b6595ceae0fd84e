"""The program that a worker of a TPU slice runs: python3 attention_jax_incoming/worker.py start | status | log | stop | kill.

This file is sent alone and runs on the image's own Python. `start` unpacks the code that was sent with it and starts a
supervisor in a session of its own, so that the run outlives the connection: that needs neither tmux, which not every image
has, nor root, as a systemd unit would. The supervisor makes the environment through launch.sh, runs the command, writes
everything into one log, and records the exit code. Its child dies with it, and all that it starts holds a lock: two trainings
on the same chips would both fail, so `start` first kills what an earlier run has left.

The image's Python (3.10 on Ubuntu 22.04) is older than launch.sh needs, and Ubuntu's python3.11 there is a release candidate.
So uv is installed from PyPI, where the environment comes from anyway, in one version whose files have the hashes below; it
fetches a Python for launch.sh, whose hashes it brings.
"""

from __future__ import annotations  # for Python 3.9

import contextlib
import ctypes
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
import urllib.request
from pathlib import Path
from typing import Any

HOME = Path.home() / "attention_jax"
RUN, CODE, TOOLS = HOME / "run", HOME / "code", HOME / "tools"
HELD = HOME / "held"  # a lock of the supervisor and of all that it starts
LOG, PID, END, ABOUT, JOB = RUN / "log", RUN / "pid", RUN / "end.json", RUN / "about.json", RUN / "job.json"
HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")
SETUP_PAUSES = (10, 60, 0)  # seconds after each failed attempt to make the environment
MARK = "AJ "  # begins a line that the launcher reads
# A requirements file for pip, which installs no other file of PyPI: the wheels for Linux on x86_64 and on aarch64.
UV = (
    "uv==0.13.9 --hash=sha256:d7f459fe4fd247d830351c75686d3996ace3c6f3f728eb0e85a30b7ada0cef19"
    " --hash=sha256:5435c5ce14a56431208ca0996416d310f1598e8c2c8ba707688985a16bb82dbe"
)


def main(action: str, *rest: str) -> None:
    """Does one action."""
    if action == "supervise":
        supervise_run()
    elif action == "log":
        print_log_part(*map(int, rest))
    else:
        if action == "start":
            start_supervisor(Path(__file__).resolve().parent)
        elif action == "stop" and (pid := _supervisor()):
            os.kill(pid, signal.SIGTERM)  # the run saves and ends
        elif action == "kill":
            _kill_leftovers()
        print(MARK + json.dumps(read_status()), flush=True)


def start_supervisor(incoming: Path) -> None:
    """Unpacks what was sent and starts a supervisor in the background; does nothing while a run is going."""
    HOME.mkdir(mode=0o700, exist_ok=True)
    with (HOME / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not _supervisor():
            _kill_leftovers()
            _unpack(incoming / "code.tar.gz")
            shutil.rmtree(RUN, ignore_errors=True)
            RUN.mkdir(mode=0o700)
            job = json.loads((incoming / "job.json").read_text())
            ABOUT.write_text(json.dumps({"id": job["id"], "began": time.time(), "worker": _number()}))
            shutil.copy(incoming / "worker.py", HOME / "worker.py")
            (incoming / "job.json").rename(JOB)
            words = [sys.executable, str(HOME / "worker.py"), "supervise"]
            with LOG.open("ab") as log:
                supervisor = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
            PID.write_text(str(supervisor.pid))
        shutil.rmtree(incoming, ignore_errors=True)


def _kill_leftovers() -> None:
    """Kills every process that holds the lock of a run, and returns when nobody does."""
    with HELD.open("a") as held:
        while True:
            with contextlib.suppress(BlockingIOError):
                return fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            for folder in Path("/proc").glob("[0-9]*/fd"):
                with contextlib.suppress(OSError):
                    if int(folder.parts[2]) != os.getpid() and any(HELD.samefile(file) for file in _open_files(folder)):
                        os.kill(int(folder.parts[2]), signal.SIGKILL)
            time.sleep(0.1)


def _open_files(folder: Path) -> list[str]:
    """Returns the paths of the files under our folder that a process has open."""
    paths = [os.readlink(link) for link in folder.iterdir()]
    return [path for path in paths if path.startswith(str(HOME.resolve()))]


def _die_with_supervisor() -> None:
    """Makes the child die with a killed supervisor: training left behind would keep the chips."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # 1 is PR_SET_PDEATHSIG


def _unpack(archive: Path) -> None:
    """Unpacks the code into the same folder each time, so that its environment stays and is installed once."""
    new = CODE.with_name("code.new")
    shutil.rmtree(new, ignore_errors=True)
    with tarfile.open(archive) as tar:
        tar.extractall(new)
    if (CODE / ".venv").exists():
        (CODE / ".venv").rename(new / ".venv")
    shutil.rmtree(CODE, ignore_errors=True)
    new.rename(CODE)


def supervise_run() -> None:
    """Makes the environment, runs the command, and records its exit code."""
    held = HELD.open("a")
    fcntl.flock(held, fcntl.LOCK_EX)
    job = json.loads(JOB.read_text())
    JOB.unlink()  # it holds the values of --env
    hosts = ",".join(job["hosts"])
    joined = {"AJ_COORDINATOR": "auto", "AJ_START_SECONDS": "1800", "AJ_HOSTS": hosts, "JAX_PLATFORMS": "tpu,cpu"}
    env = {**joined, **os.environ, **job["env"], "PYTHONUNBUFFERED": "1"}
    _use_huge_pages(env)
    received: list[int] = []
    child: list[subprocess.Popen] = []

    def pass_on(number: int, frame: object) -> None:
        received.append(number)
        if child and child[0].poll() is None:
            child[0].send_signal(signal.SIGTERM)

    def run(words: list[str]) -> int:
        inherited, nothing = (held.fileno(),), subprocess.DEVNULL
        started = subprocess.Popen(words, cwd=CODE, env=env, stdin=nothing, pass_fds=inherited, preexec_fn=_die_with_supervisor)
        child[:] = [started]
        return child[0].wait()

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, pass_on)
    code, launch = 0, str(CODE / "launch.sh")
    for words in (_install_uv(env), [launch, "setup", "tpu", "gcs"]):
        for pause in SETUP_PAUSES if words else ():  # a package index may be away for a moment
            if not received and (code := run(words)) and not received:
                time.sleep(pause)
            if not code:
                break
    if not code and not received:
        code = run([launch, *job["command"]])
    code = code if code >= 0 else 128 - code
    partial = END.with_suffix(".partial")
    partial.write_text(json.dumps({"code": code, "stopped": bool(received), "ended": time.time()}))
    partial.rename(END)


def _use_huge_pages(env: dict[str, str]) -> None:
    """Has the kernel give out huge pages, as JAX advises on a TPU VM: the TPU's runtime starts and ends faster."""
    if env.get("AJ_XLA_FLAGS") != "off" and HUGE_PAGES.exists() and "[always]" not in HUGE_PAGES.read_text():
        words = ["sudo", "-n", "sh", "-c", f"echo always > {HUGE_PAGES}"]
        done = (
            subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, check=False) if shutil.which("sudo") else None
        )
        how = "always (AJ_XLA_FLAGS=off leaves this out)" if done and done.returncode == 0 else "as they were: sudo refused"
        print(f"transparent huge pages: {how}", flush=True)


def _install_uv(env: dict[str, str]) -> list[str]:
    """Returns the command that installs uv into TOOLS; [] if uv is there or ATTENTION_JAX_PYTHON names a Python."""
    if env.get("ATTENTION_JAX_PYTHON"):
        return []
    env["PATH"] = f"{TOOLS}/bin:{env.get('PATH', os.defpath)}"
    if shutil.which("uv", path=env["PATH"]):
        return []
    TOOLS.mkdir(exist_ok=True)
    (wanted := TOOLS / "uv.txt").write_text(UV)
    # --target: Ubuntu 24.04 lets pip write nowhere else outside an environment.
    options = ["--quiet", "--disable-pip-version-check", "--require-hashes", "--target", str(TOOLS), "-r", str(wanted)]
    return [sys.executable, "-m", "pip", "install", *options]


def read_status() -> dict[str, Any]:
    """Returns {"worker", "id", "state": none | running | ended | vanished, "code", "stopped", "ended", "size" of the log}."""
    if not ABOUT.exists():
        return {"worker": _number(), "state": "none"}
    status = {"state": "vanished", "size": LOG.stat().st_size if LOG.exists() else 0, **json.loads(ABOUT.read_text())}
    if _supervisor():
        return {**status, "state": "running"}
    return {**status, "state": "ended", **json.loads(END.read_text())} if END.exists() else status


def print_log_part(begin: int = -40, size: int = 200_000) -> None:
    """Prints `size` bytes of the log from byte `begin`, or its last `-begin` lines, each after the worker's number."""
    data = LOG.read_bytes() if LOG.exists() else b""
    data = b"\n".join(data.splitlines()[begin:]) if begin < 0 else data[begin : begin + size]
    for line in data.decode(errors="replace").splitlines():  # a progress bar's updates become lines too
        print(f"[worker {_number()}] {line}")


def _supervisor() -> int:
    """Returns the process number of the running supervisor, else 0; another process may have got its number since."""
    try:
        pid = int(PID.read_text())
        return pid if b"supervise" in Path(f"/proc/{pid}/cmdline").read_bytes() else 0
    except (OSError, ValueError):
        return 0


def _number() -> int:
    """Returns the worker's number: AJ_PROCESS, else the answer of the machine's metadata server, which JAX asks too."""
    if ABOUT.exists():
        return json.loads(ABOUT.read_text())["worker"]
    if "AJ_PROCESS" in os.environ:
        return int(os.environ["AJ_PROCESS"])
    server = os.environ.get("GCE_METADATA_IP", "metadata.google.internal")
    url = f"http://{server}/computeMetadata/v1/instance/attributes/agent-worker-number"
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers={"Metadata-Flavor": "Google"}), timeout=10) as answer:
            return int(answer.read())
    except (OSError, ValueError):
        return 0


if __name__ == "__main__":
    main(*sys.argv[1:])
