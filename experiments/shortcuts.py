"""What shortcuts, two attention modules and a better recipe do for a narrow ResNet-32 on the UCI digits.

Run:       ./launch.sh table experiments/shortcuts.py
Hardware:  two CPU cores, less than five minutes.
Expected:  experiments/results/shortcuts.md

Chosen by a pilot: at 20 layers some plain networks still train and others do not, so that three seeds could not show what
shortcuts do; at 32 layers all of them fail, and at half the paper's width five rows of five seeds take minutes.
"""

import functools

from attention_jax import recipes

title = "ResNet-32 at half width on the UCI digits: shortcuts, attention, recipe"
source = (
    "After He et al. 2016 (arXiv 1512.03385), Hu et al. 2018 (arXiv 1709.01507) and Park et al. 2018 (arXiv 1807.06514); "
    "optical recognition of handwritten digits, UCI repository (1,797 images of 8x8 pixels)."
)
base = "../configs/quickstart.py"

# Reduction 4, not the papers' 16, which would leave stages of 8 to 32 channels none to two hidden units.
_se = functools.partial(recipes.squeeze_excite, reduction=4)
_bam = functools.partial(recipes.bam, reduction=4)
_recipe = ("cosine_lr", "ema", "label_smoothing")

rows = [
    {"label": "plain", "pieces": ("no_shortcuts",)},
    {"label": "residual", "against": "plain"},
    {"label": "residual + SE", "pieces": (_se,), "against": "residual"},
    {"label": "residual + BAM", "pieces": (_bam,), "against": "residual"},
    {"label": "residual + recipe", "pieces": _recipe, "against": "residual"},
]

compare_to = None  # each row is compared with its own `against`
findings = [
    {
        "text": "a deep plain network is worse than the same network with shortcuts (He et al. 2016, Section 4.2)",
        "row": "residual",
        "over": "plain",
        "sign": 1,
    },
    {
        "text": "a better recipe lifts the same network (Bello et al. 2021, Table 1)",
        "row": "residual + recipe",
        "over": "residual",
        "sign": 1,
    },
]

scales = {
    "quick": {"seeds": 5},
    # Shows in seconds that everything runs; its numbers mean nothing.
    "smoke": {
        "seeds": 2,
        "overrides": {
            "model.stage_sizes": (1, 1, 1),
            "model.widths": (4, 8, 16),
            "total_steps": 6,
            "schedule.warmup_steps": 1,
            "evaluation.every_steps": 3,
            "checkpoint.every_steps": 3,
            "logging.every_steps": 2,
        },
    },
}

attention_of = "residual + BAM"
