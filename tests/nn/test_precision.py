"""bfloat16: activations and products in it, weights, statistics, optimizer and loss in float32."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attention_jax import tree
from attention_jax.models import create_model
from attention_jax.nn.conv import Conv
from attention_jax.nn.norm import BatchNorm
from attention_jax.tasks import base, classification, get_task
from attention_jax.train.program import build_program
from tests.helpers.small import small_config

HALF, FULL = jnp.bfloat16, jnp.float32


def numbers(seed: int, *shape: int) -> np.ndarray:
    return np.random.RandomState(seed).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("group_size", [None, 4])
def test_batch_norm_computes_in_float32_and_rounds_once(train, group_size):
    """At mean 200 a bfloat16 has a spacing of 1, so that statistics computed in it would be worthless."""
    x = jnp.asarray(numbers(0, 8, 5, 5, 3) * 4 + 200, HALF)
    module = BatchNorm(use_running_average=not train, group_size=group_size)
    variables = module.init(jax.random.key(0), x)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {np.dtype(FULL)}
    y, changed = module.apply(variables, x, mutable=["batch_stats"])
    exact, exactly_changed = module.apply(variables, x.astype(FULL), mutable=["batch_stats"])
    assert y.dtype == HALF and exact.dtype == FULL
    np.testing.assert_array_equal(y, exact.astype(HALF))
    for path, value in tree.flatten_by_path(changed).items():
        assert value.dtype == FULL
        np.testing.assert_array_equal(value, tree.flatten_by_path(exactly_changed)[path])


class Tiny(nn.Module):
    """What a network does with `dtype`: the images are cast once, convolutions get it, the logits leave in float32."""

    num_classes: int = 10
    norm_group_size: int | None = None
    dtype: Any = None

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        x = images.astype(self.dtype or images.dtype)
        for i, stride in enumerate((1, 2)):
            x = Conv(8, (3, 3), stride, dtype=self.dtype, name=f"conv{i}")(x)
            x = nn.relu(BatchNorm(not train, self.norm_group_size, name=f"norm{i}")(x))
        x = nn.Dense(self.num_classes, dtype=self.dtype, name="head")(x.mean((1, 2)))
        return x.astype(FULL)


@pytest.fixture
def trained(monkeypatch):
    """precision -> (state, loss of each step) after three steps of the tiny network."""
    monkeypatch.setattr(base, "create_model", lambda name, widths, stage_sizes, **fields: Tiny(**fields))

    def train(precision: str) -> tuple:
        program = build_program(small_config(precision=precision, parallel__data=1, mix__mixup_alpha=0.2))
        loader = program.task.loader(program.config, "train", (0, 1), training=True)
        state, losses = program.init(0), []
        for step in range(3):
            state, metrics = program.train_step(state, loader.training_batch(step), np.uint32(0))
            losses.append(float(metrics["loss"] / metrics["weight"]))
            assert all(value.dtype == FULL for value in metrics.values())
        return program, state, np.asarray(losses)

    return train


@pytest.mark.slow
def test_training_in_bfloat16(trained):
    program, state, losses = trained("bfloat16")
    kept = {name: getattr(state, name) for name in ("params", "batch_stats", "opt_state", "ema")}
    for path, leaf in tree.flatten_by_path(kept).items():
        assert leaf.dtype == FULL or path.endswith("count"), path
    images = numbers(1, 2, 8, 8, 1)
    logits, seen = program.model.apply(state.variables(), images, capture_intermediates=True, mutable=["intermediates"])
    outputs = tree.flatten_by_path(seen["intermediates"])
    layers = {path: value.dtype for path, value in outputs.items() if not path.startswith("__call__")}
    assert len(layers) == 5 and set(layers.values()) == {np.dtype(HALF)}, layers
    assert logits.dtype == FULL

    _, exact_state, exact = trained("float32")
    np.testing.assert_allclose(losses, exact, rtol=0.02)  # 8 bits of a number
    assert (losses != exact).all(), "it does compute in bfloat16"
    for path, leaf in tree.flatten_by_path(exact_state.params).items():
        scale = np.abs(leaf).max()
        np.testing.assert_allclose(tree.flatten_by_path(state.params)[path], leaf, atol=0.03 * max(scale, 0.1), err_msg=path)


def test_float32_asks_nothing_of_the_network():
    """A network without the field trains in float32."""
    config = classification.resolve(small_config())
    expected = create_model("resnet32", widths=(4, 8), stage_sizes=(1, 1), num_classes=10)
    assert get_task("classification").model(config) == expected
