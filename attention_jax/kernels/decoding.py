"""Two kernels for decoding on CPU, in `decoding.cc`: products of few rows with weights, and attention over a cache.

`native.py` builds them; where they cannot be used, XLA's programs do the same work.
`experiments/benchmarks/translation_profile.py` times both.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from attention_jax.kernels.attention import MASKED
from attention_jax.kernels.native import serve
from attention_jax.kernels.switch import choose_by_platform

_ROWS = 256  # with more rows, a product is mostly arithmetic, in which XLA is as good


def multiply_rows(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """[..., I], [I, O] -> [..., O]: `jnp.matmul` without a gradient; `matmul.dot_general` has one."""
    if x.ndim == kernel.ndim == 2 and 0 < len(x) <= _ROWS and serve("decoding", x, kernel):
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
    if not serve("decoding", q_ND, k_BHKS, v_BHSV):
        return plain(q_ND, k_BHKS, v_BHSV, mask)
    shape = jax.ShapeDtypeStruct((len(q_ND), v_BHSV.shape[1] * v_BHSV.shape[3]), jnp.float32)
    call = jax.ffi.ffi_call("aj_attend", shape, vmap_method="sequential")
    ours = functools.partial(call, scale=np.float32(scale), masked=np.float32(MASKED))
    attend = jax.custom_vjp(lambda *arrays: choose_by_platform(ours, plain, *arrays))
    attend.defvjp(lambda *arrays: jax.vjp(plain, *arrays), lambda gradient, of_y: gradient(of_y))
    return attend(q_ND, k_BHKS, v_BHSV, mask)
