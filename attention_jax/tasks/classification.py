"""Image classification."""

import dataclasses
import functools
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from attention_jax.data.images import crop
from attention_jax.data.images import transforms as image
from attention_jax.data.images.decoding import BrokenImage, decode
from attention_jax.data.images.randaugment import convert_mean_to_fill, make_randaugment
from attention_jax.data.images.randaugment_ops import GREY
from attention_jax.data.images.sources import Source, open_source
from attention_jax.data.loader import Loader, Plan
from attention_jax.distributed.mesh import BatchShare, check_batch_size
from attention_jax.errors import UserError
from attention_jax.models import create_model
from attention_jax.optim import mixing
from attention_jax.optim.losses import cross_entropy, soft_cross_entropy, target_distribution

Pixels = Callable[[bytes | np.ndarray, np.random.Generator | None], np.ndarray]


def _source(config: ConfigDict, split: str) -> Source:
    return open_source(config.data.source, split, config.data.args.to_dict())


def unresolved(config: ConfigDict) -> list[str]:
    """What `resolve` has to read off the data."""
    stated = {
        "data.num_examples": config.data.num_examples,
        "data.image_shape": config.data.image_shape,
        "model.num_classes": config.model.get("num_classes"),
    }
    return [name for name, value in stated.items() if value is None]


def resolve(config: ConfigDict) -> ConfigDict:
    """`data.num_examples`, `data.image_shape` and `model.num_classes`, read off the training data where they are None.

    A config that states all three is resolved without its data, so that its step can be compiled where they are not.
    """
    config = config.copy_and_resolve_references()
    found = (config.data.num_examples, config.data.image_shape, config.model.get("num_classes"))
    if None in found:
        source = _source(config, config.data.train_split)
        own = (len(source), None if config.data.image_shape else _own_shape(config, source), int(source.num_classes))
        found = tuple(theirs if ours is None else ours for ours, theirs in zip(found, own, strict=True))
    with config.unlocked():
        config.data.num_examples, config.data.image_shape, config.model.num_classes = found
    channels = config.data.image_shape[-1]
    for field in ("mean", "std"):
        if len(config.data[field]) != channels:
            raise UserError(f"data.{field}={config.data[field]} has {len(config.data[field])} values for {channels} channels.")
    if config.data.eval_resize and config.data.eval_resize < max(config.data.image_shape[:2]):
        raise UserError(
            f"data.eval_resize={config.data.eval_resize} is less than a side of data.image_shape={config.data.image_shape}: "
            "give at least the longer one, or None to take images as they are."
        )
    return config


def _own_shape(config: ConfigDict, source: Source) -> tuple[int, ...]:
    """[H, W, C] of the first image."""
    if config.data.crop == "random_resized" or config.data.eval_resize:
        raise UserError("data.image_shape=None: data.crop and data.eval_resize need a size: give (height, width, channels).")
    try:
        return decode(source[0]["image"], getattr(source, "channels", 3)).shape
    except BrokenImage as error:
        raise UserError(f"data.image_shape=None and the first image cannot be decoded ({error}): give the shape.") from error


def check(config: ConfigDict, mesh: Mesh) -> None:
    """Raises UserError unless the batches divide evenly over the devices, and each share into micro-batches."""
    check_batch_size("batch_size", config.batch_size, mesh, config.accumulation)
    check_batch_size("evaluation.batch_size", config.evaluation.batch_size, mesh)


def steps_per_epoch(config: ConfigDict) -> int:
    """Batches in an epoch of a resolved config."""
    return Plan(config.data.num_examples, config.batch_size, config.seed).steps_per_epoch


def examples_per_step(config: ConfigDict) -> float:
    """Images in a batch."""
    return config.batch_size


def describe(config: ConfigDict) -> dict[str, str]:
    """What a run's first lines say about this task."""
    return {"batch norm": f"granularity {config.batch_norm.granularity}"}


def headline(config: ConfigDict) -> str:
    """The metric by which the best checkpoint is chosen."""
    return "accuracy"


def correct_means(config: ConfigDict) -> str:
    """What the mean of "correct" is called."""
    return "accuracy"


def model(config: ConfigDict, norm_group_size: int | None = None) -> nn.Module:
    """The network of a resolved config; its field `dtype` is set when it computes in bfloat16."""
    fields = config.model.to_dict()
    if config.precision == "bfloat16":
        fields["dtype"] = "bfloat16"
    return create_model(fields.pop("name"), **fields, norm_group_size=norm_group_size)


def example_inputs(config: ConfigDict) -> tuple[jax.ShapeDtypeStruct, ...]:
    """One normalised image, [1, H, W, C] float32."""
    return (jax.ShapeDtypeStruct((1, *config.data.image_shape), jnp.float32),)


def batch_shapes(config: ConfigDict) -> list[dict[str, jax.ShapeDtypeStruct]]:
    """The one shape of a training batch."""
    b = config.batch_size
    return [
        {
            "image": jax.ShapeDtypeStruct((b, *config.data.image_shape), jnp.float32),
            "label": jax.ShapeDtypeStruct((b,), jnp.int32),
            "weight": jax.ShapeDtypeStruct((b,), jnp.float32),
        }
    ]


def preprocess(config: ConfigDict, images: np.ndarray) -> np.ndarray:
    """uint8 [B, H, W, C] -> float32 [B, H, W, C], as evaluation does it."""
    return image.normalise(images, config.data.mean, config.data.std)


def evaluation_pixels(config: ConfigDict) -> Pixels:
    """(encoded or uint8 image, anything) -> uint8 `data.image_shape`: resized and centre-cropped, or as it is."""
    data, shape = config.data, tuple(config.data.image_shape)

    def resized(picture: bytes | np.ndarray, rng: Any = None) -> np.ndarray:
        return crop.resize_and_centre_crop(picture, data.eval_resize, shape[:2], shape[2], data.interpolation)

    def as_it_is(picture: bytes | np.ndarray, rng: Any = None) -> np.ndarray:
        pixels = decode(picture, shape[2])
        if pixels.shape != shape:
            raise UserError(
                f"data.source={data.source}: an image of shape {pixels.shape} among images of {shape}: "
                "give data.eval_resize (and data.crop='random_resized'), or images of one size."
            )
        return pixels

    return resized if data.eval_resize else as_it_is


def training_pixels(config: ConfigDict) -> Pixels:
    """(encoded or uint8 image, generator) -> uint8 `data.image_shape`: cropped, flipped and augmented as the config says."""
    data, shape = config.data, tuple(config.data.image_shape)
    steps, begin = [], evaluation_pixels(config)
    if data.crop == "random_resized":
        begin = functools.partial(
            crop.random_resized_crop,
            size=shape[:2],
            channels=shape[2],
            scale=data.crop_scale,
            ratio=data.crop_ratio,
            interpolation=data.interpolation,
        )
    elif data.crop == "pad" and data.crop_padding:
        steps.append(image.pad_and_crop(data.crop_padding))
    if data.flip:
        steps.append(image.flip())
    if data.randaugment_layers:
        layers, magnitude, ops = data.randaugment_layers, data.randaugment_magnitude, data.randaugment_ops
        # timm fills with the mean of the data, TensorFlow's code with grey; the paper does not say.
        fill = convert_mean_to_fill(data.mean) if ops == "timm" else GREY
        steps.append(make_randaugment(layers, magnitude, ops, fill=fill, magnitude_std=data.randaugment_std))
    finish = image.chain(steps)
    return lambda picture, rng: finish(begin(picture, rng), rng)


def loader(config: ConfigDict, split: str, process: BatchShare, training: bool) -> Loader:
    """The loader of one split."""
    pixels = training_pixels(config) if training else evaluation_pixels(config)

    def transform(example: dict[str, Any], rng: np.random.Generator | None) -> dict[str, Any]:
        return {"image": pixels(example["image"], rng), "label": example["label"]}

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
        on_broken=config.data.on_broken,
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
    """Per example: unsmoothed loss (nats), whether the first choice is right, and the weight, 0 for what does not count."""
    logits = model.apply(variables, batch["image"], train=False)
    return {
        "loss": cross_entropy(logits, batch["label"]),
        "correct": jnp.argmax(logits, -1) == batch["label"],
        "weight": batch["weight"],
    }


def metrics(config: ConfigDict, outputs: dict[str, np.ndarray]) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Accuracy (share of right first choices) and mean loss in nats; the outputs as they are."""
    loss = float(outputs["loss"].astype(np.float64).mean())
    return {"accuracy": float(outputs["correct"].mean()), "loss": loss}, outputs


def adopt(config: ConfigDict, assets: Mapping[str, bytes]) -> None:
    """Nothing of an image checkpoint is needed to read its data."""


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

    def preprocess(self, images: np.ndarray | Sequence[np.ndarray | bytes]) -> np.ndarray:
        """uint8 images [N, H, W, C] or [H, W, C] -> the float32 [N, H, W, C] that the network takes.

        With `data.eval_resize` they may be of any size, and are resized and cropped as in evaluation.
        """
        if self.config.data.eval_resize:
            images = [images] if getattr(images, "ndim", 0) == 3 else images
            images = [evaluation_pixels(self.config)(picture) for picture in images]
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


def predictor(config: ConfigDict, assets: Mapping[str, bytes], model: nn.Module, variables: dict[str, Any]) -> Predictor:
    """The predictor of a loaded run."""
    apply = jax.jit(model.apply)
    return Predictor(config, json.loads(assets["labels.json"]), lambda images: apply(variables, images))
