"""Is a network that has learnt other classes a better beginning than none, with few images of the new ones?

Run:       ./launch.sh table experiments/fine_tuning.py --scale=source
           ./launch.sh table experiments/fine_tuning.py
Hardware:  a CPU core; the second command took 281 s on one that others shared.
Expected:  experiments/results/fine_tuning.md

Rows, budget, rates, comparisons and the finding were fixed before any test image was evaluated. Piloted on the split
"validation", 1,000 images, in % (a quarter is guessed), seed 100 and where there is a second number seed 101, by rate:
from scratch 55.1, 52.2 (3e-3), 67.9, 55.4 (1e-2), 74.6, 58.0 (3e-2), 71.6 (5e-2), 70.6 (1e-1); fine-tuned 75.9 (1e-3), 79.7,
76.1 (3e-3), 76.7, 77.1 (1e-2); linear probe 54.8 (3e-3), 61.9, 66.6 (1e-2), 63.1 (3e-2), 62.3 (1e-1); layer-wise decay 80.4,
75.7 (3e-3), 80.9, 77.3 (1e-2). Each row has the rate with the best mean, the probe the best of seed 100. With 100 images in
place of 40, seed 100: from scratch 86.5 (3e-3), fine-tuned 90.9 (3e-3), linear probe 78.5 (1e-2). Pre-trained, on their own
digits: 98.3, 98.9.
"""

from functools import partial

from attention_jax import recipes
from experiments.studies import smoke

title = "Fine-tuning against training from scratch, on a few images of classes that pre-training never showed"
source = (
    "After Yosinski et al. 2014 (arXiv 1411.1792), who transfer features between halves of ImageNet's classes; layer-wise "
    "decay: Clark et al. 2020 (arXiv 2003.10555)."
)
notes = (
    "A UCI digit among two pieces of others, on 16x16 pixels. Pre-trained on 6,000 images of the digits 0 to 5, with another "
    "network for each seed; then trained on 40 images of the digits 6 to 9, with a new classifier, in as many steps as from "
    "scratch. There are 1,000 test images of the digits 6 to 9; a guess is right for a quarter of them. One basic block in "
    "each of two stages of 16 and 32 filters, AdamW; each row has the rate that was best for it in the pilot. Linear probe: "
    "all layers but the classifier are frozen, with the statistics of pre-training. Layer-wise: 1/8, 1/4 and 1/2 of the rate "
    "for stem, stage 1 and stage 2. The columns k-NN probe and linear probe are of the features after training, fitted to the "
    "same 40 images."
)
base = "../configs/cued_digits.py"
_SOURCE = "runs/fine_tuning-source/pre-trained/{seed}"
_BELOW = ("^stem_", "^stage1_", "^stage2_")


def _tuned(label: str, rate: float, against: str | None = None, **overrides: object) -> dict:
    fields = {name.replace("__", "."): value for name, value in overrides.items()}
    return {
        "label": label,
        "pieces": fields.pop("pieces", ()),
        "against": against,
        "overrides": {"init_from": _SOURCE, "schedule.learning_rate": rate, **fields},
    }


rows = [
    {
        "label": "pre-trained",
        "overrides": {
            "data.args.classes": (0, 1, 2, 3, 4, 5),
            "data.args.number": (6000, 1000),
            "batch_size": 64,
            "total_steps": 500,
            "schedule.learning_rate": 1e-2,
            "schedule.warmup_steps": 50,
            "evaluation.every_steps": 450,
            "checkpoint.every_steps": 500,
        },
    },
    {"label": "from scratch", "overrides": {"schedule.learning_rate": 3e-2}},
    _tuned("fine-tuned", 3e-3),
    _tuned("linear probe", 3e-2, "fine-tuned", pieces=(recipes.freeze,), batch_norm__granularity="stored"),
    _tuned("layer-wise decay", 1e-2, "fine-tuned", pieces=(partial(recipes.layerwise_lr_decay, groups=_BELOW, factor=0.5),)),
]
compare_to = "baseline"
findings = [
    {
        "text": "transferred features give a boost to generalisation that lingers even after fine-tuning (Yosinski et al. "
        "2014, abstract)",
        "row": "fine-tuned",
        "over": "from scratch",
    }
]
measures = {"probes": "attention_jax.analysis.probes.measure_probes"}

_DATA = {
    "data.source": "experiments.studies.fine_tuning.SomeClasses",
    "data.args": {"canvas": (16, 16), "pieces": 2, "piece": 3, "number": (40, 1000)},
    "data.mean": (0.11,) * 3,
    "data.std": (0.25,) * 3,
}
_SHORT = {
    "batch_size": 32,
    "total_steps": 150,
    "schedule.warmup_steps": 15,
    "evaluation.every_steps": 135,
    "checkpoint.every_steps": 150,
}
scales = {
    "quick": {
        "seeds": 5,
        "overrides": {**_DATA, **_SHORT},
        "rows": ["from scratch", "fine-tuned", "linear probe", "layer-wise decay"],
        "after": "source",
    },
    "source": {"seeds": 5, "overrides": _DATA, "rows": ["pre-trained"]},
    "smoke": {
        "seeds": 1,
        "overrides": {**smoke.CUED_DIGITS, **_DATA, "model.widths": (8, 8)},
        "row_overrides": {"data.args.number": (40, 20), "total_steps": 4, "schedule.warmup_steps": 1, "batch_size": 4},
    },
}
