"""Records of ArrayRecord files that are being staged: from the copy when a file has come, until then from the store."""

import bisect
import dataclasses
import itertools
import os
import resource
import threading
from collections.abc import Sequence
from typing import Any

from attention_jax.data.staging import StagedFolder

READERS = 64  # threads that read the records of a batch while they come over the network


class StagedRecords(Sequence[bytes]):
    """The records of some files of a folder, which is staged from now on.

    At gs:// a record is read by itself until its file has come. array_record reads no other store: there a record waits for its
    file.

    Args:
        parts: TFDS's instructions to read the files of the copy.
    """

    def __init__(self, folder: StagedFolder, parts: Sequence[Any]):
        self._folder, self._parts, self._lock = folder, parts, threading.Lock()
        self._names = [os.path.relpath(part.filename, folder.root) for part in parts]
        self._ends = list(itertools.accumulate(part.take for part in parts))
        self._here = set[str]()
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]  # a file stays open; ImageNet has 1,024
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        self._copy, self._remote = self._open(parts), None
        if folder.uri.startswith("gs://"):
            there = [f"{folder.uri}/{name}" for name in self._names]
            self._remote = self._open([dataclasses.replace(part, filename=uri) for part, uri in zip(parts, there)])
        folder.stage(self._names)

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, index: Any) -> Any:
        """Returns a record. Raises UserError without network, RuntimeError for a record that is damaged at its source."""
        name = self._names[bisect.bisect_right(self._ends, index)]
        while True:
            if name not in self._here:
                if self._remote is not None and not self._folder.is_here(name):
                    return self._remote[index]
                self._folder.wait_for(name)
                self._here.add(name)
            copy = self._copy
            try:
                return copy[index]
            except (RuntimeError, ValueError, IndexError):
                with self._lock:
                    if copy is self._copy:  # else another thread has seen the damage
                        reopened = self._open(self._parts)  # the old readers keep the old files
                        if self._folder.is_intact(name):  # a new copy may have come after this reader was opened
                            record = reopened[index]
                            self._copy = reopened
                            return record
                        self._folder.replace(name)  # first, so that nobody opens the damaged copy again
                        self._here.clear()
                        self._copy = reopened

    def __getitems__(self, indices: Sequence[int]) -> list[bytes]:
        return [self[index] for index in indices]

    @property
    def readers(self) -> int:
        """Threads that should read at once."""
        return 1 if self._here.issuperset(self._names) else READERS

    @staticmethod
    def _open(parts: Sequence[Any]) -> Any:
        from array_record.python.array_record_data_source import ArrayRecordDataSource

        return ArrayRecordDataSource(parts)
