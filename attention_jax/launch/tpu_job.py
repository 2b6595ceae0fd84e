"""One slice as gcloud sees it, its workers, and the job that is sent to them."""

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
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from attention_jax.errors import UserError
from attention_jax.launch import shared
from attention_jax.launch.gcloud import INCOMING, TpuSlice, count_chips
from attention_jax.launch.gcloud_calls import FIRST_WAIT, PATIENCE, call_gcloud, count_hours, last_sentence, read_json

WORKER = Path(__file__).resolve().parent / "worker.py"
MARK = "AJ "
NONE_YET = f'test -e attention_jax/worker.py || {{ echo \'{MARK}{{"state": "none"}}\'; exit 0; }}; '
START, KEPT = f"python3 {INCOMING}/worker.py start", "python3 attention_jax/worker.py"
STATUS, STOP, KILL = (f"{NONE_YET}{KEPT} {action}" for action in ("status", "stop", "kill"))
Status = dict[str, Any]  # the report of worker.py on its machine


class Unreachable(UserError):
    """Workers that did not answer; the slice may be going down."""


class SliceClient:
    """Asks gcloud about a slice and its workers.

    Args:
        patience: seconds for which a failure of the network is tried again.
        first: seconds before the second attempt.
    """

    def __init__(self, target: TpuSlice, patience: float = PATIENCE, first: float = FIRST_WAIT):
        self.target, self.patience, self.first = target, patience, first
        self.node: dict[str, Any] = {}  # the machines, as gcloud described them last

    def call(self, command: Sequence[str]) -> str | None:
        """Runs a command of gcloud; None if what it names does not exist."""
        return call_gcloud(command, self.patience, self.first)

    def read_state(self) -> str:
        """Returns the request's state, or ABSENT; the machines' state if they are not READY although it is ACTIVE."""
        request = read_json(self.target.describe(), self.patience, self.first).get("state", {})
        state = request.get("state", "ABSENT")
        if state == "FAILED":
            reason = request.get("failedData", {}).get("error", {}).get("message")
            where = f"{shared.quote_words(self.target.describe())} has the reason"
            raise UserError(f"the request for {self.target.name} has failed: {reason or where}; then remove it with stop.")
        self.node = {}
        if state == "ACTIVE":
            self.node = read_json(self.target.describe_node(), self.patience, self.first)
            found = self.node.get("state", "SUSPENDED")
            return "ACTIVE" if found == "READY" else found
        return state

    def ask(self, command: str) -> list[Status]:
        """Runs a command of worker.py on all workers and returns their status lines, in order."""
        try:
            done = subprocess.run(self.target.remote(command), capture_output=True, text=True, check=False, timeout=900)
        except subprocess.TimeoutExpired:
            raise Unreachable("the workers did not answer within a quarter of an hour.") from None
        found = [json.loads(line[len(MARK) :]) for line in done.stdout.splitlines() if line.startswith(MARK)]
        if done.returncode or not found:
            raise Unreachable(f"{len(found)} workers answered; gcloud says: {last_sentence(done.stderr)[:300]}.")
        return sorted(found, key=lambda status: status.get("worker", 0))

    def stop_run(self, every: float, seconds: float = 600.0) -> list[Status]:
        """Has all workers save the same step and end; after `seconds` those that still run are in what it returns."""
        statuses, deadline = self.ask(STOP), time.monotonic() + seconds
        while any(status["state"] == "running" for status in statuses) and time.monotonic() < deadline:
            time.sleep(min(every, 10))
            statuses = self.ask(f"{KEPT} status")
        return statuses

    def print_log(self, worker: object, part: str) -> None:
        """Prints a part of a worker's log: "-30" its last lines, "BEGIN SIZE" bytes."""
        print(shared.run_program(self.target.remote(f"{KEPT} log {part}", str(worker))), end="", flush=True)

    def describe_bill(self, earlier: float = 0.0) -> str:
        """Returns the chip-hours of the described machines, and of `earlier` ones, in words."""
        chips, hours = count_chips(self.node.get("acceleratorType", "")), count_hours(self.node)
        before = f" and {earlier:.1f} of slices before it" if earlier else ""
        now = f"{chips} chips x {hours:.1f} hours = {chips * hours:.1f}" if chips else f"(unknown chips) x {hours:.1f}"
        return f"bill: {now} chip-hours so far{before}; price a chip-hour: https://cloud.google.com/tpu/pricing"


class Job:
    """One command at one commit, as it is sent to a slice."""

    def __init__(self, client: SliceClient, options: argparse.Namespace, command: Sequence[str]):
        self.client, self.command = client, list(command)
        for name in options.env:
            if name not in os.environ:
                raise UserError(f"--env={name}: this variable is not set here.")
        self.env = {name: os.environ[name] for name in options.env}
        self.commit = shared.find_commit(options.commit, command)
        self.id = hashlib.sha256(json.dumps([self.commit, self.command]).encode()).hexdigest()[:16]
        self.seen = 0  # bytes of worker 0's log that were printed

    def ask_status(self) -> list[Status]:
        """Returns the workers' states; raises UserError while one runs something else."""
        statuses = self.client.ask(STATUS)
        if any(status["state"] == "running" and status["id"] != self.id for status in statuses):
            raise UserError("another run is going on this slice: end it first with stop --keep.")
        return statuses

    def description(self, hosts: list[str], env: dict[str, str]) -> str:
        """Returns the content of job.json, which worker.py reads."""
        return json.dumps({"id": self.id, "command": self.command, "env": env, "hosts": hosts})

    def start(self, workers: int) -> None:
        """Sends the job to all workers and starts it; only the owner can read its files, which are removed afterwards."""
        target, folder = self.client.target, outgoing_folder(self.client.target)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        folder.chmod(0o700)
        try:
            shared.run_program(shared.archive_command(self.commit, folder / "code.tar.gz"))
            shutil.copy(WORKER, folder)
            hosts = [f"{target.name} worker {number}" for number in range(workers)]  # as messages name them
            (folder / "job.json").write_text(self.description(hosts, self.env))
            done = subprocess.run(target.send(folder), capture_output=True, text=True, check=False)
            if done.returncode:
                raise Unreachable(f"the code was not sent; gcloud says: {last_sentence(done.stderr)[:300]}.")
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        self.client.ask(START)
        self.seen = 0

    def print_news(self, statuses: list[Status]) -> None:
        """Prints what worker 0 has written since the last time."""
        size = statuses[0].get("size", 0)
        if size > self.seen:
            with contextlib.suppress(UserError):
                self.client.print_log(0, f"{self.seen} {size - self.seen}")
                self.seen = size


def outgoing_folder(target: TpuSlice) -> Path:
    """Returns the folder of the files to send."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "attention_jax" / "tpu" / target.name / INCOMING


def describe_status(status: Status) -> str:
    """Returns what a worker does, in words."""
    text = {"none": "nothing was started", "vanished": "vanished: the host was restarted"}.get(status["state"], "")
    if status["state"] == "ended":
        text = f"ended with exit code {status['code']}{', stopped by a signal' if status['stopped'] else ''}"
    elif status["state"] == "running":
        text = f"running for {(time.time() - status['began']) / 60:.0f} minutes, {status['size']:,} bytes of log"
    return f"worker {status.get('worker', '?')}: {text}"


def say(text: str) -> None:
    """Prints a message of the launcher."""
    print(f"tpu: {text}.", file=sys.stderr, flush=True)
