"""Plain against residual networks of 20 to 56 layers: what shortcuts are for, with and without batch normalisation.

Run:       ./launch.sh table experiments/residual.py
Hardware:  a CPU core; the results took 28 minutes on one that others shared.
Expected:  experiments/results/residual.md

Two claims are to be seen side by side. "Shortcuts avoid vanishing gradients": look at the rows without normalisation. "With
batch normalisation the gradients of plain networks do not vanish; that deep ones are worse is a difficulty of optimisation"
(He et al. 2016, Section 4.1): look at the plain rows with it, at their gradient and their training error.
"""

import functools

from attention_jax import recipes
from experiments.studies import gradient_flow

title = "Plain and residual networks of 20 to 56 layers, with and without batch normalisation"
source = "After He et al. 2016 (arXiv 1512.03385), Section 4.2 and Table 6 (CIFAR-10)."
notes = (
    "Published: test error on CIFAR-10 of the full-width networks; the paper shows its plain networks in a figure "
    "only.\n"
    "Gradient: norm of the loss's gradient at the first convolution, for the run's first batch. A vanished one is "
    "many orders of magnitude below that of the residual network of the same depth; a healthy one is not.\n"
    "Without normalisation convolutions have biases, and the gradient is clipped to norm 1 in the plain and the "
    "residual networks alike: the activations of residual networks grow with every block, and would diverge. Training "
    "error: on the training images as they are, with the last weights."
)
base = "../configs/quickstart.py"

_DEPTHS = (20, 32, 44, 56)
_PUBLISHED = {20: 8.75, 32: 7.51, 44: 7.17, 56: 6.97}
_CLIP = functools.partial(recipes.clip_gradients, norm=1.0)


def _row(depth: int, residual: bool, norm: bool) -> dict:
    kind = "residual" if residual else "plain"
    fields = {"residual": residual, "norm": "batch" if norm else "none"}
    return {
        "label": f"{kind} {depth}" if norm else f"{kind} {depth} without norm",
        "pieces": () if norm else (_CLIP,),
        "overrides": {"model.name": f"resnet{depth}", **{f"model.{name}": value for name, value in fields.items()}},
        "against": (f"plain {depth}" if norm else f"plain {depth} without norm") if residual else None,
        "published": {"CIFAR-10 test error %": _PUBLISHED[depth]} if residual and norm else {},
        "network": {"name": f"resnet{depth}", **fields},
    }


rows = [_row(depth, residual, norm) for norm in (True, False) for residual in (False, True) for depth in _DEPTHS]
compare_to = None  # each row is compared with its own `against`
findings = [
    {"text": f"{claim} (He et al. 2016, {where})", "row": row, "over": over, "sign": 1}
    for claim, where, row, over in (
        ("plain networks become worse with depth, with batch normalisation", "Section 4.1", "plain 20", "plain 56"),
        ("residual networks are better than plain ones as deep", "Section 4.2", "residual 56", "plain 56"),
        ("residual networks become better with depth", "Table 6", "residual 56", "residual 20"),
    )
]
network_shape = (1, 32, 32, 3)
measures = {
    "errors": "attention_jax.tables.measures:measure_errors",
    "gradient_flow": gradient_flow.measure_gradient_flow,
}
pictures = {"gradients": functools.partial(gradient_flow.plot_gradient_flow, columns=len(_DEPTHS))}

scales = {
    # Half the paper's width on the 8x8 digits; every checkpoint is kept for the gradients in training.
    "quick": {
        "seeds": 3,
        "overrides": {
            "total_epochs": 15.0,
            "evaluation.every_epochs": 1.5,
            "checkpoint.every_epochs": 5.0,
            "checkpoint.keep_last": 3,
            "logging.tensorboard": False,
        },
        "row_overrides": {"model.widths": (8, 16, 32)},
    },
    "smoke": {
        "seeds": 1,
        "overrides": {
            "total_steps": 6,
            "schedule.warmup_steps": 1,
            "evaluation.every_steps": 3,
            "checkpoint.every_steps": 3,
            "logging.every_steps": 2,
            "logging.tensorboard": False,
        },
        "row_overrides": {"model.stage_sizes": (1, 1, 1), "model.widths": (4, 8, 16)},
    },
    # The paper's networks and data, a tenth of its epochs.
    "small": {
        "base": "../configs/cifar10.py",
        "seeds": 1,
        "overrides": {
            "total_epochs": 16.0,
            "evaluation.every_epochs": 4.0,
            "checkpoint.every_epochs": 4.0,
            "checkpoint.keep_last": 4,
        },
    },
    "paper": {"base": "../configs/cifar10.py", "seeds": 3},
}

next_commands = [
    (
        "the same at CIFAR-10's size, where TensorFlow Datasets prepared it in ~/tensorflow_datasets",
        "./launch.sh table experiments/residual.py --scale=small --rows='*20'",
    ),
]
