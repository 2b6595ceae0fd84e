"""docs/results.md is what its command writes from the committed results, and its claims name rows that exist."""

import csv
import json
import re

import pytest

from attention_jax.tables.page import load_statements, render_page
from attention_jax.tables.table import load_table
from tests.helpers.small import ROOT

RESULTS, CLAIMS, PAGE = ROOT / "experiments/results", ROOT / "experiments/claims.py", ROOT / "docs/results.md"
_, _, STATEMENTS = load_statements(CLAIMS)
RECORDS = {
    path.stem: json.loads(path.read_text("utf-8"))
    for path in sorted(RESULTS.glob("*.json"))
    if path.stem not in ("preflight", "scaling_pods", "programs_tpu", "on_device_quick")
}


def test_the_page_is_what_its_command_writes():
    assert PAGE.read_text("utf-8") == render_page(CLAIMS, RESULTS, PAGE), "make it anew: ./launch.sh table page"


def test_sections_are_those_of_the_document():
    numbers = [int(statement.section.partition(".")[0]) for statement in STATEMENTS]
    assert numbers == sorted(numbers) and set(numbers) == set(range(1, 12))


def test_every_claim_names_rows_that_exist_and_are_compared():
    tables = {name: load_table(ROOT / f"experiments/{name}.py") for name in {each.table for each in STATEMENTS} - {""}}
    for statement in STATEMENTS:
        if not statement.table:
            assert statement.elsewhere
            continue
        table, record = tables[statement.table], RECORDS.get(statement.table)
        assert not record or record["command"] == f"./launch.sh table experiments/{statement.table}.py"  # from the checkout
        labels = {row.label for row in (*table.rows, *table.computed)}
        assert {label for pair in statement.judged for label in pair} | set(statement.rows) <= labels, statement.text
        made = {frozenset((each["row"], each["over"])) for each in record["comparisons"]} if record else set()
        assert not record or {frozenset(pair) for pair in statement.judged} <= made, statement.text
        names = {name for row in record["rows"] for name in row["measured"]} if record else set()
        names |= {name.removeprefix("published ") for row in record["computed"] for name in row} if record else set()
        assert not record or set(statement.columns) <= names, statement.text


def test_every_picture_is_on_the_page():
    pictures = {each.table for each in STATEMENTS if each.table in RECORDS and each.plot is not None}
    assert {
        name for name in pictures if not re.search(rf"\]\(\.\./experiments/results/{name}\w*\.png\)", PAGE.read_text())
    } == set()


@pytest.mark.parametrize("edition", RECORDS)
def test_json_and_csv_say_the_same(edition):
    """A page that was made anew without its JSON would leave the page of results behind."""
    with (RESULTS / f"{edition}.csv").open() as file:
        rows = {row["row"]: row for row in csv.DictReader(file)}
    record = RECORDS[edition]
    assert [row["row"] for row in [*record["computed"], *record["rows"]]] == list(rows)
    for row in record["rows"]:
        assert row["score"][0] == pytest.approx(float(rows[row["row"]]["accuracy"]), rel=1e-6)
    for each in record["comparisons"]:
        for name in ("before", "against"):
            if (row := rows[each["row"]])[name] == each["over"]:
                assert each["difference"][0] == pytest.approx(float(row[f"{name}_difference"]), rel=1e-6, abs=1e-12)
                assert each["reason"] or row[f"{name}_judged"] == (
                    "no difference" if "cannot" in each["verdict"] else "differs"
                )
