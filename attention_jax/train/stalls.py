"""Says when training waits for long, and for what; asks the device nothing."""

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from attention_jax.errors import UserError, one_sentence

T = TypeVar("T")
log = logging.getLogger(__name__)
DATA_SECONDS, STEP_SECONDS = 30.0, 120.0  # of waiting before it is said, and then each time that it has doubled


class Stalls:
    """A thread that looks at the clock while the main one waits.

    Args:
        first_look: seconds between its looks.
        ended: called with ("data", "step", …) and the seconds of each wait that was long enough to be said.
    """

    def __init__(self, first_look: float = 1.0, ended: Callable[[str, float], None] = lambda kind, seconds: None):
        self._look, self._ended = first_look, ended
        self._waiting: tuple[float, float, str] | None = None  # since, seconds until it is said, sentence
        self._over = threading.Event()

    def __enter__(self) -> "Stalls":
        threading.Thread(target=self._watch, daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._over.set()

    @contextlib.contextmanager
    def waiting(self, kind: str, seconds: float, reason: str) -> Iterator[None]:
        """Around a wait for something: after so many seconds "waiting for KIND since N s: REASON" is said."""
        begin = time.monotonic()
        self._waiting = begin, seconds, f"waiting for {kind} since {{:.0f}} s: {reason}"
        try:
            yield
        finally:
            self._waiting = None
            waited = time.monotonic() - begin
            if waited >= seconds:
                self._ended(kind, waited)

    def over_data(self, batches: Iterable[T], threads: int) -> Iterator[T]:
        """The same batches, each waited for under watch. Raises UserError when one cannot be read."""
        plural = "threads" if threads > 1 else "thread"
        reason = (
            f"the disk or network they come from, or the {threads} {plural} that make batches (data.threads), are too slow."
        )
        batches, end = iter(batches), object()
        while True:
            with self.waiting("data", DATA_SECONDS, reason):
                try:
                    batch = next(batches, end)
                except OSError as error:
                    raise UserError(
                        f"data: a batch cannot be read ({one_sentence(error)}): mend this and start the same command again."
                    ) from error
            if batch is end:
                return
            yield batch

    def for_step(self, step: int) -> contextlib.AbstractContextManager[None]:
        """Around reading the metrics of a step."""
        reason = "the devices are slow, or another process waits for its data or is gone."
        return self.waiting(f"step {step}", STEP_SECONDS, reason)

    def _watch(self) -> None:
        said, since = 0.0, None
        while not self._over.wait(self._look):
            if (waiting := self._waiting) is None:
                continue
            begin, seconds, sentence = waiting
            if begin != since:
                since, said = begin, seconds / 2
            waited = time.monotonic() - begin
            if waited >= 2 * said:
                said = waited
                log.warning(sentence.format(waited))
