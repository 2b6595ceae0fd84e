"""From a ResNet to ConvNeXt, step by step: Tables 10 and 11 of Liu et al. 2022, counted, and ten of the steps trained small.

Run:       ./launch.sh table experiments/convnext_roadmap.py
Hardware:  a CPU core, less than 15 minutes.
Expected:  experiments/results/convnext_roadmap.md

Task, budget, rows and comparisons were fixed before any test image was evaluated. Piloted on the split "validation" (119
images), seed 100, in %, as here: ResNet 96.6, depthwise convolution 95.0, separate downsampling 95.8; ResNet with parts of
at least 25 % and 300 steps 99.2. On cluttered digits it had 12.5 after 600 steps with eight pieces on 32x32 pixels, 25.4 after
500 with one, and 19.5 after 400 with four pieces on 14x14 pixels, enlarged.
"""

import functools

from ml_collections import ConfigDict

import attention_jax as aj
from attention_jax.config import override
from attention_jax.models.convnext_roadmap import ROADMAP
from experiments.studies import smoke

title = "ConvNeXt's roadmap: from ResNet-50 and ResNet-200, step by step"
source = "Liu et al. 2022 (arXiv 2201.03545), Section 2, Tables 10 and 11: ImageNet-1K, 300 epochs, 224x224 pixels."
notes = (
    "A row has all steps of the rows above it; after the rows of kernel sizes, kernel 7 is kept. First all rows of the "
    "paper's tables, with their multiply-adds (of convolutions and linear layers) as the authors' ablation code has them: "
    "Table 10 prints 4.46 and 4.49 in its last two rows, where that code has 4.15 and 4.46. Kinds are the paper's sections.\n"
    "Trained at quick: random parts of UCI digits, 8 to 100 % of them, enlarged to 32x32 pixels as the paper's images are; "
    "AdamW and a cosine in all rows, without the paper's other augmentation. A quarter of ResNet-50's width, 16 filters and "
    "then 24; 2, 2, 4, 2 blocks for 3, 4, 6, 3 and 2, 2, 6, 2 for 3, 3, 9, 3: all rows' complexity, relative to the first, is "
    "within 9 % of the paper's. GELU, fewer activations and fewer norms come with layer norm, and kernels grow from 3 to 7 at "
    "once. The four stages' maps have 8x8, 4x4, 2x2 and 1x1 places, on which a kernel of 7 sees all or nearly all."
)
base = "../configs/cued_digits.py"

_TOP, _GFLOPS = "top-1 %", "GFLOPs"
_MACRO, _RESNEXT, _INVERTED = "macro design", "ResNeXt-ify", "inverted bottleneck"  # Sections 2.2 to 2.6
_KERNEL, _MICRO = "large kernels", "micro design"
# (step of `ROADMAP`, label, kind, top-1 % and GFLOPs of Table 10, of Table 11)
_STEPS = (
    ("baseline", "ResNet", "", (78.82, 4.09), (81.14, 15.01)),
    ("stage_ratio", "stage ratio", _MACRO, (79.36, 4.53), (81.33, 14.52)),
    ("patchify", "patchify stem", _MACRO, (79.51, 4.42), (81.59, 14.38)),
    ("depthwise", "depthwise convolution", _RESNEXT, (78.28, 2.35), (80.54, 7.23)),
    ("width", "increased width", _RESNEXT, (80.50, 5.27), (81.85, 16.76)),
    ("inverted", "inverted dimensions", _INVERTED, (80.64, 4.64), (82.64, 15.68)),
    ("moved_up", "depthwise moved up", _KERNEL, (79.92, 4.07), (82.04, 14.63)),
    ("kernel_5", "kernel 5", _KERNEL, (80.35, 4.10), (82.32, 14.70)),
    ("kernel_7", "kernel 7", _KERNEL, (80.57, 4.15), (82.30, 14.81)),
    ("kernel_9", "kernel 9", _KERNEL, (80.57, 4.21), (82.27, 14.95)),
    ("kernel_11", "kernel 11", _KERNEL, (80.47, 4.29), (82.18, 15.13)),
    ("gelu", "GELU", _MICRO, (80.62, 4.15), (82.19, 14.81)),
    ("fewer_activations", "fewer activations", _MICRO, (81.27, 4.15), (82.71, 14.81)),
    ("fewer_norms", "fewer norms", _MICRO, (81.41, 4.15), (83.17, 14.81)),
    ("layer_norm", "layer norm", _MICRO, (81.47, 4.46), (83.35, 14.81)),
    ("separate_downsampling", "separate downsampling", _MICRO, (81.97, 4.49), (83.60, 15.35)),
)


def _put(config: ConfigDict, regime: str, step: str) -> ConfigDict:
    """The network of a step; for the digits with a quarter of its width and two thirds of its blocks."""
    fields = {"model.name": f"convnext_from_{regime}.{step}"}
    if config.data.source == "digits":
        blocks = (2, 2, 4 if step == "baseline" else 6, 2)
        fields |= {"model.stage_sizes": blocks, "model.width": ROADMAP[regime][step].get("width", 64) // 4}
    return override(config, fields)


def _count(regime: str, step: str) -> dict:
    counts = aj.summary(aj.create_model(f"convnext_from_{regime}.{step}"), (1, 224, 224, 3))
    return {_GFLOPS: f"{counts.macs / 1e9:.2f}", "multiply-adds": f"{counts.macs:,}", "parameters": f"{counts.params:,}"}


rows, computed = [], []
for _table, _regime, _number in ((10, "resnet50", 50), (11, "resnet200", 200)):
    for _step, _label, _kind, *_both in _STEPS:
        _accuracy, _cost = _both[_table - 10]
        _published = {_TOP: _accuracy, _GFLOPS: f"{_cost:.2f}"}
        computed.append(
            {
                "label": f"Table {_table}: {_label}",
                "function": functools.partial(_count, _regime, _step),
                "published": _published,
            }
        )
        rows.append(
            {
                "label": f"{_number}: {_label}",
                "kind": _kind,
                "pieces": (functools.partial(_put, regime=_regime, step=_step),),
                "against": f"{_number}: kernel 7" if _step == "gelu" else None,
                "published": {_TOP: _accuracy},
                "network": {"name": f"convnext_from_{_regime}.{_step}"},
            }
        )
compare_to = "previous"
findings = [
    {"text": f"{text} (Liu et al. 2022, Table 10)", "row": f"50: {row}", "over": f"50: {over}", "sign": sign}
    for text, row, over, sign in (
        ("more blocks in the third stage help", "stage ratio", "ResNet", 1),
        ("depthwise convolutions alone lose", "depthwise convolution", "patchify stem", -1),
        ("more width gains more than that", "increased width", "depthwise convolution", 1),
        ("the depthwise convolution moved up loses", "depthwise moved up", "inverted dimensions", -1),
        ("kernels of 7 are better than of 3", "kernel 7", "depthwise moved up", 1),
        ("separate downsampling helps", "separate downsampling", "layer norm", 1),
        ("all steps together are better than the ResNet", "separate downsampling", "ResNet", 1),
    )
]
published_order = {_TOP: 1}
network_shape = (1, 224, 224, 3)


def _label_rows(number: int, *left_out: str) -> list[str]:
    return [f"{number}: {label}" for step, label, *_ in _STEPS if step not in left_out]


_QUICK = _label_rows(50, "kernel_5", "kernel_9", "kernel_11", "gelu", "fewer_activations", "fewer_norms")
_DIGITS = {  # of 8x8 pixels, cut out and enlarged as ImageNet's images are
    "data.source": "digits",
    "data.args": {},
    "data.crop": "random_resized",
    "data.crop_scale": (0.08, 1.0),
    "data.image_shape": (32, 32, 1),
    "data.eval_resize": 32,
    "data.mean": (0.3,),
    "data.std": (0.38,),
}
_PAPER = {
    "seeds": 3,
    "base": "../configs/imagenet_convnext.py",
    "overrides": {"ema.decay": 0.0},  # its authors left the average out here
    "row_overrides": {"model.drop_path_rate": 0.1},
}
scales = {
    "quick": {
        "seeds": 3,
        "rows": _QUICK,
        "overrides": {
            **_DIGITS,
            "batch_size": 64,
            "total_steps": 200,
            "schedule.warmup_steps": 20,
            "evaluation.every_steps": 20,
            "checkpoint.every_steps": 200,
        },
    },
    "smoke": {
        "seeds": 1,
        "rows": _QUICK,
        "overrides": {**smoke.CUED_DIGITS, **_DIGITS},
        "row_overrides": {"model.stage_sizes": (1, 1), "model.width": 4},
    },
    "paper": {**_PAPER, "rows": _label_rows(50)},
    # One run a row in the paper. The rate of stochastic depth in this regime is in no source; 0.1 is the other one's.
    "paper-200": {**_PAPER, "rows": _label_rows(200)},
}
