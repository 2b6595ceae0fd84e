"""Residual connections of the Transformer by depth: each sub-layer with and without the sum with its input.

Run:       ./launch.sh table experiments/transformer_residual.py
Hardware:  a CPU core; the results took 24 minutes on one that others shared.
Expected:  experiments/results/transformer_residual.md

Task, budget, rows and comparisons were fixed before any test text was translated. Piloted on the split "validation" with seed
100: exact match after 600 steps 84.6 % (residual 1), 4.6 % (plain 1), 58.3 % (residual 4) and 0.0 % (plain 4); with layer norm
before each sub-layer and 400 steps 46.7 % (residual 4) and 0.0 % (plain 4).
"""

from experiments.studies import rank_collapse

title = "The Transformer without residual connections, by depth"
source = (
    "Residual connections around each sub-layer: Section 3.1 of Vaswani et al. 2017 (arXiv 1706.03762). Attention without "
    "them: Dong et al. 2021 (arXiv 2103.03404). Dates, English to Korean, as Unicode CLDR writes them."
)
notes = (
    "The number is that of layers in the encoder and in the decoder each. Residual: LayerNorm(x + F(x)) around each sub-layer, "
    "as in the paper; plain: LayerNorm(F(x)). Without the sum, the target reaches a decoder's output only by way of the "
    "queries of attention to the source.\n"
    "All rows: the same tokens, updates, rate and schedule, which were not tuned for each; a deeper network learns more slowly "
    "in so few updates, so that depths are not compared with each other, only with and without the sum at the same depth.\n"
    "Exact match: the translation by greedy search is the reference, character by character. Spread: the share of the norm of "
    "the encoder's outputs that is left without their mean over the sentence; 0 says that all words have one vector. "
    "BLEU on characters. MACs: of a pair as long as the longest bucket."
)
base = "../configs/translate_quickstart.py"
_DONG = "attention without skip connections degenerates with depth, to outputs of rank one (Dong et al. 2021)"
rows = [
    {
        "label": f"{'residual' if residual else 'plain'} {depth}",
        "overrides": {"model.layers": depth, "model.residual": residual},
        "against": None if residual else f"residual {depth}",
    }
    for depth in (1, 2, 4)
    for residual in (True, False)
]
compare_to = None
findings = [
    {"text": f"{_DONG}; depth {depth}", "row": f"plain {depth}", "over": f"residual {depth}", "sign": -1} for depth in (1, 2, 4)
]
measures = {
    "spread": rank_collapse.measure_spread,
    "perplexity": "attention_jax.tables.measures:measure_perplexity",
    "bleu": "attention_jax.tables.measures:measure_bleu",
}
_DATES = ("date_full", "date_long", "date_medium", "date_numeric", "date_short", "date_weekday", "month_day", "year_month")
_SIZE = {
    "data.args.kind": _DATES,
    "data.vocab_size": 200,
    "data.bucket_lengths": 1,
    "model.features": 32,
    "model.hidden": 64,
    "schedule.learning_rate": 3e-3,
}
scales = {
    "quick": {
        "seeds": 4,
        "overrides": {
            **_SIZE,
            "total_steps": 600,
            "schedule.warmup_steps": 100,
            "evaluation.every_steps": 540,
            "checkpoint.every_steps": 600,
        },
    },
    "smoke": {
        "seeds": 1,
        "overrides": {
            **_SIZE,
            "total_steps": 4,
            "schedule.warmup_steps": 1,
            "evaluation.every_steps": 2,
            "checkpoint.every_steps": 4,
            "logging.every_steps": 2,
        },
    },
}
