"""Charts of tables and runs. Every function returns a `matplotlib.figure.Figure`: show it in a notebook, or `.savefig` it.

matplotlib is imported when a figure is made, and never through pyplot, which keeps figures alive and looks for a screen.
"""

import dataclasses
import functools
import io
import textwrap
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from attention_jax.analysis.attention_maps import attention_maps
from attention_jax.config.code import RunCode, bind_code
from attention_jax.errors import UserError, one_sentence, require_package
from attention_jax.models.registry import list_origins
from attention_jax.tasks import get_task
from attention_jax.train import metrics
from attention_jax.train.workdir import read_config, read_workdir_code

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from attention_jax.load import Run

# Okabe & Ito's colours without yellow, told apart by every common kind of colour vision.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_DASHES = ("-", "--", ":")
_GREY = "#555555"
SUFFIXES = (".png", ".pdf", ".svg")  # endings of the files in which figures are saved


@functools.cache
def _figure_class() -> "type[Figure]":
    require_package("matplotlib", "plot", "drawing a figure")
    from matplotlib.figure import Figure

    class NotebookFigure(Figure):
        """A figure that a notebook shows although pyplot was never imported."""

        def _repr_png_(self) -> bytes:
            buffer = io.BytesIO()
            self.savefig(buffer, format="png", dpi=90)
            return buffer.getvalue()

    return NotebookFigure


def make_figure(width: float, height: float) -> "Figure":
    """Makes a figure of this size in inches, whose text stays legible when it is shown 900 pixels wide."""
    return _figure_class()(figsize=(width, height), dpi=150, layout="constrained")


def style_axes(axes: "Axes") -> None:
    """Draws a light grid and no frame to the right and above."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#DDDDDD", linewidth=0.6)
    axes.set_axisbelow(True)


def choose_style(i: int) -> dict[str, Any]:
    """Chooses colour and dashes of the i-th row."""
    return {"color": COLOURS[i % len(COLOURS)], "linestyle": _DASHES[i // len(COLOURS) % len(_DASHES)]}


def add_legend(figure: "Figure", axes: "Axes | None" = None) -> None:
    """Writes the labels of the first or the given panel below all panels."""
    handles, labels = (axes or figure.axes[0]).get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 5), frameon=False, fontsize=9)


def save_figure(figure: "Figure", path: Path) -> None:
    """Writes a figure completely or not at all."""
    partial = path.with_name(f"{path.stem}.partial{path.suffix}")
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Glyph .* missing from")  # one for each letter drawn as a box
            figure.savefig(partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


@dataclasses.dataclass(frozen=True)
class Bar:
    """A row of `plot_rows`: pooled accuracy or difference as a share, `by_seed` [S], and the ends of the interval.

    Rows of one `kind` have one colour.
    """

    label: str
    by_seed: Sequence[float]
    value: float
    low: float
    high: float
    kind: str = ""


def plot_rows(bars: Sequence[Bar], title: str = "", metric: str = "accuracy", baseline: str = "") -> "Figure":
    """Plots rows from top to bottom: each seed a dot, the pooled value a tick, the 95 % interval a line.

    Args:
        baseline: the row from which bars are differences, marked by a line at zero; "" for accuracies. Intervals of single
            rows share the luck of the test examples: they may overlap even if the paired difference is certain.
    """
    figure = make_figure(8, 1.5 + 0.5 * len(bars))
    axes = figure.add_subplot()
    kinds = list(dict.fromkeys(bar.kind for bar in bars if bar.kind))
    for i, bar in enumerate(bars):
        colour = choose_style(kinds.index(bar.kind) if bar.kind else i)["color"] if bar.kind or not kinds else _GREY
        axes.plot([100 * bar.low, 100 * min(bar.high, 1)], [i, i], color=colour, linewidth=6, alpha=0.3, solid_capstyle="butt")
        axes.plot(100 * bar.value, i, marker="|", markersize=20, markeredgewidth=2.5, color=colour)
        # Seeds with the same score lie beside, not on top of each other.
        offsets = np.linspace(-0.16, 0.16, len(bar.by_seed)) if len(bar.by_seed) > 1 else [0]
        axes.plot(
            100 * np.asarray(bar.by_seed), i + np.asarray(offsets), "o", color=colour, markersize=5, markeredgecolor="white"
        )
    axes.set_yticks(range(len(bars)), [bar.label for bar in bars])
    axes.set_ylim(len(bars) - 0.4, -0.6)
    if baseline:
        axes.axvline(0, color=_GREY, linewidth=1)
        axes.set_xlabel(f"{metric}, points above {baseline}\n(dots: seeds; tick: mean; band: 95 % interval of the difference)")
    else:
        axes.set_xlabel(f"{metric} %   (dots: seeds; tick: mean; band: 95 % interval of the row alone)")
    _add_title(figure, title)
    style_axes(axes)
    axes.grid(False, axis="y")
    for i, kind in enumerate(kinds):
        axes.plot([], [], color=choose_style(i)["color"], linewidth=6, label=kind)
    if kinds:
        add_legend(figure)
    return figure


def _add_title(figure: "Figure", title: str) -> None:
    """Puts a title over the figure, in as many lines as its width needs."""
    letters = round(11 * figure.get_figwidth())  # letters of 11 points
    figure.suptitle(textwrap.fill(title, letters), x=0.01, horizontalalignment="left", fontsize=11)


def plot_learning_curves(
    runs: Mapping[str, Sequence[Sequence[Mapping[str, Any]]]], title: str = "", metric: str = "accuracy"
) -> "Figure":
    """Plots evaluation score and training loss by epoch; seeds are thin lines, the mean of a row's seeds a thick one.

    `runs` are {label: one list of log lines per seed}, e.g. `{"a": [a.metrics], "b": [b.metrics]}` for loaded runs. `metric` is
    their headline metric. Raises UserError if a run has logged nothing that can be drawn.
    """
    figure = make_figure(10, 4.2)
    score_axes, loss_axes = figure.subplots(1, 2)
    late = []
    for i, (label, seeds) in enumerate(runs.items()):
        scores = [_by_epoch(lines, "headline", 100, label) for lines in seeds]
        losses = [_by_epoch(lines, "train/loss", 1, label) for lines in seeds]
        for axes, curves in ((score_axes, scores), (loss_axes, losses)):
            for epochs, values in curves if len(curves) > 1 else ():
                axes.plot(epochs, values, linewidth=0.6, alpha=0.45, **choose_style(i))
            shortest = min(len(values) for _, values in curves)  # the mean ends where a run was stopped
            mean = np.mean([values[:shortest] for _, values in curves], axis=0)
            axes.plot(curves[0][0][:shortest], mean, linewidth=2, label=label, **choose_style(i))
        late += [np.min(values[len(values) // 2 :]) for _, values in scores]

    # The first half of a run would press the second, where rows differ, into the top of the panel.
    bottom = 100 - max(1.15 * (100 - min(late)), 0.5)
    score_axes.set_ylim(max(bottom, 0), 100 + 0.03 * (100 - bottom))
    score_axes.set_title(f"evaluation {metric} %{' (cut off below)' if bottom > 0 else ''}", fontsize=10)
    loss_axes.set_yscale("log")
    loss_axes.set_title("training loss, each row its own (nats, log scale)", fontsize=10)
    for axes in (score_axes, loss_axes):
        axes.set_xlabel("epoch")
        style_axes(axes)
    add_legend(figure)
    _add_title(figure, title)
    return figure


def _by_epoch(lines: Sequence[Mapping[str, Any]], name: str, factor: float, label: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns (epochs, values) of one metric; lines of an evaluation have no epoch, lines of training do."""
    rate = next((line["epoch"] / line["step"] for line in lines if "epoch" in line), None)
    points = [(line["step"], line[name]) for line in lines if name in line]
    if rate is None or not points:
        what = "a line of training (logging.every_*)" if points else repr(name)
        raise UserError(f"{label}: {what} was not logged, so there is no curve to draw.")
    steps, values = np.array(points, float).T
    return steps * rate, values * factor


def plot_runs(workdirs: Sequence[str], output: str) -> None:
    """Writes a plot of evaluation score and training loss by epoch, a line for each run; the command `plot`.

    `workdirs` are folders of runs, each as "DIR" or "LABEL=DIR"; runs with the same label are seeds. Raises UserError if a
    folder has no run or nothing to draw, or the file exists or cannot be written.
    """
    target = Path(output)
    if target.suffix not in SUFFIXES:
        raise UserError(f"--output={output}: give a name that ends in {', '.join(SUFFIXES)}.")
    if target.exists():
        raise UserError(f"--output={output} exists already: give another name, or remove it.")
    runs: dict[str, list[list[dict[str, Any]]]] = {}
    scores: dict[str, None] = {}
    for given in workdirs:
        label, _, folder = ("", "", given) if Path(given).expanduser().is_dir() else given.rpartition("=")
        path = Path(folder).expanduser()
        config = read_config(path)
        if config is None:
            raise UserError(f"{folder} is no folder of a run: give one that train has made.")
        runs.setdefault(label or path.resolve().name, []).append(metrics.read_log(path))
        config, _ = bind_code(config, read_workdir_code(path) or RunCode(), list_origins(), trust_code=False)
        scores[get_task(config.task).headline(config)] = None
    figure = plot_learning_curves(runs, metric=" or ".join(scores).replace("_", " "))
    try:
        save_figure(figure, target)
    except OSError as error:
        raise UserError(f"--output={output} cannot be written ({one_sentence(error)}).") from error


def choose_images(loader: Any, number: int) -> dict[int, np.ndarray]:
    """Returns {label: [H, W, C]} of the first images of `number` different classes, decoded as for evaluation."""
    chosen: dict[int, np.ndarray] = {}
    for i in range(len(loader.source)):
        example = loader.source[i]
        if int(example["label"]) not in chosen:
            chosen[int(example["label"])] = loader.transform(example, None)["image"]
        if len(chosen) == min(number, loader.source.num_classes):
            break
    return chosen


def plot_attention(run: "Run", images: np.ndarray, labels: Sequence[str] | None = None) -> "Figure":
    """Plots the effect of the network's attention modules on images, one row for each image.

    It shows the maps of every module: channels as bars around 0.5, positions as images, and self-attention as the mean over
    queries. For BAM it adds the features F that enter, the map M(F), and the features F' that leave. A column has one
    scale for all images; F and F' share theirs. Raises UserError if the network has no module with maps.

    Args:
        images: uint8 [N, H, W, C].
        labels: the true classes' names, written beside the predicted ones; long ones are wrapped.
    """
    images = np.asarray(images)
    modules: dict[str, dict[str, np.ndarray]] = {}
    for path, array in attention_maps(run.model, run.variables, run.preprocess(images)).items():
        place, _, name = path.rpartition("/")
        if array.ndim in (2, 3, 4, 5) and (array.ndim, name) != (4, "weights"):  # those are of heads and tokens
            modules.setdefault(place, {})[name] = np.asarray(array, np.float32)
    if not modules:
        raise UserError(f"{run.path}: this network has no attention module that gives maps of images; nothing to plot.")

    # A row of panels for each image and one of scales; columns: the image, and a gap and the maps of each module. In inches.
    columns = {place: _list_columns(maps) for place, maps in modules.items()}
    predicted = run.predict(images).labels
    truths = [""] * len(images) if labels is None else [f"true: {label}\n" for label in labels]
    texts = [f"{truth}predicted: {label}" for truth, label in zip(truths, predicted, strict=True)]
    is_long = max(len(line) for text in texts for line in text.split("\n")) > 17
    texts = ["\n".join(textwrap.fill(line, 30) for line in text.split("\n")) for text in texts] if is_long else texts
    beside, row = (2.3 if is_long else 1.25), max(1.0, 0.14 * max(text.count("\n") + 2 for text in texts) * is_long)  # inches
    rows, widths = len(images), [0.9, *(width for each in columns.values() for width in (0.2, *[0.9] * len(each)))]
    width, height = sum(widths) + 0.1 * len(widths) + 0.15 + beside, rows * row + 1.8
    figure = make_figure(width, height)
    figure.set_layout_engine("none")
    edges = {"left": beside / width, "right": 1 - 0.15 / width, "top": 1 - 0.85 / height, "bottom": 0.8 / height}
    ratios = {"width_ratios": widths, "height_ratios": [*[0.9 * row] * rows, 0.08]}
    panels = figure.subplots(
        rows + 1, len(widths), squeeze=False, gridspec_kw={**edges, **ratios, "wspace": 0.1, "hspace": 0.13}
    )
    for axes in figure.axes:
        axes.set(xticks=[], yticks=[])
    panels[-1, 0].axis("off")
    for i, axes in enumerate(panels[:-1, 0]):
        axes.imshow(images[i].squeeze(), cmap="gray")
        colour = COLOURS[1] if labels is not None and labels[i] != predicted[i] else "black"
        axes.set_ylabel(texts[i], rotation=0, ha="right", va="center", color=colour, fontsize=8 if is_long else 10)
    panels[0, 0].set_title("image", fontsize=10)
    first = 1
    for place, each in columns.items():
        for axes in panels[:, first]:
            axes.axis("off")
        grid = panels[:, first + 1 : first + 1 + len(each)]
        _plot_columns(grid, each)
        left, right = grid[0, 0].get_position().x0, grid[0, -1].get_position().x1
        heading = _describe_place(place, modules[place], "\n" if len(each) < 3 else ": ")
        figure.text((left + right) / 2, 1 - 0.48 / height, heading, ha="center", fontweight="bold", fontsize=9)
        first += 1 + len(each)
    caption = "Scales, channel and spatial maps are after a sigmoid: 0.5 is neutral. Weights are shares of all positions"
    if any("map" in maps for maps in modules.values()):
        caption = (
            "F and F' are means of |F| and |F'| over channels, M(F) is the mean of M(F). The channel and the spatial map are "
            "each branch's own after a sigmoid: 0.5 is neutral"
        )
    figure.text(0.5, 0.08 / height, textwrap.fill(f"{caption}.", int(11 * width)), ha="center", va="bottom", color=_GREY)
    return figure


def _describe_place(place: str, maps: Mapping[str, np.ndarray], between: str) -> str:
    """Returns a module's name, and the sizes of its maps."""
    channels = [array.shape[1] for array in maps.values() if array.ndim == 2]
    sides = [array.shape[1:3] for array in maps.values() if array.ndim > 2]
    sizes = [*(f"{number} channels" for number in channels[:1]), *(f"{h}x{w}" for h, w in sides[:1])]
    return f"{place.removesuffix('/gate').replace('_', ' ')}{between}{' of '.join(sizes)}"


def _around_half(values: np.ndarray) -> tuple[float, float]:
    reach = max(np.abs(values - 0.5).max(), 0.01)
    return 0.5 - reach, 0.5 + reach


_POOLED: dict[int, tuple[int, ...]] = {3: (), 4: (3,), 5: (1, 2)}  # dimensions of a map -> axes of channels or queries
# Name of a map -> its title, in the order of columns: BAM's features and maps.
_TITLES = {"input": "F", "channel": "channel", "spatial": "spatial", "map": "M(F)", "output": "F'"}


def _list_columns(maps: Mapping[str, np.ndarray]) -> dict[str, tuple[np.ndarray, tuple[float, float], str]]:
    """Returns {title: (maps [N, C] or [N, H, W], their scale, colours)} for one module."""
    columns = {}
    features = [np.abs(maps[name]).mean(-1) for name in ("input", "output") if name in maps and maps[name].ndim == 4]
    for name in sorted(maps, key=[*_TITLES, *maps].index):
        values, title = maps[name], _TITLES.get(name, name)
        if values.ndim == 2:
            columns[title] = values, (min(0.0, values.min()), max(1.0, values.max())), ""
        elif values.ndim == 4 and name in ("input", "output"):
            columns[title] = np.abs(values).mean(-1), (0.0, max(map(np.max, features))), "viridis"
        elif name == "weights":
            mean = values.mean((1, 2)) if values.ndim == 5 else values
            columns[title] = mean, (0.0, mean.max()), "viridis"
        else:
            mean = values.mean(_POOLED[values.ndim])
            columns[title] = mean, _around_half(mean), "PuOr_r"
    return columns


def _plot_columns(panels: np.ndarray, columns: Mapping[str, tuple[np.ndarray, tuple[float, float], str]]) -> None:
    """Draws maps as images, and maps of channels as bars around 0.5; the last row has their scales."""
    for (*column, scale), (title, (values, (low, high), colours)) in zip(panels.T, columns.items(), strict=True):
        column[0].set_title(title, fontsize=10)
        for axes, array in zip(column, values, strict=True):
            if values.ndim == 3:
                drawn = axes.imshow(array, cmap=colours, vmin=low, vmax=high)
                continue
            axes.bar(range(len(array)), array - 0.5, 1.0, 0.5, color=np.where(array > 0.5, COLOURS[1], COLOURS[0]))
            axes.axhline(0.5, color=_GREY, linewidth=0.8)
            axes.set(ylim=(low, high), xlim=(-0.5, len(array) - 0.5))
        if values.ndim == 3:
            scale.figure.colorbar(drawn, cax=scale, orientation="horizontal", ticks=[]).outline.set_visible(False)
        else:
            scale.axis("off")
        for x, value, side in ((0.03, low, "left"), (0.97, high, "right")):
            scale.text(x, -0.6, f"{value:.2g}", transform=scale.transAxes, ha=side, va="top", fontsize=9)
