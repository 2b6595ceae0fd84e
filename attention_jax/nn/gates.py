"""Attention gates over channels (SE, effective SE, ECA) or channels and positions (CBAM, gather-excite, coordinate attention),
and the global context block. Self-attention and the non-local block are in `attention.py`, BAM in `bam.py`.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from attention_jax.errors import UserError
from attention_jax.nn.conv import Conv
from attention_jax.nn.norm import BatchNorm


def maximum(x: jax.Array, axis: int) -> jax.Array:
    """Returns the largest value along an axis; among equal values the gradient goes to the first.

    The gradient of `jnp.max` looks for entries equal to the maximum. XLA's CPU compiler may round the two computations of an
    entry differently; then none is equal and the gradient is NaN, as it was in CBAM. This function looks at the index.
    """
    first = jnp.argmax(x, axis, keepdims=True) == jax.lax.broadcasted_iota(jnp.int32, x.shape, axis % x.ndim)
    return jnp.where(first, x, jnp.zeros((), x.dtype)).sum(axis)


def reduce_channels(module: nn.Module, channels: int, field: str = "reduction") -> int:
    """Returns C // r, where r is the module's field of this name; raises UserError if no channel would be left."""
    reduction = getattr(module, field)
    if not 1 <= reduction <= channels:
        name = f"{type(module).__name__}.{field}={reduction}"
        raise UserError(f"{name} leaves no channel of {channels}: give 1 to {channels}.")
    return channels // reduction


def refuse_other_values(module: nn.Module, **accepted: tuple[str, ...]) -> None:
    """Raises UserError unless each of these fields of the module has one of its accepted values."""
    for field, values in accepted.items():
        if (value := getattr(module, field)) not in values:
            name = f"{type(module).__name__}.{field}={value!r}"
            raise UserError(f"{name} is not one of {', '.join(map(repr, values))}.")


class SqueezeExcite(nn.Module):
    """Squeeze-and-excitation (Hu et al. 2018, Section 3): x · sigmoid(W2 relu(W1 mean(x))).

    Attributes:
        reduction: r; the hidden layer has C / r units (16 in the paper), at least one.
        divisor: the hidden width is rounded to a multiple of this, halves up, and to at least one; timm's networks have 8,
            which changes the widths where C < 128.
        use_bias: the paper's main networks have biases, its ablation section (Table 10 and after) has none.
        dtype: dtype of the computation; None follows the input and the parameters.
        activation: function between the two layers; EfficientNet has swish there.
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


class EffectiveSE(nn.Module):
    """Effective squeeze-and-excitation (Lee & Park 2020, the section on VoVNetV2): x · hard_sigmoid(W mean(x)), W [C, C].

    Attributes:
        dtype: dtype of the computation; None follows the input and the parameters.
    """

    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, H, W, C] -> [B, H, W, C]. Sows `scale` [B, C] into "attention"."""
        scale = nn.hard_sigmoid(nn.Dense(x.shape[-1], dtype=self.dtype, name="expand")(x.mean((1, 2))))
        self.sow("attention", "scale", scale)
        return x * scale[:, None, None, :]


class GatherExcite(nn.Module):
    """Gather-excite (Hu et al. 2018b, Sections 3 and 4): x · sigmoid(upsample(gather(x))), a map of larger neighbourhoods.

    The defaults are the parameter-free GE-θ-; `gather="conv"` is GE-θ, with `mlp=True` GE-θ+. timm's `ge` is `mlp=True`
    alone, which at the global extent is squeeze-and-excitation.

    Attributes:
        extent: e, a power of two: each place of the gathered map, ceil(H / e) x ceil(W / e), stands for e x e pixels; 0 gathers
            the entire map into one place.
        gather: "mean" of the (2e - 1)² pixels around a place, or "conv", log2(e) depthwise 3x3 convolutions with stride 2; at
            the global extent one without padding, whose kernel is the map's size (timm pads it, and then gathers nothing).
        mlp: True puts two 1x1 convolutions with C / r hidden channels between gather and sigmoid.
        reduction: r of `mlp` (16 in the paper).
        norm: makes the normalisation after each convolution of "conv"; a network passes its own.
        dtype: dtype of the computation; None follows the input and the parameters.
    """

    extent: int = 0
    gather: str = "mean"
    mlp: bool = False
    reduction: int = 16
    norm: Any = BatchNorm
    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, H, W, C] -> [B, H, W, C]. Sows into "attention" `scale` [B, C] at the global extent, else `map` [B, H, W, C]."""
        _, h, w, channels = x.shape
        refuse_other_values(self, gather=("mean", "conv"))
        if self.extent & (self.extent - 1):
            raise UserError(f"GatherExcite.extent={self.extent} is not right: give a power of two, or 0 for the entire map.")
        gathered = self._convolved(x) if self.gather == "conv" else self._averaged(x)
        if self.mlp:
            hidden = nn.relu(nn.Dense(reduce_channels(self, channels), dtype=self.dtype, name="reduce")(gathered))
            gathered = nn.Dense(channels, dtype=self.dtype, name="expand")(hidden)
        scale = nn.sigmoid(gathered)
        if not self.extent:
            self.sow("attention", "scale", scale[:, 0, 0])
            return x * scale
        rows, columns = (np.arange(n) * small // n for n, small in zip((h, w), scale.shape[1:3], strict=True))
        scale = scale[:, rows][:, :, columns]  # the nearest, as in the paper
        self.sow("attention", "map", scale)
        return x * scale

    def _averaged(self, x: jax.Array) -> jax.Array:
        if not self.extent:
            return x.mean((1, 2), keepdims=True)
        side, pad = 2 * self.extent - 1, self.extent - 1
        return nn.avg_pool(x, (side, side), (self.extent, self.extent), [(pad, pad)] * 2, count_include_pad=False)

    def _convolved(self, x: jax.Array) -> jax.Array:
        _, h, w, channels = x.shape
        depthwise = functools.partial(Conv, channels, feature_group_count=channels, dtype=self.dtype)
        if not self.extent:
            return self.norm(name="gather_norm1")(depthwise((h, w), padding="VALID", name="gather_conv1")(x))
        for i in range(1, self.extent.bit_length()):
            x = nn.relu(x) if i > 1 else x
            x = self.norm(name=f"gather_norm{i}")(depthwise((3, 3), strides=(2, 2), name=f"gather_conv{i}")(x))
        return x


class CoordinateAttention(nn.Module):
    """Coordinate attention (Hou et al. 2021, Section 3.2): x · a(row) · b(column), a gate for each row and each column.

    The means along rows and along columns share one hidden layer with normalisation and hard swish, and have a sigmoid each.

    Attributes:
        reduction: r; the hidden layer has C / r channels (32 in the paper, 24 in timm), at least 8 as in the released code.
        divisor: the hidden width is rounded to a multiple of this, halves up; timm has 8.
        use_bias: True gives the three 1x1 convolutions a bias; timm has none.
        norm: makes the normalisation of the hidden layer; a network passes its own.
        dtype: dtype of the computation; None follows the input and the parameters.
    """

    reduction: int = 32
    divisor: int = 1
    use_bias: bool = True
    norm: Any = BatchNorm
    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, H, W, C] -> [B, H, W, C]. Sows the product of the two gates, `map` [B, H, W, C], into "attention"."""
        h, channels = x.shape[1], x.shape[-1]
        if self.reduction < 1:
            raise UserError(f"CoordinateAttention.reduction={self.reduction} is not right: give 1 or more.")
        width = max(8, (channels // self.reduction + self.divisor // 2) // self.divisor * self.divisor)
        layer = functools.partial(nn.Dense, use_bias=self.use_bias, dtype=self.dtype)
        means = jnp.concatenate([x.mean(2), x.mean(1)], 1)
        hidden = nn.hard_swish(self.norm(name="norm")(layer(width, name="reduce")(means)))
        rows = nn.sigmoid(layer(channels, name="rows")(hidden[:, :h]))
        columns = nn.sigmoid(layer(channels, name="columns")(hidden[:, h:]))
        gate = rows[:, :, None] * columns[:, None]
        self.sow("attention", "map", gate)
        return x * gate


class CBAM(nn.Module):
    """Convolutional block attention (Woo et al. 2018, Section 3): a channel gate, then a spatial gate.

    Attributes:
        reduction: ratio r of the shared two-layer network (16 in the paper).
        kernel_size: side of the spatial convolution's kernel (7 in the paper).
        zero_gamma: the spatial gate's normalisation starts with scale 0, i.e. the gate at 1/2, as the released code does.
        norm: makes the normalisation of the spatial map; a network passes its own.
        dtype: dtype of the computation; None follows the input and the parameters.
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
        kernel_size: odd number; None takes the odd number that log2(C)/2 + 1/2 reaches, at least 3, as the released code does.
        dtype: dtype of the computation; None follows the input and the parameters.
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

    timm's `gc` is `reduction=8, fuse="scale", epsilon=1e-6`, its `gca` the same with "add".

    Attributes:
        reduction: r; the hidden layer has C / r units (16 in the paper).
        zero_init: True starts W2 at zero if its output is added: the block starts as the identity, as in the released code.
        fuse: "add", or "scale" for x · sigmoid(W2 …), a row of the paper's ablation.
        epsilon: number added to the variance in the layer normalisation LN.
        dtype: dtype of the computation; None follows the input and the parameters.
    """

    reduction: int = 16
    zero_init: bool = True
    fuse: str = "add"
    epsilon: float = 1e-5
    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, H, W, C] -> [B, H, W, C].

        Sows into "attention" the one map that all positions share, `weights` [B, H, W], and `scale` [B, C] if it scales.
        """
        b, h, w, channels = x.shape
        refuse_other_values(self, fuse=("add", "scale"))
        logits = nn.Dense(1, dtype=self.dtype, name="mask")(x).reshape(b, h * w)
        weights = nn.softmax(logits.astype(jnp.float32))
        self.sow("attention", "weights", weights.reshape(b, h, w))
        context = jnp.einsum("bn,bnc->bc", weights.astype(x.dtype), x.reshape(b, h * w, channels))
        hidden = nn.Dense(reduce_channels(self, channels), dtype=self.dtype, name="reduce")(context)
        hidden = nn.relu(nn.LayerNorm(self.epsilon, self.dtype, use_fast_variance=False, name="norm")(hidden))
        starts_at_zero = self.zero_init and self.fuse == "add"
        last = nn.initializers.zeros if starts_at_zero else nn.initializers.lecun_normal()
        context = nn.Dense(channels, kernel_init=last, dtype=self.dtype, name="expand")(hidden)
        if self.fuse == "add":
            return x + context[:, None, None, :]
        scale = nn.sigmoid(context)
        self.sow("attention", "scale", scale)
        return x * scale[:, None, None, :]


class GlobalContextAdd(GlobalContext):
    """Makes the global context block as timm's `gca` has it, with C / 8 hidden units and an epsilon of 1e-6."""

    reduction: int = 8
    epsilon: float = 1e-6
