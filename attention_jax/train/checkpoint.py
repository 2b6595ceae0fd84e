"""Checkpoints: saved atomically in the background, verified when read, the newest good one found.

A checkpoint is a folder with the state's arrays and `about`: config, log sums of the unfinished logging interval, assets,
package versions, the log, and a checksum of every array. Each process writes its own part of the arrays (`array_saver.py`).

    on a disk   checkpoints/<step>           renamed to this when complete
    at gs://    checkpoints/<step>-<token>   of one call of the command, and beside it, written last, its marker:
                checkpoints/<step>-<token>.json   with the hash of `about`, which has those of the arrays and the log

One that is damaged is moved aside and the one before is used; one that cannot be read stops the run (`restore.py` tells them
apart). At gs:// nothing is appended to or renamed: the log's file and other files for people are written anew at each
checkpoint, and the log that counts is the newest checkpoint's.
"""

import base64
import contextlib
import errno
import hashlib
import importlib.metadata
import json
import logging
import os
import shutil
import socket
import time
import uuid
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from attention_jax import __version__
from attention_jax.distributed.mesh import is_main_process
from attention_jax.errors import UserError, one_sentence
from attention_jax.storage import RemoteFolder
from attention_jax.train import restore
from attention_jax.train.array_saver import ArraySaver
from attention_jax.train.metrics import METRICS, TIMING
from attention_jax.train.restore import FOLDER, Damaged, list_checkpoints
from attention_jax.train.step import State
from attention_jax.train.workdir import EVALUATION

log = logging.getLogger(__name__)
ASIDE = "checkpoints_damaged"
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


def pack_description(state: State, about: Mapping[str, Any], assets: Mapping[str, bytes]) -> dict[str, str]:
    """Returns the `about` to save with a state, with checksums, versions and assets, and its log compressed.

    Raises UserError for a state that is not finite.
    """
    step = int(state.step)
    checksums, finite = restore.compute_checksums(state)
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


def choose_kept(steps: Sequence[int], keep_last: int, keep_best: int, score: Callable[[int], float | None]) -> set[int]:
    """Returns the steps to keep of these, which ascend: the newest ones, and those of the highest score, then the earliest."""
    scored = sorted((-value, step) for step in steps if (value := score(step)) is not None)
    return {*steps[max(0, len(steps) - keep_last) :], *(step for _, step in scored[:keep_best])}


def _put_back_exchanged(workdir: Path) -> None:
    """Renames each folder to the step in its description: people move folders, and another one would be the newest.

    Raises UserError where the folders cannot be listed.
    """
    folder, wrong = workdir / FOLDER, dict[int, Path]()
    for step, name in list_checkpoints(workdir):
        with contextlib.suppress(Damaged, UserError):  # `restore` reports them
            about = restore.unpack_description(restore.read_content(folder, f"{name}/about/metadata") or b"", name="")
            if about["step"] != step:
                log.warning(
                    "%s/%d is the checkpoint of step %d: it is renamed, or moved to %s/", folder, step, about["step"], ASIDE
                )
                wrong[about["step"]] = _move_aside(folder / name)
    for step, path in wrong.items():
        if not (folder / str(step)).exists():
            path.rename(folder / str(step))


def _move_aside(path: Path) -> Path:
    """Moves a checkpoint to `checkpoints_damaged`; returns its new path."""
    aside = path.parent.parent / ASIDE
    aside.mkdir(exist_ok=True)
    target = next(aside / f"{path.name}-{i}" for i in range(10**6) if not (aside / f"{path.name}-{i}").exists())
    path.with_name(f"{path.name}.json").unlink(missing_ok=True)  # a run that was copied from a bucket has one
    return Path(shutil.move(path, target))


class Checkpoints:
    """The checkpoints of a workdir. Every method is collective.

    Args:
        workdir: the workdir or, of a remote one, its local staging folder.
        keep_last, keep_best: number of newest and of best checkpoints to keep.
        score: step -> logged headline metric, higher is better; None without an evaluation.
        remote: the workdir at gs://, which this makes its own: a process that wrote there before stops at its next save.
    """

    def __init__(
        self,
        workdir: Path,
        keep_last: int,
        keep_best: int,
        score: Callable[[int], float | None],
        remote: RemoteFolder | None = None,
    ):
        self._workdir, self._remote = workdir, remote
        self._place, self._at = remote or workdir, remote.uri if remote else str(workdir)
        self._keep = keep_last, keep_best, score
        self._last = -1  # the step that was saved or restored last
        self._copied: dict[str, int] = {}  # sizes of the uploaded events and traces
        self.durations: list[float] = []  # seconds of the saves that have ended, until someone takes them
        self.saver = ArraySaver()
        number = np.frombuffer(uuid.uuid4().bytes[:4], np.uint32)
        if jax.process_count() > 1:
            number = multihost_utils.broadcast_one_to_all(number)
        self._token = f"{int(number[0]):08x}"
        self._writer = f"{socket.gethostname()}-{self._token}"
        restore.call_together(self._take_over)

    def _take_over(self) -> None:
        """Makes the workdir this call's, and removes what interrupted saves have left."""
        if not is_main_process():
            return
        if self._remote:
            self._remote.write("writer.json", json.dumps({"token": self._writer}).encode())
            names = restore.list_names(self._remote)
            for name in names:
                if restore.is_unfinished(name, names):
                    self._remote.remove(f"{FOLDER}/{name}")
            return
        _put_back_exchanged(self._workdir)
        for path in (self._workdir / FOLDER).glob("*.orbax-checkpoint-tmp*"):
            shutil.rmtree(path, ignore_errors=True)

    def save(self, state: State, about: Mapping[str, Any], assets: Mapping[str, bytes]) -> None:
        """Saves the state under its step, in the background; the step that was restored or saved last stays as it is.

        Raises:
            UserError: the save before this one failed (disk full), or the state is not finite.
        """
        self.wait()
        step, begin = int(state.step), time.perf_counter()
        if step == self._last:
            return
        packed = json.dumps(pack_description(state, about, assets)).encode()
        people = self._read_for_people(about.get("log")) if self._remote and is_main_process() else {}
        name = f"{step}-{self._token}" if self._remote else f"{step}.orbax-checkpoint-tmp"
        folder = f"{self._at}/{FOLDER}/{name}"

        def complete() -> None:
            if self._remote:
                self._complete_remote(name, packed, people)
            else:
                (Path(folder) / "about" / "metadata").write_bytes(packed)
                os.rename(folder, self._workdir / FOLDER / str(step))
            self._remove_old()
            self.durations.append(time.perf_counter() - begin)

        def make_folder() -> None:
            if is_main_process():
                (self._workdir / FOLDER).mkdir(exist_ok=True)  # without parents: a workdir that was removed stays so
                for path in (Path(folder), Path(folder) / "about", Path(folder) / "state"):  # TensorStore makes only the last
                    path.mkdir()

        with self._saving():
            if not self._remote:
                restore.call_together(make_folder)
            self.saver.save(f"{folder}/state", state, complete)
        self._last = step

    def check(self) -> None:
        """Raises UserError when a save in the background has failed so far; not collective."""
        with self._saving():
            self.saver.check()

    def wait(self) -> None:
        """Returns when the last save is complete. Raises UserError when it failed."""
        with self._saving():
            self.saver.wait()

    def close(self) -> None:
        """Waits for the last save; if it failed in one process, raises in all."""
        restore.call_together(self.wait)

    def restore(self, abstract_state: State) -> tuple[State, dict[str, Any]] | None:
        """Returns the newest checkpoint that is not damaged, and its `about`; None if there is none.

        Damaged ones are moved to `checkpoints_damaged`, or their marker is renamed to `….damaged`, with a warning. Of a remote
        workdir the log and the outputs of its evaluation come to the staging folder. Raises UserError when one cannot be read.
        """
        found = list_checkpoints(self._place)
        if jax.process_count() > 1:
            digest = np.uint32(zlib.crc32(str(found).encode()))
            if len(set(multihost_utils.process_allgather(digest).tolist())) > 1:
                raise UserError(f"{self._at}: the processes see different checkpoints: start the same command again.")
        for step, name in reversed(found):
            try:
                state, about = restore.read_checkpoint(self._place, f"{FOLDER}/{name}", abstract_state)
            except Exception as error:
                reason = restore.describe_damage(error, f"{self._at}/{FOLDER}/{name}")
                moved = f"its marker becomes {name}.damaged" if self._remote else f"it is moved to {ASIDE}/"
                log.warning("checkpoint %d is damaged (%s); %s", step, reason, moved)
                self._set_aside(name)
                continue
            self._last = step
            if self._remote:
                (self._workdir / METRICS).write_bytes(about["log"] or b"")
                if outputs := restore.read_content(self._remote, EVALUATION):
                    (self._workdir / EVALUATION).write_bytes(outputs)
            return state, about
        return None

    def _set_aside(self, name: str) -> None:
        def move() -> None:
            if not is_main_process():
                return
            if self._remote:
                self._remote.write(f"{FOLDER}/{name}.damaged", self._remote.read(f"{FOLDER}/{name}.json") or b"")
                self._remote.remove(f"{FOLDER}/{name}.json")
            else:
                _move_aside(self._workdir / FOLDER / name)

        restore.call_together(move)

    def _complete_remote(self, name: str, packed: bytes, people: Mapping[str, bytes]) -> None:
        remote = self._remote
        assert remote
        remote.write(f"{FOLDER}/{name}/about/metadata", packed)
        self._check_writer(f"{FOLDER}/{name}")
        remote.write(f"{FOLDER}/{name}.json", json.dumps({"sha256": hashlib.sha256(packed).hexdigest()}).encode())
        try:
            for file, content in people.items():
                remote.write(file, content)
            self._upload_for_people()
        except Exception as error:  # the checkpoint is complete without them
            text = "%s: the files for people could not be uploaded (%s); the next checkpoint tries again"
            log.warning(text, remote.uri, one_sentence(error))

    def _check_writer(self, written: str) -> None:
        """Raises UserError if the workdir is not this call's any more; the folder that it has `written` goes."""
        remote = self._remote
        assert remote
        found = remote.read_json("writer.json")
        if isinstance(found, dict) and found.get("token") == self._writer:
            return
        remote.remove(written)
        gone = "this workdir was removed while the run was training"
        raise UserError("another process has taken over this workdir; this one stops" if found else gone)

    def _remove_old(self) -> None:
        found = list_checkpoints(self._place)
        kept = choose_kept([step for step, _ in found], *self._keep)
        for step, name in found:
            if step not in kept and self._remote:
                self._remote.remove(f"{FOLDER}/{name}.json")  # first: without it the rest does not count
                self._remote.remove(f"{FOLDER}/{name}")
            elif step not in kept:
                old = self._workdir / FOLDER / name
                old.with_name(f"{name}.json").unlink(missing_ok=True)
                gone = old.rename(old.with_name(f"{name}.orbax-checkpoint-tmp"))
                shutil.rmtree(gone, ignore_errors=True)

    def _read_for_people(self, content: bytes | None) -> dict[str, bytes]:
        """Returns the log, wall-clock times, and the outputs of the newest evaluation, as of now."""
        files = {name: path.read_bytes() for name in (EVALUATION, TIMING) if (path := self._workdir / name).exists()}
        return {**files, METRICS: content or b""}

    def _upload_for_people(self) -> None:
        """Uploads TensorBoard's events, which are written anew at each start, and traces."""
        remote, local = self._remote, self._workdir
        assert remote
        for kind in ("tensorboard", "profile"):
            files = {str(path.relative_to(local)): path for path in (local / kind).rglob("*") if path.is_file()}
            for name, path in files.items():
                size = path.stat().st_size
                if self._copied.get(name) != size:
                    remote.write(name, path.read_bytes())
                    self._copied[name] = size
            if kind == "tensorboard" and files:
                for name in remote.names(kind):
                    if f"{kind}/{name}" not in files:
                        remote.remove(f"{kind}/{name}")

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
                f"{self._at}: a checkpoint could not be written ({reason}): the last good one is kept; "
                f"{'free some space' if full else 'fix this'} and start the same command again."
            ) from error
