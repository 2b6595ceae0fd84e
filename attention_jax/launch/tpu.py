"""`./launch.sh tpu create | run | watch | status | logs | stop NAME --zone=ZONE … [-- COMMAND ...]`.

A slice is a queued resource of Google Cloud. `watch` does everything: it requests the slice if there is none, waits, sends
the code, starts it on every worker, prints the log of worker 0, requests the slice again when it is preempted and goes on
from the last checkpoint, and names the worker that failed. `watch` is stateless: stop and restart it at any time, from any
machine; the run goes on without it.

Each worker gets three files: an archive of the commit, worker.py, and the words of the command with the values of --env.
No value and no word of the command passes through a shell, a log or a process list.
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
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from attention_jax.errors import UserError
from attention_jax.launch import shared
from attention_jax.launch.gcloud import INCOMING, TpuSlice, parse_accelerator

WORKER = Path(__file__).resolve().parent / "worker.py"
MARK = "AJ "
NONE_YET = f'test -e attention_jax/worker.py || {{ echo \'{MARK}{{"state": "none"}}\'; exit 0; }}; '
START, KEPT = f"python3 {INCOMING}/worker.py start", "python3 attention_jax/worker.py"
STATUS, STOP = f"{NONE_YET}{KEPT} status", f"{NONE_YET}{KEPT} stop"
MEANWHILE = "meanwhile, this command predicts memory and time of the step"
RESTARTS = 3  # after a worker vanished from a slice that is still active: its host was restarted


def main(arguments: Sequence[str]) -> int:
    """Does one action; returns 0, or 1 if the run failed."""
    own, command = shared.split_arguments(arguments)
    options = _parser().parse_args(own)
    target = TpuSlice(options.name, options.zone, options.project, options.internal_ip)
    if options.action in ("run", "watch") or (options.action == "create" and command):
        shared.check_command(command)
        _check_workdir(command)
    elif command:
        raise UserError(f"{options.action} takes nothing after ' -- ': a command is for create, run and watch.")
    if options.dry_run:
        print("\n".join(_plan(target, options, command)))
        return 0
    if command and options.check:
        shared.check_inputs(command, shared.find_commit(options.commit, command))
    return _ACTIONS[options.action](target, options, command) or 0


def _parser() -> shared.Parser:
    parser = shared.Parser("tpu", description=__doc__)
    parser.add_argument("action", choices=tuple(_ACTIONS))
    parser.add_argument("name", metavar="NAME", help="of the slice")
    parser.add_argument("--zone", required=True)
    parser.add_argument("--project", help="default gcloud's")
    parser.add_argument("--internal-ip", action="store_true", help="reach the workers inside their network")
    parser.add_argument("--dry-run", action="store_true", help="print what would run, and contact nothing")
    group = parser.add_argument_group("create and watch")
    group.add_argument("--type", metavar="TYPE", help="v5e-16, v4-32, v6e:4x4, …")
    group.add_argument("--spot", action="store_true", help="cheaper, and may be preempted at any time")
    group.add_argument("--runtime-version", metavar="IMAGE", help="default by the type")
    group.add_argument("--create-flag", action="append", default=[], metavar="FLAG", help="for gcloud, e.g. --network=NAME")
    group = parser.add_argument_group("run and watch, and create with the command that is to run")
    shared.add_check_option(group)
    group.add_argument("--commit", metavar="REV", help="default the newest, of a checkout without other changes")
    group.add_argument("--env", action="append", default=[], metavar="NAME", help="a variable to send with its value here")
    group.add_argument("--every", type=float, default=30, metavar="SECONDS", help="between two checks of watch; default 30")
    group = parser.add_argument_group("logs and stop")
    group.add_argument("--worker", default="all", metavar="N", help="default all")
    group.add_argument("--lines", type=int, default=40, metavar="K", help="last lines of each; default 40")
    group.add_argument("--keep", action="store_true", help="stop the run and keep the slice")
    return parser


def _check_workdir(command: Sequence[str]) -> None:
    for name in ("workdir", "output"):
        folder = shared.find_option(command, name)
        if folder and "://" not in folder and not folder.startswith("/"):
            raise UserError(
                f"--{name}={folder} would lie on each worker's own disk, which is deleted with the slice: give a URI such as "
                "gs://BUCKET/RUN, or the absolute path of a disk that all workers share."
            )


def _create(target: TpuSlice, options: argparse.Namespace, command: Sequence[str]) -> None:
    shared.run_program(_creation(target, options))
    print(f"{target.name} is requested: wait for it with status, or let watch do it.")
    print(f"{MEANWHILE}: {shared.quote_words(_preflight(options, command))}")


def _run(target: TpuSlice, options: argparse.Namespace, command: Sequence[str]) -> None:
    job, state = Job(target, options, command), _read_state(target)
    if state != "ACTIVE":
        raise UserError(f"{target.name} is {state}, not ACTIVE: wait, or use watch, which waits for it.")
    statuses = job.ask_status()
    job.start(len(statuses))
    print(f"{len(statuses)} workers have started; this terminal may close. Follow with logs, status or watch.")


def _status(target: TpuSlice, options: argparse.Namespace, command: Sequence[str]) -> None:
    state = _read_state(target)
    print(f"{target.name}: {state}")
    if state == "ACTIVE":
        for status in _ask_workers(target, STATUS):
            print(f"  {_describe(status)}")


def _logs(target: TpuSlice, options: argparse.Namespace, command: Sequence[str]) -> None:
    _print_log(target, options.worker, f"-{options.lines}")


def _stop(target: TpuSlice, options: argparse.Namespace, command: Sequence[str]) -> None:
    """Has all workers save the same step; then deletes the slice, unless it is kept."""
    state = _read_state(target)
    if state == "ACTIVE":
        statuses = _ask_workers(target, STOP)
        deadline = time.monotonic() + 600
        while any(status["state"] == "running" for status in statuses):
            if time.monotonic() > deadline:
                raise UserError("the run has not ended within ten minutes; the slice is kept: see logs, and try again.")
            time.sleep(min(options.every, 10))
            statuses = _ask_workers(target, f"{KEPT} status")
        print("\n".join(map(_describe, statuses)))
    if not options.keep and state != "ABSENT":
        shared.run_program(target.delete())
        print(f"{target.name} is deleted.")


def _watch(target: TpuSlice, options: argparse.Namespace, command: Sequence[str]) -> int:
    job, reported = Job(target, options, command), ""
    while True:
        state = _read_state(target)
        if state != reported:
            _say(f"{target.name} is {state}")
            reported = state
        if state == "ABSENT":
            creation = _creation(target, options)
            _say(f"{MEANWHILE}: {shared.quote_words(_preflight(options, command))}")
            shared.run_program(creation)
        elif state == "FAILED":
            describe = shared.quote_words(target.describe())
            raise UserError(f"the request for {target.name} has failed: {describe} has the reason; then stop.")
        elif state in ("SUSPENDED", "PREEMPTED", "TERMINATED"):
            _say("asking for it anew; the run goes on from its last checkpoint")
            shared.run_program(target.delete())
            job.begun = False
            continue
        elif state == "ACTIVE":
            try:
                code = job.check_workers()
                if code is not None:
                    return code
            except Unreachable as error:
                _say(f"{error} Looking again")
        time.sleep(options.every)


_ACTIONS: dict[str, Callable[..., int | None]]
_ACTIONS = {"create": _create, "run": _run, "watch": _watch, "status": _status, "logs": _logs, "stop": _stop}


class Unreachable(UserError):
    """Workers that did not answer; the slice may be going down."""


class Job:
    """One command at one commit, as it is sent to a slice, and the progress that `watch` has seen there."""

    def __init__(self, target: TpuSlice, options: argparse.Namespace, command: Sequence[str]):
        self.target, self.command = target, list(command)
        for name in options.env:
            if name not in os.environ:
                raise UserError(f"--env={name}: this variable is not set here.")
        self.env = {name: os.environ[name] for name in options.env}
        self.commit = shared.find_commit(options.commit, command)
        self.id = hashlib.sha256(json.dumps([self.commit, self.command]).encode()).hexdigest()[:16]
        self.begun, self.restarts = False, 0
        self.seen = 0  # bytes of worker 0's log that were printed

    def ask_status(self) -> list[dict[str, Any]]:
        """Returns the workers' states; raises UserError while one runs something else."""
        statuses = _ask_workers(self.target, STATUS)
        if any(status["state"] == "running" and status["id"] != self.id for status in statuses):
            raise UserError("another run is going on this slice: end it first with stop --keep.")
        return statuses

    def description(self, hosts: list[str], env: dict[str, str]) -> str:
        """Returns the content of job.json, which worker.py reads."""
        return json.dumps({"id": self.id, "command": self.command, "env": env, "hosts": hosts})

    def start(self, workers: int) -> None:
        """Sends the job to all workers and starts it; only the owner can read its files, which are removed afterwards."""
        folder = _outgoing(self.target)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        folder.chmod(0o700)
        try:
            shared.run_program(shared.archive_command(self.commit, folder / "code.tar.gz"))
            shutil.copy(WORKER, folder)
            hosts = [f"{self.target.name} worker {number}" for number in range(workers)]  # as messages name them
            (folder / "job.json").write_text(self.description(hosts, self.env))
            shared.run_program(self.target.send(folder))
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        _ask_workers(self.target, START)

    def check_workers(self) -> int | None:
        """Starts, restarts or follows the run on an active slice; returns its exit code, or None while it goes on."""
        statuses = self.ask_status()
        states = {status["state"] if status.get("id") == self.id else "none" for status in statuses}
        failed = [status for status in statuses if status.get("code") and status.get("id") == self.id]
        stopped = any(status.get("stopped") for status in statuses)
        if states == {"ended"} and not failed and not stopped:
            self.print_news(statuses)
            _say("all workers are done; the slice is kept until stop")
            return 0
        if self.begun and "vanished" in states:
            self.restarts += 1
            if self.restarts > RESTARTS:
                raise UserError(f"a worker has vanished {self.restarts} times: see logs.")
        elif self.begun and not stopped and failed and _read_state(self.target) == "ACTIVE":
            # The first failure is the cause: the others may only have lost that worker.
            first = min(failed, key=lambda status: status["ended"])
            where = f"worker {first['worker']} of {len(statuses)}"
            _say(f"{where} ended first, with exit code {first['code']}; stopping the others")
            _ask_workers(self.target, STOP)
            _print_log(self.target, first["worker"], "-30")
            return 1
        if states == {"running"}:
            self.begun = True
            self.print_news(statuses)
        elif "running" in states:  # of a run that has lost a worker
            _ask_workers(self.target, STOP)
        else:
            _say(f"starting {shared.quote_words(self.command)[:100]} at commit {self.commit[:12]} on {len(statuses)} workers")
            self.start(len(statuses))
            self.begun, self.seen = True, 0
        return None

    def print_news(self, statuses: list[dict[str, Any]]) -> None:
        """Prints what worker 0 has written since the last time."""
        size = statuses[0].get("size", 0)
        if size > self.seen:
            with contextlib.suppress(UserError):
                _print_log(self.target, 0, f"{self.seen} {size - self.seen}")
                self.seen = size


def _outgoing(target: TpuSlice) -> Path:
    """Returns the folder of the files to send."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "attention_jax" / "tpu" / target.name / INCOMING


def _creation(target: TpuSlice, options: argparse.Namespace) -> list[str]:
    if not options.type:
        raise UserError(f"there is no slice {target.name} yet: give its --type, such as v5e-16.")
    kind, image = parse_accelerator(options.type)
    image = options.runtime_version or image
    if not image:
        raise UserError(f"--type={options.type} is of no known family: give its image with --runtime-version.")
    return target.create(kind, image, options.spot, options.create_flag)


def _preflight(options: argparse.Namespace, command: Sequence[str]) -> list[str]:
    """Returns the preflight, for this machine, of the step of `command` on such a slice."""
    config, fields = shared.find_option(command, "config") or "FILE", [word for word in command if word.startswith("--config.")]
    return ["./launch.sh", "preflight", f"--config={config}", *fields, f"--topology={options.type}"]


def _read_state(target: TpuSlice) -> str:
    """Returns the request's state, or ABSENT; the machines' state if they are not READY although the request is ACTIVE."""
    state = _read_json(target.describe()).get("state", {}).get("state", "ABSENT")
    if state == "ACTIVE":
        node = _read_json(target.describe_node()).get("state", "SUSPENDED")
        return "ACTIVE" if node == "READY" else node
    return state


def _read_json(command: Sequence[str]) -> dict[str, Any]:
    """Returns the JSON that a command prints; {} if the described thing does not exist."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise UserError("gcloud is not installed here: https://cloud.google.com/sdk/docs/install explains how.") from None
    if done.returncode == 0:
        return json.loads(done.stdout)
    if "NOT_FOUND" in done.stderr or "not found" in done.stderr:
        return {}
    raise UserError(f"{shared.quote_words(command)} failed: {done.stderr.strip()[-500:]}")


def _ask_workers(target: TpuSlice, command: str) -> list[dict[str, Any]]:
    """Runs a command of worker.py on all workers and returns their status lines, in order."""
    try:
        done = subprocess.run(target.remote(command), capture_output=True, text=True, check=False, timeout=900)
    except subprocess.TimeoutExpired:
        raise Unreachable("the workers did not answer within a quarter of an hour.") from None
    found = [json.loads(line[len(MARK) :]) for line in done.stdout.splitlines() if line.startswith(MARK)]
    if done.returncode or not found:
        last = done.stderr.strip().splitlines()[-1:] or ["nothing"]
        raise Unreachable(f"{len(found)} workers answered; gcloud says: {last[0][:300]}.")
    return sorted(found, key=lambda status: status.get("worker", 0))


def _print_log(target: TpuSlice, worker: object, part: str) -> None:
    print(shared.run_program(target.remote(f"{KEPT} log {part}", str(worker))), end="", flush=True)


def _describe(status: dict[str, Any]) -> str:
    text = {"none": "nothing was started", "vanished": "vanished: the host was restarted"}.get(status["state"], "")
    if status["state"] == "ended":
        text = f"ended with exit code {status['code']}{', stopped by a signal' if status['stopped'] else ''}"
    elif status["state"] == "running":
        text = f"running for {(time.time() - status['began']) / 60:.0f} minutes, {status['size']:,} bytes of log"
    return f"worker {status.get('worker', '?')}: {text}"


def _say(text: str) -> None:
    print(f"tpu: {text}.", file=sys.stderr, flush=True)


def _plan(target: TpuSlice, options: argparse.Namespace, command: Sequence[str]) -> list[str]:
    """Returns the commands of an action as shell lines, with a comment where they depend on an answer."""
    action, lines = options.action, []

    def add(comment: str, *commands: Sequence[object]) -> None:
        lines.extend([f"# {comment}", *map(shared.quote_words, commands)])

    if action not in ("create", "logs"):
        add("the slice's state", target.describe(), target.describe_node())
    if action == "create" or (action == "watch" and options.type):
        add(f"if there is no slice; {MEANWHILE}", _preflight(options, command), _creation(target, options))
    if action == "watch":
        add("if it was preempted", target.delete())
    if action in ("run", "watch", "status"):
        add("the workers' states", target.remote(STATUS))
    if action in ("run", "watch"):
        job, folder = Job(target, options, command), _outgoing(target)
        env = {name: f"(the value of {name} here)" for name in job.env}
        add(f"{folder}/job.json: {job.description([f'{target.name} worker 0', '(and so on)'], env)}")
        pack = shared.archive_command(job.commit, folder / "code.tar.gz"), ["cp", WORKER, folder]
        add("the code, the command and the program that runs it", *pack, target.send(folder), target.remote(START))
    if action == "watch":
        add("while it runs, from byte 0 on", target.remote(f"{KEPT} log 0 BYTES", "0"))
    if action == "logs":
        add("the last lines", target.remote(f"{KEPT} log -{options.lines}", options.worker))
    if action == "stop":
        add("the run saves and ends", target.remote(STOP), target.remote(f"{KEPT} status"))
        if not options.keep:
            add("then", target.delete())
    return lines
