"""Checkpoints: saved atomically in the background, verified when read, the newest good one found.

A checkpoint is a folder `checkpoints/<step>` with the state's arrays and `about`: config, log sums of the unfinished
logging interval, assets, package versions, and a checksum of every array. A restore that raises and one that returns other
numbers than were saved are treated alike: the folder is moved aside and the one before is used.
"""

import base64
import contextlib
import dataclasses
import errno
import functools
import hashlib
import importlib.metadata
import json
import logging
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from attention_jax import __version__, tree
from attention_jax.distributed.mesh import is_main_process
from attention_jax.errors import UserError, one_sentence
from attention_jax.train.step import State

log = logging.getLogger(__name__)
FOLDER, ASIDE = "checkpoints", "checkpoints_damaged"
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


class Damaged(Exception):
    """A checkpoint does not hold what was saved."""


@jax.jit  # per array: few shapes serve every state, and one program for a complete state takes seconds to compile
def _checksum(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(uint32 checksum, True if every element is finite).

    The checksum is the sum of (2i+1)·bits of element i modulo 2^32: integer sums do not depend on how an array is
    divided over devices, and an odd factor keeps any single flipped bit visible.
    """
    finite = jnp.isfinite(x).all() if jnp.issubdtype(x.dtype, jnp.floating) else jnp.bool_(True)
    if x.dtype == jnp.bool_:
        x = x.astype(jnp.uint8)
    bits = jax.lax.bitcast_convert_type(x, {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}[x.dtype.itemsize])
    index, stride = jnp.zeros((), jnp.uint32), 1
    for axis in reversed(range(x.ndim)):
        index += jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis) * jnp.uint32(stride % 2**32)
        stride *= x.shape[axis]
    return jnp.sum(bits.astype(jnp.uint32) * (2 * index + 1), dtype=jnp.uint32), finite


def compute_checksums(state: Any) -> tuple[dict[str, int], bool]:
    """Returns ({path: checksum} of every array of a tree, True if all are finite), computed where the arrays are."""
    # One at a time: for sharded arrays, many of these sums over devices at once deadlock on forced CPU devices.
    found = {path: jax.device_get(_checksum(leaf)) for path, leaf in tree.flatten_by_path(state).items()}
    return {path: int(checksum) for path, (checksum, _) in found.items()}, all(finite for _, finite in found.values())


def _pack(about: dict[str, Any]) -> dict[str, str]:
    text = json.dumps(about)
    return {"text": text, "sha256": hashlib.sha256(text.encode()).hexdigest()}


def unpack(packed: Mapping[str, str]) -> dict[str, Any]:
    """`about` of a checkpoint as it was saved. Raises Damaged."""
    if hashlib.sha256(packed["text"].encode()).hexdigest() != packed["sha256"]:
        raise Damaged("its description differs from its checksum")
    about = json.loads(packed["text"])
    return {**about, "assets": {name: base64.b64decode(text) for name, text in about["assets"].items()}}


def pack_description(state: State, about: Mapping[str, Any], assets: Mapping[str, bytes]) -> dict[str, str]:
    """Returns the `about` that is saved with a state: checksums, versions and assets added.

    Raises UserError for a state that is not finite.
    """
    step = int(state.step)
    checksums, finite = compute_checksums(state)
    if not finite:
        raise UserError(
            f"the state after step {step} is not finite: nothing was saved; lower the learning rate or clip gradients."
        )
    return _pack(
        {
            **about,
            "step": step,
            "checksums": checksums,
            "packages": get_package_versions(),
            "assets": {name: base64.b64encode(data).decode() for name, data in assets.items()},
        }
    )


def get_package_versions() -> dict[str, str]:
    """Returns the versions of the packages that a result depends on."""
    found = {"attention_jax": __version__}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


@dataclasses.dataclass(frozen=True)
class KeepBest:
    """Orbax preservation policy that keeps the n checkpoints of the highest score in the log."""

    n: int
    score: Callable[[int], float | None]

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        """Returns True for each checkpoint to keep; of equal scores, the earliest."""
        scored = [(-score, info.step) for info in checkpoints if (score := self.score(info.step)) is not None]
        best = {step for _, step in sorted(scored)[: self.n]}
        return [info.step in best for info in checkpoints]


@functools.cache
def import_orbax() -> Any:
    """Imports Orbax when first needed (it takes seconds), silent about what this file reports in one sentence."""
    import orbax.checkpoint

    for name in ("absl", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    others = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        # When one file of a save or restore fails, Orbax closes its event loop before the other files have answered.
        if str(unraisable.exc_value) != "Event loop is closed":
            others(unraisable)

    sys.unraisablehook = hook
    return orbax.checkpoint


class Checkpoints:
    """The checkpoints of a workdir.

    Args:
        workdir: of the run; gets the folder `checkpoints`.
        keep_last, keep_best: number of newest and of best checkpoints to keep.
        score: step -> logged headline metric, higher is better; None without an evaluation.
    """

    def __init__(self, workdir: Path, keep_last: int, keep_best: int, score: Callable[[int], float | None]):
        from orbax.checkpoint.checkpoint_managers import preservation_policy as policies

        ocp = import_orbax()
        self._ocp, self._folder = ocp, workdir / FOLDER
        keep = policies.AnyPreservationPolicy([policies.LatestN(keep_last), KeepBest(keep_best, score)])
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
        """Raises UserError when a save in the background has failed so far."""
        with self._saving():
            self._manager.check_for_errors()

    def wait(self) -> None:
        """Returns when the last save is on the disk. Raises UserError when it failed."""
        with self._saving():
            self._manager.wait_until_finished()
            self._manager.check_for_errors()

    def close(self) -> None:
        """Waits for the last save."""
        self.wait()
        self._manager.close()

    def restore(self, abstract_state: State) -> tuple[State, dict[str, Any]] | None:
        """The newest checkpoint that is whole and its `about`; None when there is none.

        Damaged ones are moved to `checkpoints_damaged` with a warning.
        """
        for step in sorted(self._manager.all_steps(), reverse=True):
            try:
                return self._restore_step(step, abstract_state)
            except Exception as error:  # whatever a damaged file makes the readers raise
                log.warning("checkpoint %d is damaged (%s); it is moved to %s/", step, one_sentence(error), ASIDE)
                self._move_aside(step)
        return None

    def _restore_step(self, step: int, abstract_state: State) -> tuple[State, dict[str, Any]]:
        args = self._ocp.args
        restore_args = self._ocp.checkpoint_utils.construct_restore_args(abstract_state)
        restored = self._manager.restore(
            step, args=args.Composite(state=args.PyTreeRestore(abstract_state, restore_args), about=args.JsonRestore())
        )
        about = unpack(restored.about)
        verify(restored.state, about)
        return restored.state, about

    def _move_aside(self, step: int) -> None:
        if is_main_process():
            aside = self._folder.parent / ASIDE
            aside.mkdir(exist_ok=True)
            target = next(aside / f"{step}-{i}" for i in range(10**6) if not (aside / f"{step}-{i}").exists())
            shutil.move(self._folder / str(step), target)
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


def verify(state: Any, about: Mapping[str, Any]) -> None:
    """Raises Damaged unless every array is what was saved."""
    saved, (found, _) = about["checksums"], compute_checksums(state)
    wrong = [path for path in saved if found.get(path) != saved[path]]
    if wrong or found.keys() != saved.keys():
        raise Damaged(f"{', '.join(wrong[:3]) or 'its list of arrays'} differs from what was saved")


def list_steps(workdir: Path) -> list[int]:
    """Steps of the complete checkpoints of a workdir, ascending."""
    folder = workdir / FOLDER
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isdigit()) if folder.is_dir() else []


def read_newest(path: str | Path) -> tuple[dict[str, Any], dict[str, Any], Path]:
    """Arrays and `about` of a checkpoint on any machine, whatever devices wrote it.

    Args:
        path: a workdir (its newest good checkpoint is taken), its `checkpoints` folder, or one step's folder.

    Returns:
        The state as nested dicts of numpy arrays, `about`, and the step's folder.

    Raises:
        UserError: there is no checkpoint, or none that is whole; says what was found there.
    """
    path = Path(path).expanduser().resolve()
    if (path / "about").is_dir():
        candidates = [path]
    else:
        workdir = path.parent if path.name == FOLDER else path
        candidates = [workdir / FOLDER / str(step) for step in reversed(list_steps(workdir))]
    if not candidates:
        found = ", ".join(sorted(p.name for p in path.iterdir())[:6]) if path.is_dir() else "nothing"
        raise UserError(
            f"{path}: no checkpoint here (found: {found or 'an empty folder'}); give a run's workdir or a step's folder."
        )
    problems = []
    for folder in candidates:
        try:
            return *_read_folder(folder), folder
        except Exception as error:  # whatever a damaged file makes the readers raise
            log.warning("%s is damaged (%s)", folder, one_sentence(error))
            problems.append(folder.name)
    raise UserError(f"{path}: no checkpoint here is whole (damaged: {', '.join(problems)}).")


def _read_folder(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    ocp = import_orbax()
    with ocp.Checkpointer(ocp.JsonCheckpointHandler()) as reader:
        about = unpack(reader.restore(folder / "about"))
    handler = ocp.PyTreeCheckpointHandler()
    with ocp.Checkpointer(handler) as reader:
        shapes = reader.metadata(folder / "state").item_metadata.tree
        restore_args = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), shapes)
        state = reader.restore(folder / "state", args=ocp.args.PyTreeRestore(restore_args=restore_args))
    verify(state, about)
    return state, about
