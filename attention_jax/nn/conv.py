"""Convolutions as the papers and PyTorch count them, average pooling, and stochastic depth."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from attention_jax.kernels.conv import convolve

# He et al. 2015 as in fb.resnet.torch: standard deviation sqrt(2 / (k·k·output channels)).
he_fan_out = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
# TensorFlow's default variance_scaling_initializer, as in the released ResNet-RS: sqrt(1 / (k·k·input channels)).
fan_in = nn.initializers.variance_scaling(1.0, "fan_in", "truncated_normal")


class Conv(nn.Conv):
    """Adds to `nn.Conv` He initialisation, no bias, and the symmetric zero padding of the papers: dilation·(k-1)/2 on each
    side.

    Flax's "SAME" pads a strided convolution on one side only, which shifts its output against every published weight.
    [B, H, W, C] -> [B, H/s, W/s, features].
    """

    use_bias: bool = False
    kernel_init: Callable = he_fan_out
    conv_general_dilated_cls: Callable = lambda: convolve

    def __post_init__(self) -> None:
        if self.padding == "SAME":
            sides = np.broadcast(self.kernel_dilation or 1, self.kernel_size)
            self.padding = [(int(dilation * (k - 1) // 2),) * 2 for dilation, k in sides]
        super().__post_init__()


def average_pool(x: jax.Array) -> jax.Array:
    """[B, H, W, C] -> [B, ceil(H/2), ceil(W/2), C]: 2x2 means.

    With an odd side, the last window averages only real pixels (as timm does).
    """
    _, h, w, _ = x.shape

    def summed(y: jax.Array) -> jax.Array:
        y = jnp.pad(y, ((0, 0), (0, h % 2), (0, w % 2), (0, 0)))
        return y.reshape(len(y), -(-h // 2), 2, -(-w // 2), 2, y.shape[-1]).sum((2, 4))

    return summed(x) / (summed(jnp.ones((1, h, w, 1), x.dtype)) if h % 2 or w % 2 else 4)


class StochasticDepth(nn.Module):
    """Drops an example's entire residual branch with probability `rate` (Huang et al. 2016).

    As in timm, ConvNeXt and ResNet-RS, each example is drawn on its own, and a branch that stays is divided by 1 - rate in
    training; the original dropped the branch of all examples at once and scaled at test time.
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
