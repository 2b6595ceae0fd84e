"""Image classification."""

import dataclasses
import functools
import inspect
import json
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from attention_jax.data.fingerprint import compute_fingerprint, read_sample
from attention_jax.data.images.crop import crop_and_resize, draw_box, draw_scaled_box, resize_and_centre_crop
from attention_jax.data.images.decoding import BrokenImage, decode_image, read_orientation, turn_upright
from attention_jax.data.images.randaugment import SETS, convert_mean_to_fill, make_randaugment
from attention_jax.data.images.randaugment_ops import GREY
from attention_jax.data.images.sources import Source, open_source
from attention_jax.data.images.transforms import (
    Transform,
    chain_transforms,
    flip_at_random,
    jitter_colours,
    normalise_images,
    pad_and_crop,
    shift_lighting,
)
from attention_jax.data.loader import Loader
from attention_jax.data.splits import open_split
from attention_jax.distributed.mesh import BatchShare
from attention_jax.errors import UserError
from attention_jax.optim.losses import sigmoid_cross_entropy, soft_cross_entropy, target_distribution
from attention_jax.optim.mixing import erase_boxes, mix_images
from attention_jax.tasks.match_classes import match_classes

logger = logging.getLogger(__name__)
CHOICES = 5  # number of first choices that are kept per example
Encoded = bytes | np.ndarray  # an image file's content, or its pixels, uint8 [H, W, C]


def source(config: ConfigDict, split: str) -> Source:
    """Returns one split of the config's data."""
    data = config.data
    return open_split(data, split, lambda name: open_source(data.source, name, data.args.to_dict(), data.cache_dir))


def unresolved(config: ConfigDict) -> list[str]:
    """Returns the names of the fields that `resolve` reads off the data."""
    stated = {
        "data.num_examples": config.data.num_examples,
        "data.image_shape": config.data.image_shape,
        "model.num_classes": config.model.get("num_classes"),
    }
    return [name for name, value in stated.items() if value is None]


def resolve(config: ConfigDict) -> ConfigDict:
    """Returns a copy whose `data.num_examples`, `data.image_shape` and `model.num_classes` come from the data if they are None.

    A config with all three is resolved without its data, so that its step can be compiled on a machine without them.
    """
    config, missing = config.copy_and_resolve_references(), unresolved(config)
    if missing:
        data = source(config, config.data.train_split)
        with config.unlocked():
            if "data.num_examples" in missing:
                config.data.num_examples = len(data)
            if "data.image_shape" in missing:
                config.data.image_shape = _first_shape(config, data)
            if "model.num_classes" in missing:
                config.model.num_classes = int(data.num_classes)
    channels = config.data.image_shape[-1]
    for field in ("mean", "std"):
        if len(config.data[field]) != channels:
            raise UserError(f"data.{field}={config.data[field]} has {len(config.data[field])} values for {channels} channels.")
    if config.data.lighting and channels != 3:
        raise UserError(f"data.lighting={config.data.lighting} shifts colours, and images have {channels} channels: give 0.")
    if config.data.crop == "random_scaled" and min(config.data.crop_shorter) < max(config.data.image_shape[:2]):
        raise UserError(
            f"data.crop_shorter={config.data.crop_shorter} is less than a side of data.image_shape={config.data.image_shape}: "
            "give at least the longer one."
        )
    if config.data.eval_resize and config.data.eval_resize < max(config.data.image_shape[:2]):
        raise UserError(
            f"data.eval_resize={config.data.eval_resize} is less than a side of data.image_shape={config.data.image_shape}: "
            "give at least the longer one, or None to take images as they are."
        )
    return config


def _first_shape(config: ConfigDict, data: Source) -> tuple[int, ...]:
    if config.data.crop.startswith("random") or config.data.eval_resize:
        raise UserError("data.image_shape=None: data.crop and data.eval_resize need a size: give (height, width, channels).")
    try:
        image, channels = data[0]["image"], getattr(data, "channels", 3)
        return decode_image(turn_upright(image, channels) if config.data.exif_rotation else image, channels).shape
    except BrokenImage as error:
        raise UserError(f"data.image_shape=None and the first image cannot be decoded ({error}): give the shape.") from error


def describe(config: ConfigDict) -> dict[str, str]:
    """Returns the facts of this task that a run prints at its start."""
    return {"batch norm": f"granularity {config.batch_norm.granularity}"}


def headline(config: ConfigDict) -> str:
    """Returns the name of the metric that chooses the best checkpoint."""
    return "accuracy"


def example_inputs(config: ConfigDict) -> tuple[jax.ShapeDtypeStruct, ...]:
    """Returns the shape of one normalised image, [1, H, W, C] float32."""
    return (jax.ShapeDtypeStruct((1, *config.data.image_shape), jnp.float32),)


def batch_shapes(config: ConfigDict) -> list[dict[str, jax.ShapeDtypeStruct]]:
    """Returns the one shape of a training batch."""
    b, struct = config.batch_size, jax.ShapeDtypeStruct
    images, labels = struct((b, *config.data.image_shape), jnp.float32), struct((b,), jnp.int32)
    return [{"image": images, "label": labels, "weight": struct((b,), jnp.float32)}]


def preprocess(config: ConfigDict, images: np.ndarray) -> np.ndarray:
    """[B, H, W, C] uint8 -> [B, H, W, C] float32, normalised as in training and evaluation."""
    return normalise_images(images, config.data.mean, config.data.std)


def make_evaluation_transform(config: ConfigDict) -> Callable[[Encoded], np.ndarray]:
    """Returns a function from an image to uint8 `data.image_shape`: resized and centre-cropped, or unchanged."""
    data, shape = config.data, tuple(config.data.image_shape)
    shorter, interpolation = data.eval_resize, data.interpolation

    def transform(image: Encoded) -> np.ndarray:
        image = turn_upright(image, shape[2]) if data.exif_rotation else image
        if shorter:
            return resize_and_centre_crop(image, shorter, shape[:2], shape[2], interpolation)
        pixels = decode_image(image, shape[2])
        if pixels.shape != shape:
            raise UserError(
                f"data.source={data.source}: an image of shape {pixels.shape} among images of {shape}: "
                "give data.eval_resize (and data.crop='random_resized'), or images of one size."
            )
        return pixels

    return transform


def make_training_transform(config: ConfigDict) -> Callable[[Encoded, np.random.Generator], np.ndarray]:
    """Returns a function from an image and a generator to uint8 `data.image_shape`: cropped, flipped and augmented."""
    data, shape = config.data, tuple(config.data.image_shape)
    transforms: list[Transform] = []
    if data.crop == "pad" and data.crop_padding:
        transforms.append(pad_and_crop(data.crop_padding))
    if data.flip:
        transforms.append(flip_at_random)
    if data.colour_jitter:
        transforms.append(jitter_colours(data.colour_jitter))
    if data.lighting:
        transforms.append(shift_lighting(data.lighting))
    if data.randaugment_layers:
        layers, magnitude, ops = data.randaugment_layers, data.randaugment_magnitude, data.randaugment_ops
        # timm fills with the mean of the data, TensorFlow's code with grey; the paper does not say.
        fill = convert_mean_to_fill(data.mean) if ops == "timm" else GREY
        names = None
        if shape[2] == 1:
            names = [name for name in SETS[ops].levels if name != "color"]
            logger.info("data: images of one channel have no colour, so RandAugment leaves out its operation 'color'.")
        std = data.randaugment_std
        transforms.append(make_randaugment(layers, magnitude, ops, names=names, fill=fill, magnitude_std=std))
    augment = chain_transforms(transforms)
    if not data.crop.startswith("random"):
        as_in_evaluation = make_evaluation_transform(config)
        return lambda image, rng: augment(as_in_evaluation(image), rng)
    interpolation, choose_box = data.interpolation, functools.partial(draw_box, scale=data.crop_scale, ratio=data.crop_ratio)
    if data.crop == "random_scaled":
        choose_box = functools.partial(draw_scaled_box, size=shape[:2], shorter=data.crop_shorter)

    def transform(image: Encoded, rng: np.random.Generator) -> np.ndarray:
        image = turn_upright(image, shape[2]) if data.exif_rotation else image
        choose = functools.partial(choose_box, rng=rng)
        return augment(crop_and_resize(image, choose, shape[:2], shape[2], interpolation), rng)

    return transform


def loader(config: ConfigDict, split: str, process: BatchShare, training: bool, known: Sequence[str] = ()) -> Loader:
    """Returns the loader of one split; with `known`, the network's names of the classes, labels are numbered as there."""
    for_training, for_evaluation = make_training_transform(config), make_evaluation_transform(config)

    def transform(example: dict[str, Any], rng: np.random.Generator | None) -> dict[str, Any]:
        image, label = example["image"], int(example["label"])
        if not 0 <= label < data.num_classes:
            raise UserError(
                f"data.source={config.data.source}: split {split!r} has the label {label}, which is not from 0 to "
                f"{data.num_classes - 1}: leave such examples out, or number the classes from 0."
            )
        return {"image": for_evaluation(image) if rng is None else for_training(image, rng), "label": np.int32(classes[label])}

    def collate(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {**batch, "image": preprocess(config, batch["image"])}

    data = source(config, split)
    if training and data.num_classes > (number := config.model.num_classes):
        raise UserError(
            f"model.num_classes={number} is fewer than the {data.num_classes} classes of data.source={config.data.source}: "
            "give None to take the data's."
        )
    if training and len(data) != config.data.num_examples:
        raise UserError(
            f"data.num_examples={config.data.num_examples} but split {split!r} of data.source={config.data.source} has "
            f"{len(data)}: give None to take the data's."
        )
    classes = match_classes(config, split, data, [*known])
    return Loader(
        source=data,
        batch_size=config.batch_size if training else config.evaluation.batch_size,
        seed=config.seed,
        transform=transform,
        collate=collate,
        threads=config.data.threads,
        process=process,
        on_broken=config.data.on_broken,
    )


def evaluation_loader(config: ConfigDict, process: BatchShare, assets: Mapping[str, bytes]) -> Loader:
    """Returns the loader of the evaluation split; its classes are matched with the network's by name."""
    return loader(config, config.data.eval_split, process, training=False, known=json.loads(assets["labels.json"]))


def fingerprint(config: ConfigDict, split: str) -> dict[str, Any]:
    """Returns the fingerprint of a split, and logs how many of the sampled images have an EXIF orientation that turns them."""
    data = source(config, split)
    sample = read_sample(data)
    turned = sum(1 for example in sample if example and read_orientation(example["image"]) > 1)
    if turned and not config.data.exif_rotation:
        text = "data: of %d images looked at in split %r, %d carry an EXIF rotation, which data.exif_rotation=True applies."
        logger.warning(text, len(sample), split, turned)
    return compute_fingerprint(data, sample)


def mix(config: ConfigDict, batch: Mapping[str, jax.Array], rng: jax.Array) -> Mapping[str, jax.Array]:
    """Returns the batch after random erasing, mixup and CutMix as set by `config.mix`; the batch itself if all are off."""
    options = config.mix
    if options.erasing_probability:
        erased = erase_boxes(jax.random.fold_in(rng, 1), batch["image"], options.erasing_probability)
        batch = {**batch, "image": erased}
    if not (options.mixup_alpha or options.cutmix_alpha) or not options.probability:
        return batch
    return mix_images(
        rng, dict(batch), options.mixup_alpha, options.cutmix_alpha, options.probability, options.switch_probability
    )


def loss(
    config: ConfigDict, model: nn.Module, variables: dict, batch: Mapping[str, jax.Array], rng: jax.Array, train: bool
) -> tuple[dict[str, jax.Array], Mapping[str, Any]]:
    """Returns sums over the batch of weighted loss (nats), right answers and weights, and the new batch statistics.

    The right answer for a mixed image is the class with the larger share.
    """
    mutable = ["batch_stats"] if train else []
    mode = _list_mode(model, train)
    logits, changed = model.apply(variables, batch["image"], **mode, mutable=mutable, rngs={"dropout": rng})
    _check_logits(config, logits, batch["label"])
    label, weight = batch["label"], batch["weight"]
    smoothing = logits.shape[-1], config.loss.label_smoothing, config.loss.smoothing_over
    targets = target_distribution(label, *smoothing)
    if "share" in batch:
        partner, share = batch["partner"], batch["share"]
        others = target_distribution(partner, *smoothing)
        targets = share[:, None] * targets + (1 - share[:, None]) * others
        label = jnp.where(share >= 0.5, label, partner)
    per_example = _compute_loss(config, logits, targets)
    right = jnp.argmax(logits, -1) == label
    sums = {"loss": (per_example * weight).sum(), "accuracy": (right * weight).sum(), "weight": weight.sum()}
    return sums, changed


def _compute_loss(config: ConfigDict, logits: jax.Array, targets: jax.Array) -> jax.Array:
    """[B, K], [B, K] -> [B], loss in nats."""
    if config.loss.function == "binary_cross_entropy":
        return sigmoid_cross_entropy(logits, targets, config.loss.target_threshold)
    return soft_cross_entropy(logits, targets)


def _list_mode(model: nn.Module, train: bool) -> dict[str, Any]:
    """Returns {"train": train} for the call of a network that takes it, else {}."""
    return {"train": train} if "train" in inspect.signature(type(model).__call__).parameters else {}


def _check_logits(config: ConfigDict, logits: jax.Array, label: jax.Array) -> None:
    expected = (*label.shape, config.model.get("num_classes", logits.shape[-1]))
    if getattr(logits, "shape", None) != expected:
        given = getattr(logits, "shape", type(logits).__name__)
        raise UserError(
            f"model {config.model.name!r} gives {given}: a network for classification turns images [B, H, W, C] into logits "
            f"{expected}."
        )


def outputs(config: ConfigDict, model: nn.Module, variables: dict, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """Returns for each example the unsmoothed loss (nats), True if the first choice is right, and the weight, 0 for padding.

    It also returns "label" and the first five choices: "top_classes" and "top_probabilities" [B, 5].
    """
    apply: Callable[..., Any] = model.apply
    logits = apply(variables, batch["image"], **_list_mode(model, train=False))
    _, top = jax.lax.top_k(logits, min(CHOICES, logits.shape[-1]))
    among = {}
    if "allowed" in batch:
        among["correct_among"] = jnp.argmax(jnp.where(batch["allowed"], logits, -jnp.inf), -1) == batch["label"]
    return {
        **among,
        "loss": _compute_loss(config, logits, target_distribution(batch["label"], logits.shape[-1])),
        "correct": jnp.argmax(logits, -1) == batch["label"],
        "label": batch["label"],
        "top_classes": top,
        "top_probabilities": jnp.take_along_axis(compute_probabilities(config, logits), top, -1),
        **{name: batch[name] for name in ("weight", "index") if name in batch},
    }


def compute_probabilities(config: ConfigDict, logits: jax.Array) -> jax.Array:
    """[B, K] -> [B, K]; if training used binary cross-entropy, each class has its own probability."""
    binary = config.loss.function == "binary_cross_entropy"
    return (jax.nn.sigmoid if binary else jax.nn.softmax)(logits.astype(jnp.float32))


def metrics(config: ConfigDict, outputs: dict[str, np.ndarray]) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Returns accuracy (share of right first choices), mean loss in nats, and the outputs unchanged.

    With more than ten classes, it also returns the share of labels among the first five choices.
    """
    scores = {"accuracy": float(outputs["correct"].mean()), "loss": float(outputs["loss"].astype(np.float64).mean())}
    if config.model.num_classes > 2 * CHOICES:  # with ten classes, chance alone would be right half of the time
        scores["top5_accuracy"] = float((outputs["top_classes"] == outputs["label"][:, None]).any(-1).mean())
    if "correct_among" in outputs:
        scores["accuracy_among_its_classes"] = float(outputs["correct_among"].mean())
    return scores, outputs


def assets(config: ConfigDict) -> dict[str, bytes]:
    """Returns `labels.json`, the names of the classes."""
    names = getattr(source(config, config.data.train_split), "label_names", ())
    return {"labels.json": json.dumps(list(names) or [str(i) for i in range(config.model.num_classes)]).encode()}


@dataclasses.dataclass(frozen=True)
class Prediction:
    """The predicted classes of N images: `labels` [N] names, `classes` [N] indices, `probabilities` [N, K]."""

    labels: list[str]
    classes: np.ndarray
    probabilities: np.ndarray


@dataclasses.dataclass(frozen=True)
class Predictor:
    """Classifies images with a trained network."""

    config: ConfigDict
    labels: list[str]
    forward: Callable[[np.ndarray], jax.Array]

    def preprocess(self, images: np.ndarray | Sequence[np.ndarray | bytes]) -> np.ndarray:
        """[N, H, W, C] or [H, W, C] uint8 -> [N, H, W, C] float32, the input of the network.

        With `data.eval_resize` they may be of any size, and are resized and cropped as in evaluation.
        """
        if self.config.data.eval_resize:
            transform = make_evaluation_transform(self.config)
            listed: Iterable[Any] = [images] if isinstance(images, np.ndarray) and images.ndim == 3 else images
            images = [transform(image) for image in listed]
        pixels = np.asarray(images)
        pixels = pixels[None] if pixels.ndim == 3 else pixels
        expected = tuple(self.config.data.image_shape)
        if pixels.dtype != np.uint8 or pixels.shape[1:] != expected:
            raise UserError(
                f"these images are {pixels.dtype} {pixels.shape}; this network takes uint8 of shape (N, *{expected})."
            )
        return preprocess(self.config, pixels)

    def predict(self, images: np.ndarray | Sequence[np.ndarray]) -> Prediction:
        """Returns the most probable class of each uint8 image [N, H, W, C]."""
        probabilities = np.asarray(compute_probabilities(self.config, self.forward(self.preprocess(images))))
        classes = probabilities.argmax(-1)
        return Prediction([self.labels[i] for i in classes], classes, probabilities)


def predictor(config: ConfigDict, assets: Mapping[str, bytes], model: nn.Module, variables: dict[str, Any]) -> Predictor:
    """Returns the predictor of a loaded run."""
    return Predictor(config, json.loads(assets["labels.json"]), functools.partial(jax.jit(model.apply), variables))
