"""Laws of a table's error bars, on data whose truth is known."""

import math
import subprocess
import sys
import time

import numpy as np
import pytest

from attention_jax.tables import statistics
from attention_jax.tables.statistics import compute_mean_and_std, estimate_accuracy, estimate_difference

RESAMPLES = 1000


def draw(rng, seeds, examples, means, seed_std, example_std=1.0, noise=0.3):
    """Two rows [S, N] of a probit model: what an example is worth is mostly the same for both rows."""
    shared, rows = rng.normal(0, example_std, examples), []
    for mean in means:
        worth = shared + rng.normal(0, 0.3 * example_std, examples)
        luck = rng.normal(0, seed_std, (seeds, 1)) + rng.normal(0, noise, (seeds, examples))
        rows.append((mean + worth + luck > 0).astype(float))
    return rows


def truth(mean, seed_std, example_std=1.0, noise=0.3):
    return 0.5 * (1 + math.erf(mean / math.sqrt(2 * (seed_std**2 + 1.09 * example_std**2 + noise**2))))


def coverage(seeds, seed_std, means=(2.0, 1.8), trials=300, **model):
    """Share of intervals that hold the true difference, and their mean width."""
    rng, hits, widths = np.random.default_rng(1), 0, 0.0
    expected = truth(means[0], seed_std, **model) - truth(means[1], seed_std, **model)
    for _ in range(trials):
        estimate = estimate_difference(*draw(rng, seeds, 600, means, seed_std, **model), RESAMPLES)
        hits += estimate.low <= expected <= estimate.high
        widths += estimate.high - estimate.low
    return hits / trials, widths / trials


# The standard error of a coverage of 0.95 from 300 trials is 0.013.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("seeds", "seed_std", "model"),
    [
        (3, 0.1, {}),  # both matter
        (3, 0.1, {"example_std": 0.3, "means": (0.8, 0.6)}),  # seeds matter most: the case that needs Student's law
        (5, 0.1, {}),
        (2, 0.1, {}),
        (3, 0.0, {"noise": 1.0}),  # neither: chance of one seed on one example, which is counted twice
        (1, 0.0, {"noise": 0.0}),  # one seed, and seeds make no difference
    ],
)
def test_interval_covers_the_truth(seeds, seed_std, model):
    share, _ = coverage(seeds, seed_std, **model)
    assert share > 0.91


@pytest.mark.slow
def test_drawing_as_many_seeds_as_there_are_covers_worse(monkeypatch):
    """Rao & Wu: with n draws out of n = 3 seeds a third of the seeds' variance is missing."""
    model = dict(seeds=3, seed_std=0.1, example_std=0.3, means=(0.8, 0.6))
    share, width = coverage(**model)

    def n_draws(rng, by_seed, resamples):
        n = len(by_seed)
        return rng.multinomial(n, np.full(n, 1 / n), resamples) @ (by_seed - by_seed.mean()) / n

    monkeypatch.setattr(statistics, "draw_seeds", n_draws)
    naive_share, naive_width = coverage(**model)
    assert naive_share < share - 0.02
    assert naive_width < 0.9 * width


def test_width_is_not_wasted():
    """Where seeds make no difference the interval is hardly wider than that of the examples alone."""
    a, b = draw(np.random.default_rng(0), 5, 2000, (2.0, 1.5), seed_std=0.0, noise=0.0)
    estimate = estimate_difference(a, b)
    examples = a.mean(0) - b.mean(0)
    assert estimate.high - estimate.low == pytest.approx(2 * 1.96 * examples.std() / math.sqrt(2000), rel=0.05)


@pytest.mark.parametrize("seeds", [(3, 3), (3, 5), (1, 3), (1, 1)])
def test_exchanging_the_rows_changes_the_sign_and_nothing_else(seeds):
    rng = np.random.default_rng(0)
    a, b = draw(rng, 5, 300, (1.5, 1.2), 0.2)
    a, b = a[: seeds[0]], b[: seeds[1]]
    forward, backward = estimate_difference(a, b), estimate_difference(b, a)
    assert forward.value == -backward.value
    np.testing.assert_allclose((forward.low, forward.high), (-backward.high, -backward.low), atol=1e-12)
    assert forward.detectable == pytest.approx(backward.detectable, abs=1e-12)


def test_a_row_and_itself_differ_by_its_seeds_only():
    (a, _) = draw(np.random.default_rng(0), 3, 400, (1.5, 1.2), 0.2)
    itself = estimate_difference(a, a)
    assert itself.value == 0 and itself.low < 0 < itself.high
    one_seed = estimate_difference(a[:1], a[:1])
    assert (one_seed.low, one_seed.value, one_seed.high, one_seed.detectable) == (0, 0, 0, 0)
    same_seeds = estimate_difference(np.repeat(a[:1], 3, 0), np.repeat(a[:1], 3, 0))
    assert (same_seeds.low, same_seeds.high) == (0, 0)


def test_one_seed_in_either_row_leaves_the_seeds_of_both_out():
    """A third of the seeds' part would look like all of it."""
    a, b = draw(np.random.default_rng(0), 3, 2000, (1.5, 1.2), seed_std=0.5)
    estimate = estimate_difference(a[:1], b)
    examples = a[0] - b.mean(0)
    assert estimate.high - estimate.low == pytest.approx(2 * 1.96 * examples.std() / math.sqrt(2000), rel=0.05)


def test_pairing_cancels_what_makes_an_example_hard():
    a, b = draw(np.random.default_rng(0), 3, 600, (1.0, 0.9), seed_std=0.02, example_std=2.0)
    paired = estimate_difference(a, b)
    shuffled = estimate_difference(a, b[:, np.random.default_rng(1).permutation(600)])
    assert paired.value == pytest.approx(shuffled.value)
    assert paired.high - paired.low < 0.6 * (shuffled.high - shuffled.low)


@pytest.mark.slow
def test_planted_effects_are_found_as_often_as_promised():
    rng = np.random.default_rng(2)
    shift = 0.3
    effect = truth(2.0, 0.03) - truth(2.0 - shift, 0.03)
    estimates = [estimate_difference(*draw(rng, 3, 600, (2.0, 2.0 - shift), 0.03), RESAMPLES) for _ in range(200)]
    ratio = effect / np.mean([estimate.detectable for estimate in estimates])
    found = np.mean([estimate.excludes_zero for estimate in estimates])
    assert 0.85 < ratio < 1.2  # the planted effect is about the smallest that is detectable
    assert 0.65 < found < 0.98

    twice = [estimate_difference(*draw(rng, 3, 600, (2.0, 2.0 - 2.1 * shift), 0.03), RESAMPLES) for _ in range(100)]
    assert np.mean([estimate.low > 0 for estimate in twice]) > 0.98


def test_mean_and_std():
    correct = np.array([[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0]], float)
    mean, std = compute_mean_and_std(correct)
    assert mean == pytest.approx(7 / 12)
    assert std == pytest.approx(np.std([1, 0.5, 0.25], ddof=1))
    assert math.isnan(compute_mean_and_std(correct[:1])[1])


def test_accuracy_interval_holds_the_truth():
    rng = np.random.default_rng(3)
    estimates = [estimate_accuracy(draw(rng, 3, 600, (2.0, 2.0), 0.1)[0], RESAMPLES) for _ in range(200)]
    assert np.mean([e.low <= truth(2.0, 0.1) <= e.high for e in estimates]) > 0.91


def test_quick_even_for_a_large_test_set():
    a, b = draw(np.random.default_rng(0), 3, 50_000, (1.0, 0.9), 0.05)
    begin = time.perf_counter()
    estimate = estimate_difference(a, b)
    assert time.perf_counter() - begin < 2
    assert estimate == estimate_difference(a, b)  # the draws have a fixed seed


def test_needs_no_jax():
    code = "import sys, attention_jax.tables.statistics; print('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "False"
