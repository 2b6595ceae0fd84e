"""What an early layer can see: convolutions alone, BAM, and attention with keys, queries and values.

Run:       ./launch.sh table experiments/receptive_field.py
Hardware:  two CPU cores, less than 10 minutes.
"""

from experiments.studies import receptive_field

title = "What the first stage sees: convolutions, BAM, self-attention"
source = (
    "The effective receptive field of Luo et al. 2016 (arXiv 1701.04128), by gradients, of the middle position after stage 1 "
    "and what stands there: BAM (Park et al. 2018, arXiv 1807.06514) or self-attention (Zhang et al. 2019, arXiv 1805.08318)."
)
notes = (
    "Pixels seen: share of the image with any gradient. Effective field: pixels whose gradient exceeds 4.55 % of the "
    "largest. Beyond the convolutions: share of the gradient's sum from outside of what the same network sees without "
    "its gate. Means over 64 test images; features in evaluation mode.\n"
    "Self-attention starts as the identity (gamma = 0), so that before training it sees what the convolutions see. "
    "BAM's channel branch pools the complete map: it sees every pixel, but only as one sum.\n"
    "The paper's: a ResNet-50 with the module after stage 1 at 224x224 pixels. Trained at quick: a ResNet-8, one "
    "basic block in each of three stages of 8, 16 and 32 filters, on digits enlarged to 24x24 pixels; its first "
    "stage sees 7x7; reduction 4 in BAM, for its 8 channels."
)
base = "../configs/quickstart.py"


def _row(label: str, gate: str | None, **args: object) -> dict:
    """`args` are the gate's in both networks; BAM's reduction is the paper's 16 there and 4 in the small network."""
    where = {"gate": gate, "gate_at": "stage", "gate_stages": (1,)} if gate else {}
    small = {"reduction": 4, **args} if gate == "bam" else args
    return {
        "label": label,
        "against": None if gate is None else "convolutions only",
        "overrides": {
            **{f"model.{name}": value for name, value in where.items()},
            **{f"model.gate_args.{name}": value for name, value in small.items()},
        },
        "network": {"name": "resnet50", **where, "gate_args": args},
    }


rows = [
    _row("convolutions only", None),
    _row("BAM channel branch", "bam", spatial=False),
    _row("BAM spatial branch", "bam", channel=False),
    _row("BAM", "bam"),
    _row("self-attention", "self_attention"),
]
measures = {"receptive_field": receptive_field.measure_receptive_field}
pictures = {"fields": receptive_field.plot_receptive_fields}

_ENLARGED = {
    "data.image_shape": (24, 24, 1),
    "data.eval_resize": 24,
    "data.crop": "random_resized",
    "data.crop_scale": (0.7, 1.0),
}
scales = {
    "quick": {
        "seeds": 3,
        "overrides": {
            **_ENLARGED,
            "model.name": "resnet20",
            "model.widths": (8, 16, 32),
            "model.stage_sizes": (1, 1, 1),
            "total_epochs": 10.0,
            "evaluation.every_epochs": 5.0,
            "checkpoint.every_epochs": 10.0,
            "logging.tensorboard": False,
        },
    },
    "smoke": {
        "seeds": 1,
        "overrides": {
            **_ENLARGED,
            "data.image_shape": (16, 16, 1),
            "data.eval_resize": 16,
            "model.stage_sizes": (1, 1, 1),
            "total_steps": 4,
            "schedule.warmup_steps": 1,
            "evaluation.every_steps": 4,
            "checkpoint.every_steps": 4,
            "logging.every_steps": 2,
            "logging.tensorboard": False,
        },
    },
    "small": {"base": "../configs/cifar10.py", "seeds": 1, "overrides": {"total_epochs": 10.0}},
}
