"""A table's JSON: the numbers of its page, verdicts in the direction that is written, and nothing that a rerun changes."""

import dataclasses
import json
import types

import numpy as np
import pytest

from attention_jax.models.summary import Summary
from attention_jax.tables import render
from attention_jax.tables.record import render_json
from attention_jax.tables.results import ComputedResult
from attention_jax.tables.table import ComputedRow
from tests.tables.test_render import FINDING, TABLE, complete
from tests.tables.test_verdicts import rows


def record(results: list, computed: tuple = (), **changes: object) -> tuple[str, dict]:
    table = dataclasses.replace(TABLE, **changes)
    request = types.SimpleNamespace(table=table, scale="quick", seeds=5, command="./launch.sh table t.py")
    text = render_json(request, render.draw_conclusions(table, results), computed)
    return text, json.loads(text)


@pytest.fixture(scope="module")
def results():
    return complete(rows(0.5, 2.0, 0.5), published=[{"top-1": 90.0}, {"top-1": 95.0}, {"top-1": 91.0}])


def test_rows_comparisons_and_verdicts(results):
    results[1].plan.network = Summary(7, 8, {})
    worse = dataclasses.replace(FINDING, sign=-1)
    _, found = record(results, findings=(FINDING, worse), published_order={"top-1": 1})
    first, second, _ = found["rows"]
    assert [row["row"] for row in found["rows"]] == ["row 0", "row 1", "row 2"]
    assert first["score"][0] == pytest.approx(results[0].correct.mean(), rel=1e-6) and first["seeds"] == 5
    assert (first["params"], first["paper_params"], second["paper_params"], second["paper_macs"]) == (1000, None, 7, 8)
    assert first["published"] == {"top-1": 90.0} and first["measured"] == {"same": [0.1, 0.0]}
    one, other = found["comparisons"]
    assert (one["row"], one["over"], one["verdict"]) == ("row 1", "row 0", "agrees")
    assert other["verdict"].startswith("cannot tell here (would need ")
    value, low, high = one["difference"]
    assert value == pytest.approx(results[1].correct.mean() - results[0].correct.mean(), rel=1e-6)
    assert one["corrected"][0] < low < value < high < one["corrected"][1] and one["detectable"] > 0
    assert [each["verdict"] for each in found["findings"]] == ["agrees", "disagrees"]
    assert found["orders"][0]["rows"] == 3 and -1 <= found["orders"][0]["tau"] <= 1


def test_times_and_arrays_are_left_out(results):
    """A row a second slower is the same file; so is one computed on a slower machine."""
    texts = []
    for seconds in (1.0, 2.0):
        for each in results:
            each.seconds = seconds
        values = {"n": np.int64(3), "share": np.float32(0.1), "text": "O(n)", "ms, n=64": seconds, "curve": np.zeros(4)}
        computed = (ComputedResult(ComputedRow("c", dict, {"text": "O(n²)"}), values, seconds=seconds),)
        text, found = record(results, computed)
        texts.append(text)
    assert texts[0] == texts[1]
    assert found["computed"][0] == {
        **{"row": "c", "status": "computed", "failures": None},
        **{"n": 3, "share": 0.1, "published text": "O(n²)", "text": "O(n)"},
    }


def test_a_row_that_was_not_run_has_no_score(results):
    empty = complete(rows(0.5))[0]
    empty.correct, empty.status, empty.done = None, "not run", 0
    empty.measured, empty.label, empty.plan.row = (), "row 9", dataclasses.replace(empty.plan.row, label="row 9")
    _, found = record([*results, empty])
    last = found["rows"][-1]
    assert (last["status"], last["seeds"], last["score"], last["std"]) == ("not run", 0, None, None)
