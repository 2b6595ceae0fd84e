"""Formats a table as text for the terminal, as Markdown, and as CSV."""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from attention_jax.models.summary import Summary
from attention_jax.tables.cells import align_cells, write_markdown_cells
from attention_jax.tables.computed import describe_uncomputed, format_computed
from attention_jax.tables.differences import format_difference, format_points
from attention_jax.tables.results import ComputedResult, RowResult, TableRequest
from attention_jax.tables.statistics import MIN_SEEDS, Estimate, compute_mean_and_std, estimate_accuracy
from attention_jax.tables.table import PublishedFinding, Table
from attention_jax.tables.text_comparisons import TextComparisons, explain_texts, format_texts
from attention_jax.tables.verdicts import (
    STILL_LEARNING,
    Comparison,
    compare_rows,
    describe_seeds,
    judge_finding,
    order_agreement,
    read_groups,
)
from attention_jax.tasks import get_task

_ABSENT = "–"


@dataclasses.dataclass(frozen=True)
class EstimatedRow:
    """A row with its accuracy and its differences to other rows."""

    result: RowResult
    accuracy: Estimate | None  # None if the row has not been run
    std: float  # standard deviation of the accuracy over seeds; nan for fewer than two seeds
    before: Comparison | None  # difference to the row that the table's `compare_to` selects
    before_label: str | None
    against: Comparison | None  # difference to the row that the row's own `against` names


@dataclasses.dataclass(frozen=True)
class Conclusions:
    """All results of a table: the estimates of its rows, its comparisons, and its verdicts."""

    rows: list[EstimatedRow]
    comparisons: dict[tuple[str, str], Comparison]
    findings: dict[PublishedFinding, str]  # published finding -> verdict
    orders: dict[str, tuple[float, int]]  # published column -> Kendall's tau and the number of rows
    texts: TextComparisons = dataclasses.field(default_factory=dict)  # comparisons of translations

    @property
    def is_learning(self) -> bool:
        """True if a row was still learning at the end of its training."""
        return any(comparison.reason == STILL_LEARNING for comparison in self.comparisons.values())


def draw_conclusions(table: Table, results: Sequence[RowResult]) -> Conclusions:
    """Estimates accuracies, makes the planned comparisons, and judges the published findings."""
    others = table.list_compared([result.plan.row for result in results])
    against = {result.label: result.plan.row.against for result in results}
    planned = [*others.items(), *against.items(), *((finding.row, finding.over) for finding in table.findings)]
    planned += [*table.also_compared, *(pair for _, *pairs in table.list_subtotals() for pair in pairs)]
    made = compare_rows(results, [(row, other) for row, other in planned if other], table.selected_on)
    rows = [
        EstimatedRow(
            result=result,
            accuracy=None if result.correct is None else estimate_accuracy(result.correct, groups=read_groups(result)),
            std=math.nan if result.correct is None else compute_mean_and_std(result.correct)[1],
            before=made.get((result.label, others[result.label] or "")),
            before_label=others[result.label],
            against=made.get((result.label, against[result.label] or "")),
        )
        for result in results
    ]
    findings = {finding: judge_finding(finding, made.get((finding.row, finding.over))) for finding in table.findings}
    orders = {}
    for column, sign in table.published_order.items():
        published = {r.label: sign * float(r.plan.row.published[column]) for r in results if column in r.plan.row.published}
        if agreement := order_agreement(results, published):
            orders[column] = agreement
    return Conclusions(rows, made, findings, orders)


@dataclasses.dataclass(frozen=True)
class PageParts:
    """Parts that only some pages have.

    Attributes:
        finding: first sentence of the page, in place of the count of differences.
        sections: sections of Markdown that follow the tables; they refer to pictures by file name.
    """

    finding: str
    sections: tuple[str, ...] = ()


def name_metric(lines: Sequence[EstimatedRow]) -> str:
    """Returns the name of the rows' score, such as "accuracy" or "exact match"."""
    configs = [line.result.plan.config for line in lines]
    return " or ".join(dict.fromkeys(get_task(config.task).correct_means(config) for config in configs))


def list_published_columns(lines: Sequence[EstimatedRow]) -> list[str]:
    """Returns the published columns of all rows."""
    return list(dict.fromkeys(column for line in lines for column in line.result.plan.row.published))


def list_measured_columns(lines: Sequence[EstimatedRow]) -> list[str]:
    """Returns the names of the measures that are single numbers, in the order in which runs report them."""
    runs = [run for line in lines for run in line.result.measured]
    return list(dict.fromkeys(name for run in runs for name, value in run.items() if value.ndim == 0))


def average_measure(line: EstimatedRow, column: str) -> tuple[float, float] | None:
    """Returns mean and standard deviation of a measure over the seeds that have it; the latter is nan for one seed."""
    values = [[float(run[column])] for run in line.result.measured if column in run]
    return compute_mean_and_std(np.array(values)) if values else None


def _measure(line: EstimatedRow, column: str) -> str:
    values = average_measure(line, column)
    if values is None:
        return _ABSENT
    mean, std = values
    return f"{mean:.4g}" if math.isnan(std) or std < 1e-9 * abs(mean) else f"{mean:.4g} ± {std:.2g}"


def _counts(counts: Summary | None) -> list[str]:
    return [f"{counts.params:,}", f"{counts.macs:,}"] if counts else [_ABSENT, _ABSENT]


def _accuracy(line: EstimatedRow) -> str:
    result = line.result
    if line.accuracy is None:
        return f"failed: {result.failures[0].partition(': ')[2]}" if result.failures else "not run"
    std = "" if math.isnan(line.std) else f" ± {100 * line.std:.2f}"
    partial = f" ({result.done} of {len(result.plan.runs)} seeds)" if result.status == "partial" else ""
    early = sum(run.stopped_early for run in result.plan.runs)
    stopped = f" ({early} of {len(result.plan.runs)} seeds stopped early)" if early else ""
    return f"{100 * line.accuracy.value:.2f}{std}{partial}{stopped}"


def _detectable(line: EstimatedRow) -> str:
    compared = dict.fromkeys(filter(None, (line.before, line.against)))
    if not compared:
        return _ABSENT
    return "; ".join(
        describe_seeds(c.estimate.seeds) if c.estimate.seeds < MIN_SEEDS else f"{100 * c.estimate.detectable:.2f}"
        for c in compared
    )


def _head_of_differences(table: Table, lines: Sequence[EstimatedRow]) -> tuple[list[str], bool]:
    """Returns the heads of the columns of differences, and True if each cell of the second column names its row."""
    others = {line.result.plan.row.against for line in lines} - {None}
    first = {"previous": "Δ to the row before", "baseline": f"Δ to {lines[0].result.label}"}.get(table.compare_to or "")
    second = [f"Δ to {next(iter(others))}" if len(others) == 1 else "Δ to another row"] if others else []
    return [*([first] if first else []), *second], len(others) > 1


def format_rows(table: Table, lines: Sequence[EstimatedRow], mark: str) -> list[list[str]]:
    """Returns head and rows of the first table as texts: at most seven columns, starting with the score and its differences."""
    heads, is_named = _head_of_differences(table, lines)
    published = list_published_columns(lines)[: 4 - len(heads)]
    cells = [["row", f"{name_metric(lines)} %", *heads, "detectable", *(f"{column} (published)" for column in published)]]
    for line in lines:
        row = line.result.plan.row
        differences = [format_difference(line.before, mark)] if table.compare_to in ("previous", "baseline") else []
        if len(heads) > len(differences):
            named = f" to {row.against}" if row.against and is_named else ""
            differences.append(format_difference(line.against, mark) + named)
        others = (str(row.published.get(column, _ABSENT)) for column in published)
        cells.append([row.label, _accuracy(line), *differences, _detectable(line), *others])
    return cells


def _subtotal_cells(table: Table, conclusions: Conclusions, mark: str) -> list[list[str]]:
    """Returns head and rows of the subtotals: the gain of adjacent rows of one kind, beside the published gain."""
    if not (subtotals := table.list_subtotals()):
        return []
    published = {line.result.label: line.result.plan.row.published for line in conclusions.rows}
    column = next(iter(table.published_order), "")

    def cells(pair: tuple[str, str]) -> list[str]:
        values = [float(published.get(label, {}).get(column, math.nan)) for label in pair]
        return [
            format_difference(conclusions.comparisons.get(pair), mark),
            _ABSENT if math.isnan(sum(values)) else f"{values[0] - values[1]:+.4g}",
        ]

    head = ["rows", "Δ to the row before them", f"{column} (published)", f"Δ to {table.rows[0].label}", f"{column} (published)"]
    body = [[f"{kind}, up to {one[0]}", *cells(one), *cells(all_before)] for kind, one, all_before in subtotals]
    return [[cell for i, cell in enumerate(row) if column or i not in (2, 4)] for row in [head, *body]]


def _cost_cells(table: Table, lines: Sequence[EstimatedRow]) -> tuple[list[list[str]], str]:
    """Returns head and rows of the second table (costs and measures), and a sentence with the columns equal in all rows."""
    rest = list_published_columns(lines)[4 - len(_head_of_differences(table, lines)[0]) :]
    networks = any(line.result.plan.row.network for line in lines)
    measured = list_measured_columns(lines)
    columns = {"row": [line.result.label for line in lines]}
    for name, counts in (
        ("paper's", [line.result.plan.network for line in lines]),
        ("", [line.result.plan.counts for line in lines]),
    ):
        if networks or not name:
            for i, what in enumerate(("params", "MACs")):
                columns[f"{what}, {name}" if name else what] = [_counts(each)[i] for each in counts]
    columns |= {f"{c} (published)": [str(line.result.plan.row.published.get(c, _ABSENT)) for line in lines] for c in rest}
    columns |= {name: [_measure(line, name) for line in lines] for name in measured}
    seconds = [line.result.seconds for line in lines]
    columns["s per run"] = [_ABSENT if value is None else f"{value:.1f}" for value in seconds]
    constant = {name: values[0] for name, values in columns.items() if len(lines) > 1 and len({*values}) == 1}
    varying = {name: values for name, values in columns.items() if name not in constant}
    same = "; ".join(f"{name} {value}" for name, value in constant.items() if value != _ABSENT)
    return [list(varying), *map(list, zip(*varying.values()))], f"The same in all rows: {same}." if same else ""


def _summarize(conclusions: Conclusions) -> str:
    """Returns the page's first sentence: which differences are found, and why comparisons are not judged."""
    judged = [c for c in conclusions.comparisons.values() if not c.reason]
    differ = [c for c in judged if c.differs]
    reasons = dict.fromkeys(c.reason for c in conclusions.comparisons.values() if c.reason)
    parts = []
    if judged:
        named = "; ".join(f"{c.row} {format_points(c.estimate.value)} points against {c.other}" for c in differ)
        counts = f"{len(differ)} of {_count_comparisons(len(judged), 'judged')} show{'s' * (len(differ) == 1)} a difference"
        parts.append(f"{counts}{f': {named}' if named else ''}.")
    if reasons:
        planned = _count_comparisons(len(conclusions.comparisons), "planned")
        parts.append(f"Not judged: {len(conclusions.comparisons) - len(judged)} of {planned} ({', '.join(reasons)}).")
    return " ".join(parts)


def _count_comparisons(number: int, kind: str) -> str:
    return f"{number} {kind} comparison{'' if number == 1 else 's'}"


def describe_data(lines: Sequence[EstimatedRow], seeds: int) -> str:
    """Returns a sentence that names the data that the rows were trained and judged on, and the number of seeds."""
    sentences = dict[str, None]()
    for line in [line for line in lines if line.result.correct is not None] or lines:
        data, correct = line.result.plan.config.data, line.result.correct
        arguments = ", ".join(f"{name}={value!r}" for name, value in data.args.items())
        count = "" if correct is None else f"{correct.shape[1]:,} examples of "
        known = "" if data.num_examples is None else f"{data.num_examples:,} examples of "
        text = f"{data.source}{f' ({arguments})' if arguments else ''}, trained on {known}{data.train_split}, judged on {count}"
        sentences[f"{text}{data.eval_split}"] = None
    return f"Data: {'; '.join(sentences)}; {describe_seeds(seeds)} a row."


def _explain(table: Table, conclusions: Conclusions, marked: str) -> str:
    """Returns lines that explain the columns, give the verdicts, and say why seeds failed."""
    lines = conclusions.rows
    metric = name_metric(lines)
    sentences = [
        f"{metric[0].upper()}{metric[1:]}: mean ± standard deviation over seeds.",
        "Δ: difference in percentage points. The first brackets hold its 95 % interval, from a bootstrap over seeds and test "
        "examples, paired by example. The parentheses hold the interval after Holm's correction for "
        f"{_count_comparisons(len(conclusions.comparisons), 'planned')}. {marked}: the corrected interval excludes 0.",
        "Detectable: the smallest true difference, in points, that a single comparison would find with 80 % power.",
    ]
    if conclusions.is_learning:
        sentences.append(
            "Learning speed: in some rows, the last tenth of training still changed the score by more than the detectable "
            "difference, so this table compares how fast the rows learn."
        )
    if table.selected_on:
        chosen = f"Rows or training budgets were chosen on the split {table.selected_on!r}"
        sentences.append(f"{chosen}; comparisons on that split are not judged.")
    for finding, verdict in conclusions.findings.items():
        sentences.append(f"Published: {finding.text} ({finding.row} over {finding.over}): {verdict}.")
    for column, (tau, number) in conclusions.orders.items():
        sentences.append(f"Kendall's τ between the measured and the published order of {number} rows ({column}): {tau:+.2f}.")
    if stale := [line.result.label for line in lines if line.result.is_stale]:
        reason = "code or data have changed since these rows were trained (--rerun-stale trains them again)"
        sentences.append(f"Stale: {reason}: {', '.join(stale)}.")
    for line in lines:
        sentences += [f"{line.result.label}, {failure}" for failure in line.result.failures]
    return "\n".join(sentences)


_COSTS = (
    "MACs: multiply-adds of the forward pass for one example. s per run: wall-clock seconds of a run, mean over seeds; the "
    "first run includes compilation."
)


_NOT_COMPARED = "No rows are compared by their score; the tables list what was measured or computed."


def render_text(
    request: TableRequest, conclusions: Conclusions, computed: Sequence[ComputedResult] = (), page: PageParts | None = None
) -> str:
    """Formats the table as aligned plain text."""
    table, parts = request.table, [_title(request.table, conclusions)]
    if computed:
        parts += [*map(align_cells, format_computed(computed)), describe_uncomputed(computed)]
    if conclusions.rows:
        costs, same = _cost_cells(table, conclusions.rows)
        parts += [page.finding if page else _summarize(conclusions), align_cells(format_rows(table, conclusions.rows, "{}*"))]
        parts += [align_cells(subtotals) for subtotals in [_subtotal_cells(table, conclusions, "{}*")] if subtotals]
        parts += [_explain(table, conclusions, "Star"), *map(align_cells, format_texts(conclusions.texts, "{}*"))]
        parts += [explain_texts(conclusions.texts, table.findings, "Star"), same, align_cells(costs), _COSTS]
    return "\n\n".join(filter(None, parts))


def _title(table: Table, conclusions: Conclusions) -> str:
    return f"{'Learning speed: ' * conclusions.is_learning}{table.title}"


def render_markdown(
    request: TableRequest,
    conclusions: Conclusions,
    computed: Sequence[ComputedResult],
    machine: str,
    page: PageParts | None = None,
) -> str:
    """Formats the page: title, finding, tables, their meaning, how it was measured, versions, and, folded, the costs."""
    table = request.table
    finding, source = page.finding if page else _summarize(conclusions), table.source
    if not finding:  # a table that plans no comparisons says what it found in the first line of its source
        finding, source = source.split("\n", 1) if "\n" in source else (_NOT_COMPARED, source)
    parts, measured, costs = [f"# {_title(table, conclusions)}", finding], [source], list[str]()
    scale = f"scale {request.scale}"
    if computed:
        parts += [*map(write_markdown_cells, format_computed(computed)), describe_uncomputed(computed)]
    if conclusions.rows:
        substitutes = any(line.result.plan.row.network for line in conclusions.rows)
        networks = " The networks are substitutes for the papers' networks; the table of costs has both." if substitutes else ""
        measured.append(describe_data(conclusions.rows, request.seeds) + networks)
        cells, same = _cost_cells(table, conclusions.rows)
        parts += [write_markdown_cells(format_rows(table, conclusions.rows, "**{}**"))]
        parts += [write_markdown_cells(subtotals) for subtotals in [_subtotal_cells(table, conclusions, "**{}**")] if subtotals]
        parts += [_explain(table, conclusions, "Bold"), *map(write_markdown_cells, format_texts(conclusions.texts, "**{}**"))]
        parts += [explain_texts(conclusions.texts, table.findings, "Bold")]
        fold = "<details>\n<summary>Costs and other measures</summary>"
        costs = [fold, same, write_markdown_cells(cells), _COSTS, "</details>"]
        scale += f", seeds {request.first_seed} to {request.first_seed + request.seeds - 1}"
    measured += [table.notes, f"Made by `{request.command}` ({scale})."]
    parts += [*(page.sections if page else ()), "**How it was measured.** " + "\n".join(filter(None, measured))]
    return "\n\n".join(part for part in [*parts, f"**Versions.** {machine}", *costs] if part) + "\n"
