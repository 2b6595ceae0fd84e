"""Self-attention with keys, queries and values in a convolutional network: at which stage, and where its queries look.

Run:       ./launch.sh table experiments/visual_attention.py
Hardware:  two CPU cores, less than 10 minutes.
"""

from experiments.studies import query_maps

title = "Visual self-attention: the stage it stands at"
source = "The block of Zhang et al. 2019 (SAGAN, arXiv 1805.08318, Section 3) in a ResNet, after stage 1, 2 or 3."
notes = (
    "Published by SAGAN, for a generative network and so no column here: Fréchet inception distance 22.98 with "
    "attention on maps of 8x8, 18.28 of 32x32, 18.65 of 64x64 (Table 1, lower is better).\n"
    "gamma: the learnt factor before what attention adds, from 0. Entropy: of softmax(QKᵀ) over the keys as a share "
    "of its largest value, 1 where every key counts alike. The plot shows rows of softmax(QKᵀ) for marked query "
    "points.\n"
    "The paper's: a ResNet-50 with the block at 224x224 pixels. Trained at quick: a ResNet-14, two basic blocks in "
    "each of three stages of 16, 32 and 64 filters, whose maps have 64, 16 and 4 positions on the digits; small: a "
    "ResNet-20. On images of 8x8 the convolutions see nearly everything themselves, so that this table shows how the "
    "block behaves in each place, not what it is worth on large images."
)
base = "../configs/quickstart.py"


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
    _row("stage 3", (3,)),
    _row("stages 1 to 3", (1, 2, 3)),
]
measures = {"queries": query_maps.measure_query_maps}
pictures = {"queries": query_maps.plot_query_maps}

scales = {
    "quick": {
        "seeds": 3,
        "overrides": {
            "model.name": "resnet20",
            "model.stage_sizes": (2, 2, 2),
            "model.widths": (16, 32, 64),
            "total_epochs": 16.0,
            "evaluation.every_epochs": 4.0,
            "checkpoint.every_epochs": 16.0,
            "logging.tensorboard": False,
        },
    },
    "smoke": {
        "seeds": 1,
        "overrides": {
            "model.stage_sizes": (1, 1, 1),
            "model.widths": (8, 8, 16),
            "total_steps": 4,
            "schedule.warmup_steps": 1,
            "evaluation.every_steps": 2,
            "checkpoint.every_steps": 4,
            "logging.every_steps": 2,
            "logging.tensorboard": False,
        },
    },
    "small": {"base": "../configs/cifar10.py", "seeds": 1, "overrides": {"total_epochs": 10.0}},
}
