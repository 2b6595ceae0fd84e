"""A table as text for the terminal, as Markdown, and as CSV."""

import csv
import dataclasses
import io
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from attention_jax.models.summary import Summary
from attention_jax.tables.results import ComputedResult, RowResult, TableRequest, have_same_examples
from attention_jax.tables.statistics import Estimate, compute_mean_and_std, estimate_accuracy, estimate_difference
from attention_jax.tasks import get_task

_ABSENT = "–"
_LONGEST = 60  # characters of a cell in a terminal


@dataclasses.dataclass(frozen=True)
class EstimatedRow:
    """A row with its estimates; None where there is nothing to estimate from."""

    result: RowResult
    accuracy: Estimate | None
    std: float
    before: Estimate | None
    before_label: str | None
    against: Estimate | None


def estimate_rows(results: Sequence[RowResult]) -> list[EstimatedRow]:
    """Estimates accuracies, and differences to the row before and to `against`, with their intervals."""
    by_label = {result.label: result for result in results}

    def compare(result: RowResult, other: RowResult | None) -> Estimate | None:
        if other is None or result.correct is None or other.correct is None:
            return None
        if not have_same_examples(result.plan, other.plan) or result.correct.shape[1] != other.correct.shape[1]:
            return None
        return estimate_difference(result.correct, other.correct)

    return [
        EstimatedRow(
            result=result,
            accuracy=None if result.correct is None else estimate_accuracy(result.correct),
            std=math.nan if result.correct is None else compute_mean_and_std(result.correct)[1],
            before=compare(result, before),
            before_label=before.label if before else None,
            against=compare(result, by_label.get(result.plan.row.against or "")),
        )
        for result, before in zip(results, [None, *results])
    ]


def name_metric(lines: Sequence[EstimatedRow]) -> str:
    """Returns the name of the rows' score, such as "accuracy" or "exact match"."""
    configs = [line.result.plan.config for line in lines]
    return " or ".join(dict.fromkeys(get_task(config.task).correct_means(config) for config in configs))


def _computed_records(rows: Sequence[ComputedResult]) -> list[dict[str, Any]]:
    """Rows of the CSV file, with numbers in full precision: each computed column after the published one of its name."""
    published = list(dict.fromkeys(column for row in rows for column in row.row.published))
    values = [item for row in rows for item in (row.values or {}).items()]
    computed = list(dict.fromkeys(name for name, value in values if isinstance(value, str) or np.ndim(value) == 0))
    records = []
    for row in rows:
        record: dict[str, Any] = {"row": row.row.label, "status": row.status, "failures": row.failure}
        for name in (*(name for name in published if name not in computed), *computed):
            record |= {f"published {name}": row.row.published.get(name)} if name in published else {}
            record |= {name: (row.values or {}).get(name)} if name in computed else {}
        records.append(record)
    return records


def _computed_cells(rows: Sequence[ComputedResult]) -> list[list[str]]:
    """Head and rows as texts."""
    records = _computed_records(rows)
    columns = {name: name.startswith("published ") for name in list(records[0])[3:]}

    def cell(value: Any, is_published: bool) -> str:
        if value is None:
            return _ABSENT
        return str(value) if is_published or isinstance(value, str) else f"{float(value):.4g}"

    head = [
        f"{name.removeprefix('published ')} (published)" if is_published else name for name, is_published in columns.items()
    ]
    return [["row", *head], *([record["row"], *(cell(record[name], columns[name]) for name in columns)] for record in records)]


def _computed_failures(rows: Sequence[ComputedResult]) -> str:
    """A line for each row that has no numbers."""
    reasons = {row.row.label: f"failed: {row.failure}" if row.failure else "not run." for row in rows if not row.values}
    return "\n".join(f"{label}: {reason}" for label, reason in reasons.items())


def _published(lines: Sequence[EstimatedRow]) -> list[str]:
    return list(dict.fromkeys(column for line in lines for column in line.result.plan.row.published))


def _measured(lines: Sequence[EstimatedRow]) -> list[str]:
    """Columns of the table's measures: all their numbers."""
    runs = [run for line in lines for run in line.result.measured]
    return list(dict.fromkeys(name for run in runs for name, value in run.items() if value.ndim == 0))


def _mean_and_std(line: EstimatedRow, column: str) -> tuple[float, float] | None:
    """One measure over the seeds that have it; the standard deviation is nan for one seed."""
    values = [[float(run[column])] for run in line.result.measured if column in run]
    return compute_mean_and_std(np.array(values)) if values else None


def _measure(line: EstimatedRow, column: str) -> str:
    values = _mean_and_std(line, column)
    if values is None:
        return _ABSENT
    mean, std = values
    return f"{mean:.4g}" if math.isnan(std) else f"{mean:.4g} ± {std:.2g}"


def _counts(counts: Summary | None) -> list[str]:
    return [f"{counts.params:,}", f"{counts.macs:,}"] if counts else [_ABSENT, _ABSENT]


def _accuracy(line: EstimatedRow) -> str:
    result = line.result
    if line.accuracy is None:
        return f"failed: {result.failures[0].partition(': ')[2]}" if result.failures else "not run"
    std = "" if math.isnan(line.std) else f" ± {100 * line.std:.2f}"
    partial = f" ({result.done} of {len(result.plan.runs)} seeds)" if result.status == "partial" else ""
    return f"{100 * line.accuracy.value:.2f}{std}{partial}"


def _difference(estimate: Estimate | None, mark: str) -> str:
    """In percentage points; `mark` goes around an interval that excludes 0."""
    if estimate is None:
        return _ABSENT
    # + 0.0 turns a rounded -0.0 into 0.0.
    value, low, high = (round(100 * x, 2) + 0.0 for x in (estimate.value, estimate.low, estimate.high))
    text = f"{value:+.2f} [{low:+.2f}, {high:+.2f}]"
    return mark.format(text) if estimate.excludes_zero else text


def _detectable(line: EstimatedRow) -> str:
    compared = [line.before]
    if line.result.plan.row.against not in (None, line.before_label):
        compared.append(line.against)
    values = [f"{100 * estimate.detectable:.2f}" for estimate in compared if estimate]
    return "; ".join(values) or _ABSENT


def _cells(lines: Sequence[EstimatedRow], mark: str) -> list[list[str]]:
    """Head and rows as texts."""
    published = _published(lines)
    measured = _measured(lines)
    networks = any(line.result.plan.row.network for line in lines)
    others = {line.result.plan.row.against for line in lines} - {None}
    head = ["row", *(("params, paper's", "MACs, paper's") if networks else ()), "params", "MACs"]
    head += [*(f"{column} (published)" for column in published), f"{name_metric(lines)} %", *measured, "Δ to the row before"]
    head += [f"Δ to {next(iter(others))}" if len(others) == 1 else "Δ to another row"] if others else []
    head += ["detectable", "s a run"]
    table = [head]
    for line in lines:
        row, plan = line.result.plan.row, line.result.plan
        cells = [row.label, *(_counts(plan.network) if networks else ()), *_counts(plan.counts)]
        cells += [str(row.published.get(column, _ABSENT)) for column in published]
        cells += [_accuracy(line), *(_measure(line, column) for column in measured), _difference(line.before, mark)]
        if others:
            named = f" to {row.against}" if line.against and len(others) > 1 else ""
            cells.append(_difference(line.against, mark) + named)
        cells += [_detectable(line), _ABSENT if line.result.seconds is None else f"{line.result.seconds:.1f}"]
        table.append(cells)
    return table


def _explain(lines: Sequence[EstimatedRow], marked: str) -> str:
    """The meaning of the columns, and the reasons of seeds that failed."""
    examples = sorted({line.result.correct.shape[1] for line in lines if line.result.correct is not None})
    count = f" on {' or '.join(f'{n:,}' for n in examples)} test examples" if examples else ""
    counts = [line.result.done for line in lines if line.result.done]
    sentences = [
        f"{name_metric(lines).capitalize()}: mean ± standard deviation over seeds{count}.",
        "Δ: difference in percentage points with its 95 % interval, from a bootstrap over seeds and over test examples, which "
        f"are paired. {marked}: the interval excludes 0. Nothing is corrected for the number of comparisons.",
        "Detectable: the smallest true difference, in points, that the comparison would have found with 80 % power.",
        "MACs: multiply-adds of one example. Seconds: wall-clock time of a run, mean over seeds; the first one compiles.",
    ]
    if any(line.result.plan.row.network for line in lines):
        sentences.append(
            "The paper's: parameters and multiply-adds of the network in the paper; the columns after them and all results "
            "belong to the network that was trained."
        )
    if counts and min(counts) == 1:
        sentences.append("Rows of a single seed: their intervals cover the choice of test examples, not that of the seed.")
    if stale := [line.result.label for line in lines if line.result.is_stale]:
        sentences.append(f"Stale, as code or data have changed since (--rerun-stale trains them again): {', '.join(stale)}.")
    for line in lines:
        sentences += [f"{line.result.label}, {failure}" for failure in line.result.failures]
    return "\n".join(sentences)


def render_text(title: str, lines: Sequence[EstimatedRow], computed: Sequence[ComputedResult] = ()) -> str:
    """Formats the table as aligned plain text."""
    parts = [title]
    if computed:
        parts += [_aligned_table(_computed_cells(computed)), _computed_failures(computed)]
    if lines:
        parts += [_aligned_table(_cells(lines, "{}*")), _explain(lines, "Star")]
    return "\n\n".join(filter(None, parts))


def _aligned_table(cells: Sequence[Sequence[str]]) -> str:
    cells = [[cell if len(cell) <= _LONGEST else f"{cell[: _LONGEST - 1]}…" for cell in row] for row in cells]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    head, *rows = [
        "  ".join(_aligned(cell, width, i) for i, (cell, width) in enumerate(zip(row, widths))).rstrip() for row in cells
    ]
    return "\n".join([head, "-" * max(map(len, [head, *rows])), *rows])


def _aligned(cell: str, width: int, column: int) -> str:
    return cell.ljust(width) if column == 0 or cell.startswith(("failed", "not run")) else cell.rjust(width)


def render_markdown(
    request: TableRequest, lines: Sequence[EstimatedRow], computed: Sequence[ComputedResult], machine: str
) -> str:
    """Formats the page: title, source, tables, their meaning, and the command that made them."""
    parts = [f"# {request.table.title}", request.table.source]
    scale = f"scale {request.scale}"
    if computed:
        parts += [_markdown_table(_computed_cells(computed)), _computed_failures(computed)]
    if lines:
        parts += [_markdown_table(_cells(lines, "**{}**")), _explain(lines, "Bold")]
        scale += f", seeds 0 to {request.seeds - 1}"
    parts += [request.table.notes, f"Made by `{request.command}` ({scale}).\n{machine}"]
    return "\n\n".join(part for part in parts if part) + "\n"


def _markdown_table(cells: Sequence[Sequence[str]]) -> str:
    head, *rows = [[cell.replace("|", "\\|") for cell in row] for row in cells]
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, ["---", *["---:"] * (len(head) - 1)], *rows])


def render_csv(lines: Sequence[EstimatedRow], computed: Sequence[ComputedResult] = ()) -> str:
    """Formats one record for each row, computed ones first, in full precision; accuracies and differences as shares 0 to 1."""
    published = _published(lines)
    records = _computed_records(computed)
    for line in lines:
        result, plan = line.result, line.result.plan
        record = {
            "row": result.label,
            "status": result.status,
            "failures": "; ".join(result.failures),
            "params": plan.counts.params if plan.counts else None,
            "macs": plan.counts.macs if plan.counts else None,
            "paper_params": plan.network.params if plan.network else None,
            "paper_macs": plan.network.macs if plan.network else None,
            **{f"published {column}": plan.row.published.get(column) for column in published},
            "seeds": result.done,
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
