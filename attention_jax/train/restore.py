"""Reads checkpoints, and separates damaged ones from ones that cannot be read.

A checkpoint is damaged only if its files were read and are wrong. Anything else that keeps it from being read (permissions,
disk, network, memory, a flag of JAX, a bug) is a UserError with the reason: nothing is moved and nothing is trained.
"""

import base64
import contextlib
import hashlib
import json
import logging
import os
import re
import sys
import zlib
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from attention_jax import tree
from attention_jax.errors import UserError, one_sentence
from attention_jax.storage import RemoteFolder
from attention_jax.train.step import State

log = logging.getLogger(__name__)
FOLDER = "checkpoints"
_TOKEN = re.compile(r"\d+-[0-9a-f]{8}")  # name of a checkpoint at gs://
_MARKER = re.compile(r"((\d+)(?:-[0-9a-f]{8})?)\.json")
# TensorStore's codes for files that are missing, cut short, or changed since they were written.
_WRONG = ("NOT_FOUND", "OUT_OF_RANGE", "DATA_LOSS", "FAILED_PRECONDITION")


class Damaged(Exception):
    """Files of a checkpoint were read and differ from the saved ones."""


@jax.jit  # per array: few shapes serve every state, and one program for a complete state takes seconds to compile
def _checksum(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns (uint32 checksum, True if every element is finite).

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
    """Returns ({path: checksum} of every array of a tree, True if all are finite), computed on the arrays' devices."""
    # One at a time: for sharded arrays, many of these sums over devices at once deadlock on forced CPU devices.
    found = {path: jax.device_get(_checksum(leaf)) for path, leaf in tree.flatten_by_path(state).items()}
    return {path: int(checksum) for path, (checksum, _) in found.items()}, all(finite for _, finite in found.values())


def unpack_description(content: bytes, name: str) -> dict[str, Any]:
    """Returns the `about` that was saved in the folder `name`. Raises Damaged if it is broken, or of another step."""
    try:
        packed = json.loads(content)
        right = hashlib.sha256(packed["text"].encode()).hexdigest() == packed["sha256"]
    except (ValueError, KeyError, TypeError, AttributeError):
        right = False
    if not right:
        raise Damaged("its description is not what was saved")
    about = json.loads(packed["text"])
    if name.isdecimal() and int(name) != about["step"]:
        raise Damaged(f"it is the checkpoint of step {about['step']}")
    assets = {name: base64.b64decode(text) for name, text in about["assets"].items()}
    return {**about, "assets": assets, "log": zlib.decompress(base64.b64decode(about["log"])) if "log" in about else None}


def read_description(place: Path | RemoteFolder) -> dict[str, Any] | None:
    """Returns the `about` of the newest checkpoint with a good one, whatever its arrays; None without any.

    Raises UserError if one cannot be read.
    """
    for _, name in reversed(list_checkpoints(place)):
        with contextlib.suppress(Damaged):
            return _read_about(place, f"{FOLDER}/{name}")
    return None


def _read_about(place: Path | RemoteFolder, folder: str) -> dict[str, Any]:
    """`about` of a checkpoint, compared with its marker if it has one. Raises Damaged, or UserError if it cannot be read."""
    name = os.path.basename(folder)
    step = name.partition("-")[0]
    content = read_content(place, f"{folder}/about/metadata", f"checkpoint {name}") or b""
    if _TOKEN.fullmatch(name):
        marker = read_content(place, f"{folder}.json", f"checkpoint {name}") or b""
        if hashlib.sha256(content).hexdigest() not in marker.decode(errors="replace"):
            raise Damaged("its marker is not that of its description")
    return unpack_description(content, step)


def read_content(place: Path | RemoteFolder, name: str, what: str = "") -> bytes | None:
    """Returns the content of a workdir's file, or None without a file. Raises UserError if it cannot be read.

    Args:
        what: name of the content, for messages; by default the file's name.
    """
    try:
        return place.read(name) if isinstance(place, RemoteFolder) else (place / name).read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        folder = f"{getattr(place, 'uri', place)}/{name}".removesuffix("/about/metadata")
        raise explain_unreadable(what or name, error, folder) from error


def describe_damage(error: Exception, folder: Path | str) -> str:
    """Returns the damage of a checkpoint, given the exception that ended reading it.

    Raises UserError with the reason if `error` is not Damaged: the checkpoint may be good.
    """
    if isinstance(error, Damaged):
        return one_sentence(error)
    if isinstance(error, UserError):
        raise error
    raise explain_unreadable(f"checkpoint {os.path.basename(folder)}", error, folder) from error


def explain_unreadable(what: str, error: Exception, place: Path | str) -> UserError:
    """Returns a UserError with the reason why a checkpoint, or the list of checkpoints, cannot be read."""
    reason = f"{type(error).__name__}: {one_sentence(error)}"
    if isinstance(error, OSError) and error.errno:
        reason, place = os.strerror(error.errno).lower(), error.filename or place
    return UserError(f"{what} cannot be read ({reason}): {place}: nothing was changed; remove the cause and try again.")


def call_together(function: Callable[[], Any]) -> Any:
    """Returns `function()`. Collective: if it raises in one process, it raises in all, so that all take the same path."""
    result, problem, kind = None, None, 0
    try:
        result = function()
    except Exception as error:
        problem, kind = error, 1 if isinstance(error, Damaged) else 2
    worst = kind if jax.process_count() == 1 else int(multihost_utils.process_allgather(np.int32(kind)).max())
    if worst > kind:
        problem = Damaged("as another process found") if worst == 1 else UserError("another process failed and says why.")
    if problem:
        raise problem
    return result


def read_checkpoint(place: Path | RemoteFolder, folder: str, abstract_state: State | None = None) -> tuple[Any, dict[str, Any]]:
    """Returns the arrays and `about` of a checkpoint, whose `folder` is below the workdir, compared with its checksums.

    Args:
        abstract_state: the state to restore, each process reading its part (collective); None reads all arrays, as nested
            dicts of numpy arrays.

    Raises:
        Damaged: files were read and differ from the saved ones. Any other exception tells nothing about them.
    """
    if abstract_state is None:
        flat, about = _read_files(place, folder, {})
        _verify(flat, about)
        return tree.nest_by_path(flat), about
    wanted = tree.flatten_by_path(abstract_state)
    flat, about = call_together(lambda: _read_files(place, folder, wanted))
    call_together(lambda: _verify(flat, about))
    return jax.tree.unflatten(jax.tree.structure(abstract_state), [flat[path] for path in wanted]), about


def _read_files(
    place: Path | RemoteFolder, folder: str, wanted: Mapping[str, jax.ShapeDtypeStruct]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns ({path: array}, `about`): numpy arrays, or JAX arrays with the shardings of `wanted`.

    It reads with TensorStore instead of Orbax, which hides reasons: without permission for one file, it reports a missing or
    a different tree.
    """
    import tensorstore as ts

    store = {"driver": "file", "path": f"{place}/{folder}/state/"}
    if isinstance(place, RemoteFolder):
        bucket, _, inside = f"{place.uri}/{folder}/state/".removeprefix("gs://").partition("/")
        store = {"driver": "gcs", "bucket": bucket, "path": inside}
    base = {"driver": "ocdbt", "base": store}
    options: dict[str, Any] = {"open": True, "read": True, "context": ts.Context({"cache_pool": {"total_bytes_limit": 10**8}})}
    try:
        about = _read_about(place, folder)
        specs = {path: {"driver": "zarr", "kvstore": {**base, "path": path.replace("/", ".")}} for path in about["checksums"]}
        opening = {path: ts.open(spec, **options) for path, spec in specs.items()}
        stores = {path: store.result() for path, store in opening.items()}
        _refuse_another_state(f"{getattr(place, 'uri', place)}/{folder}", stores, wanted)
        waits = {path: _begin(store, wanted.get(path)) for path, store in stores.items()}
        return {path: wait() for path, wait in waits.items()}, about
    except (FileNotFoundError, ValueError) as error:
        _read_every_byte(place, folder)
        code, text = str(error).partition(":")[0], str(error)
        # TensorStore reports bytes that it cannot decode as INVALID_ARGUMENT, for which it has no code.
        if isinstance(error, FileNotFoundError) or code in _WRONG or (not code.isupper() and "Error reading" in text):
            raise Damaged(text) from error
        raise


def _refuse_another_state(folder: str, stores: Mapping[str, Any], wanted: Mapping[str, jax.ShapeDtypeStruct]) -> None:
    """Raises UserError if the arrays do not belong to this run: another version, or another flag of JAX."""
    there = {path: f"{store.dtype.name}{list(store.shape)}" for path, store in stores.items()}
    here = {path: f"{leaf.dtype.name}{list(leaf.shape)}" for path, leaf in wanted.items()}
    for path in sorted(there.keys() | here.keys()) if wanted else ():
        if there.get(path) != here.get(path):
            raise UserError(
                f"checkpoint {os.path.basename(folder)} cannot be read ({path} is {there.get(path, 'missing')} in {folder} and "
                f"{here.get(path, 'missing')} here): use the version and the flags of JAX that wrote it."
            )


def _begin(store: Any, leaf: jax.ShapeDtypeStruct | None) -> Callable[[], Any]:
    """Starts reading an array, or the parts of it that this process needs; returns a function that waits for them."""
    if leaf is None:
        return store.read().result
    indices = leaf.sharding.addressable_devices_indices_map(leaf.shape).values()
    parts = {str(index): store[index].read() for index in indices}
    return lambda: jax.make_array_from_callback(leaf.shape, leaf.sharding, lambda index: parts[str(index)].result())


def _read_every_byte(place: Path | RemoteFolder, folder: str) -> None:
    """Raises OSError, or UserError for a remote one, if the checkpoint or a file in it cannot be read."""

    def stop(error: OSError) -> None:
        raise error

    if isinstance(place, RemoteFolder):
        for file in place.find(folder):
            place.read(file)
        return
    for base, _, names in os.walk(place / folder, onerror=stop):
        for file in names:
            with open(os.path.join(base, file), "rb") as opened:
                while opened.read(2**24):
                    pass


def _verify(flat: Mapping[str, Any], about: Mapping[str, Any]) -> None:
    found, _ = compute_checksums(flat)
    if wrong := [path for path, checksum in about["checksums"].items() if found[path] != checksum]:
        raise Damaged(f"{', '.join(wrong[:3])} differs from what was saved")


def list_names(place: Path | RemoteFolder) -> list[str]:
    """Returns the names of what is in the folder of checkpoints. Raises UserError if it cannot be read."""
    folder = f"{getattr(place, 'uri', place)}/{FOLDER}"
    try:
        if isinstance(place, RemoteFolder):
            return place.names(FOLDER)
        return os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise explain_unreadable("the list of checkpoints", error, folder) from error


def list_checkpoints(place: Path | RemoteFolder) -> list[tuple[int, str]]:
    """Returns (step, name of the folder) of the complete checkpoints of a workdir, ascending.

    On a disk a folder has its name when it is complete. In a store it counts with its marker, unless there is none at all, as
    in a run that was trained in a folder and copied.
    """
    names, is_remote = list_names(place), isinstance(place, RemoteFolder)
    marked = {m[1]: int(m[2]) for name in names if (m := _MARKER.fullmatch(name)) and (is_remote or m[1] in names)}
    if not (marked and is_remote):
        marked |= {name: int(name) for name in names if name.isdecimal()}
    return sorted((step, name) for name, step in marked.items())


def is_unfinished(name: str, names: Collection[str]) -> bool:
    """True for the folder of a checkpoint at gs:// that was never complete, among the names beside it."""
    return bool(_TOKEN.fullmatch(name)) and not {f"{name}.json", f"{name}.damaged"} & {*names}


def list_steps(workdir: Path | RemoteFolder) -> list[int]:
    """Returns the steps of the complete checkpoints of a workdir, ascending."""
    return [step for step, _ in list_checkpoints(workdir)]


def refuse_undecodable(path: Path) -> None:
    """Raises UserError for a path whose bytes are not UTF-8, because TensorStore takes names in UTF-8."""
    if os.fsencode(path) != str(path).encode(errors="replace"):
        raise UserError(
            f"{path}: checkpoints cannot be kept in a folder of this name where names of files are in "
            f"{sys.getfilesystemencoding()}: set PYTHONUTF8=1, or give another name."
        )


def read_newest(path: str | Path) -> tuple[dict[str, Any], dict[str, Any], Path]:
    """Returns a state as nested dicts of numpy arrays, whatever devices wrote it, its `about`, and the step's folder.

    Args:
        path: a workdir (its newest good checkpoint is taken), its `checkpoints` folder, or one step's folder.

    Raises:
        UserError: there is no checkpoint, only damaged ones, or one that cannot be read; the message names the content found.
    """
    path = Path(path).expanduser().resolve()
    refuse_undecodable(path)
    if os.path.isdir(path / "about"):  # False where one may not look; Path.is_dir raises
        place, candidates = path.parent, [path.name]
    else:
        place = path.parent if path.name == FOLDER else path
        candidates = [f"{FOLDER}/{name}" for _, name in reversed(list_checkpoints(place))]
    if not candidates:
        found = ", ".join(sorted(p.name for p in path.iterdir())[:6]) if path.is_dir() else "nothing"
        raise UserError(
            f"{path}: no checkpoint here (found: {found or 'an empty folder'}); give a run's workdir or a step's folder."
        )
    problems = []
    for name in candidates:
        folder = place / name
        try:
            return *read_checkpoint(place, name), folder
        except Exception as error:
            log.warning("%s is damaged (%s)", folder, describe_damage(error, folder))
            problems.append(folder.name)
    raise UserError(f"{path}: no checkpoint here is complete (damaged: {', '.join(problems)}).")
