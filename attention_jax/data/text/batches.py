"""Makes batches of sentence pairs: a fixed number of tokens, pairs of similar length, few shapes.

A pair goes into the first bucket that holds its longer side, including EOS. All pairs of a batch come from one bucket, and the
batch has that bucket's shape, so the step is compiled once per bucket. The order of batches is a pure function of
(seed, epoch), as for images.
"""

import array
import dataclasses
import functools
import hashlib
import logging
from collections.abc import Iterator, Sequence

import numpy as np

from attention_jax.data.loader import Batch, load_ahead
from attention_jax.data.text.tokenizer import EOS, PAD, UNKNOWN, Tokenizers
from attention_jax.errors import UserError

logger = logging.getLogger(__name__)

LONG, UNEVEN, DUPLICATE = "long", "uneven", "duplicate"  # reasons for which pairs are left out or cut


@dataclasses.dataclass(frozen=True, eq=False)
class TokenPairs:
    """Holds all pairs as tokens in one flat array; millions of Python lists would not fit into memory."""

    tokens: np.ndarray  # int32: source 0, target 0, source 1, …, each side followed by EOS
    starts: np.ndarray  # [2 · pairs + 1] offset of each side in `tokens`; the last entry is the length of `tokens`
    kept: np.ndarray  # [pairs] index of each pair in its data source

    def __len__(self) -> int:
        return len(self.kept)

    def side(self, pair: int, side: int) -> np.ndarray:
        """Returns the tokens of one side of a pair: the source for `side=0`, the target for `side=1`."""
        return self.tokens[self.starts[2 * pair + side] : self.starts[2 * pair + side + 1]]

    @functools.cached_property
    def lengths(self) -> np.ndarray:
        """[pairs] number of tokens in the longer side of each pair, including EOS."""
        return np.diff(self.starts).reshape(-1, 2).max(1)

    @classmethod
    def of(
        cls, pairs: Iterator[tuple[list[int], list[int]] | None], max_length: int, too_long: str, max_ratio: float = 0.0
    ) -> tuple["TokenPairs", dict[str, int]]:
        """Returns the pairs, and how many of them were `LONG`, `UNEVEN` or a `DUPLICATE`.

        Args:
            pairs: (source tokens, target tokens), both without EOS; None for a duplicate, which is left out.
            max_length: maximum length of a side in tokens, including EOS.
            too_long: "drop" leaves out a pair with a longer side; "truncate" shortens the side.
            max_ratio: a pair is left out if a side has more than this many times the other's tokens; 0 leaves none out.
        """
        flat = array.array("i")
        starts, kept, counts = [0], [], {LONG: 0, UNEVEN: 0, DUPLICATE: 0}
        for index, sides in enumerate(pairs):
            if sides is None:
                counts[DUPLICATE] += 1
                continue
            shorter, longer = sorted(map(len, sides))
            is_long, is_uneven = longer >= max_length, bool(max_ratio) and longer > max_ratio * max(shorter, 1)
            counts[LONG] += is_long
            counts[UNEVEN] += is_uneven
            if is_uneven or (is_long and too_long == "drop"):
                continue
            for side in sides:
                flat.extend([*side[: max_length - 1], EOS])
                starts.append(len(flat))
            kept.append(index)
        return cls(np.array(flat, np.int32), np.array(starts, np.int64), np.array(kept, np.int64)), counts


def encode_pairs(
    pairs: Sequence[tuple[str, str]], tokenizers: Tokenizers, drop_duplicates: bool
) -> Iterator[tuple[list[int], list[int]] | None]:
    """Yields the tokens of both sides of each pair; with `drop_duplicates` None for one whose texts have come before."""
    seen = set[bytes]()
    for i in range(len(pairs)):
        texts = pairs[i]
        if drop_duplicates:  # hashes: the texts of millions of pairs would take gigabytes
            digest = hashlib.blake2b("\t".join(texts).encode(errors="surrogatepass"), digest_size=12).digest()
            if digest in seen:
                yield None
                continue
            seen.add(digest)
        yield tokenizers.source.encode(texts[0]), tokenizers.target.encode(texts[1])


def warn_of_unknown(pairs: Sequence[tuple[str, str]], tokens: TokenPairs, split: str) -> None:
    """Warns of tokens that are not in the vocabulary, with their number on each side and the first sentence that has one."""
    sides = np.searchsorted(tokens.starts, np.flatnonzero(tokens.tokens == UNKNOWN), side="right") - 1
    for side, name in enumerate(("source", "target")):
        if len(places := sides[sides % 2 == side]):
            total = int(np.diff(tokens.starts)[side::2].sum()) - len(tokens)
            logger.warning(
                "data: %d of %d %s tokens of split %r (%.1f %%) are not in the vocabulary and become <unk>; the first: %.80r.",
                *(len(places), total, name, split, 100 * len(places) / total, pairs[int(tokens.kept[places[0] // 2])][side]),
            )


def choose_buckets(lengths: np.ndarray, number: int, multiple: int = 4) -> tuple[int, ...]:
    """Returns at most `number` bucket lengths that need the least padding, found by dynamic programming.

    Every bucket length is a multiple of `multiple`; `lengths` [pairs] are those of the longer sides in tokens, including EOS.
    """
    rounded = -(-lengths // multiple) * multiple
    sizes, counts = np.unique(rounded, return_counts=True)
    total = np.concatenate([[0], np.cumsum(counts)])
    cost = np.full((number + 1, len(sizes) + 1), np.inf)
    cut = np.zeros((number + 1, len(sizes) + 1), int)
    cost[:, 0] = 0
    for used in range(1, number + 1):
        for end in range(1, len(sizes) + 1):
            costs = cost[used - 1, :end] + sizes[end - 1] * (total[end] - total[:end])
            cut[used, end] = costs.argmin()
            cost[used, end] = costs.min()
    ends, end = [], len(sizes)
    for used in range(number, 0, -1):
        if end:
            ends.append(int(sizes[end - 1]))
            end = cut[used, end]
    return tuple(sorted(ends))


def count_rows(length: int, batch_tokens: int, multiple: int) -> int:
    """Returns how many pairs of this length fit into `batch_tokens` tokens per side: a multiple of `multiple`, never 0."""
    return max(1, batch_tokens // length // multiple) * multiple


@dataclasses.dataclass(frozen=True, eq=False)
class BucketPlan:
    """Plans which pairs make up each batch of an epoch.

    Raises:
        UserError: if there is no pair, or a pair is longer than the last bucket.
    """

    lengths: np.ndarray  # [pairs] number of tokens in the longer side of each pair, including EOS
    buckets: tuple[int, ...]  # bucket lengths in ascending order; the last one must hold the longest pair
    batch_tokens: int  # maximum of rows · bucket length, unless `multiple` rows already exceed it
    multiple: int  # the number of rows is a multiple of this, so that devices and micro-batches get equal shares
    seed: int  # decides the order of batches and pairs

    def __post_init__(self) -> None:
        if not len(self.lengths):
            raise UserError(
                "data: no sentence pair is left to train on: raise data.max_length, or set data.too_long='truncate'."
            )
        if self.lengths.max() > self.buckets[-1]:
            raise UserError(
                f"data.bucket_lengths={self.buckets}: a pair has {self.lengths.max()} tokens, and the last bucket must hold it."
            )

    def rows(self, bucket: int) -> int:
        """Returns the number of rows in a batch of bucket number `bucket`."""
        return count_rows(self.buckets[bucket], self.batch_tokens, self.multiple)

    @functools.cached_property
    def _members(self) -> list[np.ndarray]:
        """Returns the indices of the pairs in each bucket."""
        bucket = np.searchsorted(self.buckets, self.lengths)
        return [np.flatnonzero(bucket == i) for i in range(len(self.buckets))]

    @functools.cached_property
    def _batches(self) -> list[tuple[int, int]]:
        """Lists (bucket, number within the bucket) of the batches of an epoch.

        Only full batches count; the pairs left over change each epoch. A bucket without a full batch has a padded one.
        """
        counts = [len(members) // self.rows(i) or min(1, len(members)) for i, members in enumerate(self._members)]
        return [(bucket, number) for bucket, count in enumerate(counts) for number in range(count)]

    @property
    def steps_per_epoch(self) -> int:
        """The number of batches in an epoch."""
        return len(self._batches)

    @functools.lru_cache(maxsize=2)  # noqa: B019  (a plan lives as long as its run)
    def _order(self, epoch: int) -> tuple[np.ndarray, list[np.ndarray]]:
        """Returns the order of the batches in this epoch, and the order of the pairs in each bucket."""
        rng = np.random.default_rng((0, self.seed, epoch))
        return rng.permutation(self.steps_per_epoch), [rng.permutation(members) for members in self._members]

    def batch(self, step: int) -> tuple[int, np.ndarray]:
        """Returns (bucket, indices of the pairs) of the batch after step `step`; a padded batch has fewer pairs than rows."""
        epoch, place = divmod(step, self.steps_per_epoch)
        order, members = self._order(epoch)
        bucket, number = self._batches[order[place]]
        rows = self.rows(bucket)
        return bucket, members[bucket][number * rows : (number + 1) * rows]

    def every(self) -> list[tuple[int, np.ndarray]]:
        """Returns (bucket, indices of the pairs) of batches that together hold every pair once, in order."""
        return [
            (bucket, members[first : first + self.rows(bucket)])
            for bucket, members in enumerate(self._members)
            for first in range(0, len(members), self.rows(bucket))
        ]


@dataclasses.dataclass(frozen=True, eq=False)
class TokenLoader:
    """Makes the rows of each batch that belong to this process.

    A batch has "source" and "target" [rows, length], int32 tokens of sentences that end with EOS, padded with 0; "weight"
    [rows], 1 for a pair and 0 for a row that only fills the batch; and "index" [rows], the pair's index in its data source.
    """

    pairs: TokenPairs
    plan: BucketPlan
    threads: int = 2
    process: tuple[int | tuple[int, ...], int] = (0, 1)  # (the parts of a batch that this process makes, number of parts)

    def training(self, first_step: int, num_steps: int) -> Iterator[Batch]:
        """Yields the batches of steps `first_step` + 1 to `num_steps`; threads prepare them in advance."""
        return load_ahead(first_step, num_steps, self.training_batch, self.threads)

    def training_batch(self, step: int) -> Batch:
        """Returns this process's rows of the batch that follows step `step`."""
        return self._batch(*self.plan.batch(step))

    def evaluation(self) -> Iterator[Batch]:
        """Yields batches that together hold every pair once, in order."""
        batches = self.plan.every()
        return load_ahead(0, len(batches), lambda number: self._batch(*batches[number]), self.threads)

    def _batch(self, bucket: int, indices: np.ndarray) -> Batch:
        rows, length = self.plan.rows(bucket), self.plan.buckets[bucket]
        parts, count = self.process
        mine = np.arange(rows).reshape(count, -1)[np.atleast_1d(parts)].ravel()
        pairs = indices[mine[mine < len(indices)]]
        source, target = (pad_rows([self.pairs.side(i, side) for i in pairs], len(mine), length) for side in (0, 1))
        target[len(pairs) :] = PAD
        weight, index = np.zeros(len(mine), np.float32), np.full(len(mine), -1, np.int32)
        weight[: len(pairs)], index[: len(pairs)] = 1.0, self.pairs.kept[pairs]
        return {"source": source, "target": target, "weight": weight, "index": index}


def pad_rows(sentences: Sequence[Sequence[int] | np.ndarray], rows: int, length: int) -> np.ndarray:
    """[rows, length] int32 tokens of sentences that end with EOS, padded; a row beyond the last sentence holds a single EOS."""
    padded = np.full((rows, length), PAD, np.int32)
    padded[:, 0] = EOS  # attention in the encoder needs at least one token
    for row, tokens in enumerate(sentences):
        padded[row, : len(tokens)] = tokens
    return padded
