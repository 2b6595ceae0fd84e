"""Attention gates for comparison: squeeze-and-excitation, CBAM, ECA and the global context block."""

import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from attention_jax.errors import UserError
from attention_jax.nn.conv import Conv
from attention_jax.nn.norm import BatchNorm


def maximum(x: jax.Array, axis: int) -> jax.Array:
    """The largest value along an axis; ties go to the first.

    The gradient of `jnp.max` looks for entries equal to the maximum, and is not a number where XLA's CPU compiler rounds
    the two computations of an entry differently and finds none, as it did in CBAM; this one looks at the index.
    """
    first = jnp.argmax(x, axis, keepdims=True) == jax.lax.broadcasted_iota(jnp.int32, x.shape, axis % x.ndim)
    return jnp.where(first, x, jnp.zeros((), x.dtype)).sum(axis)


def reduce_channels(module: nn.Module, channels: int, field: str = "reduction") -> int:
    """Returns C // r, where r is that field of the module; raises UserError if nothing would be left."""
    reduction = getattr(module, field)
    if not 1 <= reduction <= channels:
        name = f"{type(module).__name__}.{field}={reduction}"
        raise UserError(f"{name} leaves nothing of {channels} channels: give 1 to {channels}.")
    return channels // reduction


class SqueezeExcite(nn.Module):
    """Squeeze-and-excitation (Hu et al. 2018, Section 3): x · sigmoid(W2 relu(W1 mean(x))).

    Attributes:
        reduction: r; the hidden layer has C / r units (16 in the paper), at least one.
        divisor: rounds the hidden width to the nearest multiple of it, halves up, and to at least one; timm's networks have 8,
            which changes them where C < 128.
        use_bias: the paper's main networks have biases, its ablation section (Table 10 and after) has none.
        dtype: of the computation; None takes the input's and the parameters'.
        activation: between the two layers; EfficientNet has swish there.
    """

    reduction: int = 16
    divisor: int = 1
    use_bias: bool = True
    dtype: Any = None
    activation: Callable[[jax.Array], jax.Array] = nn.relu

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, H, W, C] -> [B, H, W, C]. Sows `scale` [B, C] into "attention"."""
        channels = x.shape[-1]
        squeezed = x.mean((1, 2))
        width = max(1, int(channels / self.reduction / self.divisor + 0.5)) * self.divisor
        hidden = self.activation(nn.Dense(width, self.use_bias, self.dtype, name="reduce")(squeezed))
        scale = nn.sigmoid(nn.Dense(channels, self.use_bias, self.dtype, name="expand")(hidden))
        self.sow("attention", "scale", scale)
        return x * scale[:, None, None, :]


class CBAM(nn.Module):
    """Convolutional block attention (Woo et al. 2018, Section 3): a channel gate, then a spatial gate.

    Attributes:
        reduction: r of the shared two-layer network (16 in the paper).
        kernel_size: of the spatial convolution (7 in the paper).
        zero_gamma: the spatial gate's normalisation starts with scale 0, i.e. the gate at 1/2, as the released code does.
        norm: makes the normalisation of the spatial map; a network passes its own.
        dtype: of the computation; None takes the input's and the parameters'.
    """

    reduction: int = 16
    kernel_size: int = 7
    zero_gamma: bool = True
    norm: Any = BatchNorm
    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, H, W, C] -> [B, H, W, C]. Sows `channel` [B, C] and `spatial` [B, H, W] into "attention"."""
        channels = x.shape[-1]
        reduce = nn.Dense(reduce_channels(self, channels), dtype=self.dtype, name="reduce")
        expand = nn.Dense(channels, dtype=self.dtype, name="expand")
        of_means = expand(nn.relu(reduce(x.mean((1, 2)))))
        of_maxima = expand(nn.relu(reduce(maximum(x.reshape(len(x), -1, channels), 1))))
        channel = nn.sigmoid(sum((of_means, of_maxima)))
        self.sow("attention", "channel", channel)
        x = x * channel[:, None, None, :]

        pooled = jnp.stack([maximum(x, -1), x.mean(-1)], -1)
        spatial = Conv(1, (self.kernel_size,) * 2, dtype=self.dtype, name="spatial_conv")(pooled)
        start = nn.initializers.zeros if self.zero_gamma else nn.initializers.ones
        spatial = nn.sigmoid(self.norm(scale_init=start, name="spatial_norm")(spatial))
        self.sow("attention", "spatial", spatial[..., 0])
        return x * spatial


class ECA(nn.Module):
    """Efficient channel attention (Wang et al. 2020, Section 3): a 1-d convolution over neighbouring channels' means.

    Attributes:
        kernel_size: odd; None takes the odd number that log2(C)/2 + 1/2 reaches, at least 3, as the released code does.
        dtype: of the computation; None takes the input's and the parameters'.
    """

    kernel_size: int | None = None
    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, H, W, C] -> [B, H, W, C]. Sows `scale` [B, C] into "attention"."""
        size = self.kernel_size
        if size is None:
            nearest = int(abs(math.log2(x.shape[-1]) + 1) / 2)
            size = max(3, nearest if nearest % 2 else nearest + 1)
        elif size < 1 or size % 2 == 0:
            raise UserError(f"ECA.kernel_size={size} is not right: give an odd number.")
        squeezed = x.mean((1, 2))[..., None]
        scale = nn.Conv(1, (size,), use_bias=False, padding=[(size // 2,) * 2], dtype=self.dtype, name="conv")(squeezed)
        scale = nn.sigmoid(scale[..., 0])
        self.sow("attention", "scale", scale)
        return x * scale[:, None, None, :]


class GlobalContext(nn.Module):
    """The global context block (Cao et al. 2019, Section 3.3): x + W2 relu(LN(W1 sum_j a_j x_j)), a = softmax(w·x).

    Attributes:
        reduction: r; the hidden layer has C / r units (16 in the paper).
        zero_init: W2 starts at zero, so that the block starts as the identity, as the released code does.
        dtype: of the computation; None takes the input's and the parameters'.
    """

    reduction: int = 16
    zero_init: bool = True
    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, H, W, C] -> [B, H, W, C]. Sows the one map that all positions share, `weights` [B, H, W], into "attention"."""
        b, h, w, channels = x.shape
        logits = nn.Dense(1, dtype=self.dtype, name="mask")(x).reshape(b, h * w)
        weights = nn.softmax(logits.astype(jnp.float32))
        self.sow("attention", "weights", weights.reshape(b, h, w))
        context = jnp.einsum("bn,bnc->bc", weights.astype(x.dtype), x.reshape(b, h * w, channels))
        hidden = nn.Dense(reduce_channels(self, channels), dtype=self.dtype, name="reduce")(context)
        hidden = nn.relu(nn.LayerNorm(1e-5, self.dtype, use_fast_variance=False, name="norm")(hidden))
        last = nn.initializers.zeros if self.zero_init else nn.initializers.lecun_normal()
        return x + nn.Dense(channels, kernel_init=last, dtype=self.dtype, name="expand")(hidden)[:, None, None, :]
