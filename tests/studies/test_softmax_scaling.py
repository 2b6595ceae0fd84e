"""The softmax of large keys, and what `experiments/scaling.py` says with it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.studies import softmax_scaling
from tests.analysis.test_plots import nothing_is_cut_off


def test_entropy_and_gradient_of_a_softmax():
    logits = np.random.default_rng(0).normal(size=(3, 5)) * [[1], [5], [50]]
    entropy, gradient = softmax_scaling.compute_softmax_statistics(logits)
    p = np.asarray(jax.nn.softmax(logits))
    np.testing.assert_allclose(entropy, -(p * np.log(np.maximum(p, 1e-30))).sum(-1), rtol=1e-4, atol=1e-6)
    jacobians = jax.vmap(jax.jacrev(jax.nn.softmax))(jnp.asarray(logits, jnp.float32))
    np.testing.assert_allclose(gradient, np.linalg.norm(jacobians, axis=(1, 2)), rtol=1e-4, atol=1e-6)
    entropy, gradient = softmax_scaling.compute_softmax_statistics(np.zeros((1, 8)))
    assert (entropy[0], gradient[0]) == pytest.approx((np.log(8), np.sqrt(7) / 8))


def test_division_keeps_the_softmax_as_it_is_with_one_component():
    """The claim of `experiments/scaling.py`."""
    small, large = (softmax_scaling.measure_random_softmax(size, words=16, examples=8) for size in (1, 256))
    assert large["variance of q·k"] == pytest.approx(256, rel=0.1)
    for name in ("entropy / log n, divided", "gradient, divided: median"):
        assert large[name] == pytest.approx(small[name], rel=0.2)
    assert large["entropy / log n, not divided"] < 0.2 * small["entropy / log n, not divided"]
    assert large["gradient, not divided: median"] < 0.2 * small["gradient, not divided: median"]
    figure = softmax_scaling.plot_softmax_scaling({"a": [small], "trained": [{"accuracy": 1.0}], "b": [large]})
    curves = {line.get_label(): line.get_xydata().tolist() for axes in figure.axes for line in axes.lines}
    assert curves["divided, median"] == [[1, small["gradient, divided: median"]], [256, large["gradient, divided: median"]]]
    assert nothing_is_cut_off(figure)


def test_entropy_of_attention_is_a_share_of_what_even_weights_have():
    even, single = np.tril(np.ones((4, 4))), np.eye(4)
    weights_NHTS = np.stack([even / even.sum(1, keepdims=True), single])[None]
    found = softmax_scaling.compute_relative_entropy(weights_NHTS, np.arange(1, 5)[None])
    assert found.shape == (1, 4, 2)
    np.testing.assert_allclose(found[0, 1:, 0], 1)  # the first query sees one key, whose log is 0
    np.testing.assert_allclose(found[0, 1:, 1], 0)
