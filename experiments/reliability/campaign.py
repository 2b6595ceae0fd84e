"""Injects faults into training runs and counts the outcomes: survived, steps repeated, examples lost.

    nice ./launch.sh python experiments/reliability/campaign.py [--only=PATTERN] [--random=12] [--seed=0] [--workdir=DIR]
                                                               [--output=DIR]

Each fault is a run of a very small network on the digits that is disturbed once or more (killed, stopped by a signal, its
disk full or read-only, its checkpoints damaged, its input stalled), then started again by the same command until it ends.
It survived if each of its calls ended and printed as expected, and its last checkpoint and its log are bitwise those of an
undisturbed run on the same processes. After a change of processes, every step's loss must be that of the undisturbed run to
five parts in a thousand, which shows that each step had its batch. Steps repeated: a call logged them and the next call
computed them again. Examples lost: the batches of steps that the log lacks, has twice, or has with another loss.

Every call is a process forked from this one, which saves the seconds of the imports; several processes are started and
watched by `attention_jax.launch.local`. Faults that need a small disk are tried where this account may mount one. The same
command continues an interrupted campaign; results are written after every fault. It takes some minutes of one core.
"""

import argparse
import ctypes
import fnmatch
import json
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax  # noqa: E402
import numpy as np  # noqa: E402

from attention_jax import tree  # noqa: E402
from attention_jax.cli import main as cli  # noqa: E402
from attention_jax.launch import local  # noqa: E402
from attention_jax.train import metrics, remote_runs, restore  # noqa: E402
from experiments.benchmarks.page import render_page  # noqa: E402
from experiments.reliability import faults  # noqa: E402
from experiments.reliability.remote_faults import list_remote_faults  # noqa: E402

STEPS, BATCH = 30, 32
BUCKET = "bucket"  # folder of the faults' files
FIELDS = {
    "model.stage_sizes": (1, 1),
    "model.widths": (4, 8),
    "total_steps": STEPS,
    "batch_size": BATCH,
    "schedule.name": "cosine",
    "schedule.warmup_steps": 5,
    "ema.decay": 0.9,
    "evaluation.every_steps": 10,
    "checkpoint.every_steps": 6,
    "checkpoint.keep_last": 3,
    "logging.every_steps": 1,
    "logging.tensorboard": False,
}
SLACK = 5e-3  # relative, of a step's loss on other processes
PATIENCE = 1800.0  # seconds for a call, on a machine that others use too


class Forked:
    """A call in a forked process, with what `attention_jax.launch.local` uses: `pid`, `poll()`, `returncode`, `stdout`."""

    def __init__(self, run: Callable[[], int], output: Path, env: dict[str, str]):
        self.stdout = None
        self.returncode: int | None = None
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if self.pid == 0:
            code: Any = 1
            try:
                os.setsid()
                if sys.platform == "linux":
                    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # no process outlives the one that started it
                for number in local.STOPPING:
                    signal.signal(number, signal.SIG_DFL)
                signal.signal(signal.SIGINT, signal.default_int_handler)
                descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
                os.dup2(descriptor, 1)
                os.dup2(descriptor, 2)
                os.environ.update(env)
                code = run()
                if jax.distributed.is_initialized():
                    jax.distributed.shutdown()  # as at the end of any process; `_exit` below skips it
            except SystemExit as error:
                code = error.code
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code or 0)

    def poll(self) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def wait(self) -> int:
        end = time.monotonic() + PATIENCE
        while self.poll() is None:
            if time.monotonic() > end:
                os.killpg(self.pid, signal.SIGKILL)
            time.sleep(0.05)
        assert self.returncode is not None  # `poll` has set it
        return self.returncode


def start_server(folder: Path) -> subprocess.Popen:
    """Starts a server that takes files of a folder for objects at gs://, and tells the calls its address."""
    command = [sys.executable, str(ROOT / "tests/helpers/gcs_server.py"), f"--folder={folder}"]
    server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert server.stdout
    url = server.stdout.readline().strip()
    names = ("STORAGE_EMULATOR_HOST", "TENSORSTORE_GCS_HTTP_URL")
    os.environ.update({**dict.fromkeys(names, url), "GOOGLE_AUTH_TOKEN_FOR_TESTING": "a", "GOOGLE_CLOUD_PROJECT": "a"})
    return server


def make_uri(workdir: Path) -> str:
    """The URI of a folder …/bucket/scratch/run of the server's."""
    return "gs://" + "/".join(workdir.parts[-3:])


def run_training(
    workdir: Path, output: Path, processes: int, devices: int, call: faults.Call | None, remote: bool = False
) -> int:
    """Returns the exit code of one call of the training command."""
    path = make_uri(workdir) if remote else workdir
    fields = [f"--config.{name}={value}" for name, value in FIELDS.items()]
    command = ["train", f"--config={ROOT}/configs/quickstart.py", f"--workdir={path}", *fields]
    flags = {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}", "AJ_STAGING": str(workdir.parent / "staging")}

    def one(index: int) -> int:
        if call and call.process in (index, None):
            call.install()
        return cli.main(command)

    def several() -> int:
        def start(command: list[str], address: str, index: int, count: int, devices: int) -> Forked:
            joined = {"AJ_COORDINATOR": address, "AJ_PROCESSES": str(count), "AJ_PROCESS": str(index)}
            return Forked(lambda: one(index), output, {**flags, **joined, "AJ_START_SECONDS": str(faults.START_SECONDS)})

        local._start = start
        return local.main([f"--processes={processes}", f"--devices={devices}", "--", *command])

    return Forked(several if processes > 1 else lambda: one(0), output, flags).wait()


def read_end(workdir: Path, remote: bool = False) -> dict[str, Any]:
    """Returns what finished runs are compared by, read in a forked process: once JAX has started here, nothing could fork."""
    file = workdir.with_suffix(".pickle")

    def read() -> int:
        here = remote_runs.download_run(make_uri(workdir)) if remote else workdir
        state, about, _ = restore.read_newest(here)
        arrays = {path: np.asarray(array).tobytes() for path, array in tree.flatten_by_path(state).items()}
        file.write_bytes(pickle.dumps((about["step"], arrays, (here / metrics.METRICS).read_bytes())))
        return 0

    if Forked(read, workdir.with_suffix(".txt"), {"AJ_STAGING": str(workdir.parent / "staging")}).wait():
        raise RuntimeError("its last checkpoint cannot be read")
    step, state, log = pickle.loads(file.read_bytes())
    lines = [json.loads(line) for line in log.splitlines()]
    return {
        "step": step,
        "state": state,
        "log": log,
        "steps": [line["step"] for line in lines if "train/loss" in line],
        "loss": {line["step"]: line["train/loss"] for line in lines if "train/loss" in line},
    }


def count_repeated_steps(workdir: Path) -> int:
    """Returns the number of steps that a call had logged and the next call computed again."""
    total = last = 0
    for line in metrics.read_timing(workdir / metrics.TIMING):
        if line["event"] == "start":
            total += max(0, last - line["step"])
            last = line["step"]
        elif line["event"] == "training":
            last = line["step"]
    return total


def count_lost_examples(ours: dict[str, Any], alone: dict[str, Any], slack: float) -> int:
    """Returns the number of examples in steps that are missing, double, or had another batch."""
    wrong = sum(abs(ours["steps"].count(step) - 1) for step in range(1, STEPS + 1))
    for step in set(ours["loss"]) & set(alone["loss"]):
        wrong += abs(ours["loss"][step] - alone["loss"][step]) > slack * abs(alone["loss"][step])
    return wrong * BATCH


class Campaign:
    """The undisturbed runs, made when first needed, and the faults tried so far."""

    def __init__(self, folder: Path):
        self.folder, self.results = folder, folder / "results.jsonl"
        (folder / BUCKET).mkdir(parents=True, exist_ok=True)
        lines = self.results.read_text().splitlines() if self.results.exists() else []
        self.done = {line["name"]: line for line in map(json.loads, lines)}
        self._alone: dict[tuple[int, int], dict[str, Any]] = {}

    def alone(self, processes: int, devices: int) -> dict[str, Any]:
        """Returns the end of an undisturbed run on these processes."""
        if (processes, devices) not in self._alone:
            workdir = self.folder / f"alone-{processes}x{devices}"
            code = run_training(workdir, workdir.with_suffix(".txt"), processes, devices, None)
            if code:
                raise SystemExit(f"the undisturbed run ended with exit code {code}: see {workdir}.txt")
            self._alone[processes, devices] = read_end(workdir)
        return self._alone[processes, devices]

    def attempt(self, fault: faults.Fault) -> None:
        """Tries a fault, unless it was tried before, and records the outcome."""
        if fault.name in self.done:
            return
        alone = self.alone(*fault.last)
        begin = time.monotonic()
        with tempfile.TemporaryDirectory(dir=self.folder / BUCKET, prefix=f"{fault.slug}-") as scratch:
            problem, result = self._run(fault, Path(scratch), alone)
            if problem:
                kept = self.folder / "failed" / fault.slug
                kept.parent.mkdir(exist_ok=True)
                subprocess.run(["cp", "-r", scratch, kept], check=False)
        line = {"name": fault.name, "problem": problem, **result, "seconds": round(time.monotonic() - begin, 1)}
        self.done[fault.name] = line
        with self.results.open("a") as file:
            file.write(json.dumps(line) + "\n")
        print(f"{fault.name}: {problem or 'survived'} {result}", flush=True)

    def _run(self, fault: faults.Fault, scratch: Path, alone: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        output = scratch / "output.txt"
        ended: dict[str, Any] = {"calls": 0, "redone": 0, "lost": None}
        try:
            with fault.disk(scratch) as workdir:
                for call in (*fault.calls, *([None] * fault.clean_calls)):
                    begin = output.stat().st_size if output.exists() else 0
                    processes, devices = (call and call.on) or fault.last
                    code = run_training(workdir, output, processes, devices, call, fault.remote)
                    ended["calls"] += 1
                    text = output.read_text(errors="replace").encode()[begin:].decode(errors="replace")
                    if problem := faults.judge_call(call, code, text):
                        return problem, ended
                    if call and call.after:
                        call.after(workdir)
                ours = read_end(workdir, fault.remote)
                same = fault.bitwise
                ended |= {
                    "redone": count_repeated_steps(workdir),
                    "lost": count_lost_examples(ours, alone, 0.0 if same else SLACK),
                }
                if ours["step"] != STEPS or ended["lost"]:
                    return f"ended at step {ours['step']}, {ended['lost']} examples lost", ended
                if same and (ours["state"] != alone["state"] or ours["log"] != alone["log"]):
                    return "not bitwise the undisturbed run", ended
        except faults.NotPossible as reason:
            return f"not tried: {reason}", ended
        except Exception as error:
            return f"{type(error).__name__}: {error}"[:200], ended
        return "", ended


def render_table(done: dict[str, dict[str, Any]], names: Sequence[str], random: Sequence[str]) -> str:
    """Returns the results as Markdown."""
    tried = [done[name] for name in (*names, *random) if name in done and "not tried" not in done[name]["problem"]]
    survived, repeated = [line for line in tried if not line["problem"]], sum(line["redone"] for line in tried)
    tables = []
    for group in (names, random):
        rows = ["| fault | outcome | calls | steps repeated | examples lost |", "| --- | --- | ---: | ---: | ---: |"]
        for name in group:
            if line := done.get(name):
                gone = "–" if line["lost"] is None else line["lost"]
                rows.append(f"| {name} | {line['problem'] or 'survived'} | {line['calls']} | {line['redone']} | {gone} |")
            else:
                rows.append(f"| {name} | not run | | | |")
        tables.append("\n".join(rows))
    return render_page(
        "Faults put into training runs",
        f"{len(tried)} faults tried, {len(survived)} survived, {repeated} steps repeated of {STEPS * len(tried)}, "
        f"{sum(line['lost'] or 0 for line in tried)} examples lost.",
        tables[0],
        "`nice ./launch.sh python experiments/reliability/campaign.py` (needs a machine for some minutes). Runs of "
        f"{STEPS} steps with a checkpoint every {FIELDS['checkpoint.every_steps']}. A run survived if its last checkpoint "
        "and its "
        "log are bitwise those of an undisturbed run on the same processes. A call is one start of the training command; "
        '"2 x 1" are two processes with one device each.',
        folded={"Random faults, drawn with one seed": tables[1]},
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Tries the faults and writes the table; returns 1 when a run did not survive one."""
    parser = argparse.ArgumentParser(description="Injects faults into training runs.")
    parser.add_argument("--only", default="*", metavar="PATTERN", help="names of faults")
    parser.add_argument("--random", type=int, default=12, metavar="N", help="random faults after the scripted ones")
    parser.add_argument("--seed", type=int, default=0, help="of the random ones")
    parser.add_argument("--workdir", type=Path, default=ROOT / "runs" / "reliability")
    parser.add_argument("--output", type=Path, metavar="DIR", help="of reliability.md; default the workdir")
    options = parser.parse_args(argv)
    faults.import_packages()  # before the first fork
    campaign = Campaign(options.workdir.resolve())
    start_server(options.workdir.resolve())  # ends with this process
    scripted = [*faults.list_scripted_faults(), *list_remote_faults()]
    drawn = faults.draw_faults(np.random.default_rng(options.seed), options.random, STEPS)
    for fault in (*scripted, *drawn):
        if fnmatch.fnmatch(fault.name, options.only):
            campaign.attempt(fault)
            text = render_table(campaign.done, [f.name for f in scripted], [f.name for f in drawn])
            (options.output or options.workdir).mkdir(parents=True, exist_ok=True)
            ((options.output or options.workdir) / "reliability.md").write_text(text)
    failed = [name for name, line in campaign.done.items() if line["problem"] and "not tried" not in line["problem"]]
    print(f"{len(campaign.done)} faults tried, {len(failed)} not survived{': ' if failed else ''}{', '.join(failed)}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
