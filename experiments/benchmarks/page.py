"""Renders a page of results: the finding, one table, how it was measured, versions; everything else is folded."""

from collections.abc import Mapping, Sequence


def render_page(
    title: str, finding: str, table: str, measured: str, versions: str = "", folded: Mapping[str, str] | None = None
) -> str:
    """Returns a page in Markdown.

    Args:
        finding: one or two sentences that answer the page's question from its numbers.
        table: a Markdown table.
        measured: the command and what the columns are.
        versions: the machine and the versions of the software.
        folded: {what a reader clicks on: Markdown that is hidden until then}.
    """
    parts = [f"# {title}", finding, table, f"**How it was measured.** {measured}"]
    parts += [f"**Versions.** {versions}"] if versions else []
    for summary, text in (folded or {}).items():
        parts.append(f"<details>\n<summary>{summary}</summary>\n\n{text.strip()}\n\n</details>")
    return "\n\n".join(part.strip() for part in parts) + "\n"


def say_range(numbers: Sequence[float], digits: int = 2) -> str:
    """Returns "0.83 to 1.45", or one number if all are equal when they are rounded."""
    low, high = (f"{number:,.{digits}f}" for number in (min(numbers), max(numbers)))
    return low if low == high else f"{low} to {high}"
