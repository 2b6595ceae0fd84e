"""Encodings of positions, for layers that do not see the order of tokens."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from attention_jax.errors import UserError

_LAYOUT = {"sinusoidal": "interleaved", "sinusoidal_concatenated": "concatenated", "sinusoidal_marian": "marian"}
KINDS = (*_LAYOUT, "learned", "none")


def sinusoids(positions: jax.Array, features: int, layout: str = "interleaved") -> jax.Array:
    """[...] positions -> [..., d] float32, sine and cosine waves (Vaswani et al. 2017, Section 3.5).

    Args:
        positions: numbers from 0, integers or fractions.
        features: d; even.
        layout: "interleaved" is the paper's, PE(p, 2i) = sin(p / 10000^(2i/d)) and PE(p, 2i+1) = cos of the same;
            "concatenated" is tensor2tensor's, all sines before all cosines, with exponents i / (d/2 - 1);
            "marian" has the paper's exponents and all sines before all cosines (Marian, Hugging Face's port of it).
    """
    if features % 2 or features < 2:
        raise UserError(f"positions: sinusoids come in pairs, so features={features} must be an even number from 2.")
    pairs = features // 2
    exponents = np.arange(pairs) / (max(1, pairs - 1) if layout == "concatenated" else pairs)
    angles = jnp.asarray(positions, jnp.float32)[..., None] * jnp.asarray(10000.0**-exponents, jnp.float32)
    waves = jnp.sin(angles), jnp.cos(angles)
    if layout == "interleaved":
        return jnp.stack(waves, -1).reshape(*angles.shape[:-1], features)
    return jnp.concatenate(waves, -1)


class Positions(nn.Module):
    """Adds a term for each position to the embeddings.

    Attributes:
        kind: one of `KINDS`; see `sinusoids` for the layouts.
        features: size d of an embedding.
        max_length: rows of the learned table; sinusoids have no limit.
    """

    kind: str
    features: int
    max_length: int = 512

    def setup(self) -> None:
        if self.kind == "learned":
            init = nn.initializers.normal(self.features**-0.5)
            self.table = self.param("table", init, (self.max_length, self.features))

    def __call__(self, positions: jax.Array) -> jax.Array:
        """[...] integer positions -> [..., d]; a position past a learned table takes its last row."""
        if self.kind == "none":
            return jnp.zeros((*positions.shape, self.features))
        if self.kind == "learned":
            return jnp.asarray(self.table)[jnp.minimum(positions, self.max_length - 1)]
        return sinusoids(positions, self.features, _LAYOUT[self.kind])

    def check_length(self, length: int) -> None:
        """Raises UserError if a learned table has fewer positions than `length`."""
        if self.kind == "learned" and length > self.max_length:
            raise UserError(
                f"a sequence of {length} tokens is longer than the {self.max_length} positions that are learned: "
                "give model.max_length, or model.positions='sinusoidal', which has no limit."
            )
