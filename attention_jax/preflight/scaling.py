"""Scaling on paper: a step's bounds on more chips and slices than were compiled for, from one compiled step.

A file of networks is an ordinary Python file with `title`, `finding`, `command`, `notes`, `counts` (of chips), `slices` (their
numbers), and `rows` and `checks` as in `table.py`. A row is a network on one slice, whose step is compiled. Of the checks with
the same label the first predicts the others, which are compiled too.

With the batch of a chip multiplied by r, n chips in each of s slices, G bytes of gradients and S bytes of state in a chip:

    compute       operations x r / peak
    memory        (2 S + 2 G + (bytes to and from memory - 2 S - 2 G) x r) / bandwidth
    interconnect  2 G (n - 1) / n / links of a chip at the slice's corner
    network       2 (G / n) (s - 1) / s / a chip's share of the network between slices
"""

import dataclasses
import fnmatch
import itertools
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from attention_jax.config.plugins import load_file
from attention_jax.errors import UserError
from attention_jax.preflight.chips import ChipSlice, find_slice
from attention_jax.preflight.measure import StepCost
from attention_jax.preflight.report import Report
from attention_jax.preflight.table import (
    PreflightRow,
    list_preflight_rows,
    measure_row,
    read_kept_rows,
    replace_text,
    restore_report,
    write_results,
)

_PAYS = 1.5  # times as fast: what twice the chips must bring at the same batch


def scale_report(report: Report, slice_: ChipSlice, share: float = 1.0) -> Report:
    """Returns a report for another number of chips and slices of the same kind.

    Args:
        report: report of a compiled step whose mesh divides nothing but the batch.
        share: batch of a chip, as a part of the compiled step's.
    """
    cost = report.cost
    kept = 2.0 * sum(size for kind, size in cost.held.items() if kind != "batch")
    gradients = sum(size for _, size, _ in cost.collectives.values())
    fixed, n = min(cost.traffic, kept + 2 * gradients), slice_.devices // slice_.slices
    between = gradients // n
    exchanges = {"all-reduce": (1, gradients, 2 * gradients * (n - 1) / n)}
    if slice_.slices > 1:
        sent = 2 * between * (slice_.slices - 1) / slice_.slices
        exchanges["all-reduce between slices"] = (1, between, sent)
    more = share * slice_.devices / cost.devices  # examples in a batch
    scaled = dataclasses.replace(
        cost,
        devices=slice_.devices,
        mesh={"data": slice_.devices},
        examples=cost.examples * more,
        operations=cost.operations * more,
        model_operations=cost.model_operations * more,
        traffic=round(fixed + (cost.traffic - fixed) * share),
        steps=round(cost.steps / more),
        collectives=exchanges,
    )
    return Report(slice_, scaled, report.input_rate)


def list_slices(base: ChipSlice, counts: tuple[int, ...], slices: tuple[int, ...]) -> Iterator[ChipSlice]:
    """Yields slices of the base's chip that have these numbers of chips together, where such are sold."""
    for count in counts:
        for number in slices:
            found = (find_slice(f"{number}x{base.chip.name}:{shape}") for shape in base.chip.shapes)
            yield from [each for each in found if each.chips == count and each.slices == number]


def run_scaling(path: str, patterns: Sequence[str], output: str | None) -> int:
    """Compiles matching steps that the page needs and does not have yet, and writes the page.

    Steps of the committed table of `preflight.py` are not compiled again. Returns 0 if nothing is missing, else 1.
    """
    module, beside = load_file(path), Path(path).resolve().parent
    folder = Path(output) if output else beside / "results"
    rows = [*list_preflight_rows(module, "rows"), *list_preflight_rows(module, "checks")]
    store = folder / f"{Path(path).stem}.json"
    found = {**read_kept_rows(beside / "results" / "preflight.json", rows), **read_kept_rows(store, rows)}

    def write() -> str:
        text = render_scaling(module, found)
        write_results(store, found)
        replace_text(store.with_suffix(".md"), text)
        return text

    for row in rows:
        if row.key not in found and any(fnmatch.fnmatchcase(row.key, pattern.strip()) for pattern in patterns):
            print(f"{row.key}: compiling", flush=True)
            found[row.key] = {**row.inputs(), **measure_row(row, beside)}
            write()
    print(write())
    return 0 if all(row.key in found for row in rows) else 1


def render_scaling(module: ModuleType, found: dict[str, Any]) -> str:
    """Formats the page; a network whose step was not compiled says "not run"."""
    short = ["| network | batch | chips | ms if nothing overlaps | exchanges | chip-hours | where it stops paying |"]
    short += ["|---|---|---|---|---|---|---|"]
    long: list[str] = []
    for row in list_preflight_rows(module, "rows"):
        if row.key not in found:
            short.append(f"| {row.label} | not run |{' |' * 5}")
            continue
        report = restore_report(row, found[row.key])
        refuse_division(report.cost, row)
        versions = ", ".join(f"{name} {version}" for name, version in report.cost.versions.items())
        compiled = (
            f"Compiled: {row.topology}, batch {report.cost.shape}, {report.cost.precision}, {versions}; all else is computed."
        )
        for fixed_total in (False, True):
            name = "the same in total" if fixed_total else "the same per chip"
            line, table = _tables(module, row, report, fixed_total)
            short.append(f"| {row.label} | {name} | {line} |")
            long += ["<details>", f"<summary>{row.label}, batch {name}</summary>", "", compiled, "", *table, "</details>", ""]
    head = [f"# {module.title}", "", module.finding, "", *short, "", f"Made by `{module.command}`.", ""]
    checks = [
        "## The formulas against compiled programs",
        "",
        "Bytes of a chip, computed : compiled.",
        "",
        *_checks(module, found),
    ]
    return "\n".join([*head, *module.notes.strip().splitlines(), "", *long, *checks, ""])


def refuse_division(cost: StepCost, row: PreflightRow) -> None:
    """Raises UserError for a mesh that divides more than the batch."""
    if cost.mesh.get("fsdp", 1) * cost.mesh.get("model", 1) > 1:
        raise UserError(f"{row.label}: scaling on paper is for meshes that divide nothing but the batch.")


_HEAD = (
    *("chips", "topology", "batch per chip", "ms at best", "bound", "ms if nothing overlaps", "exchanges", "examples/s"),
    *("input per host", "hours", "chip-hours"),
)


def _tables(module: ModuleType, row: PreflightRow, report: Report, fixed_total: bool) -> tuple[str, list[str]]:
    """(Cells of the short table, lines of the long one) of a network."""
    base, rows = report.slice, int(report.cost.shape.split(" x ")[0]) / report.slice.devices
    best: dict[int, tuple[float, float, float]] = {}  # chips: seconds of a step, share of exchanges, chip-hours
    lines = [f"| {' | '.join(_HEAD)} |", f"|{'---|' * len(_HEAD)}"]
    for slice_ in list_slices(base, module.counts, module.slices):
        share = base.chips / slice_.chips if fixed_total else 1.0
        head = [str(slice_.chips), slice_.topology, f"{rows * share:g}"]
        if rows * share < 1:
            lines.append(f"| {' | '.join([*head, 'less than one', *[''] * 7])} |")
            continue
        scaled = scale_report(report, slice_, share)
        bounds, apart = scaled.bounds, sum(scaled.bounds.values())
        exchanged = (bounds["interconnect"] + bounds.get("network", 0.0)) / apart
        hours = scaled.cost.steps * apart / 3600
        best[slice_.chips] = min((apart, exchanged, hours * slice_.chips), best.get(slice_.chips, (math.inf, 0.0, 0.0)))
        rate = scaled.cost.examples / apart
        cells = [f"{1e3 * scaled.step:,.2f}", scaled.bound, f"{1e3 * apart:,.2f}", f"{100 * exchanged:.0f} %", f"{rate:,.0f}"]
        cells += [f"{rate / slice_.hosts:,.0f}/s", f"{hours:,.3g}", f"{hours * slice_.chips:,.3g}"]
        lines.append(f"| {' | '.join([*head, *cells])} |")
    ends = [(n, *best[n]) for n in (min(best), max(best))]
    chips, seconds, exchanged_, cost = (
        " to ".join(form.format(factor * end[i]) for end in ends)
        for i, (form, factor) in enumerate((("{:.0f}", 1), ("{:,.1f}", 1e3), ("{:.0f} %", 100), ("{:,.3g}", 1)))
    )
    pays = _where_it_pays({n: seconds for n, (seconds, _, _) in best.items()}, fixed_total)
    return f"{chips} | {seconds} | {exchanged_} | {cost} | {pays}", lines


def _where_it_pays(times: dict[int, float], fixed_total: bool) -> str:
    """Returns where more chips cost more than they bring; `times` are seconds of a step by chips."""
    counts = sorted(times)
    if fixed_total:
        end = next((a for a, b in itertools.pairwise(counts) if times[a] / times[b] < _PAYS), None)
        return f"at {end}: twice the chips are less than {_PAYS} times as fast" if end else "in none of these"
    end = next((n for n in counts if times[n] > 1.1 * times[counts[0]]), None)
    return f"at {end}: an example takes over 10 % more chip-time" if end else "in none of these"


def _checks(module: ModuleType, found: dict[str, Any]) -> Iterator[str]:
    """Bytes of larger slices, computed from a small one and compiled."""
    rows = [row for row in list_preflight_rows(module, "checks") if row.key in found]
    yield "| network | from | to | bytes to and from memory | sent inside a slice | sent between slices |"
    yield "|---|---|---|---|---|---|"
    for row in rows:
        first = next(other for other in rows if other.label == row.label)
        if first is row:
            continue
        small, compiled = (restore_report(each, found[each.key]) for each in (first, row))
        share = compiled.cost.examples / small.cost.examples * small.cost.devices / compiled.cost.devices
        scaled = scale_report(small, compiled.slice, share)
        cells = [f"{scaled.cost.traffic:,} : {compiled.cost.traffic:,} ({_error(scaled.cost.traffic, compiled.cost.traffic)})"]
        for name, speed in (("interconnect", compiled.slice.egress), ("network", compiled.slice.chip.network)):
            ours, theirs = (round(each.bounds.get(name, 0.0) * speed) for each in (scaled, compiled))
            cells.append(f"{ours:,} : {theirs:,} ({_error(ours, theirs)})" if theirs else "–")
        yield f"| {row.label} | {first.topology} | {row.topology} | {' | '.join(cells)} |"


def _error(computed: float, compiled: float) -> str:
    return f"{100 * (computed / compiled - 1):+.1f} %"
