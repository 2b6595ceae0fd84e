"""Error bars of a table: how far the choice of seeds and test examples could move a number.

Everything is made from matrices `correct [S, N]`, one row a seed and one column a test example. Seeds and examples are
both taken as samples: an interval says what other seeds on other examples of the same kind would have given.
"""

import dataclasses

import numpy as np
from scipy.special import stdtrit  # Student's quantile; JAX brings SciPy

RESAMPLES = 10_000
_Z_95, _Z_80 = 1.959964, 0.841621  # normal quantiles of a two-sided 95 % interval and of 80 % power


@dataclasses.dataclass(frozen=True)
class Estimate:
    """An accuracy or a difference of two, pooled over seeds, as shares from 0 to 1."""

    value: float
    low: float  # ends of its 95 % interval
    high: float
    detectable: float  # the smallest true difference from 0 that would have been seen with 80 % power at 5 %

    @property
    def excludes_zero(self) -> bool:
        """True if the interval excludes 0."""
        return self.low > 0 or self.high < 0


def compute_mean_and_std(correct: np.ndarray) -> tuple[float, float]:
    """[S, N] -> accuracy pooled over seeds, and its standard deviation over seeds (ddof 1; nan for one seed)."""
    by_seed = correct.mean(1)
    return float(by_seed.mean()), float(by_seed.std(ddof=1)) if len(by_seed) > 1 else float("nan")


def estimate_accuracy(correct: np.ndarray, resamples: int = RESAMPLES) -> Estimate:
    """[S, N] -> accuracy with the interval of this row alone; made as in `estimate_difference`."""
    rng = np.random.default_rng(0)
    deviations = _seed_deviations(rng, correct, resamples) + _example_deviations(rng, correct.sum(0) / len(correct), resamples)
    return _estimate(float(correct.mean()), deviations, [correct], correct.mean(0))


def estimate_difference(a: np.ndarray, b: np.ndarray, resamples: int = RESAMPLES) -> Estimate:
    """Accuracy of `a` [S_a, N] minus that of `b` [S_b, N], rows that were evaluated on the same N examples.

    A bootstrap over seeds and test examples. Examples are drawn once for both rows, so that what makes an example hard
    for both cancels; seeds are drawn for each row separately. From n seeds n - 1 are drawn with replacement (Rao & Wu 1988): n
    draws would understate the variance by (n - 1)/n, a third with three seeds. The deviations that come from seeds and
    from examples are drawn apart and added. That counts the chance of one seed on one example twice and errs to the safe
    side; drawing rows and columns of the matrix at once would count it three times (Owen 2007).

    The spread of a few seeds is itself uncertain, so the interval is stretched by t/1.96, where t is the quantile of Student's
    distribution for the degrees of freedom of Welch and Satterthwaite: close to 1 where examples dominate, 1.4 where three
    seeds a row do. Coverage is simulated in `tests/tables/test_statistics.py`.

    The result for (b, a) is exactly the negative; the draws have a fixed seed.
    """
    # Half of the draws are made with the roles exchanged; that is what makes the result exactly antisymmetric.
    deviations = np.concatenate([_deviations(a, b, resamples // 2), -_deviations(b, a, resamples // 2)])
    return _estimate(float(a.mean() - b.mean()), deviations, [a, b], a.mean(0) - b.mean(0))


def _deviations(a: np.ndarray, b: np.ndarray, resamples: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    from_examples = _example_deviations(rng, a.sum(0) / len(a) - b.sum(0) / len(b), resamples)
    if min(len(a), len(b)) == 1:  # half of the seeds' part would look like all of it
        return from_examples
    return _seed_deviations(rng, a, resamples) - _seed_deviations(rng, b, resamples) + from_examples


def _seed_deviations(rng: np.random.Generator, correct: np.ndarray, resamples: int) -> np.ndarray:
    """[S, N] -> [resamples], how far the mean of S - 1 drawn seeds is from that of all."""
    by_seed = correct.mean(1)
    n = len(by_seed)
    if n == 1:
        return np.zeros(resamples)
    return rng.multinomial(n - 1, np.full(n, 1 / n), resamples) @ (by_seed - by_seed.mean()) / (n - 1)


def _example_deviations(rng: np.random.Generator, effects: np.ndarray, resamples: int) -> np.ndarray:
    """[N] -> [resamples], how far the mean of N drawn examples is from that of all."""
    # Few values occur, at most (S_a + 1)(S_b + 1), and how often each is drawn is all that counts: no matrix of draws.
    values, counts = np.unique(effects.round(12), return_counts=True)
    n = len(effects)
    return rng.multinomial(n, counts / n, resamples) @ (values - values @ counts / n) / n


def _estimate(value: float, deviations: np.ndarray, rows: list[np.ndarray], effects: np.ndarray) -> Estimate:
    one_seed = min(map(len, rows)) == 1
    stretch = 1.0 if one_seed else stdtrit(_degrees_of_freedom(rows, effects), 0.975) / _Z_95
    low, high = stretch * np.quantile(deviations, [0.025, 0.975])
    return Estimate(
        value=value,
        low=value + float(low),
        high=value + float(high),
        # (1.96 + 0.84) standard errors where deviations are normal: what the interval needs, and the power on top.
        detectable=float((high - low) / 2 + _Z_80 * deviations.std()),
    )


def _degrees_of_freedom(rows: list[np.ndarray], effects: np.ndarray) -> float:
    """Welch and Satterthwaite's, of a sum of variances that are estimated from few seeds each and many examples."""
    parts = [(row.mean(1).var(ddof=1) / len(row), len(row) - 1) for row in rows]
    parts.append((effects.var() / len(effects), len(effects)))
    total = sum(variance for variance, _ in parts)
    return total**2 / sum(variance**2 / free for variance, free in parts) if total else np.inf
