"""Reads records of ArrayRecord files that are being staged: from a complete copy, else over the network.

The format is Riegeli's (github.com/google/riegeli, doc/riegeli_records_file_format.md): chunks, with a header of 24 bytes at
each multiple of 64 KiB. The last block of an ArrayRecord names the chunk that has the offsets of all others. So one record is
one request of a known range, where array_record asks for everything from there on; the bytes are put at their place in the
copy that grows, and array_record itself reads them there and checks their hashes.
"""

import bisect
import contextlib
import itertools
import resource
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from attention_jax.data.staging import StagedFolder
from attention_jax.errors import UserError

_BLOCK, _BLOCK_HEADER, _CHUNK_HEADER = 2**16, 24, 40
_TAIL = 2**18  # bytes; the index of ImageNet's shards is in them
READERS = 64  # threads that read the records of a batch while they come over the network


class StagedRecords(Sequence[bytes]):
    """The records of some files of a folder, which is staged from now on.

    Args:
        parts: (name of a file, first record, end of its records).
    """

    def __init__(self, folder: StagedFolder, parts: Sequence[tuple[str, int, int]]):
        shards = {name: _Shard(folder, name) for name, _, _ in parts}
        self._parts = [(shards[name], start) for name, start, _ in parts]
        self._ends = list(itertools.accumulate(end - start for _, start, end in parts))
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]  # a shard is an open file; ImageNet has 1,024
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        folder.stage(list(shards))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, index: Any) -> Any:
        number = bisect.bisect_right(self._ends, index)
        shard, start = self._parts[number]
        return shard.read(index - (self._ends[number - 1] if number else 0) + start)

    def __getitems__(self, indices: Sequence[int]) -> list[bytes]:
        return [self[index] for index in indices]

    @property
    def readers(self) -> int:
        """Threads that should read at once."""
        return 1 if all(shard.is_local for shard, _ in self._parts) else READERS


class _Shard:
    """A file and the reader of its copy, complete or not."""

    def __init__(self, folder: StagedFolder, name: str):
        self._folder, self._name, self._lock = folder, name, threading.Lock()
        self._readers = dict[Path, Any]()
        self._index: list[tuple[int, int, int]] | None = None  # each chunk's first record, first byte, end
        self._came = set[int]()  # chunks that this process has fetched
        self.is_local = False

    def read(self, position: int) -> bytes:
        """Returns a record. Raises UserError without network, RuntimeError for a record that is damaged at its source."""
        while True:
            if not self.is_local and self._folder.is_here(self._name):
                self.is_local = True
            if not self.is_local:
                with contextlib.suppress(_Completed):
                    return self._read_remotely(position)
                continue
            try:
                return self._read(self._folder.path(self._name), position)
            except (RuntimeError, ValueError, IndexError):
                with self._lock:
                    if self.is_local and self._folder.is_intact(self._name):
                        raise
                    if self.is_local:
                        self.is_local = False
                        self._readers.clear()
                        self._folder.replace(self._name)

    def _read(self, path: Path, position: int) -> bytes:
        from array_record.python.array_record_module import ArrayRecordReader

        if (reader := self._readers.get(path)) is None:
            options = {"options": "readahead_buffer_size:0", "file_reader_buffer_size": 32768}  # as TFDS has them
            reader = self._readers[path] = ArrayRecordReader(str(path), **options)
        return reader.read([position])[0]

    def _read_remotely(self, position: int, again: bool = False) -> bytes:
        """Returns a record from the bytes that are fetched for it."""
        path = self._folder.partial_path(self._name)
        with self._lock:
            if self._index is None or again:
                self._index = _read_index(self._folder, self._name)
                self._came.clear()
                self._readers.pop(path, None)
            index = self._index
        if not index:  # it cannot be read here
            self._folder.refuse_failed(self._name)
            time.sleep(0.05)
            raise _Completed
        number = bisect.bisect_right(index, (position, 2**63)) - 1
        _, start, end = index[number]
        if number not in self._came:
            self._folder.fill(self._name, start, end)
            self._came.add(number)
        try:
            return self._read(path, position)
        except (RuntimeError, ValueError):
            if self._folder.is_here(self._name):
                raise _Completed from None
            if again:
                raise
            return self._read_remotely(position, again=True)  # a new reader, which has read no bytes before they came


class _Completed(Exception):
    """Raised where a shard has to be looked at again: it may be complete now."""


def _read_index(folder: StagedFolder, name: str) -> list[tuple[int, int, int]]:
    """Lists (first record, first byte, end) of each chunk with records, in order; empty if this cannot be read."""
    size = folder.files[name].size
    start = max(0, size - _TAIL)
    tail = folder.fill(name, start, size)
    try:
        postscript = _parse_fields(next(_parse_chunk(tail, start, (size - 1) // _BLOCK * _BLOCK)))
        footer = postscript[1]
        if footer < start:
            tail, start = folder.fill(name, footer, size), footer
        chunks = [_parse_fields(record) for record in _parse_chunk(tail, start, footer)][1:]  # the first has the options
        firsts = itertools.accumulate((chunk[3] for chunk in chunks), initial=0)
        offsets = [chunk[1] for chunk in chunks]
        folder.fill(name, 0, min(size, _CHUNK_HEADER + _BLOCK_HEADER))  # the signature
        return list(zip(firsts, offsets, [*offsets[1:], footer]))
    except UserError:
        raise
    except Exception:  # no zstd here, or another compression
        return []


def _parse_chunk(content: bytes, start: int, place: int) -> Iterator[bytes]:
    """Returns the records of the simple chunk at a place in a file; `content` are the file's bytes from `start` on."""

    def cut(number: int) -> bytes:
        nonlocal place
        parts = b""
        while number:
            place += _BLOCK_HEADER * (place % _BLOCK == 0)
            part = content[place - start : place - start + min(number, _BLOCK - place % _BLOCK)]
            parts, place, number = parts + part, place + len(part), number - len(part)
            if not part:
                raise ValueError("the chunk is cut")
        return parts

    data = cut(int.from_bytes(cut(_CHUNK_HEADER)[8:16], "little"))
    length, begin = _parse_varint(data, 1)
    sizes, values = data[begin : begin + length], data[begin + length :]
    if data[0]:  # compressed, after the length without compression
        sizes, values = (_decompress(part[_parse_varint(part, 0)[1] :], data[:1]) for part in (sizes, values))
    place_of_size = first = 0
    while place_of_size < len(sizes):
        length, place_of_size = _parse_varint(sizes, place_of_size)
        yield values[first : first + length]
        first += length


def _decompress(content: bytes, kind: bytes) -> bytes:
    try:
        from compression import zstd  # from Python 3.14 on
    except ImportError:
        from backports import zstd
    if kind != b"z":
        raise ValueError(f"compression {kind!r}")
    return zstd.decompress(content)


def _parse_fields(message: bytes) -> dict[int, Any]:
    """Returns the fields of a protocol buffer of whole numbers and texts, by their tags."""
    fields, place = dict[int, Any](), 0
    while place < len(message):
        tag, place = _parse_varint(message, place)
        value, place = _parse_varint(message, place)
        fields[tag >> 3] = value
        if tag & 7 == 2:
            fields[tag >> 3], place = message[place : place + value], place + value
    return fields


def _parse_varint(content: bytes, place: int) -> tuple[int, int]:
    """Returns (a whole number, the place after it)."""
    value = shift = 0
    while True:
        byte = content[place]
        value, shift, place = value | (byte & 127) << shift, shift + 7, place + 1
        if byte < 128:
            return value, place
