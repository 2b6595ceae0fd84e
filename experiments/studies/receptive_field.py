"""How much of an image one position of a layer sees: the effective receptive field (Luo et al. 2016, arXiv 1701.04128)."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from attention_jax.analysis import plots
from attention_jax.errors import UserError
from attention_jax.load import Run
from attention_jax.train.program import Program

if TYPE_CHECKING:
    from matplotlib.figure import Figure

IMAGES = 64  # over which `measure` takes the mean
# Luo et al., Section 3: a pixel belongs to the field when its gradient exceeds 1 - 95.45 % of the largest.
_BELONGS = 1 - 0.9545


def receptive_field(
    model: nn.Module, variables: Mapping[str, Any], images: Any, at: str, position: tuple[int, int] | None = None
) -> np.ndarray:
    """Images [N, H, W, C] -> [H, W], the mean over images of |d y / d image|, summed over the image's channels.

    Args:
        images: as the network takes them; normalised.
        at: path of the module whose output is looked at, e.g. "stage1_block2" or "stage1_gate"; its output is [N, h, w, c].
        position: (row, column) of y in that output, which is summed over its channels; the middle by default.

    Raises:
        UserError: no such module.
    """

    def gradient(images: jax.Array) -> jax.Array:
        def seen(images: jax.Array) -> jax.Array:
            features = _output(model, variables, images, at)
            row, column = position or (features.shape[1] // 2, features.shape[2] // 2)
            return features[:, row, column].sum()

        return jnp.abs(jax.grad(seen)(images)).sum(-1).mean(0)

    # It runs once, which is not worth compiling for speed.
    quickly = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
    return np.asarray(jax.jit(gradient, compiler_options=quickly)(jnp.asarray(images, jnp.float32)))


def _output(model: nn.Module, variables: Mapping[str, Any], images: jax.Array, at: str) -> jax.Array:
    def wanted(module: nn.Module, method: str) -> bool:
        return method == "__call__" and "/".join(module.path) == at

    _, kept = model.apply(variables, images, train=False, capture_intermediates=wanted, mutable=["intermediates"])
    for part in at.split("/"):
        kept = kept.get("intermediates", kept).get(part, {})
    if "__call__" not in kept:
        raise UserError(f"receptive field: the network has no module {at!r}; aj.summary(model, shape, depth=2) lists them.")
    return kept["__call__"][-1]


def shares(field: np.ndarray, convolutions: np.ndarray) -> dict[str, float]:
    """Of a receptive field [H, W], in percent: pixels seen at all, pixels in the effective field, and gradient that comes
    from beyond what the convolutions alone see, which is where `convolutions` [H, W] is not 0.
    """
    return {
        "pixels seen %": 100 * float((field > 0).mean()),
        "effective field %": 100 * float((field > _BELONGS * field.max()).mean()),
        "beyond convolutions %": 100 * float(field[convolutions == 0].sum() / field.sum()),
    }


def measure(program: Program, run: Run) -> dict[str, Any]:
    """Of one run of a ResNet, for a table: the field of the middle position after stage 1 and its gate.

    `field_start` and `field` [H, W] are those before and after training. What the convolutions alone see is found by
    taking the gates out of the same network.
    """
    model = program.model
    last = f"stage1_block{model.stage_sizes[0]}"
    at = "stage1_gate" if model.gate_at == "stage" and 1 in model.gated_stages() else last
    loader = program.task.loader(run.config, run.config.data.eval_split, (0, 1), training=False)
    images = loader.evaluation_batch(0)["image"][:IMAGES]

    start = program.init(np.uint32(run.config.seed)).variables()
    convolutions = receptive_field(model.clone(gate=None), run.variables, images, last)
    before, after = receptive_field(model, start, images, at), receptive_field(model, run.variables, images, at)
    columns = {name: (shares(before, convolutions)[name], value) for name, value in shares(after, convolutions).items()}
    return {
        **{f"{name}, {when}": values[i] for name, values in columns.items() for i, when in enumerate(("untrained", "trained"))},
        "field_start": before,
        "field": after,
    }


def picture(measured: Mapping[str, Sequence[Mapping[str, np.ndarray]]]) -> "Figure":
    """The fields of each row of a table before and after training, as logarithms of the gradient; mean over seeds."""
    figure = plots.new_figure(1.9 * len(measured) + 1.4, 4.6)
    panels = figure.subplots(2, len(measured), squeeze=False)
    for column, (label, seeds) in enumerate(measured.items()):
        for row, name in enumerate(("field_start", "field")):
            field = np.mean([seed[name] / seed[name].max() for seed in seeds], axis=0)
            with np.errstate(divide="ignore"):
                drawn = panels[row, column].imshow(np.log10(field), cmap="viridis", vmin=-4, vmax=0)
            panels[row, column].set_facecolor("#DDDDDD")  # what is not seen at all
            panels[row, column].set_xticks([])
            panels[row, column].set_yticks([])
        panels[0, column].set_title(label.replace(", ", ",\n"), fontsize=9)
    for row, name in enumerate(("before training", "after training")):
        panels[row, 0].set_ylabel(name)
    bar = figure.colorbar(drawn, ax=panels, shrink=0.8)
    bar.set_label("gradient, log10 of its share of the largest; grey: none", fontsize=9)
    return figure
