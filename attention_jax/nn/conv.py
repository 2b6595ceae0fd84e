"""Convolutions as the papers and PyTorch count them, pooling, stochastic depth, and squeeze-and-excitation."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from attention_jax.kernels.conv import convolve

# He et al. 2015 as in fb.resnet.torch: standard deviation sqrt(2 / (k·k·output channels)).
he_fan_out = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
# TensorFlow's variance_scaling_initializer as it is by default, in the released ResNet-RS: sqrt(1 / (k·k·input channels)).
fan_in = nn.initializers.variance_scaling(1.0, "fan_in", "truncated_normal")


class Conv(nn.Conv):
    """`nn.Conv` with He initialisation, no bias, and the symmetric zero padding of the papers: dilation·(k-1)/2 a side.

    Flax's "SAME" pads a strided convolution on one side only, which shifts its output against every published weight.
    [B, H, W, C] -> [B, H/s, W/s, features].
    """

    use_bias: bool = False
    kernel_init: Callable = he_fan_out
    conv_general_dilated_cls: Callable = lambda: convolve

    def __post_init__(self):
        if self.padding == "SAME":
            dilation = self.kernel_dilation or 1
            self.padding = [(dilation * (k - 1) // 2,) * 2 for k in self.kernel_size]
        super().__post_init__()


def average_pool(x: jax.Array) -> jax.Array:
    """[B, H, W, C] -> [B, ceil(H/2), ceil(W/2), C]: 2x2 means; at an odd side the last mean is of what is there (timm's)."""
    _, h, w, _ = x.shape

    def summed(y: jax.Array) -> jax.Array:
        y = jnp.pad(y, ((0, 0), (0, h % 2), (0, w % 2), (0, 0)))
        return y.reshape(len(y), -(-h // 2), 2, -(-w // 2), 2, y.shape[-1]).sum((2, 4))

    return summed(x) / (summed(jnp.ones((1, h, w, 1), x.dtype)) if h % 2 or w % 2 else 4)


class StochasticDepth(nn.Module):
    """Drops a residual branch of whole examples with probability `rate` (Huang et al. 2016).

    As in timm, ConvNeXt and ResNet-RS each example draws for itself and what stays is divided by 1 - rate in training;
    the original dropped the whole batch's branch and scaled at test time.
    """

    rate: float
    deterministic: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, ...] -> [B, ...]. Draws from the key "dropout"."""
        if self.deterministic or not self.rate:
            return x
        keep = 1 - self.rate
        kept = jax.random.bernoulli(self.make_rng("dropout"), keep, (x.shape[0], *(1,) * (x.ndim - 1)))
        return jnp.where(kept, x / jnp.asarray(keep, x.dtype), jnp.zeros((), x.dtype))


class SqueezeExcite(nn.Module):
    """Squeeze-and-excitation (Hu et al. 2018, Section 3): x · sigmoid(W2 relu(W1 mean(x))).

    Attributes:
        reduction: r; the hidden layer has C / r units (16 in the paper).
        divisor: rounds the hidden width to the nearest multiple of it, halves up, and to at least one; timm's networks have 8,
            which changes them where C < 128.
        use_bias: the paper's main networks have biases, its ablation section (Table 10 and after) has none.
        dtype: of the computation; None takes the input's and the parameters'.
    """

    reduction: int = 16
    divisor: int = 1
    use_bias: bool = True
    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, H, W, C] -> [B, H, W, C]. Sows `scale` [B, C] into "attention"."""
        channels = x.shape[-1]
        squeezed = x.mean((1, 2))
        width = max(1, int(channels / self.reduction / self.divisor + 0.5)) * self.divisor
        hidden = nn.relu(nn.Dense(width, self.use_bias, self.dtype, name="reduce")(squeezed))
        scale = nn.sigmoid(nn.Dense(channels, self.use_bias, self.dtype, name="expand")(hidden))
        self.sow("attention", "scale", scale)
        return x * scale[:, None, None, :]
