"""What a page says first, what it marks, and what it leaves out."""

import dataclasses
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from attention_jax.models.summary import Summary
from attention_jax.tables import render
from attention_jax.tables.table import PublishedFinding, Row, Scale, Table
from tests.tables.test_tables import read_tables
from tests.tables.test_verdicts import result, rows

COUNTS = Summary(params=1000, macs=2000, modules={})
TABLE = Table(path=Path("t.py"), title="A title", source="Nobody.", scales={"quick": Scale()}, compare_to="baseline")


def complete(results: list[Any], published: Any = None, **more: Any) -> list[Any]:
    """Results with all that a page reads."""
    for number, each in enumerate(results):
        each.plan.row = Row(each.label, published=(published or [{}] * len(results))[number])
        each.plan.counts, each.plan.network = dataclasses.replace(COUNTS, macs=2000 + number), None
        each.status, each.done, each.failures, each.seconds, each.is_stale = "done", len(each.correct), (), 1.5, False
        each.measured = tuple({"same": np.float64(0.1 + 1e-18 * seed)} for seed in range(len(each.correct)))
    return results


def page(results: list[Any], **changes: Any) -> str:
    table = dataclasses.replace(TABLE, **changes)
    request = types.SimpleNamespace(
        table=table, scale="quick", seeds=len(results[0].correct), first_seed=0, command="./launch.sh table t.py"
    )
    return render.render_markdown(request, render.draw_conclusions(table, results), (), "A machine.")


FINDING = PublishedFinding("the second is better", "row 1", "row 0")


@pytest.mark.parametrize("seeds", [1, 2])
def test_with_few_seeds_nothing_is_bold_nor_judged(seeds):
    text = page(complete(rows(0.5, 2.0, seeds=seeds)), findings=(FINDING,))
    said = "one seed" if seeds == 1 else "two seeds"
    assert "| **" not in text and f"Published: the second is better (row 1 over row 0): cannot tell here ({said})." in text
    table = read_tables(text)[0]
    assert table["row 1"][2].endswith(f"({said})") and table["row 1"][3] == said
    assert text.splitlines()[2] == f"Not judged: 1 of 1 planned comparison ({said})."


def test_a_difference_that_is_found_comes_first():
    results = complete(rows(0.5, 2.0, 0.5), published=[{"top-1": 90.0}, {"top-1": 95.0}, {"top-1": 91.0}])
    text = page(results, findings=(FINDING, dataclasses.replace(FINDING, sign=-1)), published_order={"top-1": 1})
    first = text.splitlines()[2]
    assert first.startswith("1 of 2 judged comparisons shows a difference: row 1 +") and first.endswith(
        " points against row 0."
    )
    assert "(row 1 over row 0): agrees." in text and "(row 1 over row 0): disagrees." in text
    scores, costs = read_tables(text)
    assert list(scores["row"]) == ["row", "accuracy %", "Δ to row 0", "detectable", "top-1 (published)"]
    assert scores["row 1"][2].startswith("**+") and scores["row 1"][2].count("[") == 2
    assert "**" not in scores["row 2"][2] and scores["row 0"][2] == "–"
    assert list(costs["row"]) == ["row", "MACs"] and "The same in all rows: params 1,000; same 0.1; s per run 1.5." in text
    assert "Kendall's τ between the measured and the published order of 3 rows (top-1): +" in text


def test_many_columns_go_to_the_second_table():
    cells = {f"column {i}": i for i in range(6)}
    results = complete(rows(0.5, 2.0), published=[cells, {name: value + 1 for name, value in cells.items()}])
    scores, costs = read_tables(page(results))
    assert len(scores["row"]) == 7 and scores["row"][4:] == [f"column {i} (published)" for i in range(3)]
    assert costs["row"][2:] == [f"column {i} (published)" for i in range(3, 6)]


def test_rows_that_still_learn_rank_learning_speed():
    learning = [result(f"row {i}", each.correct, {80: 0.2, 100: 0.5}) for i, each in enumerate(rows(0.5, 2.0))]
    text = page(complete(learning))
    assert text.startswith("# Learning speed: A title\n\nNot judged: 1 of 1 planned comparison (still learning).\n")
    assert "| **" not in text and "the last tenth of training still changed the score" in text


def test_what_was_chosen_on_the_test_split_is_said():
    text = page(complete(rows(0.5, 2.0)), selected_on="test")
    assert "| **" not in text and "chosen on the split 'test'; comparisons on that split are not judged" in text


def test_adjacent_rows_of_a_kind_have_a_subtotal():
    """What they add together to the row before them and, with all before, to the first; not where rows have one baseline."""
    kinds, published = ("", "training", "training", "architecture"), (70.0, 71.0, 73.5, 74.0)
    results = complete(rows(0.5, 1.0, 2.0, 2.0), published=[{"top-1": value} for value in published])
    for each, kind in zip(results, kinds, strict=True):
        each.plan.row = dataclasses.replace(each.plan.row, kind=kind)
    table_rows = tuple(each.plan.row for each in results)
    text = page(results, rows=table_rows, compare_to="previous", published_order={"top-1": 1})
    _, subtotals, _ = read_tables(text)
    assert list(subtotals) == ["rows", "---", "training, up to row 2", "architecture, up to row 3"]
    assert subtotals["rows"][1:] == ["Δ to the row before them", "top-1 (published)", "Δ to row 0", "top-1 (published)"]
    training, architecture = subtotals["training, up to row 2"], subtotals["architecture, up to row 3"]
    gain = 100 * (results[2].correct.mean() - results[0].correct.mean())
    assert training[1].startswith(f"**{gain:+.2f} [") and training[1] == training[3] and training[2] == training[4] == "+3.5"
    assert architecture[2] == "+0.5" and architecture[4] == "+4" and architecture[1] != architecture[3]
    assert len(read_tables(page(results, rows=table_rows, compare_to="baseline"))) == 2


def test_the_data_are_described_once_where_rows_are_missing():
    results = complete(rows(0.5, 0.6))
    missing = results[1]
    missing.correct, missing.done, missing.status, missing.measured, missing.plan.runs = None, 0, "not run", (), []
    (line,) = [line for line in page(results).splitlines() if line.startswith("Data: ")]
    assert line.count("judged on 600 examples of test") == 1 and line.count("judged on") == 1
