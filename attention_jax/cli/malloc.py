"""Keeps the memory of a step on CPU for the next one.

XLA asks for a step's temporaries anew each time. Blocks of their size glibc gives back to Linux at once, which hands out zeroed
pages for the next step: up to a quarter of its CPU time (`experiments/results/translation_speed.md`).
"""

import contextlib
import ctypes
import importlib.metadata
import os
import re
from pathlib import Path

# Larger blocks than this part of the memory are given back as before. Batches of eight lengths, the usual number, may come to
# keep a block each, since none fits into the place of a smaller one: two thirds of the memory.
_PART = 12
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8  # malloc.h
_INT_MAX = 2**31 - 1  # what mallopt can be told; a threshold of -1 is none
_DEVICES, _TPUS = Path("/dev"), ("accel*", "vfio/[0-9]*")
_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")  # of a container


def keep() -> bool:
    """Tells glibc to keep freed blocks, before JAX has made its threads, each of which would have a heap of its own.

    Does nothing and returns False with several processes, an accelerator or another C library, with AJ_KEEP_MEMORY=0, and
    where MALLOC_* or GLIBC_TUNABLES say how glibc shall deal with freed memory.
    """
    if os.environ.get("AJ_COORDINATOR") or _told() or _accelerator():
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:
        return False
    largest = min(_memory() // _PART, _INT_MAX)
    return all(mallopt(*told) for told in ((_MMAP_THRESHOLD, largest), (_TRIM_THRESHOLD, -1), (_ARENA_MAX, 1)))


def _told() -> bool:
    """Whether the environment says more about glibc's memory than the size of its pages."""
    if os.environ.get("AJ_KEEP_MEMORY") == "0" or any(name.startswith("MALLOC_") for name in os.environ):
        return True
    return bool(re.search(r"glibc\.malloc\.(?!hugetlb)", os.environ.get("GLIBC_TUNABLES", "")))


def _accelerator() -> bool:
    """Whether JAX may find an accelerator, on whose host no step runs."""
    if os.environ.get("JAX_PLATFORMS") == "cpu":
        return False
    tpus = [path for pattern in _TPUS for path in _DEVICES.glob(pattern)]
    return bool(tpus or importlib.metadata.entry_points(group="jax_plugins"))


def _memory() -> int:
    """Bytes of the machine, or of the container."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for path in _LIMITS:
        with contextlib.suppress(OSError, ValueError):  # no such file, or "max"
            limits.append(int(Path(path).read_text(encoding="ascii")))
    return min(limits)
