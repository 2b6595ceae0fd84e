"""Attention gates of other papers, for comparison: CBAM, ECA and the global context block."""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from attention_jax.errors import UserError
from attention_jax.nn.conv import Conv
from attention_jax.nn.norm import BatchNorm


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
        if not 1 <= self.reduction <= channels:
            raise UserError(f"CBAM.reduction={self.reduction} leaves nothing of {channels} channels: give 1 to {channels}.")
        reduce = nn.Dense(channels // self.reduction, dtype=self.dtype, name="reduce")
        expand = nn.Dense(channels, dtype=self.dtype, name="expand")
        squeezed = [expand(nn.relu(reduce(x.mean((1, 2))))), expand(nn.relu(reduce(x.max((1, 2)))))]
        channel = nn.sigmoid(sum(squeezed))
        self.sow("attention", "channel", channel)
        x = x * channel[:, None, None, :]

        pooled = jnp.stack([x.max(-1), x.mean(-1)], -1)
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
        if not 1 <= self.reduction <= channels:
            raise UserError(
                f"GlobalContext.reduction={self.reduction} leaves nothing of {channels} channels: give 1 to {channels}."
            )
        logits = nn.Dense(1, dtype=self.dtype, name="mask")(x).reshape(b, h * w)
        weights = nn.softmax(logits.astype(jnp.float32))
        self.sow("attention", "weights", weights.reshape(b, h, w))
        context = jnp.einsum("bn,bnc->bc", weights.astype(x.dtype), x.reshape(b, h * w, channels))
        hidden = nn.Dense(channels // self.reduction, dtype=self.dtype, name="reduce")(context)
        hidden = nn.relu(nn.LayerNorm(1e-5, self.dtype, use_fast_variance=False, name="norm")(hidden))
        last = nn.initializers.zeros if self.zero_init else nn.initializers.lecun_normal()
        return x + nn.Dense(channels, kernel_init=last, dtype=self.dtype, name="expand")(hidden)[:, None, None, :]
