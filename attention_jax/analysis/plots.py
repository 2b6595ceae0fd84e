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
from attention_jax.errors import UserError, one_sentence
from attention_jax.tasks import get_task
from attention_jax.train import metrics
from attention_jax.train.workdir import read_config

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from attention_jax.load import Run

# Okabe & Ito's colours without yellow, told apart by every common kind of colour vision.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_DASHES = ("-", "--", ":")
_GREY = "#555555"
SUFFIXES = (".png", ".pdf", ".svg")  # of the files that figures are saved in


@functools.cache
def _figure_class() -> "type[Figure]":
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
    """A row of `plot_rows`: accuracies as shares, `by_seed` [S], pooled `value`, ends `low` and `high` of its interval."""

    label: str
    by_seed: Sequence[float]
    value: float
    low: float
    high: float


def plot_rows(bars: Sequence[Bar], title: str = "", metric: str = "accuracy") -> "Figure":
    """Plots rows from top to bottom: each seed a dot, the pooled value a tick, the row's own 95 % interval a line.

    Intervals of single rows share the luck of the test examples: they may overlap where the paired difference is certain.
    """
    figure = make_figure(8, 1.5 + 0.5 * len(bars))
    axes = figure.add_subplot()
    for i, bar in enumerate(bars):
        colour = choose_style(i)["color"]
        axes.plot([100 * bar.low, 100 * min(bar.high, 1)], [i, i], color=colour, linewidth=6, alpha=0.3, solid_capstyle="butt")
        axes.plot(100 * bar.value, i, marker="|", markersize=20, markeredgewidth=2.5, color=colour)
        # Seeds with the same score lie beside, not on top of each other.
        offsets = np.linspace(-0.16, 0.16, len(bar.by_seed)) if len(bar.by_seed) > 1 else [0]
        axes.plot(
            100 * np.asarray(bar.by_seed), i + np.asarray(offsets), "o", color=colour, markersize=5, markeredgecolor="white"
        )
    axes.set_yticks(range(len(bars)), [bar.label for bar in bars])
    axes.set_ylim(len(bars) - 0.4, -0.6)
    axes.set_xlabel(f"{metric} %   (dots: seeds; tick: mean; band: 95 % interval of the row alone)")
    axes.set_title(title, loc="left", fontsize=11)
    style_axes(axes)
    axes.grid(False, axis="y")
    return figure


def plot_learning_curves(
    runs: Mapping[str, Sequence[Sequence[Mapping[str, Any]]]], title: str = "", metric: str = "accuracy"
) -> "Figure":
    """Plots evaluation score and training loss by epoch; seeds are thin lines, the mean of a row's seeds a thick one.

    Args:
        runs: {label: one list of log lines a seed}; for two loaded runs `{"a": [a.metrics], "b": [b.metrics]}`.
        title: above the panels.
        metric: what the runs' headline metric is called.

    Raises:
        UserError: a run has not logged anything that can be drawn.
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
            shortest = min(len(values) for _, values in curves)  # a run that was stopped ends the mean
            mean = np.mean([values[:shortest] for _, values in curves], axis=0)
            axes.plot(curves[0][0][:shortest], mean, linewidth=2, label=label, **choose_style(i))
        late += [np.min(values[len(values) // 2 :]) for _, values in scores]

    # The first half of a run would press the second, where rows differ, into the top of the panel.
    bottom = 100 - 1.15 * (100 - min(late))
    score_axes.set_ylim(max(bottom, 0), 100 + 0.03 * (100 - bottom))
    score_axes.set_title(f"evaluation {metric} %{' (cut off below)' if bottom > 0 else ''}", fontsize=10)
    loss_axes.set_yscale("log")
    loss_axes.set_title("training loss, each row its own (nats, log scale)", fontsize=10)
    for axes in (score_axes, loss_axes):
        axes.set_xlabel("epoch")
        style_axes(axes)
    add_legend(figure)
    figure.suptitle(title, fontsize=11)
    return figure


def _by_epoch(lines: Sequence[Mapping[str, Any]], name: str, factor: float, label: str) -> tuple[np.ndarray, np.ndarray]:
    """(epochs, values) of one metric; lines of an evaluation hold no epoch, those of training do."""
    rate = next((line["epoch"] / line["step"] for line in lines if "epoch" in line), None)
    points = [(line["step"], line[name]) for line in lines if name in line]
    if rate is None or not points:
        raise UserError(f"{label}: {name!r} was not logged, so there is no curve to draw.")
    steps, values = np.array(points, float).T
    return steps * rate, values * factor


def plot_runs(workdirs: Sequence[str], output: str) -> None:
    """Writes a plot of evaluation score and training loss by epoch, a line for each run; the command `plot`.

    Args:
        workdirs: folders of runs, each as "DIR" or "LABEL=DIR"; runs of one label are its seeds.
        output: a new file.

    Raises:
        UserError: a folder holds no run or nothing to draw, or the file cannot be written or exists.
    """
    target = Path(output)
    if target.suffix not in SUFFIXES:
        raise UserError(f"--output={output}: give a name that ends in {', '.join(SUFFIXES)}.")
    if target.exists():
        raise UserError(f"--output={output} is there already: give another name, or remove it.")
    runs: dict[str, list[list[dict[str, Any]]]] = {}
    scores: dict[str, None] = {}
    for given in workdirs:
        label, _, folder = given.rpartition("=")
        path = Path(folder).expanduser()
        config = read_config(path)
        if config is None:
            raise UserError(f"{folder} is no run's folder: give one that train has made.")
        runs.setdefault(label or path.resolve().name, []).append(list(metrics.read_log(path / metrics.METRICS)))
        scores[get_task(config.task).headline(config)] = None
    figure = plot_learning_curves(runs, metric=" or ".join(scores).replace("_", " "))
    try:
        save_figure(figure, target)
    except OSError as error:
        raise UserError(f"--output={output} cannot be written ({one_sentence(error)}).") from error


def choose_images(loader: Any, number: int) -> dict[int, np.ndarray]:
    """{label: [H, W, C]} of the first images of `number` different classes, decoded as for evaluation."""
    chosen: dict[int, np.ndarray] = {}
    for i in range(len(loader.source)):
        example = loader.source[i]
        if int(example["label"]) not in chosen:
            chosen[int(example["label"])] = loader.transform(example, None)["image"]
        if len(chosen) == min(number, loader.source.num_classes):
            break
    return chosen


def plot_bam(run: "Run", images: np.ndarray, labels: Sequence[str] | None = None) -> "Figure":
    """Plots what the network's BAM modules do to images, one row for each image.

    For every module: the features F that enter it, the channel map, the spatial map, the map M(F) that the two make, and the
    features F' that leave it. A column has one scale for all images; F and F' share theirs.

    Args:
        run: from `attention_jax.load_run`.
        images: uint8 [N, H, W, C].
        labels: the true classes' names, written beside the predicted ones.

    Raises:
        UserError: the network has no BAM module with both branches.
    """
    images = np.asarray(images)
    arrays = attention_maps(run.model, run.variables, run.preprocess(images))
    maps = {path: np.asarray(array) for path, array in arrays.items()}
    places = [path.rpartition("/")[0] for path in maps if path.endswith("/channel")]
    places = [place for place in places if f"{place}/spatial" in maps]
    if not places:
        raise UserError(f"{run.path}: this network has no BAM module with a channel and a spatial branch; nothing to plot.")

    sheet = _Sheet(len(images), groups=(1, *(5 for _ in places)))
    predicted = run.predict(images).labels
    for row, image in enumerate(images):
        axes = sheet.axes(row, 0)
        axes.imshow(image.squeeze(), cmap="gray")
        truth = f"true: {labels[row]}\n" if labels is not None else ""
        wrong = labels is not None and labels[row] != predicted[row]
        axes.set_ylabel(
            f"{truth}predicted: {predicted[row]}", rotation=0, ha="right", va="center", color=COLOURS[1] if wrong else "black"
        )
    sheet.head(0, "image")
    columns = [column for place in places for column in _bam_columns(place, maps)]
    for i, column in enumerate(columns, 1):
        sheet.head(i, column.title)
        for row in range(len(images)):
            drawn = column.draw(sheet.axes(row, i), row)
            if row == len(images) - 1:
                sheet.scale(i, drawn, column)
    for group, place in enumerate(places, 1):
        c = maps[f"{place}/channel"].shape[1]
        _, h, w = maps[f"{place}/spatial"].shape
        sheet.group(group, f"{place.replace('_', ' ')}: {c} channels of {h}x{w}")
    sheet.caption(
        "F, M(F) and F' are means over channels. The channel and the spatial map are each branch's own after a sigmoid: "
        "0.5 is neutral."
    )
    return sheet.figure


class _Sheet:
    """Square panels on a grid in groups of columns, with heads, scales below, and room for labels on the left; in inches."""

    def __init__(self, rows: int, groups: Sequence[int]):
        cell, gap, apart, left, top, bottom = 0.9, 0.09, 0.3, 1.25, 0.7, 0.75
        self._cell, self._gap = cell, gap
        x = left
        self._x: list[float] = []
        self._groups: list[tuple[int, int]] = []
        for size in groups:
            first = len(self._x)
            self._x += [x + i * (cell + gap) for i in range(size)]
            self._groups.append((first, first + size - 1))
            x = self._x[-1] + cell + apart
        self._width, self._height = self._x[-1] + cell + 0.15, top + rows * (cell + gap) + bottom
        self._top = self._height - top
        self._bottom = self._top - rows * (cell + gap) + gap
        self.figure = make_figure(self._width, self._height)
        self.figure.set_layout_engine("none")

    def _add(self, x: float, y: float, width: float, height: float) -> "Axes":
        return self.figure.add_axes((x / self._width, y / self._height, width / self._width, height / self._height))

    def _text(self, x: float, y: float, text: str, **style: Any) -> None:
        self.figure.text(x / self._width, y / self._height, text, ha="center", **style)

    def axes(self, row: int, column: int) -> "Axes":
        """An empty square panel."""
        y = self._top - row * (self._cell + self._gap) - self._cell
        axes = self._add(self._x[column], y, self._cell, self._cell)
        axes.set_xticks([])
        axes.set_yticks([])
        return axes

    def head(self, column: int, text: str) -> None:
        """The title of a column."""
        self._text(self._x[column] + self._cell / 2, self._top + 0.08, text, va="bottom")

    def group(self, group: int, text: str) -> None:
        """The title of a group of columns, with a rule below it."""
        first, last = (self._x[i] for i in self._groups[group])
        self._text((first + last + self._cell) / 2, self._top + 0.4, text, va="bottom", fontweight="bold")
        rule = self._add(first, self._top + 0.34, last + self._cell - first, 0.01)
        rule.axis("off")
        rule.axhline(0.5, color=_GREY, linewidth=1)

    def caption(self, text: str) -> None:
        """A sentence below everything."""
        lines = textwrap.fill(text, int(11 * self._width))
        self._text(self._width / 2, 0.08, lines, va="bottom", color=_GREY)

    def scale(self, column: int, drawn: Any, about: "_Column") -> None:
        """What the colours of a column mean, or the heights of its bars."""
        middle = self._x[column] + self._cell / 2
        if drawn is None:
            self._text(middle, self._bottom - 0.27, f"bars {about.low:g} to {about.high:g}", va="center", fontsize=9)
            return
        bar = self._add(self._x[column], self._bottom - 0.17, self._cell, 0.08)
        self.figure.colorbar(drawn, cax=bar, orientation="horizontal").outline.set_visible(False)
        bar.set_xticks([])
        for x, value, side in ((0.03, about.low, "left"), (0.97, about.high, "right")):
            bar.text(x, -0.6, f"{round(value, 2):g}", transform=bar.transAxes, ha=side, va="top", fontsize=9)


@dataclasses.dataclass(frozen=True)
class _Column:
    """One column of `plot_bam`: maps [N, H, W], or a channel map [N, C] drawn as bars around 0.5."""

    title: str
    values: np.ndarray
    low: float
    high: float
    colours: str

    def draw(self, axes: "Axes", row: int) -> Any:
        """Draws the map of one image; returns what a colour bar describes, or None."""
        values = self.values[row]
        if values.ndim == 2:
            return axes.imshow(values, cmap=self.colours, vmin=self.low, vmax=self.high)
        colours = np.where(values > 0.5, COLOURS[1], COLOURS[0])
        axes.bar(np.arange(len(values)), values - 0.5, bottom=0.5, width=1.0, color=colours)
        axes.axhline(0.5, color=_GREY, linewidth=0.8)
        axes.set_ylim(self.low, self.high)
        axes.set_xlim(-0.5, len(values) - 0.5)
        return None


def _bam_columns(place: str, maps: Mapping[str, np.ndarray]) -> list[_Column]:
    """The five columns of one BAM module."""
    before, after, both = (np.abs(maps[f"{place}/{name}"]).mean(-1) for name in ("input", "output", "map"))
    channel, spatial = maps[f"{place}/channel"], maps[f"{place}/spatial"]
    top = max(before.max(), after.max())

    def around_half(values: np.ndarray) -> tuple[float, float]:
        reach = max(np.abs(values - 0.5).max(), 0.01)
        return 0.5 - reach, 0.5 + reach

    return [
        _Column("F", before, 0, top, "viridis"),
        _Column("channel", channel, 0, 1, ""),
        _Column("spatial", spatial, *around_half(spatial), "PuOr_r"),
        _Column("M(F)", both, *around_half(both), "PuOr_r"),
        _Column("F'", after, 0, top, "viridis"),
    ]
