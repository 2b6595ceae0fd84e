"""The short form of experiments/reliability/paper_scale.py: of each table one row at the papers' size, with few layers.

The script checks every row at its full depth; experiments/results/paper_scale.md is its page.
"""

import jax
import pytest

from attention_jax.models.summary import Summary
from experiments.reliability import paper_scale
from experiments.reliability.paper_scale import check_row, is_right, list_rows
from tests.helpers.small import ROOT

ROWS = {(table.path.stem, scale): (table, scale, row) for table, scale, row in list_rows()}  # the last row of each
SHALLOW = {
    "transformer_variations": {"layers": 1},
    "residual": {"stage_sizes": (1, 1, 1)},
    "cifar10": {"stage_sizes": (1, 1, 1)},
}


@pytest.mark.parametrize("name", ROWS, ids=".".join)
def test_a_row_of_each_table_resolves_and_lowers(name):
    table, scale, row = ROWS[name]
    found = check_row(table, scale, row, **SHALLOW.get(name[0], {"stage_sizes": (1, 1, 1, 1)}))
    assert "failure" not in found and found["operations"] > 100, found
    assert found["steps"] > 1000 and found["params"] > 10_000
    jax.clear_caches()


def test_other_counts_and_failures_are_seen(monkeypatch):
    table, scale, row = ROWS["residual", "paper"]
    monkeypatch.setattr(paper_scale, "count_named_network", lambda *_: Summary(1, 2, {}))
    monkeypatch.setattr(paper_scale, "build_program", lambda resolved: (_ for _ in ()).throw(ValueError("it does not lower")))
    found = check_row(table, scale, row)
    assert found["named"] == [1, 2] and found["params"] > 2 and found["failure"] == "ValueError: it does not lower"
    assert not is_right(found) and not is_right({**found, "operations": 5})
    assert is_right({**found, "operations": 5, "params": 1, "macs": 2})


def test_the_page_has_every_row():
    text, rows = (ROOT / "experiments/results/paper_scale.md").read_text("utf-8"), list(list_rows())
    assert f"{len(rows)} of {len(rows)} rows resolve without data" in text and f"0 of {len(rows)} were not checked." in text
    assert all(f"| {table.path.stem}, {scale}, {row.label} |" in text for table, scale, row in rows)
