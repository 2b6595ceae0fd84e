"""LSTM, LSTM with attention and Transformer by the length of the source: what a single vector can hold.

Run:       ./launch.sh table experiments/seq2seq_length.py
Hardware:  a CPU core; the results took 4 minutes on one that others shared.
           --scale=small wants Multi30k as configs/multi30k.py describes it, in the folder that the environment variable
           MULTI30K names, by default multi30k; its results took 82 minutes on a core that others shared.

Budget, rows and comparisons of the scale "quick" were fixed before any test example was evaluated. Piloted on the split
"validation" with seed 100, the LSTM alone: of texts of one to three dates 1.7 % are right after 600 updates, 1.7 % after 540.
"""

import functools
import os

from ml_collections import ConfigDict

from experiments.studies import lengths

title = "LSTM, LSTM with attention and Transformer by the length of the source"
source = (
    "After Sutskever et al. 2014 (arXiv 1409.3215, Figure 3), Bahdanau et al. 2014 (arXiv 1409.0473, Figure 2) and Luong et "
    "al. 2015 (arXiv 1508.04025, Figure 6); quick: one or two dates in a row, English to Korean, as Unicode CLDR writes them."
)
notes = (
    "All rows: the same tokens, batches, number of updates and shape of the schedule. The recurrent rows have a forget gate "
    "that starts open (forget_bias 1), gradients clipped to norm 1, and a peak rate of 0.005. Exact match: the translation by "
    "greedy search is the reference, character by character; a text of two dates is right when both are. The plot also "
    "has the share of next tokens that are right after the right ones, and BLEU (at quick on characters), for each range of "
    "lengths.\n"
    "Ranges hold about equally many of the evaluated pairs each. Updates are few and equal: a network that learns slowly, as "
    "the LSTM does, is compared early, not at its best. MACs: of a pair as long as the longest bucket."
)
base = "../configs/translate_quickstart.py"


def _lstm(config, name: str, rate: float = 5e-3):
    """Another network as wide and as deep as the config's; nothing else of the model's section is its own."""
    config = config.copy_and_resolve_references()
    fields = {field: config.model[field] for field in ("layers", "features", "dropout")}
    schedule = config.schedule
    peak = rate * (config.model.features * schedule.warmup_steps) ** 0.5 if schedule.name == "noam" else rate
    with config.unlocked(), config.ignore_type():
        config.model = ConfigDict({"name": name, "forget_bias": 1.0, **fields})
        schedule.learning_rate, config.optimizer.clip_norm = peak, 1.0
    return config


rows = [
    {"label": "LSTM", "pieces": (functools.partial(_lstm, name="lstm_seq2seq"),)},
    {"label": "LSTM + attention", "pieces": (functools.partial(_lstm, name="lstm_seq2seq_attention"),)},
    {"label": "Transformer"},
]
compare_to = "previous"
findings = [
    {
        "text": "one vector cannot hold long sentences, and attention keeps their quality (Bahdanau et al. 2014, Figure 2)",
        "row": "LSTM + attention",
        "over": "LSTM",
    },
]
measures = {"bleu": "attention_jax.tables.measures:measure_bleu", "lengths": lengths.measure_by_length}
pictures = {"lengths": lengths.plot_by_length}

_DATES = {
    "data.args.kind": ("month_day", "year_month", "month_day_weekday"),
    "data.args.join": (1, 2),
    "data.max_length": 64,
    "data.vocab_size": 150,
    "model.dropout": 0.0,
}
_MULTI30K = os.environ.get("MULTI30K", "multi30k")
scales = {
    "quick": {
        "seeds": 3,
        "overrides": {
            **_DATES,
            "model.features": 64,
            "total_steps": 600,
            "schedule.warmup_steps": 60,
            "evaluation.every_steps": 540,
        },
    },
    "smoke": {
        "seeds": 1,
        "overrides": {
            **_DATES,
            "model.features": 16,
            "model.layers": 1,
            "data.bucket_lengths": 1,
            "total_steps": 4,
            "schedule.warmup_steps": 1,
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
            "batch_size": 4096,
            "total_steps": 1000,
            "schedule.warmup_steps": 300,
            "schedule.learning_rate": 0.784,  # of noam: 0.004 · sqrt(128 · 300)
            "model.norm": "pre",  # with "post" this data is learned far more slowly: see configs/multi30k.py
            "evaluation.every_steps": 1000,
            "evaluation.translate": True,
            "checkpoint.every_steps": 500,
            "logging.tensorboard": False,
        },
    },
}
