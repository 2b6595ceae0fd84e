"""Normalisation: batch norm with a stated choice of examples, group norm, and none."""

import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from attention_jax.errors import UserError
from attention_jax.kernels.batch_norm import normalise_batch
from attention_jax.kernels.switch import kernels_are_on


class BatchNorm(nn.Module):
    """Batch normalisation over all axes but the last.

    Unlike `nn.BatchNorm`, it says over how many examples it normalises, keeps the running variance of Flax (biased) or
    PyTorch (unbiased), and computes the variance in two passes: one pass errs by 0.38 at a mean of 1,000 in float32
    (TPU and GPU take one pass about the running mean: `kernels/batch_norm.py`).
    Statistics and normalisation are computed in float32 whatever the input is; the output has the input's type.

    Attributes:
        use_running_average: normalise with the stored statistics (evaluation).
        group_size: examples that share statistics; None means the entire batch that the module sees. Under `jit` that is
            the global batch, under `shard_map` the replica's part of it. Consecutive examples form a group. 0 normalises with
            the stored statistics in training too, and leaves them as they are.
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
        if self.use_running_average or self.group_size == 0 or self.is_initializing():
            y = (x - running_mean.value) * (scale * jax.lax.rsqrt(running_variance.value + self.epsilon)) + bias
            return y.astype(dtype)

        size = self.group_size or x.shape[0]
        if x.shape[0] % size:
            raise UserError(
                f"batch norm over groups of {size} examples: a batch of {x.shape[0]} has no whole number of groups."
            )
        # One group keeps the array's shape: a further dimension makes XLA's TPU programs copy it.
        grouped = x if size == x.shape[0] else x.reshape(x.shape[0] // size, size, *x.shape[1:])
        axes = tuple(range(grouped.ndim - x.ndim, grouped.ndim - 1))
        if kernels_are_on():
            y, mean, variance = normalise_batch(grouped, scale, bias, running_mean.value, axes, self.epsilon)
        else:
            mean = grouped.mean(axes, keepdims=True)
            variance = jnp.square(grouped - mean).mean(axes, keepdims=True)
            y = (grouped - mean) * (scale * jax.lax.rsqrt(variance + self.epsilon)) + bias

        count = math.prod(grouped.shape[axis] for axis in axes)
        correction = count / max(count - 1, 1) if self.running_var == "unbiased" else 1.0
        keep = self.momentum
        running_mean.value = keep * running_mean.value + (1 - keep) * mean.reshape(-1, channels).mean(0)
        new_variance = correction * variance.reshape(-1, channels).mean(0)
        running_variance.value = keep * running_variance.value + (1 - keep) * new_variance
        return y.reshape(x.shape).astype(dtype)


class GroupNorm(nn.Module):
    """Group normalisation (Wu & He 2018): the paper's 32 groups, or fewer if a group would have less than two channels.

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
    """Adds a bias, for a layer without normalisation."""

    scale_init: Any = None  # accepted, as a normalisation accepts it, and unused: there is no scale

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, ..., C] -> [B, ..., C]."""
        return x + self.param("bias", nn.initializers.zeros, (x.shape[-1],)).astype(x.dtype)
