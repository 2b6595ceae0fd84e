"""ResNet, ConvNeXt, ViT and Swin as backbones of a dense task: segmentation by one linear layer, and costs by image size.

Run:       ./launch.sh table experiments/dense.py
Hardware:  a CPU core; the results took 16 minutes on one that others shared.
Expected:  experiments/results/dense.md

Task, budget, rows, rates and comparisons at quick were fixed before any test image was evaluated. Nothing was piloted for this
task; networks, budget and rates are those of backbones.py, whose docstring says what was.
"""

import functools

from experiments.studies import dense, smoke
from experiments.studies.backbones import FULL_SIZE, RATES, STAND_INS

title = "Backbones of a dense task: segmentation by one linear layer, and costs by image size"
source = (
    "After Liu et al. 2022 (arXiv 2201.03545, ConvNeXt) and Liu et al. 2021 (arXiv 2103.14030, Swin), who say that a plain ViT "
    "has difficulties with dense tasks: one map of low resolution, and attention whose cost grows with the square of the "
    "pixels. Published: mean IoU on ADE20K, one scale, with UPerNet at 512x512 pixels after 160,000 steps, of mmsegmentation "
    "(ResNet-50, and DeiT-S without a neck), the ConvNeXt paper (Table 7) and Swin's code for segmentation."
)
notes = (
    "Computed: multiply-adds of all maps of the full-size networks for one square image, without any head. Kept: what JAX "
    "saves of one image between the forward and the backward pass, in float32, as traced, before a compiler joins operations, "
    "without parameters.\n"
    "Trained: the pixels of a UCI digit's box of 8x8 get the digit's class, all others, with pieces of two more digits among "
    "them, are background, on 16x16 pixels; 4,800 images for training, 2,000 for the test. Backbones of multiply-adds within "
    "3 % of one another are trained from scratch together with the head, not before it: the published ones are trained on "
    "ImageNet first. The head is one linear layer on all maps (strides 1, 2 and 4 of ResNet, 2 and 4 of ConvNeXt and Swin, 4 "
    "of ViT), each normalised and enlarged bilinearly. All rows: the same images, steps, optimizer and schedule, and the rates "
    "of backbones.py.\n"
    "IoU: for each image, the pixels of the digit that are found as its class, as a share of the pixels that are of the digit "
    "or are found as any digit; mean over images. Mean IoU of classes: over all images' pixels, with the background, as usual "
    "for ADE20K."
)
base = "../configs/segmentation.py"


def _row(network: str) -> dict:
    fields = dict(STAND_INS[network])
    return {
        "label": network,
        "against": None if network == "ResNet" else "ResNet",
        "overrides": {
            **{"model.backbone": fields.pop("name"), "model.fields": fields},
            "schedule.learning_rate": RATES[network],
        },
    }


_ADE20K = {"ResNet": 42.05, "ConvNeXt": 46.0, "ViT": 42.87, "Swin": 44.51}
_NAMES = {"ResNet": "ResNet-50", "ConvNeXt": "ConvNeXt-T", "ViT": "ViT-S/16", "Swin": "Swin-T"}
computed = [
    {
        "label": _NAMES[network],
        "function": functools.partial(dense.measure_cost, name=name),
        "published": {"ADE20K mIoU %": _ADE20K[network]},
    }
    for network, name in FULL_SIZE.items()
]
rows = [_row(network) for network in STAND_INS]
compare_to = None  # each row is compared with its own `against`
findings = [
    {
        "text": "a hierarchical Transformer is a better backbone for segmentation than a plain ViT (Liu et al. 2022, abstract)",
        "row": "Swin",
        "over": "ViT",
    },
    {
        "text": "ConvNeXt is a better one than Swin (Liu et al. 2022, abstract and Table 7)",
        "row": "ConvNeXt",
        "over": "Swin",
    },
]
measures = {"segmentation": dense.measure_segmentation}
pictures = {"cost": dense.plot_cost}

scales = {
    "quick": {"seeds": 3, "arguments": {"sides": (224, 512, 1024)}},
    "smoke": {
        "seeds": 1,
        "arguments": {"sides": (32, 64)},
        "overrides": {**smoke.CUED_DIGITS, "data.args.number": (32, 20)},
    },
}
