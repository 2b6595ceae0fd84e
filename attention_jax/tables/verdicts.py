"""Decides which differences of a table are compared and judged, and whether published findings hold.

A difference is judged if its rows have three seeds each (Bouthillier et al. 2021, arXiv 2103.03098, show how one seed
misleads), their training has converged, and nothing was chosen on the examples that judge. Holm's correction (1979) covers
all comparisons that the table file plans, so a table of equal rows calls any of them different in at most 5 % of cases.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Mapping, Sequence

import numpy as np
from scipy.stats import kendalltau

from attention_jax.tables.results import RowResult, have_same_examples
from attention_jax.tables.statistics import MIN_SEEDS, Estimate, estimate_difference
from attention_jax.tables.table import PublishedFinding
from attention_jax.tasks import get_task

LEVEL = 0.05
STILL_LEARNING, STOPPED_EARLY = "still learning", "stopped early"  # reasons why a comparison is not judged
_NUMBERS = ("no", "one", "two")


@dataclasses.dataclass(frozen=True)
class Comparison:
    """The difference between a row and another one, as shares.

    Attributes:
        corrected: estimate with the interval after Holm's correction.
        reason: a few words on why the difference is not judged; empty if it is.
    """

    row: str
    other: str
    estimate: Estimate
    corrected: Estimate
    reason: str = ""

    @property
    def differs(self) -> bool:
        """True if the rows are judged to be different."""
        return not self.reason and self.corrected.excludes_zero

    def judge(self, sign: int = 1) -> str:
        """Judges "`row` is better", or "worse" for sign -1: "agrees", "disagrees", or "cannot tell here" with the reason."""
        if self.reason:
            return f"cannot tell here ({self.reason})"
        if not self.differs:
            needed = self.estimate.count_seeds_needed() if self.estimate.value else None  # no number finds 0
            more = f"{max(needed, self.estimate.seeds + 1)} seeds" if needed else "other or more test examples"
            return f"cannot tell here (would need {more})"
        return "agrees" if self.estimate.value * sign > 0 else "disagrees"


def judge_finding(finding: PublishedFinding, comparison: Comparison | None) -> str:
    """Returns "agrees", "disagrees", "not run", or "cannot tell here" with the reason."""
    return comparison.judge(finding.sign) if comparison else "not run"


def correct_levels(p_values: Sequence[float], level: float = LEVEL) -> list[float]:
    """Returns the level at which Holm's step-down rule judges each comparison: level / m for the smallest p, and so on.

    After the first p above its level, all further comparisons keep that level.
    """
    levels, current = [0.0] * len(p_values), 0.0
    failed = False
    for place, index in enumerate(np.argsort(p_values, kind="stable")):
        if not failed:
            current = level / (len(p_values) - place)
            failed = p_values[index] > current
        levels[index] = current
    return levels


def compare_rows(
    results: Sequence[RowResult], pairs: Sequence[tuple[str, str]], selected_on: str = ""
) -> dict[tuple[str, str], Comparison]:
    """Returns the comparisons of those planned pairs (row, other) of labels that can be made.

    Args:
        selected_on: the split on which rows, budgets or rates were chosen.
    """
    rows = {result.label: result for result in results if result.correct is not None}
    groups, moved = (
        functools.cache(lambda label: read_groups(rows[label])),
        functools.cache(lambda label: measure_last_tenth(rows[label])),
    )
    made: dict[tuple[str, str], tuple[Estimate, str]] = {}
    for row, other in dict.fromkeys(pairs):
        a, b = rows.get(row), rows.get(other)
        if a is None or b is None or a.correct is None or b.correct is None:
            continue
        if not have_same_examples(a.plan, b.plan) or a.correct.shape[1] != b.correct.shape[1]:
            continue
        estimate = estimate_difference(a.correct, b.correct, groups=groups(row))
        selected = selected_on in (a.plan.config.data.eval_split, b.plan.config.data.eval_split)
        reason = _find_reason(estimate, selected, moved(row), moved(other))
        made[row, other] = estimate, reason or STOPPED_EARLY * any(run.stopped_early for x in (a, b) for run in x.plan.runs)
    judged = [pair for pair, (_, reason) in made.items() if not reason]
    levels = dict(zip(judged, correct_levels([made[pair][0].p_value for pair in judged])))
    return {
        pair: Comparison(*pair, estimate, estimate.widen(levels.get(pair, LEVEL)), reason)
        for pair, (estimate, reason) in made.items()
    }


def _find_reason(estimate: Estimate, selected: bool, *moved: tuple[float, bool] | None) -> str:
    if estimate.seeds < MIN_SEEDS:
        return describe_seeds(estimate.seeds)
    if selected:
        return "chosen on the examples that judge"
    if None in moved:
        return "no evaluation before the last tenth of training"
    moving = [is_late for change, is_late in filter(None, moved) if change >= max(estimate.detectable, 1e-9)]
    if moving and not any(moving):
        return "no evaluation between 75 and 90 % of training"
    return STILL_LEARNING if moving else ""


def measure_last_tenth(result: RowResult) -> tuple[float, bool] | None:
    """Returns how far the last tenth of training moved the score (a share, mean over seeds); None if it was not logged.

    The change counts from the last evaluation before the last tenth; the second value is False if that evaluation was before
    three quarters of training.
    """
    config = result.plan.config
    name = f"{'eval_ema' if config.ema.decay else 'eval'}/{get_task(config.task).correct_means(config).replace(' ', '_')}"
    moves, is_late = [], True
    for run in result.plan.runs:
        scores = {line["step"]: line[name] for line in run.lines() if name in line} if run.correct is not None else {}
        before = [step for step in scores if step <= 0.9 * run.total_steps]
        if before and run.total_steps in scores:
            moves.append(scores[run.total_steps] - scores[max(before)])
            is_late = is_late and max(before) >= 0.75 * run.total_steps
    return (abs(float(np.mean(moves))), is_late) if moves else None


def read_groups(result: RowResult) -> np.ndarray | None:
    """Returns [N], equal for test examples that are drawn together; None if the row's source has no `groups()`."""
    config, task = result.plan.config, get_task(result.plan.config.task)
    source = getattr(task, "source", None)  # a task may have its own loader and no source
    groups = getattr(source(config, config.data.eval_split), "groups", None) if source else None
    return None if groups is None else np.asarray(groups())


def describe_seeds(number: int) -> str:
    """Returns "one seed", "two seeds" or "5 seeds"."""
    return f"{_NUMBERS[number] if number < len(_NUMBERS) else number} seed{'' if number == 1 else 's'}"


def order_agreement(results: Sequence[RowResult], published: Mapping[str, float]) -> tuple[float, int] | None:
    """Returns Kendall's tau of the rows' accuracies and published numbers, higher better in both, and the number of rows.

    Returns None for fewer than three rows.
    """
    pairs = [(float(r.correct.mean()), published[r.label]) for r in results if r.correct is not None and r.label in published]
    if len(pairs) < 3:
        return None
    tau = float(kendalltau(*zip(*pairs)).statistic)
    return None if math.isnan(tau) else (tau, len(pairs))


def measure_false_verdicts(results: Sequence[RowResult]) -> tuple[int, int]:
    """Returns how often halves of a row's seeds are called different at 5 %, and the number of comparisons.

    Each row is compared with itself once for each way to halve its seeds, whose number must be even.
    """
    wrong = total = 0
    for result in results:
        if result.correct is None or len(result.correct) % 2 or len(result.correct) < 2 * MIN_SEEDS:
            continue
        seeds, groups = range(len(result.correct)), read_groups(result)
        for half in itertools.combinations(seeds, len(seeds) // 2):
            if 0 in half:  # the other ones repeat these halves, exchanged
                rest = [seed for seed in seeds if seed not in half]
                wrong += estimate_difference(result.correct[list(half)], result.correct[rest], groups=groups).excludes_zero
                total += 1
    return wrong, total
