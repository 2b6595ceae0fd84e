"""Schedules, optimizers, averages and losses against their formulas."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from attention_jax import tree
from attention_jax.errors import UserError
from attention_jax.optim.losses import (
    cross_entropy,
    right_tokens,
    sigmoid_cross_entropy,
    soft_cross_entropy,
    target_distribution,
    token_cross_entropy,
)
from attention_jax.optim.optimizers import make_optimizer, scale_rates, update_average
from attention_jax.optim.schedules import make_schedule
from attention_jax.tasks import classification
from attention_jax.train.program import build_program
from tests.helpers.blocks import quick
from tests.helpers.small import small_config


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


def test_constant_schedule_after_a_warmup_from_a_rate():
    schedule = make_schedule("constant", 0.4, 100, warmup_steps=4, warmup_start=0.2)
    np.testing.assert_allclose(values(schedule, (0, 1, 2, 3, 4, 99)), [0.25, 0.3, 0.35, 0.4, 0.4, 0.4], rtol=1e-6)


@pytest.mark.parametrize("final_share", [0.0, 0.1])
def test_linear_schedule_is_a_straight_line(final_share):
    schedule = make_schedule("linear", 0.4, total_steps=110, warmup_steps=10, final_share=final_share)
    np.testing.assert_allclose(values(schedule, range(10)), 0.4 * np.arange(1, 11) / 10, rtol=1e-6)
    t = np.arange(10, 111)
    np.testing.assert_allclose(values(schedule, t), 0.4 * (1 - (1 - final_share) * (t - 10) / 100), atol=1e-7)


def test_cosine_ends_at_its_final_share():
    """ConvNeXt: peak 4e-3 down to 1e-6; half-way it is the mean of the two."""
    schedule = make_schedule("cosine", 4e-3, total_steps=1020, warmup_steps=20, final_share=1e-6 / 4e-3)
    t = np.asarray([20, 270, 520, 1019, 1020])
    expected = 1e-6 + 0.5 * (4e-3 - 1e-6) * (1 + np.cos(np.pi * (t - 20) / 1000))
    np.testing.assert_allclose(values(schedule, t), expected, rtol=1e-4)
    assert float(schedule(1019)) == pytest.approx(1e-6, rel=0.02)


def test_resnet_rs_rates():
    """Peak 0.1 for 256 images, so 1.6 for 4096; 5 epochs of 312 steps up, cosine to 0 over the rest of 350."""
    schedule = make_schedule("cosine", 1.6, total_steps=109_200, warmup_steps=1560)
    found = values(schedule, (0, 779, 1559, 1560, 55_380, 109_199))
    np.testing.assert_allclose(found[:5], [1.6 / 1560, 0.8, 1.6, 1.6, 0.8], atol=1e-7)
    assert 0 <= found[5] < 1e-6


@pytest.mark.parametrize(("d_model", "peak"), [(512, 6.9877e-4), (1024, 4.9411e-4)])
def test_noam_is_the_papers_formula(d_model, peak):
    schedule = make_schedule("noam", 1.0, total_steps=100_000, warmup_steps=4000, d_model=d_model)
    steps = np.asarray([0, 1, 2000, 3998, 3999, 4000, 20_000, 99_999])
    s = steps + 1.0
    np.testing.assert_allclose(values(schedule, steps), d_model**-0.5 * np.minimum(s**-0.5, s * 4000**-1.5), rtol=2e-6)
    assert float(schedule(3999)) == pytest.approx(peak, rel=1e-4) == max(values(schedule, steps))
    doubled = make_schedule("noam", 2.0, 100_000, 8000, d_model=d_model)
    # tensor2tensor's "constant * linear_warmup * rsqrt_decay" with constant 2
    expected = 2 * np.minimum(1, s / 8000) / np.sqrt(np.maximum(s, 8000)) * d_model**-0.5
    np.testing.assert_allclose(values(doubled, steps), expected, rtol=2e-6)


def test_noam_without_a_warmup_is_refused():
    with pytest.raises(UserError, match=r"schedule.name='noam' divides by its warm-up of 0 steps"):
        build_program(small_config(schedule__name="noam", schedule__warmup_steps=0, schedule__d_model=8))


def test_decay_follows_the_rules_and_an_unmatched_parameter_is_named():
    params = {"conv": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}}
    rules = (("bias$", False), (".*", True))
    for name, decay in (("sgd", "l2"), ("sgd", "decoupled"), ("rmsprop", "decoupled"), ("adamw", "l2")):
        optimizer = make_optimizer(name, optax.constant_schedule(0.5), 0.1, rules, momentum=0.0, decay=decay)
        updates, _ = optimizer.update(jax.tree.map(jnp.zeros_like, params), optimizer.init(params), params)
        np.testing.assert_allclose(updates["conv"]["kernel"], -0.05, rtol=1e-6)
        np.testing.assert_array_equal(updates["conv"]["bias"], 0)
    with pytest.raises(UserError, match=r"optimizer.decay_rules: no rule matches the parameter .*bias"):
        build_program(small_config(optimizer__decay_rules=(("kernel$", True),)))


@pytest.mark.parametrize("name", ["sgd", "rmsprop", "adamw"])
def test_a_factor_before_the_rate_is_another_rate(name):
    """Each parameter moves as under an optimizer whose schedule is its factor times ours, decoupled decay included."""
    params = {"stem": {"kernel": jnp.full((2,), 2.0)}, "head": {"kernel": jnp.full((2,), 3.0)}}
    gradients = jax.tree.map(lambda x: x - 1.5, params)

    def train(factor, rules=None):
        optimizer = make_optimizer(name, lambda step: factor * 0.1 / (1 + step), 0.1, ((".*", True),), decay="decoupled")
        optimizer = scale_rates(optimizer, rules) if rules else optimizer
        new, state = params, optimizer.init(params)
        for _ in range(3):
            updates, state = optimizer.update(gradients, state, new)
            new = optax.apply_updates(new, updates)
        return new

    scaled = train(1.0, (("stem", 0.25), (".*", 1.0)))
    np.testing.assert_allclose(scaled["stem"]["kernel"], train(0.25)["stem"]["kernel"], rtol=1e-6)
    np.testing.assert_array_equal(scaled["head"]["kernel"], train(1.0)["head"]["kernel"])
    assert abs(float(scaled["stem"]["kernel"][0]) - 2) > 1e-3


def test_factors_of_the_rate_come_from_the_config_and_cost_nothing_at_1():
    optimizer = make_optimizer("sgd", optax.constant_schedule(0.5), 0.0, ((".*", True),))
    assert scale_rates(optimizer, ((".*", 1.0),)) is optimizer
    with pytest.raises(UserError, match=r"optimizer.rate_rules: no rule matches the parameter .*bias"):
        build_program(small_config(optimizer__rate_rules=(("kernel$", 0.5),)))
    with pytest.raises(UserError, match=r"no parameter is found by '\^block1/': give"):
        build_program(small_config(optimizer__rate_rules=(("^block1/", 0.5), (".*", 1.0))))
    with pytest.raises(UserError, match="rate_rules"):
        build_program(small_config(optimizer__rate_rules=((".*", -1.0),)))


def test_binary_cross_entropy_is_the_mean_of_its_terms():
    """-t·log s(x) - (1 - t)·log(1 - s(x)), finite for large logits too; a threshold makes targets 0 or 1."""
    logits, targets = np.array([[2.0, -1.0, 0.5], [-3.0, 0.0, 90.0]]), np.array([[0.8, 0.2, 0.0], [0.1, 0.3, 1.0]])
    for threshold, t in ((0.0, targets), (0.2, np.array([[1.0, 0, 0], [0, 1, 1]]))):
        expected = (np.logaddexp(0, -logits) * t + np.logaddexp(0, logits) * (1 - t)).mean(-1)
        np.testing.assert_allclose(
            sigmoid_cross_entropy(jnp.asarray(logits), jnp.asarray(targets), threshold), expected, rtol=1e-6
        )
    assert sigmoid_cross_entropy(jnp.zeros((1, 3), jnp.bfloat16), jnp.zeros((1, 3))).dtype == jnp.float32


def test_the_task_computes_the_loss_that_its_config_names():
    """In training with smoothed targets, in evaluation with those of the label; predictions have a sigmoid for each class."""
    config = small_config(**{"loss.function": "binary_cross_entropy", "loss.label_smoothing": 0.3, "model.num_classes": 3})
    config.data.image_shape = (8, 8, 1)
    logits, label = jnp.array([[1.0, -2.0, 0.5], [0.0, 3.0, -1.0]]), np.array([0, 2])
    batch = {"image": logits, "label": label, "weight": np.ones(2, np.float32)}
    sums, _ = classification.loss(config, Passing(), {}, batch, jax.random.key(0), train=True)
    smoothed = target_distribution(label, 3, 0.3)
    assert float(sums["loss"]) == pytest.approx(float(sigmoid_cross_entropy(logits, smoothed).sum()), rel=1e-6)
    found = classification.outputs(config, Passing(), {}, batch)["loss"]
    np.testing.assert_allclose(found, sigmoid_cross_entropy(logits, jax.nn.one_hot(label, 3)), rtol=1e-6)
    predictor = classification.Predictor(config, list("abc"), lambda images: logits)
    predicted = predictor.predict(np.zeros((2, 8, 8, 1), np.uint8)).probabilities
    np.testing.assert_allclose(predicted, jax.nn.sigmoid(logits), rtol=1e-6)
    with pytest.raises(UserError, match=r"loss.target_threshold=0.2 is read by nothing"):
        small_config(**{"loss.target_threshold": 0.2})


class Passing(nn.Module):
    """Logits that are the images."""

    def __call__(self, x, train=False):
        return x


def steps_of(gradients, *arguments, **options):
    """The weight after each step of an optimizer, from 0, with no decay."""
    optimizer = make_optimizer(*arguments, 0.0, ((".*", True),), **options)
    params = {"w": jnp.zeros(())}
    state, seen = optimizer.init(params), []
    for gradient in gradients:
        updates, state = optimizer.update({"w": jnp.float32(gradient)}, state, params)
        params = optax.apply_updates(params, updates)
        seen.append(float(params["w"]))
    return np.asarray(seen)


def test_rmsprop_of_three_libraries_on_one_gradient():
    """By hand, for g = 2, b2 = 0.9, eps = 0.1, rate 1: s is 0.9·start + 0.4."""
    rate = optax.constant_schedule(1.0)
    options = dict(momentum=0.0, b2=0.9, eps=0.1)
    assert steps_of([2.0], "rmsprop", rate, rmsprop="tensorflow", **options)[0] == pytest.approx(-2 / math.sqrt(1.3 + 0.1))
    assert steps_of([2.0], "rmsprop", rate, rmsprop="keras", **options)[0] == pytest.approx(-2 / math.sqrt(0.4 + 0.1))
    assert steps_of([2.0], "rmsprop", rate, rmsprop="torch", **options)[0] == pytest.approx(-2 / (math.sqrt(0.4) + 0.1))
    plain, nesterov = (steps_of([2, 1], "rmsprop", rate, momentum=0.5, nesterov=flag) for flag in (False, True))
    np.testing.assert_array_equal(plain, nesterov)  # none of the three has Nesterov momentum


def test_a_velocity_keeps_the_old_rate_or_takes_the_new_one():
    """Two unit gradients, momentum 1/2; the rate falls from 1 to 1/10 between them (Goyal et al. 2017, Section 3)."""
    falling = optax.piecewise_constant_schedule(1.0, {1: 0.1})
    inside = steps_of([1, 1], "sgd", falling, momentum=0.5, rate_in_velocity=True)
    np.testing.assert_allclose(inside, [-1, -1 - (0.5 + 0.1)], rtol=1e-6)
    outside = steps_of([1, 1], "sgd", falling, momentum=0.5)
    np.testing.assert_allclose(outside, [-1, -1 - 0.1 * 1.5], rtol=1e-6)


def test_clipping_is_of_the_global_norm_and_comes_before_decay():
    params = {"a": jnp.float32(10.0), "b": jnp.float32(-10.0)}
    gradients = {"a": jnp.float32(3.0), "b": jnp.float32(4.0)}
    for limit, share in ((1.0, 0.2), (5.5, 1.0), (0.0, 1.0)):
        optimizer = make_optimizer("sgd", optax.constant_schedule(1.0), 0.1, ((".*", True),), momentum=0.0, clip_norm=limit)
        updates, _ = optimizer.update(gradients, optimizer.init(params), params)
        assert float(updates["a"]) == pytest.approx(-(3 * share + 1.0)) and float(updates["b"]) == pytest.approx(
            -(4 * share - 1)
        )


@pytest.mark.slow
def test_the_clipped_gradient_is_the_whole_batchs_and_is_logged_unclipped():
    """Accumulation comes first: with statistics of single examples, two micro-batches clip as one batch does."""
    found = []
    for parts in (1, 2):
        fields = dict(optimizer__clip_norm=0.1, batch_norm__granularity=1, accumulation=parts, parallel__data=1)
        program = build_program(small_config(**fields))
        loader = program.task.loader(program.config, "train", (0, 1), training=True)
        state, metrics = quick(program.train_step)(program.init(0), loader.training_batch(0), np.uint32(0))
        assert metrics["grad_norm"] > 0.2, "before clipping"
        found.append(tree.flatten_by_path(state.params))
    for path, value in found[0].items():
        np.testing.assert_allclose(value, found[1][path], rtol=1e-4, atol=1e-6, err_msg=path)


def test_ema_is_the_warmed_up_average():
    average = {"w": jnp.float32(0.0)}
    expected = 0.0
    for t in range(30):
        d = min(0.7, (1 + t) / (10 + t))
        expected = d * expected + (1 - d) * (t + 1)
        average = update_average(average, {"w": jnp.float32(t + 1)}, 0.7, jnp.int32(t))
    assert float(average["w"]) == pytest.approx(expected, rel=1e-5)
    constant = update_average({"w": jnp.float32(1.0)}, {"w": jnp.float32(2.0)}, 0.7, jnp.int32(0), warmup=False)
    assert float(constant["w"]) == pytest.approx(1.3)


def test_smoothed_cross_entropy_is_the_definition():
    logits = jnp.asarray([[2.0, -1.0, 0.5, 0.0]])
    log_p = np.asarray(jax.nn.log_softmax(logits))[0]
    smoothed = cross_entropy(logits, jnp.asarray([2]), 0.1)
    assert float(smoothed[0]) == pytest.approx(-(0.9 * log_p[2] + 0.1 * log_p.mean()), rel=1e-6)
    assert float(cross_entropy(logits, jnp.asarray([2]))[0]) == pytest.approx(-log_p[2], rel=1e-6)


@pytest.mark.parametrize("loss", [cross_entropy, token_cross_entropy])
def test_a_class_that_the_network_leaves_out_adds_nothing(loss):
    """A logit of -inf is a probability of 0, which is right where the target has none either: log(1 + e^-1) is left."""
    logits, labels = jnp.array([[0.0, 1.0, -jnp.inf]]), jnp.array([1])
    assert float(loss(logits, labels)[0]) == pytest.approx(0.31326163)
    gradient = jax.grad(lambda logits: loss(logits, labels).sum())(logits)
    np.testing.assert_allclose(gradient, [[0.26894143, -0.26894143, 0.0]], rtol=1e-5)
    assert loss(logits, jnp.array([2]))[0] == jnp.inf


def test_both_definitions_of_label_smoothing():
    uniform = np.asarray(target_distribution(jnp.asarray([2, 0]), 4, 0.2))
    np.testing.assert_allclose(uniform, [[0.05, 0.05, 0.85, 0.05], [0.85, 0.05, 0.05, 0.05]], rtol=1e-6)
    others = np.asarray(target_distribution(jnp.asarray([2, 0]), 4, 0.2, "others"))
    np.testing.assert_allclose(others, [[0.2 / 3, 0.2 / 3, 0.8, 0.2 / 3], [0.8, 0.2 / 3, 0.2 / 3, 0.2 / 3]], rtol=1e-6)
    # e over the others is e·K/(K-1) over all.
    np.testing.assert_allclose(others, target_distribution(jnp.asarray([2, 0]), 4, 0.2 * 4 / 3), rtol=1e-5)
    logits = jnp.asarray([[2.0, -1.0, 0.5, 0.0]])
    log_p = np.asarray(jax.nn.log_softmax(logits))[0]
    loss = float(cross_entropy(logits, jnp.asarray([2]), 0.3, "others")[0])
    assert loss == pytest.approx(-(0.7 * log_p[2] + 0.1 * (log_p[0] + log_p[1] + log_p[3])), rel=1e-6)


def test_a_loss_of_bfloat16_logits_is_computed_in_float32():
    logits = jnp.asarray([[2.0, -1.0, 0.5, 0.0]], jnp.bfloat16)
    for loss in (cross_entropy(logits, jnp.asarray([2]), 0.1), soft_cross_entropy(logits, jnp.full((1, 4), 0.25))):
        assert loss.dtype == jnp.float32
    exact = cross_entropy(logits.astype(jnp.float32), jnp.asarray([2]), 0.1)
    assert float(cross_entropy(logits, jnp.asarray([2]), 0.1)[0]) == float(exact[0])


@pytest.mark.parametrize(("label_smoothing", "over"), [(0.0, "uniform"), (0.1, "uniform"), (0.1, "others"), (0.0, "others")])
def test_the_loss_of_tokens_is_the_cross_entropy(label_smoothing, over):
    rng = np.random.default_rng(0)
    labels = jnp.asarray(rng.integers(0, 7, (2, 3)))
    weights = jnp.asarray(rng.normal(size=(2, 3)), jnp.float32)
    for dtype in (jnp.float32, jnp.bfloat16):
        logits = jnp.asarray(rng.normal(0, 3, (2, 3, 7)), dtype)

        def summed(loss, logits=logits):
            def of_logits(logits):
                losses = loss(logits, labels, label_smoothing, over)
                assert losses.shape == (2, 3) and losses.dtype == jnp.float32
                return (losses * weights).sum()

            return jax.value_and_grad(of_logits)(logits)

        (value, gradient), (expected, expected_gradient) = summed(token_cross_entropy), summed(cross_entropy)
        np.testing.assert_allclose(value, expected, rtol=1e-5)
        assert gradient.dtype == expected_gradient.dtype
        np.testing.assert_allclose(*(np.asarray(g, np.float32) for g in (gradient, expected_gradient)), rtol=1e-2, atol=1e-6)


def test_right_tokens_are_those_of_argmax():
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(4, 50, 5)))
    labels = jnp.asarray(np.random.default_rng(1).integers(0, 5, (4, 50)))
    right = np.asarray(right_tokens(logits, labels))
    assert right.dtype == bool and 0 < right.sum() < right.size
    np.testing.assert_array_equal(right, logits.argmax(-1) == labels)


def test_tree_paths_and_first_match():
    params = {"a": {"kernel": 1, "bias": 2}, "b": (3, 4)}
    assert tree.flatten_by_path(params) == {"a/bias": 2, "a/kernel": 1, "b/0": 3, "b/1": 4}
    assert tree.nest_by_path({"a/b": 1, "a/c": 2, "d": 3}) == {"a": {"b": 1, "c": 2}, "d": 3}
    chosen = tree.select_by_path([("a/.*kernel", "x"), ("a", "y"), (".", "z")], params, "rules")
    assert chosen == {"a": {"kernel": "x", "bias": "y"}, "b": ("z", "z")}


def test_boundaries_that_fall_on_one_step_both_count():
    schedule = make_schedule("step", 1.0, 10, boundaries=(0.5, 0.52))
    np.testing.assert_allclose(values(schedule, np.array([4, 9])), [1.0, 0.01], rtol=1e-6)


def test_one_class_has_no_others():
    with pytest.raises(UserError, match=r"loss.smoothing_over='others' with one class: there are no others"):
        cross_entropy(jnp.zeros((1, 1)), jnp.array([0]), 0.1, "others")
