"""Pages in experiments/results: the finding first, then one table; what is long is folded. Commands write them so too."""

import re

import pytest

from experiments.benchmarks.page import render_page, say_range
from experiments.reliability import campaign, fuzz, paper_scale
from tests.helpers.small import ROOT

FOLDED = re.compile(r"^<details>\n<summary>[^<]+</summary>\n\n.*?^</details>$", re.MULTILINE | re.DOTALL)
PAGES = sorted((ROOT / "experiments" / "results").glob("*.md"))
LONGEST = 90  # lines that are not folded


def check_form(text: str) -> None:
    """Asserts that a page begins with a title and its finding, has a table, and is short."""
    title, finding, *_ = text.split("\n\n")
    assert re.fullmatch(r"# .+", title)
    assert re.match(r"[A-Z0-9Δ]", finding) and finding.endswith((".", ")")), finding
    assert not re.search(r"launch\.sh|\.py|^Data:|^Made by", finding), finding
    assert text.count("<details>") == len(FOLDED.findall(text)), "a fold needs a summary and blank lines around its text"
    assert len(FOLDED.sub("", text).splitlines()) <= LONGEST


@pytest.mark.parametrize("page", PAGES, ids=[page.stem for page in PAGES])
def test_a_page_begins_with_its_finding_and_is_short(page):
    check_form(page.read_text("utf-8"))


def test_commands_write_pages_of_that_form(tmp_path):
    ended = {"calls": 2, "redone": 3, "lost": 0, "problem": ""}
    reliability = campaign.render_table({"killed": ended, "drawn": ended}, ["killed", "not yet"], ["drawn"])
    outcomes = {("train", "config.json: cut short"): ["right", "refused: one"], ("train", "config.json: emptied"): ["right"]}
    damaged = fuzz.render_table(outcomes, {("train", "a field: 0"): ["FAULT: a traceback"]})
    found = {"table": "bam", "scale": "paper", "row": "BAM", "steps": 5, "examples": 2, "params": 1, "macs": 2}
    lines = [found | {"named": [1, 2], "operations": 9}, found | {"named": None, "failure": "no such data"}]
    paper_scale.write_page(lines, 3, tmp_path / "paper_scale.md")
    page = (tmp_path / "paper_scale.md").read_text("utf-8")
    for text in (reliability, damaged, page):
        check_form(text)
    assert "2 faults tried, 2 survived, 6 steps repeated of 60, 0 examples lost." in reliability
    assert "| not yet | not run | | | |" in reliability
    assert "3 pairs of a command and a kind of damage were tried 4 times: 1 faults." in damaged
    assert "| train | 3 | 2 | 1 | 1 |" in damaged and "| config.json | cut short | right or refused | 2 |" in damaged
    assert "| a field | 0 | FAULT | 1 |" in damaged and "| bam | 2 | 1 |" in page and "no such data" in page


def test_a_page_has_no_part_that_is_empty():
    assert render_page("A", "B.", "| c |", "D.") == "# A\n\nB.\n\n| c |\n\n**How it was measured.** D.\n"
    text = render_page("A", "B.", "| c |", "D.", "E.", {"F": "g\n"})
    assert text.endswith("**Versions.** E.\n\n<details>\n<summary>F</summary>\n\ng\n\n</details>\n")
    check_form(text)


@pytest.mark.parametrize(
    ("numbers", "said"), [([1.451, 0.829], "0.83 to 1.45"), ([2.0, 2.001], "2.00"), ([1234.5], "1,234.50")]
)
def test_a_range_is_of_its_ends(numbers, said):
    assert say_range(numbers) == said
