"""The effective receptive field: how much of an image one position of a layer sees (Luo et al. 2016, arXiv 1701.04128)."""

from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from attention_jax.analysis import plots
from attention_jax.errors import UserError
from attention_jax.load import Run
from attention_jax.train.program import Program
from experiments.studies.compiling import jit_quickly

_IMAGES = 64  # in the mean over test images
# Luo et al., Section 3: a pixel belongs to the field when its gradient exceeds 1 - 95.45 % of the largest.
_BELONGS = 1 - 0.9545


def compute_receptive_field(
    model: nn.Module, variables: Mapping[str, Any], images: Any, at: str, position: tuple[int, int] | None = None
) -> np.ndarray:
    """Normalised images [N, H, W, C] -> [H, W], the mean over images of |d y / d image|, summed over the image's channels.

    y is the output [N, h, w, c] of the module at the path `at`, such as "stage1_block2", summed over its channels, at
    `position` (row, column), by default the middle. Raises UserError when there is no such module.
    """

    def gradient(images: jax.Array) -> jax.Array:
        def seen(images: jax.Array) -> jax.Array:
            features = _output(model, variables, images, at)
            row, column = position or (features.shape[1] // 2, features.shape[2] // 2)
            return features[:, row, column].sum()

        return jnp.abs(jax.grad(seen)(images)).sum(-1).mean(0)

    return np.asarray(jit_quickly(gradient)(jnp.asarray(images, jnp.float32)))


def _output(model: nn.Module, variables: Mapping[str, Any], images: jax.Array, at: str) -> jax.Array:
    def wanted(module: nn.Module, method: str) -> bool:
        return method == "__call__" and "/".join(module.path) == at

    _, kept = model.apply(variables, images, train=False, capture_intermediates=wanted, mutable=["intermediates"])
    for part in at.split("/"):
        kept = kept.get("intermediates", kept).get(part, {})
    if "__call__" not in kept:
        raise UserError(f"receptive field: the network has no module {at!r}; aj.summary(model, shape, depth=2) lists them.")
    return kept["__call__"][-1]


def describe_field(field: np.ndarray, convolutions: np.ndarray) -> dict[str, float]:
    """Describes a receptive field [H, W] in percent.

    Pixels seen at all, pixels in the effective field, and gradient that comes from beyond what the convolutions alone see,
    where `convolutions` [H, W] is not 0.
    """
    return {
        "pixels seen %": 100 * float((field > 0).mean()),
        "effective field %": 100 * float((field > _BELONGS * field.max()).mean()),
        "beyond convolutions %": 100 * float(field[convolutions == 0].sum() / field.sum()),
    }


def measure_receptive_field(program: Program, run: Run) -> dict[str, Any]:
    """Measures, for a table, the field of the middle position of a ResNet after stage 1 and its gate.

    What the convolutions alone see is found by taking the gates out of the same network. For the figure: `field_start` and
    `field` [H, W], before and after training.
    """
    model = program.model
    last = f"stage1_block{model.stage_sizes[0]}"
    at = "stage1_gate" if model.gate_at == "stage" and 1 in model.gated_stages() else last
    loader: Any = program.task.loader(run.config, run.config.data.eval_split, (0, 1), training=False)
    images = loader.evaluation_batch(0)["image"][:_IMAGES]

    start = program.init(np.uint32(run.config.seed)).variables()
    convolutions = compute_receptive_field(model.clone(gate=None), run.variables, images, last)
    fields = [compute_receptive_field(model, variables, images, at) for variables in (start, run.variables)]
    before, after = (describe_field(field, convolutions) for field in fields)
    columns: dict[str, Any] = {}
    for name in after:
        columns |= {f"{name}, untrained": before[name], f"{name}, trained": after[name]}
    return columns | {"field_start": fields[0], "field": fields[1]}


def plot_receptive_fields(measured: Mapping[str, Sequence[Mapping[str, np.ndarray]]]) -> "plots.Figure":
    """Plots the fields of each row before and after training, as logarithms of the gradient, mean over seeds."""
    figure = plots.make_figure(1.9 * len(measured) + 1.4, 4.6)
    panels = figure.subplots(2, len(measured), squeeze=False)
    for column, (label, seeds) in enumerate(measured.items()):
        for row, name in enumerate(("field_start", "field")):
            field = np.mean([seed[name] / seed[name].max() for seed in seeds], axis=0)
            with np.errstate(divide="ignore"):
                drawn = panels[row, column].imshow(np.log10(field), cmap="viridis", vmin=-4, vmax=0)
            panels[row, column].set(xticks=[], yticks=[], facecolor="#DDDDDD")  # grey: what is not seen at all
        panels[0, column].set_title(label.replace(", ", ",\n"), fontsize=9)
    for row, name in enumerate(("before training", "after training")):
        panels[row, 0].set_ylabel(name)
    bar = figure.colorbar(drawn, ax=panels, shrink=0.8)
    bar.set_label("gradient, log10 of its share of the largest; grey: none", fontsize=9)
    return figure
