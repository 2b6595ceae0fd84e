"""Batches of sentence pairs: a fixed number of tokens, pairs of similar length, few shapes.

A pair belongs to the first bucket that is as long as its longer side, end symbol included; a batch takes its pairs from one
bucket and has the bucket's shape, so that a program is compiled once per bucket. The order is a pure function of
(seed, epoch), as for images.
"""

import array
import dataclasses
import functools
from collections.abc import Iterator, Sequence

import numpy as np

from attention_jax.data.loader import Batch, load_ahead
from attention_jax.data.text.tokenizer import EOS, PAD
from attention_jax.errors import UserError


@dataclasses.dataclass(frozen=True, eq=False)
class TokenPairs:
    """Pairs as tokens in one flat array, since millions of lists would not fit into memory."""

    tokens: np.ndarray  # of all sides, source and target in turn, each with its end symbol
    starts: np.ndarray  # [2 · pairs + 1] where each side begins, and the end of the last
    kept: np.ndarray  # [pairs] index of each pair in its data source

    def __len__(self) -> int:
        return len(self.kept)

    def side(self, pair: int, side: int) -> np.ndarray:
        """Returns the tokens of the source (0) or target (1) of a pair."""
        return self.tokens[self.starts[2 * pair + side] : self.starts[2 * pair + side + 1]]

    @functools.cached_property
    def lengths(self) -> np.ndarray:
        """[pairs] tokens of the longer side."""
        return np.diff(self.starts).reshape(-1, 2).max(1)

    @classmethod
    def of(cls, pairs: Iterator[tuple[list[int], list[int]]], max_length: int, too_long: str) -> tuple["TokenPairs", int]:
        """Returns the pairs and how many were too long.

        Args:
            pairs: tokens of source and target, without end symbols.
            max_length: of a side, end symbol included.
            too_long: "drop" leaves out a pair with a longer side, "truncate" cuts the side.
        """
        flat = array.array("i")
        starts, kept, long = [0], [], 0
        for index, sides in enumerate(pairs):
            is_long = max(map(len, sides)) >= max_length
            long += is_long
            if is_long and too_long == "drop":
                continue
            for side in sides:
                flat.extend([*side[: max_length - 1], EOS])
                starts.append(len(flat))
            kept.append(index)
        return cls(np.array(flat, np.int32), np.array(starts, np.int64), np.array(kept, np.int64)), long


def choose_buckets(lengths: np.ndarray, number: int, multiple: int = 4) -> tuple[int, ...]:
    """Returns at most `number` bucket lengths, multiples of `multiple`, with the least padding (by dynamic programming)."""
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
    """Returns how many pairs of this length fit into `batch_tokens` tokens per side, see `BucketPlan`."""
    return max(1, batch_tokens // length // multiple) * multiple


@dataclasses.dataclass(frozen=True, eq=False)
class BucketPlan:
    """The batches of an epoch."""

    lengths: np.ndarray  # [pairs] tokens of the longer side
    buckets: tuple[int, ...]  # lengths of the shapes, ascending; the last is at least the longest pair
    batch_tokens: int  # maximum of rows · bucket length in a batch; one `multiple` of rows if that is more
    multiple: int  # of the number of rows, so that devices and micro-batches can share them
    seed: int  # of the order

    def __post_init__(self) -> None:
        if not len(self.lengths):
            raise UserError("data: no sentence pair is left to train on: see data.max_length and data.too_long.")
        if self.lengths.max() > self.buckets[-1]:
            raise UserError(
                f"data.bucket_lengths={self.buckets}: a pair has {self.lengths.max()} tokens: the last bucket must hold it."
            )

    def rows(self, bucket: int) -> int:
        """Returns the rows of a batch of bucket number `bucket`."""
        return count_rows(self.buckets[bucket], self.batch_tokens, self.multiple)

    @functools.cached_property
    def _members(self) -> list[np.ndarray]:
        bucket = np.searchsorted(self.buckets, self.lengths)
        return [np.flatnonzero(bucket == i) for i in range(len(self.buckets))]

    @functools.cached_property
    def _batches(self) -> list[tuple[int, int]]:
        """(bucket, number in it) of an epoch's batches: full ones, leaving out other pairs each epoch; a bucket with too few
        pairs for one has a padded batch."""
        counts = [len(members) // self.rows(i) or min(1, len(members)) for i, members in enumerate(self._members)]
        return [(bucket, number) for bucket, count in enumerate(counts) for number in range(count)]

    @property
    def steps_per_epoch(self) -> int:
        """The number of batches in an epoch."""
        return len(self._batches)

    @functools.lru_cache(maxsize=2)  # noqa: B019  (a plan lives as long as its run)
    def _order(self, epoch: int) -> tuple[np.ndarray, list[np.ndarray]]:
        """The order of the batches, and of the pairs in each bucket."""
        rng = np.random.default_rng((0, self.seed, epoch))
        return rng.permutation(self.steps_per_epoch), [rng.permutation(members) for members in self._members]

    def batch(self, step: int) -> tuple[int, np.ndarray]:
        """Returns (bucket, indices of its pairs) for the batch after `step` steps; a padded one has fewer than its rows."""
        epoch, place = divmod(step, self.steps_per_epoch)
        order, members = self._order(epoch)
        bucket, number = self._batches[order[place]]
        rows = self.rows(bucket)
        return bucket, members[bucket][number * rows : (number + 1) * rows]

    def every(self) -> list[tuple[int, np.ndarray]]:
        """Returns (bucket, indices) of batches that hold every pair once, in order."""
        return [
            (bucket, members[first : first + self.rows(bucket)])
            for bucket, members in enumerate(self._members)
            for first in range(0, len(members), self.rows(bucket))
        ]


@dataclasses.dataclass(frozen=True, eq=False)
class TokenLoader:
    """Makes this process's rows of each batch.

    A batch has "source" and "target" [rows, length] with end symbols and padding 0, "weight" [rows], 0 for filling rows, and
    "index" [rows] of the pair in its data source. `process` is (this process's parts of a batch, number of parts).
    """

    pairs: TokenPairs
    plan: BucketPlan
    threads: int = 2
    process: tuple[int | tuple[int, ...], int] = (0, 1)

    def training(self, first_step: int, num_steps: int) -> Iterator[Batch]:
        """Yields the batches of steps `first_step` + 1 to `num_steps`, made ahead in threads."""
        return load_ahead(first_step, num_steps, self.training_batch, self.threads)

    def training_batch(self, step: int) -> Batch:
        """Returns this process's rows of the batch after `step` steps."""
        return self._batch(*self.plan.batch(step))

    def evaluation(self) -> Iterator[Batch]:
        """Yields every pair once."""
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
    """[rows, length] int32 of token lists with their end symbols, padded; missing rows hold an end symbol alone."""
    padded = np.full((rows, length), PAD, np.int32)
    padded[:, 0] = EOS  # an encoder needs something to attend to
    for row, tokens in enumerate(sentences):
        padded[row, : len(tokens)] = tokens
    return padded
