"""Segmentation with one linear layer on a backbone's maps, and what backbones cost by the size of the image."""

from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.core import FrozenDict
from ml_collections import ConfigDict

from attention_jax.analysis import plots
from attention_jax.data.images.cued import ClutteredDigits
from attention_jax.data.images.transforms import normalise_images
from attention_jax.kernels.switch import use_kernels
from attention_jax.load import Run
from attention_jax.models.registry import create_model
from attention_jax.models.summary import summary
from attention_jax.optim.losses import cross_entropy
from attention_jax.tasks.base import Task
from attention_jax.train.program import Program

CLASSES = 11  # the background and the ten digits


class SegmentedDigits(ClutteredDigits):
    """Cluttered digits with the class of each pixel: 0, or in the digit's box its label and 1."""

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Returns "image" float32 [H, W, 3], normalised, and "mask" int32 [H, W]."""
        example = self.make(index)
        top, left, bottom, right = example["box"]
        mask = np.zeros(self.canvas, np.int32)
        mask[top:bottom, left:right] = example["label"] + 1
        return {"image": normalise_images(example["image"], (0.11,) * 3, (0.25,) * 3), "mask": mask}


class LinearSegmenter(nn.Module):
    """A backbone and one linear layer on all of its maps, each normalised and enlarged to the image's size.

    Attributes:
        backbone: the name of a network for images that returns its maps.
        fields: its fields.
    """

    backbone: str
    fields: Mapping[str, Any] = FrozenDict()

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        """[B, H, W, 3] -> [B, H, W, CLASSES] float32."""
        b, h, w, _ = images.shape
        logits = self.param("bias", nn.initializers.zeros, (CLASSES,))
        backbone = create_model(self.backbone, **self.fields, features=True)
        for i, x in enumerate(backbone(images, train=train), 1):
            # Bilinear, which a layer without bias may come before: it is linear too, and here computed on fewer channels.
            x = nn.Dense(CLASSES, use_bias=False, name=f"head{i}")(nn.LayerNorm(name=f"norm{i}")(x))
            logits = logits + jax.image.resize(x, (b, h, w, CLASSES), "linear")
        return logits


class SegmentationTask(Task):
    """The task of the table `dense`."""

    def source(self, config: ConfigDict, split: str) -> SegmentedDigits:
        """Returns the images of a split."""
        return SegmentedDigits(split, **config.data.args.to_dict())

    def example_inputs(self, config: ConfigDict) -> tuple[jax.ShapeDtypeStruct, ...]:
        """Returns the shape of an image."""
        shape = self.source(config, config.data.train_split)[0]["image"].shape
        return (jax.ShapeDtypeStruct((1, *shape), jnp.float32),)

    def loss(
        self, config: ConfigDict, model: nn.Module, variables: dict, batch: Mapping[str, Any], rng: jax.Array, train: bool
    ) -> tuple[dict[str, jax.Array], Mapping[str, Any]]:
        """Returns sums over the batch of the weighted loss (nats, mean over pixels) and of the weights, and new statistics."""
        mutable = ["batch_stats"] if train else []
        logits, changed = model.apply(variables, batch["image"], train=train, mutable=mutable, rngs={"dropout": rng})
        weight = batch["weight"]
        return {"loss": (_compute_loss(logits, batch["mask"]) * weight).sum(), "weight": weight.sum()}, changed

    def outputs(self, config: ConfigDict, model: nn.Module, variables: dict, batch: Mapping[str, Any]) -> dict[str, jax.Array]:
        """Returns per image the loss (nats), the weight, pixels by class, and `correct`, its intersection over union.

        That is the share, of the pixels of the digit and those taken for one, that are of the digit and taken for its class.
        """
        logits: Any = model.apply(variables, batch["image"])
        mask, found = batch["mask"], logits.argmax(-1)
        right, any_digit = (found == mask) & (mask > 0), (found > 0) | (mask > 0)
        is_class, said = (jax.nn.one_hot(labels, CLASSES, dtype=bool) for labels in (mask, found))
        return {
            "loss": _compute_loss(logits, mask),
            "correct": right.sum((1, 2)) / any_digit.sum((1, 2)),
            "intersection": (is_class & said).sum((1, 2)),
            "union": (is_class | said).sum((1, 2)),
            "weight": batch["weight"],
        }

    def metrics(self, config: ConfigDict, outputs: dict[str, np.ndarray]) -> tuple[dict[str, float], dict[str, np.ndarray]]:
        """Returns "IoU", the mean of the images', "mean_IoU", over all images and then over classes, and the loss in nats."""
        intersection, union = (outputs[name].sum(0) for name in ("intersection", "union"))
        by_class = intersection[union > 0] / union[union > 0]
        means = {"IoU": float(outputs["correct"].mean(dtype=np.float64)), "mean_IoU": float(by_class.mean())}
        return {**means, "loss": float(outputs["loss"].mean(dtype=np.float64))}, outputs

    def headline(self, config: ConfigDict) -> str:
        """Returns the name of the mean intersection over union of images."""
        return "IoU"

    def correct_means(self, config: ConfigDict) -> str:
        """Returns the name of the mean of `correct`."""
        return "IoU"


def _compute_loss(logits: jax.Array, mask: jax.Array) -> jax.Array:
    """[B, H, W, K], [B, H, W] -> [B]."""
    return cross_entropy(logits, mask).mean((1, 2))


def measure_segmentation(program: Program, run: Run) -> dict[str, float]:
    """Reads, for a table, the mean over classes, the background among them, of intersection over union over all images."""
    return {"mean IoU of classes %": 100 * run.curve("eval/mean_IoU")[1][-1]}


def measure_cost(name: str, sides: Sequence[int], **fields: Any) -> dict[str, Any]:
    """Computes a row: multiply-adds of a backbone's maps, and what their gradient keeps, for one square image of each side.

    Kept: the arrays that JAX saves between the forward and the backward pass of training, float32, traced and before a
    compiler joins operations, without the parameters.
    """
    macs, kept = [], []
    for side in sides:
        # A table of positions for this size; other sizes would interpolate it.
        own = {"image_size": side} if name.startswith("vit") else {}
        model = create_model(name, features=True, **own, **fields)
        macs.append(summary(model, (1, side, side, 3)).macs / 1e9)
        kept.append(count_kept_bytes(model, side) / 2**30)
    names = {"GMACs": macs, "GiB kept": kept}
    columns = {f"{name}, {side}": value for name, values in names.items() for side, value in zip(sides, values)}
    return {**columns, "sides": np.array(sides), "macs": np.array(macs), "kept": np.array(kept)}


def count_kept_bytes(model: nn.Module, side: int) -> int:
    """Counts the bytes of the arrays that reverse mode saves for one square image, parameters left out."""
    image = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
    with use_kernels("xla"):
        variables = jax.eval_shape(model.init, jax.random.key(0), image)

        def save(params: Any, rest: Any, image: jax.Array) -> Any:
            def run(params: Any, image: jax.Array) -> Any:
                rngs = {"dropout": jax.random.key(0)}
                return model.apply({**rest, "params": params}, image, train=True, mutable=["batch_stats"], rngs=rngs)[0]

            return jax.vjp(run, params, image)[1]

        rest = {name: value for name, value in variables.items() if name != "params"}
        saved = jax.eval_shape(save, variables["params"], rest, image)
    sizes = [sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree)) for tree in (saved, variables["params"])]
    return sizes[0] - sizes[1]


def plot_cost(measured: Mapping[str, Sequence[Mapping[str, Any]]]) -> "plots.Figure | None":
    """Plots multiply-adds and kept memory over the number of pixels."""
    rows = {label: values[0] for label, values in measured.items() if "sides" in values[0]}
    if not rows:
        return None
    figure = plots.make_figure(9, 4)
    for axes, key, title in zip(figure.subplots(1, 2), ("macs", "kept"), ("GMACs", "GiB kept for the gradient")):
        for i, (label, row) in enumerate(rows.items()):
            axes.plot(row["sides"], row[key], marker="o", markersize=4, label=label, **plots.choose_style(i))
        axes.set(xscale="log", yscale="log", xlabel="pixels a side", ylabel=title)
        axes.set_xticks(row["sides"], [str(side) for side in row["sides"]])
        axes.minorticks_off()
        plots.style_axes(axes)
    plots.add_legend(figure)
    return figure
