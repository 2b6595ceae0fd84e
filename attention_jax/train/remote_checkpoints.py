"""Checkpoints and log of a workdir at an address, where nothing can be appended to and nothing is renamed.

    config.json  writer.json  timing.jsonl
    checkpoints/<step>/…       the files that a near workdir has there, and the outputs of the newest evaluation
    checkpoints/<step>.json    written last: its files with sizes and checksums, and the segments of the log up to it
    log/<step>-<checksum>.jsonl   the lines that came since the checkpoint before; never changed
    tensorboard/…  profile/…   as of the newest checkpoint

A checkpoint is there when its marker is, whole, and the log is what the newest marker lists: lines of a call that was killed
after its last checkpoint belong to no marker. Process 0 brings the state together, writes it to a local folder with Orbax
and uploads that in the background; each process downloads for itself, so that the processes need no folder in common.
Orbax can write to gs:// and s3:// itself, through TensorStore; this way every address of fsspec is one case, the
marker is our own, and a network that fails for a minute costs a minute. The price is that the state must fit into the memory
of each host once more.
"""

import hashlib
import json
import logging
import re
import shutil
import socket
import threading
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec

from attention_jax.distributed.mesh import is_main_process
from attention_jax.errors import UserError, one_sentence
from attention_jax.storage import RemoteFolder
from attention_jax.train import checkpoint
from attention_jax.train.checkpoint import FOLDER, Damaged
from attention_jax.train.metrics import METRICS, TIMING
from attention_jax.train.step import State
from attention_jax.train.workdir import EVALUATION, get_staging_folder

log = logging.getLogger(__name__)
_MARKER = re.compile(r"(\d+)\.json")


class FarCheckpoints:
    """What `Checkpoints` is, for a workdir at an address.

    Args:
        far: the workdir.
        near: a local folder that stands for it while training runs.
        keep_last, keep_best, score: see `Checkpoints`.
    """

    def __init__(self, far: RemoteFolder, near: Path, keep_last: int, keep_best: int, score: Callable[[int], float | None]):
        self._far, self._near, self._keep = far, near, (keep_last, keep_best, score)
        self._segments: list[list[str]] = []  # [name, checksum] of those that hold the log so far
        self._logged = 0  # bytes of the log that they hold
        self._copied: dict[str, int] = {}  # sizes of the files for people that are there
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._token = f"{socket.gethostname()}-{uuid.uuid4().hex}"
        if is_main_process():
            far.write("writer.json", json.dumps({"token": self._token}).encode())

    def restore(self, abstract_state: State) -> tuple[State, dict[str, Any]] | None:
        """The newest checkpoint that is whole and its `about`; None when there is none. Brings the log and the outputs too.

        The marker of a damaged one is renamed to `<step>.damaged` with a warning.
        """
        restored, newest = None, -1
        for step in sorted(steps(self._far), reverse=True):
            try:
                marker = fetch(self._far, step, self._near)
                restored = _restore(self._near / FOLDER / str(step), abstract_state)
            except (OSError, UserError):  # of the network, or of the disk here: not of the checkpoint
                raise
            except Exception as error:  # whatever a damaged file makes the readers raise
                log.warning("checkpoint %d is damaged (%s); its marker becomes %d.damaged", step, one_sentence(error), step)
                self._move_aside(step)
                continue
            newest, self._segments = step, marker["log"]
            self._logged = sum(map(int, (size for *_, size in marker["log"])))
            break
        if jax.process_count() > 1:
            found = multihost_utils.process_allgather(np.int32(newest))
            if len(set(found.tolist())) > 1:
                raise UserError(f"{self._far.uri}: the processes found different newest checkpoints ({found.tolist()}).")
        shutil.rmtree(self._near / FOLDER, ignore_errors=True)
        return restored

    def save(self, state: State, about: Mapping[str, Any], assets: Mapping[str, bytes]) -> None:
        """Saves the state as its own step, in the background.

        Raises:
            UserError: the save before this one failed, or the state is not finite.
        """
        self.wait()
        step = int(state.step)
        packed = checkpoint.described(state, about, assets)
        arrays = jax.tree.map(_whole, state)
        if is_main_process():
            lines = (self._near / METRICS).read_bytes()[self._logged :]
            self._logged += len(lines)
            outputs, timing = (self._near / name for name in (EVALUATION, TIMING))
            extra = {EVALUATION: outputs.read_bytes()} if outputs.exists() else {}
            arguments = step, arrays, packed, lines, extra, timing.read_bytes()
            self._thread = threading.Thread(target=self._upload, args=arguments, name="upload")
            self._thread.start()

    def check(self) -> None:
        """Raises UserError when a save in the background has failed so far."""
        if self._error is not None:
            raise UserError(
                f"{self._far.uri}: a checkpoint could not be written ({one_sentence(self._error)}): the last good one is "
                "kept; mend this and start the same command again."
            ) from self._error

    def wait(self) -> None:
        """Returns when the last save counts. Raises UserError when it failed."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self.check()

    def close(self) -> None:
        """Waits for the last save."""
        self.wait()

    def _upload(
        self, step: int, arrays: State, packed: dict[str, str], lines: bytes, extra: Mapping[str, bytes], timing: bytes
    ) -> None:
        far, here = self._far, self._near / FOLDER / str(step)
        try:
            with _orbax_here() as saver:
                saver.save(here, args=_args().Composite(state=_args().PyTreeSave(arrays), about=_args().JsonSave(packed)))
            files = {str(path.relative_to(here)): path.read_bytes() for path in sorted(here.rglob("*")) if path.is_file()}
            files |= extra
            for name, content in files.items():
                far.write(f"{FOLDER}/{step}/{name}", content)
            if lines:
                digest = _digest(lines)
                segment = f"log/{step:08d}-{digest[:16]}.jsonl"
                far.write(segment, lines)
                self._segments = [*self._segments, [segment, digest, len(lines)]]
            far.write(TIMING, timing)
            if (far.read_json("writer.json") or {}).get("token") != self._token:
                raise UserError("another process writes to this workdir since then, and this one gives way")
            marker = {
                "files": {name: [len(content), _digest(content)] for name, content in files.items()},
                "log": self._segments,
            }
            far.write(f"{FOLDER}/{step}.json", json.dumps(marker).encode())
            for old in self._not_kept():
                far.remove(f"{FOLDER}/{old}.json")
                far.remove(f"{FOLDER}/{old}")
            shutil.rmtree(here)
        except BaseException as error:
            self._error = error
        else:
            try:
                self._copy_pictures()
            except Exception as error:  # the checkpoint counts without them
                log.warning(
                    "%s: TensorBoard's events and traces could not be brought there (%s); they come with the next checkpoint",
                    far.uri,
                    one_sentence(error),
                )

    def _copy_pictures(self) -> None:
        """What is made to be looked at, as it is now: events for TensorBoard, made anew at each start, and traces."""
        for kind in ("tensorboard", "profile"):
            files = {str(path.relative_to(self._near)): path for path in (self._near / kind).rglob("*") if path.is_file()}
            for name, path in files.items():
                size = path.stat().st_size
                if self._copied.get(name) != size:
                    self._far.write(name, path.read_bytes())
                    self._copied[name] = size
            if kind == "tensorboard" and files:
                for name in self._far.names(kind):
                    if f"{kind}/{name}" not in files:
                        self._far.remove(f"{kind}/{name}")

    def _not_kept(self) -> list[int]:
        last, best, score = self._keep
        found = steps(self._far)
        scored = sorted((-value, step) for step in found if (value := score(step)) is not None)
        return sorted(set(found) - set(found[-last:]) - {step for _, step in scored[:best]})

    def _move_aside(self, step: int) -> None:
        if is_main_process():
            marker = self._far.read(f"{FOLDER}/{step}.json")
            self._far.write(f"{FOLDER}/{step}.damaged", marker or b"")
            self._far.remove(f"{FOLDER}/{step}.json")


def steps(far: RemoteFolder) -> list[int]:
    """Steps of the complete checkpoints at an address, ascending."""
    return sorted(int(match[1]) for name in far.names(FOLDER) if (match := _MARKER.fullmatch(name)))


def fetch(far: RemoteFolder, step: int, near: Path) -> dict[str, Any]:
    """Downloads a checkpoint, the log up to it and its outputs into a local workdir; returns the marker.

    Raises Damaged when something is missing or differs from what was written.
    """
    marker = far.read_json(f"{FOLDER}/{step}.json")
    if not isinstance(marker, dict) or not {"files", "log"} <= marker.keys():
        raise Damaged("its marker is not whole")

    def get(name: str, size: int, digest: str) -> bytes:
        content = far.read(name)
        if content is None or len(content) != size or _digest(content) != digest:
            raise Damaged(f"{name} {'is missing' if content is None else 'differs from what was written'}")
        return content

    here = near / FOLDER / str(step)
    shutil.rmtree(here, ignore_errors=True)
    for name, (size, digest) in marker["files"].items():
        path = near / EVALUATION if name == EVALUATION else here / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(get(f"{FOLDER}/{step}/{name}", size, digest))
    (near / METRICS).write_bytes(b"".join(get(name, size, digest) for name, digest, size in marker["log"]))
    return marker


def local_copy(address: str, number: int = 1) -> Path:
    """A local workdir with the newest whole checkpoints of one at an address and its log, or the folder of one step.

    Raises UserError when there is none that is whole.
    """
    workdir, _, step = address.rstrip("/").partition(f"/{FOLDER}")
    far, step = RemoteFolder(workdir), step.strip("/")
    near = get_staging_folder(workdir) / "copy"
    shutil.rmtree(near, ignore_errors=True)
    found = [int(step)] if step else sorted(steps(far), reverse=True)
    got, problems = bring(far, near, found, number)
    if not got:
        what = f"none is whole (damaged: {', '.join(map(str, problems))})" if problems else "there is none"
        raise UserError(f"{address}: no checkpoint here: {what}; give a run's workdir or a step's folder.")
    return near / FOLDER / step if step else near


def bring(far: RemoteFolder, near: Path, found: Sequence[int] | None = None, number: int = 1) -> tuple[list[int], list[int]]:
    """Downloads the first `number` whole checkpoints of `found`, by default the newest ones, and the log up to the first.

    Returns their steps, and those of the damaged ones that were met.
    """
    got, problems, lines = [], [], b""
    for step in sorted(steps(far), reverse=True) if found is None else found:
        try:
            fetch(far, step, near)
        except Damaged as error:
            log.warning("%s/%s/%d is damaged (%s)", far.uri, FOLDER, step, error)
            problems.append(step)
            continue
        got.append(step)
        lines = lines or (near / METRICS).read_bytes()
        if len(got) == number:
            break
    if got:
        (near / METRICS).write_bytes(lines)
    return got, problems


def _restore(folder: Path, abstract_state: State) -> tuple[State, dict[str, Any]]:
    """A local copy of a checkpoint as the state of this run, whatever lies on which device."""
    args = jax.tree.map(lambda _: checkpoint.orbax().RestoreArgs(restore_type=np.ndarray), abstract_state)
    with _orbax_here() as reader:
        restored = reader.restore(
            folder, args=_args().Composite(state=_args().PyTreeRestore(abstract_state, args), about=_args().JsonRestore())
        )
    about = checkpoint.unpack(restored.about)

    def place(leaf: jax.ShapeDtypeStruct, value: Any) -> jax.Array:
        value = np.asarray(value, leaf.dtype)
        if value.shape != leaf.shape:
            raise Damaged(f"an array is {value.shape} and should be {leaf.shape}")
        return jax.make_array_from_callback(leaf.shape, leaf.sharding, lambda index: value[index])

    state = jax.tree.map(place, abstract_state, restored.state)
    checkpoint.verify(state, about)
    return state, about


def _whole(x: jax.Array) -> np.ndarray:
    """All of an array in this host's memory, a copy: its buffer is given away in the next step."""
    if not (x.is_fully_addressable or x.is_fully_replicated):
        everywhere = NamedSharding(x.sharding.mesh, PartitionSpec())
        x = jax.jit(lambda a: a, out_shardings=everywhere)(x)
    return np.array(x.addressable_data(0) if x.is_fully_replicated else x)


def _orbax_here() -> Any:
    """An Orbax checkpointer that reads and writes in this process alone."""
    ocp, me = checkpoint.orbax(), jax.process_index()
    alone = ocp.options.MultiprocessingOptions(me, {me}, f"process {me}")
    handler = ocp.CompositeCheckpointHandler(composite_options=ocp.CompositeOptions(multiprocessing_options=alone))
    return ocp.Checkpointer(handler, multiprocessing_options=alone)


def _args() -> Any:
    return checkpoint.orbax().args


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
