"""The spread of a sentence's words in a Transformer, which is lost without shortcuts (Dong et al. 2021, arXiv 2103.03404).

Letters in names: N sentences, S words, D features.
"""

from typing import Any

import jax
import numpy as np

from attention_jax.data.text.batches import pad_rows
from attention_jax.data.text.tokenizer import EOS, PAD, load_tokenizer
from attention_jax.load import Run
from attention_jax.tasks import translation
from attention_jax.train.program import Program


def compute_spread(x_NSD: np.ndarray, words_NS: np.ndarray) -> float:
    """Returns the share of the vectors' norm that is left when their sentence's mean is taken away, mean over sentences.

    0 where all words of a sentence have one vector, and about 1 for many random ones; `words_NS` is False at padding.
    """
    shares = []
    for x_SD, words_S in zip(np.asarray(x_NSD, np.float64), words_NS):
        x_SD = x_SD[words_S]
        shares.append(np.linalg.norm(x_SD - x_SD.mean(0)) / np.linalg.norm(x_SD))
    return float(np.mean(shares))


def measure_spread(program: Program, run: Run, pairs: int = 128) -> dict[str, float]:
    """Measures, for a table, `compute_spread` of the encoder's output for the first sources of the evaluation split."""
    data, tokenizer = run.config.data, load_tokenizer(run.assets)
    rows = translation.source(run.config, data.eval_split)
    tokens = [[*tokenizer.encode(rows[i][0])[: data.max_length - 1], EOS] for i in range(min(pairs, len(rows)))]
    source = pad_rows(tokens, len(tokens), max(map(len, tokens)))
    encode: Any = jax.jit(lambda variables: run.model.apply(variables, source, method="encode"))
    untrained = jax.device_get(program.init(run.config.seed)).variables("params")
    found = {"untrained": encode(untrained), "trained": encode(run.variables)}
    return {f"spread of the encoder's output, {name}": compute_spread(x, source != PAD) for name, x in found.items()}
