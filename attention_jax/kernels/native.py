"""Kernels in C++ for one CPU device.

The machine's C++ compiler builds a file of them when it is first used, which takes some seconds, and the user's cache keeps
them. Without a compiler, with several devices, on an accelerator, or under `use_kernels("xla")`, XLA's programs do the same
work.
"""

import contextlib
import ctypes
import functools
import hashlib
import logging
import os
import platform
import subprocess
import tempfile
from importlib import resources
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import jaxlib

from attention_jax.errors import is_own_folder
from attention_jax.kernels.switch import kernels_are_on

log = logging.getLogger(__name__)

_NAMES = {"decoding": ("aj_product", "aj_attend"), "conv": ("aj_kernel_gradient",)}
_FLAGS = ("-O3", "-march=native", "-fopenmp-simd", "-std=c++17", "-fPIC", "-shared", "-w")
_SECONDS = 120  # a compiler that takes longer hangs


def serve(source: str, *arrays: jax.Array) -> bool:
    """True if the kernels of a file work on arrays of these types in this process."""
    on = kernels_are_on() and all(array.dtype == jnp.float32 for array in arrays)
    return on and jax.default_backend() == "cpu" and jax.device_count() == 1 and load(source)


@functools.cache
def load(source: str) -> bool:
    """True if the kernels of `{source}.cc` can be called in this process.

    Builds them if necessary, and logs why if they cannot be built.
    """
    try:
        library = ctypes.CDLL(str(_built(source)))
        for name in _NAMES[source]:
            jax.ffi.register_ffi_target(name, jax.ffi.pycapsule(getattr(library, name)), platform="cpu")
    except (OSError, RuntimeError, subprocess.SubprocessError, AttributeError) as error:
        said = getattr(error, "stderr", None) or str(error)
        said = said.decode(errors="replace") if isinstance(said, bytes) else said
        log.info("%s goes without its kernels for CPU, which could not be built: %s", source, said.strip()[-2000:])
        return False
    return True


def _built(source: str) -> Path:
    """Returns the library, which is built unless this machine has built this source before.

    Raises OSError without a compiler or a place to write, RuntimeError without a home or in a folder that others can write
    to, SubprocessError if the compiler fails.
    """
    here = resources.files("attention_jax.kernels")
    text = b"".join(here.joinpath(name).read_bytes() for name in ("parallel.h", f"{source}.cc"))
    compiler = (os.environ.get("CXX") or "c++").split()
    key = hashlib.sha256(b"\0".join([text, repr([jaxlib.__version__, compiler, _FLAGS, _cpu()]).encode()])).hexdigest()[:16]
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "attention_jax", "kernels")
    library = folder / f"{source}-{key}.so"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not is_own_folder(folder) or (library.exists() and library.stat().st_uid != os.geteuid()):
        raise RuntimeError(f"{folder} holds code and is not yours alone to write to: chmod go-w, or remove it")
    if not library.exists():
        log.info("building the kernels of %s on this CPU, once: %s", source, library)
        # Written under another name first, so that processes that start together see no incomplete file.
        with tempfile.TemporaryDirectory(dir=folder) as work:
            built = Path(work, library.name)
            command = [*compiler, *_FLAGS, f"-I{jax.ffi.include_dir()}", "-xc++", "-", "-o", str(built)]
            subprocess.run(command, input=text, check=True, capture_output=True, timeout=_SECONDS)
            os.replace(built, library)
    return library


def _cpu() -> Any:
    """Identifies this processor's instructions, for a home directory that different machines share."""
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return [platform.machine(), *sorted({line for line in lines if line.startswith(("flags", "Features", "model name"))})]
    return [platform.machine(), platform.processor()]
