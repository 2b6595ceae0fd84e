"""The page of results: what it says of tables that are made up here."""

import json
import re

import pytest

from attention_jax.errors import UserError
from attention_jax.tables.page import write_page

ROW = {
    **{"status": "done", "stale": False, "seeds": 3, "examples": 100, "std": 0.01, "params": 10, "macs": 20},
    **{"paper_params": 1000, "paper_macs": 2000, "published": {"top-1 %": 79.5}, "measured": {"depth": [2.5, 0.25]}},
}


def comparison(row: str, over: str, verdict: str) -> dict:
    value = {"agrees": 0.2, "disagrees": -0.2}.get(verdict, 0.01)
    ends = {"difference": [value, value - 0.1, value + 0.05], "corrected": [value - 0.15, value + 0.1]}
    return {"row": row, "over": over, **ends, "detectable": 0.1, "seeds": 3, "reason": "", "verdict": verdict}


@pytest.fixture
def write(tmp_path):
    """Writes the page of some statements about a table `t`, whose row "a" is better than "b", and returns its text."""
    folder = tmp_path / "experiments"
    (folder / "results").mkdir(parents=True)
    (tmp_path / "docs").mkdir()

    def put(edition: str, *labels: str, **names: object) -> None:
        rows = [{"row": label, "score": [0.5, 0.4, 0.6], **ROW} for label in labels]
        made = [comparison("a", "b", "agrees"), comparison("c", "a", "cannot tell here (would need 9 seeds)")]
        made = [each for each in made if {each["row"], each["over"]} <= {*labels}]
        record = {"title": "T", "scale": "quick", "command": "./launch.sh table t.py", "data": "Data: d.", "score": "accuracy"}
        record |= {"rows": rows, "comparisons": made, "findings": [], "orders": [], "computed": []}
        (folder / f"results/{edition}.json").write_text(json.dumps({**record, **names}))

    def make(*statements: dict) -> str:
        (folder / "claims.py").write_text(f"title, notes = 'P', 'N'\nstatements = {list(statements)!r}\n")
        return write_page(folder).read_text()

    make.put, make.folder = put, folder
    return make


def cells(page: str) -> list[list[str]]:
    """Verdict, runs, decided and real size in the first table."""
    table = page[page.index("|  | claim |") :].partition("\n\n")[0].splitlines()[2:]
    return [re.split(r" *\| *", line)[3:-1] for line in table]


def statement(*judged: tuple, **more: object) -> dict:
    return {"section": "1. S", "text": "x", "table": "t", "judged": judged, **more}


def test_verdicts_in_both_directions_and_what_was_not_run(write):
    write.put("t", "a", "b", "c")
    page = write(
        statement(("a", "b")),
        statement(("b", "a")),
        statement(("c", "a")),
        statement(("a", "b"), ("b", "a")),
        statement(("c", "b")),
        statement(("a", "d")),
        statement(table="never"),
        statement(rows=("a",)),
        {"section": "2. T", "text": "y", "elsewhere": "In a notebook."},
    )
    assert cells(page) == [
        ["agrees", "yes, 3 seeds", "1 of 1", "no"],
        ["disagrees", "yes, 3 seeds", "1 of 1", "no"],
        ["cannot tell here", "yes, 3 seeds", "0 of 1", "no"],
        ["agrees 1, disagrees 1", "yes, 3 seeds", "2 of 2", "no"],
        ["not compared", "yes, 3 seeds", "0 of 1", "no"],
        ["not run", "partly, 3 seeds", "0 of 1", "no"],
        ["not run", "no", "–", "no"],
        ["measured, not judged", "yes, 3 seeds", "–", "no"],
        ["no table", "–", "–", "–"],
    ]
    assert "| b over a | -20.00 | [-25.00, -10.00] | [-30.00, -5.00] | 3 | disagrees |" in page
    assert "| c over a | +1.00 | [-9.00, +6.00] | [-14.00, +11.00] | 3 | cannot tell here (would need 9 seeds) |" in page
    assert "9 claims: " in page and "At real size: none." in page and "## 2. T" in page and "In a notebook." in page


def test_numbers_picture_and_command(write):
    write.put("t", "a", "b")
    (write.folder / "results/t_curves.png").touch()
    write.put("t", "a", "b", orders=[{"published": "top-1 %", "tau": -0.25, "rows": 4}])
    page = write(statement(("a", "b"), columns=("depth",), plot="_curves", published="one.", size="Nothing."))
    assert "| a | 50.00 ± 1.00 | 2.5 ± 0.25 | 79.5 | 10 | 1,000 |" in page
    assert "](../experiments/results/t_curves.png)" in page and "[t.md](../experiments/results/t.md)" in page
    assert "Kendall's τ between the measured and the published order of 4 rows (top-1 %): -0.25.\nData: d.\n" in page
    assert "`./launch.sh table t.py`" in page and "Published: one.\nNothing." in page


def test_real_size_is_an_edition_of_the_paper(write):
    """The larger edition decides as far as it was run; another scale than the paper's is none."""
    write.put("t", "a", "b")
    write.put("t-paper", "a", "b", scale="paper", comparisons=[comparison("a", "b", "disagrees")])
    write.put("t-small", "a", "b", scale="small")
    assert cells(write(statement(("a", "b")))) == [["disagrees", "yes, 3 seeds", "1 of 1", "yes"]]
    write.put("t-paper", scale="paper")
    assert cells(write(statement(("a", "b")))) == [["agrees", "yes, 3 seeds", "1 of 1", "no"]]


def test_stale_runs_are_named(write):
    write.put("t", "a", "b", rows=[{"row": row, "score": [0.5, 0.4, 0.6], **ROW, "stale": True} for row in "ab"])
    assert cells(write(statement(("a", "b"))))[0][1] == "yes, 3 seeds, stale"


def test_an_unknown_name_of_a_statement(write):
    with pytest.raises(UserError, match=r"a statement has no 'colums' \(did you mean 'columns'\?\)"):
        write(statement(colums=()))


def test_verdicts_of_computed_rows(write):
    """A table that models, and does not train, gives its verdicts in a column."""
    rows = {"a against b": "agrees", "c against d": "cannot tell here", "e against f": "agrees"}
    computed = [{"row": row, "status": "computed", "failures": None, "faster": verdict} for row, verdict in rows.items()]
    write.put("t", computed=computed)
    page = write(statement(rows=tuple(rows), columns=("faster",), verdicts="faster"))
    assert cells(page) == [["agrees 2, cannot tell here 1", "yes, computed", "2 of 3", "no"]]
    assert "| c against d | cannot tell here |" in page
