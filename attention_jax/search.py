"""Greedy and beam search over any function (token, cache) -> (logits, cache).

Everything has fixed shapes and runs inside one compiled loop. A sentence's result does not depend on the others of its
batch: each has its own limit, is done on its own, and then keeps what it has while the others go on.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

Cache = dict[str, Any]
Step = Callable[[jax.Array, Cache], tuple[jax.Array, Cache]]
Grow = Callable[[Cache, int], Cache]
NEVER = -1e30
_FIRST_CACHE_LENGTH = 16
_GROUP = 64


@dataclasses.dataclass(frozen=True)
class SearchOptions:
    """How to search.

    Attributes:
        beam: hypotheses kept open; 1 is greedy search.
        n_best: hypotheses returned, at most `beam`.
        alpha: of the length penalty.
        penalty: "gnmt" divides the log probability by ((5 + length) / 6)^alpha (Wu et al. 2016; alpha 0.6 in the
            Transformer paper), "length" by length^alpha (alpha 1 is the mean log probability of a token). Length counts the
            end symbol and not the start symbol.
        expand: candidates looked at for a beam of K are expand·K. 2 is tensor2tensor's rule: K hypotheses stay open whatever
            has ended. 1 is Sutskever et al.'s (2014): a hypothesis that ends leaves the beam.
        late_ends: of the 2K candidates, an end symbol counts wherever it stands (tensor2tensor); without it only among the K
            best, as in fairseq and Hugging Face's library.
        stop: a sentence is done "settled", when no open hypothesis can enter the n best any more; "guess", when none would
            enter the K best if it ended now with what it has, which a longer length may disprove (Hugging Face's
            early_stopping=False); "full", as soon as K have ended (early_stopping=True).
        force_end: the last token that a limit allows is the end symbol, at no cost (Hugging Face's forced_eos_token_id).
        renormalise: tokens that may not come are taken out before the softmax and not after it.
        min_length: tokens before the end symbol may come.
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
        """The log probability after the length penalty."""
        length = jnp.asarray(length, jnp.float32)
        return log_prob / (((5 + length) / 6) if self.penalty == "gnmt" else jnp.maximum(length, 1)) ** self.alpha


def beam_search(
    step: Step,
    cache: Cache,
    limits: jax.Array,
    max_length: int,
    options: SearchOptions,
    grow: Grow | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Tokens [B, n_best, max_length], best first and padded after the end symbol, and scores [B, n_best].

    A hypothesis that reaches its sentence's limit without an end symbol counts as it stands. Where fewer than n_best
    hypotheses exist the others are padding with score -1e30. Stops when no open hypothesis can enter the n best any more.

    Args:
        step: `(token [N], cache) -> (logits [N, vocabulary], cache)`, N = B · beam with the hypotheses of a sentence together.
        cache: before the first token, every leaf with the B sentences along its first axis; a step sees N rows, each of
            which follows its hypothesis. What stands under "shared" is neither repeated nor moved: it is for what the
            hypotheses of a sentence have in common, and for what a step knows how to find there.
        limits: [B] most tokens of each sentence, end symbol included, at most `max_length`.
        max_length: static length of the result.
        grow: `(cache, length) -> cache` makes room for `length` tokens; `cache` then starts with room for
            `cache_lengths(max_length)[0]`. The cost of a token grows with the room, and few sentences reach their limit.
    """
    beam, eos = options.beam, options.eos
    batch = limits.shape[0]
    candidates = beam * (options.expand if beam > 1 else 1)  # a beam of one is greedy search
    cache = _each_own(lambda x: jnp.repeat(x, beam, axis=0), cache)
    # One open hypothesis a sentence at first, since equal ones would fill the beam with copies.
    first = {
        "t": jnp.zeros((), jnp.int32),
        "token": jnp.full((batch * beam,), options.bos, jnp.int32),
        "open": jnp.full((batch, beam), NEVER).at[:, 0].set(0.0),
        "open_tokens": jnp.full((batch, beam, max_length), options.pad, jnp.int32),
        "ended": jnp.full((batch, beam), NEVER),
        "ended_tokens": jnp.full((batch, beam, max_length), options.pad, jnp.int32),
        "cache": cache,
    }

    def goes_on(state: dict[str, Any], room: int) -> jax.Array:
        return (state["t"] < room) & (state["open"] > NEVER / 2).any()

    def advance(state: dict[str, Any]) -> dict[str, Any]:
        t = state["t"]
        logits, cache = step(state["token"], state["cache"])
        vocabulary = logits.shape[-1]
        forbidden = jnp.zeros(vocabulary, bool).at[jnp.array([options.pad, options.bos])].set(True)
        forbidden = forbidden.at[eos].set(t < options.min_length)
        logits = logits.astype(jnp.float32)
        allowed = jnp.where(forbidden, NEVER, logits)
        competing = allowed if options.renormalise else logits
        largest = competing.max(-1, keepdims=True)
        log_probs = allowed - largest - jnp.log(jnp.exp(competing - largest).sum(-1, keepdims=True))
        log_probs = jnp.maximum(log_probs, NEVER).reshape(batch, beam, vocabulary)
        if options.force_end:
            end = jnp.where(jnp.arange(vocabulary) == eos, 0.0, NEVER)
            log_probs = jnp.where((t + 1 >= limits)[:, None, None], end, log_probs)
        total = jnp.maximum(state["open"][:, :, None] + log_probs, NEVER).reshape(batch, -1)
        best, places = _top(total, candidates)
        parents, tokens = places // vocabulary, places % vocabulary

        grown = jnp.take_along_axis(state["open_tokens"], parents[:, :, None], 1).at[:, :, t].set(tokens)
        alive = best > NEVER / 2
        ends = alive & ((tokens == eos) | (t + 1 >= limits[:, None]))
        counts = ends if options.late_ends else ends & (jnp.arange(candidates) < beam)
        scores = jnp.where(counts, options.score(best, t + 1), NEVER)
        ended, ended_tokens = _best_of(
            beam,
            jnp.concatenate([state["ended"], scores], 1),
            jnp.concatenate([state["ended_tokens"], grown], 1),
        )

        still, kept = _top(jnp.where(ends, NEVER, best), beam)
        if options.stop == "settled":
            # The most an open hypothesis can come to: not one more nat lost, and the longest length there is.
            goes = (options.score(still, limits[:, None]) > ended[:, options.n_best - 1 : options.n_best]).any(1)
        elif options.stop == "guess":
            goes = options.score(still[:, 0], t + 1) > ended[:, -1]
        else:
            goes = ended[:, -1] <= NEVER / 2
        still = jnp.where(((still[:, 0] > NEVER / 2) & goes)[:, None], still, NEVER)

        parents = jnp.take_along_axis(parents, kept, 1)
        rows = (jnp.arange(batch)[:, None] * beam + parents).reshape(-1)
        return {
            "t": t + 1,
            "token": jnp.take_along_axis(tokens, kept, 1).reshape(-1),
            "open": still,
            "open_tokens": jnp.take_along_axis(grown, kept[:, :, None], 1),
            "ended": ended,
            "ended_tokens": ended_tokens,
            "cache": _each_own(lambda x: x[rows], cache),
        }

    def rest(state: dict[str, Any], lengths: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
        """What has ended when a search has, whose cache has room for the first of `lengths` and will have for the others."""
        state = jax.lax.while_loop(lambda state: goes_on(state, lengths[0]), advance, state)
        if len(lengths) == 1:
            return state["ended_tokens"], state["ended"]

        def grown(state: dict[str, Any]) -> tuple[jax.Array, jax.Array]:
            return rest({**state, "cache": grow(state["cache"], lengths[1])}, lengths[1:])

        return jax.lax.cond(goes_on(state, max_length), grown, lambda state: (state["ended_tokens"], state["ended"]), state)

    tokens, scores = rest(first, cache_lengths(max_length) if grow else (max_length,))
    return tokens[:, : options.n_best], scores[:, : options.n_best]


def cache_lengths(max_length: int) -> tuple[int, ...]:
    """Lengths of a cache that grows: from 16 on twice the one before, the last is `max_length`."""
    lengths = [_FIRST_CACHE_LENGTH]
    while lengths[-1] < max_length:
        lengths.append(2 * lengths[-1])
    return (*lengths[:-1], max_length)


def _each_own(change: Callable[[jax.Array], jax.Array], cache: Cache) -> Cache:
    """The cache with every leaf changed that is not under "shared"."""
    return {name: part if name == "shared" else jax.tree.map(change, part) for name, part in cache.items()}


def _top(values: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
    """Largest values of each row with their places, filled up where a row has fewer than `count`."""
    rows, size = values.shape
    have = min(count, size)
    if size >= 4 * _GROUP * have:
        # The largest are in the groups with the largest maxima, equal ones in the earlier groups: a sort of few.
        grouped = jnp.pad(values, ((0, 0), (0, -size % _GROUP)), constant_values=-jnp.inf).reshape(rows, -1, _GROUP)
        groups = jnp.sort(jax.lax.top_k(grouped.max(-1), have)[1])
        best, places = jax.lax.top_k(jnp.take_along_axis(grouped, groups[:, :, None], 1).reshape(rows, -1), have)
        places = jnp.take_along_axis(groups, places // _GROUP, 1) * _GROUP + places % _GROUP
    else:
        best, places = jax.lax.top_k(values, have)
    extra = ((0, 0), (0, count - have))
    return jnp.pad(best, extra, constant_values=NEVER), jnp.pad(places, extra)


def _best_of(count: int, scores: jax.Array, tokens: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The `count` best of [B, M] with their tokens [B, M, L]."""
    best, places = jax.lax.top_k(scores, count)
    return best, jnp.take_along_axis(tokens, places[:, :, None], 1)
