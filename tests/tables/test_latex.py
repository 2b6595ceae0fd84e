"""Tables as LaTeX. No LaTeX is run here: structure, number of cells and special characters are checked."""

import re

import pytest

from attention_jax.tables.latex import escape_latex, render_latex
from tests.helpers.small import ROOT

PAGES = sorted(path for path in (ROOT / "experiments/results").glob("*.md") if path.with_suffix(".json").exists())
PAGES = [path for path in PAGES if path.stem not in ("preflight", "on_device_quick", "programs_tpu", "scaling_pods")]
UNESCAPED = re.compile(r"(?<!\\)[#%_^~]|[^\x00-\x7f]")


def tables(text: str) -> list[list[str]]:
    """Lines of each table environment; everything outside of them is a comment."""
    found = re.findall(r"\\begin\{table\}\n(.*?)\n\\end\{table\}", text, re.DOTALL)
    outside = re.sub(r"\\begin\{table\}\n.*?\n\\end\{table\}", "", text, flags=re.DOTALL)
    assert all(line.startswith("% ") for line in outside.splitlines() if line)
    return [table.splitlines() for table in found]


def balanced(text: str) -> bool:
    depth = 0
    for brace in re.findall(r"(?<!\\)[{}]", text):
        depth += 1 if brace == "{" else -1
        if depth < 0:
            return False
    return depth == 0 and len(re.findall(r"(?<!\\)\$", text)) % 2 == 0


@pytest.mark.parametrize("page", PAGES, ids=[page.stem for page in PAGES])
def test_committed_tables(page):
    text = render_latex(page.read_text("utf-8"))
    assert page.with_suffix(".tex").read_text("utf-8") == text, "the table was made anew without its LaTeX"
    made = tables(text)
    assert len(made) == page.read_text("utf-8").count("\n| ---") >= 1
    for lines in made:
        begin = next(line for line in lines if line.startswith(r"\begin{tabular}"))
        columns = len(begin.rpartition("{")[2].rstrip("}"))
        rows = [line for line in lines if line.endswith(r" \\")]
        assert len(rows) >= 2 and {len(re.findall(r"(?<!\\)&", row)) + 1 for row in rows} == {columns}
        assert [lines.count(rule) for rule in (r"\toprule", r"\midrule", r"\bottomrule", r"\end{tabular}")] == [1] * 4
        for line in (*rows, *(line for line in lines if line.startswith(r"\caption"))):
            assert balanced(line) and not UNESCAPED.search(re.sub(r"(?<!\\)\$.*?\$", "", line)), line
            assert not re.search(r"(^|& )[\[*]", line), line


def test_what_is_written_out():
    assert escape_latex("a_b & 50 % of #1 {x} ~ 2^3 \\ $5") == (
        r"a\_b \& 50 \% of \#1 \{x\} \textasciitilde{} 2\textasciicircum{}3 \textbackslash{} \$5"
    )
    assert escape_latex("**-4.1 ± 0.2** [-1, +2] k^-1") == (r"\textbf{$-$4.1 $\pm$ 0.2} [$-$1, +2] k\textasciicircum{}$-$1")
    assert escape_latex("Δ τ 32x4d 2-3") == r"$\Delta$ $\tau$ 32x4d 2-3"


def test_a_page_with_hard_cells():
    page = "# T_1\n\nText 5 %.\n\n| row | n |\n| --- | ---: |\n| a \\| b | [1, 2] |\n| [c] | – |\n"
    assert render_latex(page).splitlines() == [
        *(r"% \usepackage{booktabs}", "", "% Text 5 %.", "", r"\begin{table}", r"\centering\small", r"\caption{T\_1}"),
        *(r"\begin{tabular}{lr}", r"\toprule", r"row & n \\", r"\midrule", r"a \textbar{} b & {}[1, 2] \\"),
        *(r"{}[c] & -- \\", r"\bottomrule", r"\end{tabular}", r"\end{table}"),
    ]
