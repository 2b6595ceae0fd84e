"""Scores of given translations: equal to those of the search that found them; the command, and lists that it reranks."""

import dataclasses
import io
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import attention_jax as aj
from attention_jax.cli import main as cli
from attention_jax.errors import UserError
from attention_jax.tasks.translator import Translator
from tests.helpers.small import ROOT
from tests.helpers.small_text import small_config, untrained_run, write_pairs

pytestmark = pytest.mark.usefixtures("quickly")

LINES = ["a b c", "", "zebra", "d"]  # of one bucket, so that each search is compiled once


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    folder = write_pairs(tmp_path_factory.mktemp("pairs"))
    return untrained_run(small_config(folder), tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def run(workdir):
    return aj.load_run(workdir)


@pytest.fixture
def call(workdir, monkeypatch, capfdbinary):
    """`call("score", "--alpha=0", given=b"lines")` -> (exit code, standard output, standard error)"""

    def call(command: str, *options: object, path: object = workdir) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b""), "ascii"))
        code = cli.main([command, f"--workdir={path}", *map(str, options)])
        out, err = capfdbinary.readouterr()
        return code, out.decode(), err.decode()

    return call


RULES = [
    dict(),
    dict(penalty="length", alpha=1.0, renormalise=True, min_length=2, expand=1, max_extra=1),  # many reach their limit
    dict(force_end=True, max_extra=1, stop="full", late_ends=False),
]


@pytest.mark.parametrize("rules", RULES, ids=lambda rules: ",".join(rules) or "default")
def test_what_a_search_found_has_the_score_that_it_found(run, rules):
    """To 1e-5, each of the n best, by the rules of its search."""
    found = run.predict(LINES, beam=3, n_best=3, **rules)
    rows = [(each.source, ids, score) for each in found for ids, score in zip(each.ids, each.scores, strict=True)]
    sources, targets, expected = zip(*rows)
    scored = run.score(sources, targets, **rules)
    np.testing.assert_allclose([each.score for each in scored], expected, atol=1e-5, rtol=1e-5)
    assert [each.tokens for each in scored] == [tokens for each in found for tokens in each.tokens]


def test_a_token_does_not_depend_on_those_after_it(run):
    short, long = run.score(["a b"] * 2, ["A B", "A B C D"], alpha=0)
    assert short.tokens == ["A", "B", "</s>"] and len(long.log_probs) == 5
    np.testing.assert_allclose(short.log_probs[:2], long.log_probs[:2], atol=1e-5)
    assert short.log_prob == pytest.approx(sum(short.log_probs)) == pytest.approx(short.score, abs=1e-5)
    assert max(short.log_probs + long.log_probs) < 0
    (alone,) = run.score("a b", "A B", alpha=0)  # nor on its batch
    np.testing.assert_allclose(alone.log_probs, short.log_probs, atol=1e-5)


@pytest.mark.parametrize("name", ["lstm_seq2seq", "sees all"])
def test_other_networks(run, name):
    if name == "sees all":  # a target in training, which neither a search nor a score does
        model = dataclasses.replace(run.model, causal=False)
        variables = run.variables
    else:
        model = aj.create_model(name, vocab_size=run.config.model.vocab_size, features=8, layers=1)
        variables = jax.tree.map(lambda x: 5 * x, model.init(jax.random.key(0), *[jnp.ones((1, 3), int)] * 2))
    translator = Translator(run.config, run.predictor.tokenizers, model, variables)
    found = translator.predict(["a b c", "d"], beam=2)
    scores = [each.score for each in translator.score(["a b c", "d"], [each.target_ids for each in found], beam=2)]
    np.testing.assert_allclose(scores, [each.scores[0] for each in found], atol=1e-5, rtol=1e-5)


def test_the_command_writes_what_the_function_returns(call, run, tmp_path):
    targets = ["A B C", "", "A zebra", "D D"]
    for name, lines in (("in", LINES), ("out", targets)):
        (tmp_path / name).write_text("".join(line + "\n" for line in lines))
    options = (f"--source={tmp_path}/in", f"--target={tmp_path}/out")
    code, out, err = call("score", *options, "--per-token", "--config.search.alpha=0.9")
    expected = run.score(LINES, targets, alpha=0.9)
    cells = [line.split("\t") for line in out.splitlines()]
    assert (code, err) == (0, "") and [row[2] for row in cells] == [" ".join(each.tokens) for each in expected]
    np.testing.assert_allclose([float(row[0]) for row in cells], [each.score for each in expected], atol=1e-6)
    np.testing.assert_allclose([float(row[1]) for row in cells], [each.log_prob for each in expected], atol=1e-6)
    for row, each in zip(cells, expected):
        np.testing.assert_allclose([float(value) for value in row[3].split()], each.log_probs, atol=1e-6)
    code, out, _ = call("score", *options, "--alpha=0", f"--output={tmp_path}/scores")
    assert (code, out) == (0, "")
    rows = [line.split("\t") for line in (tmp_path / "scores").read_text().splitlines()]
    assert len(rows) == 4
    np.testing.assert_allclose([float(a) for a, _ in rows], [float(b) for _, b in rows], atol=2e-6)


def test_a_list_keeps_its_order_by_the_scores_that_made_it_and_turns_by_others(call, tmp_path):
    (tmp_path / "in").write_text("".join(line + "\n" for line in LINES))
    _, listed, _ = call("translate", f"--input={tmp_path}/in", "--nbest=3")
    (tmp_path / "list").write_text(listed)
    options = (f"--source={tmp_path}/in", f"--nbest={tmp_path}/list")
    code, same, err = call("score", *options)
    assert (code, err) == (0, "")
    # Texts are scored with their end symbol, also where the search was cut at its limit.
    kept = [(a.split("\t"), b.split("\t")) for a, b in zip(listed.splitlines(), same.splitlines(), strict=True)]
    assert [a[0] for a, _ in kept] == [b[0] for _, b in kept]
    first = [(a, b) for a, b in kept if a[0] in ("1", "4")]
    _, weighed, _ = call("score", *options, "--weight=0")
    assert [line.split("\t")[::2] for line in weighed.splitlines()] == [line.split("\t")[::2] for line in listed.splitlines()]
    assert first and same != weighed
    lines = [line.split("\t") for line in listed.splitlines()]
    (tmp_path / "list").write_text("".join(f"{a}\t{-float(b)}\t{c}\n" for a, b, c in lines))
    _, turned, _ = call("score", *options, "--weight=0")
    assert [line.split("\t")[2] for line in turned.splitlines()[:3]] == [c for a, _, c in lines if a == "1"][::-1]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--target=short"], "in has a line 2 and short has not: give a target for each source."),
        (["--target=in", "--nbest=in"], "score: give --target=FILE, or --nbest=FILE to rerank"),
        (["--target=in", "--weight=0.5"], "--weight=0.5 is for --nbest"),
        (["--nbest=in"], "in:1 is 'a b c': give line number<TAB>score<TAB>text"),
        (["--nbest=list"], "list has candidates for line 9, which in has not, or not in this order."),
        (["--target=none"], "--target=none cannot be read (No such file or directory)."),
        (["--target=in", "--config.data.threads=3"], "--config.data.threads: score reads the fields search., evaluation.batch"),
        (["--target=in", "--config.search.expand=3"], "config.search.expand=3 is not right: give 1 or 2."),
    ],
)
def test_mistakes(call, monkeypatch, tmp_path, options, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in").write_text("a b c\nd\n")
    (tmp_path / "short").write_text("A\n")
    (tmp_path / "list").write_text("9\t0.5\tA B\n")
    code, _, err = call("score", "--source=in", *options)
    assert code == 2 and said in err and err.startswith("error: ") and err.count("\n") == 1


def test_a_run_of_another_task(call, run):
    code, _, err = call("score", "--source=in", "--target=in", path=ROOT / "tests" / "fixtures" / "tiny_run")
    assert code == 2
    with pytest.raises(UserError, match="score takes a run of the task 'translation'"):
        aj.load_run(ROOT / "tests" / "fixtures" / "tiny_run").score(["a"], ["b"])
    with pytest.raises(UserError, match="1 sources and 2 targets"):
        run.score(["a"], ["b", "c"])
