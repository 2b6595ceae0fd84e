"""Self-attention with keys, queries and values in a convolutional network: at which stage, and where its queries look.

Run:       ./launch.sh table experiments/visual_attention.py
Hardware:  two CPU cores, less than 15 minutes.
Expected:  experiments/results/visual_attention.md

Rows, budget and comparisons at quick were fixed before any test image was evaluated; what was piloted is in cued_colour.py.
"""

from experiments.studies import query_maps, smoke

title = "Visual self-attention: the stage it stands at"
source = "The block of Zhang et al. 2019 (SAGAN, arXiv 1805.08318, Section 3) in a ResNet, after stage 1, 2 or 3."
notes = (
    "Published by SAGAN, for a generative network and so no column here: Fréchet inception distance 22.98 with "
    "attention on maps of 8x8, 18.28 of 32x32, 18.65 of 64x64 (Table 1, lower is better).\n"
    "gamma: the learnt factor of the attention branch, which starts at 0. Entropy: of softmax(QKᵀ) over the keys as a share "
    "of its largest value, 1 where every key counts alike. The plot shows rows of softmax(QKᵀ) for marked query "
    "points.\n"
    "The paper's: a ResNet-50 with the block at 224x224 pixels. Trained at quick: two coloured UCI digits at the ends of 10x32 "
    "pixels and between them a patch of the colour of the one to read, as in cued_colour.py, where a guess at which digit is "
    "meant is right in about half of the cases; one basic block in each of two stages of 16 and 32 filters, whose maps have "
    "10x32 and 5x16 positions. After stage 1 the block stands before convolutions, after stage 2 before the average over "
    "positions."
)
base = "../configs/cued_digits.py"


def _row(label: str, stages: tuple[int, ...], against: str | None = "no attention") -> dict:
    gate = {"gate": "self_attention", "gate_at": "stage", "gate_stages": stages} if stages else {}
    return {
        "label": label,
        "against": against,
        "overrides": {f"model.{name}": value for name, value in gate.items()},
        "network": {"name": "resnet50", **gate},
    }


rows = [
    _row("no attention", (), against=None),
    _row("stage 1", (1,)),
    _row("stage 2", (2,)),
    _row("stages 1 and 2", (1, 2)),
    _row("stage 3", (3,)),
]
compare_to = None  # each row is compared with its own `against`
findings = [
    {
        "text": "on larger maps, earlier in the network, self-attention is worth more than on the smallest (Zhang et al. 2019, "
        "Table 1, where 32x32 is better than 8x8)",
        "row": "stage 1",
        "over": "stage 2",
        "sign": 1,
    }
]
measures = {"queries": query_maps.measure_query_maps}
pictures = {"queries": query_maps.plot_query_maps}

scales = {
    "quick": {"seeds": 5, "rows": ["no attention", "stage 1", "stage 2"]},
    "smoke": {
        "seeds": 1,
        "overrides": {**smoke.CUED_DIGITS, "model.stage_sizes": (1, 1, 1), "model.widths": (8, 8, 16)},
    },
    "small": {"base": "../configs/cifar10.py", "seeds": 1, "overrides": {"total_epochs": 10.0}},
}
