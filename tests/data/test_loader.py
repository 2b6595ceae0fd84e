"""Which examples come in which order, on which thread and process, and what becomes of broken ones."""

import dataclasses
import logging

import numpy as np
import pytest

from attention_jax.data.images.decoding import BrokenImage
from attention_jax.data.loader import ImagePlan, Loader, make_example_generator
from attention_jax.errors import UserError
from tests.helpers.small import same_batches

# The plan


def epoch_of(plan: ImagePlan, epoch: int) -> np.ndarray:
    return np.concatenate([plan.indices(epoch, batch) for batch in range(plan.steps_per_epoch)])


@pytest.mark.parametrize(("examples", "batch"), [(12, 3), (10, 3), (7, 7), (5, 1)])
def test_every_epoch_is_another_permutation(examples, batch):
    plan = ImagePlan(examples, batch, seed=3)
    assert plan.steps_per_epoch == examples // batch
    epochs = [epoch_of(plan, epoch) for epoch in range(20)]
    for order in epochs:
        assert len(order) == plan.steps_per_epoch * batch  # as many steps in every epoch
        assert len(set(order)) == len(order) and set(order) <= set(range(examples))
    assert len({tuple(order) for order in epochs}) > 15
    # What sits one epoch out is in the others.
    assert set(np.concatenate(epochs)) == set(range(examples))
    assert any((epoch_of(ImagePlan(examples, batch, seed=4), epoch) != order).any() for epoch, order in enumerate(epochs))
    assert all((epoch_of(ImagePlan(examples, batch, seed=3), epoch) == order).all() for epoch, order in enumerate(epochs))


def test_every_example_comes_first_about_equally_often():
    first = [ImagePlan(6, 2, seed).indices(epoch, 0)[0] for seed in range(40) for epoch in range(30)]
    counts = np.bincount(first, minlength=6)
    assert counts.min() > 150 and counts.max() < 250  # 200 expected, standard deviation 13


def test_position_counts_epochs_and_batches():
    plan = ImagePlan(10, 3, 0)
    assert [plan.position(step) for step in (0, 2, 3, 7)] == [(0, 0), (0, 2), (1, 0), (2, 1)]


def test_batch_larger_than_the_data():
    with pytest.raises(UserError, match="batch_size=11 is more than the 10 training examples"):
        ImagePlan(10, 11, 0)


# The loader


class Numbers:
    """Images that hold their own index."""

    num_classes = 3

    def __init__(self, length: int):
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict:
        return {"image": np.full((2, 2, 1), index, np.uint8), "label": np.int32(index % 3)}


def loader_of(length: int, batch: int, **fields) -> Loader:
    def transform(example, rng):
        return {**example, "draw": np.float64(-1.0 if rng is None else rng.random())}

    return Loader(Numbers(length), batch, seed=5, transform=transform, collate=lambda batch: batch, **fields)


def test_batches_do_not_depend_on_threads_or_on_where_one_starts():
    complete = list(loader_of(20, 3, threads=1).training(0, 15))
    assert len(complete) == 15
    for threads in (1, 2, 5):
        loader = loader_of(20, 3, threads=threads)
        assert same_batches(list(loader.training(0, 15)), complete)
        for start in (1, 6, 14):  # inside an epoch, at its beginning, at the end
            assert same_batches(list(loader.training(start, 15)), complete[start:])
    assert list(loader_of(20, 3).training(15, 15)) == []


def test_training_sees_an_epochs_examples_once():
    batches = list(loader_of(20, 5).training(0, 8))
    for epoch in (batches[:4], batches[4:]):
        assert sorted(int(i) for batch in epoch for i in batch["image"][:, 0, 0, 0]) == list(range(20))
    assert all((batch["weight"] == 1).all() for batch in batches)
    # The same example draws anew in another epoch.
    draws: list[dict] = [{}, {}]
    for position, batch in enumerate(batches):
        draws[position // 4].update(zip(batch["image"][:, 0, 0, 0].tolist(), batch["draw"]))
    assert all(draws[0][i] != draws[1][i] for i in range(20))


def test_processes_share_each_batch_in_order():
    complete = loader_of(20, 4)
    parts = [dataclasses.replace(complete, process=(i, 2)) for i in range(2)]
    for step in (0, 3, 7):
        rows = [part.training_batch(step) for part in parts]
        for name, values in complete.training_batch(step).items():
            assert (np.concatenate([row[name] for row in rows]) == values).all()
    for batch, *rows in zip(complete.evaluation(), *(part.evaluation() for part in parts), strict=True):
        assert all((np.concatenate([row[name] for row in rows]) == values).all() for name, values in batch.items())


@pytest.mark.parametrize(("length", "batch"), [(10, 4), (8, 4), (3, 4), (4, 1)])
def test_evaluation_sees_every_example_once_and_masks_padding(length, batch):
    batches = list(loader_of(length, batch).evaluation())
    assert all(len(b["weight"]) == batch for b in batches)
    seen, weight = (np.concatenate(parts) for parts in zip(*((b["image"][:, 0, 0, 0], b["weight"]) for b in batches)))
    assert seen[weight == 1].tolist() == list(range(length))
    assert weight.sum() == length and set(weight) <= {0.0, 1.0}
    assert all((b["draw"] == -1).all() for b in batches), "no random transform in evaluation"
    assert same_batches(list(loader_of(length, batch, threads=5).evaluation()), batches)


def test_generator_of_an_example_depends_on_nothing_but_its_name():
    def draw(*name: int) -> float:
        return make_example_generator(*name).random()

    names = [(seed, epoch, index) for seed in range(3) for epoch in range(3) for index in range(20)]
    forwards = {name: draw(*name) for name in names}
    assert {name: draw(*name) for name in reversed(names)} == forwards
    assert len(set(forwards.values())) == len(names)
    # Nor does it repeat the stream that shuffles an epoch.
    assert draw(0, 0, 0) != np.random.default_rng((0, 0, 0)).random()


# Broken images


class Partly(Numbers):
    """Numbers; those in `broken` cannot be decoded."""

    def __init__(self, length: int, broken: set[int]):
        super().__init__(length)
        self.without = broken

    def __getitem__(self, index: int) -> dict:
        if index in self.without:
            raise BrokenImage("cut short")
        return super().__getitem__(index)

    def name(self, index: int) -> str:
        return f"photos/{index}.jpg"


def partly(length: int, batch: int, broken: set[int], **fields) -> Loader:
    return dataclasses.replace(loader_of(length, batch, **fields), source=Partly(length, broken), broken={})


def test_a_broken_image_gives_way_to_the_next(caplog):
    sound, loader = loader_of(20, 5), partly(20, 5, {3, 4, 19})
    replacement = {3: 5, 4: 5, 19: 0}
    with caplog.at_level(logging.WARNING):
        batches = list(loader.training(0, 8))
    for batch, complete in zip(batches, sound.training(0, 8), strict=True):
        expected = [replacement.get(i, i) for i in complete["image"][:, 0, 0, 0].tolist()]
        assert batch["image"][:, 0, 0, 0].tolist() == expected
        assert (batch["label"] == np.array(expected) % 3).all() and (batch["weight"] == 1).all()
        assert (batch["draw"] == complete["draw"]).all(), "what is random stays where it was"
    assert loader.broken == {3: "cut short", 4: "cut short", 19: "cut short"}
    assert sorted(caplog.messages)[-3:] == [
        f"data: photos/{i}.jpg cannot be decoded (cut short) and is left out." for i in (19, 3, 4)
    ]
    assert caplog.messages[-1] == "data: 3 of 20 images could not be decoded."
    # The stream stays a function of (seed, epoch, index).
    for threads, start in ((1, 0), (5, 0), (2, 3)):
        again = partly(20, 5, {3, 4, 19}, threads=threads)
        assert same_batches(list(again.training(start, 8)), batches[start:])


def test_evaluation_leaves_broken_images_out(caplog):
    loader = partly(10, 4, {0, 5, 9})
    batches = list(loader.evaluation())
    seen, weight = (np.concatenate(parts) for parts in zip(*((b["image"][:, 0, 0, 0], b["weight"]) for b in batches)))
    assert len(weight) == 12 and weight.dtype == np.float32
    assert seen[weight == 1].tolist() == [1, 2, 3, 4, 6, 7, 8]
    assert caplog.messages[-1] == "data: 3 of 10 images could not be decoded."
    caplog.clear()
    list(loader_of(10, 4).evaluation())
    assert not caplog.messages


def test_a_strict_loader_stops():
    for batches in (partly(20, 5, {7}, on_broken="stop").training(0, 4), partly(20, 5, {7}, on_broken="stop").evaluation()):
        with pytest.raises(UserError, match=r"photos/7.jpg cannot be decoded \(cut short\): repair or remove it"):
            list(batches)


def test_nothing_but_broken_images_is_an_error():
    with pytest.raises(UserError, match="100 images in a row cannot be decoded, the first is photos/2.jpg"):
        partly(200, 1, set(range(2, 200)) | {0, 1}).evaluation_batch(2)
    loader = partly(200, 1, set(range(2, 101)))  # 99 of them
    assert loader.evaluation_batch(2)["image"][0, 0, 0, 0] == 101
