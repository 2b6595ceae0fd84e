"""Number of layers, or steps of a recurrence, that a signal passes from one position of a sequence to another."""

from collections.abc import Callable, Iterable

import jax
import jax.numpy as jnp
import numpy as np

from attention_jax.errors import UserError
from experiments.studies.compiling import jit_quickly


def find_dependence(function: Callable[[jax.Array], jax.Array], inputs: np.ndarray) -> np.ndarray:
    """[N, N], True where a position of the output has a nonzero gradient with respect to a position of the input.

    Args:
        function: [N, D] -> [N, F].
        inputs: [N, D], at random: a gradient that is zero by chance would be missed.
    """

    def rows(x_ND: jax.Array) -> jax.Array:
        y_NF, back = jax.vjp(function, x_ND)
        # One random direction over features, so that their gradients do not cancel.
        direction_F = jnp.asarray(np.random.default_rng(1).normal(size=y_NF.shape[1]), y_NF.dtype)

        def row(position: jax.Array) -> jax.Array:
            (of_x_ND,) = back(jnp.zeros_like(y_NF).at[position].set(direction_F))
            return (of_x_ND != 0).any(-1)

        return jax.lax.map(row, jnp.arange(len(y_NF)), batch_size=16)  # all at once would be N³ for attention

    return np.asarray(jit_quickly(rows)(jnp.asarray(inputs, jnp.float32)))


def count_path_length(layers: Iterable[np.ndarray], wanted: np.ndarray, limit: int = 10_000) -> int:
    """Counts the layers until every wanted pair of positions is connected: the longest of all shortest paths.

    Args:
        layers: `find_dependence` [N, N] of the first layer, the second, …
        wanted: [N, N], (output, input) True where they must be connected in the end.

    Raises:
        UserError: they are not after `limit` layers, or after all.
    """
    reached = np.eye(len(wanted), dtype=np.float32)
    for count, layer in enumerate(layers, 1):
        reached = np.minimum(layer.astype(np.float32) @ reached, 1)
        if (reached > 0)[wanted].all():
            return count
        if count == limit:
            break
    raise UserError("path length: these layers never connect every wanted pair of positions.")
