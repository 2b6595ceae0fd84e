"""Writes the page of a comparison of blocks: a verdict first, then the table, costs, and what more seeds would detect."""

import csv
import dataclasses
import functools
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from attention_jax.config.config import flatten_config
from attention_jax.tables import results
from attention_jax.tables.cells import write_markdown_cells
from attention_jax.tables.costs import Cost, measure_costs
from attention_jax.tables.publish import write_table
from attention_jax.tables.record import render_csv
from attention_jax.tables.render import Conclusions, PageParts, draw_conclusions, format_rows
from attention_jax.tables.results import RowPlan, RowResult, TableRequest
from attention_jax.tables.runner import run_request
from attention_jax.tables.table import Table
from attention_jax.tables.tuning import Tuning, plan_tuning
from attention_jax.tables.verdicts import Comparison

NONE, CONTROL, PUBLISHED, YOURS = "none", "control", "published", "yours"  # kinds of rows; the first is a row's label too
_COSTS = "costs.json"
_SEEDS = (3, 5, 10, 20, 50)


@dataclasses.dataclass(frozen=True)
class BlockComparison:
    """The outcome of `compare`.

    Attributes:
        verdict: the first sentence of the page.
        rows: rows of the CSV file, {column: value}, in the table's order.
        page: path or URI of the page in Markdown; an HTML file of the same name is beside it.
        code: the exit code of the command.
    """

    verdict: str
    rows: list[dict[str, Any]]
    page: Path | str
    code: int

    def _repr_html_(self) -> str:
        """Returns the page, for a notebook."""
        path = Path(self.page).with_suffix(".html")
        return path.read_text(encoding="utf-8") if path.exists() else f"<p>{self.verdict}</p>"


def run_comparison(
    request: TableRequest,
    notes: Sequence[str],
    further: Sequence[tuple[str, str]],
    tune: str | None,
    dry_run: bool,
    rerun_stale: bool,
) -> BlockComparison:
    """Runs a request whose rows have the kinds of this file, and writes its page.

    Args:
        notes: sentences about adjusted rows.
        further: pairs (why, command), written at the end.
        tune: see `compare`.
    """
    name = f"{request.table.edition(request.scale)}.md"
    page: Path | str = f"{request.published.uri}/{name}" if request.published else request.output / name
    tuning = None
    if tune:
        tuning = plan_tuning(request, tune)
        code = run_request(tuning.request, dry_run, rerun_stale, write=tuning.write)
        if dry_run or not tuning.is_done():
            return BlockComparison("The rates are not tuned yet.", [], page, code)
        request = tuning.add_rows()
    made: list[tuple[Table, Conclusions]] = []
    write = functools.partial(write_comparison, notes=notes, further=further, tuning=tuning, made=made)
    code = run_request(request, dry_run, rerun_stale, write)
    if not made:
        return BlockComparison("", [], page, code)
    table, conclusions = made[-1]
    rows = list(csv.DictReader(io.StringIO(render_csv(conclusions.rows))))
    return BlockComparison(describe_verdict(table, conclusions), [_convert(row) for row in rows], page, code)


def _convert(record: Mapping[str, str]) -> dict[str, Any]:
    """Converts numbers to floats and empty texts to None."""
    converted: dict[str, Any] = dict(record)
    for name, text in record.items():
        try:
            converted[name] = None if text == "" else float(text)
        except ValueError:
            continue
    return converted


def select_rows(
    request: TableRequest, plans: Sequence[RowPlan], tuning: Tuning | None, tuned: bool
) -> tuple[TableRequest, list[RowPlan]]:
    """Returns request and plans of the rows, at tuned or given rates, each compared with the best control."""
    chosen = {row.label: row.label for row in request.table.rows} if tuning is None else tuning.choose_labels(tuned)
    by_label = {plan.row.label: plan for plan in plans}
    kept = [by_label[label] for label in chosen.values()]
    best = find_best_control([results.read_row(plan) for plan in kept])
    rows = [dataclasses.replace(plan.row, against=best if plan.row.kind in (PUBLISHED, YOURS) else None) for plan in kept]
    also = tuple((chosen[row], chosen[other]) for row, other in request.table.also_compared)
    table = dataclasses.replace(request.table, rows=tuple(rows), also_compared=also)
    return dataclasses.replace(request, table=table), [dataclasses.replace(plan, row=row) for plan, row in zip(kept, rows)]


def find_best_control(rows: Sequence[RowResult]) -> str | None:
    """Returns the label of the control with the highest score; None if no control has run."""
    controls = [row for row in rows if row.plan.row.kind == CONTROL and row.correct is not None]
    return (
        max(controls, key=lambda row: float(row.correct.mean()) if row.correct is not None else 0.0).label if controls else None
    )


def write_comparison(
    request: TableRequest,
    plans: Sequence[RowPlan],
    computed: Sequence[results.ComputedResult],
    machine: str,
    with_plots: bool,
    notes: Sequence[str],
    further: Sequence[tuple[str, str]],
    tuning: Tuning | None,
    made: list[tuple[Table, Conclusions]],
) -> str:
    """Writes the page and its files as `write_table` does; returns the text to print, and appends its conclusions to `made`."""
    other = select_rows(request, plans, tuning, tuned=False) if tuning else None
    request, plans = select_rows(request, plans, tuning, tuned=True)
    costs = _measure_costs_once(request, plans) if with_plots else {}

    def make_page(conclusions: Conclusions) -> PageParts:
        made.append((request.table, conclusions))
        sections = [*notes, describe_costs(costs), describe_detectable(request.table, conclusions)]
        if other and tuning:
            before = draw_conclusions(other[0].table, [results.read_row(plan) for plan in other[1]])
            cells = format_rows(other[0].table, before.rows, "**{}**")
            sections += ["## Rates", tuning.describe(), "At the rates as given:", write_markdown_cells(cells)]
        sections += ["## Charts", *_link_plots(request, conclusions)] if with_plots else []
        sections += ["## Further", *(f"{why[0].upper()}{why[1:]}: `{command}`" for why, command in further)] if further else []
        return PageParts(describe_verdict(request.table, conclusions), tuple(filter(None, sections)))

    return write_table(request, plans, computed, machine, with_plots, make_page)


def _link_plots(request: TableRequest, conclusions: Conclusions) -> list[str]:
    stem = request.table.edition(request.scale)
    done = [row for row in conclusions.rows if row.accuracy]
    has_maps = any("maps" in run for row in done for run in row.result.measured)
    links = {"": "Differences to the first row", "_curves": "Learning curves"} if done else {}
    links |= {"_maps": "The last attention map of each row's first seed, and the right box"} if has_maps else {}
    return [f"![{text}]({stem}{name}.png)" for name, text in links.items()]


def describe_verdict(table: Table, conclusions: Conclusions) -> str:
    """Returns a sentence for each of your rows: its comparison with none, the best control, and the published rows."""
    sentences = []
    for row in (row for row in table.rows if row.kind == YOURS):
        made = {other: comparison for (label, other), comparison in conclusions.comparisons.items() if label == row.label}
        if not made:
            sentences.append(f"{row.label} is not compared: it was not run, or no other row was.")
            continue
        first = table.rows[0].label
        parts = [_describe_comparison(made[first], f"the network without it ({first})")] if first in made else []
        if row.against in made:
            parts.append(_describe_comparison(made[row.against], f"the best control, {row.against}"))
        others = {other.label: made[other.label] for other in table.rows if other.kind == PUBLISHED and other.label in made}
        for words, chosen in (
            ("better than", [c.differs and c.estimate.value > 0 for c in others.values()]),
            ("worse than", [c.differs and c.estimate.value < 0 for c in others.values()]),
            ("no difference found to", [not c.reason and not c.differs for c in others.values()]),
            ("not judged against", [bool(c.reason) for c in others.values()]),
        ):
            labels = [label for label, is_chosen in zip(others, chosen) if is_chosen]
            parts += [f"{words} {', '.join(labels)}"] if labels else []
        sentences.append(f"{row.label}: {'; '.join(parts)}.")
    return " ".join(sentences)


def _describe_comparison(comparison: Comparison, other: str) -> str:
    """Returns text such as "better than none, by +1.20 points [+0.40, +2.00]"."""
    value, (low, high) = comparison.estimate.value, (comparison.corrected.low, comparison.corrected.high)
    interval = f"{100 * value:+.2f} points [{100 * low:+.2f}, {100 * high:+.2f}]"
    if comparison.reason:
        return f"not judged against {other} ({comparison.reason}: {100 * value:+.2f} points)"
    if not comparison.differs:
        needed = comparison.estimate.count_seeds_needed() if value else None
        more = f"; a difference of this size would need {needed} seeds" if needed else ""
        return f"no difference found to {other} ({interval}{more})"
    return f"{'better' if value > 0 else 'worse'} than {other}, by {interval}"


def describe_detectable(table: Table, conclusions: Conclusions) -> str:
    """Returns a table of the differences that more seeds would detect, for your rows against none and the best control."""
    rows = []
    for row in (row for row in table.rows if row.kind == YOURS):
        for other in dict.fromkeys(filter(None, (table.rows[0].label, row.against))):
            comparison = conclusions.comparisons.get((row.label, other))
            if comparison and comparison.estimate.seeds > 1:
                points = [f"{100 * comparison.estimate.predict_detectable(seeds):.2f}" for seeds in _SEEDS]
                rows.append([f"{row.label} to {other}", *points])
    if not rows:
        return ""
    cells = write_markdown_cells([["detectable with", *(f"{seeds} seeds" for seeds in _SEEDS)], *rows])
    return f"{cells}\n\nThe smallest true difference, in points, that one comparison alone would find with 80 % power."


def describe_costs(costs: Mapping[str, Cost]) -> str:
    """Returns the table of the cost of a training step."""
    if not costs:
        return ""
    head = ["a training step", "ms (quartiles)", "times the first row's", "MiB"]
    rows = [
        [
            label,
            f"{cost.step_ms:.2f} ({cost.step_low_ms:.2f} to {cost.step_high_ms:.2f})",
            f"{cost.ratio:.2f} ({cost.ratio_low:.2f} to {cost.ratio_high:.2f})",
            f"{cost.memory_bytes / 2**20:.1f}",
        ]
        for label, cost in costs.items()
    ]
    device = next(iter(costs.values())).device
    text = f"Times: one run on {device} times all rows in turn, in rounds; a ratio is the median over rounds."
    return f"{write_markdown_cells([head, *rows])}\n\n{text} Memory: XLA's plan of the step."


def _measure_costs_once(request: TableRequest, plans: Sequence[RowPlan]) -> dict[str, Cost]:
    """Returns the costs of the rows that have run; they are kept in the workdir, so that the same call gives the same page."""
    configs = {plan.row.label: plan.config for plan in plans if any(run.correct is not None for run in plan.runs)}
    if not configs or jax.process_count() > 1:
        return {}
    key = json.dumps({label: flatten_config(config) for label, config in configs.items()}, sort_keys=True, default=str)
    key += jax.devices()[0].device_kind
    path = request.folder / _COSTS
    kept = json.loads(path.read_text()) if path.exists() else {}
    if kept.get("key") != key:
        kept = {"key": key, "costs": {label: dataclasses.asdict(cost) for label, cost in measure_costs(configs).items()}}
        path.write_text(json.dumps(kept))
        if request.remote:
            request.remote.push(path)
    return {label: Cost(**cost) for label, cost in kept["costs"].items()}
