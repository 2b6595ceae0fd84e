"""Checkpoints: saved atomically in the background, verified when read, the newest good one found.

A checkpoint is a folder `checkpoints/<step>` with the state's arrays and `about`: config, log sums of the unfinished
logging interval, assets, package versions, and a checksum of every array. One that is damaged is moved aside and the one before
is used; one that cannot be read stops the run (`restore.py` tells them apart).
"""

import base64
import contextlib
import dataclasses
import errno
import hashlib
import importlib.metadata
import json
import logging
import os
import shutil
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from jax.experimental import multihost_utils

from attention_jax import __version__
from attention_jax.distributed.mesh import is_main_process
from attention_jax.errors import UserError, one_sentence
from attention_jax.train.restore import (
    FOLDER,
    Damaged,
    compute_checksums,
    describe_damage,
    list_steps,
    read_checkpoint,
    read_content,
    unpack_description,
)
from attention_jax.train.step import State

log = logging.getLogger(__name__)
ASIDE = "checkpoints_damaged"
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


def pack_description(state: State, about: Mapping[str, Any], assets: Mapping[str, bytes]) -> dict[str, str]:
    """Returns the `about` to save with a state, with checksums, versions and assets, and its log compressed.

    Raises UserError for a state that is not finite.
    """
    step = int(state.step)
    checksums, finite = compute_checksums(state)
    if not finite:
        raise UserError(
            f"the state after step {step} is not finite: nothing was saved; lower the learning rate or clip gradients."
        )
    encoded = {name: base64.b64encode(data).decode() for name, data in assets.items()}
    added = {"step": step, "checksums": checksums, "packages": get_package_versions(), "assets": encoded}
    if "log" in about:
        added["log"] = base64.b64encode(zlib.compress(about["log"])).decode()
    text = json.dumps({**about, **added})
    return {"text": text, "sha256": hashlib.sha256(text.encode()).hexdigest()}


def get_package_versions() -> dict[str, str]:
    """Returns the versions of the packages on which a result depends."""
    found = {"attention_jax": __version__}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


@dataclasses.dataclass(frozen=True)
class Preservation:
    """Orbax preservation policy that keeps the newest checkpoints, and those of the highest score in the log."""

    keep_last: int
    keep_best: int
    score: Callable[[int], float | None]

    def choose(self, steps: Sequence[int]) -> set[int]:
        """Returns the steps to keep among `steps`, which ascend; among equal scores, the earliest."""
        scored = sorted((-score, step) for step in steps if (score := self.score(step)) is not None)
        return {*steps[max(0, len(steps) - self.keep_last) :], *(step for _, step in scored[: self.keep_best])}

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        """Returns True for each checkpoint to keep."""
        steps = [info.step for info in checkpoints]
        return [step in self.choose(steps) for step in steps]


def import_orbax() -> Any:
    """Imports Orbax when first needed (it takes seconds)."""
    try:
        import orbax.checkpoint
    except ImportError as error:
        raise UserError(f"no checkpoint can be read or written ({error}): install orbax-checkpoint.") from error
    return orbax.checkpoint


@contextlib.contextmanager
def silence_orbax() -> Iterator[None]:
    """Silences Orbax's reports, which this file puts into one sentence; for good after a failure, which reports again later."""
    before, levels = sys.unraisablehook, {name: logging.getLogger(name).level for name in ("absl", "asyncio")}

    def hook(unraisable: Any) -> None:
        # When one file of a save or restore fails, Orbax closes its event loop before the other files have answered.
        if str(unraisable.exc_value) != "Event loop is closed":
            before(unraisable)

    sys.unraisablehook = hook
    for name in levels:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    yield
    sys.unraisablehook = before
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)


def _put_back_exchanged(workdir: Path) -> None:
    """Renames each folder to the step in its description: people move folders, and another one would be the newest.

    Raises UserError if the folders cannot be listed; Orbax would find none.
    """
    folder, wrong = workdir / FOLDER, dict[int, Path]()
    for step in list_steps(workdir) if is_main_process() else ():
        with contextlib.suppress(Damaged, UserError):  # `restore` reports them
            about = unpack_description(read_content(folder, f"{step}/about/metadata") or b"", name="")
            if about["step"] != step:
                log.warning(
                    "%s/%d is the checkpoint of step %d: it is renamed, or moved to %s/", folder, step, about["step"], ASIDE
                )
                wrong[about["step"]] = _move_aside(folder / str(step))
    for step, path in wrong.items():
        if not (folder / str(step)).exists():
            path.rename(folder / str(step))
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("checkpoints have their names")


def _move_aside(path: Path) -> Path:
    """Moves a checkpoint to `checkpoints_damaged`; returns its new path."""
    aside = path.parent.parent / ASIDE
    aside.mkdir(exist_ok=True)
    target = next(aside / f"{path.name}-{i}" for i in range(10**6) if not (aside / f"{path.name}-{i}").exists())
    return Path(shutil.move(path, target))


class Checkpoints:
    """The checkpoints of a workdir.

    Args:
        keep_last, keep_best: number of newest and of best checkpoints to keep.
        score: function step -> logged headline metric, higher is better; None without an evaluation.
    """

    def __init__(self, workdir: Path, keep_last: int, keep_best: int, score: Callable[[int], float | None]):
        ocp = import_orbax()
        _put_back_exchanged(workdir)
        self._ocp, self._folder = ocp, workdir / FOLDER
        keep = Preservation(keep_last, keep_best, score)
        # Folders are made within `save`: when that fails in the background, Orbax waits 300 seconds before it raises.
        in_save = ocp.AsyncOptions(create_directories_asynchronously=False)
        options = ocp.CheckpointManagerOptions(preservation_policy=keep, cleanup_tmp_directories=True, async_options=in_save)
        self._manager = ocp.CheckpointManager(self._folder, options=options)
        # Before and after a save Orbax asks JAX for a signal, with its own numbers; but processes stop together only if all ask
        # in the same order, which `agree_to_stop` alone does.
        self._manager.reached_preemption = lambda step: False

    def save(self, state: State, about: Mapping[str, Any], assets: Mapping[str, bytes]) -> None:
        """Saves the state under its step, in the background; an existing step stays as it is.

        Raises:
            UserError: the save before this one failed (disk full), or the state is not finite.
        """
        self.wait()
        step = int(state.step)
        if step in self._manager.all_steps():
            return
        packed = pack_description(state, about, assets)
        save = self._ocp.args
        with self._saving():
            self._manager.save(step, args=save.Composite(state=save.PyTreeSave(state), about=save.JsonSave(packed)), force=True)

    def check(self) -> None:
        """Raises UserError if a save in the background has failed so far."""
        with self._saving():
            self._manager.check_for_errors()

    def wait(self) -> None:
        """Waits until the last save is on the disk. Raises UserError if it failed."""
        with self._saving():
            self._manager.wait_until_finished()
            self._manager.check_for_errors()

    def close(self) -> None:
        """Waits for the last save."""
        self.wait()
        self._manager.close()

    def restore(self, abstract_state: State) -> tuple[State, dict[str, Any]] | None:
        """Returns the newest checkpoint that is not damaged, and its `about`; None if there is none.

        Damaged ones are moved to `checkpoints_damaged` with a warning. Raises UserError if one cannot be read.
        """
        for step in reversed(list_steps(self._folder.parent)):  # Orbax lists none in a folder that it may not enter
            folder = self._folder / str(step)
            try:
                return read_checkpoint(folder, abstract_state)
            except Exception as error:
                log.warning("checkpoint %d is damaged (%s); it is moved to %s/", step, describe_damage(error, folder), ASIDE)
                self._move_aside(step)
        return None

    def _move_aside(self, step: int) -> None:
        if is_main_process():
            _move_aside(self._folder / str(step))
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("damaged checkpoint moved")
        self._manager.reload()

    @contextlib.contextmanager
    def _saving(self) -> Iterator[None]:
        """Turns any error of a save into a UserError."""
        try:
            yield
        except Exception as error:
            text = str(error)
            full = "No space left" in text or "ENOSPC" in text or "RESOURCE_EXHAUSTED" in text
            read_only = os.strerror(errno.EROFS)  # TensorStore has it at the end of a long sentence
            reason = "no space is left on the device" if full else read_only if read_only in text else one_sentence(error)
            raise UserError(
                f"{self._folder}: a checkpoint could not be written ({reason}): the last good one is kept; "
                f"{'free some space' if full else 'fix this'} and start the same command again."
            ) from error
