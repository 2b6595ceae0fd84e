"""Checkpoints and log of a remote workdir, whose files cannot be extended or renamed.

    config.json  writer.json  timing.jsonl
    checkpoints/<step>/…       the files of a local checkpoint, and the outputs of the newest evaluation
    checkpoints/<step>.json    written last: its files with sizes and checksums, and the segments of the log up to it
    log/<step>-<checksum>.jsonl   the lines since the checkpoint before; never changed
    tensorboard/…  profile/…   as of the newest checkpoint

A checkpoint exists once its marker is complete, and the log is what the newest marker lists: lines of a call that was killed
after its last checkpoint belong to no marker. Process 0 gathers the state, writes it to a local folder with Orbax and uploads
that in the background; each process downloads for itself, so that the processes need no common folder. Orbax can write to
gs:// and s3:// itself, through TensorStore; here every URI of fsspec is one case, the marker is ours, and a network that
fails for a minute costs a minute. The price is that the state must fit once more into the memory of each host.
"""

import functools
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
from attention_jax.train import checkpoint, restore
from attention_jax.train.metrics import METRICS, TIMING
from attention_jax.train.restore import FOLDER, Damaged
from attention_jax.train.step import State
from attention_jax.train.workdir import EVALUATION, get_staging_folder

log = logging.getLogger(__name__)
_MARKER = re.compile(r"(\d+)\.json")


class RemoteCheckpoints:
    """The checkpoints of a remote workdir with its local staging folder; see `Checkpoints` for other arguments and methods."""

    def __init__(self, remote: RemoteFolder, local: Path, keep_last: int, keep_best: int, score: Callable[[int], float | None]):
        self._remote, self._local, self._keep = remote, local, checkpoint.Preservation(keep_last, keep_best, score)
        self._segments: list[list[Any]] = []  # [name, checksum, bytes] of each part of the log so far
        self._logged = 0  # bytes of the log in them
        self._copied: dict[str, int] = {}  # sizes of the uploaded events and traces
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._token = f"{socket.gethostname()}-{uuid.uuid4().hex}"
        if is_main_process():
            remote.write("writer.json", json.dumps({"token": self._token}).encode())

    def restore(self, abstract_state: State) -> tuple[State, dict[str, Any]] | None:
        """Returns the newest checkpoint that is not damaged and its `about`, or None. Downloads the log and the outputs too.

        The marker of a damaged one is renamed to `<step>.damaged` with a warning. Raises UserError if one cannot be read.
        """
        restored, newest = None, -1
        for step in reversed(list_remote_steps(self._remote)):
            try:
                marker = restore.call_together(functools.partial(download_checkpoint, self._remote, step, self._local))
                restored = restore.read_checkpoint(self._local / FOLDER / str(step), abstract_state)
            except Exception as error:
                reason = restore.describe_damage(error, f"{self._remote.uri}/{FOLDER}/{step}")
                log.warning("checkpoint %d is damaged (%s); its marker becomes %d.damaged", step, reason, step)
                if is_main_process():
                    self._remote.write(f"{FOLDER}/{step}.damaged", self._remote.read(f"{FOLDER}/{step}.json") or b"")
                    self._remote.remove(f"{FOLDER}/{step}.json")
                continue
            for name, lines in marker["lost"].items() if is_main_process() else ():
                self._remote.write(name, lines)
            newest, self._segments = step, marker["log"]
            self._logged = sum(map(int, (size for *_, size in marker["log"])))
            break
        if jax.process_count() > 1:
            found = multihost_utils.process_allgather(np.int32(newest))
            if len(set(found.tolist())) > 1:
                raise UserError(f"{self._remote.uri}: the processes found different newest checkpoints ({found.tolist()}).")
        shutil.rmtree(self._local / FOLDER, ignore_errors=True)
        return restored

    def save(self, state: State, about: Mapping[str, Any], assets: Mapping[str, bytes]) -> None:
        """Saves the state under its step, in the background; raises as `Checkpoints.save` does."""
        self.wait()
        step = int(state.step)
        packed = checkpoint.pack_description(state, about, assets)
        arrays = jax.tree.map(_gather, state)
        if is_main_process():
            lines = (self._local / METRICS).read_bytes()[self._logged :]
            self._logged += len(lines)
            outputs, timing = (self._local / name for name in (EVALUATION, TIMING))
            extra = {EVALUATION: outputs.read_bytes()} if outputs.exists() else {}
            arguments = step, arrays, packed, lines, extra, timing.read_bytes()
            self._thread = threading.Thread(target=self._upload, args=arguments, name="upload")
            self._thread.start()

    def check(self) -> None:
        """Raises UserError if a save in the background has failed so far."""
        if self._error is not None:
            raise UserError(
                f"{self._remote.uri}: a checkpoint could not be written ({one_sentence(self._error)}): the last good one is "
                "kept; fix this and start the same command again."
            ) from self._error

    def wait(self) -> None:
        """Waits until the last save is complete. Raises UserError if it failed."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self.check()

    def close(self) -> None:
        """Waits for the last save, in all processes for the one that writes it (collective)."""
        restore.call_together(self.wait)

    def _upload(
        self, step: int, arrays: State, packed: dict[str, str], lines: bytes, extra: Mapping[str, bytes], timing: bytes
    ) -> None:
        remote, here, written = self._remote, self._local / FOLDER / str(step), [TIMING, f"{FOLDER}/{step}"]
        try:
            self._check_writer([])
            _save_alone(here, arrays, packed)
            files = {str(path.relative_to(here)): path.read_bytes() for path in sorted(here.rglob("*")) if path.is_file()}
            files |= extra
            for name, content in files.items():
                remote.write(f"{FOLDER}/{step}/{name}", content)
            if lines:
                digest = _digest(lines)
                segment = f"log/{step:08d}-{digest[:16]}.jsonl"
                written.append(segment)
                remote.write(segment, lines)
                self._segments = [*self._segments, [segment, digest, len(lines)]]
            remote.write(TIMING, timing)
            self._check_writer(written)
            listed = {name: [len(content), _digest(content)] for name, content in files.items()}
            remote.write(f"{FOLDER}/{step}.json", json.dumps({"files": listed, "log": self._segments}).encode())
            for old in self._not_kept():
                remote.remove(f"{FOLDER}/{old}.json")
                remote.remove(f"{FOLDER}/{old}")
            shutil.rmtree(here)
        except BaseException as error:
            self._error = error
        else:
            try:
                self._upload_for_people()
            except Exception as error:  # the checkpoint is complete without them
                text = "%s: TensorBoard's events and traces could not be uploaded (%s); the next checkpoint tries again"
                log.warning(text, remote.uri, one_sentence(error))

    def _check_writer(self, written: Sequence[str]) -> None:
        """Raises UserError if the workdir is not this process's any more; removes the files `written` to a removed workdir."""
        found = self._remote.read_json("writer.json")
        if not found:
            for name in written:
                self._remote.remove(name)
            raise UserError("this workdir was removed while the run was training")
        if not isinstance(found, dict) or found.get("token") != self._token:
            raise UserError("another process has taken over this workdir; this one stops")

    def _upload_for_people(self) -> None:
        """Uploads TensorBoard's events, which are written anew at each start, and traces."""
        for kind in ("tensorboard", "profile"):
            files = {str(path.relative_to(self._local)): path for path in (self._local / kind).rglob("*") if path.is_file()}
            for name, path in files.items():
                size = path.stat().st_size
                if self._copied.get(name) != size:
                    self._remote.write(name, path.read_bytes())
                    self._copied[name] = size
            if kind == "tensorboard" and files:
                for name in self._remote.names(kind):
                    if f"{kind}/{name}" not in files:
                        self._remote.remove(f"{kind}/{name}")

    def _not_kept(self) -> list[int]:
        found = list_remote_steps(self._remote)
        return sorted({*found} - self._keep.choose(found))


def list_remote_steps(remote: RemoteFolder) -> list[int]:
    """Returns the steps of the complete checkpoints of a remote workdir, ascending."""
    return sorted(int(match[1]) for name in restore.list_remote_checkpoints(remote) if (match := _MARKER.fullmatch(name)))


def download_checkpoint(remote: RemoteFolder, step: int, local: Path) -> dict[str, Any]:
    """Downloads a checkpoint, the log up to it and its outputs into a local workdir.

    Returns the marker; its "lost" lists parts of the log that are missing or differ and came from the checkpoint.

    Raises Damaged if anything else is missing or differs from the written files.
    """
    marker = remote.read_json(f"{FOLDER}/{step}.json")
    if not isinstance(marker, dict) or not {"files", "log"} <= marker.keys():
        raise Damaged("its marker is incomplete")

    def get(name: str, size: int, digest: str) -> bytes:
        content = remote.read(name)
        if content is None or len(content) != size or _digest(content) != digest:
            raise Damaged(f"{name} {'is missing' if content is None else 'differs from what was written'}")
        return content

    here = local / FOLDER / str(step)
    shutil.rmtree(here, ignore_errors=True)
    for name, (size, digest) in marker["files"].items():
        path = local / EVALUATION if name == EVALUATION else here / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(get(f"{FOLDER}/{step}/{name}", size, digest))
    about = restore.unpack_description(restore.read_content(here, "about/metadata") or b"", str(step))
    content, lost = b"", {}
    for name, digest, size in marker["log"]:
        try:
            content += get(name, size, digest)
        except Damaged as damage:
            lost[name] = (about["log"] or b"")[len(content) : len(content) + size]
            if _digest(lost[name]) != digest:
                raise
            log.warning("%s: %s: the lines come from checkpoint %d", remote.uri, damage, step)
            content += lost[name]
    (local / METRICS).write_bytes(content)
    return {**marker, "lost": lost}


def download_run(uri: str, number: int = 1) -> Path:
    """Downloads the newest `number` good checkpoints of a remote workdir and its log, or one step; returns the local folder.

    Raises UserError if there is none.
    """
    workdir, _, step = uri.rstrip("/").partition(f"/{FOLDER}")
    remote, step = RemoteFolder(workdir), step.strip("/")
    local = get_staging_folder(workdir) / "copy"
    shutil.rmtree(local, ignore_errors=True)
    got, problems = download_checkpoints(remote, local, [int(step)] if step else None, number)
    if not got and not list_remote_steps(remote):
        got, problems = _download_copied_run(remote, local, step, number), []
    if not got:
        problem = f"all are damaged ({', '.join(map(str, problems))})" if problems else "there is none"
        raise UserError(f"{uri}: no checkpoint here: {problem}; give a run's workdir or a step's folder.")
    return local / FOLDER / step if step else local


def _download_copied_run(remote: RemoteFolder, local: Path, step: str, number: int) -> list[int]:
    """Downloads a run that was trained in a folder and copied to a store; returns the steps of its newest checkpoints."""
    names = remote.find()
    places = [name.split("/") for name in names if name.startswith(f"{FOLDER}/")]
    steps = {int(place[1]) for place in places if place[1].isdecimal() and step in ("", place[1])}
    newest = sorted(steps)[-number:]
    for name in names:
        top, _, below = name.partition("/")
        if not below or (top == FOLDER and below.partition("/")[0] in map(str, newest)):
            (local / name).parent.mkdir(parents=True, exist_ok=True)
            (local / name).write_bytes(remote.read(name) or b"")
    return newest


def download_checkpoints(
    remote: RemoteFolder, local: Path, found: Sequence[int] | None = None, number: int = 1
) -> tuple[list[int], list[int]]:
    """Downloads the first `number` good checkpoints of `found`, by default the newest ones, and the log up to the first.

    Returns their steps, and those of the damaged ones before them.
    """
    got, problems, lines = [], [], b""
    for step in found or reversed(list_remote_steps(remote)):
        try:
            download_checkpoint(remote, step, local)
        except Exception as error:
            place = f"{remote.uri}/{FOLDER}/{step}"
            log.warning("%s is damaged (%s)", place, restore.describe_damage(error, place))
            problems.append(step)
            continue
        got.append(step)
        lines = lines or (local / METRICS).read_bytes()
        if len(got) == number:
            break
    if got:
        (local / METRICS).write_bytes(lines)
    return got, problems


def _gather(x: jax.Array) -> np.ndarray:
    """Copies a complete array to this host's memory: the next step donates its buffer."""
    if not (x.is_fully_addressable or x.is_fully_replicated):
        assert isinstance(x.sharding, NamedSharding)  # as the arrays of a state have
        x = jax.jit(lambda a: a, out_shardings=NamedSharding(x.sharding.mesh, PartitionSpec()))(x)
    return np.array(x.addressable_data(0) if x.is_fully_replicated else x)


def _save_alone(folder: Path, state: State, about: dict[str, str]) -> None:
    """Writes a checkpoint with Orbax in this process alone."""
    ocp, me = checkpoint.import_orbax(), jax.process_index()
    alone = ocp.options.MultiprocessingOptions(me, {me}, f"process {me}")
    handler = ocp.CompositeCheckpointHandler(composite_options=ocp.CompositeOptions(multiprocessing_options=alone))
    with ocp.Checkpointer(handler, multiprocessing_options=alone) as saver:
        saver.save(folder, args=ocp.args.Composite(state=ocp.args.PyTreeSave(state), about=ocp.args.JsonSave(about)))


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
