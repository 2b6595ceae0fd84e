"""Relations of the middle word: sentences, Jacobians and attention with known answers."""

import jax.numpy as jnp
import numpy as np
import pytest

from experiments.studies.word_relations import (
    SENTENCE,
    compute_attention_shares,
    compute_gradient_shares,
    find_share_as_large,
    list_sentences,
    plot_relations,
)
from tests.analysis.test_plots import nothing_is_cut_off


def test_sentences_have_three_words_and_one_is_about_love():
    first, *others = list_sentences()
    assert first == SENTENCE and len(others) == 68
    assert all(len(text.split()) == 3 and "love" not in text for text in others) and "I like you" in others


def test_gradients_of_a_known_encoder():
    """Output 1 is token 0 once, itself three times and token 2 not at all."""
    table = jnp.asarray(np.random.default_rng(0).normal(size=(9, 5)), jnp.float32)

    def encode(tokens, table):
        x = table[tokens]
        return jnp.tanh(x * 0) + x.at[:, 1].set(x[:, 0] + 3 * x[:, 1])

    shares = compute_gradient_shares(encode, table, np.array([[4, 5, 6, 2], [8, 7, 3, 2]]))
    np.testing.assert_allclose(shares, np.tile([0.25, 0.75, 0, 0], (2, 1)), atol=1e-6)


def test_attention_is_the_middle_query_of_the_encoder():
    layers = np.zeros((2, 1, 2, 4, 4))  # [layer, N, H, T, S]
    layers[0, :, :, 1] = [[1, 0, 0, 0], [0, 0, 1, 0]]
    layers[1, :, :, 1] = [0.5, 0.5, 0, 0]
    maps = {f"encoder_{i}/self_attention/weights": layer for i, layer in enumerate(layers)}
    found = compute_attention_shares({**maps, "decoder_0/cross_attention/weights": np.ones((1, 2, 4, 4))})
    np.testing.assert_allclose(found, [[0.5, 0.25, 0.25, 0]])
    assert compute_attention_shares({"cross_attention/weights": np.ones((1, 1, 4, 4))}) is None


def test_a_sentence_is_unusual_when_few_others_are_as_much_related_to_both():
    shares = np.array([[0.2, 0.5, 0.3, 0], [0.9, 0, 0.1, 0], [0.2, 0.1, 0.7, 0], [0.3, 0, 0.4, 0.3], [0, 0, 1, 0]])
    assert find_share_as_large(shares) == pytest.approx(0.5)


def test_the_picture_marks_the_sentence():
    shares = np.random.default_rng(0).dirichlet(np.ones(4), 5)
    figure = plot_relations({"a": [{"attention": shares, "gradient": shares}], "b": [{"gradient": shares}]})
    assert [axes.get_title() for axes in figure.axes] == ["a: attention", "a: gradient", "b: gradient"]
    dots, marked = figure.axes[2].lines
    np.testing.assert_allclose(marked.get_xydata(), [100 * shares[0, [0, 2]]])
    np.testing.assert_allclose(dots.get_xydata(), 100 * shares[1:, [0, 2]])
    assert nothing_is_cut_off(figure)
