"""The second table: an LSTM, the same with attention, and a Transformer on the embedded English-Korean pairs.

Run:       ./launch.sh quickstart translation
Hardware:  a CPU core; the results took 7 minutes on one that others shared.
Expected:  experiments/results/quickstart_translation.md
"""

import functools

from ml_collections import ConfigDict

from experiments.studies import date_alignment

title = "LSTM, LSTM with attention and Transformer on dates, times, units, currencies and number words"
source = (
    "After Sutskever et al. 2014 (arXiv 1409.3215), Luong et al. 2015 (arXiv 1508.04025) and Vaswani et al. 2017 (arXiv "
    "1706.03762); English to Korean as Unicode CLDR and num2words write both, 1,018 held-out texts."
)
notes = (
    "Equal updates say which network learns fastest, not which is best in the end. The recurrent rows have what such networks "
    "are usually given: a forget gate that starts open (forget_bias 1), gradients clipped to norm 1, and a peak rate of their "
    "own, chosen from a few and not searched for. "
    "All rows: the same tokens, batches, number of updates and shape of the schedule, greedy search. Exact match: the "
    "translation is the reference, character by character. BLEU on characters, chrF: sacrebleu. MACs: of a pair as long as the "
    "longest bucket.\n"
    "Dates aligned: the share of the test split's dates in which every token of the Korean year, month and day gives its "
    "largest attention to a token of the same part of the English text; end symbols and punctuation would be misses. Layer "
    'and head (or the mean of a layer\'s heads) are chosen on the split "dev".'
)
base = "../configs/translate_quickstart.py"


def _lstm(config, name: str, rate: float):
    """Another network as wide and as deep as the config's; nothing else of the model's section is its own."""
    config = config.copy_and_resolve_references()
    fields = {field: config.model[field] for field in ("layers", "features", "dropout")}
    with config.unlocked(), config.ignore_type():
        config.model = ConfigDict({"name": name, "forget_bias": 1.0, **fields})
        config.schedule.learning_rate, config.optimizer.clip_norm = rate, 1.0
    return config


rows = [
    {"label": "LSTM", "pieces": (functools.partial(_lstm, name="lstm_seq2seq", rate=1e-2),)},
    {"label": "LSTM + attention", "pieces": (functools.partial(_lstm, name="lstm_seq2seq_attention", rate=8e-3),)},
    {"label": "Transformer", "against": "LSTM"},
]
measures = {
    "bleu": "attention_jax.tables.measures:measure_bleu",
    "chrf": "attention_jax.tables.measures:measure_chrf",
    "dates": date_alignment.measure_date_alignment,
}

scales = {
    "quick": {"seeds": 1, "overrides": {"total_steps": 1200, "evaluation.every_steps": 1200}},
    # Shows in seconds that everything runs; its numbers mean nothing.
    "smoke": {
        "seeds": 1,
        "overrides": {
            "data.bucket_lengths": 1,
            "total_steps": 4,
            "schedule.warmup_steps": 1,
            "evaluation.every_steps": 4,
            "checkpoint.every_steps": 4,
            "logging.every_steps": 2,
        },
    },
}

next_commands = [
    (
        "translate with a network of this table",
        'echo "I am a student" | ./launch.sh translate --workdir={workdir}/transformer/0',
    ),
    ("train the Transformer alone", "./launch.sh train --config=configs/translate_quickstart.py --workdir=runs/translate"),
]
