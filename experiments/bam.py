"""BAM's ablations: its branches, how they are combined, reduction, dilation, and where it stands.

Run:       ./launch.sh table experiments/bam.py
Hardware:  two CPU cores, less than 20 minutes.
"""

title = "BAM: branches, combination, reduction, dilation, place"
source = (
    "After Park et al. 2018 (arXiv 1807.06514), whose ablations are on ResNet-50 and CIFAR-100. Published here: ImageNet's "
    "ResNet-50 as the CBAM paper prints it, and the README of the released code (Jongchan/attention-module)."
)
notes = (
    "Unless the row says otherwise: both branches, summed before the sigmoid, reduction 16, dilation 4, after stages "
    "1, 2 and 3, batch normalisation at the end of each branch, as in the paper. Released code: the branches are "
    "multiplied, and the normalisation follows the hidden layers.\n"
    "The paper's networks are counted for CIFAR-100. Trained at the scales quick and small: a ResNet-10, one basic "
    "block in each of four stages of 32, 32, 64 and 64 filters. At quick its maps have 8x8, 4x4 and 2x2 positions "
    "where BAM stands; there, dilations above 1 reach beyond the map, and reduction 32 leaves one or two hidden "
    "units. That table can show that every variant trains and what it costs; it cannot rank variants that differ by "
    'tenths of a point, see the column "detectable".'
)
base = "../configs/quickstart.py"


def _row(label: str, against: str | None = "BAM", published: dict | None = None, **fields: object) -> dict:
    """`args` are BAM's, the other fields the network's."""
    args = fields.pop("args", {})
    overrides = {f"model.{name}": value for name, value in fields.items()}
    return {
        "label": label,
        "against": against,
        "published": published or {},
        "overrides": {**overrides, **{f"model.gate_args.{name}": value for name, value in args.items()}},
        "network": {"name": "resnet50", "stem": "cifar", "num_classes": 100, **fields, "gate_args": args},
    }


def _bam(label: str, at: str = "stage", stages: tuple[int, ...] | None = None, **args: object) -> dict:
    return _row(label, gate="bam", gate_at=at, gate_stages=stages, args=args)


_ERROR = "ImageNet top-1 error %"
_CODE = {"combine": "product", "batch_norm": "code"}

rows = [
    _row("no attention", against=None, published={_ERROR: 24.56}),
    _row("BAM", against="no attention", gate="bam", gate_at="stage"),
    _row("released code", published={_ERROR: 23.14}, gate="bam", gate_at="stage", args=_CODE),
    _bam("channel branch only", spatial=False),
    _bam("spatial branch only", channel=False),
    _bam("product", combine="product"),
    _bam("maximum", combine="max"),
    *(_bam(f"reduction {r}", reduction=r) for r in (4, 8, 32)),
    *(_bam(f"dilation {d}", dilation=d) for d in (1, 2, 6)),
    *(_bam(f"after stage {stage} only", stages=(stage,)) for stage in (1, 2, 3)),
    _bam("in every block", at="block"),
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
        "seeds": 3,
        "overrides": {
            **_SMALL,
            "total_epochs": 16.0,
            "evaluation.every_epochs": 8.0,
            "checkpoint.every_epochs": 16.0,
            "logging.tensorboard": False,
        },
    },
    "smoke": {
        "seeds": 1,
        "overrides": {
            **_SMALL,
            "model.widths": (32, 32, 32, 32),
            "total_steps": 4,
            "schedule.warmup_steps": 1,
            "evaluation.every_steps": 2,
            "checkpoint.every_steps": 4,
            "logging.every_steps": 2,
            "logging.tensorboard": False,
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
