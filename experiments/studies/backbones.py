"""Accuracy by the number of training examples, and at positions in which training never shows an object."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from attention_jax.analysis import plots
from attention_jax.config import override
from attention_jax.distributed.mesh import find_batch_share
from attention_jax.load import Run
from attention_jax.train.evaluate import evaluate_model
from attention_jax.train.program import Program

SEEN = "accuracy % at positions of training"
# Networks for images of 16x16 pixels with multiply-adds within 3 % of one another, each {"name": ..., field: value}. Smaller
# patches than the papers' leave maps of 8x8 and 4x4, ViT one of 4x4, which it averages as the others do; the layer scale would
# keep ConvNeXt near the identity in few steps.
STAND_INS: dict[str, dict[str, Any]] = {
    "ResNet": {"name": "resnet20", "stage_sizes": (1, 1, 1), "widths": (8, 16, 32), "shortcut": "B"},
    "ConvNeXt": {"name": "convnext_tiny", "stage_sizes": (1, 1), "widths": (24, 50), "patch_size": 2, "layer_scale": None},
    "ViT": {
        **{"name": "vit_small_patch16_224", "image_size": 16, "patch_size": 4, "pool": "mean"},
        **{"layers": 3, "width": 36, "heads": 3},
    },
    "Swin": {
        **{"name": "swin_tiny_patch4_window7_224", "patch_size": 2, "window_size": 4},
        **{"stage_sizes": (2, 2), "width": 15, "heads": (1, 2)},
    },
}
# Of AdamW, chosen on the validation split, see experiments/backbones.py.
RATES = {"ResNet": 3e-3, "ConvNeXt": 3e-3, "ViT": 1e-3, "Swin": 2e-3}
# The papers' networks of about equal multiply-adds at 224x224 pixels.
FULL_SIZE = {
    "ResNet": "resnet50",
    "ConvNeXt": "convnext_tiny",
    "ViT": "vit_small_patch16_224",
    "Swin": "swin_tiny_patch4_window7_224",
}


def measure_generalisation(program: Program, run: Run) -> dict[str, Any]:
    """Measures, for a table, accuracy at the positions of training, where those of the test are others.

    For the figure also the number of training examples and the accuracy on the test, in percent.
    """
    data = run.config.data
    accuracy = 100 * next(line["headline"] for line in reversed(run.metrics) if "headline" in line)
    found = {"examples": np.array([data.num_examples]), "accuracy": np.array([accuracy])}
    if not (halves := data.args.get("halves")):
        return found
    config = override(run.config, {"data.args.halves": (halves[0], halves[0])})
    loader = program.task.loader(config, data.eval_split, find_batch_share(program.mesh), training=False)
    scores, _ = evaluate_model(program, run.variables, run.config, loader=loader)
    return {**found, SEEN: 100 * scores["accuracy"]}


def plot_generalisation(measured: Mapping[str, Sequence[Mapping[str, np.ndarray]]]) -> "plots.Figure":
    """Plots accuracy against training examples, and at positions of training against others; rows by their first word."""
    figure = plots.make_figure(9, 4)
    by_number, by_position = figure.subplots(1, 2, sharey=True)
    for i, name in enumerate(dict.fromkeys(label.split()[0] for label in measured)):
        style, rows = plots.choose_style(i), [seeds for label, seeds in measured.items() if label.split()[0] == name]
        points = sorted(
            (int(seeds[0]["examples"][0]), np.array([s["accuracy"][0] for s in seeds]))
            for seeds in rows
            if SEEN not in seeds[0]
        )
        numbers, accuracies = [number for number, _ in points], [values for _, values in points]
        by_number.plot(numbers, [values.mean() for values in accuracies], label=name, **style)
        moved = [np.array([(s[SEEN], s["accuracy"][0]) for s in seeds]) for seeds in rows if SEEN in seeds[0]]
        for pairs in moved:
            by_position.plot(pairs.mean(0), **style)
            by_position.plot(pairs.T, "o", markersize=3.5, alpha=0.6, color=style["color"])
        for number, values in points:
            by_number.plot([number] * len(values), values, "o", markersize=3.5, alpha=0.6, color=style["color"])
    by_number.set(xscale="log", xlabel="training images", ylabel="accuracy %", ylim=(0, 102))
    plotted = sorted({int(seeds[0]["examples"][0]) for seeds in measured.values() if SEEN not in seeds[0]})
    by_number.set_xticks(plotted, [f"{number:,}" for number in plotted])
    by_number.minorticks_off()
    by_position.set_xticks((0, 1), ("positions of training", "other positions"))
    by_position.set_xlim(-0.2, 1.2)
    for axes in (by_number, by_position):
        plots.style_axes(axes)
    plots.add_legend(figure)
    return figure
