"""BAM's ablations: its branches, how they are combined, its skip, reduction, dilation, and where it stands.

Run:       ./launch.sh table experiments/bam.py
Hardware:  a CPU core; half of the runs took 26 minutes on one that others shared.
Expected:  experiments/results/bam.md

Rows, budget and comparisons at quick were fixed before any test image was evaluated; what was piloted is in cued_arrow.py.
"""

import functools

from attention_jax.config import override
from experiments.studies import smoke

title = "BAM: branches, combination, skip, reduction, dilation, place"
source = (
    "After Park et al. 2018 (arXiv 1807.06514), whose ablations are on ResNet-50 and CIFAR-100. Published here: ImageNet's "
    "ResNet-50 as the CBAM paper prints it, and the README of the released code (Jongchan/attention-module)."
)
notes = (
    "Unless the row says otherwise: both branches, summed before the sigmoid, F + F · M(F), reduction 16, dilation 4, after "
    "stages 1, 2 and 3, batch normalisation at the end of each branch, as in the paper. Released code: the branches are "
    "multiplied, and the normalisation follows the hidden layers. Without the skip: F · M(F).\n"
    "The paper's networks are counted for CIFAR-100. Trained at quick: two white UCI digits at the ends of 10x32 pixels and an "
    "arrow to the one to read between them, as in cued_arrow.py, where a guess at which digit is meant is right in about half "
    "of the cases; one basic block in each of two stages of 16 and 32 filters, BAM after stage 2, where the map is averaged "
    "over positions, and reductions a sixteenth of those in the names, which leaves as many hidden channels as the paper's "
    "after stage 1, and dilations kept on maps of 5x16. Trained at small: a ResNet-10 of four stages of 32, 32, 64 and 64 "
    "filters."
)
base = "../configs/cued_digits.py"


def _put(config, at: str, stages: tuple[int, ...] | None, args: dict):
    """The paper's BAM, or as much of it as fits into the network of two stages that quick trains."""
    args, small = dict(args), len(config.model.get("stage_sizes", ())) == 2
    if small:
        args = {"fit_dilation": False, **args, "reduction": args.get("reduction", 16) // 16}
        stages = stages or ((2,) if at == "stage" else None)
    fields = {"gate": "bam", "gate_at": at, "gate_stages": stages, **{f"gate_args.{name}": args[name] for name in args}}
    return override(config, {f"model.{name}": value for name, value in fields.items()})


def _bam(
    label: str, at: str = "stage", stages: tuple[int, ...] | None = None, against: str = "BAM", published: float = 0, **args
) -> dict:
    """`args` are BAM's."""
    return {
        "label": label,
        "against": against,
        "published": {_ERROR: published} if published else {},
        "pieces": (functools.partial(_put, at=at, stages=stages, args=args),),
        "network": {**_PAPER, "gate": "bam", "gate_at": at, "gate_stages": stages, "gate_args": args},
    }


_ERROR = "ImageNet top-1 error %"
_PAPER = {"name": "resnet50", "stem": "cifar", "num_classes": 100}

rows = [
    {"label": "no attention", "published": {_ERROR: 24.56}, "network": _PAPER},
    _bam("BAM", against="no attention"),
    _bam("released code", published=23.14, combine="product", batch_norm="code", fit_dilation=False),
    _bam("without the skip", skip=False),
    _bam("channel branch only", spatial=False),
    _bam("spatial branch only", channel=False),
    _bam("product", combine="product"),
    _bam("maximum", combine="max"),
    *(_bam(f"reduction {r}", reduction=r) for r in (4, 8, 32)),
    *(_bam(f"dilation {d}", dilation=d) for d in (1, 2, 6)),
    *(_bam(f"after stage {stage} only", stages=(stage,)) for stage in (1, 2, 3)),
    _bam("in every block", at="block"),
]
compare_to = None  # each row is compared with its own `against`
findings = [
    {"text": f"{claim} (Park et al. 2018, Table 1)", "row": "BAM", "over": over, "sign": 1}
    for claim, over in (
        ("both branches are better than the channel branch", "channel branch only"),
        ("both branches are better than the spatial branch", "spatial branch only"),
        ("the sum is better than the product", "product"),
    )
]
network_shape = (1, 32, 32, 3)

_SMALL = {
    "model.name": "resnet18",
    "model.stem": "cifar",
    "model.stage_sizes": (1, 1, 1, 1),
    "model.widths": (32, 32, 64, 64),
}
scales = {
    "quick": {
        "seeds": 5,
        "overrides": {"data.args.key": "arrow"},
        "rows": [
            *("no attention", "BAM", "without the skip", "channel branch only", "spatial branch only", "product"),
            *("reduction 32", "after stage 1 only"),
        ],
    },
    "smoke": {
        "seeds": 1,
        "overrides": {
            **smoke.CUED_DIGITS,
            **_SMALL,
            "data.args": {"key": "arrow", "number": 40},
            "model.widths": (32, 32, 32, 32),
        },
    },
    "small": {
        "base": "../configs/cifar10.py",
        "seeds": 1,
        "overrides": {**_SMALL, "total_epochs": 10.0},
    },
    # ImageNet, where the released code has its numbers; the paper's ablations are on CIFAR-100.
    "paper": {"base": "../configs/imagenet_resnet50.py", "seeds": 1},
}

attention_of = "BAM"
