"""Next tokens from the past alone, and the Transformers that later tokens are hidden from or not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attention_jax.models.transformer import Transformer
from attention_jax.tasks.translation import shift_right
from experiments.studies.cheating import predict_from_past

SOURCE = np.array([[5, 6, 7, 2], [8, 9, 2, 0]], np.int32)
TARGET = np.array([[9, 8, 7, 2], [5, 2, 0, 0]], np.int32)


@pytest.fixture(scope="module")
def networks() -> dict[bool, tuple]:
    """{causal: (network, random weights)}."""
    sizes = {"vocab_size": 12, "layers": 1, "features": 8, "hidden": 8, "heads": 2, "dropout": 0.0}
    causal = Transformer(**sizes)
    shapes = jax.eval_shape(causal.init, jax.random.key(0), SOURCE, TARGET)
    rng = np.random.default_rng(0)
    weights = jax.tree.map(lambda x: rng.normal(scale=0.5, size=x.shape).astype(np.float32), shapes)
    return {True: (causal, weights), False: (causal.clone(causal=False), weights)}


def predict(network, weights, target):
    return jax.jit(predict_from_past, static_argnums=0)(network, weights, SOURCE, target)


def teach(network, weights, target):
    return jax.jit(network.apply)(weights, SOURCE, shift_right(jnp.asarray(target)))


def test_with_a_causal_mask_the_past_alone_is_what_training_gives(networks):
    network, weights = networks[True]
    found = predict(network, weights, TARGET)
    np.testing.assert_allclose(found, teach(network, weights, TARGET), rtol=1e-4, atol=1e-5)


def test_without_a_mask_each_prefix_is_decoded_by_itself(networks):
    network, weights = networks[False]
    found = predict(network, weights, TARGET)
    for t in (0, 2):
        alone = teach(network, weights, TARGET[:, : t + 1])  # all that training gives it ends with the prefix
        np.testing.assert_allclose(found[:, t], alone[:, t], rtol=1e-4, atol=1e-5)
    # With the complete target, training gives something else: there position t sees the token that it must say.
    later = TARGET.copy()
    later[0, 1:3] = 3
    assert np.abs(teach(network, weights, later) - teach(network, weights, TARGET))[0, 0].max() > 1e-3
    np.testing.assert_array_equal(predict(network, weights, later)[0, :2], found[0, :2])
