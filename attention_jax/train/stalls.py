"""Warns when training waits long, and names the reason; it does not use the device."""

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from attention_jax.errors import UserError, one_sentence

T = TypeVar("T")
log = logging.getLogger(__name__)
DATA_SECONDS, STEP_SECONDS = 30.0, 120.0  # waiting time before the first warning; each further one comes after twice the time


class Stalls:
    """A thread that watches the clock while the main one waits.

    Args:
        interval: seconds between two checks.
        ended: function to call with ("data" or "step N", seconds) after each wait that was long enough for a warning.
    """

    def __init__(self, interval: float = 1.0, ended: Callable[[str, float], None] = lambda kind, seconds: None):
        self._interval, self._ended = interval, ended
        self._waiting: tuple[float, float, str] | None = None  # start, seconds until the warning, warning
        self._over = threading.Event()

    def __enter__(self) -> "Stalls":
        threading.Thread(target=self._run, daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._over.set()

    @contextlib.contextmanager
    def watch(self, kind: str, seconds: float, reason: str) -> Iterator[None]:
        """Warns "waiting for KIND since N s: REASON" if the context takes longer than `seconds`."""
        begin = time.monotonic()
        self._waiting = begin, seconds, f"waiting for {kind} since {{:.0f}} s: {reason}"
        try:
            yield
        finally:
            self._waiting = None
            waited = time.monotonic() - begin
            if waited >= seconds:
                self._ended(kind, waited)

    def watch_batches(self, batches: Iterable[T], threads: int) -> Iterator[T]:
        """Yields the same batches and watches the wait for each. Raises UserError if one cannot be read."""
        plural = "threads" if threads > 1 else "thread"
        reason = (
            f"the disk or network they come from, or the {threads} {plural} that make batches (data.threads), are too slow."
        )
        batches = iter(batches)
        while True:
            with self.watch("data", DATA_SECONDS, reason):
                try:
                    batch = next(batches)
                except StopIteration:
                    return
                except OSError as error:
                    raise UserError(
                        f"data: a batch cannot be read ({one_sentence(error)}): fix this and start the same command again."
                    ) from error
            yield batch

    def watch_step(self, step: int) -> contextlib.AbstractContextManager[None]:
        """Watches the reading of a step's metrics."""
        reason = "the devices are slow, or another process waits for its data or is gone."
        return self.watch(f"step {step}", STEP_SECONDS, reason)

    def _run(self) -> None:
        warned, since = 0.0, None
        while not self._over.wait(self._interval):
            if (waiting := self._waiting) is None:
                continue
            begin, seconds, sentence = waiting
            if begin != since:
                since, warned = begin, seconds / 2
            waited = time.monotonic() - begin
            if waited >= 2 * warned:
                warned = waited
                log.warning(sentence.format(waited))
