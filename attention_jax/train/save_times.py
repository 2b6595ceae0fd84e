"""Saves by the clock, and the duration of a save, compared with the notice that a spot machine gets."""

import logging
import time
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from attention_jax.train.checkpoint import Checkpoints
from attention_jax.train.metrics import Log

log = logging.getLogger(__name__)
NOTICE = 30.0  # seconds from the notice to the end of a spot machine (Compute Engine, "Spot VMs", 2026)


def count_written_bytes(state: Any) -> int:
    """Returns the bytes of a state that one process writes: what several hold is divided among them."""
    total = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
    return total * jax.local_device_count() // jax.device_count()


def describe_notice(written: int, rate: float) -> str:
    """Returns whether a process can write these bytes within a spot notice at a rate in MB/s, 0 for an unknown one."""
    text = f"{written:,} bytes by each process"
    if not rate:
        need = written / NOTICE / 1e6
        return f"{text}: within a spot notice of {NOTICE:g} s from {need:.3g} MB/s; the first save measures the link"
    seconds = written / rate / 1e6
    return (
        f"{text}, {seconds:.3g} s at {rate:.3g} MB/s: {'' if seconds < NOTICE else 'not '}within a spot notice of {NOTICE:g} s"
    )


class SaveTimes:
    """The clock of `checkpoint.every_minutes`, and the durations of saves, which go to the log of wall-clock times."""

    def __init__(self, config: ConfigDict, state: Any, checkpoints: Checkpoints, timing: Log):
        self._minutes, self._checkpoints, self._timing = config.checkpoint.every_minutes, checkpoints, timing
        self._written, self._last, self._is_first = count_written_bytes(state), time.monotonic(), True

    def start(self) -> None:
        """Starts the clock anew, as a save begins."""
        self._last = time.monotonic()

    def is_due(self) -> bool:
        """True if the minutes have passed on process 0's clock (collective)."""
        due = bool(self._minutes) and time.monotonic() - self._last >= 60 * self._minutes
        if self._minutes and jax.process_count() > 1:
            due = bool(multihost_utils.broadcast_one_to_all(np.int32(due)))
        return due

    def check(self) -> None:
        """Logs the duration of a save that has ended; the first one's is compared with a spot notice.

        Raises UserError if a save in the background has failed.
        """
        self._checkpoints.check()
        while self._checkpoints.durations:
            seconds = self._checkpoints.durations.pop(0)
            self._timing.time({"event": "saved", "seconds": seconds, "bytes": self._written})
            if self._is_first:
                log.info("first save: %s.", describe_notice(self._written, self._written / max(seconds, 1e-9) / 1e6))
            self._is_first = False
