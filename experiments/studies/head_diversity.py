"""Differences between the heads of a layer, the reason for more than one (Vaswani et al. 2017, Section 3.2.2).

Letters in names: N pairs, H heads, T queries, S keys.
"""

import itertools
import re
from collections.abc import Iterator

import jax.numpy as jnp
import numpy as np
from scipy.special import rel_entr  # JAX brings SciPy

from attention_jax.analysis.attention_maps import attention_maps
from attention_jax.data.text.batches import pad_rows
from attention_jax.data.text.tokenizer import EOS, PAD, load_tokenizer
from attention_jax.load import Run
from attention_jax.tasks import translation
from attention_jax.tasks.translation import shift_right
from attention_jax.train.program import Program

_MODULES = {  # kind of attention: pattern of its modules' paths
    "encoder": r"encoder_\d+/self_attention/",
    "decoder": r"decoder_\d+/self_attention/",
    "cross": r"decoder_\d+/cross_attention/",
}


def compute_jensen_shannon(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """[..., S], [..., S] distributions -> their Jensen-Shannon distance [...]: 0 where equal, 1 where disjoint.

    The root of the divergence with logarithms of base 2, which is a metric (Endres & Schindelin 2003).
    """
    mean = (p + q) / 2
    divergence = (rel_entr(p, mean) + rel_entr(q, mean)).sum(-1) / np.log(2)
    return np.sqrt(np.maximum(divergence, 0) / 2)


def compute_head_diversity(weights_NHTS: np.ndarray, queries_NT: np.ndarray) -> float:
    """Returns the mean distance of two heads' weights over all pairs of heads and the marked queries; nan for a single head."""
    heads = weights_NHTS.swapaxes(0, 1)[:, queries_NT]  # [H, queries, S]
    pairs = itertools.combinations(heads.astype(float), 2)
    distances = [compute_jensen_shannon(one, other).mean() for one, other in pairs]
    return float(np.mean(distances)) if distances else np.nan


def measure_head_diversity(program: Program, run: Run, pairs: int = 128) -> dict[str, float]:
    """Measures, for a table, the head diversity of the first pairs of the evaluation split, mean over layers.

    Columns "head diversity, encoder", "…, decoder" (self-attention) and "…, cross"; none of attention with a single head.
    """
    return {
        f"head diversity, {kind}": float(np.mean([compute_head_diversity(weights, queries_NT) for weights in layers]))
        for kind, layers, queries_NT, _ in collect_attention(run, pairs)
        if all(weights.shape[1] > 1 for weights in layers)
    }


def collect_attention(run: Run, pairs: int) -> Iterator[tuple[str, list[np.ndarray], np.ndarray, np.ndarray]]:
    """Yields a Transformer's attention over the first pairs of the evaluation split: encoder, decoder, cross.

    Each with the weights [N, H, T, S] of its layers, True for the queries [N, T] that are no padding and see more than one
    key (the decoder's first sees one), and the number of keys [N, T] that each sees.
    """
    data, tokenizer = run.config.data, load_tokenizer(run.assets)
    rows = translation.source(run.config, data.eval_split)
    rows = [rows[i] for i in range(min(pairs, len(rows)))]
    tokens = [[[*tokenizer.encode(text)[: data.max_length - 1], EOS] for text in side] for side in zip(*rows, strict=True)]
    source, target = (pad_rows(side, len(side), max(map(len, side))) for side in tokens)
    maps = attention_maps(run.model, run.variables, source, shift_right(jnp.asarray(target)))
    for kind, pattern in _MODULES.items():
        queries = source if kind == "encoder" else target
        lengths = (source != PAD).sum(1)[:, None]
        keys = 1 + np.arange(target.shape[1])[None] if kind == "decoder" else lengths
        keys = np.broadcast_to(keys, queries.shape)
        layers = [np.asarray(array) for path, array in maps.items() if re.match(pattern, path)]
        yield kind, layers, (queries != PAD) & (keys > 1), keys
