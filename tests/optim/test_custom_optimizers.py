"""Optimizers and schedules of optax and of the user's own, and the parts that a training loop of the user's composes."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from attention_jax.errors import UserError
from attention_jax.optim.optimizers import average_weights, make_decay_mask, make_optimizer, update_average
from attention_jax.optim.schedules import make_schedule, noam_schedule, warmup_schedule
from attention_jax.train.program import build_program
from tests.helpers.small import small_config

PARAMS = {"dense": {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}}
RULES = (("bias$", False), (".*", True))
RATE = optax.linear_schedule(0.1, 0.05, 4)
TINY = dict(model__stage_sizes=(1,), model__widths=(4,))
OWN = """
import optax


def make(schedule, mask, momentum=0.5):
    return optax.chain(optax.trace(momentum), optax.add_decayed_weights(0.1, mask), optax.scale_by_learning_rate(schedule))


def three(schedule):
    return 3


def fall(learning_rate, total_steps, floor=0.0):
    return lambda step: floor + (learning_rate - floor) * (1 - step / total_steps)


def without_rate(total_steps):
    return lambda step: 1.0


def no_schedule(value):
    return 3
"""


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("own") / "own.py"
    path.write_text(OWN)
    return path


def gradients(step: int) -> Any:
    return jax.tree.map(lambda p: jnp.cos(step + jnp.arange(p.size, dtype=jnp.float32)).reshape(p.shape), PARAMS)


def take_steps(optimizer: optax.GradientTransformation, steps: int = 5) -> list[Any]:
    """The parameters after each step."""
    params, state, after = PARAMS, optimizer.init(PARAMS), []
    for step in range(steps):
        updates, state = optimizer.update(gradients(step), state, params)
        params = optax.apply_updates(params, updates)
        after.append(params)
    return after


def same(a: Any, b: Any, tolerance: float = 1e-6) -> bool:
    return jax.tree.all(jax.tree.map(lambda x, y: np.allclose(x, y, rtol=0, atol=tolerance), a, b))


def test_an_optimizer_of_optax_gets_schedule_mask_and_arguments() -> None:
    args = dict(b1=0.8, weight_decay=0.5)
    found = take_steps(make_optimizer("optax.lion", RATE, 0.0, RULES, args=args))
    mask = {"dense": {"kernel": True, "bias": False}}
    assert same(found, take_steps(optax.lion(RATE, b1=0.8, weight_decay=0.5, mask=mask)))
    assert not same(found, take_steps(optax.lion(RATE, b1=0.8, weight_decay=0.5)))


def test_gradients_are_clipped_before_an_optimizer_of_the_users(own: Path) -> None:
    found = take_steps(make_optimizer(f"{own}:make", RATE, 0.0, RULES, clip_norm=0.1, args=dict(momentum=0.9)))
    mask = make_decay_mask(RULES)
    decay = optax.add_decayed_weights(0.1, mask)
    expected = optax.chain(optax.clip_by_global_norm(0.1), optax.trace(0.9), decay, optax.scale_by_learning_rate(RATE))
    assert same(found, take_steps(expected))


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("optax.lion", dict(args=dict(beta=1)), r"optimizer.args: 'optax.lion' does not take these arguments \(.*'beta'"),
        ("optax.adam", dict(args=dict(learning_rate=1)), r"does not take these arguments \(.*multiple values .*learning_rate"),
        ("optax.lion", dict(weight_decay=0.1), r"'optax.lion' does not read optimizer.weight_decay=0.1: set it to 0 and give"),
        ("optax.lio", {}, "optax has no 'lio' .did you mean 'lion'"),
        ("{own}:three", {}, "made int: give a function of the schedule that returns an optax.GradientTransformation"),
        ("optax.constant_schedule", {}, "made function: give a function of the schedule that returns"),
        ("sgd", dict(args=dict(momentum=1)), r"'sgd' does not read optimizer.args=.*: leave it out"),
    ],
)
def test_mistakes_of_an_optimizer(own: Path, name: str, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as raised:
        make_optimizer(name.format(own=own), RATE, **{"weight_decay": 0.0, "decay_rules": RULES, **fields})
    assert "\n" not in str(raised.value)


def test_a_schedule_of_optax_begins_after_the_warmup_with_the_peak() -> None:
    schedule = make_schedule("optax.exponential_decay", 0.4, 110, 10, args=dict(decay_rate=0.5))
    steps = np.arange(10, 110)
    np.testing.assert_allclose([schedule(step) for step in steps], 0.4 * 0.5 ** ((steps - 10) / 100), rtol=1e-5)
    np.testing.assert_allclose([schedule(step) for step in range(10)], 0.04 * np.arange(1, 11), rtol=1e-5)
    given = make_schedule("optax.exponential_decay", 0.4, 110, 10, args=dict(decay_rate=0.5, transition_steps=50))
    assert float(given(60)) == pytest.approx(0.2)


def test_a_schedule_of_the_users(own: Path) -> None:
    schedule = make_schedule(f"{own}:fall", 0.4, 110, 10, args=dict(floor=0.2))
    assert [float(schedule(step)) for step in (9, 10, 60, 110)] == pytest.approx([0.4, 0.4, 0.3, 0.2])


@pytest.mark.parametrize(
    ("name", "args", "message"),
    [
        ("optax.exponential_decay", dict(decay_rate=0.5, init_value=1.0), "as schedule.args has 'init_value': leave that out"),
        ("{own}:fall", dict(learning_rate=1.0), "does not read schedule.learning_rate=0.4.* 'learning_rate': leave that out"),
        ("{own}:without_rate", {}, "does not read schedule.learning_rate=0.4.* it takes none of learning_rate, peak_value"),
        ("optax.exponential_decay", {}, r"schedule.args: .* does not take these arguments \(.*decay_rate"),
        ("{own}:fall", dict(flor=0.1), r"schedule.args: .* does not take these arguments \(.*flor"),
        ("{own}:no_schedule", {}, "made int: give a function that returns an optax schedule"),
        ("cosine", dict(alpha=0.1), "'cosine' does not read schedule.args=.*: leave it out"),
    ],
)
def test_mistakes_of_a_schedule(own: Path, name: str, args: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as raised:
        make_schedule(name.format(own=own), 0.4, 110, 10, args=args)
    assert "\n" not in str(raised.value)


def test_a_config_names_both(own: Path) -> None:
    """The step uses them: after one step from zero moments, Lion has moved every weight by the rate, or not at all."""
    names = dict(optimizer__name="optax.lion", schedule__name=f"{own}:fall", schedule__args={"floor": 0.01})
    config = small_config(**names, optimizer__weight_decay=0.0, schedule__warmup_steps=0, ema__decay=0.0, **TINY)
    program = build_program(config)
    start = jax.device_get(program.init(np.uint32(0)))
    batch = next(program.task.loader(program.config, "train", (0, 1), training=True).training(0, 1))
    after, metrics = jax.device_get(program.train_step(start, batch, np.uint32(0)))
    rate = float(metrics["learning_rate"])
    assert rate == pytest.approx(config.schedule.learning_rate)
    moved = np.concatenate([np.ravel(abs(a - b)) for a, b in zip(*map(jax.tree.leaves, (start.params, after.params)))])
    np.testing.assert_allclose(moved[moved > 0], rate, rtol=1e-3)
    assert (moved > 0).mean() > 0.5


def test_an_average_of_weights_is_that_of_training() -> None:
    """As the last link of a chain, over five steps, with and without the warm-up of its decay."""
    for warmup in (True, False):
        plain, chained = optax.sgd(RATE), optax.chain(optax.sgd(RATE), average_weights(0.9, warmup))
        expected = PARAMS
        for step, params in enumerate(take_steps(plain)):
            expected = update_average(expected, params, 0.9, jnp.int32(step), warmup)
        params, state = PARAMS, chained.init(PARAMS)
        for step in range(5):
            updates, state = chained.update(gradients(step), state, params)
            params = optax.apply_updates(params, updates)
        assert same(state[-1].average, expected) and int(state[-1].step) == 5
        assert same(params, take_steps(plain)[-1]) and not same(params, expected, 1e-3)


def test_a_decay_mask_in_an_optimizer_of_optax() -> None:
    mask = make_decay_mask((("bias$", False), ("kernel$", True)))
    assert mask(PARAMS) == {"dense": {"kernel": True, "bias": False}}
    decayed, plain = (take_steps(optax.adamw(0.1, weight_decay=wd, mask=mask), 1)[0]["dense"] for wd in (0.5, 0.0))
    np.testing.assert_allclose(plain["kernel"] - decayed["kernel"], 0.05, rtol=1e-5)
    np.testing.assert_array_equal(plain["bias"], decayed["bias"])
    with pytest.raises(KeyError, match="optimizer.decay_rules.*dense/scale"):
        mask({"dense": {"scale": jnp.ones(3)}})


def test_schedules_alone_are_those_of_configs() -> None:
    steps = range(30)
    ours = make_schedule("noam", 2.0, 100, 8, d_model=64)
    np.testing.assert_allclose([noam_schedule(64, 8, 2.0)(s) for s in steps], [ours(s) for s in steps])
    ours = make_schedule("cosine", 0.4, 30, 5, warmup_start=0.1)
    alone = warmup_schedule(optax.cosine_decay_schedule(0.4, 25), 5, 0.4, 0.1)
    np.testing.assert_allclose([alone(s) for s in steps], [ours(s) for s in steps])
    with pytest.raises(UserError, match="divides by its warm-up"):
        noam_schedule(64, 0)
