"""Writes the page of results: statements of a document with their verdicts, from the JSON files that tables wrote."""

import dataclasses
import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from attention_jax.config.plugins import load_file
from attention_jax.errors import UserError, suggest_name
from attention_jax.tables.cells import write_markdown_cells
from attention_jax.tables.publish import write_file
from attention_jax.tables.verdicts import describe_seeds

STATEMENTS = "claims.py"  # name of the file in a folder of table files
REAL_SIZE = "paper"  # scales with this prefix train the papers' networks on their data
_ABSENT, _NOT_RUN, _MEASURED = "–", "not run", "measured, not judged"
_OPPOSITE = {"agrees": "disagrees", "disagrees": "agrees"}


@dataclasses.dataclass(frozen=True)
class Statement:
    """A statement of a document, and the rows that decide it.

    Attributes:
        section: section of the document, with its number.
        text: the statement.
        size: a sentence on the parts at real size and the substitutes.
        published: the papers' numbers with their source; the table's published columns are added.
        table: stem of the table file; empty if no table decides the statement.
        judged: (row, over) labels of compared rows, the better row first; empty if rows are measured and not judged.
        rows: labels of further rows, trained or computed, whose numbers are listed.
        columns: names of measures, or of computed columns, that are listed.
        verdicts: the column of computed rows that holds verdicts, if the table has one.
        plot: end of the plot's file name after the edition, such as "_curves"; "" is the chart, None no plot.
        elsewhere: Markdown that points to another place, for a statement without a table.
    """

    section: str
    text: str
    size: str = ""
    published: str = ""
    table: str = ""
    judged: tuple[tuple[str, str], ...] = ()
    rows: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    verdicts: str = ""
    plot: str | None = ""
    elsewhere: str = ""


@dataclasses.dataclass(frozen=True)
class Standing:
    """The verdicts on a statement, and which of its rows were run, in one edition of its table."""

    verdicts: tuple[str, ...]  # one for each judged pair or row
    runs: str  # "yes", "partly" or "no", with the seeds
    is_real_size: bool

    @property
    def verdict(self) -> str:
        """Returns the verdict, or the number of each kind of verdict."""
        found = Counter(verdict.partition(" (")[0] for verdict in self.verdicts)
        if not found:
            return _MEASURED if self.runs.startswith("yes") else _NOT_RUN
        return next(iter(found)) if len(found) == 1 else ", ".join(f"{name} {number}" for name, number in found.items())

    @property
    def decided(self) -> str:
        """Returns the number of pairs with a verdict, out of all."""
        number = sum(verdict in _OPPOSITE for verdict in self.verdicts)
        return f"{number} of {len(self.verdicts)}" if self.verdicts else _ABSENT


def load_statements(file: Path) -> tuple[str, str, list[Statement]]:
    """Returns title, notes and statements. Raises UserError for a broken file or an unknown field of a statement."""
    module, known = load_file(file), [field.name for field in dataclasses.fields(Statement)]
    for statement in module.statements:
        for name in statement:
            if name not in known:
                raise UserError(f"{file}: a statement has no {name!r}{suggest_name(name, known)}: it has {', '.join(known)}.")
    return module.title, module.notes, [Statement(**statement) for statement in module.statements]


def render_page(file: Path, results: Path, page: Path) -> str:
    """Formats the page from a file of statements and a folder of tables; links are relative to `page`."""
    title, notes, statements = load_statements(file)
    link = os.path.relpath(results.resolve(), page.resolve().parent)
    parts, summary, sections = [], [["", "claim", "verdict", "runs", "decided", "at real size"]], Counter[str]()
    for statement in statements:
        if statement.section not in sections:
            parts.append(f"## {statement.section}")
        sections[statement.section] += 1
        name = f"{statement.section.partition('.')[0]}.{sections[statement.section]}"
        editions = [(path.stem, json.loads(path.read_text("utf-8"))) for path in _list_editions(results, statement.table)]
        standings = [_judge(statement, record) for _, record in editions]
        last = next((each for each in reversed(standings) if each.runs != "no"), None)
        cells = [last.verdict, last.runs, last.decided] if last else [_NOT_RUN, "no", _ABSENT]
        cells = cells if statement.table else ["no table", _ABSENT, _ABSENT]
        size = "yes" if last and last.is_real_size else "no" if statement.table else _ABSENT
        summary.append([f"[{name}](#s{name})", statement.text, *cells, size])
        parts += [
            f'<a id="s{name}"></a>\n\n### {name} {statement.text}',
            *_describe(statement, editions, standings, results, link),
        ]
    verdicts = Counter(row[2] for row in summary[1:])
    counts = f"{len(statements)} claims: {'; '.join(f'{number} {verdict}' for verdict, number in verdicts.most_common())}."
    real = sum(row[-1] == "yes" for row in summary)
    head = [f"# {title}", notes, f"{counts} At real size: {real or 'none'}.", write_markdown_cells(summary, "---")]
    return "\n\n".join([*head, *parts]) + "\n"


def _list_editions(results: Path, table: str) -> list[Path]:
    """Lists the table's default edition, then the editions at real size."""
    paths = [results / f"{table}.json", *sorted(results.glob(f"{table}-{REAL_SIZE}*.json"))]
    return [path for path in paths if table and path.is_file()]


def _list_labels(statement: Statement) -> list[str]:
    return list(dict.fromkeys([label for row, over, *_ in statement.judged for label in (over, row)] + list(statement.rows)))


def _find_rows(statement: Statement, record: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Returns the statement's rows that were run, trained or computed."""
    labels = _list_labels(statement)
    found = {
        row["row"]: row for row in [*record["rows"], *record["computed"]] if row["status"] in ("done", "partial", "computed")
    }
    return {label: found[label] for label in labels if label in found}


def _find_comparison(record: Mapping[str, Any], row: str, over: str) -> tuple[list[float], Mapping[str, Any] | None, str]:
    """Returns (difference and ends of both intervals, in points; the comparison, None if it was not made; the verdict)."""
    for found in record["comparisons"]:
        ends = [*found["difference"], *found["corrected"]]
        if (found["row"], found["over"]) == (row, over):
            return [100 * end for end in ends], found, found["verdict"]
        if (found["row"], found["over"]) == (over, row):
            value, low, high, corrected_low, corrected_high = (-100 * end for end in ends)
            return [value, high, low, corrected_high, corrected_low], found, _OPPOSITE.get(found["verdict"], found["verdict"])
    return [], None, _NOT_RUN if {row, over} - {each["row"] for each in record["rows"] if each["seeds"]} else "not compared"


def _judge(statement: Statement, record: Mapping[str, Any]) -> Standing:
    rows, labels = _find_rows(statement, record), _list_labels(statement)
    seeds = sorted({row["seeds"] for row in rows.values() if "seeds" in row})
    trained = f", {' or '.join(map(describe_seeds, seeds))}" if seeds else ", computed"
    stale = ", stale" if any(row.get("stale") for row in rows.values()) else ""
    runs = f"{'yes' if len(rows) == len(labels) else 'partly'}{trained}{stale}" if rows else "no"
    verdicts = [_find_comparison(record, *pair)[2] for pair in statement.judged]
    verdicts += [str(row[statement.verdicts]) for row in rows.values() if row.get(statement.verdicts)]
    return Standing(tuple(verdicts), runs, bool(seeds) and record["scale"].startswith(REAL_SIZE))


def _describe(
    statement: Statement,
    editions: Sequence[tuple[str, Mapping[str, Any]]],
    standings: Sequence[Standing],
    results: Path,
    link: str,
) -> Iterator[str]:
    """Yields verdict, numbers, picture and command of each edition."""
    if statement.elsewhere:
        yield statement.elsewhere
    if statement.table and not editions:
        yield f"**Not run.** `./launch.sh table experiments/{statement.table}.py`"
    for (edition, record), standing in zip(editions, standings):
        yield (
            f"**{standing.verdict[0].upper()}{standing.verdict[1:]}.** Runs: {standing.runs}. Decided: {standing.decided}. "
            f"At real size: {'yes' if standing.is_real_size else 'no'}."
        )
        if statement.judged:
            yield write_markdown_cells([_HEAD, *(_format_pair(record, *pair) for pair in statement.judged)])
        if rows := _find_rows(statement, record):
            yield from map(write_markdown_cells, _list_numbers(statement, rows, record["score"]))
        if statement.plot is not None and (results / f"{edition}{statement.plot}.png").is_file():
            yield f"![{record['title']}]({link}/{edition}{statement.plot}.png)"
        orders = [
            f"Kendall's τ between the measured and the published order of {each['rows']} rows "
            f"({each['published']}): {each['tau']:+.2f}."
            for each in record["orders"]
        ]
        lines = [*orders, record["data"], f"`{record['command']}`: [{edition}.md]({link}/{edition}.md)"]
        yield "\n".join(filter(None, lines))
    if lines := [*([f"Published: {statement.published}"] if statement.published else []), *filter(None, [statement.size])]:
        yield "\n".join(lines)


_HEAD = ["better, as it is claimed", "Δ in points", "95 % interval", "corrected", "seeds", "verdict"]


def _format_pair(record: Mapping[str, Any], row: str, over: str) -> list[str]:
    points, comparison, verdict = _find_comparison(record, row, over)
    if comparison is None:
        return [f"{row} over {over}", *[_ABSENT] * 4, verdict]
    value, low, high, *corrected = (f"{round(point, 2) + 0.0:+.2f}" for point in points)  # + 0.0 turns -0.0 into 0.0
    ends = [f"[{low}, {high}]", f"[{', '.join(corrected)}]"]
    return [f"{row} over {over}", value, *ends, str(comparison["seeds"]), verdict]


def _list_numbers(statement: Statement, rows: Mapping[str, Mapping[str, Any]], score: str) -> Iterator[list[list[str]]]:
    """Yields the cells of the trained rows, and those of the computed rows."""
    trained = {label: row for label, row in rows.items() if "score" in row}
    if trained:
        published = list(dict.fromkeys(name for row in trained.values() for name in row["published"]))
        measured = [name for name in statement.columns if any(name in row["measured"] for row in trained.values())]
        yield [
            ["row", f"{score} %", *measured, *(f"{name} (published)" for name in published), "params", "params, paper's"],
            *(
                [
                    label,
                    _spread(100 * row["score"][0], row["std"] and 100 * row["std"], ".2f"),
                    *(_spread(*row["measured"].get(name, (None, None))) for name in measured),
                    *(str(row["published"].get(name, _ABSENT)) for name in published),
                    *(_ABSENT if row[name] is None else f"{row[name]:,}" for name in ("params", "paper_params")),
                ]
                for label, row in trained.items()
            ),
        ]
    computed = {label: row for label, row in rows.items() if "score" not in row}
    if computed:
        names = [name for each in statement.columns for name in (f"published {each}", each)]
        columns = [name for name in names if any(name in row for row in computed.values())]
        yield [
            ["row", *(f"{c.removeprefix('published ')} (published)" if c.startswith("published ") else c for c in columns)],
            *([label, *(_format(row.get(name)) for name in columns)] for label, row in computed.items()),
        ]


def _spread(mean: float | None, std: float | None, form: str = ".4g") -> str:
    if mean is None:
        return _ABSENT
    return f"{mean:{form}}" + ("" if not std else f" ± {std:{'.2f' if form == '.2f' else '.2g'}}")


def _format(value: Any) -> str:
    return _ABSENT if value is None else (value if isinstance(value, str) else f"{value:.4g}")


def write_page(folder: str | Path, results: str | Path | None = None) -> Path:
    """Writes the page of a folder of table files with a `claims.py`; returns its path.

    Args:
        results: folder of the tables' files, by default `results` in the folder. The page is `docs/results.md` beside the
            folder, or `results.md` among other results.
    """
    beside = Path(folder).resolve().parent
    page = Path(results) / "results.md" if results else beside / "docs" / "results.md"
    write_file(page, render_page(Path(folder) / STATEMENTS, Path(results or Path(folder) / "results"), page).encode())
    return page
