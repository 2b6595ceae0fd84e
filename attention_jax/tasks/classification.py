"""Image classification."""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from attention_jax.data import image
from attention_jax.data.loader import Loader
from attention_jax.data.sources import Source, open_source
from attention_jax.errors import UserError
from attention_jax.models import create_model
from attention_jax.optim import mixing
from attention_jax.optim.losses import cross_entropy, soft_cross_entropy, target_distribution

HEADLINE = "accuracy"


def _source(config: ConfigDict, split: str) -> Source:
    return open_source(config.data.source, split, config.data.args.to_dict())


def resolve(config: ConfigDict) -> ConfigDict:
    """`data.num_examples`, `data.image_shape` and `model.num_classes`, read off the training data where they are None.

    A config that states all three is resolved without its data, so that its step can be compiled where they are not.
    """
    config = config.copy_and_resolve_references()
    found = (config.data.num_examples, config.data.image_shape, config.model.get("num_classes"))
    if None in found:
        source = _source(config, config.data.train_split)
        own = (len(source), tuple(source[0]["image"].shape), int(source.num_classes))
        found = tuple(theirs if ours is None else ours for ours, theirs in zip(found, own, strict=True))
    with config.unlocked():
        config.data.num_examples, config.data.image_shape, config.model.num_classes = found
    channels = config.data.image_shape[-1]
    for field in ("mean", "std"):
        if len(config.data[field]) != channels:
            raise UserError(f"data.{field}={config.data[field]} has {len(config.data[field])} values for {channels} channels.")
    return config


def model(config: ConfigDict, norm_group_size: int | None = None) -> nn.Module:
    """The network of a resolved config; its field `dtype` is set when it computes in bfloat16."""
    fields = config.model.to_dict()
    if config.precision == "bfloat16":
        fields["dtype"] = "bfloat16"
    return create_model(fields.pop("name"), **fields, norm_group_size=norm_group_size)


def example_inputs(config: ConfigDict) -> tuple[jax.ShapeDtypeStruct, ...]:
    """One normalised image, [1, H, W, C] float32."""
    return (jax.ShapeDtypeStruct((1, *config.data.image_shape), jnp.float32),)


def preprocess(config: ConfigDict, images: np.ndarray) -> np.ndarray:
    """uint8 [B, H, W, C] -> float32 [B, H, W, C], as evaluation does it."""
    return image.normalise(images, config.data.mean, config.data.std)


def loader(config: ConfigDict, split: str, process: tuple[int, int], training: bool) -> Loader:
    """The loader of one split. Training pads, crops and flips as the config says; evaluation takes images as they are."""
    transforms = []
    if config.data.crop_padding:
        transforms.append(image.pad_and_crop(config.data.crop_padding))
    if config.data.flip:
        transforms.append(image.flip())
    augment = image.chain(transforms)
    shape = tuple(config.data.image_shape)

    def transform(example: dict[str, Any], rng: np.random.Generator | None) -> dict[str, Any]:
        pixels = example["image"]
        if pixels.shape != shape:
            raise UserError(f"data.source={config.data.source}: an image of shape {pixels.shape} among images of {shape}.")
        return {"image": augment(pixels, rng) if rng is not None else pixels, "label": example["label"]}

    def collate(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {**batch, "image": preprocess(config, batch["image"])}

    source = _source(config, split)
    if source.num_classes > config.model.num_classes:
        raise UserError(
            f"model.num_classes={config.model.num_classes} is fewer than the {source.num_classes} classes of "
            f"data.source={config.data.source}: give None to take the data's."
        )
    if training and len(source) != config.data.num_examples:
        raise UserError(
            f"data.num_examples={config.data.num_examples} but split {split!r} of data.source={config.data.source} has "
            f"{len(source)}: give None to take the data's."
        )
    return Loader(
        source=source,
        batch_size=config.batch_size if training else config.evaluation.batch_size,
        seed=config.seed,
        transform=transform,
        collate=collate,
        threads=config.data.threads,
        process=process,
    )


def mix(config: ConfigDict, batch: Mapping[str, jax.Array], rng: jax.Array) -> Mapping[str, jax.Array]:
    """The batch after mixup and CutMix as `config.mix` says, or the batch itself when both are off."""
    options = config.mix
    if not (options.mixup_alpha or options.cutmix_alpha) or not options.probability:
        return batch
    return mixing.mix(
        rng, dict(batch), options.mixup_alpha, options.cutmix_alpha, options.probability, options.switch_probability
    )


def loss(
    config: ConfigDict, model: nn.Module, variables: dict, batch: Mapping[str, jax.Array], rng: jax.Array, train: bool
) -> tuple[dict[str, jax.Array], dict]:
    """Sums over the batch of weighted loss (nats), of right answers and of weights; the new batch statistics.

    An answer for a mixed image is right when it is the class with the larger share.
    """
    mutable = ["batch_stats"] if train else []
    logits, changed = model.apply(variables, batch["image"], train=train, mutable=mutable, rngs={"dropout": rng})
    label, weight = batch["label"], batch["weight"]
    targets = target_distribution(label, logits.shape[-1], config.loss.label_smoothing, config.loss.smoothing_over)
    if "share" in batch:
        partner, share = batch["partner"], batch["share"]
        others = target_distribution(partner, logits.shape[-1], config.loss.label_smoothing, config.loss.smoothing_over)
        targets = share[:, None] * targets + (1 - share[:, None]) * others
        label = jnp.where(share >= 0.5, label, partner)
    per_example = soft_cross_entropy(logits, targets)
    right = jnp.argmax(logits, -1) == label
    sums = {"loss": (per_example * weight).sum(), "accuracy": (right * weight).sum(), "weight": weight.sum()}
    return sums, changed


def outputs(config: ConfigDict, model: nn.Module, variables: dict, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """Per example: unsmoothed loss (nats) and whether the first choice is right."""
    logits = model.apply(variables, batch["image"], train=False)
    return {"loss": cross_entropy(logits, batch["label"]), "correct": jnp.argmax(logits, -1) == batch["label"]}


def metrics(config: ConfigDict, outputs: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Accuracy (share of right first choices) and mean loss in nats."""
    return {"accuracy": float(outputs["correct"].mean()), "loss": float(outputs["loss"].astype(np.float64).mean())}


def assets(config: ConfigDict) -> dict[str, bytes]:
    """`labels.json`: the names of the classes."""
    names = getattr(_source(config, config.data.train_split), "label_names", ())
    return {"labels.json": json.dumps(list(names) or [str(i) for i in range(config.model.num_classes)]).encode()}


@dataclasses.dataclass(frozen=True)
class Prediction:
    """Classes of N images: `labels` [N] names, `classes` [N] indices, `probabilities` [N, K]."""

    labels: list[str]
    classes: np.ndarray
    probabilities: np.ndarray


@dataclasses.dataclass(frozen=True)
class Predictor:
    """What a notebook does with a trained classifier."""

    config: ConfigDict
    labels: list[str]
    forward: Callable[[np.ndarray], jax.Array]

    def preprocess(self, images: np.ndarray | Sequence[np.ndarray]) -> np.ndarray:
        """uint8 images [N, H, W, C] or [H, W, C] -> the float32 [N, H, W, C] that the network takes."""
        images = np.asarray(images)
        images = images[None] if images.ndim == 3 else images
        expected = tuple(self.config.data.image_shape)
        if images.dtype != np.uint8 or images.shape[1:] != expected:
            raise UserError(
                f"these images are {images.dtype} {images.shape}; this network takes uint8 of shape (N, *{expected})."
            )
        return preprocess(self.config, images)

    def predict(self, images: np.ndarray | Sequence[np.ndarray]) -> Prediction:
        """Most probable class of each uint8 image [N, H, W, C]."""
        probabilities = np.asarray(jax.nn.softmax(self.forward(self.preprocess(images))))
        classes = probabilities.argmax(-1)
        return Prediction([self.labels[i] for i in classes], classes, probabilities)


def predictor(config: ConfigDict, assets: Mapping[str, bytes], forward: Callable[[np.ndarray], jax.Array]) -> Predictor:
    """The predictor of a loaded run; `forward` maps normalised images to logits."""
    return Predictor(config, json.loads(assets["labels.json"]), forward)
