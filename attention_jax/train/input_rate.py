"""Says whether the data or the steps of a host are the slower: after the first minute of training, and before it."""

import dataclasses
import logging
import os
import queue
import threading
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from attention_jax.data.loader import LoadingTimes
from attention_jax.errors import UserError

log = logging.getLogger(__name__)
SECONDS = 60.0  # seconds of training after the first step, which is compiled


def compare_rates(data: float, step: float, reading: float) -> str:
    """Returns a sentence about examples a second that a host's data give and that its step takes.

    Args:
        reading: the share of the loader's time that goes into reading.
    """
    rates = f"input: this host's data give {data:,.0f} examples a second and its step takes {step:,.0f}"
    if data >= step:
        return f"{rates}: the step is the slower, by a factor of {data / step:.2g}."
    advice = "data.cache_dir" if reading > 0.5 else "data.threads, or a host with more cores"
    share = f"reading takes {reading:.0%} of their time (see {advice})"
    return f"{rates}: the data are short by a factor of {step / data:.3g}, and {share}."


def estimate_rate(sums: np.ndarray, threads: int) -> float:
    """Returns examples a second that `threads` threads give here, from the four sums of `LoadingTimes`."""
    examples, _, seconds, of_a_core = sums
    return examples * min(threads / seconds, len(os.sched_getaffinity(0)) / max(of_a_core, 1e-9))


def probe_data(loader: Any, seconds: float = 10.0) -> tuple[float, float]:
    """Loads training batches for some seconds; returns examples a second, and the share of the time that goes into reading.

    Raises UserError for a loader without times: sentence pairs are in memory before training begins.
    """
    if not hasattr(loader, "times"):
        raise UserError("--probe-data measures images: the data of this config are read before training begins.")
    small = dataclasses.replace(loader, batch_size=min(64, loader.batch_size), times=LoadingTimes())
    end = time.perf_counter() + seconds
    for _ in small.training(0, 2**30):
        if time.perf_counter() >= end:
            break
    sums = small.times.sums()
    return estimate_rate(sums, loader.threads), sums[1] / sums[2]


class InputRate:
    """Times the first minute of steps in a thread of its own, so that the training loop waits for nothing more.

    Args:
        loader: has `times` (see `LoadingTimes`) if it can be measured; others stay unmeasured.
        threads: threads of the loader.
        examples: examples per step, over all processes.
        record: called with the rates, in examples a second.
    """

    def __init__(self, loader: Any, threads: int, examples: float, record: Callable[[dict[str, Any]], None]):
        self._times: LoadingTimes | None = getattr(loader, "times", None)
        self._threads, self._examples, self._record = threads, examples / jax.process_count(), record
        self._steps = queue.SimpleQueue[tuple[float, Any] | None]()
        self._thread = threading.Thread(target=self._measure, daemon=True)
        self._begin, self._is_minute, self._over = 0.0, False, self._times is None

    def add(self, begin: float, metrics: Any) -> None:
        """Takes the metrics of a step that was dispatched at `begin` (`time.perf_counter`)."""
        if self._over:
            return
        if not self._begin:  # the first step
            self._begin = time.perf_counter()
            self._thread.start()
        self._is_minute = time.perf_counter() - self._begin >= SECONDS
        self._steps.put((begin, jax.tree.leaves(metrics)[:1]))
        if self._is_minute:
            self.close()

    def close(self) -> None:
        """Ends the measurement, without a sentence after less than a minute."""
        if self._begin and not self._over:
            self._steps.put(None)
            if not self._is_minute:
                self._thread.join()
        self._over = True

    def _measure(self) -> None:
        assert self._times
        ready, durations, before = 0.0, list[float](), np.zeros(4)
        while item := self._steps.get():
            begin, metrics = item
            jax.block_until_ready(metrics)
            begin, ready = max(begin, ready), time.perf_counter()
            if before[0]:
                durations.append(ready - begin)
            else:
                before = self._times.sums()  # from here on nothing is compiled
        sums = self._times.sums() - before
        if not (self._is_minute and durations and sums[0]):
            return
        data, step, reading = estimate_rate(sums, self._threads), sorted(durations)[len(durations) // 2], sums[1] / sums[2]
        log.info("%s", compare_rates(data, self._examples / step, reading))
        self._record({"event": "input", "data": data, "step": self._examples / step, "share_of_reading": reading})
