"""What an early layer can see: convolutions alone, BAM, and attention with keys, queries and values.

Run:       ./launch.sh table experiments/receptive_field.py
Hardware:  two CPU cores, less than 15 minutes.
Expected:  experiments/results/receptive_field.md

Rows, budget and comparisons at quick were fixed before any test image was evaluated; what was piloted is in cued_colour.py.
"""

from experiments.studies import receptive_field, smoke

title = "What the first stage sees: convolutions, depth, BAM, self-attention"
source = (
    "The effective receptive field of Luo et al. 2016 (arXiv 1701.04128), by gradients, of the middle position after stage 1 "
    "and what stands there: BAM (Park et al. 2018, arXiv 1807.06514) or self-attention (Zhang et al. 2019, arXiv 1805.08318)."
)
notes = (
    "Pixels seen: share of the image with any gradient. Effective field: pixels whose gradient exceeds 4.55 % of the "
    "largest. Beyond the convolutions: share of the gradient's sum from pixels that the same network does not see without its "
    "gate. Means over 64 test images; features in evaluation mode.\n"
    "Self-attention starts as the identity (gamma = 0), so that before training it sees what the convolutions see. "
    "BAM's channel branch pools the complete map: it sees every pixel, but only as one sum.\n"
    "The paper's: a ResNet-50 with the module after stage 1 at 224x224 pixels. Trained at quick: two coloured UCI digits at "
    "the ends of 10x32 pixels and between them a patch of the colour of the one to read, as in cued_colour.py, where a guess "
    "at which digit is meant is right in about half of the cases; one basic block in each of two stages of 16 and 32 filters, "
    "whose first stage sees 7x7 pixels, or two, where it sees 11x11; reduction 1 in BAM, for its 16 channels. Added branch: "
    "the convolutions of BAM's spatial branch, added and not multiplied."
)
base = "../configs/cued_digits.py"


def _row(label: str, gate: str | None, **args: object) -> dict:
    """`args` are the gate's in both networks; BAM's reduction is the paper's 16 there and 1 in the small network."""
    where = {"gate": gate, "gate_at": "stage", "gate_stages": (1,)} if gate else {}
    small = {"reduction": 1, **args} if gate and gate != "self_attention" else args
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
    {"label": "twice as deep", "against": "convolutions only", "overrides": {"model.stage_sizes": (2, 2)}},
    _row("added branch", "experiments.studies.controls.AddedBranch"),
    _row("BAM channel branch", "bam", spatial=False),
    _row("BAM spatial branch", "bam", channel=False),
    _row("BAM", "bam"),
    _row("self-attention", "self_attention"),
]
compare_to = None  # each row is compared with its own `against`
measures = {"receptive_field": receptive_field.measure_receptive_field}
pictures = {"fields": receptive_field.plot_receptive_fields}

scales = {
    "quick": {"seeds": 5, "rows": ["convolutions only", "twice as deep", "added branch", "BAM", "self-attention"]},
    "smoke": {"seeds": 1, "overrides": smoke.CUED_DIGITS},
    "small": {
        "base": "../configs/cifar10.py",
        "seeds": 1,
        "overrides": {"total_epochs": 10.0},
        "rows": ["convolutions only", "BAM channel branch", "BAM spatial branch", "BAM", "self-attention"],
    },
}
