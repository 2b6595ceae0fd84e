"""The faults that `campaign.py` puts into training runs: where they strike, what they do, what the run must say."""

import contextlib
import dataclasses
import importlib
import logging
import os
import re
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

START_SECONDS = 600  # for all processes of a run to come, on a machine that others use too
ONE, TWO, WIDE = (1, 1), (2, 1), (1, 2)  # processes x devices
Act = Callable[[], None]
STOPPED = "stopped after step"


class NotHere(Exception):
    """This machine or account cannot have this fault."""


@dataclasses.dataclass(frozen=True)
class Hurt:
    """One call of the training command with something done to it.

    Attributes:
        install: run in the process before training; hooks the fault in.
        code: the call must end with.
        says: what it must say.
        process: that is hurt, None for all of them.
        on: (processes, devices) of this call; None takes those of the fault.
        before, after: called with the workdir around the call.
    """

    install: Act = lambda: None
    code: int | tuple[int, ...] = -signal.SIGKILL
    says: str = ""
    process: int | None = 0
    on: tuple[int, int] | None = None
    before: Callable[[Path], None] | None = None
    after: Callable[[Path], None] | None = None


@dataclasses.dataclass(frozen=True)
class Fault:
    """Calls that are hurt, one after another; then so many that are not, on `last` processes and devices each.

    With `far` the workdir is given as the address file://…, to which nothing is appended and where nothing is renamed.
    """

    name: str
    hurts: tuple[Hurt, ...]
    last: tuple[int, int] = ONE
    disk: Callable[[Path], contextlib.AbstractContextManager[Path]] = lambda scratch: contextlib.nullcontext(scratch / "run")
    clean_calls: int = 1
    far: bool = False

    @property
    def slug(self) -> str:
        return re.sub(r"\W+", "-", self.name)

    @property
    def bitwise(self) -> bool:
        return all(hurt.on in (None, self.last) for hurt in self.hurts)


def judge(hurt: Hurt | None, code: int, said: str) -> str:
    """What is wrong with how a call ended; "" when nothing is."""
    codes = (0,) if hurt is None else hurt.code if isinstance(hurt.code, tuple) else (hurt.code,)
    if code not in codes:
        return f"a call ended with {code} instead of {' or '.join(map(str, codes))}"
    if hurt and hurt.says not in said:
        return f"a call did not say {hurt.says!r}"
    return "a call ended with a traceback" if code in (0, 2) and "Traceback" in said else ""


def import_all() -> None:
    """Imports what training needs, once for all calls."""
    for name in ("grain", "orbax.checkpoint", "sklearn.datasets", "tensorflow_datasets", "attention_jax.train.report"):
        importlib.import_module(name)


# What is done.


def dies() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def is_asked() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def is_interrupted() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def cannot_read() -> None:
    raise OSError(5, "Input/output error")


# Where it strikes: each gives an `install` for an act.


def _hooked(owner: str, method: str, when: Callable[..., bool], act: Act, after: bool = False) -> Act:
    """At a call of "module:Class"'s method whose arguments are as `when` says, before it does its work or after."""

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
    """When a step has been dispatched, which may still be running."""
    return _hooked("attention_jax.train.loop:_Profiler", "after", lambda number: number == step, act)


def in_data(step: int, act: Act) -> Act:
    """In the thread that makes the batch after `step`."""
    return _hooked("attention_jax.data.loader:Loader", "training_batch", lambda number: number == step, act)


def in_evaluation(batch: int, act: Act) -> Act:
    """In the first evaluation of a call, when a batch of it is made."""
    return _hooked("attention_jax.data.loader:Loader", "evaluation_batch", lambda number: number == batch, act)


def after_asking_to_save(step: int, act: Act) -> Act:
    """While the checkpoint of a step is written in the background: as soon as the save has been asked for."""
    checkpoints = "attention_jax.train.checkpoint:Checkpoints"
    return _hooked(checkpoints, "save", lambda state, *_: int(state.step) == step, act, after=True)


def before_a_save_counts(steps: int | tuple[int, ...], act: Act) -> Act:
    """When all of a checkpoint of one of these steps is written but for the name that makes it count."""
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


def before_uploading(name: str, act: Act) -> Act:
    """When a file whose name begins so is about to be written to a workdir at an address."""
    return _hooked("attention_jax.storage:RemoteFolder", "write", lambda file, content: file.startswith(name), act)


def in_restore(act: Act) -> Act:
    """When a call has read a checkpoint."""
    return _hooked("attention_jax.train.checkpoint:Checkpoints", "_restore_step", lambda *_: True, act, after=True)


def at_once(act: Act) -> Act:
    """Before anything else."""
    return act


def both(*installs: Act) -> Act:
    def install() -> None:
        for each in installs:
            each()

    return install


def stalls_until_it_is_said() -> Act:
    """The batch after step 13 comes only when the run has complained; its patience is made short."""

    def install() -> None:
        from attention_jax.train import stalls

        stalls.DATA_SECONDS, said = 0.5, threading.Event()

        class Heard(logging.Handler):
            def emit(self, record: logging.LogRecord) -> None:
                if "waiting for data" in record.getMessage():
                    said.set()

        logging.getLogger("attention_jax").addHandler(Heard())
        in_data(13, lambda: said.wait(300))()

    return install


# What is done to a workdir between two calls.


def newest(workdir: Path) -> Path:
    return max((p for p in (workdir / "checkpoints").iterdir() if p.name.isdigit()), key=lambda path: int(path.name))


def flips_a_bit(workdir: Path) -> None:
    file = max((path for path in newest(workdir).rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 4
    file.write_bytes(data)


def truncates(workdir: Path) -> None:
    for file in (newest(workdir) / "state").rglob("*"):
        if file.is_file():
            file.write_bytes(file.read_bytes()[:-7])


def loses_a_file(workdir: Path) -> None:
    shutil.rmtree(newest(workdir) / "about")


def damages_two(workdir: Path) -> None:
    flips_a_bit(workdir)
    before = sorted(int(path.name) for path in (workdir / "checkpoints").iterdir() if path.name.isdigit())[-2]
    shutil.rmtree(workdir / "checkpoints" / str(before) / "about")


def moves_to_another_machine(workdir: Path) -> None:
    """What lies there beside the address is lost."""
    shutil.rmtree(workdir.parent / "staging")


def cuts_the_log(workdir: Path) -> None:
    """As a file system does that had not yet written the last line's end."""
    with (workdir / "metrics.jsonl").open("a") as log:
        log.write('{"step": 19, "train/lo')


def loses_the_outputs(workdir: Path) -> None:
    (workdir / "evaluation.npz").unlink()


def damages_the_programs(workdir: Path) -> None:
    """A compilation cache with a truncated entry, as a process leaves that is killed while it writes."""
    cache = Path(os.environ["JAX_COMPILATION_CACHE_DIR"])
    entry = max(cache.glob("*-cache"), key=lambda path: path.stat().st_mtime)
    entry.write_bytes(entry.read_bytes()[: entry.stat().st_size // 2])


# Disks.


@contextlib.contextmanager
def small_disk(scratch: Path) -> Iterator[Path]:
    """A workdir with 2 MB of space, most of it taken by a file `ballast`."""
    disk = scratch / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", disk], capture_output=True, check=False).returncode:
        raise NotHere("this account may not mount a small file system")
    try:
        (disk / "ballast").write_bytes(bytes(1_890_000))
        yield disk / "run"
    finally:
        subprocess.run(["umount", disk], check=False)


def gets_space(workdir: Path) -> None:
    (workdir.parent / "ballast").unlink()


def becomes_read_only(step: int, workdir_of: Callable[[], Path]) -> Act:
    """The folder of checkpoints can only be read from a step on."""

    def act() -> None:
        folder = workdir_of() / "checkpoints"
        subprocess.run(["mount", "--bind", folder, folder], check=True)
        lock = ["mount", "-o", "remount,bind,ro", folder]
        while subprocess.run(lock, capture_output=True, check=False).returncode:  # a file is being written there
            time.sleep(0.05)

    return after_step(step, act)


@contextlib.contextmanager
def lockable(scratch: Path) -> Iterator[Path]:
    """A workdir whose checkpoints `becomes_read_only` may lock."""
    trial = scratch / "trial"
    trial.mkdir()
    if subprocess.run(["mount", "--bind", trial, trial], capture_output=True, check=False).returncode:
        raise NotHere("this account may not mount a folder to make it read-only")
    subprocess.run(["umount", trial], check=True)
    os.environ["CHAOS_WORKDIR"] = str(scratch / "run")
    yield scratch / "run"
    subprocess.run(["umount", "-q", scratch / "run" / "checkpoints"], capture_output=True, check=False)


def can_be_written_again(workdir: Path) -> None:
    subprocess.run(["umount", workdir / "checkpoints"], check=True)


def scripted() -> list[Fault]:
    """The scripted faults."""
    gone = 128 + signal.SIGKILL
    stopped = {"code": 0, "says": STOPPED}
    full = {"code": 2, "says": "start the same command again"}
    one_dies = {"code": gone, "says": "process 1 of 2 on"}
    locked = becomes_read_only(13, lambda: Path(os.environ["CHAOS_WORKDIR"]))
    begun = Hurt(after_step(20, dies))
    return [
        Fault("killed before anything else", (Hurt(at_once(dies)),)),
        Fault("killed before the first save", (Hurt(after_step(4, dies)),)),
        Fault("killed in a step", (Hurt(after_step(16, dies)),)),
        Fault("killed in the last step", (Hurt(after_step(30, dies)),)),
        Fault("killed when a save had been asked for", (Hurt(after_asking_to_save(12, dies)),)),
        Fault("killed before a save counts", (Hurt(before_a_save_counts(18, dies)),)),
        Fault("killed before the first save counts", (Hurt(before_a_save_counts(6, dies)),)),
        Fault("killed in an evaluation", (Hurt(in_evaluation(2, dies)),)),
        Fault("killed in the thread that makes batches", (Hurt(in_data(22, dies)),)),
        Fault("killed while resuming, twice", (begun, Hurt(in_restore(dies)), Hurt(in_restore(dies)))),
        Fault("killed five times", tuple(Hurt(after_step(step, dies)) for step in (5, 11, 15, 19, 27))),
        Fault("started again after its end", (), clean_calls=2),
        Fault("SIGTERM in a step", (Hurt(after_step(9, is_asked), **stopped),)),
        Fault("SIGTERM in an evaluation", (Hurt(in_evaluation(1, is_asked), **stopped),)),
        Fault("SIGTERM while a save is written", (Hurt(after_asking_to_save(12, is_asked), **stopped),)),
        Fault("Ctrl-C in a step", (Hurt(after_step(14, is_interrupted), **stopped),)),
        Fault(
            "SIGTERM, then killed before its save counts",
            # A signal may reach Python one step later: it is whichever thread of the process gets it that passes it on.
            (Hurt(both(after_step(9, is_asked), before_a_save_counts((9, 10), dies))),),
        ),
        Fault("disk full in a save", (Hurt(**full, after=gets_space),), disk=small_disk),
        Fault(
            "checkpoints become read-only",
            (Hurt(locked, code=2, says="Read-only file system", after=can_be_written_again),),
            disk=lockable,
        ),
        Fault("a bit of the newest checkpoint flips", (dataclasses.replace(begun, after=flips_a_bit),)),
        Fault("the newest checkpoint is cut short", (dataclasses.replace(begun, after=truncates),)),
        Fault("the newest checkpoint loses its description", (dataclasses.replace(begun, after=loses_a_file),)),
        Fault("the two newest checkpoints are damaged", (dataclasses.replace(begun, after=damages_two),)),
        Fault("the log ends in half a line", (dataclasses.replace(begun, after=cuts_the_log),)),
        Fault("the outputs of the evaluation are lost", (dataclasses.replace(begun, after=loses_the_outputs),)),
        Fault("a compiled program in the cache is cut short", (dataclasses.replace(begun, after=damages_the_programs),)),
        Fault("the input stalls", (Hurt(stalls_until_it_is_said(), code=0, says="waiting for data since"),)),
        Fault("the data cannot be read", (Hurt(in_data(20, cannot_read), code=2, says="data: a batch cannot be read ("),)),
        Fault("2 x 1: one of two killed in a step", (Hurt(after_step(16, dies), **one_dies, process=1),), TWO),
        Fault("2 x 1: the first of two killed in a step", (Hurt(after_step(16, dies), gone, "process 0 of 2 on"),), TWO),
        Fault("2 x 1: both killed in a save", (Hurt(after_asking_to_save(12, dies), gone, process=None),), TWO),
        Fault("2 x 1: one of two killed in an evaluation", (Hurt(in_evaluation(1, dies), **one_dies, process=1),), TWO),
        Fault("2 x 1: SIGTERM to one of two", (Hurt(after_step(9, is_asked), **stopped, process=1),), TWO),
        Fault("2 x 1: SIGTERM to one of two in an evaluation", (Hurt(in_evaluation(1, is_asked), **stopped, process=1),), TWO),
        Fault(
            "2 x 1: one of two cannot read its data",
            (Hurt(in_data(20, cannot_read), 2, "process 1 of 2 on", process=1),),
            TWO,
        ),
        Fault("2 x 1: one of two does not come", (Hurt(at_once(dies), **one_dies, process=1),), TWO),
        Fault("2 x 1, killed, then 1 x 2", (Hurt(after_step(16, dies), **one_dies, process=1, on=TWO),), WIDE),
        Fault(
            "1 x 2, SIGTERM, then 1 x 1, killed, then 1 x 2",
            (Hurt(after_step(9, is_asked), **stopped), Hurt(after_step(20, dies), on=ONE)),
            WIDE,
        ),
        Fault("far: killed in a step", (Hurt(after_step(16, dies)),), far=True),
        Fault("far: killed while uploading", (Hurt(before_uploading("checkpoints/12/state", dies)),), far=True),
        Fault("far: killed before the marker", (Hurt(before_uploading("checkpoints/18.json", dies)),), far=True),
        Fault(
            "far: killed, another machine goes on",
            (Hurt(after_step(20, dies), after=moves_to_another_machine),),
            far=True,
        ),
        Fault("far: a bit of the newest checkpoint flips", (dataclasses.replace(begun, after=flips_a_bit),), far=True),
        Fault("far: SIGTERM in a step", (Hurt(after_step(9, is_asked), **stopped),), far=True),
        Fault("far, 2 x 1: one of two killed", (Hurt(after_step(16, dies), **one_dies, process=1),), TWO, far=True),
        Fault(
            "far, 2 x 1: SIGTERM to one of two, then 1 x 2",
            (Hurt(after_step(9, is_asked), **stopped, process=1, on=TWO),),
            WIDE,
            far=True,
        ),
    ]


def drawn(rng: np.random.Generator, number: int, steps: int) -> list[Fault]:
    """Faults drawn at random: one to three hurts of one process each, a damaged checkpoint among them at times."""
    places = {"step": after_step, "save": after_asking_to_save, "unnamed save": before_a_save_counts, "data": in_data}
    found = []
    for place in range(number):
        hurts, words, first = [], [], 1
        for _ in range(rng.integers(1, 4)):
            where = str(rng.choice(list(places)))
            step = int(rng.integers(first, steps))
            if "save" in where:
                step = min(steps, -(-step // 6) * 6)
            asked = where == "step" and bool(rng.integers(2))
            damage = [None, None, flips_a_bit, truncates, cuts_the_log][rng.integers(5)] if step > 12 and not asked else None
            install = places[where](step, is_asked if asked else dies)
            code = (0, -signal.SIGKILL)
            hurts.append(Hurt(install, code, after=damage))
            words.append(f"{'SIGTERM' if asked else 'killed'} at {where} {step}{f', {damage.__name__}' if damage else ''}")
            first = max(1, step - 6)
        found.append(Fault(f"{place + 1}: {'; '.join(words)}", tuple(hurts)))
    return found
