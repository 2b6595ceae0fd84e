"""Layers over sequences: what each position sees, and that restricted attention is attention with a band and no more."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attention_jax.errors import UserError
from attention_jax.models.summary import summary
from experiments.studies.sequence_layers import Convolution, FullSelfAttention, Recurrent, RestrictedSelfAttention
from tests.helpers.blocks import close, drawn, numbers, quick

HEADS = dict(heads=2, features=6, key_size=3, value_size=4)


@pytest.mark.parametrize(
    ("length", "window"),
    [
        (12, 5),  # blocks that do not divide the length
        (5, 11),  # a window that sees everything
        (7, 1),  # nothing but itself
        (14, 7),  # complete blocks
    ],
)
def test_restricted_attention_is_attention_with_a_band(length, window):
    """Outputs, and gradients with respect to inputs and parameters, which are the same."""
    x, of_y = numbers("x", 2, length, 6), numbers("of_y", 2, length, 6)
    full, band = FullSelfAttention(**HEADS), RestrictedSelfAttention(**HEADS, window=window)
    variables, positions = drawn(full, x), jnp.arange(length)
    mask = (jnp.abs(positions[:, None] - positions) <= window // 2)[None, None]

    def result(layer: nn.Module, *mask: jax.Array):
        y, back = jax.vjp(lambda variables, x: layer.apply(variables, x, *mask), variables, x)
        return y, *back(of_y)

    close(*quick(lambda: (result(band), result(full, mask)))(), 1e-5)


def test_restricted_attention_multiplies_near_the_band_alone():
    n, d, r = 60, 8, 5
    layer = RestrictedSelfAttention(heads=2, features=d, key_size=4, value_size=4, window=r)
    assert summary(layer, (1, n, d)).macs == 4 * n * d * d + 2 * (2 * r - 1) * n * d


def sees(layers: list[nn.Module], length: int) -> np.ndarray:
    """[N, N] whether an output position has any gradient with respect to an input position, through a stack of layers."""
    x = numbers("x", 1, length, 3)
    variables = [drawn(layer, x) for layer in layers]

    def through(x: jax.Array) -> jax.Array:
        for layer, own in zip(layers, variables, strict=True):
            x = layer.apply(own, x)
        return x[0]

    return (np.abs(quick(jax.jacrev(through))(x)) > 0).any((1, 2, 4))


def band(length: int, reach: int) -> np.ndarray:
    return np.abs(np.subtract.outer(np.arange(length), np.arange(length))) <= reach


def test_what_a_position_sees():
    n, size = 31, dict(heads=1, features=3, key_size=3, value_size=3)
    np.testing.assert_array_equal(sees([FullSelfAttention(**size)], n), band(n, n))
    np.testing.assert_array_equal(sees([RestrictedSelfAttention(**size, window=7)], n), band(n, 3))
    np.testing.assert_array_equal(sees([Recurrent(3)], n), np.tri(n, dtype=bool))
    np.testing.assert_array_equal(sees([Convolution(3, 5)], n), band(n, 2))
    every_third = np.subtract.outer(np.arange(n), np.arange(n)) % 3 == 0
    np.testing.assert_array_equal(sees([Convolution(3, 5, dilation=3)], n), band(n, 6) & every_third)


@pytest.mark.parametrize(("width", "layers"), [(3, 3), (5, 2)])
def test_dilated_convolutions_see_a_power_of_the_width(width, layers):
    """Together width^layers positions without a gap, where no path leaves the sequence; contiguous ones far fewer."""
    n, reach = 31, (width**layers - 1) // 2
    dilated = sees([Convolution(3, width, dilation=width**i) for i in range(layers)], n)
    np.testing.assert_array_equal(dilated[reach:-reach], band(n, reach)[reach:-reach])
    contiguous = sees([Convolution(3, width)] * layers, n)
    np.testing.assert_array_equal(contiguous, band(n, layers * (width - 1) // 2))


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (RestrictedSelfAttention(**HEADS, window=4), "restricted attention: window=4 is not right: give an odd number"),
        (Convolution(6, 2), "convolution: width=2 is not right: give an odd number"),
    ],
)
def test_mistakes(layer, message):
    with pytest.raises(UserError, match=message):
        layer.init(jax.random.key(0), jnp.zeros((1, 5, 6)))
