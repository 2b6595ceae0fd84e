"""Variations of the Transformer: heads, key size, size, regularisation, positions (Vaswani et al. 2017, Table 3).

Run:       ./launch.sh table experiments/transformer_variations.py
Hardware:  a CPU core; the results took 9 minutes on one that others shared.
           --scale=small wants Multi30k as configs/multi30k.py describes it, in the folder that the environment variable
           MULTI30K names, by default multi30k.

Budget, rows and comparisons of the scale "quick" were fixed before any test example was evaluated. Piloted on the split
"validation" with seed 100, base alone: with the normalisation after the sum and batches of 1,024 tokens 90 % of the next tokens
right after 300 updates; with it before the sub-layer, batches of 256 tokens and twice the rate 93 % after 250 and 98.6 % after
500 updates.
"""

import functools
import os

from attention_jax.config import override
from experiments.studies import head_diversity

title = "Variations of the Transformer"
source = "After Vaswani et al. 2017 (arXiv 1706.03762), Table 3: WMT'14 English to German, newstest2013."
notes = (
    "Published: perplexity a word piece, BLEU, and millions of parameters; base and all rows but big after 100,000 steps, big "
    "after 300,000. A row has base's fields but for those in its name. The paper's networks are counted for 37,000 tokens and "
    "a pair of 32 and 32. The published counts agree with about 41,000 tokens, those of big with 36,000; the paper says about "
    "37,000.\n"
    "Trained at quick and small: networks with an eighth of the paper's d_model, d_ff, d_k and d_v, half its layers, and its "
    "heads, dropout and label smoothing; so rows A have 64, 16, 4 and 2 features a head. At quick eight of the twenty rows, "
    "on English dates and their Korean translations, one learning rate for all, normalised before each sub-layer, with which "
    "base learns most of it in this budget; the paper's networks are normalised after the sum. Perplexities of rows with and "
    "without label smoothing compare as in the paper: the loss in evaluation is never smoothed.\n"
    "BLEU: by greedy search, of characters at quick and of the byte pairs' words at small, where the paper's is of words.\n"
    "Head diversity: mean Jensen-Shannon distance of two heads' attention, 0 for equal and 1 for disjoint ones, over all pairs "
    "of heads, layers, and words of 128 pairs."
)
base = "../configs/translate_quickstart.py"

_BASE = {"layers": 6, "features": 512, "hidden": 2048, "heads": 8, "dropout": 0.1}
_COLUMNS = ("perplexity, newstest2013", "BLEU, newstest2013", "params x 10⁶")


def _sized(config, network: dict, smoothing: float, steps: int):
    """The network of a row, as much smaller than the paper's as the scale's base is smaller than the paper's."""
    width, depth = config.model.features / _BASE["features"], config.model.layers / _BASE["layers"]
    shares = {"layers": depth, **dict.fromkeys(("features", "hidden", "key_size", "value_size"), width)}
    fields = {f"model.{name}": int(value * shares[name]) if name in shares else value for name, value in network.items()}
    length = {"total_steps": steps} if width == 1 else {}
    over = {"loss.smoothing_over": "others"} if smoothing and width != 1 else {}  # as in the committed tables
    return override(config, {**fields, "loss.label_smoothing": smoothing, **over, **length})


def _row(label: str, published: tuple, smoothing: float = 0.1, steps: int = 100_000, **fields: object) -> dict:
    """Published: perplexity, BLEU, millions of parameters."""
    network = {**_BASE, **fields}
    return {
        "label": label,
        "published": {name: cell for name, cell in zip(_COLUMNS, published, strict=True) if cell is not None},
        "network": {"name": "transformer_base", **network},
        "pieces": (functools.partial(_sized, network=network, smoothing=smoothing, steps=steps),),
    }


rows = [
    _row("base", (4.92, 25.8, 65)),
    _row("A: 1 head", (5.29, 24.9, None), heads=1),
    _row("A: 4 heads", (5.00, 25.5, None), heads=4),
    _row("A: 16 heads", (4.91, 25.8, None), heads=16),
    _row("A: 32 heads", (5.01, 25.4, None), heads=32),
    _row("B: d_k 16", (5.16, 25.1, 58), key_size=16, value_size=64),
    _row("B: d_k 32", (5.01, 25.4, 60), key_size=32, value_size=64),
    _row("C: 2 layers", (6.11, 23.7, 36), layers=2),
    _row("C: 4 layers", (5.19, 25.3, 50), layers=4),
    _row("C: 8 layers", (4.88, 25.5, 80), layers=8),
    _row("C: d_model 256", (5.75, 24.5, 28), features=256),
    _row("C: d_model 1024", (4.66, 26.0, 168), features=1024),
    _row("C: d_ff 1024", (5.12, 25.4, 53), hidden=1024),
    _row("C: d_ff 4096", (4.75, 26.2, 90), hidden=4096),
    _row("D: dropout 0", (5.77, 24.6, None), dropout=0.0),
    _row("D: dropout 0.2", (4.95, 25.5, None), dropout=0.2),
    _row("D: label smoothing 0", (4.67, 25.3, None), smoothing=0.0),
    _row("D: label smoothing 0.2", (5.47, 25.7, None), smoothing=0.2),
    _row("E: learned positions", (4.92, 25.7, None), positions="learned"),
    _row("big", (4.33, 26.4, 213), steps=300_000, features=1024, hidden=4096, heads=16, dropout=0.3),
]
network_shape = ((1, 32), (1, 32))
compare_to = "baseline"
_SECTION = "(Vaswani et al. 2017, Section 6.2)"
findings = [
    {"text": f"a single head is worse {_SECTION}", "row": "A: 1 head", "over": "base", "sign": -1},
    {"text": f"quality also drops off with too many heads {_SECTION}", "row": "A: 32 heads", "over": "base", "sign": -1},
    {"text": f"reducing the key size d_k hurts quality {_SECTION}", "row": "B: d_k 16", "over": "base", "sign": -1},
    {"text": f"bigger models are better {_SECTION}", "row": "C: 2 layers", "over": "base", "sign": -1},
    {"text": f"dropout is very helpful in avoiding over-fitting {_SECTION}", "row": "D: dropout 0", "over": "base", "sign": -1},
    {
        "text": "label smoothing hurts perplexity, but improves accuracy and BLEU (Vaswani et al. 2017, Section 5.4)",
        "row": "D: label smoothing 0",
        "over": "base",
        "sign": -1,
    },
]
published_order = {"BLEU, newstest2013": 1}
measures = {
    "perplexity": "attention_jax.tables.measures:measure_perplexity",
    "bleu": "attention_jax.tables.measures:measure_bleu",
    "heads": head_diversity.measure_head_diversity,
}

_SMALL = {**_BASE, "layers": 3, "features": 64, "hidden": 256}
_SMALL_FIELDS = {f"model.{name}": value for name, value in _SMALL.items()}
_MULTI30K = os.environ.get("MULTI30K", "multi30k")
scales = {
    "quick": {
        "seeds": 3,
        "rows": [
            *("base", "A: 1 head", "A: 32 heads", "B: d_k 16", "C: 2 layers"),
            *("D: dropout 0", "D: label smoothing 0", "E: learned positions"),
        ],
        "overrides": {
            **_SMALL_FIELDS,
            "model.norm": "pre",
            "data.args.kind": ("date_full", "date_long", "date_medium", "date_weekday"),
            "data.vocab_size": 200,
            "batch_size": 256,
            "total_steps": 400,
            "schedule.learning_rate": 4e-3,
            "schedule.warmup_steps": 50,
            "evaluation.every_steps": 360,
            "evaluation.translate": False,
            "evaluation.headline": "token_accuracy",
        },
    },
    "smoke": {
        "seeds": 1,
        "overrides": {
            **_SMALL_FIELDS,
            "model.layers": 1,
            "data.bucket_lengths": 1,
            "total_steps": 4,
            "schedule.warmup_steps": 1,
            "evaluation.every_steps": 4,
            "evaluation.translate": False,
            "evaluation.headline": "token_accuracy",
            "checkpoint.every_steps": 4,
            "logging.every_steps": 2,
        },
    },
    "small": {
        "base": "../configs/multi30k.py",
        "seeds": 1,
        "overrides": {
            **_SMALL_FIELDS,
            "data.args.source": f"{_MULTI30K}/{{split}}.en.gz",
            "data.args.target": f"{_MULTI30K}/{{split}}.de.gz",
            "total_steps": 3000,
            "evaluation.every_steps": 1000,
            "checkpoint.every_steps": 1000,
            "logging.tensorboard": False,
        },
    },
    # The paper's networks, one of which takes days on an accelerator.
    "paper": {
        "base": "../configs/wmt14_transformer.py",
        "seeds": 1,
        "overrides": {**{f"model.{name}": value for name, value in _BASE.items()}, "evaluation.translate": True},
    },
}
