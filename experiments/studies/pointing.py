"""Do maps point? How much of a map of attention lies on the digit that the cue names, and whether it follows the cue.

Maps of gates are compared with Grad-CAM (Selvaraju et al. 2017, arXiv 1610.02391, Section 3) of the same network, with chance,
which is the area of the digit's box, and with the same network at random weights.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from attention_jax import tree
from attention_jax.analysis import plots
from attention_jax.analysis.pointing import enlarge_maps, measure_shares
from attention_jax.analysis.saliency import choose_map, weigh_features
from attention_jax.data.images.cued import SIDE
from attention_jax.load import Run
from attention_jax.train.program import Program

_EXAMPLES, _BATCH, _DRAWN = 200, 50, 2
_TENTH = 0.1  # share of pixels to delete
_BINS = 20  # bins of M(F), from 0 to 1
_Maps = dict[str, np.ndarray]


def make_viewer(model: nn.Module, query: tuple[float, float]) -> Callable[[Any, np.ndarray], _Maps]:
    """Returns a function (variables, normalised images [N, H, W, C]) -> {"predicted": [N], maps by name: [N, h, w]}.

    "M(F)" counts BAM's values in equal bins from 0 to 1. Grad-CAM explains the class that the network predicts: behind global
    average pooling and a linear head, the gradient of its logit is the head's weight, divided by the number of positions.
    """

    def is_last(module: nn.Module, method: str) -> bool:  # each stage's output: blocks, and the gate after them
        return method == "__call__" and len(module.path) == 1 and module.path[0].startswith("stage")

    @jax.jit
    def view(variables: Any, images: Any) -> dict[str, Any]:
        kept: Any
        logits, kept = model.apply(
            variables, images, train=False, mutable=["attention", "intermediates"], capture_intermediates=is_last
        )
        stages = kept["intermediates"]
        last = max(stages, key=lambda name: (name.partition("_")[0], name.endswith("_gate"), len(name), name))
        predicted, kernel = logits.argmax(-1), variables["params"]["head"]["kernel"]
        sown = jax.tree.map(lambda calls: calls[-1], kept.get("attention", {}), is_leaf=lambda x: isinstance(x, tuple))
        flat = tree.flatten_by_path(sown)
        found = {"predicted": predicted, "Grad-CAM": weigh_features(stages[last]["__call__"][-1], kernel.T[predicted])}
        full = [array for path, array in flat.items() if path.endswith("/map")]
        counts = {"M(F)": jnp.histogram(full[-1], _BINS, (0, 1))[0][None]} if full else {}
        last = {path.rpartition("/")[2]: array for path, array in flat.items()}
        chosen, is_bam = choose_map(last, len(images), query), {"map", "spatial"} <= last.keys()
        maps = {"map": chosen.maps if chosen else None, "spatial branch": last["spatial"] if is_bam else None}
        return {**found, **counts, **{name: array for name, array in maps.items() if array is not None}}

    def view_all(variables: Any, images: np.ndarray) -> _Maps:
        parts = [jax.device_get(view(variables, images[i : i + _BATCH])) for i in range(0, len(images), _BATCH)]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    return view_all


def delete_pixels(images: np.ndarray, scores: np.ndarray, share: float = _TENTH) -> np.ndarray:
    """[N, H, W, C], [N, H, W] -> [N, H, W, C]: sets the share of pixels with the highest scores to 0, the data's mean.

    Equal scores are deleted in random order.
    """
    flat, rng = scores.reshape(len(scores), -1), np.random.default_rng(0)
    order = np.lexsort((rng.random(flat.shape), -flat), axis=-1)[:, : round(share * flat.shape[1])]
    changed = images.reshape(*flat.shape, -1).copy()
    np.put_along_axis(changed, order[..., None], 0, axis=1)
    return changed.reshape(images.shape)


def measure_pointing(program: Program, run: Run) -> dict[str, Any]:
    """Measures, for a table, in percent, how much of each map lies in the box of the digit that the cue names.

    Also at random weights, in the same box of the same image under another cue, and accuracy after the tenth of the pixels
    that a map attends most, or a random tenth, is set to the mean. For the figures: images, boxes, maps, counts of M(F).
    """
    source: Any = program.task.source(run.config, run.config.data.eval_split)
    number = min(_EXAMPLES, len(source))
    own = [source.make(index) for index in range(number)]
    other = [source.make(index, cue=(one["cue"] + 1) % len(one["boxes"])) for index, one in enumerate(own)]
    (height, width), boxes = source.canvas, np.array([one["box"] for one in own])
    images, moved = (run.preprocess(np.stack([one["image"] for one in examples])) for examples in (own, other))
    labels = np.array([one["label"] for one in own])
    cue = np.tile([height // 2 - 3, width // 2 - 3, height // 2 + 3, width // 2 + 3], (number, 1))

    view = make_viewer(program.model, (0.5, 0.5))
    trained, under_other = (view(run.variables, each) for each in (images, moved))
    untrained = view(program.init(np.uint32(run.config.seed)).variables(), images)
    names = [name for name in trained if name not in ("predicted", "M(F)")]
    columns: dict[str, Any] = {"chance %": 100 * SIDE**2 / (height * width)}
    for name in names:
        for maps, what in ((trained, ""), (untrained, ", untrained"), (under_other, ", under the other cue")):
            columns[f"{name} in the box %{what}"] = 100 * measure_shares(maps[name], boxes, source.canvas).mean()
    attended = {name: trained[name] for name in ("map", "Grad-CAM") if name in trained}
    columns |= {f"{name} in the cue %": 100 * measure_shares(attended[name], cue, source.canvas).mean() for name in attended}
    scores = {f"{name}'s tenth": enlarge_maps(maps, height, width) for name, maps in attended.items()}
    scores["a random tenth"] = np.zeros((number, height, width))
    for name, each in scores.items():
        predicted = view(run.variables, delete_pixels(images, each))["predicted"]
        columns[f"accuracy % without {name}"] = 100 * (predicted == labels).mean()
    kept: dict[str, Any] = {"key": np.array([source.arguments["key"]])}  # an array, so that it is no column
    if "M(F)" in trained:
        counts = trained["M(F)"].sum(0) / trained["M(F)"].sum()
        columns["M(F) below 0.1, % of values"] = 100 * counts[: _BINS // 10].sum()
        kept["counts of M(F)"] = counts
    pairs = [example for both in zip(own[:_DRAWN], other[:_DRAWN]) for example in both]
    kept |= {"images": np.stack([each["image"] for each in pairs]), "boxes": np.array([each["boxes"] for each in pairs])}
    kept["right"] = np.array([each["cue"] for each in pairs])
    for name in names:
        both = zip(trained[name][:_DRAWN], under_other[name][:_DRAWN])
        kept[f"drawn {name}"] = np.stack([each for pair in both for each in pair])
    return columns | kept


_MARKS = {"": ("o", "trained"), ", under the other cue": ("x", "under the other cue"), ", untrained": ("|", "random weights")}


def plot_shares(measured: Mapping[str, Sequence[Mapping[str, np.ndarray]]]) -> "plots.Figure":
    """Plots each map's share inside the right digit's box, each seed a mark, with a line at chance."""
    lines = [
        (f"{label}: {column.removesuffix(' in the box %')}", column, seeds)
        for label, seeds in measured.items()
        for column in seeds[0]
        if column.endswith(" in the box %")
    ]
    figure = plots.make_figure(8, 1.4 + 0.34 * len(lines))
    axes = figure.add_subplot()
    for i, (_, column, seeds) in enumerate(lines):
        for j, (suffix, (marker, label)) in enumerate(_MARKS.items()):
            values = [float(seed[column + suffix]) for seed in seeds]
            style: dict[str, Any] = {"color": plots.COLOURS[j], "label": label if i == 0 else None}
            axes.plot(values, [i + 0.2 * (j - 1)] * len(values), marker, markersize=6, linestyle="none", **style)
    axes.axvline(float(seeds[0]["chance %"]), color="#555555", linewidth=1, label="chance: the box's area")
    axes.set_yticks(range(len(lines)), [line[0] for line in lines], fontsize=9)
    axes.set(ylim=(len(lines) - 0.4, -0.6), xlim=(0, None), xlabel="share of the map inside the right digit's box, %")
    plots.style_axes(axes)
    plots.add_legend(figure)
    return figure


def plot_maps(measured: Mapping[str, Sequence[Mapping[str, np.ndarray]]]) -> "plots.Figure":
    """Plots, of each row's first seed, maps on a few images, each image under both cues, with the boxes of the digits."""
    first = {label: seeds[0] for label, seeds in measured.items()}
    lines: list[tuple[str, np.ndarray, Mapping[str, np.ndarray], str]] = []
    for key in dict.fromkeys(values["key"][0] for values in first.values()):
        rows = {label: values for label, values in first.items() if values["key"][0] == key}
        some = next(iter(rows.values()))
        lines.append((f"images, cue: {key}", some["images"], some, ""))
        lines += [
            (f"{label}:\n{name.removeprefix('drawn ')}", values[name], values, "viridis")
            for label, values in rows.items()
            for name in values
            if name.startswith("drawn ")
        ]
    columns, (height, width) = 2 * _DRAWN, lines[0][1].shape[1:3]
    figure = plots.make_figure(1.7 * columns + 1.9, (1.7 * height / width + 0.12) * len(lines) + 1.0)
    panels = figure.subplots(len(lines), columns, squeeze=False)
    for row, (title, arrays, values, colours) in zip(panels, lines, strict=True):
        row[0].set_ylabel(title, rotation=0, ha="right", va="center", fontsize=8)
        for i, (axes, array) in enumerate(zip(row, arrays, strict=True)):
            extent = (-0.5, width - 0.5, height - 0.5, -0.5)
            axes.imshow(array, cmap=colours or None, extent=extent, vmin=None if colours else 0)
            for j, (top, left, bottom, right) in enumerate(values["boxes"][i]):
                is_right = j == values["right"][i]
                xs, ys = (left, right, right, left, left), (top, top, bottom, bottom, top)
                style = {"color": plots.COLOURS[1] if is_right else "white", "linestyle": "-" if is_right else ":"}
                axes.plot(np.subtract(xs, 0.5), np.subtract(ys, 0.5), linewidth=1.5, **style)
            axes.set(xticks=[], yticks=[])
    for i, axes in enumerate(panels[0]):
        axes.set_title(("own cue", "other cue")[i % 2], fontsize=9)
    figure.supxlabel(
        "Each map has a scale of its own, least to largest value. Solid: the digit that the cue names; dotted: the other.",
        fontsize=8,
    )
    return figure


def plot_bam_values(measured: Mapping[str, Sequence[Mapping[str, np.ndarray]]]) -> "plots.Figure":
    """Plots the distribution of BAM's M(F) over positions, channels and images, mean over seeds."""
    figure = plots.make_figure(7, 3.6)
    axes = figure.add_subplot()
    edges = np.linspace(0, 1, _BINS + 1)
    rows = {label: seeds for label, seeds in measured.items() if "counts of M(F)" in seeds[0]}
    for i, (label, seeds) in enumerate(rows.items()):
        shares = 100 * np.mean([seed["counts of M(F)"] for seed in seeds], axis=0)
        axes.stairs(shares, edges, label=label, linewidth=1.8, **plots.choose_style(i))
    axes.set(
        xlabel="M(F): with the skip 0 leaves a feature as it is, without it 0 removes it", ylabel="% of values", xlim=(0, 1)
    )
    plots.style_axes(axes)
    plots.add_legend(figure)
    return figure
