"""A table as text for the terminal, as Markdown, and as CSV."""

import csv
import dataclasses
import io
import math
from collections.abc import Sequence

import numpy as np

from attention_jax.tables import statistics
from attention_jax.tables.computed import Computed, computed_cells, computed_failures, computed_records
from attention_jax.tables.results import RowResult, same_examples
from attention_jax.tables.statistics import Estimate
from attention_jax.tasks import get_task

_ABSENT = "–"


@dataclasses.dataclass(frozen=True)
class Line:
    """A row with its estimates; None where there is nothing to estimate from."""

    result: RowResult
    accuracy: Estimate | None
    std: float
    before: Estimate | None
    before_label: str | None
    against: Estimate | None


@dataclasses.dataclass(frozen=True)
class Heading:
    """What is said above and below the lines of a table."""

    title: str
    source: str
    notes: str
    scale: str
    seeds: int
    command: str
    machine: str


def estimate(results: Sequence[RowResult]) -> list[Line]:
    """Accuracies, differences to the row before and to the row a row names, with their intervals."""
    by_label = {result.label: result for result in results}

    def compare(result: RowResult, other: RowResult | None) -> Estimate | None:
        if other is None or result.correct is None or other.correct is None:
            return None
        if not same_examples(result.plan, other.plan) or result.correct.shape[1] != other.correct.shape[1]:
            return None
        return statistics.difference(result.correct, other.correct)

    lines = []
    for result, before in zip(results, [None, *results]):
        lines.append(
            Line(
                result=result,
                accuracy=None if result.correct is None else statistics.accuracy(result.correct),
                std=math.nan if result.correct is None else statistics.mean_and_std(result.correct)[1],
                before=compare(result, before),
                before_label=before.label if before else None,
                against=compare(result, by_label.get(result.plan.row.against)),
            )
        )
    return lines


def metric(lines: Sequence[Line]) -> str:
    """What the share is called that the lines' first numbers are: "accuracy", "exact match", …"""
    configs = [line.result.plan.config for line in lines]
    return " or ".join(dict.fromkeys(get_task(config.task).correct_means(config) for config in configs))


def _published(lines: Sequence[Line]) -> list[str]:
    return list(dict.fromkeys(column for line in lines for column in line.result.plan.row.published))


def _measured(lines: Sequence[Line]) -> list[str]:
    """Columns that the table's measures make: everything they gave that is a number."""
    runs = [run for line in lines for run in line.result.measured]
    return list(dict.fromkeys(name for run in runs for name, value in run.items() if value.ndim == 0))


def _mean_and_std(line: Line, column: str) -> tuple[float, float] | None:
    """Of one measure over the seeds that have it; the standard deviation is nan for one seed."""
    values = [float(run[column]) for run in line.result.measured if column in run]
    if not values:
        return None
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else math.nan


def _measure(line: Line, column: str) -> str:
    values = _mean_and_std(line, column)
    if values is None:
        return _ABSENT
    mean, std = values
    return f"{mean:.4g}" if math.isnan(std) else f"{mean:.4g} ± {std:.2g}"


def _number(value: int | None) -> str:
    return f"{value:,}" if value is not None else _ABSENT


def _accuracy(line: Line) -> str:
    result = line.result
    if line.accuracy is None:
        return f"failed: {result.failures[0].partition(': ')[2]}" if result.failures else "not run"
    std = "" if math.isnan(line.std) else f" ± {100 * line.std:.2f}"
    partial = f" ({len(result.correct)} of {len(result.plan.runs)} seeds)" if result.status == "partial" else ""
    return f"{100 * line.accuracy.value:.2f}{std}{partial}"


def _difference(estimate: Estimate | None, mark: str) -> str:
    """In percentage points; `mark` goes around an interval that excludes 0."""
    if estimate is None:
        return _ABSENT
    # + 0.0 turns a rounded -0.0 into 0.0.
    value, low, high = (round(100 * x, 2) + 0.0 for x in (estimate.value, estimate.low, estimate.high))
    text = f"{value:+.2f} [{low:+.2f}, {high:+.2f}]"
    return mark.format(text) if estimate.excludes_zero else text


def _detectable(line: Line) -> str:
    shown = [line.before]
    if line.result.plan.row.against not in (None, line.before_label):
        shown.append(line.against)
    values = [f"{100 * estimate.detectable:.2f}" for estimate in shown if estimate]
    return "; ".join(values) or _ABSENT


def _cells(lines: Sequence[Line], mark: str) -> list[list[str]]:
    """Head and rows as texts."""
    published = _published(lines)
    measured = _measured(lines)
    networks = any(line.result.plan.row.network for line in lines)
    others = {line.result.plan.row.against for line in lines} - {None}
    head = ["row", *(("params, paper's", "MACs, paper's") if networks else ()), "params", "MACs"]
    head += [*(f"{column} (published)" for column in published), f"{metric(lines)} %", *measured, "Δ to the row before"]
    head += [f"Δ to {next(iter(others))}" if len(others) == 1 else "Δ to another row"] if others else []
    head += ["detectable", "s a run"]
    table = [head]
    for line in lines:
        row = line.result.plan.row
        network = line.result.plan.network
        cells = [row.label]
        cells += [_number(network and network.params), _number(network and network.macs)] if networks else []
        cells += [_number(line.result.plan.params), _number(line.result.plan.macs)]
        cells += [str(row.published.get(column, _ABSENT)) for column in published]
        cells += [_accuracy(line), *(_measure(line, column) for column in measured), _difference(line.before, mark)]
        if others:
            named = f" to {row.against}" if line.against and len(others) > 1 else ""
            cells.append(_difference(line.against, mark) + named)
        cells += [_detectable(line), _ABSENT if line.result.seconds is None else f"{line.result.seconds:.1f}"]
        table.append(cells)
    return table


def explain(lines: Sequence[Line], marked: str) -> str:
    """What the columns mean, and what happened to seeds that failed."""
    examples = sorted({line.result.correct.shape[1] for line in lines if line.result.correct is not None})
    count = f" on {' or '.join(f'{n:,}' for n in examples)} test examples" if examples else ""
    counts = [len(line.result.correct) for line in lines if line.result.correct is not None]
    sentences = [
        f"{metric(lines).capitalize()}: mean ± standard deviation over seeds{count}.",
        f"Δ: difference in percentage points with its 95 % interval, {marked} where that excludes 0; from a bootstrap over "
        "seeds and test examples, paired by example, each comparison by itself (no correction for their number).",
        "Detectable: the smallest true difference, in points, that the comparison would have found with 80 % power.",
        "MACs: multiply-adds of one example. Seconds: wall clock of a run, mean over seeds, of which the first compiles.",
    ]
    if any(line.result.plan.row.network for line in lines):
        sentences.append(
            "The paper's: parameters and multiply-adds of the network in the paper; the columns after them and all results "
            "are of the network that was trained."
        )
    if counts and min(counts) == 1:
        sentences.append("Rows of a single seed: their intervals cover the choice of test examples, not that of the seed.")
    for line in lines:
        sentences += [f"{line.result.label}, {failure}" for failure in line.result.failures]
    return "\n".join(sentences)


def text(lines: Sequence[Line], heading: Heading, computed: Sequence[Computed] = ()) -> str:
    """Aligned plain text."""
    parts = [heading.title]
    if computed:
        parts += [_aligned_table(computed_cells(computed)), "\n".join(computed_failures(computed))]
    if lines:
        parts += [_aligned_table(_cells(lines, "{}*")), explain(lines, "a star")]
    return "\n\n".join(filter(None, parts))


def _aligned_table(cells: Sequence[Sequence[str]]) -> str:
    cells = [[_shortened(cell) for cell in row] for row in cells]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    head, *rows = [
        "  ".join(_aligned(cell, width, i) for i, (cell, width) in enumerate(zip(row, widths))).rstrip() for row in cells
    ]
    return "\n".join([head, "-" * max(map(len, [head, *rows])), *rows])


def _shortened(cell: str, longest: int = 60) -> str:
    return cell if len(cell) <= longest else f"{cell[: longest - 1]}…"


def _aligned(cell: str, width: int, column: int) -> str:
    return cell.ljust(width) if column == 0 or cell.startswith(("failed", "not run")) else cell.rjust(width)


def markdown(lines: Sequence[Line], heading: Heading, computed: Sequence[Computed] = ()) -> str:
    """The whole page: title, source, tables, what they mean, and how they were made."""
    parts = [f"# {heading.title}", heading.source]
    scale = f"scale {heading.scale}"
    if computed:
        parts += [_markdown_table(computed_cells(computed)), "\n".join(computed_failures(computed))]
    if lines:
        parts += [_markdown_table(_cells(lines, "**{}**")), explain(lines, "bold")]
        scale += f", seeds 0 to {heading.seeds - 1}"
    parts += [heading.notes, f"Made by `{heading.command}` ({scale}).\n{heading.machine}"]
    return "\n\n".join(part for part in parts if part) + "\n"


def _markdown_table(cells: Sequence[Sequence[str]]) -> str:
    head, *rows = [[cell.replace("|", "\\|") for cell in row] for row in cells]
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, ["---", *["---:"] * (len(head) - 1)], *rows])


def comma_separated(lines: Sequence[Line], computed: Sequence[Computed] = ()) -> str:
    """One record a row, computed ones first, in full precision; accuracies and differences as shares from 0 to 1."""
    published = _published(lines)
    records = computed_records(computed)
    for line in lines:
        result, plan = line.result, line.result.plan
        record = {
            "row": result.label,
            "status": result.status,
            "failures": "; ".join(result.failures),
            "params": plan.params,
            "macs": plan.macs,
            "paper_params": plan.network and plan.network.params,
            "paper_macs": plan.network and plan.network.macs,
            **{f"published {column}": plan.row.published.get(column) for column in published},
            "seeds": 0 if result.correct is None else len(result.correct),
            "examples": None if result.correct is None else result.correct.shape[1],
            "accuracy": line.accuracy and line.accuracy.value,
            "accuracy_std": None if math.isnan(line.std) else line.std,
            "accuracy_low": line.accuracy and line.accuracy.low,
            "accuracy_high": line.accuracy and line.accuracy.high,
        }
        for column in _measured(lines):
            mean, std = _mean_and_std(line, column) or (None, math.nan)
            record |= {column: mean, f"{column} std": None if math.isnan(std) else std}
        for name, label, difference in (
            ("before", line.before_label, line.before),
            ("against", plan.row.against, line.against),
        ):
            record[name] = label
            for field in ("value", "low", "high", "detectable"):
                record[f"{name}_{field.replace('value', 'difference')}"] = difference and getattr(difference, field)
        record["seconds"] = result.seconds
        records.append(record)
    out = io.StringIO()
    columns = dict.fromkeys(column for record in records for column in record)
    writer = csv.DictWriter(out, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return out.getvalue()
