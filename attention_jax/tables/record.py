"""Writes a table's conclusions for other programs: JSON without times, equal for equal runs, and CSV."""

import csv
import io
import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from attention_jax.tables.computed import list_computed_records
from attention_jax.tables.render import (
    Conclusions,
    EstimatedRow,
    average_measure,
    describe_data,
    list_measured_columns,
    list_published_columns,
    name_metric,
)
from attention_jax.tables.results import ComputedResult, TableRequest
from attention_jax.tables.statistics import Estimate, compute_mean_and_std
from attention_jax.tables.verdicts import Comparison

_TIME = "ms, "  # computed columns with this prefix are timings


def render_json(request: TableRequest, conclusions: Conclusions, computed: Sequence[ComputedResult] = ()) -> str:
    """Formats rows, comparisons, verdicts of published findings and computed rows; scores are shares from 0 to 1.

    A comparison has both intervals, the `verdict` on "`row` is better than `over`", and a `reason` if it is not
    judged; `corrected` is the interval after Holm's correction.
    """
    table, rows = request.table, conclusions.rows
    record = {
        "title": f"{'Learning speed: ' * conclusions.is_learning}{table.title}",
        "source": table.source,
        "scale": request.scale,
        "command": request.command,
        "data": describe_data(rows, request.seeds) if rows else "",
        "score": name_metric(rows) if rows else "",
        "rows": [_record_row(row) for row in rows],
        "comparisons": [_record_comparison(comparison) for comparison in conclusions.comparisons.values()],
        "findings": [
            {"text": finding.text, "row": finding.row, "over": finding.over, "sign": finding.sign, "verdict": verdict}
            for finding, verdict in conclusions.findings.items()
        ],
        "orders": [
            {"published": column, "tau": _rounded(tau), "rows": number} for column, (tau, number) in conclusions.orders.items()
        ],
        "computed": [
            {name: _rounded(value) for name, value in row.items() if not name.startswith(_TIME)}
            for row in list_computed_records(computed)
        ],
    }
    if conclusions.texts:
        record["texts"] = [
            {"metric": metric, "p_randomised": _rounded(found.p_value), **_record_comparison(found.comparison)}
            for metric, made in conclusions.texts.items()
            for found in made.values()
        ]
    lines = [f"{json.dumps(name)}: {_dump(value)}" for name, value in record.items()]
    return "{\n" + ",\n".join(lines) + "\n}\n"


def _dump(value: Any) -> str:
    """Formats one item of a list per line, so that a changed row is a changed line."""
    if isinstance(value, list) and value:
        return "[\n " + ",\n ".join(map(_dump, value)) + "\n]"
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def _record_row(row: EstimatedRow) -> dict[str, Any]:
    result, plan = row.result, row.result.plan
    names = dict.fromkeys(name for run in result.measured for name, value in run.items() if value.ndim == 0)
    measured = {name: [float(run[name]) for run in result.measured if name in run] for name in names}
    return {
        "row": result.label,
        "status": result.status,
        "stale": result.is_stale,
        "seeds": result.done,
        "examples": None if result.correct is None else result.correct.shape[1],
        "score": row.accuracy and _record_estimate(row.accuracy),
        "std": _rounded(row.std),
        "params": plan.counts and plan.counts.params,
        "macs": plan.counts and plan.counts.macs,
        "paper_params": plan.network and plan.network.params,
        "paper_macs": plan.network and plan.network.macs,
        "published": dict(plan.row.published),
        "measured": {
            name: _record_spread(*compute_mean_and_std(np.array(values)[:, None])) for name, values in measured.items()
        },
    }


def _record_spread(mean: float, std: float) -> list[Any]:
    """Returns [mean, standard deviation over seeds]: 0 if only rounding differs, None for one seed."""
    return [_rounded(mean), 0.0 if std < 1e-9 * abs(mean) else _rounded(std)]


def _record_comparison(comparison: Comparison) -> dict[str, Any]:
    estimate = comparison.estimate
    return {
        "row": comparison.row,
        "over": comparison.other,
        "difference": _record_estimate(estimate),
        "corrected": _record_estimate(comparison.corrected)[1:],
        "detectable": _rounded(estimate.detectable),
        "seeds": estimate.seeds,
        "reason": comparison.reason,
        "verdict": comparison.judge(),
    }


def _record_estimate(estimate: Estimate) -> list[Any]:
    """Returns [value, low end, high end of the 95 % interval]."""
    return [_rounded(value) for value in (estimate.value, estimate.low, estimate.high)]


def _rounded(value: Any) -> Any:
    """Rounds to seven digits, which agree between machines; None for numbers that JSON does not have."""
    if value is None or isinstance(value, (str, bool)) or np.ndim(value):
        return value if np.ndim(value) == 0 else None
    value = np.asarray(value).item()
    return value if isinstance(value, int) else (float(f"{value:.7g}") if math.isfinite(value) else None)


def render_csv(lines: Sequence[EstimatedRow], computed: Sequence[ComputedResult] = ()) -> str:
    """Formats one record for each row, computed rows first, in full precision; accuracies and differences are shares 0 to 1."""
    published = list_published_columns(lines)
    records = list_computed_records(computed)
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
        for column in list_measured_columns(lines):
            mean, std = average_measure(line, column) or (None, math.nan)
            record |= {column: mean, f"{column} std": None if math.isnan(std) else std}
        for name, label, comparison in (
            ("before", line.before_label, line.before),
            ("against", plan.row.against, line.against),
        ):
            record[name] = label
            for field in ("value", "low", "high", "detectable"):
                column = f"{name}_{field.replace('value', 'difference')}"
                record[column] = comparison and getattr(comparison.estimate, field)
            for field in ("low", "high"):
                record[f"{name}_corrected_{field}"] = comparison and getattr(comparison.corrected, field)
            record[f"{name}_judged"] = comparison and (
                comparison.reason or ("differs" if comparison.differs else "no difference")
            )
        record["seconds"] = result.seconds
        records.append(record)
    out = io.StringIO()
    columns = dict.fromkeys(column for record in records for column in record)
    writer = csv.DictWriter(out, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return out.getvalue()
