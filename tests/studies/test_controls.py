"""The blocks without attention that gates are compared with."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import attention_jax as aj
from attention_jax.nn.bam import BAM
from attention_jax.nn.norm import BatchNorm
from experiments.studies import controls


@pytest.fixture(scope="module")
def features():
    return jax.random.normal(jax.random.key(0), (2, 20, 20, 8))


def test_the_added_mean_is_the_same_everywhere(features):
    gate = controls.AddedMean()
    y, variables = gate.init_with_output(jax.random.key(1), features)
    kernel, bias = (np.asarray(variables["params"]["Dense_0"][name]) for name in ("kernel", "bias"))
    expected = features + (np.asarray(features).mean((1, 2)) @ kernel + bias)[:, None, None]
    np.testing.assert_allclose(y, expected, atol=1e-5)


def test_the_added_branch_sees_as_far_as_the_spatial_branch_of_bam_and_adds(features):
    norm = functools.partial(BatchNorm, True)
    gate = controls.AddedBranch(norm, reduction=2)
    variables = gate.init(jax.random.key(1), features)
    seen = jax.grad(lambda x: gate.apply(variables, x)[0, 10, 10].sum())(features)[0]
    rows = np.flatnonzero(np.abs(np.asarray(seen)).sum((1, 2)))
    assert (rows.min(), rows.max()) == (2, 18)  # two convolutions of dilation 4: eight positions to each side
    zero = jax.tree.map(jnp.zeros_like, variables["params"])
    np.testing.assert_array_equal(gate.apply({**variables, "params": zero}, features), features)


def test_the_added_branch_costs_about_as_much_as_bam():
    shape = (1, 10, 32, 16)
    norm = functools.partial(BatchNorm, True)
    added, gate = aj.summary(controls.AddedBranch(norm, reduction=4), shape), aj.summary(BAM(4, norm=norm), shape)
    assert added.macs == pytest.approx(gate.macs, rel=0.2)
