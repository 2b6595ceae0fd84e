"""The first steps of each family's published recipe, on tiny networks and digits, as PyTorch and our train step take them.

Ours start from the config file in `configs/`; the numbers here are typed from the papers and the released code a second time.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tests.helpers import parity

SIDE = 32
DIGITS = Path(__file__).resolve().parents[2] / "attention_jax" / "data" / "digits.npz"


@dataclasses.dataclass(frozen=True)
class Family:
    """Steps of a recipe without augmentation, dropout and stochastic depth.

    Attributes:
        config: `configs/imagenet_CONFIG.py`.
        fields: of our network, a tiny one of that family.
        training: the recipe; its rate is that of tiny networks and small batches.
        seed: of weights and batches.
        examples: of a batch.
        changes: largest accepted difference of what a parameter changed by, as a share of its array's largest. A scale of 1 has
            steps of 1e-7 in float32, so that it is a share of 1e-4 of changes by 1e-3; where batch statistics are those
            of few pixels, errors of rounding grow.
    """

    config: str
    fields: Mapping[str, Any]
    training: parity.Training
    seed: int = 0
    examples: int = 4
    changes: float = 2e-4
    label_smoothing: float = 0.1

    @property
    def steps(self) -> int:
        """Of the run."""
        return self.training.steps

    def batch(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """[B, 32, 32, 3] float32 and [B] int32: digits from 0 to 4 in 4x4 squares with noise, both of mean 0 and deviation 1.

        Without noise thousands of pixels have one value, which crosses the kink of a ReLU for all of them at once.
        """
        images, labels = _read_digits()
        random = np.random.RandomState(1000 * self.seed + step)
        rows = random.randint(0, len(images), self.examples)
        large = images[rows].repeat(SIDE // 8, 1).repeat(SIDE // 8, 2)[..., None]
        return (large + random.standard_normal((*large.shape[:3], 3))).astype(np.float32), labels[rows]


def _read_digits() -> tuple[np.ndarray, np.ndarray]:
    with np.load(DIGITS) as digits:
        images, labels = digits["images"].astype(np.float32), digits["labels"]
    kept = labels < parity.CLASSES
    images = images[kept]
    return (images - images.mean()) / images.std(), labels[kept].astype(np.int32)


_SGD = parity.Training(
    "cosine",
    steps=3,
    options=dict(nesterov=True),
    learning_rate=0.02,
    weight_decay=4e-5,
    ema_decay=0.9999,
    undecayed=r"norm\d*/(bias|scale)$",
)
_RMSPROP = dataclasses.replace(
    _SGD,
    schedule="step",
    optimizer="rmsprop",
    options=dict(rmsprop="tensorflow", b2=0.9, eps=1e-3),
    boundaries=tuple(2.4 * i / 350 for i in range(1, 146)),
    shape=dict(factor=0.97),
    weight_decay=1e-5,
    learning_rate=1e-3,
)
_ADAMW = parity.Training(
    "cosine",
    steps=3,
    optimizer="adamw",
    options=dict(b1=0.9, b2=0.999, eps=1e-8),
    shape=dict(final_share=0.01),
    weight_decay=0.05,
    learning_rate=1e-3,
    ema_warmup=False,
)
_DEIT = dataclasses.replace(_ADAMW, undecayed="(bias|scale|positions|token)$")
_SWIN = dataclasses.replace(_ADAMW, options=dict(_ADAMW.options, clip_norm=5.0), ema_decay=0.0)
_CONVNEXT = dataclasses.replace(_ADAMW, shape=dict(final_share=1e-6 / 4e-3))

FAMILIES = {
    "recipe_convnext": Family("convnext", dict(stage_sizes=(1, 1, 2, 1), widths=(4, 8, 12, 16)), _CONVNEXT),
    "recipe_deit": Family("deit", dict(image_size=SIDE, patch_size=8, layers=2, width=16, heads=2), _DEIT),
    "recipe_swin": Family("swin", dict(patch_size=2, window_size=4, stage_sizes=(2, 2), width=8, heads=(2, 4)), _SWIN),
    "recipe_resnet_rs": Family(
        "resnet_rs", dict(stage_sizes=(1, 1, 1, 1), widths=(8, 8, 16, 16)), _SGD, seed=23, examples=16, changes=1e-2
    ),
    "recipe_efficientnet": Family("efficientnet", dict(width=0.25, depth=0.5), _RMSPROP, examples=16, changes=2e-2),
}
# Gradient 0: a key's bias adds the same to all scores of a query, and batch normalisation after the next linear layer takes a
# bias back. What divides a gradient by its size divides rounding errors so.
WITHOUT_GRADIENT = ("key/bias", "project_norm/bias")


def leave_out(results: parity.Results) -> parity.Results:
    """Without the changes of parameters whose gradient is 0."""
    return {
        kind: {path: value for path, value in values.items() if not path.endswith(WITHOUT_GRADIENT)}
        for kind, values in results.items()
    }


def check_family(family: Family, ours: parity.Results, theirs: parity.Results, tighter: float = 1.0) -> None:
    """Asserts that losses, gradients' norms, rates and changes agree."""
    ours, theirs = leave_out(ours), leave_out(theirs)
    kinds = {kind: parity.GRADIENTS / family.changes if kind.endswith("changes") else 0.2 for kind in theirs}
    for kind, share in kinds.items():
        parity.check({kind: ours[kind]}, {kind: theirs[kind]}, tighter * share)


def lengthen(family: Family, steps: int, examples: int = 32) -> Family:
    """The same with more steps of larger batches, a tenth of them warm-up, and the average that it publishes."""
    published = {"convnext": 0.9999, "deit": 0.99996}
    decay = published.get(family.config, family.training.ema_decay)
    training = dataclasses.replace(family.training, steps=steps, warmup_steps=steps // 10, ema_decay=decay)
    return dataclasses.replace(family, training=training, examples=examples)
