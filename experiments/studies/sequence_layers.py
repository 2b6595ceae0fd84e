"""Layers that map a sequence to one of the same length, [B, N, D] -> [B, N, D], each in its own way of joining positions.

They are the layer types of Table 1 of Vaswani et al. 2017; `analysis/complexity.py` measures them.

Letters in names: B examples, N positions, D features, H heads, K and V sizes of a head's keys and values; C queries of a
block, S keys that a block sees.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from attention_jax.errors import UserError
from attention_jax.nn.multihead import MultiHeadAttention, attend_heads
from attention_jax.nn.recurrent import LSTM, State


class SelfAttention(MultiHeadAttention):
    """Every position asks every position, itself included (Section 3.2.2)."""

    def __call__(self, x_BND: jax.Array, mask: jax.Array | None = None, train: bool = False) -> jax.Array:
        """[B, N, D] -> [B, N, features]; `mask` as in `attend_heads`."""
        return super().__call__(x_BND, x_BND, mask, train)


def band_mask(length: int, window: int) -> jax.Array:
    """[1, 1, N, N]: a position sees the `window` positions around it, which is odd."""
    positions = jnp.arange(length)
    return (jnp.abs(positions[:, None] - positions) <= window // 2)[None, None]


class RestrictedSelfAttention(MultiHeadAttention):
    """Every position asks the `window` positions around it, itself in their middle (Section 4, "restricted").

    Parameters and numbers are those of `SelfAttention` with `band_mask`; the products are only those near the band. A block
    of C neighbouring queries sees C + window - 1 keys, so that scores and sums take 2·(C + window - 1)·N·D multiply-adds.

    Attributes:
        window: r; odd.
        block: C; 1 multiplies the band and nothing else, N is full attention. By default r, for 2·(2r - 1)·N·D in products
            that are large enough for a matrix unit.
    """

    window: int = 1
    block: int | None = None

    def __call__(self, x_BND: jax.Array, train: bool = False) -> jax.Array:
        """[B, N, D] -> [B, N, features]. Raises UserError for an even window or no block."""
        if self.window < 1 or self.window % 2 == 0:
            raise UserError(f"restricted attention: window={self.window} is not right: give an odd number from 1.")
        block = self.window if self.block is None else self.block
        if block < 1:
            raise UserError(f"restricted attention: block={block} is not right: give a whole number from 1.")
        b, n, _ = x_BND.shape
        half, blocks = self.window // 2, -(-n // block)
        k_BNHK, v_BNHV = self.keys_and_values(x_BND, len(x_BND))
        q_BNHK = self.query(x_BND).reshape(b, n, self.heads, self.key_size)

        # Blocks lie side by side in the batch. The last one may have queries past the end, whose answers are cut off.
        q_BCHK = jnp.pad(q_BNHK, ((0, 0), (0, blocks * block - n), (0, 0), (0, 0)))
        q_BCHK = q_BCHK.reshape(b * blocks, block, self.heads, self.key_size)
        k_BSHK, v_BSHV = _seen(k_BNHK, block, half), _seen(v_BNHV, block, half)
        query_C, key_S = jnp.arange(block), jnp.arange(block + 2 * half) - half
        positions_S = jnp.arange(blocks)[:, None] * block + key_S
        mask = (jnp.abs(query_C[:, None] - key_S) <= half) & ((positions_S >= 0) & (positions_S < n))[:, None]
        mask = jnp.tile(mask[:, None], (b, 1, 1, 1))

        dropout = self.dropout if train else 0.0
        rng = self.make_rng("dropout") if dropout else None
        scale = self.key_size**-0.5 if self.scaled else 1.0
        y_BCHV, _ = attend_heads(q_BCHK, k_BSHK, v_BSHV, mask, scale, dropout, rng)
        return self.output(y_BCHV.reshape(b, blocks * block, self.heads * self.value_size)[:, :n])


def _seen(x_BNHK: jax.Array, block: int, half: int) -> jax.Array:
    """[B, N, H, K] -> [B · blocks, block + 2 · half, H, K]: each block with `half` positions to both sides, zero past the ends.

    By slices alone, because the gradient of a gather is a scatter, which is slow on every device.
    """
    b, n, h, k = x_BNHK.shape
    blocks = -(-n // block)
    parts = -(-(block + 2 * half) // block)  # neighbouring blocks that together cover what a block sees
    padded = jnp.pad(x_BNHK, ((0, 0), (half, (blocks + parts - 1) * block - half - n), (0, 0), (0, 0)))
    cut = padded.reshape(b, blocks + parts - 1, block, h, k)
    seen = jnp.concatenate([cut[:, i : i + blocks] for i in range(parts)], axis=2)[:, :, : block + 2 * half]
    return seen.reshape(b * blocks, block + 2 * half, h, k)


class Convolution(nn.Module):
    """1-d convolution with zeros past the ends.

    Attributes:
        features: of the output.
        width: k, the positions that an output sees; odd, so that it is in their middle.
        dilation: distance between them; 1 is contiguous. Layers with dilations 1, k, k², … see k^layers positions together
            (van den Oord et al. 2016, Kalchbrenner et al. 2016).
    """

    features: int
    width: int
    dilation: int = 1
    dtype: Any = None

    @nn.compact
    def __call__(self, x_BND: jax.Array, train: bool = False) -> jax.Array:
        """[B, N, D] -> [B, N, features]. Raises UserError for an even width."""
        if self.width < 1 or self.width % 2 == 0:
            raise UserError(f"convolution: width={self.width} is not right: give an odd number from 1.")
        pads = [(self.dilation * (self.width // 2),) * 2]
        conv = nn.Conv(self.features, (self.width,), kernel_dilation=self.dilation, padding=pads, dtype=self.dtype, name="conv")
        return conv(x_BND)


class Recurrent(nn.Module):
    """A forward LSTM: every position takes what its predecessor left.

    Attributes:
        features: of the input, the state and the output.
    """

    features: int
    dtype: Any = jnp.float32

    def setup(self) -> None:
        self.lstm = LSTM(self.features, self.features, dtype=self.dtype)

    def __call__(self, x_BND: jax.Array, train: bool = False) -> jax.Array:
        """[B, N, D] -> [B, N, D]."""
        y_NBD, _ = self.lstm(jnp.swapaxes(x_BND, 0, 1))
        return jnp.swapaxes(y_NBD, 0, 1)

    def advance(self, x_ND: jax.Array, state: State) -> State:
        """One step at N positions, each with its input [N, D] and a state (h, c), [N, D] each, of its own: the next states."""
        return self.lstm(x_ND[None], state=state)[1]
