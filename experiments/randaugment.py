"""RandAugment's grid search: N operations of magnitude M.

Run:       ./launch.sh table experiments/randaugment.py
Hardware:  two CPU cores, less than 10 minutes.
Expected:  experiments/results/randaugment.md
"""

import functools

from attention_jax import recipes

title = "RandAugment: number of operations N and magnitude M"
source = "After Cubuk et al. 2020 (arXiv 1909.13719), whose grid is N = 1 to 3 and M from weak to strong."
notes = (
    "Published: the baseline of ResNet-50 on ImageNet and of Wide-ResNet-28-2 on CIFAR-10. With RandAugment at the N "
    "and M that each search chose they reach 77.6 and 95.8 (Tables 3 and 2).\n"
    "The paper's: ResNet-50 at 224x224 pixels, the same in every row: augmentation changes no network. Trained at "
    "quick: a ResNet-14, two basic blocks in each of three stages of 8, 16 and 32 filters, on digits of 8x8 pixels; "
    "all rows crop at random besides. Grey digits leave the operation on colour without effect and small images make "
    "large rotations and translations costly; the training error, on images as they are, tells whether a row "
    "underfits."
)
base = "../configs/quickstart.py"

_NETWORK = {"name": "resnet50"}
rows = [
    {
        "label": "none",
        "published": {"ImageNet top-1 %": 76.3, "CIFAR-10 %": 94.9},
        "network": _NETWORK,
    },
    *(
        {
            "label": f"N = {layers} M = {magnitude}",
            "pieces": (functools.partial(recipes.randaugment, layers=layers, magnitude=magnitude),),
            "against": "none",
            "network": _NETWORK,
        }
        for layers in (1, 2, 3)
        for magnitude in (4, 9, 14)
    ),
]
compare_to = None  # each row is compared with its own `against`
findings = [
    {
        "text": "the N and M that were chosen for ResNet-50 are better than none (Cubuk et al. 2020, Table 3)",
        "row": "N = 2 M = 9",
        "over": "none",
        "sign": 1,
    },
]
measures = {"errors": "attention_jax.tables.measures:measure_errors"}

# RandAugment's operation on colour wants three channels.
_COLOUR = {"data.args.channels": 3, "data.mean": (0.3,) * 3, "data.std": (0.38,) * 3}
scales = {
    "quick": {
        "seeds": 3,
        "overrides": {
            **_COLOUR,
            "model.name": "resnet20",
            "model.stage_sizes": (2, 2, 2),
            "model.widths": (8, 16, 32),
            "total_epochs": 16.0,
            "evaluation.every_epochs": 1.6,
            "checkpoint.every_epochs": 16.0,
            "logging.tensorboard": False,
        },
    },
    "smoke": {
        "seeds": 1,
        "overrides": {
            **_COLOUR,
            "model.stage_sizes": (1, 1, 1),
            "model.widths": (4, 8, 16),
            "total_steps": 4,
            "schedule.warmup_steps": 1,
            "evaluation.every_steps": 4,
            "checkpoint.every_steps": 4,
            "logging.every_steps": 2,
            "logging.tensorboard": False,
        },
    },
    "small": {"base": "../configs/cifar10.py", "seeds": 1, "overrides": {"total_epochs": 10.0}},
    "paper": {"base": "../configs/imagenet_resnet50.py", "seeds": 1},
}
