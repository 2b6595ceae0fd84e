"""Formats differences of rows in points, with their intervals."""

from attention_jax.tables.statistics import MIN_SEEDS, Estimate
from attention_jax.tables.verdicts import Comparison


def format_difference(comparison: Comparison | None, mark: str) -> str:
    """Formats a difference in percentage points with both intervals; `mark` encloses it if the rows are judged different."""
    if comparison is None:
        return "–"
    text = f"{format_points(comparison.estimate.value)} {format_interval(comparison.estimate)}"
    if comparison.estimate.seeds < MIN_SEEDS:
        return f"{text} ({comparison.reason})"
    text += f" ({format_interval(comparison.corrected)})"
    return mark.format(text) if comparison.differs else text


def format_points(share: float) -> str:
    """Formats a difference of shares in points, as +1.50."""
    return f"{round(100 * share, 2) + 0.0:+.2f}"  # + 0.0 turns a rounded -0.0 into 0.0


def format_interval(estimate: Estimate) -> str:
    """Formats the 95 % interval in points."""
    return f"[{format_points(estimate.low)}, {format_points(estimate.high)}]"
