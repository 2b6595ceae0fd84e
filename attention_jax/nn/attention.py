"""Attention with keys, queries and values, and two blocks that add it to a convolutional network."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from attention_jax.errors import UserError
from attention_jax.nn.conv import Conv
from attention_jax.nn.gates import reduce_channels
from attention_jax.nn.norm import BatchNorm


def attend(query: jax.Array, key: jax.Array, value: jax.Array, scale: float = 1.0) -> tuple[jax.Array, jax.Array]:
    """[..., T, K], [..., S, K], [..., S, V] -> output [..., T, V] and weights [..., T, S] = softmax(scale · QKᵀ) over S.

    A soft dictionary look-up: with one-hot keys and scale -> infinity a query returns the value stored under its key.
    The softmax is computed in float32 whatever the inputs are. The Transformer has scale 1/sqrt(K) (Vaswani et al. 2017,
    equation 1), SAGAN 1.
    """
    logits = jnp.einsum("...tk,...sk->...ts", query, key, preferred_element_type=jnp.float32)
    weights = jax.nn.softmax(scale * logits, axis=-1)
    return jnp.einsum("...ts,...sv->...tv", weights.astype(value.dtype), value), weights


class SelfAttention(nn.Module):
    """The self-attention block of SAGAN (Zhang et al. 2019, Section 3): y = x + gamma · attention(x), gamma from 0.

    Every position asks (query) all positions (keys) for their features (values), so that the block sees the entire map.
    The defaults are the paper's; `official` names the released code's choices. The spectral normalisation of the
    released GAN belongs to its training and is not part of this block.

    Attributes:
        reduction: queries and keys have C / reduction channels.
        value_reduction: values have C / value_reduction; 8 in the paper, 2 in the released code.
        project: a last 1x1 convolution takes the values back to C; without it `value_reduction` is 1 (the first
            version of the paper).
        pool: keys and values are max-pooled pool x pool; 1 in the paper, 2 in the released code.
        scale: factor of the products of queries and keys; 1 in SAGAN.
        use_bias: True gives the 1x1 convolutions a bias.
        dtype: dtype of the computation; None follows the input and the parameters.
    """

    reduction: int = 8
    value_reduction: int = 8
    project: bool = True
    pool: int = 1
    scale: float = 1.0
    use_bias: bool = False
    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, H, W, C] -> [B, H, W, C].

        Sows into "attention": `weights` [B, H, W, h, w], for each query point the map over the key positions, with
        h = H // pool and w = W // pool.
        """
        b, height, width, channels = x.shape
        if not self.project and self.value_reduction != 1:
            raise UserError("SelfAttention.project=False adds the values to the input: give value_reduction=1.")
        if not 1 <= self.pool <= min(height, width):
            raise UserError(f"SelfAttention.pool={self.pool} is not right for a {height}x{width} map: give 1 to its side.")
        init = nn.initializers.glorot_uniform()
        layer = functools.partial(Conv, kernel_size=(1, 1), use_bias=self.use_bias, kernel_init=init, dtype=self.dtype)

        def flat(y: jax.Array) -> jax.Array:
            return y.reshape(b, -1, y.shape[-1])

        query = layer(reduce_channels(self, channels), name="query")(x)
        key = self._pooled(layer(reduce_channels(self, channels), name="key")(x))
        value = self._pooled(layer(reduce_channels(self, channels, "value_reduction"), name="value")(x))
        attended, weights = attend(flat(query), flat(key), flat(value), self.scale)
        if self.is_mutable_collection("attention"):
            self.sow("attention", "weights", weights.reshape(b, height, width, *key.shape[1:3]))

        attended = attended.reshape(b, height, width, -1)
        if self.project:
            attended = layer(channels, name="output")(attended)
        gamma = self.param("gamma", nn.initializers.zeros, ())
        return x + gamma.astype(attended.dtype) * attended

    def _pooled(self, x: jax.Array) -> jax.Array:
        return nn.max_pool(x, (self.pool, self.pool), (self.pool, self.pool)) if self.pool > 1 else x


class NonLocal(nn.Module):
    """The non-local block (Wang et al. 2018, Section 3.3): x + BN(Wz · softmax(QKᵀ) V), the embedded Gaussian.

    The scale of the normalisation starts at zero (Section 4.1), so that the block starts as the identity.

    Attributes:
        reduction: queries, keys and values have C / reduction channels; 2 in the paper, 8 in timm.
        scaled: True divides the products of queries and keys by sqrt(C), as timm does; the paper does not.
        norm: makes the normalisation after the last 1x1 convolution; a network passes its own.
        dtype: dtype of the computation; None follows the input and the parameters.
    """

    reduction: int = 2
    scaled: bool = False
    norm: Any = BatchNorm
    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, H, W, C] -> [B, H, W, C]. Sows `weights` [B, H, W, H, W] into "attention", as SelfAttention does."""
        b, height, width, channels = x.shape
        layer = functools.partial(Conv, kernel_size=(1, 1), use_bias=True, dtype=self.dtype)
        inner = reduce_channels(self, channels)
        query, key, value = (layer(inner, name=name)(x).reshape(b, -1, inner) for name in ("query", "key", "value"))
        attended, weights = attend(query, key, value, channels**-0.5 if self.scaled else 1.0)
        if self.is_mutable_collection("attention"):
            self.sow("attention", "weights", weights.reshape(b, height, width, height, width))
        attended = layer(channels, name="output")(attended.reshape(b, height, width, inner))
        return x + self.norm(scale_init=nn.initializers.zeros, name="norm")(attended)
