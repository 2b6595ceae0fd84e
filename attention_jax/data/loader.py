"""The loader of images: a plan of each epoch's batches, and threads that load them.

The order is a pure function of (seed, epoch, batch), and random transforms are one of (seed, epoch, example), so a resumed
run, another number of worker threads or another number of processes gives the same batches. An example that cannot be
decoded is replaced by the next one that can, so this too depends only on the index.

Where each record waits for a network (a source's `readers`), those of a batch are read at once, and decoded in its thread.

Threads suffice: decoding and array arithmetic release the interpreter's lock; for crops of 224 pixels out of 500x375 two
threads on two cores were 1.9 times as fast as one.
"""

import dataclasses
import functools
import logging
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from attention_jax.data.images.decoding import BrokenImage
from attention_jax.data.images.sources import Source
from attention_jax.errors import UserError

Batch = dict[str, np.ndarray]
logger = logging.getLogger(__name__)
_MOST_BROKEN_IN_A_ROW = 100


@dataclasses.dataclass(frozen=True)
class ImagePlan:
    """Permutes the examples in each epoch and cuts them into full batches; the remaining examples sit that epoch out."""

    num_examples: int
    batch_size: int
    seed: int

    def __post_init__(self):
        if self.batch_size > self.num_examples:
            raise UserError(
                f"batch_size={self.batch_size} is more than the {self.num_examples} training examples: "
                "give at most one batch an epoch."
            )

    @property
    def steps_per_epoch(self) -> int:
        """The number of full batches in an epoch."""
        return self.num_examples // self.batch_size

    def position(self, step: int) -> tuple[int, int]:
        """Returns (epoch, batch) of the batch after step `step`."""
        return divmod(step, self.steps_per_epoch)

    def indices(self, epoch: int, batch: int) -> np.ndarray:
        """Returns the indices [batch_size] of one global batch."""
        order = _permutation(self.num_examples, self.seed, epoch)
        return order[batch * self.batch_size : (batch + 1) * self.batch_size]


@functools.lru_cache(maxsize=4)
def _permutation(length: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng((0, seed, epoch)).permutation(length)


def make_example_generator(seed: int, epoch: int, index: int) -> np.random.Generator:
    """Returns the generator of one example's random transforms in one epoch."""
    # The leading 1 keeps this stream apart from the permutation's: seed sequences ignore trailing zeros.
    return np.random.default_rng((1, seed, epoch, index))


class LoadingTimes:
    """Sums over the threads of a loader: examples; seconds in which they were read, in all, and of a core."""

    def __init__(self) -> None:
        self._lock, self._sums = threading.Lock(), np.zeros(4)

    def add(self, *values: float) -> None:
        """Adds a batch: its examples, seconds of reading, seconds in all, seconds of a core."""
        with self._lock:
            self._sums = self._sums + values

    def sums(self) -> np.ndarray:
        """Returns the four sums so far."""
        return self._sums


@dataclasses.dataclass(frozen=True)
class Loader:
    """Makes this process's rows of each batch.

    In training, `on_broken="skip"` replaces an image that cannot be decoded; in evaluation it leaves the image out. "stop"
    raises
    UserError.
    """

    source: Source
    batch_size: int  # examples in a global batch; process i of P loads rows [i·B/P, (i+1)·B/P)
    seed: int  # decides the order and the transforms
    transform: Callable[[dict[str, Any], np.random.Generator | None], dict[str, Any]]  # without a generator in evaluation
    collate: Callable[[Batch], Batch]  # converts stacked fields
    threads: int = 2  # load batches ahead of the training step
    process: tuple[int | tuple[int, ...], int] = (0, 1)  # (index or indices of this process's parts of a batch, parts)
    on_broken: str = "skip"
    broken: dict[int, str] = dataclasses.field(default_factory=dict)  # index -> reason, of images not decoded so far
    times: LoadingTimes = dataclasses.field(default_factory=LoadingTimes)  # times of training

    @functools.cached_property
    def plan(self) -> ImagePlan:
        """The order of the training examples."""
        return ImagePlan(len(self.source), self.batch_size, self.seed)

    def training(self, first_step: int, num_steps: int) -> Iterator[Batch]:
        """Yields the batches of the steps after `first_step`, up to and including `num_steps`, loaded ahead in threads."""
        return self._reporting(load_ahead(first_step, num_steps, self.training_batch, self.threads))

    def evaluation(self) -> Iterator[Batch]:
        """Yields every example once, in order, loaded ahead in threads; the last batch is padded with copies of weight 0."""
        batches = -(-len(self.source) // self.batch_size)
        return self._reporting(load_ahead(0, batches, self.evaluation_batch, self.threads))

    def training_batch(self, step: int) -> Batch:
        """Returns this process's rows of the batch after step `step`."""
        begin, used = time.perf_counter(), time.thread_time()
        epoch, batch = self.plan.position(step)
        indices = self._rows(self.plan.indices(epoch, batch)).tolist()
        found = self._read_all(indices)
        read = time.perf_counter()
        examples = [self._example(i, make_example_generator(self.seed, epoch, i), x)[0] for i, x in zip(indices, found)]
        collated = self.collate({**_stack(examples), "weight": np.ones(len(indices), np.float32)})
        self.times.add(len(indices), read - begin, time.perf_counter() - begin, time.thread_time() - used)
        return collated

    def evaluation_batch(self, number: int) -> Batch:
        """Returns this process's rows of one evaluation batch; an image that cannot be decoded has weight 0."""
        indices = self._rows(np.arange(number * self.batch_size, (number + 1) * self.batch_size))
        inside = indices < len(self.source)
        places = np.where(inside, indices, len(self.source) - 1).tolist()
        loaded = [self._example(i, None, x) for i, x in zip(places, self._read_all(places))]
        weight = np.array([is_itself for _, is_itself in loaded], np.float32) * inside
        index = {"index": indices.astype(np.int32)}  # a field of the data may have this name
        return self.collate({**index, **_stack([example for example, _ in loaded]), "weight": weight.astype(np.float32)})

    @functools.cached_property
    def _pool(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(self.source.readers)  # type: ignore[attr-defined]

    def _read_all(self, indices: list[int]) -> list[dict[str, Any] | BrokenImage]:
        """Returns the source's examples, or why one cannot be read; reads all at once if they come over a network."""
        if getattr(self.source, "readers", 1) > 1:
            return list(self._pool.map(self._read, indices))
        return [self._read(index) for index in indices]

    def _read(self, index: int) -> dict[str, Any] | BrokenImage:
        try:
            return self.source[index]
        except BrokenImage as error:
            return error

    def _example(
        self, index: int, rng: np.random.Generator | None, found: dict[str, Any] | BrokenImage
    ) -> tuple[dict[str, Any], bool]:
        """Returns (example `index`, which is `found`, or the next that can be decoded; True if it is `index` itself)."""
        for number in range(index, index + _MOST_BROKEN_IN_A_ROW):
            try:
                found = found if number == index else self._read(number % len(self.source))
                if isinstance(found, BrokenImage):
                    raise found
                return self.transform(found, rng), number == index
            except BrokenImage as error:
                self._leave_out(number % len(self.source), str(error))
        raise UserError(
            f"data: {_MOST_BROKEN_IN_A_ROW} images in a row cannot be decoded, the first is {self._name(index)} "
            f"({self.broken[index]}): check that the data are complete and readable."
        )

    def _leave_out(self, index: int, reason: str) -> None:
        problem = f"data: {self._name(index)} cannot be decoded ({reason})"
        if self.on_broken == "stop":
            raise UserError(f"{problem}: repair or remove it, or set data.on_broken='skip'.")
        if index not in self.broken:
            self.broken[index] = reason
            logger.warning("%s and is left out.", problem)

    def _name(self, index: int) -> str:
        name = getattr(self.source, "name", None)
        return name(index) if callable(name) else f"example {index}"

    def _reporting(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        try:
            yield from batches
        finally:
            if self.broken:
                logger.warning("data: %d of %d images could not be decoded.", len(self.broken), len(self.source))

    def _rows(self, values: np.ndarray) -> np.ndarray:
        parts, count = self.process
        return values.reshape(count, -1)[np.atleast_1d(parts)].ravel()


def load_ahead(first: int, end: int, load: Callable[[int], Batch], threads: int) -> Iterator[Batch]:
    """Yields `load(i)` for i from `first` to `end` - 1, in order, loaded ahead in threads."""
    import grain

    batches = grain.MapDataset.range(first, end).map(lambda number: load(int(number)))
    yield from batches.to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads))


def _stack(examples: list[dict[str, Any]]) -> Batch:
    return {name: np.stack([example[name] for example in examples]) for name in examples[0]}
