"""What our networks and PyTorch's share when they are compared: cases, numbers drawn by name, and what is stored.

Weights, statistics, images and labels are never stored: both sides draw them with `numpy.random.RandomState`, whose
stream is fixed for ever, seeded by the parameter's path in our tree. A fixture holds results alone, computed by
PyTorch in float64 (`python -m tests.peers.freeze`).
"""

import dataclasses
import re
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures"
CLASSES = 5
BATCH = 4

# Largest accepted difference, as a share of the largest value of the same array; ours is float32, the reference float64.
# The worst seen over all cases is 8e-7 for logits, 4e-7 for statistics, 1.1e-5 for gradients.
LOGITS, STATISTICS, GRADIENTS = 1e-5, 1e-5, 5e-5

WHOLE = 64  # entries up to which a gradient is stored whole
PROJECTIONS = 16  # random projections stored of a larger one


@dataclasses.dataclass(frozen=True)
class Case:
    """One tiny network.

    Attributes:
        fields: of `ResNet`; the defaults of this file are in `network`.
        image: height and width, different where nothing forbids it.
        dilations: of BAM's 3x3 convolutions after each stage, as a number that the test states.
        seed: changes every random number; chosen so that no ReLU sees a value within float32 rounding of its kink and
            every weight matters (`python -m tests.peers.freeze` refuses the others).
        label_smoothing: of the loss.
    """

    fields: Mapping[str, Any]
    image: tuple[int, int] = (16, 12)
    dilations: tuple[int, ...] = ()
    seed: int = 0
    label_smoothing: float = 0.0

    @property
    def network(self) -> dict[str, Any]:
        """Every field of `ResNet` that the case sets."""
        tiny = dict(num_classes=CLASSES, stem="cifar", widths=(8, 16), stage_sizes=(1, 1), block="basic")
        return {**tiny, **self.fields}


def _bam(**args: Any) -> dict[str, Any]:
    return dict(gate="bam", gate_at="stage", gate_args=dict(reduction=2, **args))


def _se(**args: Any) -> dict[str, Any]:
    return dict(gate="se", gate_at="block", gate_args=args)


def _block(gate: str, **args: Any) -> dict[str, Any]:
    return dict(gate=gate, gate_at="block", gate_args=args)


def _attention(**args: Any) -> dict[str, Any]:
    return dict(gate="self_attention", gate_stages=(1,), gate_args=dict(reduction=4, **args))


_RESNEXT = dict(block="bottleneck", cardinality=4, width_per_group=16)  # 8 filters: 4 groups of 2

CASES = {
    "basic_a": Case(dict(shortcut="A", stage_sizes=(1, 2))),
    "basic_a_centred": Case(dict(shortcut="A-centred", widths=(8, 16, 32), stage_sizes=(1, 1, 1))),
    "basic_b": Case(dict(shortcut="B"), label_smoothing=0.1),
    "bottleneck_v1": Case(dict(block="bottleneck", stride_at="1x1")),
    "bottleneck_v1.5": Case(dict(block="bottleneck", stride_at="3x3", stage_sizes=(1, 2)), seed=2),
    "bottleneck_a": Case(dict(block="bottleneck", shortcut="A"), seed=3),
    "plain": Case(dict(shortcut="A", residual=False, stage_sizes=(1, 2))),
    "imagenet_stem": Case(dict(stem="imagenet"), image=(36, 29), seed=1),
    "se": Case(_se(reduction=4), seed=3),
    "se_no_bias": Case(dict(block="bottleneck", **_se(reduction=4, use_bias=False)), seed=6),
    "se_divisor": Case(_se(reduction=2, divisor=8), seed=3),
    "bam_paper": Case(_bam(), dilations=(4,)),
    "bam_code": Case(dict(block="bottleneck", **_bam(combine="product", batch_norm="code")), dilations=(4,), seed=2),
    "bam_max": Case(_bam(combine="max"), dilations=(4,), seed=9),
    "bam_dilation_1": Case(_bam(dilation=1), dilations=(1,), seed=7),
    "bam_channel": Case(_bam(spatial=False)),
    "bam_spatial": Case(_bam(channel=False), dilations=(4,)),
    "bam_small_map": Case(dict(widths=(8, 16, 32), stage_sizes=(1, 1, 1), **_bam()), image=(8, 8), dilations=(4, 2), seed=1),
    "bam_code_small_map": Case(
        dict(widths=(8, 16, 32), stage_sizes=(1, 1, 1), **_bam(combine="product", batch_norm="code", fit_dilation=False)),
        image=(10, 8),
        dilations=(4, 4),
        seed=1,
    ),
    "senet": Case(
        dict(**_RESNEXT, stem="wide_deep", shortcut="B-3x3", first_divisor=2, **_se(reduction=4)), image=(15, 12), seed=2
    ),
    "grouped": Case(dict(**_RESNEXT, stage_sizes=(1, 2)), seed=1),
    "wide_v1": Case(dict(block="bottleneck", width_per_group=128, stride_at="1x1")),
    "d": Case(dict(stem="deep", shortcut="D", block="bottleneck"), image=(38, 29), seed=7),
    "d_basic": Case(dict(shortcut="D"), image=(15, 12)),
    "rs": Case(dict(block="bottleneck", stem="rs", shortcut="D", **_se(reduction=4)), image=(36, 29), seed=7),
    "attention_paper": Case(_attention(value_reduction=4)),
    "attention_official": Case(_attention(value_reduction=2, pool=2), image=(15, 12), seed=1),
    "attention_values": Case(_attention(value_reduction=1, project=False, use_bias=True)),
    "cbam": Case(dict(gate="cbam", gate_at="block", gate_args=dict(reduction=2)), seed=3),
    "eca": Case(dict(gate="eca", gate_at="block")),
    "gc": Case(dict(gate="gc", gate_at="block", gate_stages=(2,), gate_args=dict(reduction=4))),
    "gc_scale": Case(dict(gate_stages=(2,), **_block("gc", reduction=2, fuse="scale", epsilon=1e-6)), seed=3),
    "gca": Case(_block("gca", reduction=2)),
    "ese": Case(_block("ese")),
    "ge": Case(_block("ge", extent=4), image=(15, 12)),
    "ge_conv": Case(_block("ge", extent=4, gather="conv", mlp=True, reduction=2), image=(15, 12)),
    "coord": Case(_block("coord"), image=(15, 12), seed=3),
    "nl": Case(_block("nl", reduction=4, scaled=True)),
    "group_norm": Case(dict(norm="group", shortcut="B")),
    "no_norm": Case(dict(norm="none", stage_sizes=(1, 2))),
}
BIASED = "basic_b"  # the case whose fixture also holds the running variances as Flax and TensorFlow keep them

# Whole published networks whose logits are stored: our name and the seed.
IMAGENET = {"resnet18": 0, "seresnet18": 0, "resnet18d": 0}
IMAGENET_IMAGE = (64, 64)


def _random(seed: int, name: str) -> np.random.RandomState:
    return np.random.RandomState(zlib.crc32(f"{seed}/{name}".encode()))


def draw(seed: int, path: str, shape: tuple[int, ...]) -> np.ndarray:
    """The float32 value of the leaf at `path`, by whose last name it is drawn.

    Nothing is at a value that hides a mistake: no scale or variance is 1, no bias or mean 0.
    """
    random = _random(seed, path)
    kind = path.rpartition("/")[2]
    if kind == "kernel":
        value = random.standard_normal(shape) / np.sqrt(np.prod(shape[:-1]))
    elif kind in ("embedding", "table", "positions", "class_token", "distillation_token", "relative_bias"):
        value = random.standard_normal(shape) / np.sqrt(shape[-1])
    elif kind in ("scale", "var", "gamma", "layer_scale"):
        value = random.uniform(0.5, 2.0, shape)
    elif kind in ("bias", "mean", "logits_bias"):
        value = 0.3 * random.standard_normal(shape)
    else:
        raise ValueError(f"no rule for {path}")
    return value.astype(np.float32)


def images(seed: int, height: int, width: int, batch: int = BATCH) -> np.ndarray:
    """[B, H, W, 3] float32."""
    return _random(seed, "images").standard_normal((batch, height, width, 3)).astype(np.float32)


def labels(seed: int) -> np.ndarray:
    """[B] int32, in range(CLASSES)."""
    return _random(seed, "labels").randint(0, CLASSES, BATCH).astype(np.int32)


def compress(path: str, gradient: np.ndarray) -> np.ndarray:
    """The entries of a small gradient; of a larger one, inner products with random directions of its own typical size."""
    flat = np.asarray(gradient, np.float64).ravel()
    if flat.size <= WHOLE:
        return flat
    return _random(0, f"projection of {path}").standard_normal((PROJECTIONS, flat.size)) @ flat / np.sqrt(flat.size)


def difference(ours: np.ndarray, theirs: np.ndarray, floor: float = 0.0) -> float:
    """Largest absolute difference as a share of the largest value of `theirs`, or of `floor` when that is larger."""
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    assert ours.shape == theirs.shape, f"{ours.shape} against {theirs.shape}"
    return float(np.abs(ours - theirs).max() / max(np.abs(theirs).max(), floor, 1e-30))


# {"logits" | "train_logits": {"": [B, K]}, "gradients" | "train_gradients" | "statistics": {path: array}}; gradients are
# compressed. Of a training run: "params" | "average" | "changes" | "average_changes": {path: array}, "loss" | …: {"": [steps]}.
Results = dict[str, dict[str, np.ndarray]]


def check(ours: Results, theirs: Results, tighter: float = 1.0) -> None:
    """Asserts that two results agree, array by array, within this file's tolerances divided by `tighter`."""
    wrong = []
    for kind, reference in theirs.items():
        assert sorted(ours[kind]) == sorted(reference), f"{kind}: different parameters"
        gradients = kind.endswith(("gradients", "changes"))
        accepted = (GRADIENTS if gradients else STATISTICS if "statistics" in kind else LOGITS) / tighter
        for path, value in reference.items():
            floor = 0.0
            if gradients and path.endswith("/bias"):
                # A bias before batch normalisation has gradient zero; its rounding error has its kernel's scale.
                module = path.rpartition("/")[0]
                siblings = [reference[f"{module}/{name}"] for name in ("kernel", "scale") if f"{module}/{name}" in reference]
                floor = max((np.abs(sibling).max() for sibling in siblings), default=0.0)
            off = difference(ours[kind][path], value, floor)
            if not off <= accepted:
                wrong.append(f"{kind} {path}: off by {off:.1e} of the largest value, accepted {accepted:.1e}")
    assert not wrong, "\n".join([f"{len(wrong)} arrays differ", *wrong[:12]])


def save(name: str, results: Results) -> None:
    """Writes one fixture: a float32 vector and a list of `path shape` lines for each kind."""
    arrays = {}
    for kind, values in results.items():
        if not values:  # the statistics of a network without batch norm
            continue
        arrays[kind] = np.concatenate([np.ravel(value) for value in values.values()]).astype(np.float32)
        lines = [" ".join([path or "-", *map(str, np.shape(value))]) for path, value in values.items()]
        arrays[f"{kind}.index"] = np.frombuffer("\n".join(lines).encode(), np.uint8)
    np.savez_compressed(FIXTURES / f"parity_{name}.npz", **arrays)


def load(name: str) -> Results:
    """The fixture that `save` wrote."""
    results: Results = {}
    with np.load(FIXTURES / f"parity_{name}.npz") as arrays:
        for kind in arrays.files:
            if not kind.endswith(".index"):
                results[kind] = _unpack(arrays[kind], arrays[f"{kind}.index"].tobytes().decode().splitlines())
    return results


def _unpack(vector: np.ndarray, lines: Iterable[str]) -> dict[str, np.ndarray]:
    values, start = {}, 0
    for line in lines:
        path, *shape = line.split()
        size = int(np.prod([int(n) for n in shape]))
        values["" if path == "-" else path] = vector[start : start + size].reshape([int(n) for n in shape])
        start += size
    assert start == vector.size
    return values


@dataclasses.dataclass(frozen=True)
class Training:
    """A few optimizer steps on two tiny layers with gradients drawn by name.

    `options` are keyword arguments of `make_optimizer`, `shape` of `make_schedule`.
    """

    schedule: str
    ema_warmup: bool = True
    optimizer: str = "sgd"
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    shape: Mapping[str, float] = dataclasses.field(default_factory=dict)
    steps: int = 6
    learning_rate: float = 0.1
    warmup_steps: int = 2
    boundaries: tuple[float, ...] = (0.5,)
    momentum: float = 0.9
    weight_decay: float = 0.1
    ema_decay: float = 0.6  # reached at step 13 with the warm-up, at once without
    undecayed: str = "(bias|scale)$"

    shapes: ClassVar = {"dense/bias": (4,), "dense/kernel": (3, 4), "norm/bias": (4,), "norm/scale": (4,)}

    def decays(self, path: str) -> bool:
        """Whether weight decay pulls on the parameter at `path`."""
        return not re.search(self.undecayed, path)


# The gradients of a step have norms from 4.08 to 5.81: a largest norm of 4.5 clips three of the six.
TRAININGS = {
    "sgd": Training("step", ema_warmup=False),
    "sgd_nesterov": Training("cosine", options=dict(nesterov=True)),
    "sgd_clipped": Training("linear", options=dict(clip_norm=4.5), shape=dict(final_share=0.25)),
    "sgd_decoupled": Training("cosine", options=dict(decay="decoupled", nesterov=True), shape=dict(warmup_start=0.02)),
    "sgd_rate_in_velocity": Training("step", options=dict(rate_in_velocity=True)),
    "rmsprop_tensorflow": Training("cosine", optimizer="rmsprop", options=dict(rmsprop="tensorflow", b2=0.8, eps=0.01)),
    "rmsprop_keras": Training("cosine", optimizer="rmsprop", options=dict(rmsprop="keras", b2=0.8, eps=0.01)),
    "rmsprop_torch": Training("cosine", optimizer="rmsprop", options=dict(rmsprop="torch", b2=0.8, eps=0.01)),
    "adamw": Training("cosine", optimizer="adamw", options=dict(b1=0.8, b2=0.95, eps=0.01)),
}


def gradient(path: str, shape: tuple[int, ...], step: int) -> np.ndarray:
    """The gradient of one parameter at one step."""
    return _random(step, f"gradient of {path}").standard_normal(shape).astype(np.float32)


@dataclasses.dataclass(frozen=True)
class Recipe:
    """The first `steps` steps of a training run of a tiny network: loss, gradient, clipping, optimizer, averages."""

    case: Case
    training: Training
    steps: int = 4

    @property
    def label_smoothing(self) -> float:
        """Of the loss."""
        return self.case.label_smoothing

    def batch(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Images and labels of one step."""
        seed = 100 * (self.case.seed + 1) + step
        return images(seed, *self.case.image), labels(seed)


_CASE = Case(dict(shortcut="B"), label_smoothing=0.1)
_SGD = dict(nesterov=True, clip_norm=2.0)  # three of the four gradients are larger
RECIPES = {
    "recipe_sgd": Recipe(dataclasses.replace(_CASE, seed=3), Training("cosine", options=_SGD, weight_decay=0.01)),
    "recipe_rmsprop": Recipe(
        dataclasses.replace(_CASE, seed=3),
        Training(
            "linear",
            optimizer="rmsprop",
            options=dict(rmsprop="tensorflow", b2=0.9, eps=1e-3),
            shape=dict(warmup_start=0.02, final_share=0.3),
            learning_rate=0.1,
            weight_decay=0.01,
        ),
    ),
    # Adam divides a gradient by its own size, and its rounding error too: a large eps keeps float32 comparable.
    "recipe_adamw": Recipe(
        _CASE,
        Training("cosine", optimizer="adamw", options=dict(b1=0.9, b2=0.99, eps=0.1), ema_warmup=False, learning_rate=0.02),
    ),
}
