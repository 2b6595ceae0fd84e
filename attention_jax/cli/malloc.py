"""Options of glibc's malloc that keep the memory of one training step for the next, on CPU.

XLA allocates a step's temporaries anew each time. glibc returns blocks of their size to Linux at once, and Linux hands out
zeroed pages for the next step: up to a quarter of its CPU time (`experiments/results/translation_speed.md`).
"""

import contextlib
import ctypes
import importlib.metadata
import os
import re
from pathlib import Path

# Blocks larger than this part of the memory are still returned. Batches usually have eight lengths and may keep a block each,
# since none fits into the gap of a smaller one: two thirds of the memory.
_PART = 12
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8  # malloc.h
_INT_MAX = 2**31 - 1  # mallopt takes a C int; a threshold of -1 is none
_DEVICES, _TPUS = Path("/dev"), ("accel*", "vfio/[0-9]*")
_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")  # a container's limit


def keep_freed_memory() -> bool:
    """Makes glibc keep freed blocks; call it before JAX starts its threads, since each would get its own arena.

    Does nothing and returns False with several processes, an accelerator or another C library, with AJ_KEEP_MEMORY=0, and
    if MALLOC_* or GLIBC_TUNABLES already set options of malloc.
    """
    if os.environ.get("AJ_COORDINATOR") or _is_configured() or _has_accelerator():
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:
        return False
    largest = min(_memory_bytes() // _PART, _INT_MAX)
    return all(mallopt(*option) for option in ((_MMAP_THRESHOLD, largest), (_TRIM_THRESHOLD, -1), (_ARENA_MAX, 1)))


def _is_configured() -> bool:
    """Returns True if the environment sets more of malloc's options than the size of its pages."""
    if os.environ.get("AJ_KEEP_MEMORY") == "0" or any(name.startswith("MALLOC_") for name in os.environ):
        return True
    return bool(re.search(r"glibc\.malloc\.(?!hugetlb)", os.environ.get("GLIBC_TUNABLES", "")))


def _has_accelerator() -> bool:
    """Returns True if JAX may find an accelerator: then no step runs on this CPU."""
    if os.environ.get("JAX_PLATFORMS") == "cpu":
        return False
    tpus = any(path for pattern in _TPUS for path in _DEVICES.glob(pattern))
    return tpus or bool(importlib.metadata.entry_points(group="jax_plugins"))


def _memory_bytes() -> int:
    """Returns the memory of the machine, or of the container if that is smaller."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for path in _LIMITS:
        with contextlib.suppress(OSError, ValueError):  # no such file, or "max"
            limits.append(int(Path(path).read_text(encoding="ascii")))
    return min(limits)
