"""Reads PyTorch's checkpoint files without PyTorch: the zip form, and the form of versions before 1.6.

A checkpoint is a pickle, and a pickle is a program. Here it can build dicts, lists, numbers, texts and tensors and nothing
else: names that it calls are never imported, and every unknown name becomes a `Placeholder`, which does nothing.
"""

import dataclasses
import functools
import io
import mmap
import pickle
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np

from attention_jax.errors import UserError

_LEGACY_MAGIC, _LEGACY_VERSION = 0x1950A86A20F9469CFC6C, 1001
LEGACY_START = pickle.dumps(_LEGACY_MAGIC, 2)
_REALS = dict(Double="f8", Float="f4", Half="f2", Long="i8", Int="i4", Short="i2", Char="i1", Byte="u1", Bool="?")
_DTYPES = _REALS | dict(BFloat16=jnp.bfloat16, ComplexFloat="c8", ComplexDouble="c16")
_STORAGES = {f"{kind}Storage": np.dtype(dtype) for kind, dtype in _DTYPES.items()}
# None of these is ever called; a file that names one is refused, as a warning to its owner.
_RUNS_CODE = re.compile(
    r"(os|posix|nt|subprocess|sys|shutil|socket|runpy|importlib|pty|ctypes|code|pickle)\..+|"
    r"(builtins|__builtin__)\.(eval|exec|execfile|compile|open|getattr|setattr|__import__|apply|input)"
)


class Placeholder:
    """Stands for an object of a class that was not loaded; it has no contents and does nothing."""

    kind = ""

    def __new__(cls, *args: Any, **kwargs: Any) -> "Placeholder":
        return object.__new__(cls)

    def _ignore(self, *args: Any, **kwargs: Any) -> None:
        pass

    __init__ = __setitem__ = append = extend = add = _ignore  # calls that a pickle makes on an object


Load = Callable[[str], bytes | memoryview]  # the bytes of the storage with this key


@dataclasses.dataclass(frozen=True, slots=True)
class _Storage:
    key: str
    dtype: np.dtype
    numel: int
    view: tuple[int, int]  # (first number that a tensor may use, number of them)


@dataclasses.dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor whose numbers have not been read: a view of a storage, with sizes and strides in elements."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    load: Load

    def read(self) -> np.ndarray:
        """Returns the array as a read-only view. Raises UserError if its storage has fewer numbers."""
        storage, data = self.storage, self.load(self.storage.key)
        if len(data) != storage.numel * storage.dtype.itemsize:
            raise UserError(f"the storage {storage.key} has {len(data)} bytes where {storage.numel} {storage.dtype} are needed")
        start, count = storage.view
        last = self.offset + sum((n - 1) * stride for n, stride in zip(self.shape, self.strides))
        if start + count > storage.numel or (0 not in self.shape and last >= count):
            raise UserError(f"a tensor of shape {self.shape} does not fit into its storage of {count} numbers")
        flat = np.frombuffer(data, storage.dtype)[start + self.offset :]
        strides = [stride * storage.dtype.itemsize for stride in self.strides]
        return np.lib.stride_tricks.as_strided(flat, self.shape, strides, writeable=False)


@dataclasses.dataclass(frozen=True, slots=True)
class _StorageType:
    dtype: np.dtype


@dataclasses.dataclass(frozen=True, slots=True)
class _Function:
    """A function of PyTorch that rebuilds a tensor; the pickle calls it."""

    name: str
    load: Load

    def __call__(self, *args: Any) -> Any:
        """Returns a tensor, or a placeholder."""
        if self.name in ("_rebuild_parameter", "_rebuild_parameter_with_state"):
            return args[0]
        if self.name == "_rebuild_from_type_v2":  # a tensor with attributes; arguments: function, type, its arguments, state
            return args[0](*args[2])
        if self.name == "Size":
            return args[0]
        storage, offset, shape, strides = args[:4]
        sound = isinstance(storage, _Storage) and type(shape) is type(strides) is tuple and len(shape) == len(strides) <= 64
        if not sound or not all(type(n) is int and n >= 0 for n in (offset, *shape, *strides)):
            raise UserError(f"a tensor of shape {shape}, strides {strides} and offset {offset} is not possible")
        return StoredTensor(storage, offset, shape, strides, self.load)


_REBUILD = ("_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_parameter", "_rebuild_parameter_with_state")
_FUNCTIONS = {**dict.fromkeys(_REBUILD, "torch._utils"), "_rebuild_from_type_v2": "torch._tensor", "Size": "torch"}


def _leave_state(unpickler: Any) -> None:
    unpickler.stack.pop()


class _Unpickler(pickle._Unpickler):
    """Uses the unpickler in Python: the one in C reserves as much memory as a file claims, in BYTEARRAY8 for example.

    No object gets a state, and no opcode reaches the names that a process has registered.
    """

    dispatch: ClassVar = {**pickle._Unpickler.dispatch, pickle.BUILD[0]: _leave_state}
    for _code in (pickle.BYTEARRAY8, pickle.EXT1, pickle.EXT2, pickle.EXT4):
        del dispatch[_code[0]]

    def __init__(self, file: Any, load: Load):
        super().__init__(file, encoding="utf-8")  # type: ignore[call-arg]  # typeshed has no arguments of the Python one
        self._load, self.storages = load, dict[str, _Storage]()

    def find_class(self, module: str, name: str) -> Any:
        """Returns a placeholder for a class or function; nothing is imported."""
        if _FUNCTIONS.get(name) == module:
            return _Function(name, self._load)
        if module in ("torch", "torch.cuda") and name in _STORAGES:
            return _StorageType(_STORAGES[name])
        if (module, name) == ("collections", "OrderedDict"):
            return dict
        if _RUNS_CODE.fullmatch(f"{module}.{name}"):
            raise UserError(f"it would run {module}.{name} when it is opened by PyTorch; nothing of it was run")
        return type("Placeholder", (Placeholder,), {"kind": f"{module}.{name}"})

    def persistent_load(self, pid: Any) -> Any:
        """Returns the storage of a tensor; in old files also a class that came with its source text."""
        if isinstance(pid, tuple) and len(pid) > 1 and pid[0] == "module":
            return pid[1]
        if not isinstance(pid, tuple) or len(pid) not in (5, 6) or pid[0] != "storage":
            raise UserError(f"it refers to {str(pid)[:80]}, which is no storage of a tensor")
        _, kind, key, _, numel, *view = pid
        if not isinstance(kind, _StorageType):
            what = getattr(kind, "kind", type(kind).__name__)
            raise UserError(f"a tensor has the type {what}, which cannot be read")
        start, count = view[0][1:] if view and view[0] else (0, numel)
        if not isinstance(key, str) or not all(type(n) is int and n >= 0 for n in (numel, start, count)):
            raise UserError(f"the storage {str(key)[:80]} of {str(numel)[:80]} numbers is not possible")
        self.storages[key] = _Storage(key, kind.dtype, numel, (start, count))
        return self.storages[key]


def open_archive(path: Path, most: float = 1.0, more: int = 0) -> zipfile.ZipFile:
    """Returns a zip archive. Raises UserError if its files unpack to more than `most` times its size plus `more` bytes."""
    archive, size = zipfile.ZipFile(path), path.stat().st_size
    unpacked = sum(info.file_size for info in archive.infolist())
    if unpacked > most * size + more:
        raise UserError(f"its {size:,} bytes say that they unpack to {unpacked:,}, which arrays of weights do not")
    return archive


def read_torch_zip(path: Path) -> Any:
    """Returns the object that `torch.save` wrote: dicts and lists with a `StoredTensor` for each tensor.

    Raises UserError for a file that contradicts itself or would run code, and other errors for a damaged file.
    """
    archive = open_archive(path)  # PyTorch does not compress
    names = archive.namelist()
    if len(roots := [name.removesuffix("data.pkl") for name in names if re.fullmatch(r"(.+/)?data\.pkl", name)]) != 1:
        raise UserError("its archive has no data.pkl: it is no checkpoint of PyTorch")
    root = roots[0]
    if f"{root}byteorder" in names and archive.read(f"{root}byteorder") != b"little":
        raise UserError("it was written on a machine of the other byte order")

    @functools.cache
    def load(key: str) -> bytes:
        return archive.read(f"{root}data/{key}")

    return _Unpickler(io.BytesIO(archive.read(f"{root}data.pkl")), load).load()


def read_torch_legacy(path: Path) -> Any:
    """Returns the object that `torch.save` wrote before PyTorch 1.6, as `read_torch_zip` does."""
    with path.open("rb") as file:
        content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    data: dict[str, memoryview] = {}
    # A magic number, the version, the system, the saved object, and the keys of the storages that follow.
    parts = [_Unpickler(content, data.__getitem__) for _ in range(5)]
    values = [part.load() for part in parts]
    if values[:2] != [_LEGACY_MAGIC, _LEGACY_VERSION] or not values[2]["little_endian"]:
        raise UserError("it does not begin as PyTorch's files do, or has the other byte order")
    for key in values[4]:
        storage, start = parts[3].storages[key], content.tell() + 8
        size = storage.numel * storage.dtype.itemsize
        if content.read(8) != storage.numel.to_bytes(8, "little") or start + size > len(content):
            raise UserError(f"the storage {key} of {storage.numel} numbers is missing, as in a file that was cut off")
        data[key] = memoryview(content)[start : start + size]
        content.seek(start + size)
    return values[3]
