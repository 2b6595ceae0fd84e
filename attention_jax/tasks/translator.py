"""Translates sentences, and scores given translations, with a trained network."""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Self

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from attention_jax.config.fields import OF_TASK
from attention_jax.data.text.batches import pad_rows
from attention_jax.data.text.tokenizer import EOS, PAD, Tokenizer, Tokenizers
from attention_jax.distributed.mesh import DATA
from attention_jax.errors import UserError
from attention_jax.kernels.switch import use_standard_numerics
from attention_jax.search import NEVER, SearchOptions, beam_search, cache_lengths, score_tokens
from attention_jax.tasks.alignments import CrossAttention, align_words, attend_tokens, number_words
from attention_jax.tasks.batch_limits import BatchLimits, plan_memory


@dataclasses.dataclass(frozen=True)
class TranslationOptions:
    """The rules of the search, and the maximum length of a translation.

    Attributes:
        search: see `SearchOptions`.
        max_extra: maximum length of a translation minus the length of its source.
        fixed: maximum length of every translation; None uses `max_extra`.
        positions: maximum length for which the network has positions; None for any.
    """

    search: SearchOptions
    max_extra: int = 50
    fixed: int | None = None
    positions: int | None = None

    def max_length(self, source_length: int) -> int:
        """Returns the maximum length, including EOS, of the translation of a source with `source_length` tokens."""
        length = self.fixed or source_length + self.max_extra
        return min(length, self.positions) if self.positions else length

    def limits(self, source: jax.Array) -> jax.Array:
        """[B, S] -> [B] maximum lengths of the translations."""
        limits = jnp.full(source.shape[:1], self.fixed) if self.fixed else (source != PAD).sum(1) + self.max_extra
        return jnp.minimum(limits, self.max_length(source.shape[1]))

    @classmethod
    def from_config(cls, config: ConfigDict, **changes: Any) -> Self:
        """Reads a config's section `search`; `changes` replace its fields (`beam`, `alpha`, …) or give `n_best`."""
        given = {name: value for name, value in changes.items() if value is not None}
        for name in given.keys() & config.search.keys():
            if wanted := OF_TASK["translation"]["search"][name].error(given[name]):
                raise UserError(f"search: {name}={given[name]!r} is not right: give {wanted}.")
        fields = {**config.search.to_dict(), **given}
        extra, fixed = fields.pop("max_extra"), fields.pop("max_length")
        learned = config.model.get("positions") == "learned"
        try:
            return cls(SearchOptions(**fields), extra, fixed, config.model.get("max_length", 512) if learned else None)
        except (TypeError, ValueError) as error:
            raise UserError(f"search: {error}.") from error


def translate_tokens(
    model: nn.Module, variables: dict[str, Any], source: jax.Array, options: TranslationOptions, prefix: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
    """[B, S] -> tokens [B, n_best, longest], best first, padded after the end symbol, and scores [B, n_best].

    `prefix` [B, P] has the tokens with which each translation begins, padded.
    """
    apply: Callable[..., Any] = functools.partial(model.apply, variables)
    memory = apply(source, method="encode")
    longest = options.max_length(source.shape[1])
    grow = functools.partial(apply, method="grow_cache") if hasattr(model, "grow_cache") else None
    room = cache_lengths(longest)[0] if grow else longest
    cache = apply(memory, source, room, options.search.beam, method="init_cache")
    step = functools.partial(apply, method="decode_step")
    return beam_search(step, cache, options.limits(source), longest, options.search, grow, prefix)


def translate_from_prefix(
    model: nn.Module, variables: dict[str, Any], source: jax.Array, prefix: jax.Array, options: TranslationOptions
) -> tuple[jax.Array, jax.Array]:
    """[B, S], [B, P] -> as `translate_tokens`, whose translations begin with the prefix."""
    return translate_tokens(model, variables, source, options, prefix)


def score_target_tokens(
    model: nn.Module, variables: dict[str, Any], source: jax.Array, target: jax.Array, options: TranslationOptions
) -> tuple[jax.Array, jax.Array]:
    """[B, S], [B, T] -> log probabilities of the target's tokens [B, T] and scores [B], as of `translate_tokens`."""
    if not getattr(model, "causal", True):
        model = model.clone(causal=True)  # a search sees no later tokens either
    seen = jnp.pad(target[:, :-1], ((0, 0), (1, 0)), constant_values=options.search.bos)
    logits: Any = model.apply(variables, source, seen)
    return score_tokens(logits, target, options.limits(source), options.search)


def extend_buckets(buckets: Sequence[int], longest: int) -> tuple[int, ...]:
    """Returns `buckets`, plus one more if `longest` does not fit."""
    buckets = tuple(buckets)
    return buckets if longest <= buckets[-1] else (*buckets, -(-longest // 16) * 16)


def _pad_like(source: np.ndarray, sentences: Sequence[Sequence[int]]) -> np.ndarray:
    """Returns an array of the shape of `source` with these tokens, and padding after them."""
    padded = np.full_like(source, PAD)
    for row, tokens in enumerate(sentences):
        padded[row, : len(tokens)] = tokens
    return padded


@dataclasses.dataclass(frozen=True)
class Translation:
    """The n best translations of a sentence.

    Attributes:
        source: the sentence.
        source_tokens: tokens of the sentence, as a person reads them, including EOS.
        texts: translations, best first.
        scores: log probabilities after the length penalty.
        tokens: tokens of each translation, as a person reads them, including EOS if there is one.
        ids: the tokens as numbers.
        alignments: for each translation the pairs (source word, target word), see `Translator.align`; empty unless asked for.
    """

    source: str
    source_tokens: list[str]
    texts: list[str]
    scores: list[float]
    tokens: list[list[str]]
    ids: list[list[int]]
    alignments: list[list[tuple[int, int]]] = dataclasses.field(default_factory=list)

    @property
    def text(self) -> str:
        """The best translation."""
        return self.texts[0]

    @property
    def target_ids(self) -> list[int]:
        """Tokens of the best translation as numbers."""
        return self.ids[0]


@dataclasses.dataclass(frozen=True)
class TargetScore:
    """The probability of a given translation.

    Attributes:
        tokens: tokens of the translation, as a person reads them, including EOS.
        log_probs: log probability of each token, given those before it, in nats.
        score: their sum after the length penalty, as a search returns it.
    """

    tokens: list[str]
    log_probs: list[float]
    score: float

    @property
    def log_prob(self) -> float:
        """The sum, without the length penalty."""
        return math.fsum(self.log_probs)


@dataclasses.dataclass(frozen=True)
class Translator:
    """Translates sentences with a trained network on all devices of this process, for notebooks and the command line."""

    config: ConfigDict
    tokenizers: Tokenizers
    model: nn.Module
    variables: dict[str, Any]
    limits: BatchLimits = dataclasses.field(default_factory=BatchLimits)

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of the target."""
        return self.tokenizers.target

    @property
    def labels(self) -> list[str]:
        """The vocabulary of the target."""
        return self.tokenizer.pieces(range(self.tokenizer.vocab_size))

    @functools.cached_property
    def _devices(self) -> Mesh:
        """The devices of this process; each searches for its own rows, so that none waits for the others' last token."""
        return Mesh(np.array(jax.local_devices()), (DATA,), axis_types=(AxisType.Auto,))

    @functools.cached_property
    def _variables(self) -> Any:
        return jax.device_put(self.variables, NamedSharding(self._devices, PartitionSpec()))

    @functools.cached_property
    def _programs(self) -> dict[tuple, Any]:
        """Compiled programs by function, rules and shapes."""
        return {}

    @functools.cached_property
    def _memory(self) -> int:
        return self.limits.resolve().memory or 0

    def _compile(self, function: Callable[..., Any], chosen: Any, shapes: tuple[tuple[int, int], ...]) -> Any:
        """Returns the program of `function(model, variables, *arrays, chosen)` for int32 arrays of these shapes."""
        key = function, chosen, shapes
        if key not in self._programs:
            rows = PartitionSpec(DATA)

            def act(variables: Any, *arrays: jax.Array) -> Any:
                return function(self.model, variables, *arrays, chosen)

            if self._devices.size > 1:
                specs = (PartitionSpec(), *(rows for _ in shapes))
                act = jax.shard_map(act, mesh=self._devices, in_specs=specs, out_specs=rows, check_vma=False)
            placed = NamedSharding(self._devices, rows)
            arrays = [jax.ShapeDtypeStruct(shape, np.int32, sharding=placed) for shape in shapes]
            with use_standard_numerics():
                self._programs[key] = jax.jit(act).lower(self._variables, *arrays).compile()
        return self._programs[key]

    def _apply(self, function: Callable[..., Any], chosen: Any, *arrays: np.ndarray) -> list[np.ndarray]:
        placed = [jax.device_put(array, NamedSharding(self._devices, PartitionSpec(DATA))) for array in arrays]
        program = self._compile(function, chosen, tuple(array.shape for array in arrays))
        return [np.asarray(found) for found in program(self._variables, *placed)]

    def preprocess(self, sentences: str | Sequence[str]) -> np.ndarray:
        """Returns the source of `model.apply`, [N, longest] int32 with end symbols and padding."""
        rows = self._encode([sentences] if isinstance(sentences, str) else sentences)
        return pad_rows(rows, len(rows), max(map(len, rows), default=1))

    def _encode(self, sentences: Sequence[str]) -> list[list[int]]:
        return [[*self.tokenizers.source.encode(sentence), EOS] for sentence in sentences]

    def predict(self, sentences: str | Sequence[str], **changes: Any) -> list[Translation]:
        """Returns the translations of sentences, in their order; see `translate`."""
        return list(self.translate([sentences] if isinstance(sentences, str) else sentences, **changes))

    def translate(
        self, sentences: Sequence[str], prefix: str | Sequence[str | Sequence[int]] = "", **changes: Any
    ) -> Iterator[Translation]:
        """Yields the translations of sentences, in their order.

        Sentences of similar length are translated together, which changes no result; none is cut. The translation of an
        empty one is empty.

        Args:
            prefix: the beginning of all translations, or a list with one for each, as texts or as tokens of `Translation.ids`.
                Its tokens are forced and their log probabilities count; the search may go on within its last word.
            **changes: changes to the config's `search`, e.g. `beam=5`, and `n_best`.

        Raises:
            UserError: another number of prefixes than of sentences, or one as long as its translation may be.
        """
        chosen = TranslationOptions.from_config(self.config, **changes)
        encoded = self._encode(sentences)
        begun = self._encode_prefixes(prefix, encoded, chosen)
        found: dict[int, Translation] = {}
        lengths = [max(len(tokens), len(begin)) if len(tokens) > 1 else 0 for tokens, begin in zip(encoded, begun)]
        sides, search = (2, translate_from_prefix) if any(begun) else (1, translate_tokens)
        for part, rows, length in self._batches(search, chosen, sides, lengths):
            source = pad_rows([encoded[i] for i in part], rows, length)
            arrays = (source, _pad_like(source, [begun[i] for i in part]))[:sides]
            tokens, scores = self._apply(search, chosen, *arrays)
            for row, i in enumerate(part):
                found[i] = self._translation(sentences[i], encoded[i], tokens[row], scores[row])
        for i, sentence in enumerate(sentences):
            yield found.get(i) or Translation(sentence, self.tokenizers.source.pieces(encoded[i]), [""], [0.0], [[]], [[]])

    def _encode_prefixes(
        self, prefix: str | Sequence[str | Sequence[int]], encoded: list[list[int]], chosen: TranslationOptions
    ) -> list[list[int]]:
        prefixes = [prefix] * len(encoded) if isinstance(prefix, str) else list(prefix)
        if len(prefixes) != len(encoded):
            raise UserError(f"translate: {len(encoded)} sentences and {len(prefixes)} prefixes: give one for each, or a text.")
        begun = [self.tokenizer.encode(p) if isinstance(p, str) else [i for i in p if i != EOS] for p in prefixes]
        for begin, tokens in zip(begun, encoded):
            if begin and len(begin) >= (longest := chosen.max_length(len(tokens))):
                raise UserError(
                    f"translate: a prefix of {len(begin)} tokens leaves no room in the {longest} that its translation may "
                    "have: give a shorter one, or a larger search.max_extra or search.max_length."
                )
        return begun

    def _batches(
        self, function: Callable[..., Any], chosen: Any, sides: int, lengths: list[int]
    ) -> Iterator[tuple[list[int], int, int]]:
        """Yields (indices, rows, length) of batches of similar lengths, without sentences of length 0.

        As many rows as fill a power of two on each device, so that few programs are compiled, and as few as fit into memory.

        Args:
            function, chosen: see `_compile`.
            sides: arrays that it takes.

        Raises:
            UserError: a sentence alone needs more memory than it may have.
        """
        buckets = extend_buckets(self.config.data.bucket_lengths, max(lengths, default=1))
        bucket_of, devices = np.searchsorted(buckets, lengths), self._devices.size
        for bucket, length in enumerate(buckets):
            members = [int(i) for i in np.flatnonzero(bucket_of == bucket) if lengths[i]]
            size = self.limits.count_rows(length, self.config.evaluation.batch_size, devices)
            while members:
                rows = min(size, 1 << (-(-len(members) // devices) - 1).bit_length())
                planned = plan_memory(self._compile(function, chosen, ((rows * devices, length),) * sides))
                if planned > self._memory and rows > 1:
                    size = rows // 2
                    continue
                if planned > self._memory:
                    raise UserError(
                        f"translation: a sentence of {length} tokens plans {planned / 2**30:.2f} GiB on a device, and "
                        f"{self._memory / 2**30:.2f} GiB may be planned: give a larger --memory, or search.max_length."
                    )
                yield members[: rows * devices], rows * devices, length
                members = members[rows * devices :]

    def score(self, sources: str | Sequence[str], targets: Any, **changes: Any) -> list[TargetScore]:
        """Returns how probable each target is as the translation of its source.

        A search's result gets the score that the search gave it; the empty translation of an empty source gets 0.

        Args:
            targets: texts, or tokens as `Translation.ids` has them, which need not be those of their text.
            **changes: changes to the config's `search`; alpha=0 is no length penalty.

        Raises:
            UserError: another number of targets than of sources.
        """
        if isinstance(sources, str):
            return self.score([sources], [targets], **changes)
        if len(sources) != len(targets):
            raise UserError(f"score: {len(sources)} sources and {len(targets)} targets: give a target for each source.")
        chosen, wanted = TranslationOptions.from_config(self.config, **changes), self._encode_targets(targets)
        found: dict[int, TargetScore] = {}
        for i, log_probs, score in self._apply_to_pairs(score_target_tokens, chosen, self._encode(sources), wanted):
            values = log_probs[: len(wanted[i])].tolist()
            found[i] = TargetScore(self.tokenizer.pieces(wanted[i]), values, float(score))
        return [found.get(i) or TargetScore([], [], 0.0) for i in range(len(sources))]

    def align(
        self, sources: Sequence[str], targets: Sequence[str | Sequence[int]], layer: int | None = None, head: int | None = None
    ) -> list[list[tuple[int, int]]]:
        """Returns for each target the pairs (source word, target word), from 0: where attention looks most when it is written.

        Words are those between blanks of the texts as the tokenizer writes them. Every target word has one pair.

        Args:
            targets: texts, or tokens as `Translation.ids` has them.
            layer, head: numbers of a layer of cross-attention and of its head, from 1; None takes the mean over all.

        Raises:
            UserError: the network has no such cross-attention.
        """
        encoded, wanted, found = self._encode(sources), self._encode_targets(targets), dict[int, list[tuple[int, int]]]()
        for i, weights in self._apply_to_pairs(attend_tokens, CrossAttention(layer, head), encoded, wanted):
            sides = zip(self.tokenizers, (encoded[i], wanted[i]))
            words = [number_words(its, [t for t in side if t != EOS]) for its, side in sides]
            found[i] = align_words(weights, *words)
        return [found.get(i, []) for i in range(len(sources))]

    def add_alignments(self, found: Sequence[Translation], *attention: int | None) -> list[Translation]:
        """Returns translations with their `alignments`; `attention` is layer and head, see `align`."""
        pairs = iter(self.align([t.source for t in found for _ in t.ids], [ids for t in found for ids in t.ids], *attention))
        return [dataclasses.replace(each, alignments=[next(pairs) for _ in each.ids]) for each in found]

    def _encode_targets(self, targets: Sequence[str | Sequence[int]]) -> list[list[int]]:
        return [[*self.tokenizer.encode(each), EOS] if isinstance(each, str) else list(each) for each in targets]

    def _apply_to_pairs(
        self, function: Callable[..., Any], chosen: Any, encoded: list[list[int]], wanted: list[list[int]]
    ) -> Iterator[tuple]:
        """Yields (index, *results) of `function(model, variables, source, target, chosen)` for pairs that are not empty."""
        lengths = [length if (length := max(map(len, pair))) > 1 else 0 for pair in zip(encoded, wanted)]
        for part, rows, length in self._batches(function, chosen, 2, lengths):
            source = pad_rows([encoded[i] for i in part], rows, length)
            results = self._apply(function, chosen, source, _pad_like(source, [wanted[i] for i in part]))
            yield from ((i, *(result[row] for result in results)) for row, i in enumerate(part))

    def _translation(self, sentence: str, source: list[int], tokens: np.ndarray, scores: np.ndarray) -> Translation:
        there = [[int(t) for t in row if t != PAD] for row, score in zip(tokens, scores, strict=True) if score > NEVER / 2]
        return Translation(
            source=sentence,
            source_tokens=self.tokenizers.source.pieces(source),
            texts=[self.tokenizer.decode(row) for row in there],
            scores=[float(score) for score in scores[: len(there)]],
            tokens=[self.tokenizer.pieces(row) for row in there],
            ids=there,
        )
