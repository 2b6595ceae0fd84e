"""The decoder's causal mask: translators that see later target tokens in training against those that do not.

Run:       ./launch.sh table experiments/causal.py
Hardware:  a CPU core; the results took 4 minutes on one that others shared.
Expected:  experiments/results/causal.md

Task, budget, rows and comparisons were fixed before any test text was translated. Piloted on the split "validation" with seed
100, both rows: 600 steps on dates alone, where both have 100.0 % of the next tokens right and nothing is left to rise; and what
is here (97.6 and 99.6 %; exact match 81.4 and 0.0 %).
"""

from experiments.studies import cheating

title = "The decoder's causal mask in training"
source = (
    "Section 3.2.3 of Vaswani et al. 2017 (arXiv 1706.03762): what comes later in the target is masked, to preserve the "
    "auto-regressive property. Number words, units and currencies, English to Korean, as num2words and Unicode CLDR write them."
)
notes = (
    "The two rows have the same network, weights to start from, tokens and updates; without the mask every target position "
    "attends to all others in training, also to the one that holds the token it must predict.\n"
    "Exact match: the translation by greedy search is the reference, character by character. Search has no later tokens: it "
    "makes one at a time, with the keys and values of those before in a cache, and is the same in both rows.\n"
    "Reference given: next tokens as in the loss, each with the mask of its row; there the second row reads the answer, so "
    "its numbers do not measure translation. Past alone: next tokens of the reference, predicted from the right tokens before "
    "them without a cache, so that these tokens see each other as they did in training; with a causal mask it equals the "
    "column before. Exact match from the past alone is that of a greedy search without a cache, by tokens.\n"
    "BLEU on characters. MACs: of a pair as long as the longest bucket."
)
base = "../configs/translate_quickstart.py"
rows = [
    {"label": "causal mask"},
    {"label": "no causal mask in training", "overrides": {"model.causal": False}},
]
compare_to = "baseline"
findings = [
    {
        "text": "a decoder must not see later positions in training (Vaswani et al. 2017, Section 3.2.3)",
        "row": "no causal mask in training",
        "over": "causal mask",
        "sign": -1,
    },
]
measures = {"cheating": cheating.measure_cheating, "bleu": "attention_jax.tables.measures:measure_bleu"}
_SIZE = {
    "data.args.kind": ("number_words", "unit", "currency"),
    "data.vocab_size": 400,
    "data.bucket_lengths": 1,
    "model.features": 64,
    "model.hidden": 128,
    "schedule.learning_rate": 3e-3,
}
scales = {
    "quick": {
        "seeds": 5,
        "overrides": {
            **_SIZE,
            "total_steps": 500,
            "schedule.warmup_steps": 50,
            "evaluation.every_steps": 450,
            "checkpoint.every_steps": 500,
        },
    },
    "smoke": {
        "seeds": 1,
        "overrides": {
            **_SIZE,
            "model.features": 16,
            "model.layers": 1,
            "total_steps": 4,
            "schedule.warmup_steps": 1,
            "evaluation.every_steps": 2,
            "checkpoint.every_steps": 4,
            "logging.every_steps": 2,
        },
    },
}
