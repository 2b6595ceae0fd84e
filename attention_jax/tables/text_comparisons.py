"""Compares the translations of rows by BLEU and chrF: a bootstrap over sentences and seeds, approximate randomisation beside.

A score of a corpus is computed from sums over its sentences, [K] numbers, such as counts of n-grams; sums of drawn or
exchanged sentences give the score of another corpus. sacrebleu counts and scores.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from attention_jax.tables.differences import format_difference
from attention_jax.tables.results import RowResult
from attention_jax.tables.statistics import Estimate, draw_seeds, make_estimate
from attention_jax.tables.table import PublishedFinding
from attention_jax.tables.verdicts import LEVEL, Comparison, correct_levels, judge_finding, read_groups
from attention_jax.tasks.text_scores import make_text_metrics
from attention_jax.train.evaluate import read_arrays
from attention_jax.train.workdir import EVALUATION

RESAMPLES = 1000


@dataclasses.dataclass(frozen=True)
class TextComparison:
    """The difference of two rows in a score of texts, as a share of 100 points; `p_value` is that of `randomise_texts`."""

    comparison: Comparison
    p_value: float


Pair = tuple[str, str]
TextComparisons = Mapping[str, Mapping[Pair, TextComparison]]  # by the metric's name, with its tokenization


def compare_texts(results: Sequence[RowResult], comparisons: Mapping[Pair, Comparison]) -> TextComparisons:
    """Makes a table's comparisons once more by the scores of texts; nothing if a row has no translations.

    Holm's correction covers all of them and both metrics; a comparison that is not judged is not judged for its texts either.
    """
    rows = {result.label: result for result in results if any(result.label in pair for pair in comparisons)}
    texts = {label: found for label, result in rows.items() if (found := _read_texts(result))}
    made: dict[str, dict[Pair, tuple[Estimate, float]]] = {}
    for pair in comparisons:
        if not (set(pair) <= texts.keys() and np.array_equal(texts[pair[0]][0][1], texts[pair[1]][0][1])):
            continue
        tokenize = rows[pair[0]].plan.config.evaluation.bleu
        if tokenize != rows[pair[1]].plan.config.evaluation.bleu:
            continue
        groups = read_groups(rows[pair[0]])
        for name, metric in make_text_metrics(tokenize).items():
            a, b = (_count(metric, texts[label], groups) for label in pair)
            judged_as = estimate_text_difference(a, b, metric), randomise_texts(a, b, metric)
            made.setdefault(f"BLEU, tok:{tokenize}" if name == "BLEU" else name, {})[pair] = judged_as
    judged = [(name, pair) for name, found in made.items() for pair in found if not comparisons[pair].reason]
    levels = dict(zip(judged, correct_levels([made[name][pair][0].p_value for name, pair in judged])))

    def conclude(name: str, pair: Pair) -> TextComparison:
        estimate, p_value = made[name][pair]
        corrected = estimate.widen(levels.get((name, pair), LEVEL))
        return TextComparison(Comparison(*pair, estimate, corrected, comparisons[pair].reason), p_value)

    return {name: {pair: conclude(name, pair) for pair in found} for name, found in made.items()}


def _read_texts(result: RowResult) -> list[tuple[np.ndarray, np.ndarray]]:
    """Returns (translations, references) of each finished seed; empty if one has none."""
    runs = [run for run in result.plan.runs if run.correct is not None] if result.correct is not None else []
    found = [read_arrays(run.path / EVALUATION, run.total_steps, ["translation", "reference"]) for run in runs]
    return [(each["translation"], each["reference"]) for each in found if each] if all(found) else []


def _count(metric: Any, texts: Sequence[tuple[np.ndarray, np.ndarray]], groups: np.ndarray | None) -> np.ndarray:
    """[S, N, K] counts of a metric in each sentence, or group of sentences, for each seed."""
    counts = np.array(
        [metric._extract_corpus_statistics(found.tolist(), [wanted.tolist()]) for found, wanted in texts], np.float64
    )
    if groups is None:
        return counts
    _, which = np.unique(groups, return_inverse=True)
    return np.eye(which.max() + 1)[:, which] @ counts


def _score_sums(metric: Any, sums: np.ndarray) -> np.ndarray:
    """[R, K] -> [R] shares of 100 points."""
    return np.array([metric._compute_score_from_stats(each).score for each in sums]) / 100


def estimate_text_difference(a: np.ndarray, b: np.ndarray, metric: Any, resamples: int = RESAMPLES) -> Estimate:
    """[S_a, N, K], [S_b, N, K] -> score of a minus that of b, each the mean over seeds.

    As `statistics.estimate_difference`: sentences are drawn once for both rows (Koehn 2004), seeds for each by itself, and
    the two deviations are added. The draws of sentences are centred on their own mean, since some come twice, which biases a
    score.
    """
    by_seed = [_score_sums(metric, row.sum(1)) for row in (a, b)]
    rng, n = np.random.default_rng(0), a.shape[1]
    drawn = rng.multinomial(n, np.full(n, 1 / n), resamples)
    means = [np.mean([_score_sums(metric, drawn @ seed) for seed in row], 0) for row in (a, b)]
    of_sentences = means[0] - means[1]
    of_sentences -= of_sentences.mean()
    deviations = of_sentences
    if min(len(a), len(b)) > 1:  # half of the seeds' part would look like all of it

        def draw(first: np.ndarray, second: np.ndarray) -> np.ndarray:
            rng = np.random.default_rng(0)
            return draw_seeds(rng, first, resamples) - draw_seeds(rng, second, resamples)

        # Once more with the roles exchanged, so that (b, a) is exactly the negative.
        deviations = np.concatenate([of_sentences + draw(*by_seed), of_sentences - draw(*by_seed[::-1])])
    value = float(by_seed[0].mean() - by_seed[1].mean())
    return make_estimate(value, deviations, by_seed, float(of_sentences.var()), n)


def randomise_texts(a: np.ndarray, b: np.ndarray, metric: Any, trials: int = RESAMPLES) -> float:
    """[S_a, N, K], [S_b, N, K] -> p-value of approximate randomisation (Riezler & Maxwell 2005), two-sided.

    A trial exchanges the two rows' translations of half of the sentences, in all seeds at once; so it says nothing of other
    seeds. Rows with more seeds than the other lend the first of them.
    """
    seeds = min(len(a), len(b))
    a, b = a[:seeds], b[:seeds]
    kept = np.random.default_rng(0).integers(2, size=(trials, a.shape[1]))

    def compare(first: np.ndarray, second: np.ndarray) -> np.ndarray:
        return np.mean([_score_sums(metric, x) - _score_sums(metric, y) for x, y in zip(first, second)], 0)

    seen = compare(a.sum(1)[:, None], b.sum(1)[:, None])[0]
    chance = compare(kept @ a + (1 - kept) @ b, kept @ b + (1 - kept) @ a)
    return float((np.sum(np.abs(chance) > abs(seen)) + 1) / (trials + 1))


def format_texts(texts: TextComparisons, mark: str) -> list[list[list[str]]]:
    """Returns head and rows of the table of comparisons by scores of texts; no table without any."""
    pairs = dict.fromkeys(pair for made in texts.values() for pair in made)
    head = ["comparison", *(cell for name in texts for cell in (f"Δ {name}", "p, randomised"))]
    body = [
        [f"{row} over {other}", *(cell for made in texts.values() for cell in _cells(made.get((row, other)), mark))]
        for row, other in pairs
    ]
    return [[head, *body]] if body else []


def _cells(found: TextComparison | None, mark: str) -> list[str]:
    return [format_difference(found.comparison, mark), f"{found.p_value:.3f}"] if found else ["–", "–"]


def explain_texts(texts: TextComparisons, findings: Sequence[PublishedFinding], marked: str) -> str:
    """Returns lines that explain the table of `format_texts` and give the verdicts by each metric."""
    if not texts:
        return ""
    number = sum(map(len, texts.values()))
    lines = [
        "Scores of texts: differences in points of the mean over seeds, with intervals from a bootstrap over seeds and "
        f"sentences, and after Holm's correction for {number} comparisons. {marked}: the corrected interval excludes 0.",
        f"p, randomised: approximate randomisation of the sentences' translations, {RESAMPLES:,} trials, of these seeds alone, "
        "not corrected.",
    ]
    for finding in findings:
        pair = finding.row, finding.over
        compared = {name: made[pair].comparison for name, made in texts.items() if pair in made}
        verdicts = [f"by {name} {judge_finding(finding, comparison)}" for name, comparison in compared.items()]
        lines += [f"Published: {finding.text}: {'; '.join(verdicts)}."] if verdicts else []
    return "\n".join(lines)
