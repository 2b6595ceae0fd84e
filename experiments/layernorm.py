"""Layer normalisation after the residual sum, before the sub-layer, or nowhere, by learning rate and warm-up.

Run:       ./launch.sh table experiments/layernorm.py
Hardware:  a CPU core; the results took 5 minutes on one that others shared.
           --scale=small wants Multi30k as configs/multi30k.py describes it, in the folder that the environment variable
           MULTI30K names, by default multi30k.

Budget, rows and comparisons of the scale "quick" were fixed before any test example was evaluated; nothing was piloted.
"""

import os

title = "Layer normalisation after, before or without, by learning rate and warm-up"
source = (
    "After Vaswani et al. 2017 (arXiv 1706.03762), whose layers are normalised after the sum, and tensor2tensor, whose later "
    "ones are before the sub-layer; quick: English dates and their Korean translations."
)
notes = (
    "Four layers each in encoder and decoder; after the warm-up, a quarter of the updates, the rate falls to 0 along a "
    "cosine. A row is its peak rate and its warm-up. Few updates: early scores, not final ones. A row "
    "that fails has met a loss or gradient that is not finite. MACs: of a pair as long as the longest bucket."
)
base = "../configs/translate_quickstart.py"

_NORMS = ("post", "pre", "none")
_RATES = (5e-4, 2e-3)
_WARMUPS = {"without warm-up": 0.0, "with warm-up": 0.25}  # share of the run, which a scale's override of the length moves


def _warm(share: float, rate: float):
    def piece(config):
        config = config.copy_and_resolve_references()
        with config.unlocked():
            config.schedule.learning_rate = rate
            config.schedule.warmup_steps = int(share * config.total_steps)
        return config

    return piece


_AGAINST = {
    "post at 0.002 with warm-up": "post at 0.002 without warm-up",
    "pre at 0.002 without warm-up": "post at 0.002 without warm-up",
    "pre at 0.002 with warm-up": "pre at 0.002 without warm-up",
    "none at 0.002 with warm-up": "post at 0.002 with warm-up",
}
rows = [
    {
        "label": f"{norm} at {rate:g} {warmup}",
        "pieces": ("cosine_lr", _warm(share, rate)),
        "overrides": {"model.norm": norm},
        "against": _AGAINST.get(f"{norm} at {rate:g} {warmup}"),
    }
    for norm in _NORMS
    for rate in _RATES
    for warmup, share in _WARMUPS.items()
]
compare_to = None  # each row is compared with its own `against`
findings = [
    {
        "text": "with the normalisation after the sum the warm-up is essential (Xiong et al. 2020, arXiv 2002.04745)",
        "row": "post at 0.002 with warm-up",
        "over": "post at 0.002 without warm-up",
    },
    {
        "text": "without warm-up the normalisation before the sub-layer trains well, and after the sum it does not (the same)",
        "row": "pre at 0.002 without warm-up",
        "over": "post at 0.002 without warm-up",
    },
]
measures = {"perplexity": "attention_jax.tables.measures:measure_perplexity"}

_DEEP = {"model.layers": 4, "model.features": 64, "model.hidden": 128}
_UNTRANSLATED = {"evaluation.translate": False, "evaluation.headline": "token_accuracy"}
_MULTI30K = os.environ.get("MULTI30K", "multi30k")
scales = {
    "quick": {
        "seeds": 3,
        "rows": [*_AGAINST, "post at 0.002 without warm-up"],
        "overrides": {
            **_DEEP,
            **_UNTRANSLATED,
            "data.args.kind": ("date_full", "date_long", "date_medium", "date_weekday"),
            "data.vocab_size": 200,
            "batch_size": 256,
            "total_steps": 300,
            "evaluation.every_steps": 270,
        },
    },
    "smoke": {
        "seeds": 1,
        "overrides": {
            **_UNTRANSLATED,
            "model.features": 32,
            "data.bucket_lengths": 1,
            "total_steps": 4,
            "evaluation.every_steps": 4,
            "checkpoint.every_steps": 4,
            "logging.every_steps": 2,
        },
    },
    "small": {
        "base": "../configs/multi30k.py",
        "seeds": 1,
        "overrides": {
            "data.args.source": f"{_MULTI30K}/{{split}}.en.gz",
            "data.args.target": f"{_MULTI30K}/{{split}}.de.gz",
            "total_steps": 2000,
            "evaluation.every_steps": 500,
            "checkpoint.every_steps": 500,
            "logging.tensorboard": False,
        },
    },
}
