"""Depth: a small network whose units are one 5x5 convolution or two 3x3, which see as much, and a plot of errors by depth."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from attention_jax.analysis import plots
from attention_jax.errors import UserError
from attention_jax.nn.conv import Conv
from attention_jax.nn.norm import BatchNorm

# Name of a unit -> kernel side and whether a ReLU follows, of each of its convolutions.
_UNITS = {"5x5": ((5, True),), "3x3": ((3, True), (3, True)), "3x3 linear": ((3, False), (3, True))}


class KernelNet(nn.Module):
    """A plain network at one resolution: a 3x3 stem, units, global average pooling, linear classifier.

    Attributes:
        num_classes: K.
        unit: "5x5", "3x3" for two 3x3 convolutions with a ReLU after each, or "3x3 linear" for two without the ReLU between
            them (Simonyan & Zisserman 2015, arXiv 1409.1556, Section 2.3). All see 5x5; batch normalisation follows each
            convolution.
        features: channels of every convolution.
        layers: number of units.
    """

    num_classes: int
    unit: str = "5x5"
    features: int = 7
    layers: int = 1

    def check(self) -> None:
        """Raises UserError for an unknown unit."""
        if self.unit not in _UNITS:
            raise UserError(f"model.unit={self.unit!r} is not one of {', '.join(map(repr, _UNITS))}.")

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        """[B, H, W, C] -> [B, K]. Raises UserError for an unknown unit."""
        self.check()
        x = Conv(self.features, (3, 3), name="stem_conv")(images)
        x = nn.relu(BatchNorm(use_running_average=not train, name="stem_norm")(x))
        for i in range(self.layers):
            for j, (side, has_relu) in enumerate(_UNITS[self.unit]):
                x = Conv(self.features, (side, side), name=f"unit{i + 1}_conv{j + 1}")(x)
                x = BatchNorm(use_running_average=not train, name=f"unit{i + 1}_norm{j + 1}")(x)
                x = nn.relu(x) if has_relu else x
        return nn.Dense(self.num_classes, name="head")(x.astype(jnp.float32).mean((1, 2)))


def plot_depth(kinds: Sequence[str], measured: Mapping[str, Sequence[Mapping[str, Any]]]) -> "plots.Figure":
    """Plots the errors of rows called "kind depth" over depth: lines are means over seeds, and dots the seeds."""
    figure = plots.make_figure(8, 3.6)
    for axes, column in zip(figure.subplots(1, 2, sharey=True), ("training error %", "test error %")):
        for i, kind in enumerate(kinds):
            rows = {int(label.split()[1]): seeds for label, seeds in measured.items() if label.split()[0] == kind}
            values = [[float(seed[column]) for seed in rows[depth]] for depth in sorted(rows)]
            axes.plot(sorted(rows), [sum(each) / len(each) for each in values], label=kind, **plots.choose_style(i))
            for depth, each in zip(sorted(rows), values):
                axes.plot([depth] * len(each), each, "o", markersize=4, alpha=0.6, color=plots.COLOURS[i])
        axes.set(xlabel="layers", title=column, ylim=(0, None))
        plots.style_axes(axes)
    plots.add_legend(figure)
    return figure


plot_plain_and_residual = functools.partial(plot_depth, ("plain", "residual"))
