"""Convolutions as the papers and PyTorch count them, and squeeze-and-excitation."""

from collections.abc import Callable

import flax.linen as nn
import jax

from attention_jax.nn.convolve import convolve

# He et al. 2015 as in fb.resnet.torch: standard deviation sqrt(2 / (k·k·output channels)).
he_fan_out = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


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


class SqueezeExcite(nn.Module):
    """Squeeze-and-excitation (Hu et al. 2018, Section 3): x · sigmoid(W2 relu(W1 mean(x))).

    Attributes:
        reduction: r; the hidden layer has C / r units (16 in the paper).
        divisor: rounds the hidden width to the nearest multiple of it, halves up, and to at least one; timm's networks have 8,
            which changes them where C < 128.
        use_bias: the paper's main networks have biases, its ablation section (Table 10 and after) has none.
    """

    reduction: int = 16
    divisor: int = 1
    use_bias: bool = True

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, H, W, C] -> [B, H, W, C]. Sows `scale` [B, C] into "attention"."""
        channels = x.shape[-1]
        squeezed = x.mean((1, 2))
        width = max(1, int(channels / self.reduction / self.divisor + 0.5)) * self.divisor
        hidden = nn.relu(nn.Dense(width, self.use_bias, name="reduce")(squeezed))
        scale = nn.sigmoid(nn.Dense(channels, self.use_bias, name="expand")(hidden))
        self.sow("attention", "scale", scale)
        return x * scale[:, None, None, :]
