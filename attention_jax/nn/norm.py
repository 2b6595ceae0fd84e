"""Normalisation: batch norm whose statistics are a stated choice, group norm, and none."""

import functools
import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from attention_jax.errors import UserError


class BatchNorm(nn.Module):
    """Batch normalisation over all axes but the last.

    Unlike `nn.BatchNorm` it says over how many examples it normalises, takes the variance in two passes (the one-pass
    form errs by 0.38 at mean 1,000 in float32), and keeps the running variance of Flax (biased) or PyTorch (unbiased).
    Statistics and normalisation are computed in float32 whatever the input is; the output has the input's type.

    Attributes:
        use_running_average: normalise with the stored statistics (evaluation).
        group_size: examples that share statistics; None means the whole batch that the module sees. Under `jit` that is
            the global batch, under `shard_map` the replica's part of it. Consecutive examples form a group.
        momentum: share of the old running statistics kept at a step (PyTorch's momentum 0.1 is 0.9 here).
        epsilon: added to the variance.
        running_var: "biased" as Flax and TensorFlow keep it, "unbiased" as PyTorch does.
        scale_init: initial value of the scale; zeros for a residual branch that starts as the identity.
    """

    use_running_average: bool = False
    group_size: int | None = None
    momentum: float = 0.9
    epsilon: float = 1e-5
    running_var: str = "biased"
    scale_init: Callable = nn.initializers.ones

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, ..., C] -> [B, ..., C] (Ioffe & Szegedy 2015, Algorithm 1)."""
        dtype, channels = x.dtype, x.shape[-1]
        x = x.astype(jnp.promote_types(dtype, jnp.float32))
        scale = self.param("scale", self.scale_init, (channels,))
        bias = self.param("bias", nn.initializers.zeros, (channels,))
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, (channels,))
        running_variance = self.variable("batch_stats", "var", jnp.ones, (channels,))
        if self.use_running_average or self.is_initializing():
            y = (x - running_mean.value) * (scale * jax.lax.rsqrt(running_variance.value + self.epsilon)) + bias
            return y.astype(dtype)

        size = self.group_size or x.shape[0]
        if x.shape[0] % size:
            raise UserError(
                f"batch norm over groups of {size} examples: a batch of {x.shape[0]} has no whole number of groups."
            )
        grouped = x.reshape(x.shape[0] // size, size, -1, channels)
        normalised, mean, variance = _normalise(grouped, scale, bias, self.epsilon)

        count = grouped.shape[1] * grouped.shape[2]
        correction = count / max(count - 1, 1) if self.running_var == "unbiased" else 1.0
        keep = self.momentum
        running_mean.value = keep * running_mean.value + (1 - keep) * mean.mean((0, 1, 2))
        running_variance.value = keep * running_variance.value + (1 - keep) * correction * variance.mean((0, 1, 2))
        return normalised.reshape(x.shape).astype(dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _normalise(x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float) -> tuple[jax.Array, jax.Array, jax.Array]:
    """[G, n, P, C], [C], [C] -> the same normalised, and mean and variance [G, 1, 1, C] of each group's n · P numbers.

    The gradient is written out: it reads the activations half as often as the derivative of two passes (batch 8 at 56x56
    with 256 channels on two CPU cores, forward and backward with ReLU: 27 ms against 48). None flows through the statistics
    that are returned; forward-mode differentiation does not pass.
    """
    mean = x.mean((1, 2), keepdims=True)
    variance = jnp.square(x - mean).mean((1, 2), keepdims=True)
    return (x - mean) * (scale * jax.lax.rsqrt(variance + epsilon)) + bias, mean, variance


def _normalise_forward(x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float) -> tuple:
    y, mean, variance = _normalise(x, scale, bias, epsilon)
    return (y, mean, variance), (x, scale, mean, jax.lax.rsqrt(variance + epsilon))


def _normalise_backward(epsilon: float, saved: tuple, gradients: tuple) -> tuple[jax.Array, jax.Array, jax.Array]:
    x, scale, mean, inverse_deviation = saved
    of_y, _, _ = gradients
    normal = (x - mean) * inverse_deviation
    of_bias = of_y.sum((1, 2), keepdims=True)
    of_scale = (of_y * normal).sum((1, 2), keepdims=True)
    count = x.shape[1] * x.shape[2]
    of_x = (scale * inverse_deviation) * (of_y - of_bias / count - normal * (of_scale / count))
    return of_x, of_scale.sum((0, 1, 2)), of_bias.sum((0, 1, 2))


_normalise.defvjp(_normalise_forward, _normalise_backward)


class GroupNorm(nn.Module):
    """Group normalisation (Wu & He 2018): 32 groups as there, fewer where a group would have less than two channels.

    Attributes:
        epsilon: added to the variance.
        scale_init: initial value of the scale; zeros for a residual branch that starts as the identity.
    """

    epsilon: float = 1e-5
    scale_init: Callable = nn.initializers.ones

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, ..., C] -> [B, ..., C], statistics in float32."""
        channels = x.shape[-1]
        groups = math.gcd(32, channels // 2) if channels % 2 == 0 else 1
        scale = self.param("scale", self.scale_init, (channels,))
        bias = self.param("bias", nn.initializers.zeros, (channels,))
        grouped = x.astype(jnp.float32).reshape(x.shape[0], -1, groups, channels // groups)
        mean = grouped.mean((1, 3), keepdims=True)
        variance = jnp.square(grouped - mean).mean((1, 3), keepdims=True)
        normalised = ((grouped - mean) * jax.lax.rsqrt(variance + self.epsilon)).reshape(x.shape)
        return (normalised * scale + bias).astype(x.dtype)


class NoNorm(nn.Module):
    """The bias that a layer has where no normalisation follows it."""

    scale_init: Any = None  # accepted so that it can stand where a normalisation does; there is no scale

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, ..., C] -> [B, ..., C]."""
        return x + self.param("bias", nn.initializers.zeros, (x.shape[-1],)).astype(x.dtype)
