"""Max-pooling that is XLA's own, except for the gradient on CPU."""

import functools
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from attention_jax.kernels.conv import Geometry, shift_windows
from attention_jax.kernels.switch import choose_by_platform, kernels_are_on


def max_pool(x: jax.Array, window: tuple[int, int], strides: tuple[int, int], padding: Sequence[tuple[int, int]]) -> jax.Array:
    """[B, H, W, C] -> [B, H', W', C]: `flax.linen.max_pool` with another gradient on CPU."""
    if not kernels_are_on():
        return nn.max_pool(x, window, strides, padding)
    return _max_pool(x, Geometry(tuple(strides), tuple(padding)), tuple(window))


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _max_pool(x: jax.Array, how: Geometry, window: tuple[int, int]) -> jax.Array:
    return nn.max_pool(x, window, how.strides, how.padding)


def _max_pool_backward(how: Geometry, window: tuple[int, int], x: jax.Array, of_y: jax.Array) -> tuple[jax.Array]:
    def native(x: jax.Array, of_y: jax.Array) -> jax.Array:
        return jax.vjp(lambda x: nn.max_pool(x, window, how.strides, how.padding), x)[1](of_y)[0]

    return (choose_by_platform(functools.partial(_of_pooled, how=how, window=window), native, x, of_y),)


_max_pool.defvjp(lambda x, how, window: (_max_pool(x, how, window), x), _max_pool_backward)


def _of_pooled(x: jax.Array, of_y: jax.Array, how: Geometry, window: tuple[int, int]) -> jax.Array:
    """Returns the gradient of max-pooling: that of each output goes to the first of the largest inputs in its window.

    3x3, stride 2, 64 channels from 112x112 takes 42, XLA's select-and-scatter 180. The inputs are compared with each other
    and not with the output: XLA may compute them a second time with another rounding, and then none would equal the output.
    """
    (h, w), (stride_h, stride_w) = of_y.shape[1:3], how.strides
    first, *others = shift_windows(x, window, how, -jnp.inf)
    largest, winner = first, jnp.zeros(of_y.shape, jnp.int32)
    for i, seen in enumerate(others, 1):
        winner = jnp.where(seen > largest, i, winner)
        largest = jnp.maximum(seen, largest)
    # In padded coordinates input stride · a + r is position i of output o where i = r + stride · (a - o).
    sides = zip(x.shape[1:3], how.padding, how.strides, strict=True)
    rows, columns = (-(-(side + sum(pad)) // stride) for side, pad, stride in sides)
    reach_h, reach_w = (-(-k // stride) - 1 for k, stride in zip(window, how.strides, strict=True))
    room = ((0, 0), (reach_h, rows - h), (reach_w, columns - w), (0, 0))
    winner, of_y = jnp.pad(winner, room, constant_values=-1), jnp.pad(of_y, room)

    def phase(r: int, s: int) -> jax.Array:
        """Returns the gradient at inputs stride_h · a + r, stride_w · b + s."""
        total = jnp.zeros((x.shape[0], rows, columns, x.shape[3]), of_y.dtype)
        for i in range(r, window[0], stride_h):
            for j in range(s, window[1], stride_w):
                top, left = reach_h - i // stride_h, reach_w - j // stride_w
                here = (slice(None), slice(top, top + rows), slice(left, left + columns))
                total += jnp.where(winner[here] == i * window[1] + j, of_y[here], 0)
        return total

    spread = jnp.stack([jnp.stack([phase(r, s) for s in range(stride_w)], 3) for r in range(stride_h)], 2)
    spread = spread.reshape(x.shape[0], rows * stride_h, columns * stride_w, x.shape[3])
    (top, _), (left, _) = how.padding
    return spread[:, top : top + x.shape[1], left : left + x.shape[2]]
