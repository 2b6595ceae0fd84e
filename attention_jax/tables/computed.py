"""Rows of a table that functions compute, without training: called, and made into cells beside the published ones."""

import dataclasses
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from attention_jax.config.plugins import load_object
from attention_jax.errors import UserError, one_sentence
from attention_jax.tables.table import ComputedRow

_ABSENT = "–"


@dataclasses.dataclass(frozen=True)
class Computed:
    """What the function of a row gave; `values` is None when it failed, for the reason `failure`, or was not called."""

    row: ComputedRow
    values: Mapping[str, Any] | None = None
    failure: str | None = None
    seconds: float = 0.0


def compute(row: ComputedRow, arguments: Mapping[str, Any]) -> Computed:
    """Calls a row's function; what it raises becomes the row's failure, and its traceback goes to the standard error."""
    begin = time.perf_counter()
    try:
        values = load_object(row.function, {}, "function")(**arguments)
        if not (isinstance(values, Mapping) and values and all(map(_is_kept, values.values()))):
            raise UserError(f"its function gave {values!r}: give {{column: number or text, name: array}}.")
    except Exception as error:  # recorded, so that the other rows go on
        if not isinstance(error, UserError):
            traceback.print_exc(file=sys.stderr)
        reason = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {one_sentence(error)}"
        return Computed(row, failure=" ".join(reason.split()))
    return Computed(row, values, seconds=time.perf_counter() - begin)


def _is_kept(value: Any) -> bool:
    return isinstance(value, str) or np.asarray(value).dtype.kind in "biuf"


def _columns(lines: Sequence[Computed]) -> list[tuple[str, bool]]:
    """(name, whether it is the published one): each computed column after the published one of its name."""
    published = list(dict.fromkeys(column for line in lines for column in line.row.published))
    values = [item for line in lines for item in (line.values or {}).items()]
    computed = list(dict.fromkeys(name for name, value in values if isinstance(value, str) or np.ndim(value) == 0))
    columns = [(name, True) for name in published if name not in computed]
    return columns + [pair for name in computed for pair in ((name, True), (name, False)) if name in published or not pair[1]]


def computed_cells(lines: Sequence[Computed]) -> list[list[str]]:
    """Head and rows as texts."""
    columns = _columns(lines)

    def cell(line: Computed, name: str, is_published: bool) -> str:
        value = line.row.published.get(name) if is_published else (line.values or {}).get(name)
        if value is None:
            return _ABSENT
        return str(value) if is_published or isinstance(value, str) else f"{float(value):.4g}"

    head = ["row", *(f"{name} (published)" if is_published else name for name, is_published in columns)]
    rows = [[line.row.label, *(cell(line, *column) for column in columns)] for line in lines]
    return [head, *rows]


def computed_failures(lines: Sequence[Computed]) -> list[str]:
    """One sentence for each row that has no numbers."""
    reasons = {line.row.label: f"failed: {line.failure}" if line.failure else "not run." for line in lines if not line.values}
    return [f"{label}: {reason}" for label, reason in reasons.items()]


def computed_records(lines: Sequence[Computed]) -> list[dict[str, Any]]:
    """For the CSV file: numbers in full precision."""
    found = []
    for line in lines:
        status = "failed" if line.failure else ("computed" if line.values else "not run")
        record = {"row": line.row.label, "status": status, "failures": line.failure}
        for name, is_published in _columns(lines):
            if is_published:
                record[f"published {name}"] = line.row.published.get(name)
            else:
                record[name] = (line.values or {}).get(name)
        found.append(record)
    return found
