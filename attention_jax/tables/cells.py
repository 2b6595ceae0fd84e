"""Formats a table of texts (a head and rows) as plain text and as Markdown."""

from collections.abc import Sequence

_LONGEST = 60  # characters of a cell in a terminal


def align_cells(cells: Sequence[Sequence[str]]) -> str:
    """Formats a head and rows as aligned plain text."""
    cells = [[cell if len(cell) <= _LONGEST else f"{cell[: _LONGEST - 1]}…" for cell in row] for row in cells]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    head, *rows = [
        "  ".join(_aligned(cell, width, i) for i, (cell, width) in enumerate(zip(row, widths))).rstrip() for row in cells
    ]
    return "\n".join([head, "-" * max(map(len, [head, *rows])), *rows])


def _aligned(cell: str, width: int, column: int) -> str:
    return cell.ljust(width) if column == 0 or cell.startswith(("failed", "not run")) else cell.rjust(width)


def write_markdown_cells(cells: Sequence[Sequence[str]], align: str = "---:") -> str:
    """Formats a head and rows as a Markdown table; all columns but the first are right-aligned, unless `align` is given."""
    head, *rows = [[cell.replace("|", "\\|") for cell in row] for row in cells]
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, ["---", *[align] * (len(head) - 1)], *rows])
