"""The faults that `campaign.py` injects into training runs: where they strike, what they do, what the run must print."""

import contextlib
import dataclasses
import functools
import importlib
import logging
import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from experiments.reliability.damage import (
    cut_log,
    damage_compile_cache,
    damage_two,
    flip_bit,
    remove_description,
    remove_outputs,
    truncate_arrays,
)

START_SECONDS = 600  # for all processes of a run to start, on a shared machine
ONE, TWO, WIDE = (1, 1), (2, 1), (1, 2)  # processes x devices
Act = Callable[[], None]
STOPPED = "stopped after step"


class NotPossible(Exception):
    """This machine or account does not allow this fault."""


@dataclasses.dataclass(frozen=True)
class Call:
    """One call of the training command with a fault.

    Attributes:
        install: called in the process before training; hooks the fault in.
        code: expected exit code, or several.
        output: expected in what the call prints.
        process: the one with the fault, None for all.
        on: (processes, devices) of this call; None takes the fault's `last`.
        after: called with the workdir after the call.
    """

    install: Act = lambda: None
    code: int | tuple[int, ...] = -signal.SIGKILL
    output: str = ""
    process: int | None = 0
    on: tuple[int, int] | None = None
    after: Callable[[Path], None] | None = None


@dataclasses.dataclass(frozen=True)
class Fault:
    """Faulty calls one after another, then `clean_calls` without a fault on `last` (processes, devices).

    With `remote` the workdir is at gs://, on a server of ours whose objects are files of the campaign's folder.
    """

    name: str
    calls: tuple[Call, ...]
    last: tuple[int, int] = ONE
    disk: Callable[[Path], contextlib.AbstractContextManager[Path]] = lambda scratch: contextlib.nullcontext(scratch / "run")
    clean_calls: int = 1
    remote: bool = False

    @property
    def slug(self) -> str:
        """The name as a folder name."""
        return re.sub(r"\W+", "-", self.name)

    @property
    def bitwise(self) -> bool:
        """True if all calls have the same processes, so that the end must be bitwise that of an undisturbed run."""
        return all(call.on in (None, self.last) for call in self.calls)


def judge_call(call: Call | None, code: int, printed: str) -> str:
    """Returns the problem with the end of a call, or ""."""
    codes = (0,) if call is None else call.code if isinstance(call.code, tuple) else (call.code,)
    if code not in codes:
        return f"a call ended with {code} instead of {' or '.join(map(str, codes))}"
    if call and call.output not in printed:
        return f"a call did not print {call.output!r}"
    return "a call ended with a traceback" if code in (0, 2) and "Traceback" in printed else ""


def import_packages() -> None:
    """Imports the packages of training, once for all calls."""
    for name in ("grain", "orbax.checkpoint", "tensorflow_datasets", "attention_jax.train.report"):
        importlib.import_module(name)


# Acts.


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def fail_reading() -> None:
    raise OSError(5, "Input/output error")


# Moments: each returns an `install` that performs an act then.


def _hooked(owner: str, method: str, when: Callable[..., bool], act: Act, after: bool = False) -> Act:
    """Before or after a call of a method of "module:Class" with arguments for which `when` is true."""

    def install() -> None:
        module, _, name = owner.partition(":")
        kind = getattr(importlib.import_module(module), name)
        original = getattr(kind, method)

        def hooked(self: object, *arguments: object) -> object:
            strikes = when(*arguments)
            if strikes and not after:
                act()
            result = original(self, *arguments)
            if strikes and after:
                act()
            return result

        setattr(kind, method, hooked)

    return install


def after_step(step: int, act: Act) -> Act:
    """Strikes when a step has been dispatched; it may still be running."""
    return _hooked("attention_jax.train.clock:Profiler", "after", lambda number: number == step, act)


def in_data(step: int, act: Act) -> Act:
    """Strikes in the thread that makes the batch after `step`."""
    return _hooked("attention_jax.data.loader:Loader", "training_batch", lambda number: number == step, act)


def in_evaluation(batch: int, act: Act) -> Act:
    """Strikes in the first evaluation of a call, when this batch is made."""
    return _hooked("attention_jax.data.loader:Loader", "evaluation_batch", lambda number: number == batch, act)


def after_save_starts(step: int, act: Act) -> Act:
    """Strikes while the checkpoint of a step is written in the background."""
    checkpoints = "attention_jax.train.checkpoint:Checkpoints"
    return _hooked(checkpoints, "save", lambda state, *_: int(state.step) == step, act, after=True)


def before_commit(steps: int | tuple[int, ...], act: Act) -> Act:
    """Strikes when a checkpoint of one of these steps is complete except for its final name."""
    names = {str(step) for step in (steps if isinstance(steps, tuple) else (steps,))}

    def install() -> None:
        for name in ("rename", "replace"):
            original = getattr(os, name)

            def hooked(source: str, target: str, *rest: object, _original: Callable = original, **more: object) -> None:
                if Path(target).name in names and Path(target).parent.name == "checkpoints":
                    act()
                return _original(source, target, *rest, **more)

            setattr(os, name, hooked)

    return install


def before_upload(name: str, act: Act) -> Act:
    """Strikes before a file whose name matches this regular expression is written to a remote workdir."""
    return _hooked("attention_jax.storage:RemoteFolder", "write", lambda file, content: re.fullmatch(name, file), act)


def after_restore(act: Act) -> Act:
    """Strikes when a call has read a checkpoint."""
    return _hooked("attention_jax.train.checkpoint:Checkpoints", "restore", lambda *_: True, act, after=True)


def before_anything(act: Act) -> Act:
    """Strikes first of all."""
    return act


def combine(*installs: Act) -> Act:
    def install() -> None:
        for each in installs:
            each()

    return install


def stall_until_warned() -> Act:
    """Holds back the batch after step 13 until the run has warned about it."""

    def install() -> None:
        from attention_jax.train import stalls

        stalls.DATA_SECONDS, warned = 0.5, threading.Event()

        def wait() -> None:
            warned.wait(300)

        class Heard(logging.Handler):
            def emit(self, record: logging.LogRecord) -> None:
                if "waiting for data" in record.getMessage():
                    warned.set()

        logging.getLogger("attention_jax").addHandler(Heard())
        in_data(13, wait)()

    return install


# Disks.


@contextlib.contextmanager
def mount_small_disk(scratch: Path) -> Iterator[Path]:
    """Yields a workdir with 2 MB of space, most of it taken by a file `ballast`."""
    disk = scratch / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", disk], capture_output=True, check=False).returncode:
        raise NotPossible("this account may not mount a small file system")
    try:
        (disk / "ballast").write_bytes(bytes(1_890_000))
        yield disk / "run"
    finally:
        subprocess.run(["umount", disk], check=False)


def free_space(workdir: Path) -> None:
    (workdir.parent / "ballast").unlink()


_lockable: list[Path] = []  # workdir of the fault that is tried; the calls are forked from this process


def make_read_only(step: int) -> Act:
    """Makes the folder of checkpoints read-only from a step on."""

    def act() -> None:
        folder = _lockable[-1] / "checkpoints"
        subprocess.run(["mount", "--bind", folder, folder], check=True)
        lock = ["mount", "-o", "remount,bind,ro", str(folder)]
        while subprocess.run(lock, capture_output=True, check=False).returncode:  # a file is being written there
            time.sleep(0.05)

    return after_step(step, act)


@contextlib.contextmanager
def allow_read_only(scratch: Path) -> Iterator[Path]:
    """Yields a workdir whose checkpoints `make_read_only` may lock."""
    trial = scratch / "trial"
    trial.mkdir()
    if subprocess.run(["mount", "--bind", trial, trial], capture_output=True, check=False).returncode:
        raise NotPossible("this account may not mount a folder to make it read-only")
    subprocess.run(["umount", trial], check=True)
    _lockable.append(scratch / "run")
    yield scratch / "run"
    subprocess.run(["umount", "-q", scratch / "run" / "checkpoints"], capture_output=True, check=False)


def make_writable(workdir: Path) -> None:
    subprocess.run(["umount", workdir / "checkpoints"], check=True)


def _fault(name: str, *calls: Call, **options: Any) -> Fault:
    return Fault(name, calls, **options)


def list_scripted_faults() -> list[Fault]:
    """Returns the scripted faults."""
    gone = 128 + signal.SIGKILL
    stopped: dict[str, Any] = {"code": 0, "output": STOPPED}
    one_dies: dict[str, Any] = {"code": gone, "output": "process 1 of 2 on", "process": 1}
    damaged = functools.partial(Call, after_step(20, kill))
    full = Call(code=2, output="start the same command again", after=free_space)
    read_only = Call(make_read_only(13), code=2, output="Read-only file system", after=make_writable)
    unreadable = Call(in_data(20, fail_reading), code=2, output="data: a batch cannot be read (")
    # A signal may reach Python one step later: the thread of the process that receives it passes it on.
    killed_in_the_save = combine(after_step(9, terminate), before_commit((9, 10), kill))
    return [
        _fault("killed before anything else", Call(before_anything(kill))),
        _fault("killed before the first save", Call(after_step(4, kill))),
        _fault("killed in a step", Call(after_step(16, kill))),
        _fault("killed in the last step", Call(after_step(30, kill))),
        _fault("killed when a save had been asked for", Call(after_save_starts(12, kill))),
        _fault("killed before a save counts", Call(before_commit(18, kill))),
        _fault("killed before the first save counts", Call(before_commit(6, kill))),
        _fault("killed in an evaluation", Call(in_evaluation(2, kill))),
        _fault("killed in the thread that makes batches", Call(in_data(22, kill))),
        _fault("killed while resuming, twice", damaged(), Call(after_restore(kill)), Call(after_restore(kill))),
        _fault("killed five times", *(Call(after_step(step, kill)) for step in (5, 11, 15, 19, 27))),
        _fault("started again after its end", clean_calls=2),
        _fault("SIGTERM in a step", Call(after_step(9, terminate), **stopped)),
        _fault("SIGTERM in an evaluation", Call(in_evaluation(1, terminate), **stopped)),
        _fault("SIGTERM while a save is written", Call(after_save_starts(12, terminate), **stopped)),
        _fault("Ctrl-C in a step", Call(after_step(14, interrupt), **stopped)),
        _fault("SIGTERM, then killed before its save counts", Call(killed_in_the_save)),
        _fault("disk full in a save", full, disk=mount_small_disk),
        _fault("checkpoints become read-only", read_only, disk=allow_read_only),
        _fault("a bit of the newest checkpoint flips", damaged(after=flip_bit)),
        _fault("the newest checkpoint is cut short", damaged(after=truncate_arrays)),
        _fault("the newest checkpoint loses its description", damaged(after=remove_description)),
        _fault("the two newest checkpoints are damaged", damaged(after=damage_two)),
        _fault("the log ends in half a line", damaged(after=cut_log)),
        _fault("the outputs of the evaluation are lost", damaged(after=remove_outputs)),
        _fault("a compiled program in the cache is cut short", damaged(after=damage_compile_cache)),
        _fault("the input stalls", Call(stall_until_warned(), code=0, output="waiting for data since")),
        _fault("the data cannot be read", unreadable),
        _fault("2 x 1: one of two killed in a step", Call(after_step(16, kill), **one_dies), last=TWO),
        _fault("2 x 1: the first of two killed in a step", Call(after_step(16, kill), gone, "process 0 of 2 on"), last=TWO),
        _fault("2 x 1: both killed in a save", Call(after_save_starts(12, kill), gone, process=None), last=TWO),
        _fault("2 x 1: one of two killed in an evaluation", Call(in_evaluation(1, kill), **one_dies), last=TWO),
        _fault("2 x 1: SIGTERM to one of two", Call(after_step(9, terminate), **stopped, process=1), last=TWO),
        _fault(
            "2 x 1: SIGTERM to one of two in an evaluation", Call(in_evaluation(1, terminate), **stopped, process=1), last=TWO
        ),
        _fault("2 x 1: one of two cannot read its data", Call(in_data(20, fail_reading), **one_dies | {"code": 2}), last=TWO),
        _fault("2 x 1: one of two does not start", Call(before_anything(kill), **one_dies), last=TWO),
        _fault("2 x 1, killed, then 1 x 2", Call(after_step(16, kill), **one_dies, on=TWO), last=WIDE),
        _fault(
            "1 x 2, SIGTERM, then 1 x 1, killed, then 1 x 2",
            Call(after_step(9, terminate), **stopped),
            Call(after_step(20, kill), on=ONE),
            last=WIDE,
        ),
    ]


def draw_faults(rng: np.random.Generator, number: int, steps: int) -> list[Fault]:
    """Returns `number` random faults of one to three call calls of one process, some with a damaged checkpoint."""
    moments = {"step": after_step, "save": after_save_starts, "unnamed save": before_commit, "data": in_data}
    found = []
    for index in range(number):
        calls: list[Call] = []
        words, first = [], 1
        for _ in range(rng.integers(1, 4)):
            moment = str(rng.choice(list(moments)))
            step = int(rng.integers(first, steps))
            if "save" in moment:
                step = min(steps, -(-step // 6) * 6)
            is_signal = moment == "step" and bool(rng.integers(2))
            damage = [None, None, flip_bit, truncate_arrays, cut_log][rng.integers(5)] if step > 12 and not is_signal else None
            install = moments[moment](step, terminate if is_signal else kill)
            calls.append(Call(install, (0, -signal.SIGKILL), after=damage))
            words.append(f"{'SIGTERM' if is_signal else 'killed'} at {moment} {step}{f', {damage.__name__}' if damage else ''}")
            first = max(1, step - 6)
        found.append(Fault(f"{index + 1}: {'; '.join(words)}", tuple(calls)))
    return found
