"""Invariants of search: equal to brute force if that is possible, to greedy search with a beam of one, alone or in a batch."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attention_jax.search import NEVER, SearchOptions, _top, beam_search

VOCABULARY, LENGTH = 5, 4  # padding, start, end and two words


def language(seed: int, batch: int) -> np.ndarray:
    """[B, LENGTH, V, V, V] logits of the next token from sentence, place and the last two tokens."""
    return np.random.default_rng(seed).normal(0, 2, (batch, LENGTH, *[VOCABULARY] * 3)).astype(np.float32)


def step(token: jax.Array, cache: dict) -> tuple[jax.Array, dict]:
    rows = jnp.arange(len(token))
    logits = cache["table"][rows, cache["place"], cache["before"], token]
    return logits, {**cache, "place": cache["place"] + 1, "before": token}  # a history of its own for each hypothesis


def cache(tables: np.ndarray) -> dict:
    zeros = jnp.zeros(len(tables), jnp.int32)
    return {"table": jnp.asarray(tables), "place": zeros, "before": zeros}


@functools.partial(jax.jit, static_argnames="options")
def search(cache: dict, limits: jax.Array, prefix: jax.Array | None, options: SearchOptions) -> tuple[jax.Array, jax.Array]:
    return beam_search(step, cache, limits, LENGTH, options, prefix=prefix)


def run(tables: np.ndarray, limits: list[int], options: SearchOptions, prefix=None) -> tuple[np.ndarray, np.ndarray]:
    found = search(cache(tables), jnp.array(limits, jnp.int32), None if prefix is None else jnp.asarray(prefix), options)
    return tuple(map(np.asarray, found))


def log_probs(table: np.ndarray, options: SearchOptions) -> np.ndarray:
    """[LENGTH, V, V, V] as the search may use them: no padding, no start, no end before `min_length`."""
    table = np.asarray(table, np.float64)
    may_come = np.ones(table.shape, bool)
    if options.renormalise:
        may_come[..., [options.pad, options.bos]] = False
        may_come[: options.min_length, ..., options.eos] = False
    normal = table - np.log(np.sum(np.exp(table), -1, keepdims=True, where=may_come))
    normal[..., [options.pad, options.bos]] = -np.inf
    normal[: options.min_length, ..., options.eos] = -np.inf
    return normal


def brute_force(table: np.ndarray, limit: int, options: SearchOptions) -> list[tuple[float, tuple[int, ...]]]:
    """Every sentence there is, best first."""
    steps, found = log_probs(table, options), []
    for length in range(1, limit + 1):
        for words in itertools.product((3, 4), repeat=length - 1):
            for last in (options.eos, *((3, 4) if length == limit else ())):
                tokens = (*words, last)
                history = (0, options.bos, *tokens)
                total = sum(steps[i, *history[i : i + 3]] for i in range(length))
                if np.isfinite(total):
                    penalty = ((5 + length) / 6) if options.penalty == "gnmt" else length
                    found.append((total / penalty**options.alpha, tokens))
    return sorted(found, reverse=True)


def greedy(table: np.ndarray, limit: int, options: SearchOptions) -> tuple[int, ...]:
    steps, tokens = log_probs(table, options), [0, options.bos]
    while len(tokens) < limit + 2 and tokens[-1] != options.eos:
        tokens.append(int(steps[len(tokens) - 2, tokens[-2], tokens[-1]].argmax()))
    return tuple(tokens[2:])


def words(tokens: np.ndarray, pad: int = 0) -> tuple[int, ...]:
    return tuple(int(token) for token in tokens if token != pad)


@pytest.mark.slow
@pytest.mark.parametrize("penalty", ["gnmt", "length"])
@pytest.mark.parametrize(("alpha", "min_length", "expand"), [(0.0, 0, 2), (0.6, 0, 2), (1.0, 2, 2), (0.6, 1, 1), (2.0, 0, 1)])
def test_a_wide_beam_is_brute_force(penalty: str, alpha: float, min_length: int, expand: int) -> None:
    """With a beam as wide as the language the n best are the n best of all sentences."""
    options = SearchOptions(beam=32, n_best=6, alpha=alpha, penalty=penalty, min_length=min_length, expand=expand)
    tables, limits = language(1, 6), [4, 3, 4, 2, 4, 3]
    tokens, scores = run(tables, limits, options)
    for i, limit in enumerate(limits):
        expected = brute_force(tables[i], limit, options)[:6]
        assert [words(row) for row in tokens[i]][: len(expected)] == [sentence for _, sentence in expected]
        np.testing.assert_allclose(scores[i][: len(expected)], [score for score, _ in expected], rtol=1e-5)
        assert (scores[i][len(expected) :] == NEVER).all()


@pytest.mark.parametrize("alpha", [0.0, 0.6, 2.0])
@pytest.mark.parametrize("expand", [1, 2])
def test_a_beam_of_one_is_greedy(alpha: float, expand: int) -> None:
    tables, limits = language(2, 40), [4, 3, 2, 4] * 10
    options = SearchOptions(beam=1, alpha=alpha, expand=expand)
    tokens, _ = run(tables, limits, options)
    assert [words(row[0]) for row in tokens] == [greedy(*args, options) for args in zip(tables, limits, strict=True)]


@pytest.mark.parametrize("beam", [1, 32])
def test_prefixes_are_forced_and_counted(beam: int) -> None:
    """The best sentences are those of brute force, or of greedy search, that begin with the prefix; none forces nothing."""
    tables, options = language(7, 12), SearchOptions(beam=beam)
    prefix = np.array([[3, 0, 0], [4, 3, 0], [0, 0, 0]] * 4)
    free, _ = run(tables, [4] * 12, options, 0 * prefix)
    prefix[6:] = np.where(free[6:, 0, :3] == options.eos, 0, free[6:, 0, :3])
    tokens, scores = run(tables, [4] * 12, options, prefix)
    np.testing.assert_array_equal(tokens[6:], free[6:])  # their own beginnings change nothing
    for i, row in enumerate(prefix):
        begin, forced = words(row), np.array(tables[i])
        for place, token in enumerate(begin):
            forced[place, ..., [other for other in range(VOCABULARY) if other != token]] = -np.inf
        every = [sentence for sentence in brute_force(tables[i], 4, options) if sentence[1][: len(begin)] == begin]
        best = next(sentence for sentence in every if beam > 1 or sentence[1] == greedy(forced, 4, options))
        assert words(tokens[i][0]) == best[1]
        np.testing.assert_allclose(scores[i][0], best[0], rtol=1e-5)
    assert any(words(tokens[i][0]) != words(free[i][0]) for i in (0, 1, 3, 4))


def test_a_sentence_does_not_depend_on_its_batch() -> None:
    tables, limits = language(3, 12), [4, 3, 4, 2, 4, 3] * 2
    options = SearchOptions(beam=2, n_best=2)
    tokens, scores = run(tables, limits, options)
    for i in range(12):
        alone, score = run(tables[i : i + 1], limits[i : i + 1], options)
        np.testing.assert_array_equal(alone[0], tokens[i])
        np.testing.assert_array_equal(score[0], scores[i])


def test_the_largest_of_many_are_those_of_a_sort() -> None:
    """Equal values in the order of their places, and no group is the last one cut."""
    rng = np.random.default_rng(0)
    for size in (1001, 4096, 5000):
        rows = (rng.integers(0, 6, (40, size)) * (rng.random((40, size)) < 0.01)).astype(np.float32)
        for count in (1, 3, 8):
            found, expected = _top(jnp.asarray(rows), count), jax.lax.top_k(rows, count)
            for ours, plain in zip(found, expected, strict=True):
                np.testing.assert_array_equal(ours, plain)


def test_early_stop_changes_nothing() -> None:
    """Stopping is allowed only when the n best are settled: longer limits give what a search to the end gives."""
    tables = language(4, 60)
    for expand in (1, 2):
        options = SearchOptions(beam=3, n_best=2, alpha=1.5, expand=expand)
        tokens, scores = run(tables, [LENGTH] * 60, options)
        assert scores.shape == (60, 2) and (scores[:, 0] >= scores[:, 1]).all()
        to_the_end, _ = _without_stopping(tables, options)
        np.testing.assert_array_equal(tokens, to_the_end)


def _without_stopping(tables: np.ndarray, options: SearchOptions) -> tuple[np.ndarray, np.ndarray]:
    """The same search written plainly in numpy; `stop="settled"` goes on to the limit."""
    found, kept = [], []
    for table in tables:
        steps = log_probs(table, options)
        open_, ended = [(0.0, (0, options.bos))], []
        for t in range(LENGTH):
            grown = [(total + _next(steps, t, seq, options)[w], (*seq, w)) for total, seq in open_ for w in range(VOCABULARY)]
            grown = sorted((g for g in grown if np.isfinite(g[0])), key=lambda g: -g[0])[: options.beam * options.expand]
            done = [g for g in grown if g[1][-1] == options.eos or t + 1 == LENGTH]
            counted = [g for g in done if options.late_ends or g in grown[: options.beam]]
            ended += [(float(options.score(total, t + 1)), seq) for total, seq in counted]
            ended = sorted(ended, key=lambda g: -g[0])[: options.beam]
            open_ = [g for g in grown if g not in done][: options.beam]
            full = len(ended) == options.beam
            if full and options.stop == "full":
                break
            if full and options.stop == "guess" and open_ and options.score(open_[0][0], t + 1) <= ended[-1][0]:
                break
        rows = [[*seq[2:], *[0] * (LENGTH - len(seq) + 2)] for _, seq in ended[: options.n_best]]
        found.append(rows)
        kept.append([score for score, _ in ended[: options.n_best]])
    return np.array(found), np.array(kept)


def _next(steps: np.ndarray, t: int, seq: tuple[int, ...], options: SearchOptions) -> np.ndarray:
    """[V] log probabilities of what may come after a hypothesis."""
    if options.force_end and t + 1 == LENGTH:
        return np.where(np.arange(VOCABULARY) == options.eos, 0.0, -np.inf)
    return steps[t, seq[-2], seq[-1]]


@pytest.mark.slow
@pytest.mark.parametrize(
    "fields",
    [
        dict(late_ends=False),
        dict(late_ends=False, stop="guess", penalty="length", alpha=1.0),
        dict(stop="full"),
        dict(late_ends=False, stop="guess", penalty="length", alpha=1.0, force_end=True, renormalise=True),
    ],
)
def test_other_libraries_rules(fields: dict) -> None:
    """What ends, when to stop, a forced end and the softmax of what may come: as written plainly, and not as by default."""
    options, tables = SearchOptions(beam=2, n_best=2, **fields), language(6, 60)
    tokens, scores = run(tables, [LENGTH] * 60, options)
    expected, values = _without_stopping(tables, options)
    np.testing.assert_array_equal(tokens, expected)
    np.testing.assert_allclose(scores, values, rtol=1e-5)
    usual = SearchOptions(beam=2, n_best=2, **{name: fields[name] for name in ("penalty", "alpha") if name in fields})
    assert (_without_stopping(tables, usual)[0] != tokens).any()
    if options.force_end:
        assert ((tokens == options.eos).sum(-1) == 1).all()


@pytest.mark.parametrize(
    "fields", [dict(penalty="wu"), dict(n_best=5), dict(n_best=0), dict(alpha=-1.0), dict(expand=3), dict(stop="now")]
)
def test_mistakes(fields: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(fields))):
        SearchOptions(**fields)
