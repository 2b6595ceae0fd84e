"""Early stopping: training ends when the headline metric has not become better for `evaluation.patience` evaluations.

The decision is a function of the logged scores alone, so a resumed run ends at the same step as an uninterrupted one.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any

from ml_collections import ConfigDict

from attention_jax.errors import UserError
from attention_jax.train.program import Program, build_optimizer

RECORD = "early_stop"  # name, in the log's line of the last evaluation, of the reason


def refuse_other_splits(config: ConfigDict) -> None:
    """Raises UserError if training would end by the scores of a test or of the training split."""
    split = config.data.eval_split
    if config.evaluation.patience and (split.startswith("test") or split == config.data.train_split):
        raise UserError(
            f"evaluation.patience={config.evaluation.patience} ends training by the scores on split {split!r}: choose on "
            "examples that judge nothing and are not trained on, with data.eval_split='validation'."
        )


def find_early_stop(scores: Mapping[int, float], patience: int, lower_is_better: bool = False) -> tuple[int, int] | None:
    """Returns (step at which training ends, step of the best score), or None while it goes on.

    Args:
        scores: {step: headline metric}; an equal score is not better, and one that is not finite never is.
        patience: evaluations after the best one; 0 never ends training.
    """
    best, best_step, since = -math.inf, 0, 0
    for step in sorted(scores) if patience else ():
        score = -scores[step] if lower_is_better else scores[step]
        best, best_step, since = (score, step, 0) if best < score < math.inf else (best, best_step, since + 1)
        if since >= patience:
            return step, best_step
    return None


def explain_early_stop(program: Program, scores: Mapping[int, float]) -> str:
    """Returns the reason why training ends after the last of these evaluations; "" if it goes on."""
    config, durations = program.config, program.durations
    found = find_early_stop(scores, config.evaluation.patience, program.task.lower_is_better(config))
    if found is None or found[0] >= durations.total:
        return ""
    schedule, _ = build_optimizer(program.resolved)
    now, end = (float(schedule(step - 1)) for step in (found[0], durations.total))
    rest = "" if now == end else f"; the schedule has not ended: the rate was {now:.4g} and ends at {end:.4g}"
    best = f"than {scores[found[1]]:.6g} at step {found[1]}" if found[1] else "than none"
    return (
        f"{program.task.headline(config)} on split {config.data.eval_split!r} was not better {best} for "
        f"{config.evaluation.patience} evaluations{rest}"
    )


def find_recorded_stop(lines: Iterable[Mapping[str, Any]], step: int) -> str:
    """Returns the reason that a log has for an end after this step; "" if it has none."""
    return next((line[RECORD] for line in lines if line["step"] == step and RECORD in line), "")
