"""ConvNeXt-T and Swin-T at 224 pixels out of `flax.linen` alone, as a user would write them, for `train_step.py`."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np


class ConvNeXtBlock(nn.Module):
    """Depthwise 7x7, LayerNorm, two linear layers, layer scale."""

    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, H, W, C] -> [B, H, W, C]."""
        c = x.shape[-1]
        y = nn.Conv(c, (7, 7), feature_group_count=c, dtype=self.dtype)(x)
        y = nn.LayerNorm(1e-6, self.dtype)(y)
        y = nn.gelu(nn.Dense(4 * c, dtype=self.dtype)(y), approximate=False)
        y = nn.Dense(c, dtype=self.dtype)(y)
        return x + y * self.param("scale", nn.initializers.constant(1e-6), (c,)).astype(y.dtype)


class ConvNeXt(nn.Module):
    """ConvNeXt-T."""

    classes: int
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """[B, H, W, 3] -> [B, K]."""
        norm = functools.partial(nn.LayerNorm, 1e-6, self.dtype)
        x = norm()(nn.Conv(96, (4, 4), 4, dtype=self.dtype)(x))
        for stage, blocks in enumerate((3, 3, 9, 3)):
            if stage:
                x = nn.Conv(96 * 2**stage, (2, 2), 2, dtype=self.dtype)(norm()(x))
            for _ in range(blocks):
                x = ConvNeXtBlock(self.dtype)(x)
        return nn.Dense(self.classes)(nn.LayerNorm(1e-6)(x.astype(jnp.float32).mean((1, 2))))


def split_windows(x: Any, side: int) -> Any:
    """[B, H, W, C] -> [B · windows, side², C]."""
    b, h, w, c = x.shape
    return x.reshape(b, h // side, side, w // side, side, c).swapaxes(2, 3).reshape(-1, side**2, c)


class WindowAttention(nn.Module):
    """Self-attention inside of windows with a bias by relative position; shifted ones have a mask."""

    heads: int
    side: int
    shift: int
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, H, W, C] -> [B, H, W, C]."""
        (b, h, w, c), side, shift = x.shape, self.side, self.shift
        y = split_windows(jnp.roll(x, (-shift, -shift), (1, 2)), side)
        q, k, v = jnp.split(nn.Dense(3 * c, dtype=self.dtype)(y).reshape(len(y), side**2, 3 * self.heads, -1), 3, 2)

        table = self.param("bias", nn.initializers.normal(0.02), ((2 * side - 1) ** 2, self.heads))
        row, column = np.divmod(np.arange(side**2), side)
        offset = (row[:, None] - row + side - 1) * (2 * side - 1) + column[:, None] - column + side - 1
        logits = jnp.einsum("nthk,nshk->nhts", q, k).astype(jnp.float32) / (c // self.heads) ** 0.5
        logits += table[offset].transpose(2, 0, 1)
        if shift:
            rolled = np.roll(np.arange(h), -shift) < shift
            regions = split_windows((2 * rolled[:, None] + rolled)[None, ..., None], side)
            mask = np.where(regions == regions.swapaxes(1, 2), 0, -100.0)[:, None]
            logits = (logits.reshape(b, -1, *logits.shape[1:]) + mask).reshape(logits.shape)
        y = jnp.einsum("nhts,nshk->nthk", jax.nn.softmax(logits).astype(self.dtype), v).reshape(-1, side**2, c)
        y = nn.Dense(c, dtype=self.dtype)(y)
        y = y.reshape(b, h // side, w // side, side, side, c).swapaxes(2, 3).reshape(x.shape)
        return jnp.roll(y, (shift, shift), (1, 2))


class Swin(nn.Module):
    """Swin-T."""

    classes: int
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """[B, 224, 224, 3] -> [B, K]."""
        norm, dense = functools.partial(nn.LayerNorm, 1e-5, self.dtype), functools.partial(nn.Dense, dtype=self.dtype)
        x = norm()(nn.Conv(96, (4, 4), 4, dtype=self.dtype)(x))
        for stage, blocks in enumerate((2, 2, 6, 2)):
            c = 96 * 2**stage
            if stage:
                b, h, w, _ = x.shape
                x = x.reshape(b, h // 2, 2, w // 2, 2, c // 2).transpose(0, 1, 3, 4, 2, 5).reshape(b, h // 2, w // 2, 2 * c)
                x = dense(c, use_bias=False)(norm()(x))
            for i in range(blocks):
                shift = 3 if i % 2 and x.shape[1] > 7 else 0
                x = x + WindowAttention(3 * 2**stage, 7, shift, self.dtype)(norm()(x))
                x = x + dense(c)(nn.gelu(dense(4 * c)(norm()(x)), approximate=False))
        return nn.Dense(self.classes)(norm()(x).astype(jnp.float32).mean((1, 2)))
