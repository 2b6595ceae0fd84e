"""Many configs on many slices, and published times beside what is predicted; one row after another, kept as they finish.

A file of rows is an ordinary Python file with `title`, `command`, `notes`, `calibration_notes`, `rows` and `calibration`. A
row is a dict: `label`, `config` (a path beside the file), `fields` (changes to it), `slices`; of `calibration` also
`published` (milliseconds a step) and `source`, with one slice.
"""

import dataclasses
import fnmatch
import json
import math
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from ml_collections import ConfigDict

from attention_jax.config.config import load_config, override
from attention_jax.config.plugins import load_file
from attention_jax.errors import UserError
from attention_jax.preflight.chips import find_slice
from attention_jax.preflight.input_rate import images_a_second
from attention_jax.preflight.measure import Measured, described, measure
from attention_jax.preflight.report import Report, capacity, fits, roofline
from attention_jax.preflight.run import resolved

_STATED = {"label", "config", "fields", "slices", "published", "source"}


@dataclasses.dataclass(frozen=True)
class Row:
    """One config on one slice."""

    label: str
    config: str
    fields: dict[str, Any]
    topology: str
    published: float | None = None  # milliseconds a step
    source: str = ""

    @property
    def key(self) -> str:
        """What the row is called in the file of results."""
        return f"{self.label} @ {self.topology}"

    def what(self) -> dict[str, Any]:
        """What its numbers depend on, besides the code."""
        return json.loads(json.dumps({"config": self.config, "fields": self.fields}))


def run(path: str, patterns: Sequence[str], output: str | None) -> int:
    """Compiles the rows that match and are not there yet, rewrites results and table after each, and prints the table.

    Returns 0 when all rows of the file are there, else 1. Raises UserError for a file or pattern that makes no sense.
    """
    module = load_file(path)
    rows = [*_rows(module, "rows"), *_rows(module, "calibration")]
    chosen = [row for row in rows if any(fnmatch.fnmatchcase(row.key, pattern.strip()) for pattern in patterns)]
    if not chosen:
        raise UserError(f"--rows={','.join(patterns)}: no row matches; the rows are {', '.join(row.key for row in rows)}.")
    folder = Path(output or Path(path).resolve().parent / "results")
    store = folder / f"{Path(path).stem}.json"
    found = _kept(store, rows)

    def write() -> str:
        text = markdown(module, rows, found)
        _write(store, json.dumps(found, indent=1, sort_keys=True) + "\n")
        _write(folder / f"{Path(path).stem}.md", text)
        return text

    beside = Path(path).resolve().parent
    for row in chosen:  # what published times are first compared with takes no compilation
        if row.published is not None and row.key not in found:
            found[row.key] = {**row.what(), "counted": _counted(row, beside)}
            write()
    for row in chosen:
        if "measured" not in found.get(row.key, {}):
            print(f"{row.key}: compiling", flush=True)
            found[row.key] = {**row.what(), **found.get(row.key, {}), **_measured(row, beside)}
            write()
    print(write())
    return 0 if all("measured" in found.get(row.key, {}) for row in rows) else 1


def _rows(module: ModuleType, name: str) -> Iterator[Row]:
    for row in getattr(module, name, ()):
        if unknown := row.keys() - _STATED:
            raise UserError(f"{module.__file__}: {name}: a row has {', '.join(sorted(unknown))}; it may have {_STATED}.")
        for topology in row["slices"]:
            fields = dict(row.get("fields", {}))
            find_slice(topology)
            yield Row(row["label"], row["config"], fields, topology, row.get("published"), row.get("source", ""))


def _kept(store: Path, rows: Sequence[Row]) -> dict[str, Any]:
    """Results of rows that still say the same."""
    if not store.exists():
        return {}
    kept = json.loads(store.read_text(encoding="utf-8"))
    return {row.key: kept[row.key] for row in rows if row.what().items() <= kept.get(row.key, {}).items()}


def _config(row: Row, beside: Path) -> ConfigDict:
    path, _, argument = row.config.partition(":")
    spec = f"{beside / path}:{argument}" if argument else str(beside / path)
    return resolved(override(load_config(spec), row.fields))


def _counted(row: Row, beside: Path) -> float:
    """2 x 3 x multiply-adds of the forward pass of a batch."""
    from attention_jax.models.summary import summary
    from attention_jax.tasks import get_task

    config = _config(row, beside)
    task = get_task(config.task)
    rows = next(iter(task.batch_shapes(config)[-1].values())).shape[0]
    return 6.0 * rows * summary(task.model(config), task.example_inputs(config)).macs


def _measured(row: Row, beside: Path) -> dict[str, Any]:
    config = _config(row, beside)
    measured = measure(config, described(find_slice(row.topology)))
    return {"measured": dataclasses.asdict(measured), "images_a_second": images_a_second(config)}


def _write(path: Path, text: str) -> None:
    """All or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False, encoding="utf-8") as file:
        file.write(text)
    os.chmod(file.name, 0o644)
    os.replace(file.name, path)


def markdown(module: ModuleType, rows: Sequence[Row], found: dict[str, Any]) -> str:
    """Both tables; a row that has no numbers says "not run"."""
    lines = [
        f"# {module.title}",
        "",
        f"`./launch.sh preflight {'all' if module.__name__[:9] == 'preflight' else module.__file__}`",
    ]
    lines += ["", *module.notes.strip().splitlines(), ""]
    lines += _table(_HEAD, [row for row in rows if row.published is None], found, _cells)
    published = [row for row in rows if row.published is not None]
    if published:
        lines += ["", "## Predicted and published", "", *module.calibration_notes.strip().splitlines(), ""]
        lines += _table(_CALIBRATION, published, found, _calibration_cells)
    return "\n".join([*lines, ""])


_HEAD = (
    *("network", "slice", "mesh", "precision", "batch", "state", "needed", "of", "fits", "TFLOP"),
    *("exchanged", "ms at best", "bound", "examples/s", "peak at most", "a host's input", "hours", "chip-hours", "compiled in"),
)
_CALIBRATION = (
    *("what", "slice", "published ms", "ms of products alone", "published / that", "ms at best", "bound", "published / that"),
    *("ms if nothing overlaps", "error of that", "source"),
)


def _table(head: Sequence[str], rows: Sequence[Row], found: dict[str, Any], cells: Any) -> list[str]:
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    for row in rows:
        texts = cells(row, found.get(row.key, {}))
        lines.append(f"| {' | '.join([*texts, *[''] * (len(head) - len(texts))])} |")
    return lines


def _revived(kept: dict[str, Any]) -> Measured:
    """The numbers as they were before they became JSON."""
    lists = {name: tuple(kept[name]) for name in ("donated", "too_large") if kept[name]}
    return Measured(**{**kept, **lists, "collectives": {kind: tuple(n) for kind, n in kept["collectives"].items()}})


def _cells(row: Row, kept: dict[str, Any]) -> list[str]:
    if "measured" not in kept:
        return [row.label, row.topology, "not run"]
    report = Report(find_slice(row.topology), _revived(kept["measured"]), kept["images_a_second"])
    measured, slice_ = report.measured, report.slice
    state = sum(size for kind, size in (measured.laid_out or measured.state).items() if kind != "batch")
    cells = [
        *(row.label, f"{slice_.topology} ({slice_.name})", "×".join(map(str, measured.mesh.values()))),
        *(measured.precision, measured.shape.replace(" x ", "×"), _gib(state), _gib(measured.needed)),
        *(_gib(measured.too_large[1] if measured.too_large else capacity(slice_)),),
    ]
    if not fits(measured, slice_):
        first = report.numbers()["advice"][:1]
        return [*cells, f"no: {first[0].partition(':')[0]}" if first else "no"]
    line = roofline(measured, slice_)
    rate = measured.examples / line.step
    parts = [f"{kind} {count}, {size / 2**20:,.0f} MiB" for kind, (count, size, _) in sorted(measured.collectives.items())]
    host = f"{rate / slice_.hosts:,.0f}/s"
    if report.rate:
        host += f", {rate / slice_.hosts / report.rate:.0f} cores"
    return [
        *(*cells, "yes", f"{measured.operations / 1e12:,.3g}", "; ".join(parts) or "–", f"{1e3 * line.step:,.1f}", line.bound),
        *(f"{rate:,.0f}", f"{100 * report.mfu:.0f} %", host, f"{report.hours:,.3g}", f"{report.hours * slice_.chips:,.3g}"),
        f"{sum(measured.seconds.values()):,.0f} s",
    ]


def _calibration_cells(row: Row, kept: dict[str, Any]) -> list[str]:
    slice_, published = find_slice(row.topology), row.published or math.nan
    cells = [row.label, slice_.topology, f"{published:,.0f}"]
    if "counted" not in kept:
        return [*cells, "not run", "", "not run", *[""] * 4, row.source]
    compute = 1e3 * kept["counted"] / (slice_.chips * slice_.chip.flops)
    cells += [f"{compute:,.1f}", f"{published / compute:.2f}"]
    if "measured" not in kept:
        return [*cells, "not run", *[""] * 4, row.source]
    measured = _revived(kept["measured"])
    if measured.too_large:
        return [*cells, "does not fit", *[""] * 4, row.source]
    line = roofline(measured, slice_)
    best, apart = 1e3 * line.step, 1e3 * line.apart
    ratio = f"{published / best:.2f}"
    return [*cells, f"{best:,.1f}", line.bound, ratio, f"{apart:,.1f}", f"{100 * (apart / published - 1):+.0f} %", row.source]


def _gib(size: float) -> str:
    return f"{size / 2**30:,.2f} GiB"
