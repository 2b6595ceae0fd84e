"""Schedules, optimizers, averages and losses against their formulas."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from attention_jax import tree
from attention_jax.errors import UserError
from attention_jax.optim import ema
from attention_jax.optim.losses import cross_entropy
from attention_jax.optim.optimizers import make_optimizer
from attention_jax.optim.schedules import make_schedule
from attention_jax.train.program import build
from tests.small import small_config


def values(schedule, steps):
    return np.array([float(schedule(step)) for step in steps])


def test_cosine_is_the_papers_formula_after_the_warmup():
    schedule = make_schedule("cosine", 0.4, total_steps=110, warmup_steps=10)
    np.testing.assert_allclose(values(schedule, range(10)), 0.4 * np.arange(1, 11) / 10, rtol=1e-6)
    t = np.arange(10, 111)
    np.testing.assert_allclose(values(schedule, t), 0.2 * (1 + np.cos(math.pi * (t - 10) / 100)), atol=1e-7)


def test_step_schedule_divides_at_shares_of_the_whole_run():
    schedule = make_schedule("step", 1.0, total_steps=64_000, warmup_steps=400, boundaries=(0.5, 0.75), factor=0.1)
    expected = [(400, 1.0), (31_999, 1.0), (32_001, 0.1), (47_999, 0.1), (48_001, 0.01), (63_999, 0.01)]
    np.testing.assert_allclose(values(schedule, [step for step, _ in expected]), [rate for _, rate in expected], rtol=1e-6)


def test_constant_schedule_with_a_warmup_of_one_step():
    np.testing.assert_allclose(values(make_schedule("constant", 0.3, 10, warmup_steps=1), range(4)), 0.3, rtol=1e-6)


def test_decay_follows_the_rules_and_an_unmatched_parameter_is_named():
    params = {"conv": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}}
    rules = (("bias$", False), (".*", True))
    for name in ("sgd", "adamw"):
        optimizer = make_optimizer(name, optax.constant_schedule(0.5), 0.1, rules, momentum=0.0)
        updates, _ = optimizer.update(jax.tree.map(jnp.zeros_like, params), optimizer.init(params), params)
        np.testing.assert_allclose(updates["conv"]["kernel"], -0.05, rtol=1e-6)
        np.testing.assert_array_equal(updates["conv"]["bias"], 0)
    with pytest.raises(UserError, match=r"optimizer.decay_rules: no rule matches the parameter .*bias"):
        build(small_config(optimizer__decay_rules=(("kernel$", True),)))


def test_ema_is_the_warmed_up_average():
    average = {"w": jnp.float32(0.0)}
    expected = 0.0
    for t in range(30):
        d = min(0.7, (1 + t) / (10 + t))
        expected = d * expected + (1 - d) * (t + 1)
        average = ema.update(average, {"w": jnp.float32(t + 1)}, 0.7, jnp.int32(t))
    assert float(average["w"]) == pytest.approx(expected, rel=1e-5)
    constant = ema.update({"w": jnp.float32(1.0)}, {"w": jnp.float32(2.0)}, 0.7, jnp.int32(0), warmup=False)
    assert float(constant["w"]) == pytest.approx(1.3)


def test_smoothed_cross_entropy_is_the_definition():
    logits = jnp.asarray([[2.0, -1.0, 0.5, 0.0]])
    log_p = np.asarray(jax.nn.log_softmax(logits))[0]
    smoothed = cross_entropy(logits, jnp.asarray([2]), 0.1)
    assert float(smoothed[0]) == pytest.approx(-(0.9 * log_p[2] + 0.1 * log_p.mean()), rel=1e-6)
    assert float(cross_entropy(logits, jnp.asarray([2]))[0]) == pytest.approx(-log_p[2], rel=1e-6)


def test_tree_paths_and_first_match():
    params = {"a": {"kernel": 1, "bias": 2}, "b": (3, 4)}
    assert tree.flatten(params) == {"a/bias": 2, "a/kernel": 1, "b/0": 3, "b/1": 4}
    assert tree.nested({"a/b": 1, "a/c": 2, "d": 3}) == {"a": {"b": 1, "c": 2}, "d": 3}
    chosen = tree.select([("a/.*kernel", "x"), ("a", "y"), (".", "z")], params, "rules")
    assert chosen == {"a": {"kernel": "x", "bias": "y"}, "b": ("z", "z")}
