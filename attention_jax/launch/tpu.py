"""`./launch.sh tpu create | run | watch | status | logs | stop NAME --zone=ZONE … [-- VERB ...]`.

A slice is a queued resource of Google Cloud. `watch` does everything: it asks for the slice when there is none, waits,
sends the code, starts it on every worker, shows the log of worker 0, asks anew when the slice is preempted and goes on
from the last checkpoint, and says which worker failed and how. It keeps nothing to itself, so that it can be ended and
started again at will, from another machine too; the run goes on without it.

What is sent to a worker is three files: an archive of the commit, worker.py, and the words of the verb with the values
of --env. No value and no word of the verb passes through a shell, a log or a process list on its way.
"""

from __future__ import annotations  # for Python 3.9

import argparse
import contextlib
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from attention_jax.launch import code
from attention_jax.launch.gcloud import INCOMING, Slice, accelerator
from attention_jax.launch.shared import VERBS, DoorError, Parser, call, check_verb, option, quoted, split

ACTIONS = ("create", "run", "watch", "status", "logs", "stop")
HERE = Path(__file__).resolve().parent
SENT, KEPT = f"python3 {INCOMING}/worker.py", "python3 attention_jax/worker.py"
MARK = "AJ "
NONE_YET = f'test -e attention_jax/worker.py || {{ echo \'{MARK}{{"state": "none"}}\'; exit 0; }}; '
MEANWHILE = "whether the step fits and what it will take is said here, before it costs"
RESTARTS = 3  # of a run whose worker vanished without a word on a slice that is there: a host was started anew


def main(arguments: Sequence[str]) -> int:
    """Does one action and returns the exit code: 0, 1 when the run failed, 2 for what the user can mend."""
    mine, verb = split(arguments)
    options = _parser().parse_args(mine)
    target = Slice(options.name, options.zone, options.project, options.internal_ip)
    if options.action in ("run", "watch"):
        check_verb(verb)
        _check_workdir(verb)
    elif verb:
        raise DoorError(f"{options.action} takes nothing after ' -- ': {', '.join(VERBS)} are for run and watch.")
    if options.dry_run:
        return _show(target, options, verb)
    return globals()[f"_{options.action}"](target, options, verb)


def _parser() -> Parser:
    parser = Parser(prog="./launch.sh tpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=ACTIONS)
    parser.add_argument("name", metavar="NAME", help="of the slice")
    parser.add_argument("--zone", required=True)
    parser.add_argument("--project", help="default gcloud's")
    parser.add_argument("--internal-ip", action="store_true", help="reach the workers inside their network")
    parser.add_argument("--dry-run", action="store_true", help="show what would run, and contact nothing")
    group = parser.add_argument_group("create and watch")
    group.add_argument("--type", metavar="TYPE", help="v5e-16, v4-32, v6e:4x4, …")
    group.add_argument("--spot", action="store_true", help="cheaper, and may be taken away at any time")
    group.add_argument("--runtime-version", metavar="IMAGE", help="default by the type")
    group.add_argument("--create-flag", action="append", default=[], metavar="FLAG", help="for gcloud, e.g. --network=NAME")
    group = parser.add_argument_group("run and watch")
    group.add_argument("--commit", metavar="REV", help="default the newest, of a tree without other changes")
    group.add_argument("--env", action="append", default=[], metavar="NAME", help="a variable whose value here goes along")
    group.add_argument("--every", type=float, default=30, metavar="SECONDS", help="between two looks of watch; default 30")
    group = parser.add_argument_group("logs and stop")
    group.add_argument("--worker", default="all", metavar="N", help="default all")
    group.add_argument("--lines", type=int, default=40, metavar="K", help="last lines of each; default 40")
    group.add_argument("--keep", action="store_true", help="stop the run and keep the slice")
    return parser


def _check_workdir(verb: Sequence[str]) -> None:
    for name in ("workdir", "output"):
        folder = option(verb, name)
        if folder and "://" not in folder and not folder.startswith("/"):
            raise DoorError(
                f"--{name}={folder} would lie on each worker's own disk, which goes with the slice: give an address "
                "such as gs://BUCKET/RUN, or the absolute path of a disk that all workers share."
            )


# --- the actions ----------------------------------------------------------------------------------------------------------


def _create(target: Slice, options: argparse.Namespace, verb: Sequence[str]) -> int:
    call(_creation(target, options))
    print(f"{target.name} is asked for: wait for it with status, or let watch do it.")
    print(f"{MEANWHILE}: {quoted(_preflight(options, verb))}")
    return 0


def _run(target: Slice, options: argparse.Namespace, verb: Sequence[str]) -> int:
    job, state = Job(options, verb), _state(target)
    if state != "ACTIVE":
        raise DoorError(f"{target.name} is {state}, not ACTIVE: wait, or use watch, which waits itself.")
    statuses = _ask(target, f"{NONE_YET}{KEPT} status")
    job.refuse_another(statuses)
    job.start(target, len(statuses))
    print(f"{len(statuses)} workers have started; this terminal may close. Follow with logs, status or watch.")
    return 0


def _status(target: Slice, options: argparse.Namespace, verb: Sequence[str]) -> int:
    state = _state(target)
    print(f"{target.name}: {state}")
    if state == "ACTIVE":
        for status in _ask(target, f"{NONE_YET}{KEPT} status"):
            print(f"  worker {status.get('worker', '?')}: {_describe(status)}")
    return 0


def _logs(target: Slice, options: argparse.Namespace, verb: Sequence[str]) -> int:
    print(call(target.remote(f"{KEPT} log -{options.lines}", options.worker)), end="")
    return 0


def _stop(target: Slice, options: argparse.Namespace, verb: Sequence[str]) -> int:
    """All workers save at one step; then the slice goes, unless it is kept."""
    state = _state(target)
    if state == "ACTIVE":
        statuses = _ask(target, f"{NONE_YET}{KEPT} stop")
        deadline = time.monotonic() + 600
        while any(status["state"] == "running" for status in statuses):
            if time.monotonic() > deadline:
                raise DoorError("the run has not ended within ten minutes; the slice is kept: see logs, and try again.")
            time.sleep(min(options.every, 10))
            statuses = _ask(target, f"{KEPT} status")
        print("\n".join(f"worker {status.get('worker', '?')}: {_describe(status)}" for status in statuses))
    if not options.keep and state != "ABSENT":
        call(target.delete())
        print(f"{target.name} is deleted.")
    return 0


def _watch(target: Slice, options: argparse.Namespace, verb: Sequence[str]) -> int:
    job, seen, begun, restarts, said = Job(options, verb), 0, False, 0, ""
    while True:
        state = _state(target)
        if state != said:
            _say(f"{target.name} is {state}")
            said = state
        if state == "ABSENT":
            creation = _creation(target, options)
            _say(f"{MEANWHILE}: {quoted(_preflight(options, verb))}")
            call(creation)
        elif state == "FAILED":
            raise DoorError(f"the request for {target.name} has failed: {quoted(target.describe())} has the reason; then stop.")
        elif state in ("SUSPENDED", "PREEMPTED", "TERMINATED"):
            _say("asking for it anew; the run goes on from its last checkpoint")
            call(target.delete())
            begun = False
            continue
        elif state == "ACTIVE":
            try:
                statuses = _ask(target, f"{NONE_YET}{KEPT} status")
                job.refuse_another(statuses)
                states = {status["state"] if status.get("id") == job.id else "none" for status in statuses}
                failed = [status for status in statuses if status.get("code") and status.get("id") == job.id]
                stopped = any(status.get("stopped") for status in statuses)
                if states == {"ended"} and not failed and not stopped:
                    _new_lines(target, statuses, seen)
                    _say("all workers are done; the slice is kept until stop")
                    return 0
                if begun and not stopped and "vanished" not in states and failed and _state(target) == "ACTIVE":
                    return _failed(target, failed, len(statuses))
                if begun and "vanished" in states:
                    restarts += 1
                    if restarts > RESTARTS:
                        raise DoorError(f"a worker has vanished {restarts} times: see logs.")
                if states != {"running"}:
                    if "running" in states:  # of a run that has lost a worker
                        _ask(target, f"{KEPT} stop")
                    else:
                        _say(f"starting {quoted(verb)[:100]} at commit {job.commit[:12]} on {len(statuses)} workers")
                        job.start(target, len(statuses))
                        begun, seen = True, 0
                else:
                    begun = True
                    seen = _new_lines(target, statuses, seen)
            except Unreachable as error:
                _say(f"{error}; looking again")
        time.sleep(options.every)


def _failed(target: Slice, failed: list[dict], count: int) -> int:
    """Stops the others and shows the last lines of the worker that failed first: the rest may only have missed it."""
    first = min(failed, key=lambda status: status["ended"])
    _say(f"worker {first['worker']} of {count} ended first, with exit code {first['code']}; stopping the others")
    _ask(target, f"{KEPT} stop")
    print(call(target.remote(f"{KEPT} log -30", str(first["worker"]))), end="", flush=True)
    return 1


# --- what they share ------------------------------------------------------------------------------------------------------


class Unreachable(Exception):
    """Workers that did not answer; the slice may be going."""


class Job:
    """One verb at one commit, as it is sent."""

    def __init__(self, options: argparse.Namespace, verb: Sequence[str]):
        self.verb, self.env = list(verb), {}
        for name in options.env:
            if name not in os.environ:
                raise DoorError(f"--env={name}: this variable is not set here.")
            self.env[name] = os.environ[name]
        self.commit = code.commit(options.commit, verb)
        self.id = hashlib.sha256(json.dumps([self.commit, self.verb]).encode()).hexdigest()[:16]

    def refuse_another(self, statuses: Sequence[dict]) -> None:
        """Raises DoorError while a worker runs something else."""
        if any(status["state"] == "running" and status["id"] != self.id for status in statuses):
            raise DoorError("another run is going on this slice: end it first with stop --keep.")

    def start(self, target: Slice, workers: int) -> None:
        """Sends it to all workers and starts it."""
        with self.folder(target) as folder:
            call(code.archive(self.commit, folder / "code.tar.gz"))
            shutil.copy(HERE / "worker.py", folder)
            hosts = [f"{target.name} worker {number}" for number in range(workers)]  # as a message will name them
            about = {"id": self.id, "verb": self.verb, "env": self.env, "hosts": hosts}
            (folder / "job.json").write_text(json.dumps(about))
            call(target.send(folder))
        _ask(target, f"{SENT} start")

    @staticmethod
    @contextlib.contextmanager
    def folder(target: Slice) -> Iterator[Path]:
        """Readable by its owner alone, and gone afterwards."""
        folder = outgoing(target)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        folder.chmod(0o700)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def outgoing(target: Slice) -> Path:
    """Where the three files lie while they are sent."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "attention_jax" / "tpu" / target.name / INCOMING


def _creation(target: Slice, options: argparse.Namespace) -> list[str]:
    if not options.type:
        raise DoorError(f"there is no slice {target.name} yet: give its --type, such as v5e-16.")
    kind, image = accelerator(options.type)
    if not (options.runtime_version or image):
        raise DoorError(f"--type={options.type} is of no known family: give its image with --runtime-version.")
    return target.create(kind, options.runtime_version or image, options.spot, options.create_flag)


def _preflight(options: argparse.Namespace, verb: Sequence[str]) -> list[str]:
    """The command for the machine one sits at that says what the step of `verb` needs on such a slice."""
    config, fields = option(verb, "config") or "FILE", [word for word in verb if word.startswith("--config.")]
    return ["./launch.sh", "preflight", f"--config={config}", *fields, f"--topology={options.type}"]


def _state(target: Slice) -> str:
    """The request's state, ABSENT without one; the machines' own when they are not READY although it is ACTIVE."""
    state = _answer(target.describe()).get("state", {}).get("state", "ABSENT")
    if state == "ACTIVE":
        node = _answer(target.describe_node()).get("state", "ABSENT")
        return "ACTIVE" if node == "READY" else node if node != "ABSENT" else "SUSPENDED"
    return state


def _answer(command: Sequence[str]) -> dict:
    """The JSON that a command answers; nothing when what it asks for does not exist."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise DoorError("gcloud is not installed here: https://cloud.google.com/sdk/docs/install says how.") from None
    if done.returncode == 0:
        return json.loads(done.stdout)
    if "NOT_FOUND" in done.stderr or "not found" in done.stderr:
        return {}
    raise DoorError(f"{quoted(command)} failed: {done.stderr.strip()[-500:]}")


def _ask(target: Slice, command: str) -> list[dict]:
    """The status lines of all workers, in order."""
    asked = target.remote(command)
    try:
        done = subprocess.run(asked, capture_output=True, text=True, check=False, timeout=900)
    except subprocess.TimeoutExpired:
        raise Unreachable("the workers did not answer within a quarter of an hour") from None
    found = [json.loads(line[len(MARK) :]) for line in done.stdout.splitlines() if line.startswith(MARK)]
    if done.returncode or not found:
        last = done.stderr.strip().splitlines()[-1:] or ["nothing"]
        raise Unreachable(f"{len(found)} workers answered; gcloud says: {last[0][:300]}")
    return sorted(found, key=lambda status: status.get("worker", 0))


def _new_lines(target: Slice, statuses: list[dict], seen: int) -> int:
    """Shows what worker 0 has written since byte `seen`, and returns where it is now."""
    size = statuses[0].get("size", 0)
    if size > seen:
        with contextlib.suppress(DoorError):
            print(call(target.remote(f"{KEPT} log {seen} {size - seen}", "0")), end="", flush=True)
            return size
    return seen


def _describe(status: dict) -> str:
    if status["state"] == "ended":
        return f"ended with exit code {status['code']}{', stopped by a signal' if status['stopped'] else ''}"
    if status["state"] == "running":
        return f"running for {(time.time() - status['began']) / 60:.0f} minutes, {status['size']:,} bytes of log"
    return {"none": "nothing was started", "vanished": "gone without a word: the host was started anew"}[status["state"]]


def _say(what: str) -> None:
    print(f"tpu: {what}.", file=sys.stderr, flush=True)


def _show(target: Slice, options: argparse.Namespace, verb: Sequence[str]) -> int:
    """What an action would run, each command as a shell takes it, with a comment where it depends on an answer."""
    folder = outgoing(target)
    describe = ["# the slice's state", quoted(target.describe()), quoted(target.describe_node())]
    status = ["# the workers' states", quoted(target.remote(f"{NONE_YET}{KEPT} status"))]
    creation = lambda: [f"# {MEANWHILE}", quoted(_preflight(options, verb)), quoted(_creation(target, options))]  # noqa: E731
    delete = quoted(target.delete())

    def start() -> list[str]:
        job = Job(options, verb)
        env = {name: f"(the value of {name} here)" for name in job.env}
        hosts = [f"{target.name} worker 0", "(and so on)"]
        return [
            "# the code, the verb and what runs it",
            quoted(code.archive(job.commit, folder / "code.tar.gz")),
            quoted(["cp", HERE / "worker.py", folder]),
            f"# {folder}/job.json: {json.dumps({'id': job.id, 'verb': job.verb, 'env': env, 'hosts': hosts})}",
            quoted(target.send(folder)),
            quoted(target.remote(f"{SENT} start")),
        ]

    lines = {
        "create": creation,
        "run": lambda: [*describe, *status, *start()],
        "status": lambda: [*describe, *status],
        "logs": lambda: [quoted(target.remote(f"{KEPT} log -{options.lines}", options.worker))],
        "stop": lambda: [
            *describe,
            "# the run saves and ends",
            quoted(target.remote(f"{NONE_YET}{KEPT} stop")),
            quoted(target.remote(f"{KEPT} status")),
            *([] if options.keep else ["# then", delete]),
        ],
        "watch": lambda: [
            *describe,
            *(["# where there is no slice", *creation()] if options.type else []),
            "# where it was preempted",
            delete,
            *status,
            *start(),
            "# while it runs, from byte 0 on",
            quoted(target.remote(f"{KEPT} log 0 BYTES", "0")),
        ],
    }
    print("\n".join(lines[options.action]()))
    return 0
