"""BAM, the bottleneck attention module."""

import functools
import logging
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from attention_jax.errors import UserError
from attention_jax.nn.conv import Conv
from attention_jax.nn.gates import reduce_channels, refuse_other_values
from attention_jax.nn.norm import BatchNorm

log = logging.getLogger(__name__)
_COMBINE = {"sum": jnp.add, "product": jnp.multiply, "max": jnp.maximum}


@functools.cache
def _log_once(message: str) -> None:
    log.info(message)


def fitting_dilation(dilation: int, height: int, width: int) -> int:
    """Returns the largest dilation up to `dilation` whose 3x3 kernel still has off-centre taps inside most of an [H, W] map.

    At a dilation of the map's side or more, every tap but the centre one falls on padding and the spatial branch sees
    one position; half the side keeps at least one neighbour in view from every position.
    """
    return max(1, min(dilation, min(height, width) // 2))


class BAM(nn.Module):
    """BAM (Park et al. 2018, Section 3): F' = F + F · M(F), M(F) = sigmoid(channel map + spatial map).

    Attributes:
        reduction: r; both branches work on C // r channels (16 in the paper).
        dilation: dilation of the two 3x3 convolutions of the spatial branch (4 in the paper).
        fit_dilation: True reduces it, with a line in the log, where a small map would leave only the centre tap
            (see `fitting_dilation`); False keeps it, as the released code does.
        combine: "sum" is the paper's; "product" is the released code's; "max" is a row of the paper's ablation.
        batch_norm: "paper" normalises the end of each branch (equations 3 and 5), "code" every hidden layer and not the
            end. Both have ReLU after hidden layers and a bias in every layer, as the released code counts them.
        channel, spatial: False leaves the branch out.
        skip: False gives F · M(F), without F.
        norm: makes the normalisation layer; a network passes its own.
        dtype: dtype of the computation; None follows the input and the parameters.
    """

    reduction: int = 16
    dilation: int = 4
    fit_dilation: bool = True
    combine: str = "sum"
    batch_norm: str = "paper"
    channel: bool = True
    spatial: bool = True
    skip: bool = True
    norm: Callable[..., nn.Module] = BatchNorm
    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, H, W, C] -> [B, H, W, C].

        Sows into "attention": `channel` [B, C] and `spatial` [B, H, W], each branch's own map after a sigmoid, the map
        `map` M(F) [B, H, W, C], and the features `input` F and `output` F' [B, H, W, C].
        """
        self._check()
        branches = {}
        if self.channel:
            branches["channel"] = self._channel_branch(x)[:, None, None, :]
        if self.spatial:
            branches["spatial"] = self._spatial_branch(x)
        attention = nn.sigmoid(functools.reduce(_COMBINE[self.combine], branches.values()))
        output = x * (1 + attention) if self.skip else x * attention

        if self.is_mutable_collection("attention"):
            for name, branch in branches.items():
                self.sow("attention", name, nn.sigmoid(branch[:, 0, 0] if name == "channel" else branch[..., 0]))
            self.sow("attention", "map", jnp.broadcast_to(attention, x.shape))
            self.sow("attention", "input", x)
            self.sow("attention", "output", output)
        return output

    def _check(self) -> None:
        refuse_other_values(self, combine=tuple(_COMBINE), batch_norm=("paper", "code"))
        if not (self.channel or self.spatial):
            raise UserError("BAM.channel and BAM.spatial are both False: keep one of the branches.")
        if self.dilation < 1:
            raise UserError(f"BAM.dilation={self.dilation} is not right: give 1 or more.")

    def _hidden(self, x: jax.Array, name: str) -> jax.Array:
        if self.batch_norm == "code":
            x = self.norm(name=name)(x)
        return nn.relu(x)

    def _end(self, x: jax.Array, name: str) -> jax.Array:
        return self.norm(name=name)(x) if self.batch_norm == "paper" else x

    def _channel_branch(self, x: jax.Array) -> jax.Array:
        """[B, H, W, C] -> [B, C]: global average pooling and one hidden layer."""
        channels = x.shape[-1]
        hidden = nn.Dense(reduce_channels(self, channels), dtype=self.dtype, name="channel_reduce")(x.mean((1, 2)))
        hidden = self._hidden(hidden, "channel_reduce_norm")
        return self._end(nn.Dense(channels, dtype=self.dtype, name="channel_expand")(hidden), "channel_norm")

    def _spatial_branch(self, x: jax.Array) -> jax.Array:
        """[B, H, W, C] -> [B, H, W, 1]: 1x1, two dilated 3x3, 1x1."""
        _, h, w, c = x.shape
        dilation = fitting_dilation(self.dilation, h, w) if self.fit_dilation else self.dilation
        if dilation != self.dilation and self.path:  # `Gate` also calls the module on its own, without a path
            where = "/".join(self.path)
            _log_once(
                f"{where}: BAM's dilation is {dilation} on its {h}x{w} map, where {self.dilation} would leave most taps in the "
                f"padding; gate_args.fit_dilation=False keeps {self.dilation}."
            )
        conv = functools.partial(Conv, reduce_channels(self, c), use_bias=True, dtype=self.dtype)
        hidden = self._hidden(conv((1, 1), name="spatial_reduce")(x), "spatial_reduce_norm")
        for i in (1, 2):
            hidden = conv((3, 3), kernel_dilation=dilation, name=f"spatial_conv{i}")(hidden)
            hidden = self._hidden(hidden, f"spatial_conv{i}_norm")
        return self._end(Conv(1, (1, 1), use_bias=True, dtype=self.dtype, name="spatial_map")(hidden), "spatial_norm")
