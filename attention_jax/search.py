"""Greedy and beam search over any function (token, cache) -> (logits, cache).

Everything has fixed shapes and runs inside one compiled loop. The result of a sentence does not depend on the others of its
batch: each sentence has its own limit, and keeps its result once it is done while the others go on.

Letters in comments: B sentences, K hypotheses of each, C candidates, L tokens, V words.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable
from typing import Any, TypedDict

import jax
import jax.numpy as jnp

Cache = dict[str, Any]
Step = Callable[[jax.Array, Cache], tuple[jax.Array, Cache]]
Grow = Callable[[Cache, int], Cache]
NEVER = -1e30
_GROUP = 64
_FIRST_CACHE_LENGTH = 16


@dataclasses.dataclass(frozen=True)
class SearchOptions:
    """The rules of a search.

    Attributes:
        beam: hypotheses kept open; 1 is greedy search.
        n_best: hypotheses returned, at most `beam`.
        alpha: exponent of the length penalty.
        penalty: "gnmt" divides the log probability by ((5 + length) / 6)^alpha (Wu et al. 2016; alpha 0.6 in the
            Transformer paper), "length" by length^alpha (alpha 1 is the mean log probability of a token). Length counts the
            end symbol and not the start symbol.
        expand: a beam of K considers expand·K candidates. 2 is tensor2tensor's rule: K hypotheses stay open however many
            have ended. 1 is Sutskever et al.'s (2014): a hypothesis that ends leaves the beam.
        late_ends: True counts an end symbol at any rank among the 2K candidates (tensor2tensor); False only among the K best,
            as in fairseq and Hugging Face's library.
        stop: a sentence is done "settled", when no open hypothesis can enter the n best any more; "guess", when none would
            enter the K best if it ended now with its log probability, though a longer length may do better (Hugging Face's
            early_stopping=False); "full", as soon as K have ended (early_stopping=True).
        force_end: True makes the end symbol the last token that a limit allows, at no cost (Hugging Face's
            forced_eos_token_id).
        renormalise: True masks forbidden tokens before the softmax instead of after it.
        min_length: the end symbol is forbidden until this many tokens are written.
        bos, eos, pad: start, end and padding tokens; the first and the last are never written.
    """

    beam: int = 4
    n_best: int = 1
    alpha: float = 0.6
    penalty: str = "gnmt"
    expand: int = 2
    late_ends: bool = True
    stop: str = "settled"
    force_end: bool = False
    renormalise: bool = False
    min_length: int = 0
    bos: int = 1
    eos: int = 2
    pad: int = 0

    def __post_init__(self) -> None:
        if self.penalty not in ("gnmt", "length"):
            raise ValueError(f"penalty={self.penalty!r} is not one of 'gnmt', 'length'")
        if self.stop not in ("settled", "guess", "full"):
            raise ValueError(f"stop={self.stop!r} is not one of 'settled', 'guess', 'full'")
        if not 1 <= self.n_best <= self.beam:
            raise ValueError(f"n_best={self.n_best} is not from 1 to beam={self.beam}")
        if self.alpha < 0 or self.expand not in (1, 2):
            raise ValueError(f"alpha={self.alpha} must be 0 or more, expand={self.expand} 1 or 2")

    def score(self, log_prob: jax.Array, length: jax.Array) -> jax.Array:
        """Returns the log probability after the length penalty."""
        length = jnp.asarray(length, jnp.float32)
        return log_prob / (((5 + length) / 6) if self.penalty == "gnmt" else jnp.maximum(length, 1)) ** self.alpha


class _State(TypedDict):
    t: jax.Array  # tokens written so far
    token: jax.Array  # [B · K] the newest of each open hypothesis
    open: jax.Array  # [B, K] log probabilities
    open_tokens: jax.Array  # [B, K, L]
    ended: jax.Array  # [B, K] scores, best first
    ended_tokens: jax.Array  # [B, K, L]
    cache: Cache


def beam_search(
    step: Step,
    cache: Cache,
    limits: jax.Array,
    max_length: int,
    options: SearchOptions,
    grow: Grow | None = None,
    prefix: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Returns tokens [B, n_best, max_length], best first and padded after the end symbol, and scores [B, n_best].

    A hypothesis that reaches its sentence's limit without an end symbol counts as it is. If fewer than n_best
    hypotheses exist, the others are padding with score -1e30.

    Args:
        step: `(token [N], cache) -> (logits [N, vocabulary], cache)`, N = B · beam with the hypotheses of a sentence together.
        cache: the cache before the first token; every leaf has the B sentences along its first axis. `step` gets N rows,
            and each row follows its hypothesis. Leaves under "shared" are neither repeated nor moved.
        limits: [B] maximum length of each sentence including EOS, at most `max_length`.
        grow: `(cache, length) -> cache` makes room for `length` tokens; `cache` then starts with room for
            `cache_lengths(max_length)[0]`. The cost of a token grows with the room, and few sentences reach their limit.
        prefix: [B, P] tokens with which each sentence begins, padded, fewer than its limit; their log probabilities count.
    """

    advance = functools.partial(_write_token, step=step, limits=limits, options=options, prefix=prefix)
    state = _first_state(cache, limits.shape[0], max_length, options)
    lengths = cache_lengths(max_length) if grow else (max_length,)
    # One loop after the other and none inside a branch, where the caches of all lengths would be in memory at once.
    for i, length in enumerate(lengths):
        if i and grow:
            state = state | {"cache": grow(state["cache"], length)}

        def is_open(state: _State, length: int = length) -> jax.Array:
            return (state["t"] < length) & (state["open"] > NEVER / 2).any()

        state = jax.lax.while_loop(is_open, advance, state)
    tokens, scores = state["ended_tokens"], state["ended"]
    return tokens[:, : options.n_best], scores[:, : options.n_best]


def _first_state(cache: Cache, batch: int, max_length: int, options: SearchOptions) -> _State:
    """Returns the first state: one open hypothesis per sentence, since equal ones would fill the beam with copies."""
    beam = options.beam
    return {
        "t": jnp.zeros((), jnp.int32),
        "token": jnp.full((batch * beam,), options.bos, jnp.int32),
        "open": jnp.full((batch, beam), NEVER).at[:, 0].set(0.0),
        "open_tokens": jnp.full((batch, beam, max_length), options.pad, jnp.int32),
        "ended": jnp.full((batch, beam), NEVER),
        "ended_tokens": jnp.full((batch, beam, max_length), options.pad, jnp.int32),
        "cache": _map_rows(lambda x: jnp.repeat(x, beam, axis=0), cache),
    }


def _write_token(state: _State, step: Step, limits: jax.Array, options: SearchOptions, prefix: jax.Array | None) -> _State:
    """Expands every open hypothesis by one token, moves those that end and keeps the best of the others open."""
    t, (batch, beam) = state["t"], state["open"].shape
    logits, cache = step(state["token"], state["cache"])
    log_probs_BKV = _log_probs(logits, t, limits, options)
    if prefix is not None:
        forced_B = jnp.where(t < prefix.shape[1], prefix[:, jnp.minimum(t, prefix.shape[1] - 1)], options.pad)
        may_come_BV = (forced_B == options.pad)[:, None] | (forced_B[:, None] == jnp.arange(logits.shape[-1]))
        log_probs_BKV = jnp.where(may_come_BV[:, None], log_probs_BKV, NEVER)
    total = jnp.maximum(state["open"][:, :, None] + log_probs_BKV, NEVER).reshape(batch, -1)
    best_BC, places = _top(total, beam * (options.expand if beam > 1 else 1))  # a beam of one is greedy search
    parents_BC, tokens_BC = places // logits.shape[-1], places % logits.shape[-1]
    grown_BCL = jnp.take_along_axis(state["open_tokens"], parents_BC[:, :, None], 1).at[:, :, t].set(tokens_BC)

    ends_BC = (best_BC > NEVER / 2) & ((tokens_BC == options.eos) | (t + 1 >= limits[:, None]))
    counts = ends_BC if options.late_ends else ends_BC & (jnp.arange(ends_BC.shape[1]) < beam)
    scores = jnp.where(counts, options.score(best_BC, t + 1), NEVER)
    scores, tokens = jnp.concatenate([state["ended"], scores], 1), jnp.concatenate([state["ended_tokens"], grown_BCL], 1)
    ended, places = jax.lax.top_k(scores, beam)
    ended_tokens = jnp.take_along_axis(tokens, places[:, :, None], 1)

    open_BK, kept = _top(jnp.where(ends_BC, NEVER, best_BC), beam)
    improves = _may_improve(open_BK, ended, t, limits, options)
    open_BK = jnp.where(((open_BK[:, 0] > NEVER / 2) & improves)[:, None], open_BK, NEVER)
    parents_BK = jnp.take_along_axis(parents_BC, kept, 1)
    rows = (jnp.arange(batch)[:, None] * beam + parents_BK).reshape(-1)
    return {
        "t": t + 1,
        "token": jnp.take_along_axis(tokens_BC, kept, 1).reshape(-1),
        "open": open_BK,
        "open_tokens": jnp.take_along_axis(grown_BCL, kept[:, :, None], 1),
        "ended": ended,
        "ended_tokens": ended_tokens,
        "cache": _map_rows(lambda x: x[rows], cache),
    }


def score_tokens(
    logits: jax.Array, tokens: jax.Array, limits: jax.Array, options: SearchOptions
) -> tuple[jax.Array, jax.Array]:
    """Returns log probabilities [B, T] of given tokens, 0 at padding, and scores [B], as `beam_search` computes them.

    An end symbol before `min_length`, which a search would not write, counts like any other token.

    Args:
        logits: [B, T, V] of each token, after those before it.
        tokens: [B, T], padded after the end symbol.
        limits: [B] as of the search.
    """
    logits, t, words = logits.astype(jnp.float32), jnp.arange(tokens.shape[1]), jnp.arange(logits.shape[-1])
    if options.renormalise:
        logits = jnp.where(_forbidden(t[:, None], words, options) & (words != tokens[..., None]), NEVER, logits)
    largest = logits.max(-1, keepdims=True)
    chosen = jnp.take_along_axis(logits, tokens[..., None], -1)
    log_probs = (chosen - largest)[..., 0] - jnp.log(jnp.exp(logits - largest).sum(-1))
    if options.force_end:
        log_probs = jnp.where((tokens == options.eos) & (t + 1 >= limits[:, None]), 0.0, log_probs)
    log_probs = jnp.where(tokens == options.pad, 0.0, log_probs)
    return log_probs, options.score(log_probs.sum(1), (tokens != options.pad).sum(1))


def _forbidden(t: jax.Array, words: jax.Array, options: SearchOptions) -> jax.Array:
    """[V], or [T, V] for t [T, 1]: True for words that may not be token number `t`."""
    return (words == options.pad) | (words == options.bos) | ((words == options.eos) & (t < options.min_length))


def _log_probs(logits: jax.Array, t: jax.Array, limits: jax.Array, options: SearchOptions) -> jax.Array:
    """[B · K, V] logits of token number `t` -> [B, K, V] log probabilities, -1e30 for forbidden tokens."""
    vocabulary = logits.shape[-1]
    forbidden = _forbidden(t, jnp.arange(vocabulary), options)
    logits = logits.astype(jnp.float32)
    allowed = jnp.where(forbidden, NEVER, logits)
    competing = allowed if options.renormalise else logits
    largest = competing.max(-1, keepdims=True)
    log_probs = allowed - largest - jnp.log(jnp.exp(competing - largest).sum(-1, keepdims=True))
    log_probs = jnp.maximum(log_probs, NEVER).reshape(len(limits), options.beam, vocabulary)
    if options.force_end:
        end = jnp.where(jnp.arange(vocabulary) == options.eos, 0.0, NEVER)
        log_probs = jnp.where((t + 1 >= limits)[:, None, None], end, log_probs)
    return log_probs


def _may_improve(open_BK: jax.Array, ended_BK: jax.Array, t: jax.Array, limits: jax.Array, options: SearchOptions) -> jax.Array:
    """[B] True if the rule `options.stop` lets a sentence go on, given its open log probabilities and ended scores."""
    if options.stop == "settled":
        # An open hypothesis does best if it loses no more nats and reaches the greatest length.
        return (options.score(open_BK, limits[:, None]) > ended_BK[:, options.n_best - 1 : options.n_best]).any(1)
    if options.stop == "guess":
        return options.score(open_BK[:, 0], t + 1) > ended_BK[:, -1]
    return ended_BK[:, -1] <= NEVER / 2


def cache_lengths(max_length: int) -> tuple[int, ...]:
    """Returns the lengths of a cache that grows: 16, then doubled each time; the last is `max_length`."""
    doubled = (_FIRST_CACHE_LENGTH << i for i in itertools.count())
    return (*itertools.takewhile(lambda length: length < max_length, doubled), max_length)


def _map_rows(change: Callable[[jax.Array], jax.Array], cache: Cache) -> Cache:
    """Applies `change` to every leaf of the cache that is not under "shared"."""
    return {name: part if name == "shared" else jax.tree.map(change, part) for name, part in cache.items()}


def _top(values: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
    """Returns the largest values of each row with their positions, filled up if a row has fewer than `count`."""
    rows, size = values.shape
    have = min(count, size)
    if size >= 4 * _GROUP * have:
        # The largest values lie in the groups with the largest maxima, equal ones in the earlier groups: few values are sorted.
        grouped = jnp.pad(values, ((0, 0), (0, -size % _GROUP)), constant_values=-jnp.inf).reshape(rows, -1, _GROUP)
        groups = jnp.sort(jax.lax.top_k(grouped.max(-1), have)[1])
        best, places = jax.lax.top_k(jnp.take_along_axis(grouped, groups[:, :, None], 1).reshape(rows, -1), have)
        places = jnp.take_along_axis(groups, places // _GROUP, 1) * _GROUP + places % _GROUP
    else:
        best, places = jax.lax.top_k(values, have)
    extra = ((0, 0), (0, count - have))
    return jnp.pad(best, extra, constant_values=NEVER), jnp.pad(places, extra)
