"""What training steps need on TPU slices, compiled without one, and published times beside what is predicted.

Run:       ./launch.sh preflight all [--rows='ResNet-50 @ *']     resumes: rows that are there stay
Hardware:  a CPU core and 4 GB; a row takes minutes on a core of its own, most of it compilation.
"""

command = "./launch.sh preflight all"
title = "Training steps on TPU slices that need not be there"
notes = """
libtpu compiled the steps on a CPU. The numbers are bounds from the program and the chips' published peaks, not measurements.

- state: parameters, optimizer, averages and statistics of one device, as XLA lays them out.
- needed: the state with temporaries and program.
- exchanged: by one device in a step.
- ms at best: the largest of compute, memory and interconnect. The hours are all steps at that.
- peak at most: 2 x 3 x multiply-adds of the forward pass, divided by the step's time and the chips' peak.
- a host's input: what its cores must deliver, and how many cores like the compiling machine's prepare that.
- memory traffic: arrays that are fetched ahead in slices count in full for each slice, up to 9 % too much, and so do the ms.
"""

_IMAGENET = "../configs/imagenet_resnet50.py"
_WMT = "../configs/wmt14_transformer.py"
# Images: 1,024 at once in bfloat16, as one would train on a slice; 64 a chip of 16.
_IMAGES = {"batch_size": 1024, "evaluation.batch_size": 1024, "precision": "bfloat16"}
# What the data say: 4.5 million pairs (published, Section 5.1 of Vaswani et al. 2017) in batches of 25,000 tokens a side,
# here about 25 tokens a sentence; batches of the longest bucket, which needs the most memory, are compiled.
_PAIRS = {
    "model.vocab_size": 37_000,
    "data.bucket_lengths": (256,),
    "data.num_examples": 4_500_000,
    "data.num_batches": 4500,
    "data.rows_multiple": 16,
    "precision": "bfloat16",
}
_RS = {
    "data.image_shape": (256, 256, 3),
    "data.eval_resize": 256,
    "batch_size": 1024,
    "evaluation.batch_size": 1024,
    "precision": "bfloat16",
    "ema.decay": 0.9999,
    "model.dropout_rate": 0.25,
    "total_epochs": 350.0,
}

rows = [
    {"label": "ResNet-50", "config": _IMAGENET, "fields": _IMAGES, "slices": ("v5e-16", "v6e-16", "v4-32")},
    {"label": "Transformer base", "config": _WMT, "fields": _PAIRS, "slices": ("v5e-16", "v6e-16", "v4-32")},
    {"label": "Transformer big", "config": f"{_WMT}:transformer_big", "fields": _PAIRS, "slices": ("v5e-16", "v4-32")},
    {"label": "BAM-ResNet-50", "config": f"{_IMAGENET}:bam_resnet50", "fields": _IMAGES, "slices": ("v5e-16",)},
    {"label": "ResNeXt-101 32x8d", "config": f"{_IMAGENET}:resnext101_32x8d", "fields": _IMAGES, "slices": ("v5e-16",)},
    {
        "label": "ResNet-RS-200",
        "config": f"{_IMAGENET}:resnetrs200",
        "fields": {**_RS, "model.drop_path_rate": 0.1},
        "slices": ("v5e-16",),
    },
]

_RS_SOURCE = "tensorflow/tpu, models/official/resnet/resnet_rs/README.md: TPU v3, bfloat16, 128 images a core"
_FLAX = "google/flax, examples"
calibration_notes = """
Published times are of other programs, for the same network, batch and chip. Where the source gives hours, evaluation and input
are part of them.

- ms of matmuls alone: 2 x 3 x multiply-adds of the forward pass at the chips' peak; nothing is compiled for this.
- ms at best: the bound from the compiled program.
- error of that: of the sum of its compute, memory and interconnect.
"""


def _latency(depth: int, side: int, milliseconds: float) -> dict:
    return {
        "label": f"ResNet-RS-{depth} at {side}",
        "config": f"{_IMAGENET}:resnetrs{depth}",
        "fields": {**_RS, "data.image_shape": (side, side, 3), "data.eval_resize": side},
        "slices": ("v3-8",),
        "published": milliseconds,
        "source": _RS_SOURCE,
    }


calibration = [
    {
        "label": "ResNet-50",
        "config": _IMAGENET,
        "fields": _IMAGES,
        "slices": ("v3-8",),
        "published": 4.4 * 3600e3 / 125_100,
        "source": f"{_FLAX}/imagenet/README.md: 125,100 steps of 1,024 in 4.4 h with evaluation",
    },
    _latency(50, 160, 70),
    {
        "label": "Transformer big",
        "config": f"{_WMT}:transformer_big",
        "fields": {**_PAIRS, "batch_size": 65_536, "model.vocab_size": 32_000, "data.num_batches": 1700},
        "slices": ("v3-8",),
        "published": 13.3 * 3600e3 / 100_000,
        "source": f"{_FLAX}/wmt/README.md: 100,000 steps of 8 x 32 packed rows of 256 in 13 h 18 m, with a translation of the "
        "test set every 1,000",
    },
    _latency(101, 160, 120),
    _latency(152, 256, 410),
    _latency(200, 256, 570),
    _latency(350, 320, 1630),
]
