"""The training loop, for every task."""

import contextlib
import dataclasses
import errno
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from attention_jax.config.config import config_to_json
from attention_jax.distributed.mesh import agree_to_stop, count_threads, find_batch_share, is_main_process, prefetch_batches
from attention_jax.errors import UserError
from attention_jax.train import workdir
from attention_jax.train.checkpoint import Checkpoints
from attention_jax.train.evaluate import Interrupted, evaluate_model
from attention_jax.train.metrics import TIMING, Log
from attention_jax.train.program import Program, build_program
from attention_jax.train.remote_checkpoints import FarCheckpoints
from attention_jax.train.stalls import Stalls
from attention_jax.train.workdir import EVALUATION

_LAST = ("grad_norm", "learning_rate")  # metrics that are no sums: the interval's last value is logged


@dataclasses.dataclass(frozen=True)
class TrainingResult:
    """How a call of `train` ended.

    Attributes:
        step: reached.
        stopped: whether a signal had asked it to stop.
        folder: with the log; where the workdir is an address, the local one that stands for it.
        first_step: seconds from the call to the end of its first step's dispatch, and those of them that traced and compiled
            it; None when no step was left to take.
    """

    step: int
    stopped: bool
    folder: Path
    first_step: tuple[float, float] | None = None


@dataclasses.dataclass
class Sums:
    """Weighted sums of the training metrics since the last log line."""

    values: dict[str, float] = dataclasses.field(default_factory=dict)

    def add(self, metrics: dict[str, Any]) -> None:
        """Adds one step's metrics, reading them from the device."""
        for name, value in jax.device_get(metrics).items():
            self.values[name] = float(value) + (0.0 if name in _LAST else self.values.get(name, 0.0))

    def take(self) -> dict[str, float]:
        """Means over the interval (gradient norm and learning rate: of its last step), and starts anew."""
        values, self.values = self.values, {}
        weight = values.pop("weight")
        return {f"train/{name}": value if name in _LAST else value / weight for name, value in values.items()}


class StopSignal:
    """Turns the first SIGTERM or Ctrl-C into a request to save and stop; the second acts at once."""

    def __init__(self):
        self.asked = False

    @contextlib.contextmanager
    def installed(self) -> Iterator["StopSignal"]:
        # With several processes JAX's own preemption service catches SIGTERM and brings all to one step.
        if jax.process_count() > 1 or threading.current_thread() is not threading.main_thread():
            yield self
            return
        signals = (signal.SIGTERM, signal.SIGINT)
        before = {number: signal.signal(number, self._ask) for number in signals}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _ask(self, number: int, frame: Any) -> None:
        self.asked = True
        for again in (signal.SIGTERM, signal.SIGINT):
            signal.signal(again, signal.SIG_DFL)


def train_model(
    config: ConfigDict,
    path: str | Path,
    program: Program | None = None,
    progress: Callable[[int], None] = lambda step: None,
) -> TrainingResult:
    """Trains to the end of the config, resuming whatever the workdir holds.

    The same call after any interruption ends with bitwise the same state and log as an uninterrupted one (same machine,
    same number of threads).

    Args:
        config: checked; its seed may differ from the program's.
        path: the workdir; made when missing. May be an address, as gs://bucket/run.
        program: of this config but for the seed, to use what is already compiled.
        progress: called with the number of steps done.

    Raises:
        UserError: a workdir of another config, a full disk, a loss that is not finite.
    """
    begin = time.perf_counter()
    program = program or build_program(config)
    config = replace_seed(program.config, config.seed)
    task, every, seed = program.task, program.durations, np.uint32(config.seed)
    headline = task.headline(config)

    with workdir.lock_workdir(path, config) as place, StopSignal().installed() as stop_signal, _disk_errors(place.folder):
        folder = place.folder
        log = Log(folder, config.logging.tensorboard, active=is_main_process())
        keep = config.checkpoint.keep_last, config.checkpoint.keep_best, log.score
        checkpoints = FarCheckpoints(place.far, folder, *keep) if place.far else Checkpoints(folder, *keep)
        restored = checkpoints.restore(program.abstract_state)
        state, about = restored or (program.init(seed), {"sums": {}})
        step, sums = int(state.step), Sums(about["sums"])
        log.start(step)
        log.time({"event": "start", "step": step, "processes": jax.process_count(), "devices": jax.device_count()})
        clock = _Clock(log, task.examples_per_step(config), begin)
        stalls = Stalls(ended=lambda kind, seconds: log.time({"event": f"waited for {kind}", "seconds": seconds}))
        assets = task.assets(config)
        if restored and about["assets"] != assets:
            raise UserError(
                f"{folder}: the data give other {' and '.join(assets)} now than when this run began: give the old data, or "
                "another workdir."
            )

        def read(step: int, metrics: dict[str, jax.Array]) -> None:
            """Takes in the metrics of a finished step, which waits for that step alone."""
            with stalls.for_step(step):
                sums.add(metrics)
            if not all(map(math.isfinite, sums.values.values())):
                checkpoints.wait()
                raise UserError(
                    f"{folder}: loss or gradient of step {step} is not finite; training stopped and the checkpoints before "
                    "it are kept: lower schedule.learning_rate or lengthen the warm-up, in a new workdir."
                )
            if step % every.log_every == 0:
                log.write(step, {"epoch": step / every.steps_per_epoch, **sums.take()})
                clock.lap(step)

        def watched(batches: Iterator[Any]) -> Iterator[Any]:
            return stalls.over_data(batches, config.data.threads)

        def stop() -> bool:
            return agree_to_stop(stop_signal.asked)

        def evaluate_and_log() -> bool:
            """Whether it came to its end; one that was stopped leaves nothing, and is done when the run goes on."""
            values = {}
            for weights in program.weights:
                try:
                    scores, outputs = evaluate_model(program, state.variables(weights), config, stop, watched)
                except Interrupted:
                    return False
                prefix = "eval" if weights == "params" else f"eval_{weights}"
                values.update({f"{prefix}/{name}": value for name, value in scores.items()})
            if is_main_process():
                _save_outputs(folder / EVALUATION, step, outputs)
            if log.score(step) is None:
                log.write(step, {**values, "headline": scores[headline]})
            return True

        def save() -> None:
            log.flush()
            with clock.measured("save", step):
                checkpoints.save(state, {"config": config_to_json(config), "sums": sums.values}, assets)

        # A run that was stopped during an evaluation, or has lost its outputs, does it first.
        missing = log.score(step) is None or not (folder / EVALUATION).exists()
        stopped = False
        if step and missing and _due(step, every.evaluate_every, every.total):
            stopped = not evaluate_and_log()
            log.flush()

        loader = task.loader(config, config.data.train_split, find_batch_share(program.mesh), training=True)
        unread, last = None, step if stopped else every.total
        with (
            contextlib.closing(prefetch_batches(loader.training(step, last), program.mesh)) as batches,
            _Profiler(folder, config.profile.first_step, config.profile.num_steps) as profiler,
            stalls,
        ):
            for batch in watched(batches):
                with clock.first_step():
                    state, metrics = program.train_step(state, batch, seed)
                step += 1
                profiler.after(step)
                checkpoints.check()
                if unread is not None:
                    read(step - 1, unread)
                unread = metrics

                stopped = stop()
                evaluation_due = _due(step, every.evaluate_every, every.total)
                save_due = stopped or _due(step, every.checkpoint_every, every.total)
                if evaluation_due or save_due:
                    read(step, unread)
                    unread = None
                if evaluation_due and not stopped:
                    with clock.measured("evaluation", step):
                        stopped = not evaluate_and_log()
                if save_due or stopped:
                    save()
                progress(step)
                if stopped:
                    break
        checkpoints.close()
        log.time({"event": "call", "step": step, "seconds": time.perf_counter() - begin})
        log.close()
        if place.far and is_main_process():
            place.far.write(TIMING, (folder / TIMING).read_bytes())  # with the line of this call
    return TrainingResult(step, stopped or stop_signal.asked, folder, clock.first)


def replace_seed(config: ConfigDict, seed: int) -> ConfigDict:
    """A copy of a config with another seed."""
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.seed = int(seed)
    return config


def _due(step: int, every: int, total: int) -> bool:
    return step % every == 0 or step == total


def _save_outputs(path: Path, step: int, outputs: dict[str, np.ndarray]) -> None:
    """The per-example outputs of the newest evaluation; a reader sees all of a file or the one before."""
    partial = path.with_suffix(".partial")
    with partial.open("wb") as file:
        np.savez_compressed(file, step=step, **outputs)
    partial.replace(path)


@contextlib.contextmanager
def _disk_errors(folder: Path) -> Iterator[None]:
    """Says in one sentence that the workdir's disk is full or has become read-only."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM):
            raise
        raise UserError(
            f"{folder}: the log could not be written ({os.strerror(error.errno)}): the last good checkpoint is kept; "
            "mend this and start the same command again."
        ) from error


class _Clock:
    """Wall-clock figures for `timing.jsonl`."""

    def __init__(self, log: Log, batch_size: float, called: float):
        self._log, self._batch_size, self._called = log, batch_size, called
        self._at: float | None = None
        self._step = 0
        self.first: tuple[float, float] | None = None  # as in `TrainingResult`

    @contextlib.contextmanager
    def first_step(self) -> Iterator[None]:
        """Measures the dispatch of the first step of a call, which is where it compiles."""
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
        """Measures a pause of training, which then does not count into the examples a second."""
        begin = time.perf_counter()
        yield
        seconds = time.perf_counter() - begin
        if self._at is not None:
            self._at += seconds
        self._log.time({"event": event, "step": step, "seconds": seconds})

    def lap(self, step: int) -> None:
        """Examples a second since the lap before."""
        now = time.perf_counter()
        if self._at is not None and self._step:
            rate = (step - self._step) * self._batch_size / max(now - self._at, 1e-9)
            self._log.time({"event": "training", "step": step, "examples_per_second": rate})
        self._at, self._step = now, step


class _Profiler:
    """A trace of the steps in the profiling window, written to `profile/`."""

    def __init__(self, folder: Path, first_step: int, num_steps: int):
        self._folder, self._first, self._last = folder / "profile", first_step, first_step + num_steps
        self._running = False

    def __enter__(self) -> "_Profiler":
        return self

    def after(self, step: int) -> None:
        """Called when `step` steps have been dispatched."""
        if not self._running and self._first <= step < self._last:
            jax.profiler.start_trace(str(self._folder))
            self._running = True
        elif self._running and step >= self._last:
            self.__exit__()

    def __exit__(self, *exception: Any) -> None:
        if self._running:
            jax.profiler.stop_trace()
            self._running = False
