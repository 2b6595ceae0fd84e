"""Control blocks without attention: a gate has to beat a network with the same field of view, or with the image's mean."""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax

from attention_jax.nn.conv import Conv
from attention_jax.nn.gates import reduce_channels


class AddedBranch(nn.Module):
    """[B, H, W, C] -> [B, H, W, C]: adds the dilated convolutions of BAM's spatial branch to x, and multiplies nothing.

    Attributes:
        reduction: the hidden layers have C / reduction channels.
        dilation: dilation of the two 3x3 convolutions.
    """

    norm: Callable[..., nn.Module]
    reduction: int = 4
    dilation: int = 4
    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        c = x.shape[-1]
        conv = functools.partial(Conv, reduce_channels(self, c), use_bias=True, dtype=self.dtype)
        hidden = nn.relu(conv((1, 1), name="reduce")(x))
        for i in (1, 2):
            hidden = nn.relu(conv((3, 3), kernel_dilation=self.dilation, name=f"conv{i}")(hidden))
        return x + self.norm(name="norm")(Conv(c, (1, 1), use_bias=True, dtype=self.dtype, name="expand")(hidden))


class AddedMean(nn.Module):
    """[B, H, W, C] -> [B, H, W, C]: x + W·mean(x), the mean over all positions, without a map that is learnt."""

    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return x + nn.Dense(x.shape[-1], dtype=self.dtype)(x.mean((1, 2), keepdims=True))
