"""Plots of an evaluation: confusions, reliability, single images with wrapped captions, and maps laid on images."""

import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from attention_jax.analysis.plots import COLOURS, make_figure, style_axes
from attention_jax.analysis.pointing import enlarge_maps
from attention_jax.analysis.saliency import SaliencyMap
from attention_jax.train.outcomes import Evaluation

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_LETTERS = 11.5  # letters of 9 points to an inch
_MOST_CLASSES = 25


def _wrap(text: str, inches: float) -> str:
    """Breaks a text into lines of this width, also inside long words."""
    return textwrap.fill(text, max(int(_LETTERS * inches), 4))


def plot_confusions(evaluation: Evaluation, most: int = _MOST_CLASSES) -> "Figure":
    """Plots how the images of each class (a row) were classified (a column), as shares of the row.

    With more classes than `most`, the plot has the classes that are confused most often.
    """
    counts = evaluation.count_confusions()
    wrong = counts * ~np.eye(len(counts), dtype=bool)
    chosen = np.arange(len(counts))
    if len(counts) > most:
        chosen = np.sort(np.argsort(-(wrong.sum(0) + wrong.sum(1)), kind="stable")[:most])
    shares = 100 * counts[np.ix_(chosen, chosen)] / np.maximum(counts.sum(1)[chosen, None], 1)
    names = [_wrap(evaluation.labels[i], 1.6) for i in chosen]
    side = 1.5 + 0.42 * len(chosen)
    figure = make_figure(side + 1.2, side)
    axes = figure.add_subplot()
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=100)
    for i, j in np.argwhere(shares >= 0.5):
        axes.text(
            j, i, f"{shares[i, j]:.0f}", ha="center", va="center", fontsize=7, color="white" if shares[i, j] > 50 else "black"
        )
    axes.set_xticks(range(len(chosen)), names, rotation=90, fontsize=8)
    axes.set_yticks(range(len(chosen)), names, fontsize=8)
    axes.set_xlabel("first choice")
    axes.set_ylabel("right class; numbers are percent of its images")
    return figure


def plot_calibration(evaluation: Evaluation, bins: int = 15) -> "Figure":
    """Plots a reliability diagram: accuracy beside confidence in bins of equal width, and the examples of each bin."""
    found = evaluation.measure_calibration(bins)
    figure = make_figure(5.5, 5.5)
    axes, below = figure.subplots(2, 1, height_ratios=(3, 1), sharex=True)
    left, width = 100 * found.edges[:, 0], 100 / bins
    axes.bar(left, 100 * found.accuracy, width, align="edge", color=COLOURS[0], alpha=0.6, edgecolor="white", label="accuracy")
    axes.plot(
        100 * found.confidence, 100 * found.accuracy, "o", color=COLOURS[1], markersize=4, label="mean confidence of a bin"
    )
    axes.plot([0, 100], [0, 100], color=COLOURS[-1], linewidth=0.8, label="perfect calibration")
    axes.set(ylabel="accuracy %", xlim=(0, 100), ylim=(0, 100))
    axes.legend(frameon=False, fontsize=8, loc="upper left")
    axes.set_title(f"expected calibration error {100 * found.error:.1f} % ({bins} bins)", fontsize=10)
    below.bar(left, found.counts, width, align="edge", color="#999999", edgecolor="white")
    below.set(xlabel="confidence: probability of the first choice, %", ylabel="examples")
    for each in (axes, below):
        style_axes(each)
    return figure


def plot_images(images: Sequence[np.ndarray], captions: Sequence[str], columns: int = 4) -> "Figure":
    """Plots images [H, W, C], of any sizes, in rows, each with its caption below, which is wrapped."""
    wrapped = [_wrap(caption, 2.0) for caption in captions]
    height = 1.9 + 0.15 * max(text.count("\n") + 1 for text in wrapped)
    rows = -(-len(images) // columns)
    figure = make_figure(2.2 * columns, height * rows + 0.1)
    panels = figure.subplots(rows, columns, squeeze=False)
    for axes in panels.flat:
        axes.axis("off")
    for axes, image, text in zip(panels.flat, images, wrapped):
        axes.imshow(np.asarray(image).squeeze(), cmap="gray")
        axes.set_title(text, fontsize=8, y=0, va="top", pad=-3)
    return figure


def overlay_map(image: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Image uint8 [H, W, C], map [h, w] -> [H, W, 3] from 0 to 1: the map in colours over the grey image, at its size.

    The colours go from the map's least value to its greatest; each pixel has the value of the position that holds it.
    """
    import matplotlib

    large = enlarge_maps(np.asarray(values, np.float32)[None], *image.shape[:2])[0]
    low, high = float(large.min()), float(large.max())
    colours = matplotlib.colormaps["viridis"]((large - low) / max(high - low, 1e-12))[..., :3]
    grey = np.asarray(image, np.float32).mean(-1, keepdims=True) / 255
    return 0.45 * grey + 0.55 * colours


def plot_overlays(images: np.ndarray, maps: Mapping[str, SaliencyMap], labels: Sequence[str] = ()) -> "Figure":
    """Plots maps over images, a row for each image and a column for each map, such as those of `locate_attention`.

    Args:
        images: uint8 [N, H, W, C].
        labels: a text for each image, of any length: it is wrapped.
    """
    columns: list[tuple[str, Any]] = [("image", None), *maps.items()]
    texts = [_wrap(label, 1.5) for label in labels]
    lines = max([text.count("\n") + 1 for text in texts], default=1)
    heads = [_wrap(name.replace("_", " "), 1.5) for name, _ in columns]
    row = max(1.6, 0.17 * lines)
    notes = [f"{name}: {found.caption}." for name, found in maps.items()]
    width = 1.7 * len(columns) + 1.7
    notes.append("Colours go from the least value of a map in an image (dark) to the greatest (bright).")
    note = "\n".join(_wrap(text, width) for text in notes)
    figure = make_figure(width, row * len(images) + 0.4 + 0.17 * (note.count("\n") + 2))
    panels = figure.subplots(len(images), len(columns), squeeze=False)
    for i, line in enumerate(panels):
        for axes, head, (_, found) in zip(line, heads, columns, strict=True):
            axes.set(xticks=[], yticks=[])
            if found is None:
                axes.imshow(images[i].squeeze(), cmap="gray")
            else:
                axes.imshow(overlay_map(images[i], found.maps[i]))
            if i == 0:
                axes.set_title(head, fontsize=8)
        if texts:
            line[0].set_ylabel(texts[i], rotation=0, ha="right", va="center", fontsize=8)
    figure.supxlabel(note, fontsize=8, color="#555555")
    return figure
