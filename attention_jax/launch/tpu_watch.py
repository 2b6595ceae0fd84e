"""`watch`: keeps a run going on a slice for days, through lost machines, failures of the network and runtime errors."""

from __future__ import annotations  # for Python 3.9

import argparse
import time
from collections.abc import Sequence

from attention_jax.errors import UserError
from attention_jax.launch import shared
from attention_jax.launch.gcloud import count_chips
from attention_jax.launch.gcloud_calls import count_hours
from attention_jax.launch.tpu_job import KILL, Job, SliceClient, Status, Unreachable, say

USER_ERROR = 2  # exit code: the same command would fail again
UNANSWERED = 20  # checks in a row that the workers of a slice in good state leave unanswered: one is lost
LONGEST_PAUSE = 600.0  # seconds before a restart
MEANWHILE = "meanwhile, this command predicts memory and time of the step"


class Watch:
    """One job and what was seen of it; a new one begins from nothing but the slice itself."""

    def __init__(self, client: SliceClient, job: Job, options: argparse.Namespace, preflight: Sequence[str]):
        self.client, self.job, self.options, self.preflight = client, job, options, preflight
        self.begun, self.restarts, self.unanswered, self.reported = False, 0, 0, ""
        self.chip_hours = self.hours = 0.0  # spent on slices that were taken away meanwhile

    def run(self, creation: Sequence[str] | None) -> int:
        """Looks again and again until the run has ended; returns 0 if it is done, 1 if it failed or was stopped for time."""
        while (code := self.look(creation)) is None:
            time.sleep(self.options.every)
        say(self.client.describe_bill(self.chip_hours))
        if self.options.delete_at_end:
            self.client.call(self.client.target.delete())
            say(f"{self.client.target.name} is deleted, as --delete-at-end says")
        else:
            say(f"{self.client.target.name} is kept and costs until stop deletes it")
        return code

    def look(self, creation: Sequence[str] | None) -> int | None:
        """Does what the slice's state asks for; returns the exit code when the run has ended."""
        client, name = self.client, self.client.target.name
        before = client.node
        state = client.read_state()
        if state != self.reported:
            say(f"{name} is {state}")
            self.reported = state
        if state == "ABSENT":
            if creation is None:
                raise UserError(f"there is no slice {name} yet: give its --type, such as v5e-16.")
            say(f"{MEANWHILE}: {shared.quote_words(self.preflight)}")
            self.request(creation)
        elif state in ("SUSPENDED", "PREEMPTED", "TERMINATED"):
            self.replace(before, "asking for it anew; the run goes on from its last checkpoint")
        elif state == "ACTIVE":
            if self.options.max_hours is not None and self.hours + count_hours(client.node) >= self.options.max_hours:
                return self.stop_for_time()
            try:
                code = self.check_workers()
                self.unanswered = 0
                return code
            except Unreachable as error:
                self.unanswered += 1
                say(f"{error} Looking again")
                if self.unanswered >= UNANSWERED:
                    return self.replace_lost()
        return None

    def request(self, creation: Sequence[str]) -> None:
        """Requests the slice; a request whose answer got lost exists when it is made again."""
        try:
            self.client.call(creation)
        except UserError as error:
            if "ALREADY_EXISTS" not in str(error) and "already exists" not in str(error):
                raise

    def replace(self, node: dict, why: str) -> None:
        """Deletes the slice; the next look requests it anew."""
        hours = count_hours(node)
        self.hours, self.chip_hours = self.hours + hours, self.chip_hours + hours * count_chips(node.get("acceleratorType", ""))
        say(why)
        self.client.call(self.client.target.delete())
        self.begun = False

    def replace_lost(self) -> int | None:
        """Counts a worker that no longer answers as a failure, and replaces the slice."""
        self.unanswered = 0
        if not self.count_restart("a worker has not answered for a long time although the slice is READY: it is lost"):
            return 1
        self.replace(self.client.node, "asking for the slice anew; the run goes on from its last checkpoint")
        return None

    def check_workers(self) -> int | None:
        """Starts, restarts or follows the run on an active slice; returns its exit code, or None while it goes on."""
        job, statuses = self.job, self.job.ask_status()
        ours = [status for status in statuses if status.get("id") == job.id]
        states = {status["state"] if status.get("id") == job.id else "none" for status in statuses}
        failed = [status for status in ours if status.get("code")]
        stopped = any(status.get("stopped") for status in statuses)
        if states == {"ended"} and not failed and not stopped:
            job.print_news(statuses)
            say("all workers are done")
            return 0
        if self.begun and (failed or "vanished" in states) and not (failed and stopped):
            return self.judge(failed, statuses)
        if states == {"running"}:
            self.begun = True
            job.print_news(statuses)
        elif "running" in states:  # the rest of a run that has lost a worker
            self.end_others()
        else:
            self.start(len(statuses))
        return None

    def judge(self, failed: list[Status], statuses: list[Status]) -> int | None:
        """Restarts the run after a failure, unless it is the user's or there were too many."""
        if self.client.read_state() != "ACTIVE":  # the slice is being taken away: the next look replaces it
            return None
        if failed:
            # The first failure is the cause: the others may only have lost that worker.
            first = min(failed, key=lambda status: status["ended"])
            signal = f" (signal {first['code'] - 128})" if first["code"] > 128 else ""
            what = f"worker {first['worker']} of {len(statuses)} ended first, with exit code {first['code']}{signal}"
            self.client.print_log(first["worker"], "-30")
            if first["code"] == USER_ERROR:
                say(f"{what}; stopping the others: an error of the user is not restarted")
                self.end_others()
                return 1
        else:
            lost = next(status for status in statuses if status["state"] == "vanished")
            what = f"worker {lost['worker']} of {len(statuses)} has vanished: its host was restarted"
        go_on = self.count_restart(f"{what}; stopping the others")
        self.end_others()
        if not go_on:
            return 1
        time.sleep(min(self.options.every * 2**self.restarts, LONGEST_PAUSE))
        self.start(len(statuses))
        return None

    def count_restart(self, what: str) -> bool:
        """Says what failed; returns False if that was once too often."""
        most = self.options.max_restarts
        if self.restarts >= most:
            say(f"{what}, and --max-restarts={most} restarts were made: see logs")
            return False
        self.restarts += 1
        say(f"{what}; restart {self.restarts} of {most} follows, from the last checkpoint")
        return True

    def start(self, workers: int) -> None:
        """Starts the job on all workers."""
        command = shared.quote_words(self.job.command)[:100]
        say(f"starting {command} at commit {self.job.commit[:12]} on {workers} workers")
        self.job.start(workers)
        self.begun = True

    def end_others(self) -> None:
        """Has the workers save and end, and kills what has not ended after ten minutes: it waits for a lost one."""
        if any(status["state"] == "running" for status in self.client.stop_run(self.options.every)):
            say("workers have not ended within ten minutes: they are killed")
            self.client.ask(KILL)

    def stop_for_time(self) -> int:
        """Stops the run because --max-hours are over."""
        hours, fate = self.options.max_hours, "deleted" if self.options.delete_at_end else "kept"
        command = shared.quote_words(self.job.command)[:100]
        say(f"--max-hours={hours:g} are over: stopping {command}, which saves first; the slice is {fate} then")
        try:
            self.end_others()
        except Unreachable as error:
            say(f"{error} The run resumes from its last checkpoint")
        return 1
