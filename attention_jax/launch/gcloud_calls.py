"""Runs gcloud's commands: what the network spoils is tried again, and a refusal ends with gcloud's own sentence."""

from __future__ import annotations  # for Python 3.9

import calendar
import json
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

from attention_jax.errors import UserError
from attention_jax.launch.shared import quote_words

# What gcloud says when trying again can help. It is looked for first: a limit of requests a minute is called a quota too, and
# a token that could not be fetched because a name did not resolve comes with the advice to log in again.
_PASSING = re.compile(
    r"(?i:per minute|rate.?limit|name resolution|name or service not known|failed to resolve|nodename nor"
    r"|unable to find the server|max retries exceeded|connection (?:reset|refused|aborted|timed out|error)|reset by peer"
    r"|network is unreachable|no route to host|timed out|remote end closed|SSLError|TransportError|broken pipe)"
    r"|\b(?:UNAVAILABLE|INTERNAL|ABORTED|DEADLINE_EXCEEDED)\b|(?:HTTPError |code=|status[: ]+)(?:429|5\d\d)"
)
_NO_PLACE = re.compile(r"(?i:unknown (?:zone|location)|(?:zone|location) \S+ (?:is |was )?(?:not found|unknown)|invalid zone)")
_FINAL = re.compile(
    r"(?i:permission|gcloud auth login|reauthenticat|quota|invalid|not supported|unrecognized|has not been used|is disabled"
    r"|required)|\b(?:UNAUTHENTICATED|INVALID_ARGUMENT|FAILED_PRECONDITION|OUT_OF_RANGE|ALREADY_EXISTS)\b"
)
_ABSENT = re.compile(r"NOT_FOUND|not found")
PATIENCE, FIRST_WAIT, LONGEST_WAIT = 60.0, 2.0, 300.0  # seconds; the wait between two attempts doubles
_UNKNOWN = 8  # attempts of a command that fails in none of these ways: about eight minutes


def call_gcloud(command: Sequence[str], patience: float = PATIENCE, first: float = FIRST_WAIT) -> str | None:
    """Returns the standard output of a command; None if what it names does not exist.

    Args:
        patience: seconds for which a failure of the network is tried again; infinity for as long as it lasts.
        first: seconds before the second attempt.

    Raises:
        UserError: gcloud refuses, is not installed, or has failed for longer than that.
    """
    begun, attempt, wait = time.monotonic(), 1, first
    while True:
        try:
            done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
        except FileNotFoundError:
            raise UserError("gcloud is not installed here: https://cloud.google.com/sdk/docs/install explains how.") from None
        if done.returncode == 0:
            return done.stdout
        said, reason = done.stderr, last_sentence(done.stderr)
        passing = bool(_PASSING.search(said))
        if not passing and not _NO_PLACE.search(said) and _ABSENT.search(said):
            return None
        final = not passing and bool(_FINAL.search(said) or _NO_PLACE.search(said) or attempt >= _UNKNOWN)
        if final or time.monotonic() - begun + wait > patience:
            times = f" {attempt} times" if attempt > 1 else ""
            raise UserError(f"{quote_words(command)[:200]} failed{times}: {reason}")
        print(f"tpu: gcloud failed ({reason[:200]}); trying again in {wait:.0f} s.", file=sys.stderr, flush=True)
        time.sleep(wait)
        attempt, wait = attempt + 1, min(2 * wait, LONGEST_WAIT)


def last_sentence(text: str) -> str:
    """Returns what a failed gcloud says, on one line: from its last line that begins with ERROR on."""
    lines = [line.strip() for line in text.splitlines() if line.strip()] or ["no message"]
    begin = max((number for number, line in enumerate(lines) if line.startswith("ERROR")), default=len(lines) - 1)
    return " ".join(lines[begin:])[:500]


def read_json(command: Sequence[str], patience: float = PATIENCE, first: float = FIRST_WAIT) -> dict[str, Any]:
    """Returns the JSON that a command prints; {} if the described thing does not exist."""
    printed = call_gcloud(command, patience, first)
    return json.loads(printed) if printed else {}


def count_hours(node: dict[str, Any]) -> float:
    """Returns the hours since the machines of a described node were made; 0 if it does not say when."""
    match = re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d", str(node.get("createTime")))
    made = calendar.timegm(time.strptime(match[0], "%Y-%m-%dT%H:%M:%S")) if match else time.time()
    return max(0.0, time.time() - made) / 3600
