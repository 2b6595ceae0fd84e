"""Squeeze-and-excitation written anew under another name, for which a comparison must find no difference to SE."""

import flax.linen as nn
import jax


class CopiedSE(nn.Module):
    """[B, H, W, C] -> [B, H, W, C]: x · sigmoid(W2 relu(W1 mean(x))) (Hu et al. 2018, Section 3)."""

    reduction: int = 16

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        channels = x.shape[-1]
        hidden = nn.relu(nn.Dense(channels // self.reduction, name="squeeze")(x.mean((1, 2))))
        scale = nn.sigmoid(nn.Dense(channels, name="excite")(hidden))
        self.sow("attention", "scale", scale)
        return x * scale[:, None, None, :]
