"""Why attention divides by √d_k: the softmax of random queries and keys, and Transformers trained with and without.

Run:       ./launch.sh table experiments/scaling.py
Hardware:  a CPU core; the results took 6 minutes on one that others shared.

Budget, rows and comparisons of the scale "quick" were fixed before any test example was evaluated; nothing was piloted.
"""

import functools

from experiments.studies import softmax_scaling

title = "Dividing by √d_k: entropy and gradient of the softmax"
source = (
    "Section 3.2.1 of Vaswani et al. 2017 (arXiv 1706.03762): products of large keys have variance d_k and push the softmax "
    "where its gradients are extremely small."
)
notes = (
    "All components of queries and keys are drawn from N(0, 1); n keys for each query. Entropy: mean over queries, as a share "
    "of log n, which is that of equal weights; 0 is a single key. Gradient: Frobenius norm of the softmax's Jacobian "
    "diag(p) - p pᵀ, with respect to what enters the softmax; the factor 1/√d_k before it is not included. Undivided, the mean "
    "falls slowly, because a few queries that waver between two keys keep a large gradient: the median shows the others.\n"
    "Trained: two layers each in encoder and decoder, 128 features, a single head, so that d_k alone says what the division "
    "does, on English dates and their Korean translations. Only queries and keys grow with "
    "d_k; values have 128 features in all rows. Entropy: of the trained network's attention on 128 pairs, mean over its "
    "queries, each as a share of the log of the number of keys that it sees. MACs: of a pair as long as the longest bucket."
)
base = "../configs/translate_quickstart.py"
computed = [
    {
        "label": f"d_k = {size}",
        "function": functools.partial(softmax_scaling.measure_random_softmax, size),
        "published": {"variance of q·k": size},
    }
    for size in (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
]
rows = [
    {
        "label": f"{'divided' if divided else 'not divided'} at d_k = {size}",
        "overrides": {"model.heads": 1, "model.key_size": size, "model.value_size": 128, "model.scaled_attention": divided},
        "against": None if divided else f"divided at d_k = {size}",
    }
    for size in (8, 64)
    for divided in (True, False)
]
compare_to = None  # each row is compared with its own `against`
findings = [
    {
        "text": "undivided products of large keys push the softmax where its gradients are extremely small (Vaswani et al. "
        "2017, Section 3.2.1)",
        "row": "not divided at d_k = 64",
        "over": "divided at d_k = 64",
        "sign": -1,
    },
]
measures = {
    "perplexity": "attention_jax.tables.measures:measure_perplexity",
    "entropy": softmax_scaling.measure_trained_softmax,
}
pictures = {"softmax": softmax_scaling.plot_softmax_scaling}

_UNTRANSLATED = {"evaluation.translate": False, "evaluation.headline": "token_accuracy"}
scales = {
    "quick": {
        "seeds": 3,
        "arguments": {"words": 64, "examples": 32},
        "overrides": {
            **_UNTRANSLATED,
            "data.args.kind": ("date_full", "date_long", "date_medium", "date_weekday"),
            "data.vocab_size": 200,
            "batch_size": 256,
            "total_steps": 300,
            "schedule.warmup_steps": 50,
            "evaluation.every_steps": 270,
        },
    },
    "smoke": {
        "seeds": 1,
        "arguments": {"words": 8, "examples": 2},
        "overrides": {
            **_UNTRANSLATED,
            "model.features": 32,
            "data.bucket_lengths": 1,
            "total_steps": 4,
            "schedule.warmup_steps": 1,
            "evaluation.every_steps": 4,
            "checkpoint.every_steps": 4,
            "logging.every_steps": 2,
        },
    },
}
