"""ResNet-RS against EfficientNet: published accuracies beside modelled steps; nothing is trained and nothing is timed.

Run:       ./launch.sh table experiments/speed_accuracy.py
Hardware:  a CPU core, nearly all for compilation, which the compilation cache keeps; how long was not measured.
Expected:  experiments/results/speed_accuracy.md

Networks, slice, batch and the rule of the verdict were fixed before anything was compiled.
"""

import functools
from pathlib import Path

import attention_jax as aj
from attention_jax.config import load_config, override
from attention_jax.preflight.chips import find_slice
from attention_jax.preflight.measure import describe_devices, measure_step
from attention_jax.preflight.report import Report

title = "ResNet-RS against EfficientNet: similar accuracy, faster training?"
source = (
    "Bello et al. 2021 (arXiv 2103.07579), Section 5 and Table 3, with accuracies and step times of the released networks from "
    "tensorflow/tpu, models/official/resnet/resnet_rs/README.md (TPU v3); EfficientNet's accuracies from Table 2 of Tan & Le "
    "2019 (arXiv 1905.11946)."
)
notes = (
    "Not measured: no step ran. Each training step is compiled by libtpu for the slice, with 16 images a chip in bfloat16, the "
    "same in all rows: SGD with momentum, an average of the weights, batch statistics of a chip. ms at best is the largest of "
    "its multiply-adds, bytes of memory and bytes between chips over the chips' published peaks; ms of the sum is all three "
    "one after another. Published runs on TPU v3 took 0.9 to 1.5 times the sum, those of ResNet-RS 0.91 to 0.96 "
    "(preflight.md); none of them is an EfficientNet. Multiply-adds are counted at the full peak, which depthwise "
    "convolutions, one filter a channel, do not reach: the model flatters EfficientNet.\n"
    "Similar: published accuracies at most 0.5 points apart; the two papers' recipes differ. Faster: agrees where even "
    "1.5 times the sum of ResNet-RS is less than 0.9 times that of EfficientNet, disagrees the other way round. Times as fast: "
    "the ratio of the sums."
)
_IMAGENET = Path(__file__).parents[1] / "configs/imagenet_resnet50.py"
# (ResNet-RS, EfficientNet of similar accuracy): network, pixels a side, top-1 %, published ms a step of 1,024 images on TPU v3.
_PAIRS = (
    (("resnetrs50", 160, 78.8, 70), ("efficientnet_b1", 240, 79.1, None)),
    (("resnetrs101", 160, 80.3, 120), ("efficientnet_b2", 260, 80.1, None)),
    (("resnetrs152", 256, 83.0, 410), ("efficientnet_b4", 380, 82.9, None)),
    (("resnetrs350", 256, 84.0, 1100), ("efficientnet_b6", 528, 84.0, None)),
)
_SIMILAR = 0.5  # points


@functools.cache
def _report(network: str, side: int, topology: str, batch: int) -> Report:
    """The network's training step for the slice."""
    slice_ = find_slice(topology)
    fields = {
        "model.name": network,
        "data.image_shape": (side, side, 3),
        "data.eval_resize": side,
        "batch_size": batch,
        "evaluation.batch_size": batch,
        "precision": "bfloat16",
        "ema.decay": 0.9999,
    }
    config = override(load_config(str(_IMAGENET)), fields)
    return Report(slice_, measure_step(config, describe_devices(slice_)), None)


def _measure(network: str, side: int, topology: str | None, batch: int) -> dict:
    """Counts, and with a topology what the compiled step needs and takes; `topology` None compiles nothing."""
    counts = aj.summary(aj.create_model(network), (1, side, side, 3))
    found = {"parameters": f"{counts.params:,}", "GMACs": counts.macs / 1e9}
    if topology is None:
        return found
    report = _report(network, side, topology, batch)
    found |= {"GiB a chip": report.cost.needed / 2**30, "fits": "yes" if report.fits else "no"}
    if report.fits:
        found |= {"ms at best": 1e3 * report.step, "bound": report.bound, "ms of the sum": 1e3 * sum(report.bounds.values())}
    return found


def _compare(ours: tuple, theirs: tuple, topology: str | None, batch: int) -> dict:
    """The claim for two networks, the first of ResNet-RS."""
    difference = ours[2] - theirs[2]
    found = {"points of accuracy (published)": f"{difference:+.1f}", "similar": "yes" if abs(difference) <= _SIMILAR else "no"}
    if topology is None:
        return found
    first, second = (_report(*network[:2], topology, batch) for network in (ours, theirs))
    found["times the memory"] = first.cost.needed / second.cost.needed
    if not (first.fits and second.fits):
        return {**found, "faster": "not compared: a step does not fit"}
    (least, most), (their_least, their_most) = first.expected, second.expected
    found["times as fast"] = sum(second.bounds.values()) / sum(first.bounds.values())
    return {**found, "faster": "agrees" if most < their_least else "disagrees" if least > their_most else "cannot tell here"}


computed = [
    {
        "label": f"{network} at {side}",
        "function": functools.partial(_measure, network, side),
        "published": {"top-1 %": accuracy, "ms of 1024 images on v3-8": milliseconds or "–"},
    }
    for pair in _PAIRS
    for network, side, accuracy, milliseconds in pair
]
computed += [
    {
        "label": f"{ours[0]} against {theirs[0]}",
        "function": functools.partial(_compare, ours, theirs),
        "published": {"times as fast": 2.7, "times the memory": "1/2.3"} if ours[0] == "resnetrs350" else {},
    }
    for ours, theirs in _PAIRS
]
scales = {
    "quick": {"arguments": {"topology": "v4-16", "batch": 128}},
    "smoke": {"arguments": {"topology": None, "batch": 128}},
}
