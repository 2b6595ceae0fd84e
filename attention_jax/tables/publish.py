"""Writes a table's files: Markdown, CSV, chart, learning curves, and a picture of attention."""

import functools
import io
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from attention_jax.analysis import plots
from attention_jax.config.plugins import load_object
from attention_jax.errors import UserError, one_sentence
from attention_jax.load import load_run
from attention_jax.tables import render
from attention_jax.tables.computed import Computed
from attention_jax.tables.render import Heading, Line
from attention_jax.tables.results import Order, RowPlan, read_row
from attention_jax.tasks import get_task

_PICTURED = 5  # images in the picture of attention


def make_folders(*folders: Path) -> None:
    """Raises UserError when one cannot be made or written to."""
    for folder in folders:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"{folder} cannot be made ({os.strerror(error.errno)}): give another --workdir or --output."
            ) from error
        if not os.access(folder, os.W_OK):
            raise UserError(f"{folder} cannot be written to: give another --workdir or --output.")


def publish(order: Order, plans: Sequence[RowPlan], computed: Sequence[Computed], machine: str, pictures: bool) -> str:
    """Writes the table's files, as far as its rows ran, and returns what to print: the table and where the files are."""
    table = order.table
    heading = Heading(table.title, table.source, table.notes, order.scale, order.seeds, order.command, machine)
    lines = render.estimate([read_row(plan) for plan in plans])
    stem = table.edition(order.scale)
    said = [render.text(lines, heading, computed), "", "written:"]

    def write(name: str, content: bytes) -> None:
        if order.published:
            order.published.write(name, content)
            said.append(f"  {order.published.uri}/{name}")
        else:
            _write(order.output / name, content)
            said.append(f"  {order.output / name}")

    write(f"{stem}.md", render.markdown(lines, heading, computed).encode())
    write(f"{stem}.csv", render.comma_separated(lines, computed).encode())
    if pictures:
        measured = {line.row.label: (line.values,) for line in computed if line.values}
        measured |= {line.result.label: line.result.measured for line in lines if line.result.measured}
        for name, draw in {
            f"{stem}.png": lambda: _chart(table.title, lines),
            f"{stem}_curves.png": lambda: _curves(table.title, lines),
            f"{stem}_attention.png": lambda: _attention(table.attention_of, lines),
            **{
                f"{stem}_{name}.png": functools.partial(_own, load_object(function, {}, "picture"), measured)
                for name, function in table.pictures.items()
            },
        }.items():
            try:
                figure = draw()
            except UserError as error:  # a picture that cannot be made does not cost the table
                said.append(f"  no {name}: {error}")
                continue
            if figure is not None:
                write(name, _png(figure))
    return "\n".join(said)


def _write(path: Path, content: bytes) -> None:
    """A reader sees all of a file, or the one before. Raises UserError when the disk is full or refuses."""
    partial = path.with_name(f"{path.name}.partial")
    try:
        partial.write_bytes(content)
        partial.replace(path)
    except OSError as error:
        raise UserError(
            f"{path} could not be written ({os.strerror(error.errno)}): mend this and start the same command again."
        ) from error


def _png(figure: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _chart(title: str, lines: Sequence[Line]) -> Any:
    bars = [
        plots.Bar(line.result.label, line.result.correct.mean(1), line.accuracy.value, line.accuracy.low, line.accuracy.high)
        for line in lines
        if line.accuracy
    ]
    return plots.plot_rows(bars, title, render.metric(lines)) if bars else None


def _curves(title: str, lines: Sequence[Line]) -> Any:
    done = {
        line.result.label: [run.lines() for run in line.result.plan.runs if run.correct is not None]
        for line in lines
        if line.accuracy
    }
    return plots.plot_learning_curves(done, title, render.metric(lines)) if done else None


def _own(draw: Callable[..., Any], measured: Mapping[str, Sequence[Mapping[str, np.ndarray]]]) -> Any:
    """A picture of the table file's own, from what was measured on the finished runs of each row."""
    try:
        return draw(measured) if measured else None
    except Exception as error:
        raise UserError(f"{type(error).__name__}: {one_sentence(error)}") from error


def _attention(label: str | None, lines: Sequence[Line]) -> Any:
    """The first test images of different classes, through the first seed of a row that is done."""
    line = next((line for line in lines if line.result.label == label and line.accuracy), None)
    if line is None:
        return None
    run = load_run(next(run.path for run in line.result.plan.runs if run.correct is not None))
    config = run.config
    loader = get_task(config.task).loader(config, config.data.eval_split, (0, 1), training=False)
    source, chosen = loader.source, {}
    for i in range(len(source)):
        example = source[i]
        if int(example["label"]) not in chosen:
            chosen[int(example["label"])] = loader.transform(example, None)["image"]  # decoded, where it is encoded
        if len(chosen) == min(_PICTURED, source.num_classes):
            break
    classes = sorted(chosen)
    return plots.plot_bam(run, np.stack([chosen[c] for c in classes]), [run.labels[c] for c in classes])
