"""Normalisation: batch norm whose statistics are a stated choice, group norm, and none."""

import functools
import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from attention_jax.errors import UserError
from attention_jax.kernels.conv import by_platform


class BatchNorm(nn.Module):
    """Batch normalisation over all axes but the last.

    Unlike `nn.BatchNorm` it says over how many examples it normalises, keeps the running variance of Flax (biased) or
    PyTorch (unbiased), and takes the variance in two passes, for the one-pass form errs by 0.38 at mean 1,000 in float32;
    on TPU and GPU, where two passes cost memory traffic, in one pass about the running mean.
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
        # One group keeps the array's shape: a further dimension makes XLA's TPU programs copy it (see `_normalise`).
        grouped = x if size == x.shape[0] else x.reshape(x.shape[0] // size, size, *x.shape[1:])
        axes = tuple(range(grouped.ndim - x.ndim, grouped.ndim - 1))
        # The written-out gradient loses three digits over 4 numbers a channel, as a gate's vectors in a small batch have.
        normalise = _normalise if x.ndim > 2 else _normalise.fun
        normalised, mean, variance = normalise(grouped, scale, bias, running_mean.value, axes, self.epsilon)

        count = math.prod(grouped.shape[axis] for axis in axes)
        correction = count / max(count - 1, 1) if self.running_var == "unbiased" else 1.0
        keep = self.momentum
        running_mean.value = keep * running_mean.value + (1 - keep) * mean.reshape(-1, channels).mean(0)
        new_variance = correction * variance.reshape(-1, channels).mean(0)
        running_variance.value = keep * running_variance.value + (1 - keep) * new_variance
        return normalised.reshape(x.shape).astype(dtype)


def _statistics_in_one_pass(x: jax.Array, guess: jax.Array, axes: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
    """[..., C], [C] -> mean and variance over the axes, whose lengths become 1, from sums of x - guess and its square.

    As good as two passes where the guess is within a few hundred deviations of the mean.
    """
    mean = (x - guess).mean(axes, keepdims=True)
    variance = jnp.square(x - guess).mean(axes, keepdims=True) - jnp.square(mean)
    return mean + guess, jnp.maximum(variance, 0)


def _forward_on_cpu(x: jax.Array, scale: jax.Array, bias: jax.Array, guess: jax.Array, axes: tuple, epsilon: float) -> tuple:
    mean = x.mean(axes, keepdims=True)
    variance = jnp.square(x - mean).mean(axes, keepdims=True)
    return (x - mean) * (scale * jax.lax.rsqrt(variance + epsilon)) + bias, mean, variance


def _forward_elsewhere(x: jax.Array, scale: jax.Array, bias: jax.Array, guess: jax.Array, axes: tuple, epsilon: float) -> tuple:
    """Two operations an element after the sums; errs by no more than a few times what rounding x itself costs."""
    mean, variance = _statistics_in_one_pass(x, guess, axes)
    slope = scale * jax.lax.rsqrt(variance + epsilon)
    return x * slope + (bias - mean * slope), mean, variance


def _backward_on_cpu(
    x: jax.Array, of_y: jax.Array, scale: jax.Array, mean: jax.Array, inverse_deviation: jax.Array, axes: tuple
) -> tuple:
    """Gradients with respect to x, the scale and the bias; the last two with the axes' lengths 1."""
    count = math.prod(x.shape[axis] for axis in axes)
    of_bias = of_y.sum(axes, keepdims=True)
    normal = (x - mean) * inverse_deviation
    of_scale = (of_y * normal).sum(axes, keepdims=True)
    # Differences first: for few numbers they are much smaller than their terms.
    return scale * inverse_deviation * (of_y - of_bias / count - normal * (of_scale / count)), of_scale, of_bias


def _backward_elsewhere(
    x: jax.Array, of_y: jax.Array, scale: jax.Array, mean: jax.Array, inverse_deviation: jax.Array, axes: tuple
) -> tuple:
    """The same with x - mean in place of the normalised x, which is two operations an element fewer."""
    count = math.prod(x.shape[axis] for axis in axes)
    of_bias = of_y.sum(axes, keepdims=True)
    of_scale = (of_y * (x - mean)).sum(axes, keepdims=True) * inverse_deviation
    slope = of_scale * inverse_deviation / count
    return scale * inverse_deviation * (of_y - of_bias / count - (x - mean) * slope), of_scale, of_bias


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _normalise(
    x: jax.Array, scale: jax.Array, bias: jax.Array, guess: jax.Array, axes: tuple[int, ...], epsilon: float
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """[..., C] and three [C] -> the same normalised over the axes, and the mean and variance used.

    `guess` is the running mean. A TPU takes both sums of the one-pass form while the convolution before writes its
    output, and need not read that again: 5.56 GB instead of 7.67 in a step of two bottlenecks (v5e, batch 32 at 56x56).

    The gradient is written out: it reads the activations half as often as the derivative of two passes (batch 8 at 56x56
    with 256 channels on two CPU cores, forward and backward with ReLU: 27 ms against 48). None flows through the statistics
    that are returned; forward-mode differentiation does not pass.
    """
    forms = (functools.partial(form, axes=axes, epsilon=epsilon) for form in (_forward_on_cpu, _forward_elsewhere))
    return by_platform(*forms, x, scale, bias, guess)


def _normalise_forward(
    x: jax.Array, scale: jax.Array, bias: jax.Array, guess: jax.Array, axes: tuple[int, ...], epsilon: float
) -> tuple:
    y, mean, variance = _normalise(x, scale, bias, guess, axes, epsilon)
    return (y, mean, variance), (x, scale, mean, jax.lax.rsqrt(variance + epsilon))


def _normalise_backward(axes: tuple[int, ...], epsilon: float, saved: tuple, gradients: tuple) -> tuple:
    x, scale, mean, inverse_deviation = saved
    forms = (functools.partial(form, axes=axes) for form in (_backward_on_cpu, _backward_elsewhere))
    of_x, of_scale, of_bias = by_platform(*forms, x, gradients[0], scale, mean, inverse_deviation)
    return of_x, of_scale.reshape(-1, scale.size).sum(0), of_bias.reshape(-1, scale.size).sum(0), None


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
