"""What runs on a worker of a TPU slice: python3 attention_jax_incoming/worker.py start | status | log | stop.

This file is sent alone and runs on the image's own Python. `start` unpacks the code that came with it and leaves a
supervisor behind in a session of its own, so that the run outlives the connection: that needs no tmux, which not every
image has, and no root, as a unit of systemd would. The supervisor makes the environment through launch.sh, runs the
verb, writes everything into one log, and notes how it ended.

The image's Python (3.10 on Ubuntu 22.04) is older than ours, and Ubuntu's own python3.11 there is a release candidate.
So uv comes from PyPI, where the environment comes from anyway, into a folder of ours; it fetches a Python for launch.sh.
"""

from __future__ import annotations  # for Python 3.9

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

HOME = Path.home() / "attention_jax"
RUN, CODE, TOOLS = HOME / "run", HOME / "code", HOME / "tools"
LOG, PID, END, ABOUT, JOB = RUN / "log", RUN / "pid", RUN / "end.json", RUN / "about.json", RUN / "job.json"
MARK = "AJ "  # begins a line that the door reads
EXTRAS = ("tpu", "gcs")


def main(arguments: list[str]) -> int:
    """One of the verbs; the exit code is 0 unless it is not known."""
    verb, rest = arguments[0], arguments[1:]
    if verb == "start":
        start(Path(__file__).resolve().parent)
    elif verb == "supervise":
        supervise()
    elif verb == "log":
        log(*map(int, rest))
    elif verb == "stop":
        stop()
    elif verb != "status":
        return 2
    if verb != "supervise" and verb != "log":
        print(MARK + json.dumps(status()), flush=True)
    return 0


def start(incoming: Path) -> None:
    """Takes what was sent and leaves a supervisor behind; does nothing while a run is going."""
    HOME.mkdir(mode=0o700, exist_ok=True)
    with (HOME / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not _supervisor():
            _unpack(incoming / "code.tar.gz")
            shutil.rmtree(RUN, ignore_errors=True)
            RUN.mkdir(mode=0o700)
            job = json.loads((incoming / "job.json").read_text())
            ABOUT.write_text(json.dumps({"id": job["id"], "began": time.time(), "worker": _number()}))
            shutil.copy(incoming / "worker.py", HOME / "worker.py")
            (incoming / "job.json").rename(JOB)
            with LOG.open("ab") as output:
                supervisor = subprocess.Popen(
                    [sys.executable, str(HOME / "worker.py"), "supervise"],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    start_new_session=True,
                    close_fds=True,
                )
            PID.write_text(str(supervisor.pid))
        shutil.rmtree(incoming, ignore_errors=True)


def _unpack(archive: Path) -> None:
    """Puts the code in the same place each time, so that its environment stays and is installed once."""
    new = CODE.with_name("code.new")
    shutil.rmtree(new, ignore_errors=True)
    with tarfile.open(archive) as tar:
        tar.extractall(new)
    if (CODE / ".venv").exists():
        (CODE / ".venv").rename(new / ".venv")
    shutil.rmtree(CODE, ignore_errors=True)
    new.rename(CODE)


def supervise() -> None:
    """Makes the environment, runs the verb, and notes how it ended."""
    job = json.loads(JOB.read_text())
    JOB.unlink()  # it holds the values of --env
    env = {**os.environ, **job["env"], "PYTHONUNBUFFERED": "1"}
    ours = {"AJ_COORDINATOR": "auto", "AJ_START_SECONDS": "600", "AJ_HOSTS": ",".join(job["hosts"])}
    for name, value in {**ours, "JAX_PLATFORMS": "tpu,cpu"}.items():
        env.setdefault(name, value)
    asked: list[int] = []
    child: list[subprocess.Popen] = []

    def pass_on(number: int, frame: object) -> None:
        asked.append(number)
        if child and child[0].poll() is None:
            child[0].send_signal(signal.SIGTERM)

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, pass_on)
    code = 0
    for words in (_tools(env), [str(CODE / "launch.sh"), "setup", *EXTRAS], [str(CODE / "launch.sh"), *job["verb"]]):
        if code == 0 and words and not asked:
            child[:] = [subprocess.Popen(words, cwd=CODE, env=env, stdin=subprocess.DEVNULL)]
            code = child[0].wait()
    code = code if code >= 0 else 128 - code
    partial = END.with_suffix(".partial")
    partial.write_text(json.dumps({"code": code, "stopped": bool(asked), "ended": time.time()}))
    partial.rename(END)


def _tools(env: dict) -> list[str]:
    """The command that installs uv where no Python is new enough; none where one is, or ATTENTION_JAX_PYTHON names it."""
    if env.get("ATTENTION_JAX_PYTHON"):
        return []
    env["PATH"] = f"{TOOLS}/bin:{env.get('PATH', os.defpath)}"
    if shutil.which("uv", path=env["PATH"]):
        return []
    # --target: Ubuntu 24.04 lets pip write nowhere else outside an environment.
    return [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--target", str(TOOLS), "uv"]


def status() -> dict:
    """{"worker", "id", "state": none | running | ended | vanished, "code", "stopped", "ended", "size" of the log}."""
    if not ABOUT.exists():
        return {"worker": _number(), "state": "none"}
    found = {"state": "vanished", "size": LOG.stat().st_size if LOG.exists() else 0, **json.loads(ABOUT.read_text())}
    if _supervisor():
        return {**found, "state": "running"}
    if END.exists():
        return {**found, "state": "ended", **json.loads(END.read_text())}
    return found


def log(begin: int = -40, size: int = 200_000) -> None:
    """Lines of the log from a byte on, or the last `-begin` lines, each with the worker's number before it."""
    if not LOG.exists():
        return
    data = LOG.read_bytes()
    data = b"\n".join(data.splitlines()[begin:]) if begin < 0 else data[begin : begin + size]
    for line in data.decode(errors="replace").splitlines():
        print(f"[worker {_number()}] {line}")  # of a progress bar, splitlines makes lines too


def stop() -> None:
    """Asks the run to save and stop."""
    if pid := _supervisor():
        os.kill(pid, signal.SIGTERM)


def _supervisor() -> int:
    """The process number of the supervisor that runs, else 0; a number may have been given to another process since."""
    try:
        pid = int(PID.read_text())
        return pid if b"supervise" in Path(f"/proc/{pid}/cmdline").read_bytes() else 0
    except (OSError, ValueError):
        return 0


def _number() -> int:
    """The worker's number: AJ_PROCESS, else what the machine's metadata server says (where JAX too asks for it)."""
    if ABOUT.exists():
        return json.loads(ABOUT.read_text())["worker"]
    if "AJ_PROCESS" in os.environ:
        return int(os.environ["AJ_PROCESS"])
    address = os.environ.get("GCE_METADATA_IP", "metadata.google.internal")
    url = f"http://{address}/computeMetadata/v1/instance/attributes/agent-worker-number"
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers={"Metadata-Flavor": "Google"}), timeout=10) as answer:
            return int(answer.read())
    except (OSError, ValueError):
        return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
