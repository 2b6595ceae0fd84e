"""Reads the tensors in a file of weights: .safetensors, .npz, and PyTorch's .pth, .pt and .th; no code in a file is run."""

import json
import math
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from attention_jax.errors import UserError, one_sentence
from attention_jax.interop.torch_files import (
    LEGACY_START,
    Placeholder,
    StoredTensor,
    open_archive,
    read_torch_legacy,
    read_torch_zip,
)

_FLOATS = dict(F64="<f8", F32="<f4", F16="<f2", BF16=jnp.bfloat16)
_INTEGERS = dict(I64="<i8", I32="<i4", I16="<i2", I8="i1", U64="<u8", U32="<u4", U16="<u2", U8="u1", BOOL="?")
_DTYPES = {kind: np.dtype(dtype) for kind, dtype in (_FLOATS | _INTEGERS).items()}
# Keys under which training code keeps weights beside other entries, and keys of averaged weights.
_KEYS = ("state_dict", "model_state_dict", "model_state", "model", "net", "network", "params")
_EMA_KEYS = ("state_dict_ema", "ema_state_dict", "model_ema", "model_ema_state", "ema_model", "ema")
# DataParallel, torch.compile, and Lightning put these before every name.
_PREFIXES = ("module.", "_orig_mod.", "model.", "net.")


def read_tensors(path: str | Path) -> dict[str, np.ndarray]:
    """Returns {name: array} of the weights in a file: `open_weights`, then `select_weights`."""
    return select_weights(open_weights(path), str(path))[0]


def open_weights(path: str | Path) -> Any:
    """Returns the content of a file: {name: array}, or for PyTorch's files the saved object.

    Raises UserError for a file that is missing, damaged, of another kind, or wrong about its sizes.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise UserError(f"{path}: there is no such file.")
    with path.open("rb") as file:
        start = file.read(16)
    try:
        if start.startswith(LEGACY_START):
            return read_torch_legacy(path)
        if start.startswith(b"PK"):
            with zipfile.ZipFile(path) as archive:
                arrays = any(name.endswith(".npy") for name in archive.namelist())
            return _read_npz(path) if arrays else read_torch_zip(path)
        if start[8:9] == b"{":
            return _read_safetensors(path)
    except UserError as error:
        raise UserError(f"{path}: {error}.") from error
    except Exception as error:  # a damaged file can raise anything
        raise UserError(f"{path}: it is damaged ({type(error).__name__}: {one_sentence(error)}).") from error
    raise UserError(f"{path}: it begins with {start!r}: give a .safetensors, an .npz, or a .pth, .pt or .th of PyTorch.")


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    data: np.ndarray = np.memmap(path, np.uint8, "r")
    length = int.from_bytes(data[:8].tobytes(), "little")
    if 8 + length > len(data):
        raise UserError(f"its header of {length} bytes does not fit into its {len(data)} bytes, as in a file that was cut off")
    header = json.loads(data[8 : 8 + length].tobytes(), object_pairs_hook=_refuse_twice)
    header.pop("__metadata__", None)
    data, arrays, at = data[8 + length :], dict[str, np.ndarray](), 0
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        (start, end), shape, kind = entry["data_offsets"], entry["shape"], entry["dtype"]
        if kind not in _DTYPES:
            raise UserError(f"{name} has the type {kind!r}, which is none of {', '.join(_DTYPES)}")
        if not all(type(n) is int and n >= 0 for n in shape) or start != at or end > len(data):
            raise UserError(f"{name} of shape {shape} at bytes {start} to {end} overlaps another tensor or leaves the file")
        if end - start != _DTYPES[kind].itemsize * math.prod(shape):
            raise UserError(f"{name} of shape {shape} and type {kind} has {end - start} bytes")
        arrays[name], at = data[start:end].view(_DTYPES[kind]).reshape(shape), end
    if at != len(data):
        raise UserError(f"its tensors have {at} bytes and the file has {len(data)}")
    return arrays


def _refuse_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(found := dict(pairs)) != len(pairs):
        raise UserError("its header has a name twice")
    return found


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    # Trained weights hardly compress, but a small file, such as a test's, may hold only zeros.
    open_archive(path, most=100, more=2**24).close()
    with np.load(path, allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays.files}


def select_weights(content: Any, where: str, weights: str | None = None) -> tuple[dict[str, np.ndarray], list[str]]:
    """Returns {name: array} of the weights in a file's content, and notes on the wrappers that were removed.

    Args:
        content: as `open_weights` returns it.
        where: the file, for messages.
        weights: "ema" or "params", as in `load_checkpoint`; None takes the average only if there is nothing else.

    Raises:
        UserError: no weights, not the requested ones, or an object that was not read in place of the model or of a tensor.
    """
    if weights not in (None, "ema", "params"):
        raise UserError(f"weights={weights!r}: give 'ema', 'params' or None.")
    keys: tuple[str, ...] = {"ema": _EMA_KEYS, "params": _KEYS}.get(weights or "", (*_KEYS, *_EMA_KEYS))
    notes, value = [], content
    for _ in range(4):  # a dict can contain itself
        inside = value if isinstance(value, Mapping) else {}
        if key := next((key for key in keys if isinstance(inside.get(key), Mapping | Placeholder)), None):
            value, keys = inside[key], (*_KEYS, *_EMA_KEYS)
            notes.append(f"from {key!r}")
    if weights == "ema" and not notes:
        raise UserError(f"{where}: it has no averaged weights, under any of {', '.join(map(repr, _EMA_KEYS))}.")
    if not isinstance(value, Mapping):
        kind = value.kind if isinstance(value, Placeholder) else type(value).__name__
        raise UserError(f"{where}: it has an object of {kind} instead of named tensors: give a file of model.state_dict().")
    arrays: dict[str, np.ndarray] = {}
    unread = [f"{name} is an object of {tensor.kind}" for name, tensor in value.items() if isinstance(tensor, Placeholder)]
    for name, tensor in value.items():
        try:
            if isinstance(name, str) and isinstance(tensor, StoredTensor | np.ndarray):
                arrays[name] = tensor.read() if isinstance(tensor, StoredTensor) else tensor
        except Exception as error:
            raise UserError(f"{where}: {name}: {one_sentence(error)}.") from error
    if not arrays:
        raise UserError(f"{where}: it has no tensors; its entries: {', '.join(map(repr, list(value)[:8])) or 'none'}.")
    if unread:
        raise UserError(f"{where}: {unread[0]} and no tensor that can be read.")
    while prefix := next((p for p in _PREFIXES if all(name.startswith(p) for name in arrays)), None):
        arrays = {name.removeprefix(prefix): array for name, array in arrays.items()}
        notes.append(f"without the prefix {prefix!r}")
    return arrays, notes
