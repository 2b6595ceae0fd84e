"""Recall by distance: LSTM, convolutions, restricted and full self-attention of about equal size look a key up in a sequence.

Run:       ./launch.sh table experiments/recall.py
Hardware:  two CPU cores, eleven minutes.
Expected:  experiments/results/recall.md; the scale small, with distances to 1,021 tokens, is for one GPU and was not run

Task, budget, rows and comparisons were fixed before any test sequence was evaluated. Piloted on the split "validation" with
seeds from 100, self-attention alone: with 64 features, batches of 128 and embeddings of single tokens 25 % right after 1,500
steps (seed 100); with the embedding of the token before, 32 features and batches of 64 all right from step 500 on (seed 100),
or 23 % after 1,500 (seed 101); with embeddings as large as the sinusoids, as here, at least 99.9 % from step 300 on (seeds 101
and 102). 300 steps of the LSTM with small embeddings (14 %, seed 100) were run for their cost.
"""

from ml_collections import ConfigDict

from attention_jax.config import override
from experiments.studies import recall

title = "Recall by distance: LSTM, convolutions, restricted and full self-attention"
source = (
    'Our own task, "a 5 … b 10 … c 1 … a ?": eight pairs of a key and a value in 66 tokens, filler between, and at the end the '
    "key that is asked for. Full against restricted self-attention and path lengths: Section 4 and Table 1 of Vaswani et al. "
    "2017 (arXiv 1706.03762)."
)
notes = (
    "Sequences are generated: 200,000 for training, 4,000 for the test. The distance is the number of tokens between the value "
    "and the question; the four ranges have two pairs and a quarter of the questions each. 16 keys, 16 values: guessing any "
    "value is right in 6.25 %, any value of the sequence in 12.5 % or little more.\n"
    "All rows: the same sequences, batches, updates, optimizer and schedule, and about 18,000 parameters; half of the features "
    "are the embedding of the token, half of the one before it. LSTM: two layers, forget gates that start open. Convolutions: "
    "causal, over two tokens each, eight with dilations 1 to 128, which see everything. Restricted self-attention: a window "
    "of 33 tokens, 16 to each side, in two layers: the question sees 16 tokens back directly, 32 through one between, and "
    "nothing that is further away. Rates were chosen for self-attention and not tuned for each row."
)
base = "../configs/recall.py"
_NETWORKS = "experiments.studies.recall"


def _convolutions(config: ConfigDict) -> ConfigDict:
    """As many as see the first token from the last; ten of 28 features have the parameters of eight of 32."""
    config = override(config, {"model.name": f"{_NETWORKS}.RecallConvolution"})
    long = config.data.args.get("edges", (64,))[-1] > 4**4
    return override(config, {"model.layers": 5, "model.features": 28}) if long else config


rows = [
    {"label": "LSTM", "overrides": {"model.name": f"{_NETWORKS}.RecallLSTM"}},
    {"label": "convolutions", "pieces": (_convolutions,), "against": "LSTM"},
    {"label": "restricted self-attention", "overrides": {"model.window": 33}, "against": "LSTM"},
    {"label": "self-attention", "against": "LSTM"},
]
compare_to = None
findings = [
    {
        "text": "shorter paths make long-range dependencies easier to learn: self-attention against recurrence (Vaswani et al. "
        "2017, Section 4)",
        "row": "self-attention",
        "over": "LSTM",
        "sign": 1,
    },
    {
        "text": "the same of full against restricted self-attention, whose paths are longer (Vaswani et al. 2017, Section 4)",
        "row": "self-attention",
        "over": "restricted self-attention",
        "sign": 1,
    },
]
measures = {"recall": recall.measure_recall}
pictures = {"recall": recall.plot_recall}
scales = {
    "quick": {"seeds": 5},
    # Distances to 1,021 tokens, for one GPU: not run.
    "small": {
        "seeds": 5,
        "overrides": {"data.args": {"edges": (4, 8, 16, 32, 64, 128, 256, 512, 1022), "pairs": 1}, "total_steps": 3000},
    },
    "smoke": {
        "seeds": 1,
        "overrides": {
            "batch_size": 4,
            "data.args": {"edges": (2, 4, 8), "pairs": 1, "keys": 4, "values": 4, "size": 16},
            "total_steps": 4,
            "schedule.warmup_steps": 1,
            "evaluation.every_steps": 2,
            "evaluation.batch_size": 8,
            "checkpoint.every_steps": 4,
            "logging.every_steps": 2,
        },
        "row_overrides": {"model.features": 8},
    },
}
