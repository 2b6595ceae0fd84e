"""Two kernels for decoding on CPU, in `decoding.cc`: products of few rows with weights, and attention over a cache.

The machine's C++ compiler builds them when they are first used, which takes some seconds, and the user's cache keeps them.
Without a compiler, with several devices, on an accelerator, or under `use_kernels("xla")`, XLA's programs do the same work.
`experiments/benchmarks/translation_profile.py` times both.
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
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import jaxlib
import numpy as np

from attention_jax.errors import is_own_folder
from attention_jax.kernels.attention import MASKED
from attention_jax.kernels.switch import choose_by_platform, kernels_are_on

log = logging.getLogger(__name__)

_NAMES = ("aj_product", "aj_attend")
_FLAGS = ("-O3", "-march=native", "-fopenmp-simd", "-std=c++17", "-fPIC", "-shared", "-w")
_SECONDS = 120  # a compiler that takes longer hangs
_ROWS = 256  # with more rows, a product is mostly arithmetic, in which XLA is as good


def multiply_rows(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """[..., I], [I, O] -> [..., O]: `jnp.matmul` without a gradient; `matmul.dot_general` has one."""
    if x.ndim == kernel.ndim == 2 and 0 < len(x) <= _ROWS and _serve(x, kernel):
        shape = jax.ShapeDtypeStruct((len(x), kernel.shape[1]), jnp.float32)
        return choose_by_platform(jax.ffi.ffi_call("aj_product", shape, vmap_method="sequential"), jnp.matmul, x, kernel)
    return jnp.matmul(x, kernel)


def attend_cached(
    q_ND: jax.Array, k_BHKS: jax.Array, v_BHSV: jax.Array, mask: jax.Array, scale: float, plain: Callable[..., jax.Array]
) -> jax.Array:
    """[B · T, H · K] -> [B · T, H · V]: softmax(scale · QKᵀ) V in every head.

    Args:
        mask: bool [B, 1, T or 1, S]; False hides a key from a query.
        plain: the same function in XLA, used elsewhere and for gradients.
    """
    if not _serve(q_ND, k_BHKS, v_BHSV):
        return plain(q_ND, k_BHKS, v_BHSV, mask)
    shape = jax.ShapeDtypeStruct((len(q_ND), v_BHSV.shape[1] * v_BHSV.shape[3]), jnp.float32)
    call = jax.ffi.ffi_call("aj_attend", shape, vmap_method="sequential")
    ours = functools.partial(call, scale=np.float32(scale), masked=np.float32(MASKED))
    attend = jax.custom_vjp(lambda *arrays: choose_by_platform(ours, plain, *arrays))
    attend.defvjp(lambda *arrays: jax.vjp(plain, *arrays), lambda gradient, of_y: gradient(of_y))
    return attend(q_ND, k_BHKS, v_BHSV, mask)


def _serve(*arrays: jax.Array) -> bool:
    """True if the kernels work on arrays of these types in this process."""
    on = kernels_are_on() and all(array.dtype == jnp.float32 for array in arrays)
    return on and jax.default_backend() == "cpu" and jax.device_count() == 1 and load_kernels()


@functools.cache
def load_kernels() -> bool:
    """True if the kernels can be called in this process; builds them if necessary, and logs why if they cannot be built."""
    try:
        library = ctypes.CDLL(str(_built()))
        for name in _NAMES:
            jax.ffi.register_ffi_target(name, jax.ffi.pycapsule(getattr(library, name)), platform="cpu")
    except (OSError, RuntimeError, subprocess.SubprocessError, AttributeError) as error:
        said = getattr(error, "stderr", None) or str(error)
        said = said.decode(errors="replace") if isinstance(said, bytes) else said
        log.info("decoding goes without its kernels for CPU, which could not be built: %s", said.strip()[-2000:])
        return False
    return True


def _built() -> Path:
    """Returns the library, which is built unless this machine has built this source before.

    Raises OSError without a compiler or a place to write, RuntimeError without a home or in a folder that others can write
    to, SubprocessError if the compiler fails.
    """
    source = resources.files("attention_jax.kernels").joinpath("decoding.cc").read_bytes()
    compiler = (os.environ.get("CXX") or "c++").split()
    key = hashlib.sha256(b"\0".join([source, repr([jaxlib.__version__, compiler, _FLAGS, _cpu()]).encode()])).hexdigest()[:16]
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "attention_jax", "kernels")
    library = folder / f"decoding-{key}.so"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not is_own_folder(folder) or (library.exists() and library.stat().st_uid != os.geteuid()):
        raise RuntimeError(f"{folder} holds code and is not yours alone to write to: chmod go-w, or remove it")
    if not library.exists():
        log.info("building the kernels for decoding on this CPU, once: %s", library)
        # Written under another name first, so that processes that start together see no incomplete file.
        with tempfile.TemporaryDirectory(dir=folder) as work:
            built = Path(work, library.name)
            command = [*compiler, *_FLAGS, f"-I{jax.ffi.include_dir()}", "-xc++", "-", "-o", str(built)]
            subprocess.run(command, input=source, check=True, capture_output=True, timeout=_SECONDS)
            os.replace(built, library)
    return library


def _cpu() -> Any:
    """Identifies this processor's instructions, for a home directory that different machines share."""
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return [platform.machine(), *sorted({line for line in lines if line.startswith(("flags", "Features", "model name"))})]
    return [platform.machine(), platform.processor()]
