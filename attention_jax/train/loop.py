"""The training loop of every task."""

import contextlib
import dataclasses
import errno
import functools
import itertools
import math
import os
import signal
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from attention_jax.config.code import CODE, RunCode, collect_code, record_code
from attention_jax.config.config import config_to_json
from attention_jax.data.fingerprint import DATA
from attention_jax.distributed.mesh import agree_to_stop, find_batch_share, is_main_process, prefetch_batches
from attention_jax.errors import UserError
from attention_jax.kernels.switch import use_standard_numerics
from attention_jax.models.gate import explain_modes
from attention_jax.models.registry import list_origins, refuse_unread_reduction
from attention_jax.tasks.base import BatchLoader
from attention_jax.tasks.resolve import ResolvedConfig
from attention_jax.train.array_saver import silence_orbax
from attention_jax.train.checkpoint import Checkpoints
from attention_jax.train.clock import Clock, Profiler
from attention_jax.train.early_stop import RECORD, explain_early_stop, refuse_other_splits
from attention_jax.train.evaluate import Interrupted, evaluate_model, read_arrays, save_outputs
from attention_jax.train.initial import INIT, read_initial_weights
from attention_jax.train.input_rate import InputRate
from attention_jax.train.metrics import METRICS, TIMING, Log, get_compiler_flags
from attention_jax.train.program import Program, build_program, count_model_operations, uses_stored_statistics
from attention_jax.train.remote_runs import refuse_earlier_layout
from attention_jax.train.save_times import SaveTimes
from attention_jax.train.stalls import Stalls
from attention_jax.train.step import State
from attention_jax.train.trackers import start_trackers
from attention_jax.train.workdir import EVALUATION, FAILURE, Workdir, explain_disk_errors, identify_data, lock_workdir

_OPENED: weakref.WeakSet[Program] = weakref.WeakSet()  # programs whose evaluation another seed of the row has opened
_LAST = ("grad_norm", "learning_rate")  # not sums: the log has the last value of the interval


@dataclasses.dataclass(frozen=True)
class TrainingResult:
    """The end of a call of `train_model`.

    Attributes:
        stopped: True if a signal stopped it.
        early_stop: the reason why it ended before the last step of its config; "" if it did not.
        folder: folder with the log; for a remote workdir, its local staging folder.
        first_step: seconds from the call to the dispatch of its first step, and the part of them that traced and compiled it;
            None if no step was left.
        mfu: model FLOPs utilisation in the last logged interval; None where the chips' peak is not known.
    """

    step: int
    stopped: bool
    folder: Path
    first_step: tuple[float, float] | None = None
    mfu: float | None = None
    early_stop: str = ""


def _send_sigterm(number: int, frame: Any) -> None:
    os.kill(os.getpid(), signal.SIGTERM)


@contextlib.contextmanager
def catch_stop_signal() -> Iterator[threading.Event]:
    """Yields an event that the first SIGTERM, SIGHUP or Ctrl-C sets, a request to save and stop; a second signal acts at once.

    A SIGHUP that is ignored at the start, as under nohup, stays ignored.
    """
    stop = threading.Event()
    hang_up = () if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN else (signal.SIGHUP,)
    numbers: tuple[signal.Signals, ...] = (signal.SIGTERM, signal.SIGINT, *hang_up)

    def receive(number: int, frame: Any) -> None:
        stop.set()
        for again in numbers:
            signal.signal(again, signal.SIG_DFL)

    if threading.current_thread() is not threading.main_thread():
        numbers = ()
    elif jax.process_count() > 1:  # JAX's own preemption service catches SIGTERM and brings all processes to the same step
        numbers, receive = hang_up, _send_sigterm
    before = {number: signal.signal(number, receive) for number in numbers}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@silence_orbax()
@use_standard_numerics()
def train_model(
    config: ConfigDict | ResolvedConfig,
    path: str | Path,
    program: Program | None = None,
    progress: Callable[[int], None] = lambda step: None,
    code: RunCode | None = None,
    extend: bool = False,
    peak: float | None = None,
    notice: Callable[[Mapping[str, Any]], None] = lambda line: None,
) -> TrainingResult:
    """Trains to the end of the config, resuming from the newest checkpoint in the workdir.

    The same call after any interruption ends with bitwise the same state and log as an uninterrupted one (same machine,
    same number of threads).

    Args:
        config: the config, resolved here if necessary; its seed may differ from the program's.
        path: the workdir, a folder or a URI such as gs://bucket/run; made if missing.
        program: a program of this config (except for the seed), whose compiled functions are used again.
        progress: function to call with the number of finished steps.
        extend: True continues a shorter run of this config to the new length, with a line in the log; it ends unlike a run that
            had this length from the beginning, whose learning rate was different.
        notice: function to call with each new line of the log and of the times, in the first process.
        code: the user's code to keep with the run; by default the code that the config names.
        peak: floating-point operations per second of all devices; if given, `timing.jsonl` has the share that is used.

    Raises:
        UserError: a workdir of another config, a checkpoint that cannot be read, a full disk, a loss that is not finite.
    """
    begin = time.perf_counter()
    seed = config.config.seed if isinstance(config, ResolvedConfig) else config.seed
    program = program or build_program(config)
    config = replace_seed(program.config, seed)
    program.task.headline(config)  # raises UserError before the workdir is made
    refuse_other_splits(config)
    code = code or collect_code(config, list_origins())
    record_code(config, code, write=is_main_process())
    with lock_workdir(path, config, code, extend) as workdir, catch_stop_signal() as stop_signal, explain_disk_errors(workdir):
        trackers = start_trackers(config, path, active=is_main_process())
        run = _Run(program, config, workdir, stop_signal, begin, (notice, *trackers))
        run.clock.seconds_at_peak = count_model_operations(program) / peak if peak else None
        run.evaluate_if_missing()
        run.open_evaluation()
        run.train(progress)
        run.close()
        for tracker in trackers:
            tracker.close()
    stopped, first = run.stopped or stop_signal.is_set(), run.clock.first
    return TrainingResult(run.step, stopped, workdir.folder, first, run.clock.mfu, run.early_stop)


def replace_seed(config: ConfigDict, seed: int) -> ConfigDict:
    """Returns a copy of a config with another seed."""
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.seed = int(seed)
    return config


class _Run:
    """The state of one call of `train_model`, restored from the newest checkpoint, and the work between steps."""

    def __init__(
        self,
        program: Program,
        config: ConfigDict,
        workdir: Workdir,
        stop_signal: threading.Event,
        begin: float,
        mirrors: Sequence[Callable[[Mapping[str, Any]], None]],
    ):
        self.program, self.config, self.workdir, self.stop_signal = program, config, workdir, stop_signal
        self.task, self.durations, self.folder = program.task, program.durations, workdir.folder
        self.begin, self.stopped = begin, False
        self.pending: tuple[int, dict[str, jax.Array]] | None = None  # the last step, and its metrics on the devices
        tensorboard = config.logging.tensorboard or "tensorboard" in config.logging.trackers
        self.log = Log(self.folder, tensorboard, is_main_process(), mirrors)
        if workdir.remote:
            refuse_earlier_layout(workdir.remote)
        keep = config.checkpoint.keep_last, config.checkpoint.keep_best, self._rank
        self.checkpoints = Checkpoints(self.folder, *keep, workdir.remote)
        restored = self.checkpoints.restore(program.abstract_state)
        self.state, about = restored or self._begin()
        self.step, self.sums = int(self.state.step), dict(about["sums"])  # weighted sums since the last log line
        data = identify_data(workdir, self.task, config, about["assets"] if restored else None)
        self.log.start(self.step, about if restored else None)
        devices = {"processes": jax.process_count(), "devices": jax.device_count()}
        flags = {"compiler_flags": get_compiler_flags()} if get_compiler_flags() else {}
        self.log.time({"event": "start", "step": self.step, **devices, **flags})
        self.saves = SaveTimes(config, program.abstract_state, self.checkpoints, self.log)
        self.clock = Clock(self.log, self.task.examples_per_step(config), begin)
        self.stalls = Stalls(ended=lambda kind, seconds: self.log.time({"event": f"waited for {kind}", "seconds": seconds}))
        from_data = self.task.assets(config)
        begun = {name: content for name, content in about["assets"].items() if name == INIT}
        self.assets = {**from_data, **workdir.code.to_assets(), **data, **begun}
        kept = {name: content for name, content in about["assets"].items() if name not in (CODE, DATA, INIT)}
        if restored and kept != from_data:
            raise UserError(
                f"{self.folder}: the data now give other {' and '.join(from_data)} than when this run began: give the old "
                "data, or another workdir."
            )
        if not restored and begun:
            self.save()
            self.checkpoints.wait()  # the source is not needed from here on

    def _begin(self) -> tuple[State, dict[str, Any]]:
        """Returns the state before the first step and its record, as a checkpoint has them; logs the origin of the weights."""
        program = self.program
        given, begun = dict[str, jax.Array](), dict[str, bytes]()
        if self.config.init_from is not None:
            given, begun = read_initial_weights(self.config, self.task, program.model, program.abstract_state)
            for name, content in begun.items() if is_main_process() else ():
                self.workdir.write(name, content)
        elif uses_stored_statistics(self.config):
            raise UserError("batch_norm.granularity='stored': a network from scratch has no statistics yet: give init_from.")
        return program.init(np.uint32(self.config.seed), given), {"sums": {}, "assets": begun}

    @functools.cached_property
    def evaluation_loader(self) -> BatchLoader:
        """Loads the evaluation split; its classes are matched with the training split's by name."""
        return self.task.evaluation_loader(self.config, find_batch_share(self.program.mesh), self.assets)

    @property
    def early_stop(self) -> str:
        """The reason to end training after this step's evaluation; "" without one."""
        return explain_early_stop(self.program, self.log.scores) if self.log.score(self.step) is not None else ""

    def evaluate_if_missing(self) -> None:
        """Evaluates the restored state if the run was stopped during that evaluation, or has lost its outputs."""
        is_end = self.step == self.durations.total or self.early_stop
        outputs = read_arrays(self.folder / EVALUATION, self.step if is_end else None)
        missing = self.log.score(self.step) is None or outputs is None
        if self.step and missing and self._is_due(self.durations.evaluate_every):
            self.evaluate()
            self.log.flush()

    def open_evaluation(self) -> None:
        """Reads a batch of evaluation and lowers its program before the first step, so that mistakes show now."""
        if self.step or self.program in _OPENED:
            return
        refuse_unread_reduction(self.config.model, lambda: self.state.params)
        batches = prefetch_batches(itertools.islice(self.evaluation_loader.evaluation(), 1), self.program.mesh)
        with contextlib.closing(batches), explain_modes(f"model {self.config.model.name!r}"):
            self.program.outputs.lower(self.state.variables(self.program.weights[-1]), next(batches))
        _OPENED.add(self.program)

    def train(self, progress: Callable[[int], None]) -> None:
        """Takes all remaining steps, or the steps until a signal arrives."""
        config, mesh, seed = self.config, self.program.mesh, np.uint32(self.config.seed)
        loader = self.task.loader(config, config.data.train_split, find_batch_share(mesh), training=True)
        last = self.step if self.stopped or self.early_stop else self.durations.total
        with (
            contextlib.closing(InputRate(loader, config.data.threads, self.clock.batch_size, self.log.time)) as rate,
            contextlib.closing(prefetch_batches(loader.training(self.step, last), mesh)) as batches,
            Profiler(self.folder, config.profile.first_step, config.profile.num_steps) as profiler,
            self.stalls,
        ):
            for batch in self.watch(batches):
                with self.clock.first_step():
                    begin = time.perf_counter()
                    self.state, metrics = self.program.train_step(self.state, batch, seed)
                rate.add(begin, metrics)
                self.step += 1
                profiler.after(self.step)
                self.saves.check()
                self.read_pending()
                self.pending = self.step, metrics

                self.stopped = self.stop()
                evaluation_due, save_due = map(self._is_due, (self.durations.evaluate_every, self.durations.checkpoint_every))
                save_due = save_due or (self.step % self.durations.log_every == 0 and self.saves.is_due())
                if evaluation_due or save_due or self.stopped:
                    self.read_pending()
                if evaluation_due and not self.stopped:
                    with self.clock.measured("evaluation", self.step):
                        self.evaluate()
                ends = self.stopped or (evaluation_due and self.early_stop)
                if save_due or ends:
                    self.save()
                progress(self.step)
                if ends:
                    break

    def read_pending(self) -> None:
        """Reads the metrics of the pending step, which waits for this step only; logs at the end of an interval."""
        if self.pending is None:
            return
        (step, metrics), self.pending = self.pending, None
        with self.stalls.watch_step(step):
            values = jax.device_get(metrics)
        for name, value in values.items():
            self.sums[name] = float(value) + (0.0 if name in _LAST else self.sums.get(name, 0.0))
        if not all(map(math.isfinite, self.sums.values())):
            self.checkpoints.wait()
            raise UserError(
                f"{self.folder}: loss or gradient of step {step} is not finite; training stopped and the checkpoints before "
                "it are kept: lower schedule.learning_rate or lengthen the warm-up, in a new workdir."
            )
        if step % self.durations.log_every == 0:
            weight = self.sums.pop("weight")
            means = {f"train/{name}": value if name in _LAST else value / weight for name, value in self.sums.items()}
            self.log.write(step, {"epoch": step / self.durations.steps_per_epoch, **means})
            self.sums = {}
            self.clock.lap(step)
            self.check_folder()

    def evaluate(self) -> None:
        """Evaluates and logs; if stopped, it keeps nothing, and the resumed run repeats the evaluation."""
        values = {}
        for weights in self.program.weights:
            try:
                scores, outputs = evaluate_model(
                    self.program, self.state.variables(weights), self.config, self.stop, self.watch, self.evaluation_loader
                )
            except Interrupted:
                self.stopped = True
                return
            prefix = "eval" if weights == "params" else f"eval_{weights}"
            values.update({f"{prefix}/{name}": value for name, value in scores.items()})
        if is_main_process():
            self.check_folder()
            save_outputs(self.folder / EVALUATION, self.step, outputs)
        if self.log.score(self.step) is None:
            headline = scores[self.task.headline(self.config)]
            reason = explain_early_stop(self.program, {**self.log.scores, self.step: headline})
            self.log.write(self.step, {**values, "headline": headline, **({RECORD: reason} if reason else {})})

    def save(self) -> None:
        """Saves a checkpoint in the background, after the log lines before it."""
        self.check_folder()
        self.log.flush()
        self.saves.start()
        with self.clock.measured("save", self.step):
            about = {"config": config_to_json(self.config), "sums": self.sums, "log": self.log.content}
            self.checkpoints.save(self.state, about, self.assets)

    def check_folder(self) -> None:
        """Raises FileNotFoundError if the workdir was removed or renamed since the start."""
        if not self.workdir.is_there():
            with contextlib.suppress(UserError):
                self.checkpoints.wait()  # a pending save may make the folder again
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self.folder))

    def close(self) -> None:
        """Waits for the last save and ends the log; removes the traces of a failed attempt once all steps are done."""
        self.checkpoints.close()
        self.saves.check()
        self.check_folder()
        if is_main_process() and not self.stopped:
            (self.folder / FAILURE).unlink(missing_ok=True)
            if self.workdir.remote:
                self.workdir.remote.remove(FAILURE)
        self.log.time({"event": "call", "step": self.step, "seconds": time.perf_counter() - self.begin})
        self.log.close()
        if self.workdir.remote and is_main_process():
            for name in (METRICS, TIMING):  # with what has been restored, and the line of this call
                self.workdir.remote.write(name, (self.folder / name).read_bytes())

    def watch(self, batches: Iterator[Any]) -> Iterator[Any]:
        """Yields the batches, and reports a batch that takes long."""
        return self.stalls.watch_batches(batches, self.config.data.threads)

    def stop(self) -> bool:
        """True if a signal asked to stop; collective, as `agree_to_stop` is."""
        return agree_to_stop(self.stop_signal.is_set())

    def _rank(self, step: int) -> float | None:
        score, sign = self.log.score(step), -1 if self.task.lower_is_better(self.config) else 1
        return None if score is None else sign * score

    def _is_due(self, every: int) -> bool:
        return self.step % every == 0 or self.step == self.durations.total
