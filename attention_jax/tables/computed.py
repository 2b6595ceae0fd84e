"""Formats the computed rows of a table as texts and records."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from attention_jax.tables.results import ComputedResult


def list_computed_records(rows: Sequence[ComputedResult]) -> list[dict[str, Any]]:
    """Returns rows of the CSV file in full precision: each computed column follows the published column of the same name."""
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


def format_computed(rows: Sequence[ComputedResult]) -> list[list[list[str]]]:
    """Returns heads and rows of tables as texts; a row without a column in common with the rows before starts a new table."""
    tables: list[tuple[set[str], list[ComputedResult]]] = []
    for row in rows:
        columns = {name.removeprefix("published ") for name in list(list_computed_records([row])[0])[3:]}
        if not tables or (columns and tables[-1][0].isdisjoint(columns)):
            tables.append((set(), []))
        tables[-1][0].update(columns)
        tables[-1][1].append(row)
    return [_format_cells(rows) for _, rows in tables]


def _format_cells(rows: Sequence[ComputedResult]) -> list[list[str]]:
    """Returns head and rows of one table."""
    records = list_computed_records(rows)
    columns = {name: name.startswith("published ") for name in list(records[0])[3:]}

    def cell(value: Any, is_published: bool) -> str:
        if value is None:
            return "–"
        return str(value) if is_published or isinstance(value, str) else f"{float(value):.4g}"

    head = [
        f"{name.removeprefix('published ')} (published)" if is_published else name for name, is_published in columns.items()
    ]
    return [["row", *head], *([record["row"], *(cell(record[name], columns[name]) for name in columns)] for record in records)]


def describe_uncomputed(rows: Sequence[ComputedResult]) -> str:
    """Returns a line for each row that has no numbers."""
    reasons = {row.row.label: f"failed: {row.failure}" if row.failure else "not run." for row in rows if not row.values}
    return "\n".join(f"{label}: {reason}" for label, reason in reasons.items())
