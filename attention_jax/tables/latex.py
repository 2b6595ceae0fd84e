"""Converts the tables of a Markdown page of this library to LaTeX with booktabs."""

import re
from collections.abc import Iterator, Sequence

_SYMBOLS = {
    **{character: f"\\{character}" for character in "&%$#_{}"},
    **{"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "–": "--", "…": r"\ldots{}"},
    **{"|": r"\textbar{}", "<": r"\textless{}", ">": r"\textgreater{}", "²": "$^2$", "⁶": "$^6$", "−": "$-$", "µ": r"$\mu$"},
    **{"±": r"$\pm$", "Δ": r"$\Delta$", "τ": r"$\tau$", "×": r"$\times$", "·": r"$\cdot$", "√": r"$\surd$"},
}


def render_latex(markdown: str) -> str:
    """Returns a table environment for each table of a page, under its title, and its other lines as comments.

    It needs `\\usepackage{booktabs}`; letters that LaTeX does not know, such as Korean ones, need XeLaTeX or LuaLaTeX.
    """
    title, *blocks = markdown.strip().split("\n\n")
    parts = [_comment(r"\usepackage{booktabs}")]
    for block in (block for block in blocks if not block.startswith(("<details>", "</details>"))):
        lines = block.split("\n")
        is_table = lines[0].startswith("| ")
        parts.append("\n".join(_write_table(title.removeprefix("# "), lines) if is_table else map(_comment, lines)))
    return "\n\n".join(parts) + "\n"


def escape_latex(text: str) -> str:
    """Returns text with LaTeX's special characters and symbols written out; `**bold**` becomes bold."""
    text = re.sub(r"(?<![\w.])-(?=\d)", "−", text)  # a minus is longer than a hyphen
    text = "".join(_SYMBOLS.get(character, character) for character in text)
    return re.sub(r"\*\*(.+?)\*\*", r"\\textbf{\1}", text)


def _comment(line: str) -> str:
    return f"% {line}"


def _write_table(title: str, lines: Sequence[str]) -> Iterator[str]:
    head, *rows = (_write_row(line) for line in lines if not line.startswith("| ---"))
    yield "\\begin{table}\n\\centering\\small"
    yield f"\\caption{{{escape_latex(title)}}}"
    yield f"\\begin{{tabular}}{{l{'r' * (lines[1].count('|') - 2)}}}\n\\toprule"
    yield from (head, r"\midrule", *rows, r"\bottomrule")
    yield "\\end{tabular}\n\\end{table}"


def _write_row(line: str) -> str:
    """Joins cells to a row; protects a bracket at its start, which the line break before it would take as an option."""
    cells = [escape_latex(cell.replace("\\|", "|")) for cell in re.split(r"(?<!\\) ?\| ", line.strip().removeprefix("| "))]
    cells[-1] = cells[-1].removesuffix(" \\textbar{}")
    return " & ".join(f"{{}}{cell}" if cell.startswith(("[", "*")) else cell for cell in cells) + r" \\"
