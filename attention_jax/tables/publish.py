"""Writes a table's files: Markdown, CSV, JSON, LaTeX, chart, curves, attention maps, and the table file's own plots."""

import dataclasses
import functools
import io
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from attention_jax.analysis import plots
from attention_jax.config.plugins import load_object
from attention_jax.errors import UserError
from attention_jax.load import load_run
from attention_jax.tables import render
from attention_jax.tables.html import render_html
from attention_jax.tables.latex import render_latex
from attention_jax.tables.record import render_csv, render_json
from attention_jax.tables.render import Conclusions, EstimatedRow, PageParts
from attention_jax.tables.results import ComputedResult, RowPlan, RowResult, TableRequest, explain_failure, read_row
from attention_jax.tables.statistics import Estimate
from attention_jax.tables.text_comparisons import compare_texts
from attention_jax.tables.verdicts import compare_rows, measure_false_verdicts
from attention_jax.tasks import get_task

_IMAGES = 5  # number of images in the plot of attention maps


def make_folders(*folders: Path) -> None:
    """Makes folders. Raises UserError if one cannot be made or written to."""
    for folder in folders:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{folder} cannot be made ({error.strerror}): give another --workdir or --output.") from error
        if not os.access(folder, os.W_OK):
            raise UserError(f"{folder} cannot be written to: give another --workdir or --output.")


def write_table(
    request: TableRequest,
    plans: Sequence[RowPlan],
    computed: Sequence[ComputedResult],
    machine: str,
    with_plots: bool,
    make_page: Callable[[Conclusions], PageParts] | None = None,
) -> str:
    """Writes the table's files from the finished runs; returns the text to print: the table and the files' paths.

    With `make_page`, which makes the page's own parts, it also writes the page as one HTML file.
    """
    table = request.table
    conclusions = render.draw_conclusions(table, [read_row(plan) for plan in plans])
    if with_plots:  # else the table is written once more
        results = [row.result for row in conclusions.rows]
        conclusions = dataclasses.replace(conclusions, texts=compare_texts(results, conclusions.comparisons))
    rows, images = conclusions.rows, dict[str, bytes]()
    stem, page = table.edition(request.scale), make_page(conclusions) if make_page else None
    printed = [render.render_text(request, conclusions, computed, page), "", "written:"]

    def write(name: str, content: bytes) -> None:
        if request.published:
            request.published.write(name, content)
            printed.append(f"  {request.published.uri}/{name}")
        else:
            write_file(request.output / name, content)
            printed.append(f"  {request.output / name}")

    markdown = render.render_markdown(request, conclusions, computed, machine, page)
    write(f"{stem}.md", markdown.encode())
    write(f"{stem}.csv", render_csv(rows, computed).encode())
    write(f"{stem}.json", render_json(request, conclusions, computed).encode())
    write(f"{stem}.tex", render_latex(markdown).encode())
    for name, plot in _plots(request, rows, computed).items() if with_plots else ():
        try:
            figure = plot()
        except UserError as error:  # the table does not fail with a plot
            printed.append(f"  no {stem}{name}.png: {error}")
            continue
        if figure is not None:
            images[f"{stem}{name}.png"] = _png(figure)
            write(f"{stem}{name}.png", images[f"{stem}{name}.png"])
    if page and with_plots:
        write(f"{stem}.html", render_html(markdown, images).encode())
    return "\n".join(printed)


def write_false_verdicts(request: TableRequest, plans: Sequence[RowPlan]) -> str:
    """Writes how often a table calls two halves of a row's seeds different, although they are equal; returns the sentence."""
    wrong, total = measure_false_verdicts([read_row(plan) for plan in plans])
    share = f"{100 * wrong / total:.1f} %" if total else "no share"
    text = (
        f"Comparing a row with itself on other seeds, the table would call {share} of {total} comparisons different at 5 %, "
        f"uncorrected. Each of {len(plans)} rows has {request.seeds} seeds, divided into two halves in every possible way."
    )
    page = f"# Equal rows: {request.table.title}\n\n{text}\n\nMade by `{request.command}` (scale {request.scale}).\n"
    name, content = f"{request.table.edition(request.scale)}_aa.md", page.encode()
    request.published.write(name, content) if request.published else write_file(request.output / name, content)
    return text


def write_file(path: Path, content: bytes) -> None:
    """Writes a file so that readers see the complete new or the old content. Raises UserError for a full or read-only disk."""
    partial = path.with_name(f"{path.name}.partial")
    try:
        partial.write_bytes(content)
        partial.replace(path)
    except OSError as error:
        raise UserError(
            f"{path} could not be written ({error.strerror}): fix this and start the same command again."
        ) from error


def _png(figure: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _plots(
    request: TableRequest, rows: Sequence[EstimatedRow], computed: Sequence[ComputedResult]
) -> dict[str, Callable[[], Any]]:
    """Returns {end of the file's stem: function that makes the figure, or returns None if there is nothing to plot}."""
    table = request.table
    measured: dict[str, Sequence[Mapping[str, Any]]] = {row.row.label: (row.values,) for row in computed if row.values}
    measured |= {row.result.label: row.result.measured for row in rows if row.result.measured}
    return {
        "": lambda: _chart(table.title, rows),
        "_curves": lambda: _curves(table.title, rows),
        "_attention": lambda: _attention(table.attention_of, rows, request.trust_code),
        **{
            f"_{name}": functools.partial(_custom, load_object(function, {}, "picture"), measured)
            for name, function in table.pictures.items()
        },
    }


def _chart(title: str, rows: Sequence[EstimatedRow]) -> Any:
    """Plots differences to the first finished row, or the accuracy of a single row."""
    done = [(row.result, row.result.correct, row.accuracy) for row in rows if row.accuracy and row.result.correct is not None]
    if not done:
        return None
    (first, correct, _), metric = done[0], render.name_metric(rows)
    compared = compare_rows([result for result, *_ in done], [(result.label, first.label) for result, *_ in done[1:]])
    bars = [
        _bar(result, each.mean(1) - correct.mean(), made.estimate)
        for result, each, _ in done[1:]
        if (made := compared.get((result.label, first.label)))
    ]
    if bars:
        return plots.plot_rows(bars, title, metric, baseline=first.label)
    return plots.plot_rows([_bar(result, each.mean(1), own) for result, each, own in done], title, metric)


def _bar(result: RowResult, by_seed: np.ndarray, estimate: Estimate) -> plots.Bar:
    return plots.Bar(result.label, list(by_seed), estimate.value, estimate.low, estimate.high, result.plan.row.kind)


def _curves(title: str, rows: Sequence[EstimatedRow]) -> Any:
    done = {
        row.result.label: [run.lines() for run in row.result.plan.runs if run.correct is not None]
        for row in rows
        if row.accuracy
    }
    return plots.plot_learning_curves(done, title, render.name_metric(rows)) if done else None


def _custom(plot: Callable[..., Any], measured: Mapping[str, Sequence[Mapping[str, Any]]]) -> Any:
    """Calls the table file's plot function with the measures of each row's finished runs."""
    try:
        return plot(measured) if measured else None
    except Exception as error:
        raise UserError(explain_failure(error)) from error


def _attention(label: str | None, rows: Sequence[EstimatedRow], trust_code: bool) -> Any:
    """Plots maps of the first test images of different classes, for the first seed of a finished row."""
    row = next((row for row in rows if row.result.label == label and row.accuracy), None)
    if row is None:
        return None
    path = next(run.path for run in row.result.plan.runs if run.correct is not None)
    run = load_run(path, trust_code=trust_code)
    if "image" not in get_task(run.config.task).batch_shapes(run.config)[0]:
        raise UserError(f"attention_of={label!r}: its task {run.config.task!r} has no images: give a row of image networks.")
    loader = get_task(run.config.task).evaluation_loader(run.config, (0, 1), run.assets)
    images = dict(sorted(plots.choose_images(loader, _IMAGES).items()))
    return plots.plot_attention(run, np.stack(list(images.values())), [run.labels[label] for label in images])
