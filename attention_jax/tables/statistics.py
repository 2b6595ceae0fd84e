"""Error bars of a table: how far the choice of seeds and test examples could move a number.

All estimates use matrices `correct [S, N]`, one row per seed and one column per test example. Both seeds and examples count
as samples: an interval covers the results of other seeds on other examples of the same kind.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from scipy.special import stdtr, stdtrit  # Student's distribution and its quantile; JAX brings SciPy

RESAMPLES = 10_000
MIN_SEEDS = 3  # with fewer seeds, no rows are called different
_Z_95, _Z_80 = 1.959964, 0.841621  # normal quantiles of a two-sided 95 % interval and of 80 % power


@dataclasses.dataclass(frozen=True)
class Estimate:
    """An accuracy, or a difference of two, pooled over seeds; shares from 0 to 1."""

    value: float
    low: float  # ends of its 95 % interval
    high: float
    detectable: float  # the smallest true difference from 0 that is found with 80 % power at 5 %
    freedom: float = math.inf  # degrees of freedom of Student's distribution, whose quantile stretches the interval
    seeds: int = 0  # number of seeds of the row with fewer seeds
    variances: tuple[float, float] = (0.0, 0.0)  # variance from seeds, and from examples

    @property
    def excludes_zero(self) -> bool:
        """True if the interval excludes 0."""
        return self.low > 0 or self.high < 0

    @property
    def p_value(self) -> float:
        """The level at which the interval would end at 0."""
        half = self.value - self.low if self.value > 0 else self.high - self.value
        if half <= 0 or self.value == 0:
            return 1.0 if self.value == 0 else 0.0
        return float(2 * stdtr(self.freedom, -stdtrit(self.freedom, 0.975) * abs(self.value) / half))

    def widen(self, level: float) -> "Estimate":
        """Returns the estimate with the interval of another level than 0.05."""
        ratio = stdtrit(self.freedom, 1 - level / 2) / stdtrit(self.freedom, 0.975)
        low, high = (self.value + float(ratio) * (end - self.value) for end in (self.low, self.high))
        return dataclasses.replace(self, low=low, high=high)

    def count_seeds_needed(self, most: int = 1000) -> int | None:
        """Returns how many seeds per row find a difference of this size with 80 % power; None for more than `most`."""
        return next((n for n in range(MIN_SEEDS, most + 1) if self.predict_detectable(n) <= abs(self.value)), None)

    def predict_detectable(self, seeds: int) -> float:
        """Returns the smallest true difference that `seeds` seeds per row find with 80 % power."""
        from_seeds, from_examples = self.variances
        error = math.sqrt(from_seeds * self.seeds / seeds + from_examples)
        return float(stdtrit(2 * (seeds - 1), 0.975) + _Z_80) * error


def compute_mean_and_std(correct: np.ndarray) -> tuple[float, float]:
    """[S, N] -> accuracy pooled over seeds, and its standard deviation over seeds (ddof 1; nan for one seed)."""
    by_seed = correct.mean(1)
    return float(by_seed.mean()), float(by_seed.std(ddof=1)) if len(by_seed) > 1 else float("nan")


def estimate_accuracy(correct: np.ndarray, resamples: int = RESAMPLES, groups: np.ndarray | None = None) -> Estimate:
    """[S, N] -> accuracy with an interval for this row alone, made as in `estimate_difference`."""
    rng = np.random.default_rng(0)
    effects = Effects(correct.sum(0) / len(correct), groups)
    deviations = draw_seeds(rng, correct.mean(1), resamples) + effects.draw(rng, resamples)
    return make_estimate(float(correct.mean()), deviations, [correct.mean(1)], effects.variance(), len(effects.sizes))


def estimate_difference(a: np.ndarray, b: np.ndarray, resamples: int = RESAMPLES, groups: np.ndarray | None = None) -> Estimate:
    """Returns the accuracy of `a` [S_a, N] minus that of `b` [S_b, N], two rows evaluated on the same N examples.

    The interval comes from a bootstrap over seeds and test examples. Examples are drawn once for both rows, so that the
    difficulty of an example cancels; seeds are drawn for each row separately. From n seeds, n - 1 are drawn with replacement
    (Rao & Wu 1988): n draws would understate the variance by (n - 1)/n, a third with three seeds. The deviations due to seeds
    and
    to examples are drawn separately and added. This counts the chance of one seed on one example twice and errs on the safe
    side; drawing rows and columns of the matrix at once would count it three times (Owen 2007).

    The spread of a few seeds is itself uncertain, so the interval is stretched by t/1.96, where t is the quantile of Student's
    distribution for the degrees of freedom of Welch and Satterthwaite: close to 1 if examples dominate, 1.4 if three seeds per
    row do. Coverage is simulated in `tests/tables/test_statistics.py`.

    The result for (b, a) is exactly the negative; the draws have a fixed seed.

    Args:
        groups: [N], equal for examples that share an image or a sentence and are therefore drawn together.
    """
    # Half of the draws are made with the roles exchanged, which makes the result exactly antisymmetric.
    forward, backward = (_deviations(*rows, resamples // 2, groups) for rows in ((a, b), (b, a)))
    effects = Effects(a.mean(0) - b.mean(0), groups)
    deviations, by_seed = np.concatenate([forward, -backward]), [a.mean(1), b.mean(1)]
    return make_estimate(float(a.mean() - b.mean()), deviations, by_seed, effects.variance(), len(effects.sizes))


def _deviations(a: np.ndarray, b: np.ndarray, resamples: int, groups: np.ndarray | None) -> np.ndarray:
    rng = np.random.default_rng(0)
    from_examples = Effects(a.sum(0) / len(a) - b.sum(0) / len(b), groups).draw(rng, resamples)
    if min(len(a), len(b)) == 1:  # the seeds of one row would pass for those of both
        return from_examples
    return draw_seeds(rng, a.mean(1), resamples) - draw_seeds(rng, b.mean(1), resamples) + from_examples


def draw_seeds(rng: np.random.Generator, by_seed: np.ndarray, resamples: int) -> np.ndarray:
    """[S] scores -> [resamples], deviations of the mean of S - 1 drawn seeds from the mean of all."""
    n = len(by_seed)
    if n == 1:
        return np.zeros(resamples)
    return rng.multinomial(n - 1, np.full(n, 1 / n), resamples) @ (by_seed - by_seed.mean()) / (n - 1)


class Effects:
    """The effects of examples [N] on a mean; examples are drawn by groups [N]."""

    def __init__(self, effects: np.ndarray, groups: np.ndarray | None = None):
        _, which = np.unique(np.arange(len(effects)) if groups is None else groups, return_inverse=True)
        self.sizes, self.total, self.mean = np.bincount(which), len(effects), float(effects.mean())
        self.deviations = np.bincount(which, effects - self.mean)  # a group's sum

    def draw(self, rng: np.random.Generator, resamples: int) -> np.ndarray:
        """Returns [resamples], deviations of the mean of drawn groups, as many as there are, from the mean of all."""
        # The effects take few values, at most (S_a + 1)(S_b + 1), and only the number of draws of each counts: no matrix of
        # draws.
        pairs = np.stack([self.deviations.round(12), self.sizes], 1)
        values, counts = np.unique(pairs, axis=0, return_counts=True)
        drawn = rng.multinomial(len(self.sizes), counts / len(self.sizes), resamples) @ values
        return drawn[:, 0] / drawn[:, 1]

    def variance(self) -> float:
        """Returns the variance of the mean."""
        return float((self.deviations**2).sum()) / self.total**2


def make_estimate(
    value: float, deviations: np.ndarray, by_seed: Sequence[np.ndarray], from_examples: float, examples: int
) -> Estimate:
    """Returns an estimate with the interval that drawn deviations give.

    Args:
        deviations: [resamples] from `value`, of seeds and examples.
        by_seed: [S] scores of each row.
        from_examples: variance of the value that comes from the choice of examples.
        examples: their number, or that of their groups.
    """
    seeds = min(map(len, by_seed))
    freedom = math.inf if seeds == 1 else _degrees_of_freedom(by_seed, from_examples, examples)
    stretch = stdtrit(freedom, 0.975) / _Z_95
    low, high = stretch * np.quantile(deviations, [0.025, 0.975])
    return Estimate(
        value=value,
        low=value + float(low),
        high=value + float(high),
        # (1.96 + 0.84) standard errors for normal deviations: 1.96 for the interval, 0.84 for the power.
        detectable=float((high - low) / 2 + _Z_80 * deviations.std()),
        freedom=freedom,
        seeds=seeds,
        variances=(sum(map(_seed_variance, by_seed)) if seeds > 1 else 0.0, from_examples),
    )


def _seed_variance(scores: np.ndarray) -> float:
    return float(scores.var(ddof=1)) / len(scores)


def _degrees_of_freedom(by_seed: Sequence[np.ndarray], from_examples: float, examples: int) -> float:
    """Returns Welch and Satterthwaite's degrees of freedom for a sum of variances from a few seeds each and many examples."""
    parts = [(_seed_variance(row), len(row) - 1) for row in by_seed] + [(from_examples, examples)]
    total = sum(variance for variance, _ in parts)
    return total**2 / sum(variance**2 / free for variance, free in parts) if total else math.inf
