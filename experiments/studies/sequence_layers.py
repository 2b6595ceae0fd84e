"""The layer types of Table 1 of Vaswani et al. 2017, [B, N, D] -> [B, N, D], each with another way of joining positions.

Letters in names: B examples, N positions, D features, H heads, K and V sizes of a head's keys and values; C queries of a
block, S keys that a block sees.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from attention_jax.errors import UserError
from attention_jax.nn.multihead import MultiHeadAttention, attend_heads
from attention_jax.nn.recurrent import LSTM, State


class _SelfAttention(nn.Module):
    heads: int
    features: int
    key_size: int
    value_size: int

    def setup(self) -> None:
        self.attention = MultiHeadAttention(self.heads, self.features, self.key_size, self.value_size)


class FullSelfAttention(_SelfAttention):
    """Every position sees every position, itself included (Section 3.2.2)."""

    def __call__(self, x_BND: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        """[B, N, D] -> [B, N, features]; `mask` as in `attend_heads`."""
        return self.attention(x_BND, x_BND, mask)


class RestrictedSelfAttention(_SelfAttention):
    """Every position sees the `window` positions around it, itself in their middle (Section 4, "restricted").

    Parameters and numbers are those of `FullSelfAttention` with a mask; the products are only those near the band:
    a block of r neighbouring queries sees 2r - 1 keys, so that scores and sums take 2·(2r - 1)·N·D multiply-adds, in products
    that are large enough for a matrix unit.
    """

    window: int = 1  # r; odd

    def __call__(self, x_BND: jax.Array) -> jax.Array:
        """[B, N, D] -> [B, N, features]. Raises UserError for an even window."""
        if self.window < 1 or self.window % 2 == 0:
            raise UserError(f"restricted attention: window={self.window} is not right: give an odd number from 1.")
        b, n, _ = x_BND.shape
        window, half, blocks = self.window, self.window // 2, -(-n // self.window)
        k_BNHK, v_BNHV = self.attention.keys_and_values(x_BND, len(x_BND))
        q_BNHK = self.attention.query(x_BND).reshape(b, n, self.heads, self.key_size)

        # Blocks lie side by side in the batch. The last one may have queries past the end, whose answers are cut off.
        q_BCHK = jnp.pad(q_BNHK, ((0, 0), (0, blocks * window - n), (0, 0), (0, 0)))
        q_BCHK = q_BCHK.reshape(b * blocks, window, self.heads, self.key_size)
        query_C, key_S = jnp.arange(window), jnp.arange(2 * window - 1) - half
        positions_S = jnp.arange(blocks)[:, None] * window + key_S
        inside = (jnp.abs(query_C[:, None] - key_S) <= half) & ((positions_S >= 0) & (positions_S < n))[:, None]
        mask = jnp.tile(inside[:, None], (b, 1, 1, 1))
        y_BCHV, _ = attend_heads(q_BCHK, _seen(k_BNHK, window), _seen(v_BNHV, window), mask, self.key_size**-0.5)
        return self.attention.output(y_BCHV.reshape(b, blocks * window, self.heads * self.value_size)[:, :n])


def _seen(x_BNHK: jax.Array, window: int) -> jax.Array:
    """[B, N, H, K] -> [B · blocks, 2 · window - 1, H, K]: what each block of `window` positions sees, zero past the ends.

    By slices alone, because the gradient of a gather is a scatter, which is slow on every device.
    """
    b, n, h, k = x_BNHK.shape
    half, blocks = window // 2, -(-n // window)
    padded = jnp.pad(x_BNHK, ((0, 0), (half, (blocks + 1) * window - half - n), (0, 0), (0, 0)))
    cut = padded.reshape(b, blocks + 1, window, h, k)
    seen = jnp.concatenate([cut[:, :-1], cut[:, 1:]], axis=2)[:, :, : 2 * window - 1]
    return seen.reshape(b * blocks, 2 * window - 1, h, k)


class Convolution(nn.Module):
    """1-d convolution with zeros past the ends.

    Layers with dilations 1, k, k², … see k^layers positions together (van den Oord et al. 2016, Kalchbrenner et al. 2016).
    """

    features: int  # features of the output
    width: int  # k, the positions that an output sees; odd, so that it is in their middle
    dilation: int = 1  # distance between them; 1 is contiguous

    @nn.compact
    def __call__(self, x_BND: jax.Array) -> jax.Array:
        """[B, N, D] -> [B, N, features]. Raises UserError for an even width."""
        if self.width < 1 or self.width % 2 == 0:
            raise UserError(f"convolution: width={self.width} is not right: give an odd number from 1.")
        pads = [(self.dilation * (self.width // 2),) * 2]
        return nn.Conv(self.features, (self.width,), kernel_dilation=self.dilation, padding=pads, name="conv")(x_BND)


class Recurrent(nn.Module):
    """A forward LSTM: every position takes what its predecessor left."""

    features: int  # features of the input, the state and the output

    def setup(self) -> None:
        self.lstm = LSTM(self.features, self.features)

    def __call__(self, x_BND: jax.Array) -> jax.Array:
        """[B, N, D] -> [B, N, D]."""
        y_NBD, _ = self.lstm(jnp.swapaxes(x_BND, 0, 1))
        return jnp.swapaxes(y_NBD, 0, 1)

    def advance(self, x_ND: jax.Array, state: State) -> State:
        """Takes one step at N positions, with inputs [N, D] and states (h, c), [N, D] each; returns the next states."""
        return self.lstm(x_ND[None], state=state)[1]
