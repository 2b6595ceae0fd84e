"""Hard alignments from attention: for each word of a translation, the word of its source that it looks at most.

Letters in shapes: B sentences, H heads, T target tokens, S source tokens.
"""

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from attention_jax import tree
from attention_jax.data.text.tokenizer import BOS, Tokenizer
from attention_jax.errors import UserError

CROSS = re.compile(r"(?:decoder_(\d+)/)?cross_attention/weights")  # module paths of cross-attention, with the layer's number


class CrossAttention(NamedTuple):
    """A layer of cross-attention and one of its heads, counted from 1; None takes the mean over all."""

    layer: int | None = None
    head: int | None = None


def attend_tokens(
    model: nn.Module, variables: dict[str, Any], source: jax.Array, target: jax.Array, chosen: CrossAttention
) -> tuple[jax.Array]:
    """[B, S], [B, T] -> ([B, T, S],) attention with which each target token is written, a row's sum 1."""
    seen = jnp.pad(target[:, :-1], ((0, 0), (1, 0)), constant_values=BOS)
    _, sown = model.apply(variables, source, seen, mutable=["attention"])
    calls = jax.tree.map(lambda each: each[-1], sown.get("attention", {}), is_leaf=lambda each: isinstance(each, tuple))
    found = {int(m[1] or 0): maps for path, maps in tree.flatten_by_path(calls).items() if (m := CROSS.fullmatch(path))}
    layers = [found[number] for number in sorted(found)]  # [B, H, T, S] each
    for name, number, most in (
        ("layer", chosen.layer, len(layers)),
        ("head", chosen.head, layers[0].shape[1] if layers else 0),
    ):
        if not most or (number or 1) > most:
            raise UserError(f"alignments: {name} {number or 1} of cross-attention, and this network has {most}.")
    picked = layers if chosen.layer is None else [layers[chosen.layer - 1]]
    weights = jnp.stack(picked).astype(jnp.float32).mean(0)
    return (weights.mean(1) if chosen.head is None else weights[:, chosen.head - 1],)


def number_words(tokenizer: Tokenizer, tokens: Sequence[int]) -> list[int]:
    """Returns the number, from 0, of each token's word in the decoded text, whose words are between blanks."""
    texts = [tokenizer.decode(tokens[: end + 1]) for end in range(len(tokens))]
    numbers = [max(0, len(text.split()) - 1) for text in texts]
    for i in range(len(tokens) - 2, -1, -1):  # a token that shows nothing yet belongs to the next one's word
        if texts[i].strip() == (texts[i - 1].strip() if i else ""):
            numbers[i] = numbers[i + 1]
    return numbers


def align_words(weights: np.ndarray, source_words: Sequence[int], target_words: Sequence[int]) -> list[tuple[int, int]]:
    """Returns (source word, target word) for each target word: the source word with most attention.

    The attention of a word is the mean over its tokens; a source word gets the sum over its own, the end symbol none.

    Args:
        weights: [T, S], of at least as many tokens as have words.
        source_words, target_words: results of `number_words`.
    """
    if not source_words or not target_words:
        return []
    by_word = np.zeros((max(target_words) + 1, max(source_words) + 1))
    np.add.at(by_word, np.ix_(target_words, source_words), weights[: len(target_words), : len(source_words)])
    by_word /= np.maximum(np.bincount(target_words), 1)[:, None]
    return [(int(by_word[word].argmax()), word) for word in sorted(set(target_words))]
