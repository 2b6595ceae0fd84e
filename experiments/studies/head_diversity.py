"""How differently the heads of a layer look: what more than one head is for (Vaswani et al. 2017, Section 3.2.2).

Letters in names: N pairs, H heads, T queries, S keys.
"""

import itertools
import re
from collections.abc import Iterator

import jax.numpy as jnp
import numpy as np

from attention_jax.analysis.attention_maps import attention_maps
from attention_jax.data.text import tokenizer as tokenizers
from attention_jax.data.text.batches import pad_rows
from attention_jax.data.text.pairs import open_pairs
from attention_jax.data.text.tokenizer import EOS, PAD
from attention_jax.load import Run
from attention_jax.tasks.translation import shifted
from attention_jax.train.program import Program

PLACES = {  # pattern of the modules' paths
    "encoder": r"encoder_\d+/self_attention/",
    "decoder": r"decoder_\d+/self_attention/",
    "cross": r"decoder_\d+/cross_attention/",
}


def jensen_shannon(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """[..., S], [..., S] distributions -> their Jensen-Shannon distance [...]: 0 where equal, 1 where disjoint.

    The root of the divergence with logarithms of base 2, which is a metric (Endres & Schindelin 2003).
    """
    mean = (p + q) / 2

    def divergence(a: np.ndarray) -> np.ndarray:
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(a > 0, a * np.log2(a / mean), 0.0).sum(-1)

    return np.sqrt(np.maximum(divergence(p) + divergence(q), 0) / 2)


def diversity(weights_NHTS: np.ndarray, asked_NT: np.ndarray) -> float:
    """The mean Jensen-Shannon distance of two heads' weights, over all pairs of heads and the queries that `asked` marks.

    nan for a single head.
    """
    heads = weights_NHTS.swapaxes(0, 1)[:, asked_NT]  # [H, queries, S]
    distances = [jensen_shannon(one, other).mean() for one, other in itertools.combinations(heads.astype(float), 2)]
    return float(np.mean(distances)) if distances else np.nan


def measure(program: Program, run: Run, pairs: int = 128) -> dict[str, float]:
    """A measure of tables: `diversity`, mean over layers, of the first pairs of the evaluation split.

    Asked are all tokens that are no padding and see more than one key, which in the decoder's self-attention leaves out the
    first. Columns "head diversity, encoder", "…, decoder" (self-attention) and "…, cross"; nan with a single head.
    """
    found = {}
    for place, arrays, asked_NT, _ in maps_by_place(run, pairs):
        found[f"head diversity, {place}"] = float(np.mean([diversity(array, asked_NT) for array in arrays]))
    return found


def maps_by_place(run: Run, pairs: int) -> Iterator[tuple[str, list[np.ndarray], np.ndarray, np.ndarray]]:
    """A Transformer's attention over the first pairs of the evaluation split, for each of `PLACES`.

    Gives: the place, the weights [N, H, T, S] of its layers, which queries [N, T] are no padding and see more than one key,
    and how many keys [N, T] each sees.
    """
    data, words = run.config.data, tokenizers.from_assets(run.assets)
    rows = open_pairs(data.source, data.eval_split, data.args.to_dict(), data.on_broken)
    rows = [rows[i] for i in range(min(pairs, len(rows)))]
    tokens = [[[*words.encode(text)[: data.max_length - 1], EOS] for text in side] for side in zip(*rows, strict=True)]
    source, target = (pad_rows(side, len(side), max(map(len, side))) for side in tokens)
    maps = attention_maps(run.model, run.variables, source, shifted(jnp.asarray(target)))
    for place, pattern in PLACES.items():
        asked = source if place == "encoder" else target
        lengths = (source != PAD).sum(1)[:, None]
        keys = 1 + np.arange(target.shape[1])[None] if place == "decoder" else lengths
        keys = np.broadcast_to(keys, asked.shape)
        arrays = [np.asarray(array) for path, array in maps.items() if re.match(pattern, path)]
        yield place, arrays, (asked != PAD) & (keys > 1), keys
