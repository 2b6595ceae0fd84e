"""Rows of softmax(QK^T) as maps, for chosen points of an image (SAGAN, arXiv 1805.08318, Figures 1 and 5)."""

from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import numpy as np
from scipy.special import entr  # JAX brings SciPy

from attention_jax import tree
from attention_jax.analysis import plots
from attention_jax.analysis.attention_maps import attention_maps
from attention_jax.errors import UserError
from attention_jax.load import Run
from attention_jax.train.program import Program

_IMAGES = 3  # images of different classes in the figure


def compute_query_maps(
    model: nn.Module, variables: Mapping[str, Any], images: Any, points: Sequence[Sequence[tuple[int, int]]]
) -> dict[str, np.ndarray]:
    """Images [N, H, W, C] and (row, column) of Q pixels of each -> {module path: [N, Q, h, w]}, maps that sum to 1.

    The query is the position of the module's map that holds the pixel. Empty for a network without self-attention. Raises
    UserError for a point outside of its image.
    """
    maps = attention_maps(model, dict(variables), images)
    height, width = np.shape(images)[1:3]
    for point in (point for several in points for point in several):
        if not (0 <= point[0] < height and 0 <= point[1] < width):
            raise UserError(f"query point {tuple(point)} is not right: the images have {height} rows and {width} columns.")
    y_NQ, x_NQ = np.moveaxis(np.asarray(points), -1, 0)
    found = {}
    for path, array in maps.items():
        if path.endswith("/weights") and array.ndim == 5:  # [N, h, w of queries, h, w of keys]
            n, rows, columns, *_ = array.shape
            queries = np.arange(n)[:, None], y_NQ * rows // height, x_NQ * columns // width
            found[path.removesuffix("/weights")] = np.asarray(array)[queries]
    return found


def choose_points(image: np.ndarray) -> list[tuple[int, int]]:
    """[H, W, C] -> three pixels: the brightest, the middle, and the upper left corner."""
    brightest = np.unravel_index(int(image.sum(-1).argmax()), image.shape[:2])
    return [(int(brightest[0]), int(brightest[1])), (image.shape[0] // 2, image.shape[1] // 2), (0, 0)]


def measure_query_maps(program: Program, run: Run) -> dict[str, Any]:
    """Measures, for a table, how much a run's self-attention adds and how sharp it is.

    gamma is the factor before what attention adds; entropy is that of softmax(QK^T) over the keys, mean over queries and
    the first evaluation batch, as a share of its largest value (1: every key alike); with several modules, their mean.
    For the figure: images, points and maps.
    """
    loader: Any = program.task.loader(run.config, run.config.data.eval_split, (0, 1), training=False)
    images = np.stack(list(plots.choose_images(loader, _IMAGES).values()))
    points = [choose_points(image) for image in images]
    found = compute_query_maps(program.model, run.variables, run.preprocess(images), points)
    kept = {"images": images, "points": np.array(points), **{f"queries {path}": maps for path, maps in found.items()}}
    if not found:
        return kept

    weights = attention_maps(program.model, run.variables, loader.evaluation_batch(0)["image"])
    entropies = []
    for path in found:
        array = np.asarray(weights[f"{path}/weights"], np.float64)
        entropies.append(entr(array).sum((-2, -1)).mean() / np.log(array.shape[-2] * array.shape[-1]))
    params = tree.flatten_by_path(run.variables["params"])
    gammas = [float(params[f"{path}/gamma"]) for path in found if f"{path}/gamma" in params]
    return {**({"gamma": np.mean(gammas)} if gammas else {}), "entropy": np.mean(entropies), **kept}


def plot_query_maps(measured: Mapping[str, Sequence[Mapping[str, np.ndarray]]]) -> "plots.Figure":
    """Plots marked query points of a few images beside their maps in each module of each row's first seed.

    Every map has a scale of its own, from 0 to its largest weight, which is written on it.
    """
    first = {label: seeds[0] for label, seeds in measured.items()}
    columns = []
    for label, values in first.items():
        names = [name for name in values if name.startswith("queries ")]
        for name in names:
            place = f":\n{name.removeprefix('queries ').removesuffix('_gate')}" if len(names) > 1 else ""
            columns.append((label + place, values[name]))
    if not columns:
        raise UserError("no row that is done has self-attention: there are no query maps to draw.")
    images, points = (next(iter(first.values()))[name] for name in ("images", "points"))
    places = [(i, j) for i in range(len(images)) for j in range(points.shape[1])]
    figure = plots.make_figure(1.35 * (1 + len(columns)) + 0.3, 1.15 * len(places) + 0.7)
    panels = figure.subplots(len(places), 1 + len(columns), squeeze=False)
    for row, (i, j) in zip(panels, places, strict=True):
        row[0].imshow(images[i].squeeze(), cmap="gray")
        for axes, (_, maps) in zip(row[1:], columns, strict=True):
            weights, height, width = maps[i, j], *images.shape[1:3]
            axes.imshow(weights, cmap="viridis", vmin=0, extent=(-0.5, width - 0.5, height - 0.5, -0.5))
            axes.set_xlabel(f"0 to {weights.max():.2g}", fontsize=8, labelpad=2)
        for axes in row:
            axes.plot(points[i, j, 1], points[i, j, 0], "s", color=plots.COLOURS[1], markersize=7, markerfacecolor="none")
            axes.set(xticks=[], yticks=[])
    for axes, title in zip(panels[0], ["query", *(title for title, _ in columns)], strict=True):
        axes.set_title(title, fontsize=9)
    return figure
