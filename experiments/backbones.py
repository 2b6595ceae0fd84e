"""ResNet, ConvNeXt, ViT and Swin at equal multiply-adds: with few and with more training images, and at positions not trained.

Run:       ./launch.sh table experiments/backbones.py
Hardware:  a CPU core; the results took 87 minutes on one that others shared.
Expected:  experiments/results/backbones.md

Rows, budget, rates and comparisons at quick were fixed before any test image was evaluated. Piloted on the split "validation",
seed 100, all training images, in %, where guessing is right in 10. On 24x24 pixels with four pieces of 5x5, 600 steps of 64:
ResNet 52.7, ViT 13.0 (rate 3e-3); with four of 3x3, 400 steps of 64: ViT 20.5 (3e-3). On 16x16 pixels with two pieces of 3x3,
as here: 800 steps of 64, ResNet 88.4 and ConvNeXt 55.1 (3e-3), Swin 33.0 (2e-3); 500 steps of 32, ViT 13.6 (3e-3) and 20.4
(1e-3), Swin 12.1 (6e-3) and 15.0 (1e-3); 1,000 steps of 16, ViT 26.0 (1e-3), Swin 15.7 (1e-3). Each network has the rate that
did best among these; ConvNeXt had two channels fewer in its second stage then. The Transformers are far from their end in a
budget that is a CPU's.
"""

import functools

from ml_collections import ConfigDict

from attention_jax.config import override
from experiments.studies import backbones, smoke

title = "ResNet, ConvNeXt, ViT, Swin: few training images, and positions not seen in training"
source = (
    "After Dosovitskiy et al. 2021 (arXiv 2010.11929), who say that a Transformer lacks the inductive bias of convolutions and "
    "needs more data in its place, and Liu et al. 2022 (arXiv 2201.03545), whose ConvNeXt has it. Published: top-1 on ImageNet "
    "of that paper, trained by its recipe (Table 10, ResNet-50; Table 1; ViT-S/16 there is DeiT-S)."
)
notes = (
    "A UCI digit among two pieces of others, on 16x16 pixels; 1/1 of the training images are 4,800, 1/4 and 1/16 the first of "
    "them, and all rows have as many steps of as many images. The 2,000 test images are made of other digits; a guess is "
    "right for a tenth of them. At other positions: all training images, with the digit at the left edge of the image in "
    "training and at the right edge in the test, in any row, and pieces of digits anywhere; beside it the accuracy of the "
    "same networks on the test's digits at the left edge.\n"
    "Networks with multiply-adds within 3 % of one another: one basic block in each of three stages of 8, 16 and 32 filters "
    "(ResNet), one block in each of two stages of 24 and 50 channels on patches of 2x2 without layer scale (ConvNeXt), three "
    "layers of 36 features and three heads on patches of 4x4 with the mean of all (ViT), two blocks in each of two stages of "
    "15 and 30 channels on patches of 2x2 with windows of 4x4 (Swin). No augmentation; AdamW. The paper's networks are counted "
    "at 224x224."
)
base = "../configs/cued_digits.py"

_DIGITS = "cluttered_digits"
_PUBLISHED = {"ResNet": 78.82, "ConvNeXt": 82.1, "ViT": 79.8, "Swin": 81.3}


def _use(config: ConfigDict, network: str) -> ConfigDict:
    """The network in full size, or its stand-in where the images are digits, with the rate chosen for it."""
    if config.data.source != _DIGITS:
        rate = config.model.drop_path_rate
        return override(config, {"model.name": backbones.FULL_SIZE[network], "model.drop_path_rate": rate})
    fields = {f"model.{field}": value for field, value in backbones.STAND_INS[network].items()}
    return override(config, {"schedule.learning_rate": backbones.RATES[network], **fields})


def _train_on(config: ConfigDict, divisor: int) -> ConfigDict:
    """The first images of the training split, in as many steps."""
    if config.data.source == _DIGITS:
        number, others = config.data.args.number
        return override(config, {"data.args.number": (number // divisor, others)})
    number = config.data.num_examples // divisor
    changes = {"data.train_split": f"train[:{number}]", "data.num_examples": number}
    return override(config, {**changes, "total_epochs": config.total_epochs * divisor})


def _row(network: str, group: str, divisor: int = 1, **args: object) -> dict:
    full = {
        "published": {"ImageNet top-1 %": _PUBLISHED[network]},
        "network": {"name": backbones.FULL_SIZE[network], "num_classes": 1000},
    }
    return {
        "label": f"{network} {group}",
        "against": None if network == "ResNet" else f"ResNet {group}",
        "pieces": (functools.partial(_use, network=network), functools.partial(_train_on, divisor=divisor)),
        "overrides": {f"data.args.{name}": value for name, value in args.items()},
        **(full if group == "1/1" else {}),
    }


_SHARES = {"1/16": 16, "1/4": 4, "1/1": 1}
_MOVED = "at other positions"
_by_number = [_row(network, group, divisor) for group, divisor in _SHARES.items() for network in backbones.STAND_INS]
rows = [*_by_number, *(_row(network, _MOVED, halves=("left", "right")) for network in backbones.STAND_INS)]
compare_to = None  # each row is compared with its own `against`
findings = [
    {"text": text, "row": f"{row} {group}", "over": f"{over} {group}"}
    for text, row, over, group in (
        (
            "without locality and translation equivariance Transformers do not generalise well from insufficient data "
            "(Dosovitskiy et al. 2021, Section 1)",
            "ResNet",
            "ViT",
            "1/16",
        ),
        ("the same of windows, which bring locality back (Liu et al. 2021, arXiv 2103.14030)", "Swin", "ViT", "1/16"),
        ("ConvNeXt is better than Swin of equal multiply-adds (Liu et al. 2022, Table 1)", "ConvNeXt", "Swin", "1/1"),
        (
            "translation equivariance is in every layer of a convolutional network, and only in the MLP layers of a ViT "
            "(Dosovitskiy et al. 2021, Section 3.1)",
            "ResNet",
            "ViT",
            _MOVED,
        ),
        ("the same of Swin, which has biases by relative position in place of learned positions", "Swin", "ViT", _MOVED),
    )
]
published_order = {"ImageNet top-1 %": 1}
measures = {"generalisation": backbones.measure_generalisation}
pictures = {"generalisation": backbones.plot_generalisation}

_DATA = {
    "data.source": _DIGITS,
    "data.args": {"canvas": (16, 16), "number": (4800, 2000), "pieces": 2, "piece": 3},
    "data.mean": (0.11,) * 3,
    "data.std": (0.25,) * 3,
}
scales = {
    "quick": {
        "seeds": 3,
        "overrides": {
            **_DATA,
            "batch_size": 32,
            "total_steps": 1500,
            "schedule.warmup_steps": 150,
            "evaluation.every_steps": 1350,
            "checkpoint.every_steps": 1500,
            "logging.every_steps": 150,
        },
    },
    "smoke": {"seeds": 1, "overrides": {**smoke.CUED_DIGITS, **_DATA, "data.args": {"canvas": (16, 16), "number": (64, 20)}}},
    # One recipe for all, that of ConvNeXt-T; as many steps with a sixteenth of the images, 62 of a class, as with all.
    "paper": {"base": "../configs/imagenet_convnext.py", "seeds": 1, "rows": [row["label"] for row in _by_number]},
}
