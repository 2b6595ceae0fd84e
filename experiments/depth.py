"""Deeper is better until it is not: plain and residual networks of 8 to 56 layers, and one 5x5 convolution against two 3x3.

Run:       ./launch.sh table experiments/depth.py
Hardware:  a CPU core, less than 15 minutes.
Expected:  experiments/results/depth.md

Task, budget, rows and comparisons were fixed before any test image was evaluated. Piloted on the split "validation" (119
images), seed 100, in %: with 2, 4 and 8 filters plain 8 93.3, plain 20 59.7, residual 8 84.9, residual 20 88.2; with 4, 8 and
16, as here, plain 8 95.8, plain 14 92.4, residual 8 96.6, residual 20 100.0, residual 56 96.6. Units of 7 features: one unit,
as here, of two 3x3 95.0, of one 5x5 89.9; two units 98.3 and 99.2; two units of two 3x3 with 4 features 88.2. On cluttered
digits of 16x16 pixels two units of two 3x3 had 27.0 after 600 steps of 64 images.
"""

from experiments.studies import depth

title = "Depth: plain and residual networks of 8 to 56 layers, and two 3x3 convolutions for one 5x5"
source = (
    "He et al. 2016 (arXiv 1512.03385), Sections 1 and 4.2: deeper plain networks have a higher training error; Simonyan & "
    "Zisserman 2015 (arXiv 1409.1556), Section 2.3: two 3x3 convolutions see as much as one 5x5, with one more non-linearity "
    "and fewer parameters."
)
notes = (
    "Published: test error on CIFAR-10 of residual networks of the paper's width (Table 6); its plain networks are in a "
    "figure. Trained: a quarter of the paper's width, 4, 8 and 16 filters, so that a shallow network lacks capacity; batch "
    "normalisation everywhere. A network of n layers has (n - 2)/6 blocks in each of three stages.\n"
    "Reasons for depth, one by one, in plain networks at one resolution: a 3x3 stem and a unit of 7 features that sees 5x5. "
    "Two 3x3 against one 5x5: a ReLU more between them, and 18 in place of 25 weights for each pair of features. Without that "
    "ReLU, only the weights are fewer; one 5x5 with 6 features has about as many weights as two 3x3 with 7."
)
base = "../configs/quickstart.py"

_DEPTHS = (8, 20, 32, 56)
_PUBLISHED = {20: 8.75, 32: 7.51, 56: 6.97}
_NETWORK = "experiments.studies.depth.KernelNet"


def _row(kind: str, layers: int, before: int | None) -> dict:
    return {
        "label": f"{kind} {layers}",
        "against": f"{kind} {before}" if before else None,
        "overrides": {
            "model.name": "resnet20",
            "model.stage_sizes": ((layers - 2) // 6,) * 3,
            "model.widths": (4, 8, 16),
            "model.residual": kind == "residual",
        },
        "published": {"CIFAR-10 test error %": _PUBLISHED[layers]} if kind == "residual" and layers in _PUBLISHED else {},
    }


def _unit(label: str, unit: str, features: int = 7, against: str | None = "one 5x5") -> dict:
    fields = {"name": _NETWORK, "unit": unit, "features": features}
    return {"label": label, "against": against, "overrides": {f"model.{name}": value for name, value in fields.items()}}


rows = [
    *(_row(kind, *pair) for kind in ("plain", "residual") for pair in zip(_DEPTHS, (None, *_DEPTHS))),
    _unit("one 5x5", "5x5", against=None),
    _unit("two 3x3", "3x3"),
    _unit("two 3x3 without ReLU between", "3x3 linear", against="two 3x3"),
    _unit("one 5x5 with 6 features", "5x5", features=6, against="two 3x3"),
]
compare_to = None  # each row is compared with its own `against`
findings = [
    {"text": text, "row": row, "over": over, "sign": sign}
    for text, row, over, sign in (
        (
            "a deeper residual network is better, from 20 to 56 layers (He et al. 2016, Table 6)",
            "residual 56",
            "residual 20",
            1,
        ),
        ("a deeper plain network is worse, from 20 to 56 layers (He et al. 2016, Figure 1)", "plain 56", "plain 20", -1),
        ("two 3x3 are better than one 5x5 (Simonyan & Zisserman 2015, Section 4)", "two 3x3", "one 5x5", 1),
    )
]
measures = {"errors": "attention_jax.tables.measures:measure_errors"}
pictures = {"errors": depth.plot_plain_and_residual}

scales = {
    "quick": {
        "seeds": 3,
        "overrides": {
            "checkpoint.every_epochs": 22.0,
            "logging.tensorboard": False,
        },
    },
    "smoke": {
        "seeds": 1,
        "overrides": {
            "total_steps": 4,
            "schedule.warmup_steps": 1,
            "evaluation.every_steps": 2,
            "checkpoint.every_steps": 4,
            "logging.every_steps": 2,
            "logging.tensorboard": False,
        },
    },
}
