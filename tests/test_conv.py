"""Convolution on the smallest maps is the same convolution."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attention_jax.nn.conv import Conv, convolve

NHWC = ("NHWC", "HWIO", "NHWC")


@pytest.mark.parametrize("size", [(1, 1), (2, 2), (2, 4), (4, 3)])
@pytest.mark.parametrize(("kernel", "stride", "dilation"), [(1, 2, 1), (3, 1, 1), (3, 2, 1), (3, 1, 2)])
def test_outputs_and_gradients_are_those_of_xlas_convolution(size, kernel, stride, dilation):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(3, *size, 4)), jnp.float32)
    w = jnp.asarray(rng.normal(size=(kernel, kernel, 4, 5)), jnp.float32)
    pad = [(dilation * (kernel - 1) // 2,) * 2] * 2
    options = {"rhs_dilation": (dilation, dilation), "dimension_numbers": NHWC}

    def loss(function):
        return lambda x, w: jnp.square(function(x, w, (stride, stride), pad, **options)).sum()

    both = [jax.value_and_grad(loss(function), (0, 1)) for function in (convolve, jax.lax.conv_general_dilated)]
    ours, theirs = jax.jit(lambda x, w: [function(x, w) for function in both])(x, w)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-3)


def test_only_small_maps_become_a_product():
    def primitives(side, **fields):
        x = jnp.ones((1, side, side, 4))
        layer = Conv(4, (3, 3), **fields)
        variables = layer.init(jax.random.key(0), x)
        return {str(equation.primitive) for equation in jax.make_jaxpr(layer.apply)(variables, x).eqns}

    assert "conv_general_dilated" in primitives(3)
    assert "conv_general_dilated" not in primitives(2)
    assert "conv_general_dilated" in primitives(2, feature_group_count=2)
