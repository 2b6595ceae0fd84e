"""Scores of texts in tables and in `compare-runs`: sacrebleu's numbers, and intervals that hold what they should."""

import json
import subprocess
import sys

import numpy as np
import pytest

from attention_jax.cli import main as cli
from attention_jax.tables.statistics import MIN_SEEDS
from attention_jax.tables.table import PublishedFinding
from attention_jax.tables.text_comparisons import (
    _count,
    compare_texts,
    estimate_text_difference,
    explain_texts,
    format_texts,
    randomise_texts,
)
from attention_jax.tables.verdicts import Comparison
from attention_jax.tasks.text_scores import make_text_metrics

WORDS = [f"w{i}" for i in range(30)]


def translate(rng, wanted, share):
    """Each word right with this probability."""
    return [" ".join(word if rng.random() < share else rng.choice(WORDS) for word in line.split()) for line in wanted]


@pytest.fixture(scope="module")
def wanted():
    rng = np.random.default_rng(0)
    return [" ".join(rng.choice(WORDS, rng.integers(4, 12))) for _ in range(60)]


def rows(wanted, shares, seeds=MIN_SEEDS):
    """[S, N, K] of each row, of BLEU and the metric."""
    metric, rng = make_text_metrics("none")["BLEU"], np.random.default_rng(1)
    reference = np.array(wanted)
    made = [[(np.array(translate(rng, wanted, share)), reference) for _ in range(seeds)] for share in shares]
    return [_count(metric, each, None) for each in made], metric, made


def test_the_value_is_sacrebleus_and_the_estimate_is_antisymmetric(wanted):
    (a, b), metric, (texts, others) = rows(wanted, (0.8, 0.6))
    estimate, reverse = estimate_text_difference(a, b, metric, 200), estimate_text_difference(b, a, metric, 200)
    assert (estimate.value, estimate.low, estimate.high) == pytest.approx(
        (-reverse.value, -reverse.high, -reverse.low), abs=1e-12
    )
    mean = [np.mean([metric.corpus_score(t.tolist(), [wanted]).score for t, _ in row]) for row in (texts, others)]
    assert 100 * estimate.value == pytest.approx(mean[0] - mean[1])
    assert estimate.low > 0 and estimate.seeds == MIN_SEEDS and randomise_texts(a, b, metric, 200) == pytest.approx(1 / 201)
    (same, again), *_ = rows(wanted, (0.7, 0.7))
    assert not estimate_text_difference(same, again, metric, 200).excludes_zero
    assert randomise_texts(same, again, metric, 200) > 0.05
    assert estimate_text_difference(a, a, metric, 50).value == 0


def test_the_interval_is_as_wide_as_the_seeds_and_the_sentences_make_it(wanted):
    """One seed: the standard deviation over sets of sentences. Several seeds of unequal worth: wider."""
    (a, b), metric, _ = rows(wanted, (0.8, 0.6), seeds=1)
    estimate = estimate_text_difference(a, b, metric, 400)
    rng = np.random.default_rng(7)
    drawn = [rng.integers(60, size=60) for _ in range(300)]
    score = lambda sums: metric._compute_score_from_stats(sums).score / 100  # noqa: E731
    std = np.std([score(a[0, i].sum(0)) - score(b[0, i].sum(0)) for i in drawn])
    assert (estimate.high - estimate.low) / (2 * 1.96) == pytest.approx(std, rel=0.2)
    (good, bad), *_ = rows(wanted, (0.9, 0.5), seeds=1)
    mixed, equal = np.concatenate([good, bad, good]), np.concatenate([good] * 3)
    wide, narrow = (estimate_text_difference(each, np.concatenate([b] * 3), metric, 200) for each in (mixed, equal))
    assert wide.high - wide.low > 2 * (narrow.high - narrow.low)


def test_a_tables_comparisons_are_made_once_more(wanted, monkeypatch):
    """By both metrics, corrected together; where exact match is not judged, neither are they."""
    _, metric, made = rows(wanted, (0.8, 0.6))
    by_label = dict(zip("ab", made))
    monkeypatch.setattr("attention_jax.tables.text_comparisons._read_texts", lambda result: by_label[result.label])
    monkeypatch.setattr("attention_jax.tables.text_comparisons.read_groups", lambda result: None)
    import types

    config = types.SimpleNamespace(evaluation=types.SimpleNamespace(bleu="none"))
    results = [types.SimpleNamespace(label=label, plan=types.SimpleNamespace(config=config)) for label in "ab"]
    (a, b), metric, _ = rows(wanted, (0.8, 0.6))
    estimate = estimate_text_difference(a, b, metric, 50)
    finding = PublishedFinding("a is better", "a", "b", 1)
    for reason, verdict in (("", "agrees"), ("still learning", "cannot tell here (still learning)")):
        texts = compare_texts(results, {("a", "b"): Comparison("a", "b", estimate, estimate, reason)})
        assert list(texts) == ["BLEU, tok:none", "chrF"]
        found = texts["BLEU, tok:none"]["a", "b"]
        assert found.comparison.corrected.low < found.comparison.estimate.low or reason
        assert f"by BLEU, tok:none {verdict}; by chrF {verdict}" in explain_texts(texts, [finding], "Bold")
        ((head, row),) = format_texts(texts, "**{}**")
        assert row[0] == "a over b" and row[1].startswith("**+") != bool(reason) and len(head) == len(row) == 5
    by_label["b"] = [(t, np.roll(r, 1)) for t, r in made[1]]  # other references
    assert compare_texts(results, {("a", "b"): Comparison("a", "b", estimate, estimate)}) == {}


@pytest.mark.parametrize("test", ["bs", "ar"])
def test_compare_runs_prints_what_sacrebleu_does(wanted, tmp_path, capsys, test):
    rng = np.random.default_rng(2)
    files = {name: translate(rng, wanted, share) for name, share in (("a", 0.8), ("b", 0.75), ("c", 0.5))} | {"ref": wanted}
    for name, lines in files.items():
        (tmp_path / name).write_text("".join(line + "\n" for line in lines))
    paths = [str(tmp_path / name) for name in "abc"]
    command = [sys.executable, "-m", "sacrebleu", str(tmp_path / "ref"), "-i", *paths, "-m", "bleu", "--format=json"]
    # Of BLEU: their JSON cannot hold the other scores' numbers of type float32.
    theirs = subprocess.run([*command, f"--paired-{test}"], capture_output=True, text=True, check=True).stdout
    options = [f"--reference={tmp_path}/ref", "--metrics=bleu", *(["--paired-ar"] if test == "ar" else [])]
    assert cli.main(["compare-runs", *paths, *options, "--json"]) == 0
    ours = json.loads(capsys.readouterr().out)
    strip = [{name: value for name, value in row.items() if name != "system"} for row in ours]
    assert strip == [{k: v for k, v in row.items() if k != "system"} for row in json.loads(theirs)]
    if test == "bs":  # runs bring their references
        for name in "ab":
            (tmp_path / f"run_{name}").mkdir()
            arrays = {"translation": np.array(files[name]), "reference": np.array(wanted)}
            np.savez(tmp_path / f"run_{name}" / "evaluation.npz", step=3, **arrays)
        runs = [str(tmp_path / f"run_{name}") for name in "ab"]
        assert cli.main(["compare-runs", *runs, "--metrics=bleu"]) == 0
        out = capsys.readouterr().out
        assert f"{ours[1]['BLEU']['p_value']:.4f}" in out and f"{ours[0]['BLEU']['score']:.2f}" in out and "tok:13a" in out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["a"], "a alone: give two or more runs"),
        (["a", "b"], "there are no references: give --reference=FILE."),
        (["a", "b", "--reference=ref"], "b has 1 translations, and there are 2 references"),
        (["a", "none", "--reference=ref"], "none cannot be read (No such file or directory)."),
        (["a", ".", "--reference=ref"], "evaluation.npz has no translations: give a run"),
        (["a", "a", "--metrics=comet"], "--metrics=comet: give some of bleu, chrf, ter"),
    ],
)
def test_mistakes(monkeypatch, tmp_path, capsys, arguments, said):
    monkeypatch.chdir(tmp_path)
    for name, text in (("a", "x\ny\n"), ("b", "x\n"), ("ref", "x\ny\n")):
        (tmp_path / name).write_text(text)
    assert cli.main(["compare-runs", *arguments]) == 2
    err = capsys.readouterr().err
    assert said in err and err.count("\n") == 1
