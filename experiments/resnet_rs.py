"""ResNet-RS, Table 1: eleven rows, each with one more piece of recipe or architecture.

Run:       ./launch.sh table experiments/resnet_rs.py
Hardware:  two CPU cores, less than 10 minutes.
"""

import functools

from ml_collections import ConfigDict

from attention_jax import recipes
from attention_jax.config import override

title = "ResNet-RS: what recipe and architecture add, one after another"
source = "After Bello et al. 2021 (arXiv 2103.07579), Table 1: ResNet-200 on ImageNet at 256x256 pixels."
notes = (
    "A row has all pieces of the rows above it. Published: top-1 accuracy on ImageNet's validation set; in the paper, more "
    "epochs and dropout hurt until what comes after them. Kinds are the paper's: training and regularisation together bring "
    "3.2 points there, architecture 1.2.\n"
    "Trained at the scales quick and small: a ResNet-20 of bottlenecks, two in each of three stages of 8, 16 and 32 "
    "filters (small: 16, 32 and 64), with the stem for small images in all rows, so that of ResNet-D only the "
    "shortcuts are left; more epochs are 350/90 times as many, as in the paper. Regularisation helps a ResNet-200 that "
    "overfits ImageNet in 350 epochs; the small network, on the digits, can show that every piece works and what it costs, "
    "not that the paper's gains come back."
)
base = "../configs/quickstart.py"


def _more_epochs(config: ConfigDict) -> ConfigDict:
    """350 for 90."""
    return recipes.more_epochs(config, epochs=round(config.total_epochs * 350 / 90, 2))


def _resnet_d(config: ConfigDict) -> ConfigDict:
    return recipes.resnet_d(config, stem="cifar" if config.model.get("stem") == "cifar" else "rs")


def _randaugment(config: ConfigDict) -> ConfigDict:
    """On ImageNet the operations of their TensorFlow code."""
    config = recipes.randaugment(config)
    return override(config, {"data.randaugment_ops": "tf1"}) if config.data.crop == "random_resized" else config


_SE = {"gate": "se", "gate_at": "block", "gate_args": {"reduction": 4}}
_D = {"stem": "rs", "shortcut": "D"}

_TRAINING, _REGULARISATION, _ARCHITECTURE = "training", "regularisation", "architecture"
# (label, kind, piece, published top-1 %, fields of the network that the row changes)
_PIECES = (
    ("+ cosine", _TRAINING, recipes.cosine_lr, 79.3, {}),
    ("+ more epochs", _TRAINING, _more_epochs, 78.8, {}),
    ("+ EMA of weights", _TRAINING, recipes.ema, 79.1, {}),
    ("+ label smoothing", _REGULARISATION, recipes.label_smoothing, 80.4, {}),
    ("+ stochastic depth", _REGULARISATION, recipes.stochastic_depth, 80.6, {}),
    ("+ RandAugment", _REGULARISATION, _randaugment, 81.0, {}),
    ("+ dropout", _REGULARISATION, recipes.dropout, 80.7, {}),
    ("+ less weight decay", _REGULARISATION, recipes.decrease_weight_decay, 82.2, {}),
    ("+ squeeze-and-excitation", _ARCHITECTURE, functools.partial(recipes.squeeze_excite, reduction=4), 82.9, _SE),
    ("+ ResNet-D", _ARCHITECTURE, _resnet_d, 83.4, _D),
)


def _rows() -> list[dict]:
    made = [{"label": "ResNet-200", "published": {"top-1 %": 79.0}, "network": {"name": "resnet200"}}]
    for count, (label, kind, _, accuracy, fields) in enumerate(_PIECES, 1):
        made.append(
            {
                "label": label,
                "kind": kind,
                "pieces": tuple(piece for _, _, piece, _, _ in _PIECES[:count]),
                "published": {"top-1 %": accuracy},
                "network": {**made[-1]["network"], **fields},
                "against": "ResNet-200",
            }
        )
    return made


rows = _rows()
published_order = {"top-1 %": 1}
network_shape = (1, 256, 256, 3)

_NETWORK = {
    "model.name": "resnet26",
    "model.stem": "cifar",
    "model.stage_sizes": (2, 2, 2),
    "model.widths": (8, 16, 32),
    "optimizer.weight_decay": 1e-4,
}
# RandAugment's operation on colour wants three channels.
_COLOUR = {"data.args.channels": 3, "data.mean": (0.3,) * 3, "data.std": (0.38,) * 3}
scales = {
    "quick": {
        "seeds": 3,
        "overrides": {
            **_NETWORK,
            **_COLOUR,
            "total_epochs": 5.0,
            "evaluation.every_epochs": 0.5,
            "checkpoint.every_epochs": 20.0,
            "logging.tensorboard": False,
        },
    },
    "smoke": {
        "seeds": 1,
        "overrides": {
            **_NETWORK,
            **_COLOUR,
            "model.stage_sizes": (1, 1, 1),
            "total_epochs": 0.1,
            "schedule.warmup_steps": 1,
            "evaluation.every_steps": 20,
            "checkpoint.every_steps": 20,
            "logging.every_steps": 2,
            "logging.tensorboard": False,
        },
    },
    "small": {
        "base": "../configs/cifar10.py",
        "seeds": 1,
        "overrides": {**_NETWORK, "model.widths": (16, 32, 64), "total_epochs": 10.0},
    },
    # Batch 4096 with 0.1 for every 256 images and 5 epochs of warm-up; evaluated on the centre 87.5 %.
    "paper": {
        "base": "../configs/imagenet_resnet50.py",
        "seeds": 2,
        "overrides": {
            "model.name": "resnet200",
            "batch_size": 4096,
            "schedule.learning_rate": 1.6,
            "schedule.warmup_epochs": 5.0,
            "data.image_shape": (256, 256, 3),
            "data.eval_resize": 293,
            "optimizer.decay_rules": ((r"norm\d*/(bias|scale)$", False), (".*", True)),
        },
    },
}
