"""A table of many configs on many slices, with published times beside the predictions; each row is kept once it is done.

A file of rows is an ordinary Python file with `title`, `command`, `notes`, `calibration_notes`, `rows` and `calibration`. A
row is a dict: `label`, `config` (a path relative to the file), `fields` (changes to the config), `slices`; a row in
`calibration` also has `published` (milliseconds per step) and `source`, and one slice.
"""

import dataclasses
import fnmatch
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from attention_jax.config.config import load_config, override
from attention_jax.config.plugins import load_file
from attention_jax.errors import UserError
from attention_jax.models.summary import summary
from attention_jax.preflight.chips import find_slice
from attention_jax.preflight.measure import StepCost, describe_devices, measure_input_rate, measure_step
from attention_jax.preflight.report import Report, resolve_without_data
from attention_jax.tasks.resolve import ResolvedConfig

_KEYS = {"label", "config", "fields", "slices", "published", "source"}


@dataclasses.dataclass(frozen=True)
class PreflightRow:
    """A row of the table: one config on one slice."""

    label: str
    config: str
    fields: dict[str, Any]
    topology: str
    published: float | None = None  # milliseconds per step
    source: str = ""

    @property
    def key(self) -> str:
        """The row's name in the file of results."""
        return f"{self.label} @ {self.topology}"

    def inputs(self) -> dict[str, Any]:
        """Returns everything that the row's numbers depend on, besides the code."""
        return json.loads(json.dumps({"config": self.config, "fields": self.fields}))


def run_preflight_table(path: str, patterns: Sequence[str], output: str | None) -> int:
    """Compiles matching rows without numbers, rewrites results and table after each, and prints the table.

    Returns 0 if all rows of the file have numbers, else 1. Raises UserError for a wrong file, or a pattern without a match.
    """
    module = load_file(path)
    rows = [*list_preflight_rows(module, "rows"), *list_preflight_rows(module, "calibration")]
    chosen = [row for row in rows if any(fnmatch.fnmatchcase(row.key, pattern.strip()) for pattern in patterns)]
    if not chosen:
        raise UserError(f"--rows={','.join(patterns)}: no row matches; the rows are {', '.join(row.key for row in rows)}.")
    folder = Path(output or Path(path).resolve().parent / "results")
    store = folder / f"{Path(path).stem}.json"
    found = read_kept_rows(store, rows)

    def write() -> str:
        text = render_preflight(module, rows, found)
        write_results(store, found)
        replace_text(folder / f"{Path(path).stem}.md", text)
        return text

    beside = Path(path).resolve().parent
    for row in chosen:  # published times are first compared with a count that needs no compilation
        if row.published is not None and row.key not in found:
            found[row.key] = {**row.inputs(), "counted": _counted(row, beside)}
            write()
    for row in chosen:
        if "measured" not in found.get(row.key, {}):
            print(f"{row.key}: compiling", flush=True)
            found[row.key] = {**row.inputs(), **found.get(row.key, {}), **measure_row(row, beside)}
            write()
    print(write())
    return 0 if all("measured" in found.get(row.key, {}) for row in rows) else 1


def list_preflight_rows(module: ModuleType, name: str) -> Iterator[PreflightRow]:
    """Yields the rows `name` of a file, one for each slice. Raises UserError for a row with unknown keys."""
    for row in getattr(module, name, ()):
        if unknown := row.keys() - _KEYS:
            raise UserError(f"{module.__file__}: {name}: a row has {', '.join(sorted(unknown))}; it may have {_KEYS}.")
        for topology in row["slices"]:
            fields = dict(row.get("fields", {}))
            find_slice(topology)
            yield PreflightRow(row["label"], row["config"], fields, topology, row.get("published"), row.get("source", ""))


def read_kept_rows(store: Path, rows: Sequence[PreflightRow]) -> dict[str, Any]:
    """Returns the results of rows whose config and fields are unchanged."""
    if not store.exists():
        return {}
    kept = json.loads(store.read_text(encoding="utf-8"))
    return {row.key: kept[row.key] for row in rows if row.inputs().items() <= kept.get(row.key, {}).items()}


def _resolve(row: PreflightRow, beside: Path) -> ResolvedConfig:
    return resolve_without_data(override(load_config(str(beside / row.config)), row.fields))


def _counted(row: PreflightRow, beside: Path) -> float:
    """Counts 2 x 3 x multiply-adds of the forward pass of a batch."""
    resolved = _resolve(row, beside)
    config, task = resolved.config, resolved.task
    rows = next(iter(task.batch_shapes(config)[-1].values())).shape[0]
    return 6.0 * rows * summary(task.model(config), task.example_inputs(config)).macs


def measure_row(row: PreflightRow, beside: Path) -> dict[str, Any]:
    """Compiles a row's step; returns its numbers, and the images that a core prepares per second."""
    resolved = _resolve(row, beside)
    cost = measure_step(resolved, describe_devices(find_slice(row.topology)))
    return {"measured": dataclasses.asdict(cost), "images_a_second": measure_input_rate(resolved.config)}


def write_results(store: Path, found: dict[str, Any]) -> None:
    """Replaces the file of results."""
    replace_text(store, json.dumps(found, indent=1, sort_keys=True) + "\n")


def replace_text(path: Path, text: str) -> None:
    """Writes a file so that readers see the complete new or the old content."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def render_preflight(module: ModuleType, rows: Sequence[PreflightRow], found: dict[str, Any]) -> str:
    """Formats both tables as Markdown, after their finding; a row without numbers reads "not run"."""
    command = "all" if Path(module.__file__ or "").stem == "preflight" else module.__file__
    predicted = [_cells(row, found.get(row.key, {})) for row in rows if row.published is None]
    compared = [_calibration_cells(row, found.get(row.key, {})) for row in rows if row.published is not None]
    fit = sum(cells[_FITS : _FITS + 1] == ["yes"] for cells in predicted)
    finding = f"{fit} of {len(predicted)} steps fit into the memory of their slice."
    if ratios := [float(cells[_RATIO]) for cells in compared if cells[_RATIO]]:
        finding += (
            f" Published times of other programs are {min(ratios):.2f} to {max(ratios):.2f} times the bound (ms at best)."
        )
    measured = [kept["measured"] for kept in found.values() if "measured" in kept]
    versions = sorted({", ".join(f"{name} {number}" for name, number in one["versions"].items()) for one in measured})
    notes = module.notes.strip() + (f"\n- compiled by: {'; '.join(versions)}." if versions else "")
    parts = [f"# {module.title}", finding, _table(_HEAD, predicted)]
    parts.append(f"**How it was measured.** `./launch.sh preflight {command}` (needs the TPU compiler).\n{notes}")
    if compared:
        parts.append("<details>\n<summary>Predicted and published</summary>")
        parts += [_table(_CALIBRATION, compared), module.calibration_notes.strip(), "</details>"]
    return "\n\n".join(parts) + "\n"


_HEAD = (
    *("network", "slice", "mesh", "precision", "batch", "state", "needed", "of", "fits", "TFLOP"),
    *("exchanged", "ms at best", "bound", "examples/s", "peak at most", "a host's input", "hours", "chip-hours", "compiled in"),
)
_CALIBRATION = (
    *("what", "slice", "published ms", "ms of matmuls alone", "published / that", "ms at best", "bound", "published / that"),
    *("ms if nothing overlaps", "error of that", "source"),
)
_FITS, _RATIO = _HEAD.index("fits"), len(_CALIBRATION) - 1 - _CALIBRATION[::-1].index("published / that")


def _table(head: Sequence[str], rows: Sequence[list[str]]) -> str:
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    return "\n".join(lines + [f"| {' | '.join([*cells, *[''] * (len(head) - len(cells))])} |" for cells in rows])


def restore_report(row: PreflightRow, kept: dict[str, Any]) -> Report:
    """Returns the report, with its numbers restored from JSON."""
    fields = kept["measured"]
    tuples = {name: tuple(fields[name]) for name in ("donated", "too_large") if fields[name]}
    collectives = {kind: tuple(n) for kind, n in fields["collectives"].items()}
    return Report(
        find_slice(row.topology), StepCost(**{**fields, **tuples, "collectives": collectives}), kept.get("images_a_second")
    )


def _cells(row: PreflightRow, kept: dict[str, Any]) -> list[str]:
    if "measured" not in kept:
        return [row.label, row.topology, "not run"]
    report = restore_report(row, kept)
    cost, slice_ = report.cost, report.slice
    cells = [
        *(row.label, f"{slice_.topology} ({slice_.name})", "×".join(map(str, cost.mesh.values()))),
        *(cost.precision, cost.shape.replace(" x ", "×"), _gib(report.state), _gib(cost.needed), _gib(report.available)),
    ]
    if not report.fits:
        first = report.advice()[:1]
        return [*cells, f"no: {first[0].partition(':')[0]}" if first else "no"]
    parts = [f"{kind} {count}, {size / 2**20:,.0f} MiB" for kind, (count, size, _) in sorted(cost.collectives.items())]
    host = f"{report.rate / slice_.hosts:,.0f}/s"
    if report.input_rate:
        host += f", {report.rate / slice_.hosts / report.input_rate:.0f} cores"
    return [
        *(*cells, "yes", f"{cost.operations / 1e12:,.3g}", "; ".join(parts) or "–", f"{1e3 * report.step:,.1f}"),
        *(report.bound, f"{report.rate:,.0f}", f"{100 * report.mfu:.0f} %", host, f"{report.hours:,.3g}"),
        *(f"{report.hours * slice_.chips:,.3g}", f"{sum(cost.seconds.values()):,.0f} s"),
    ]


def _calibration_cells(row: PreflightRow, kept: dict[str, Any]) -> list[str]:
    slice_, published = find_slice(row.topology), row.published or math.nan
    cells = [row.label, slice_.topology, f"{published:,.0f}"]
    if "counted" not in kept:
        return [*cells, "not run", "", "not run", *[""] * 4, row.source]
    compute = 1e3 * kept["counted"] / (slice_.chips * slice_.chip.flops)
    cells += [f"{compute:,.1f}", f"{published / compute:.2f}"]
    report = restore_report(row, kept) if "measured" in kept else None
    if report is None or report.cost.too_large:
        return [*cells, "does not fit" if report else "not run", *[""] * 4, row.source]
    best, apart = 1e3 * report.step, 1e3 * sum(report.bounds.values())
    ratio = f"{published / best:.2f}"
    return [*cells, f"{best:,.1f}", report.bound, ratio, f"{apart:,.1f}", f"{100 * (apart / published - 1):+.0f} %", row.source]


def _gib(size: float) -> str:
    return f"{size / 2**30:,.2f} GiB"
