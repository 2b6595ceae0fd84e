"""Matrix products in float32 whose gradients avoid XLA's slow programs on CPU; on TPU and GPU they are XLA's own.

Times below are milliseconds on one core, for 4,080 rows; `experiments/benchmarks/translation.py` measures training steps.
"""

from typing import Any

import jax
import jax.numpy as jnp

from attention_jax.kernels.decoding import multiply_rows
from attention_jax.kernels.switch import choose_by_platform, kernels_are_on


def dot_general(x: jax.Array, kernel: jax.Array, dimension_numbers: Any, precision: Any = None, **options: Any) -> jax.Array:
    """Replaces `jax.lax.dot_general` in the field `dot_general` of `flax.linen.Dense`: [..., I], [I, O] -> [..., O]."""
    rows_by_columns = dimension_numbers == (((x.ndim - 1,), (0,)), ((), ())) and kernel.ndim == 2
    if kernels_are_on() and precision is None and rows_by_columns and x.dtype == kernel.dtype == jnp.float32:
        return _product(x, kernel)
    return jax.lax.dot_general(x, kernel, dimension_numbers, precision, **options)


_product = jax.custom_vjp(multiply_rows)
_product.defvjp(
    lambda x, kernel: (jnp.matmul(x, kernel), (x, kernel)),
    lambda saved, of_y: (jnp.matmul(of_y, saved[1].T), _sum_of_products(saved[0], of_y)),
)


def score_rows(x: jax.Array, table: jax.Array) -> jax.Array:
    """[..., D], [V, D] -> [..., V] float32: x · tableᵀ, which scores the words of a vocabulary."""
    by_hand = kernels_are_on() and x.dtype == table.dtype == jnp.float32
    return (_score_rows if by_hand else _scores)(x, table)


def _scores(x: jax.Array, table: jax.Array) -> jax.Array:
    return jnp.matmul(x, table.T, preferred_element_type=jnp.float32)


_score_rows = jax.custom_vjp(_scores)
_score_rows.defvjp(
    lambda x, table: (_scores(x, table), (x, table)),
    lambda saved, of_y: (jnp.matmul(of_y, saved[1]), _sum_of_products(of_y, saved[0])),
)


def _sum_of_products(x: jax.Array, y: jax.Array) -> jax.Array:
    """[..., I], [..., O] -> [I, O], the sum of all outer products.

    XLA on CPU transposes one of the two; if it is the wider one, the copy takes as long as the product. Here it is the
    narrower one, and barriers keep XLA from changing that: 9,728 x 128 takes 46 in place of 101, 256 x 128 1.4 for 1.9.
    """

    def cpu(x: jax.Array, y: jax.Array) -> jax.Array:
        turned = jax.lax.optimization_barrier
        if x.shape[1] <= y.shape[1]:
            return jnp.matmul(turned(x.T), y)
        return turned(jnp.matmul(turned(y.T), x)).T

    return choose_by_platform(cpu, lambda x, y: jnp.matmul(x.T, y), *(a.reshape(-1, a.shape[-1]) for a in (x, y)))
