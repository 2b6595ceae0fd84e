"""The wall-clock times of a training run, and its profile."""

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

import jax

from attention_jax.distributed.mesh import count_threads
from attention_jax.train.metrics import Log


class Clock:
    """Writes wall-clock times to `timing.jsonl`."""

    def __init__(self, log: Log, batch_size: float, called: float):
        self._log, self.batch_size, self._called = log, batch_size, called
        self._at: float | None = None
        self._step = 0
        self.first: tuple[float, float] | None = None  # as in `TrainingResult`
        self.seconds_at_peak: float | None = None  # seconds of a step at the chips' peak
        self.mfu: float | None = None

    @contextlib.contextmanager
    def first_step(self) -> Iterator[None]:
        """Measures the dispatch of a call's first step, which traces and compiles it."""
        if self.first:
            yield
            return
        begin = time.perf_counter()
        yield
        self._at = time.perf_counter()
        self.first = self._at - self._called, self._at - begin
        about = {"seconds": self.first[1], "since_call": self.first[0], "threads": count_threads()}
        self._log.time({"event": "first step dispatched", **about})

    @contextlib.contextmanager
    def measured(self, event: str, step: int) -> Iterator[None]:
        """Measures a pause of training, which does not count in the examples per second."""
        begin = time.perf_counter()
        yield
        seconds = time.perf_counter() - begin
        if self._at is not None:
            self._at += seconds
        self._log.time({"event": event, "step": step, "seconds": seconds})

    def lap(self, step: int) -> None:
        """Writes the examples per second since the previous lap, and the model FLOPs utilisation where it is known."""
        now = time.perf_counter()
        if self._at is not None and self._step:
            a_second = (step - self._step) / max(now - self._at, 1e-9)
            self.mfu = a_second * self.seconds_at_peak if self.seconds_at_peak else None
            known = {"mfu": self.mfu} if self.mfu is not None else {}
            rates = {"examples_per_second": a_second * self.batch_size, "seconds_per_step": 1 / a_second}
            self._log.time({"event": "training", "step": step, **rates, **known})
        self._at, self._step = now, step


class Profiler(contextlib.ExitStack):
    """Writes a trace of the steps in the profiling window to `profile/`."""

    def __init__(self, folder: Path, first_step: int, num_steps: int):
        super().__init__()
        self._folder, self._window, self._started = folder / "profile", range(first_step, first_step + num_steps), False

    def after(self, step: int) -> None:
        """Starts or stops the trace; call it when `step` steps have been dispatched."""
        if step in self._window and not self._started:
            self._started = True
            self.enter_context(jax.profiler.trace(str(self._folder)))
        elif step >= self._window.stop:
            self.close()
