"""Limits of a batch that is translated: tokens, sentences, and the memory that its program plans."""

import contextlib
import dataclasses
from pathlib import Path
from typing import Any

import jax

_SHARE = 0.8  # share of the free memory; the allocator wastes some of the rest
_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")  # a container's limit


@dataclasses.dataclass(frozen=True)
class BatchLimits:
    """The largest batch.

    Attributes:
        tokens: source tokens in a batch on all devices, with padding; None for the config's `evaluation.batch_size`.
        sentences: sentences in a batch on all devices; None for any number.
        memory: bytes that the program of a batch may plan on a device, weights included; None for four fifths of what is
            free there now.
    """

    tokens: int | None = None
    sentences: int | None = None
    memory: int | None = None

    def count_rows(self, length: int, batch_tokens: int, devices: int) -> int:
        """Returns the rows a device of the largest batch of this length, a power of two so that few programs are compiled."""
        rows = (self.tokens or batch_tokens) // length
        rows = max(1, (rows if self.sentences is None else min(rows, self.sentences)) // devices)
        return 1 << (rows.bit_length() - 1)

    def resolve(self) -> "BatchLimits":
        """Returns the limits with the memory of this machine in place of None."""
        return self if self.memory else dataclasses.replace(self, memory=find_free_memory())


def find_free_memory() -> int:
    """Returns four fifths of the bytes that are free for programs: on the device, or of a CPU's machine or container."""
    stats: Any = jax.local_devices()[0].memory_stats() if jax.default_backend() != "cpu" else None
    if stats and "bytes_limit" in stats:
        return int(_SHARE * (stats["bytes_limit"] - stats.get("bytes_in_use", 0)))
    free = []
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        free.append(1024 * next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")))
    for path in _LIMITS:
        with contextlib.suppress(OSError, ValueError):  # no such file, or "max"
            free.append(int(Path(path).read_text(encoding="ascii")))
    devices = jax.local_device_count()  # devices of a CPU share its memory
    return int(_SHARE * min(free, default=1 << 40) / devices)


def plan_memory(compiled: Any) -> int:
    """Returns the bytes that a compiled program plans on a device; 0 where its backend does not say."""
    plan = compiled.memory_analysis()
    if plan is None:
        return 0
    return plan.argument_size_in_bytes + plan.output_size_in_bytes + plan.temp_size_in_bytes - plan.alias_size_in_bytes
