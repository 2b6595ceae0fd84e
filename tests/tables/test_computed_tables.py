"""Tables whose rows functions compute: what is written, what fails, and what a file may not say."""

import csv
from pathlib import Path

import pytest

from attention_jax.errors import UserError
from attention_jax.tables.table import load_table
from tests.helpers.small_table import call

TEXT = """
import numpy as np
from attention_jax.analysis import plots
title, source, notes = "Some arithmetic", "After nobody.", "Only for a test."

def _double(by):
    return {"double": 2.0 * by, "name": f"of {by}", "curve": np.arange(by)}

def _break(by):
    raise ValueError("no\\nluck")

def _odd(by):
    return {"double": None}

def _picture(measured):
    figure = plots.make_figure(3, 3)
    figure.add_subplot().plot(measured["fine"][0]["curve"])
    return figure

computed = [
    {"label": "fine", "function": _double, "published": {"double": "O(by)", "other": 3}},
    {"label": "broken", "function": _break, "published": {"double": 1}},
    {"label": "odd", "function": _odd},
]
pictures = {"curve": _picture}
next_commands = [("look", "ls")]
scales = {"quick": {"arguments": {"by": 1234567}}, "smoke": {"arguments": {"by": 2}}}
"""


def written(folder: Path, text: str = TEXT) -> Path:
    path = folder / "arithmetic.py"
    path.write_text(text)
    return path


def test_a_computed_table(tmp_path):
    """Cells beside published ones, failures that cost nothing else, and the same files as of trained tables."""
    code, text = call(written(tmp_path), workdir=tmp_path / "w", output=tmp_path / "o")
    assert code == 1 and "scale quick: 3 of 3 rows to compute" in text
    assert "not computed, for the reasons above: broken, odd." in text and "next:" not in text
    assert {path.name for path in (tmp_path / "o").iterdir()} == {
        f"arithmetic{end}" for end in (".md", ".csv", ".json", ".tex", "_curve.png")
    }
    assert (tmp_path / "o/arithmetic_curve.png").read_bytes().startswith(b"\x89PNG")
    page = (tmp_path / "o/arithmetic.md").read_text()
    assert "| row | other (published) | double (published) | double | name |\n" in page
    assert "\n| fine | 3 | O(by) | 2.469e+06 | of 1234567 |\n" in page
    assert "\n| broken | – | 1 | – | – |\n" in page and "\nbroken: failed: ValueError: no\n" in page
    assert "odd: failed: its function gave {'double': None}: give {column: number or text, name: array}." in page
    assert page.startswith("# Some arithmetic\n\nNo rows are compared by their score") and "After nobody." in page
    assert "Only for a test." in page
    assert "arithmetic.py` (scale quick).\n" in page and "Accuracy" not in page
    with (tmp_path / "o/arithmetic.csv").open() as file:
        records = {record["row"]: record for record in csv.DictReader(file)}
    assert records["fine"] == {
        **{"row": "fine", "status": "computed", "failures": "", "double": "2469134.0", "name": "of 1234567"},
        **{"published double": "O(by)", "published other": "3"},
    }
    assert (records["broken"]["status"], records["broken"]["failures"]) == ("failed", "ValueError: no")


def test_rows_without_a_column_in_common_have_a_table_of_their_own(tmp_path):
    other = (
        '{"label": "other", "function": lambda by: {"half": by / 2}}, {"label": "last", "function": lambda by: {"half": by}}'
    )
    file = written(tmp_path, TEXT.replace("pictures =", f"computed = [computed[0], {other}]\npictures ="))
    assert call(file, scale="smoke", workdir=tmp_path / "w")[0] == 0
    page = (tmp_path / "w/arithmetic-smoke.md").read_text()
    first, second = "| fine | 3 | O(by) | 4 | of 2 |", "| row | half |\n| --- | ---: |\n| other | 1 |\n| last | 2 |"
    assert f"{first}\n\n{second}\n\n" in page
    with (tmp_path / "w/arithmetic-smoke.csv").open() as records:
        assert [(record["double"], record["half"]) for record in csv.DictReader(records)] == [
            ("4.0", ""),
            ("", "1.0"),
            ("", "2"),
        ]


def test_rows_are_chosen_and_scales_have_arguments(tmp_path):
    file = written(tmp_path)
    code, text = call(file, scale="smoke", rows=["fine"], workdir=tmp_path / "w", dry_run=True)
    assert code == 0 and not (tmp_path / "w").exists()
    assert "scale smoke, 3 computed rows (dry run)" in text and "fine: would be computed: by=2" in text
    assert "broken: not selected" in text
    code, text = call(file, scale="smoke", rows=["fine"], workdir=tmp_path / "w")
    assert code == 0 and "next:" in text
    page = (tmp_path / "w/arithmetic-smoke.md").read_text()
    assert "| fine | 3 | O(by) | 4 | of 2 |" in page and "broken: not run." in page


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"label": "odd"', '"label": "fine"', "the label 'fine' of a computed row is not right: give one that is new"),
        ('"label": "odd"', '"label": "a, b"', "'a, b' of a computed row is not right: .* without a comma"),
        ('"label": "odd"', '"label": 3', "label=3 is not right: give a text"),
        ('"odd", "function": _odd', '"odd", "functoin": _odd', r"row 'odd' has no 'functoin' \(did you mean 'function'\?\)"),
        ('"odd", "function": _odd', '"odd"', "row 'odd' has no 'function', which must be given"),
        ('"odd", "function": _odd', '"odd", "function": "numpy:hypott"', r"numpy has no 'hypott' \(did you mean 'hypot'\?\)"),
        ('"odd", "function": _odd', '"odd", "function": "numpy:pi"', "row 'odd': function='numpy:pi' is not right"),
        ('{"by": 2}', "2", r"scales\['smoke'\]: arguments=2 is not right: give a dict"),
        ("pictures =", "rows = [{'label': 'a'}]\npictures =", "'base' is missing: give the config file"),
        ("pictures =", "rows = [{'label': 'fine'}]\nbase = 'x.py'\npictures =", "'fine' of a computed row is not right"),
    ],
)
def test_mistakes_in_a_computed_table(tmp_path, old, new, message):
    assert TEXT.count(old) == 1
    with pytest.raises(UserError, match=message) as caught:
        load_table(written(tmp_path, TEXT.replace(old, new)))
    assert "\n" not in str(caught.value)
