"""Three networks from 16 to 1,024 chips and 1 to 4 slices, on paper: bounds out of one compiled step each.

Run:       ./launch.sh preflight scaling [--rows='ConvNeXt-B @ *']     resumes: steps that are there stay
Hardware:  a CPU core and 4 GB; a large network's step takes minutes on a core of its own, the page itself seconds.
"""

command = "./launch.sh preflight scaling"
title = "Scaling on paper"
finding = (
    "By the published peaks of v5e, more chips with the same batch each cost what they bring; with the same batch in total, "
    "twice the chips soon are less than 1.5 times as fast. Nothing here ran on a TPU."
)
notes = """
For each network one step was compiled for 16 chips; its operations, memory traffic and gradients
give all other cells by the formulas at the head of `attention_jax/preflight/scaling.py`, at the chips' published peaks:

- compute and memory traffic grow with the batch of a chip, but for reading and writing state and gradients;
- gradients are summed by a ring inside a slice; then each chip exchanges its part with the same chip of the other slices;
- the links count as if all of a corner chip's were used, the network between slices as a chip's published share of it.

ms at best: the largest bound, as if all overlapped. ms if nothing overlaps: their sum, from which all columns after it come; in
published runs on TPU v3 a step took 0.9 to 1.5 times that (preflight.md). exchanges: their share of it. hours: the config's
schedule, as many epochs at every batch; evaluation, input and start come on top. A larger batch may need more epochs for the
same accuracy, which is not in here. Not in here either: latency of small exchanges, stragglers, failures.

The checks at the end are of small networks. For the convolutional one the formulas agree with the compiled program within 16 %.
For the Transformer on two slices they have too few bytes, by the shares in the table: XLA sums the gradients of the uses of the
embedding apart, each first as a whole in a slice; and 37,000 rows do not divide into equal tiles for 16 chips, so fewer and
larger parts cross the network than of 36,864 rows. That is not modelled: take such times on several slices as too low.
"""

counts = (16, 32, 64, 128, 256, 512, 1024)
slices = (1, 2, 4)

_IMAGENET, _WMT = "../configs/imagenet_resnet50.py", "../configs/wmt14_transformer.py"
_RS = {
    "data.image_shape": (256, 256, 3),
    "data.eval_resize": 256,
    "batch_size": 1024,
    "evaluation.batch_size": 1024,
    "precision": "bfloat16",
    "ema.decay": 0.9999,
    "model.dropout_rate": 0.25,
    "total_epochs": 350.0,
    "model.drop_path_rate": 0.1,
}
_PAIRS = {
    "model.vocab_size": 37_000,
    "data.bucket_lengths": (256,),
    "data.num_examples": 4_500_000,
    "data.num_batches": 4500,
    "data.rows_multiple": 16,
    "precision": "bfloat16",
}
_CONVNEXT = {"batch_size": 1024, "evaluation.batch_size": 1024, "precision": "bfloat16"}

rows = [
    {"label": "ResNet-RS-200", "config": f"{_IMAGENET}:resnetrs200", "fields": _RS, "slices": ("v5e-16",)},
    {
        "label": "ConvNeXt-B",
        "config": "../configs/imagenet_convnext.py:convnext_base",
        "fields": _CONVNEXT,
        "slices": ("v5e-16",),
    },
    {
        "label": "Transformer big",
        "config": f"{_WMT}:transformer_big",
        "fields": _PAIRS,
        "slices": ("v5e-16",),
    },
]


# Networks that compile in minutes, for one slice and for two, with as many examples per chip.
_COUNTS = (("v5e-16", 16), ("2xv5e-16", 32))


def _images(chips: int) -> dict:
    sizes = {"batch_size": 32 * chips, "evaluation.batch_size": 32 * chips, "data.image_shape": (64, 64, 3)}
    rest = {"data.eval_resize": 64, "batch_norm.granularity": "per_replica", "data.num_examples": 1_281_167}
    return {**sizes, **rest, "precision": "bfloat16"}


def _tokens(chips: int, vocabulary: int) -> dict:
    sizes = {"batch_size": 1536 * chips, "evaluation.batch_size": 1536 * chips, "data.rows_multiple": chips}
    sizes |= {"model.vocab_size": vocabulary}
    return {**_PAIRS, **sizes, "data.num_batches": 72_000 // chips, "model.layers": 2}


checks = [
    *(
        {"label": "ResNet-18 at 64", "config": f"{_IMAGENET}:resnet18", "fields": _images(chips), "slices": (slice_,)}
        for slice_, chips in _COUNTS
    ),
    *(
        {"label": f"Transformer, 2 layers, {n:,} tokens", "config": _WMT, "fields": _tokens(chips, n), "slices": (slice_,)}
        for n in (37_000, 36_864)
        for slice_, chips in _COUNTS
    ),
]
