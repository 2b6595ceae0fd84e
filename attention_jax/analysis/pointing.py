"""Maps of a network's last attention module: one map per image, its share inside a box, and plots side by side."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from attention_jax.analysis import plots
from attention_jax.analysis.attention_maps import attention_maps
from attention_jax.analysis.saliency import choose_map
from attention_jax.load import Run
from attention_jax.train.program import Program

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_EXAMPLES, _DRAWN = 100, 4
_CENTRE = (0.5, 0.5)  # position of the cue in cued digits


def enlarge_maps(maps: np.ndarray, height: int, width: int) -> np.ndarray:
    """[N, h, w] -> [N, H, W]: each pixel has the value of the position that holds it."""
    rows, columns = (np.arange(side) * n // side for side, n in zip((height, width), maps.shape[1:]))
    return maps[:, rows][:, :, columns]


def measure_shares(maps: np.ndarray, boxes: np.ndarray, canvas: Sequence[int]) -> np.ndarray:
    """Maps [N, h, w], boxes [N, 4] (top, left, bottom, right) on a canvas (H, W) -> [N], the share of each map inside its box.

    A map of zeros counts as a uniform one.
    """
    large = enlarge_maps(maps, *canvas).astype(np.float64) + 1e-12
    (top, left, bottom, right), (y, x) = boxes.T[..., None, None], np.indices(canvas)
    return (large * ((top <= y) & (y < bottom) & (left <= x) & (x < right))).sum((1, 2)) / large.sum((1, 2))


def measure_maps(program: Program, run: Run) -> dict[str, Any]:
    """Measures, for a table, the share (%) of a network's last map inside the right box, trained and at random weights.

    It reads the first 100 examples of the evaluation split; a source whose `make(index)` has no "box" gives no share. For
    `plot_maps_side_by_side` it keeps images, boxes and maps of the first four.
    """
    source: Any = program.task.source(run.config, run.config.data.eval_split)
    number = min(_EXAMPLES, len(source))
    made = [source.make(i) if hasattr(source, "make") else {} for i in range(number)]
    loader: Any = program.task.evaluation_loader(run.config, (0, 1), run.assets)
    images = np.stack([loader.transform(loader.source[i], None)["image"] for i in range(number)])
    boxes = np.array([example["box"] for example in made if "box" in example]).reshape(-1, 4)
    kept: dict[str, Any] = {"images": images[:_DRAWN], "boxes": boxes[:_DRAWN]}
    untrained = program.init(np.uint32(run.config.seed)).variables()
    found = {}
    for what, variables in (("", run.variables), (", untrained", untrained)):
        sown = attention_maps(program.model, variables, loader.collate({"image": images})["image"])  # cropped already
        arrays = {path.rpartition("/")[2]: np.asarray(array, np.float32) for path, array in sown.items()}  # the last of a name
        if (chosen := choose_map(arrays, number, _CENTRE)) is None:
            return kept
        found[what] = chosen.maps
    kept["maps"] = found[""][:_DRAWN]
    if len(boxes) == number:
        canvas = images.shape[1:3]
        (top, left, bottom, right) = boxes.T
        area = ((bottom - top) * (right - left)).mean() / (canvas[0] * canvas[1])
        kept |= {f"map in the box %{what}": 100 * measure_shares(maps, boxes, canvas).mean() for what, maps in found.items()}
        kept["box's area %"] = 100 * area
    return kept


def plot_maps_side_by_side(measured: Mapping[str, Sequence[Mapping[str, np.ndarray]]]) -> "Figure | None":
    """Plots the maps that `measure_maps` kept of each row's first seed: images with the right box, then a line of maps per row.

    Returns None if no row has maps.
    """
    first = {label: seeds[0] for label, seeds in measured.items()}
    rows = [(label, values["maps"]) for label, values in first.items() if "maps" in values]
    if not rows:
        return None
    some = next(iter(first.values()))
    images, boxes = some["images"], some["boxes"]
    (height, width), columns = images.shape[1:3], len(images)
    figure = plots.make_figure(1.9 * columns + 2.1, (1.9 * height / width + 0.15) * (len(rows) + 1) + 0.4)
    panels = figure.subplots(len(rows) + 1, columns, squeeze=False)
    for line, (label, maps) in zip(panels, [("images", images), *rows], strict=True):
        line[0].set_ylabel(label, rotation=0, ha="right", va="center", fontsize=9)
        for i, (axes, array) in enumerate(zip(line, maps)):
            axes.set(xticks=[], yticks=[])
            axes.imshow(array.squeeze(), cmap="viridis" if array.ndim == 2 else "gray", extent=(0, width, height, 0))
            for top, left, bottom, right in boxes[i : i + 1]:
                style = {"fill": False, "edgecolor": plots.COLOURS[1], "linewidth": 1.6}
                axes.add_patch(_rectangle(left, top, right - left, bottom - top, style))
    return figure


def _rectangle(left: float, top: float, width: float, height: float, style: dict[str, Any]) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle((left, top), width, height, **style)
