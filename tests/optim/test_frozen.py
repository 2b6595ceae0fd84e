"""A rate of 0 freezes: nothing moves, nothing is kept for it, and rules that do not say what they should are refused."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from attention_jax.config import override
from attention_jax.errors import UserError
from attention_jax.optim.optimizers import average_weights, make_optimizer, scale_rates
from attention_jax.train.program import build_program
from tests.helpers.small import small_config

RULES = (("^head/", 1.0), (".*", 0.0))
EVERYTHING_DECAYS = ((".*", True),)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("sgd", {"decay": "l2", "nesterov": True}),
        ("sgd", {"decay": "decoupled", "clip_norm": 0.1}),
        ("rmsprop", {"decay": "l2"}),
        ("adamw", {}),
        ("adamw", {"clip_norm": 0.1}),
    ],
)
def test_frozen_parameters_do_not_move(name, options):
    params = {"stem": {"kernel": jnp.linspace(-3, 3, 7)}, "head": {"kernel": jnp.ones(2)}}
    optimizer = scale_rates(make_optimizer(name, lambda step: 0.1, 0.5, EVERYTHING_DECAYS, **options), RULES)
    new, state = params, optimizer.init(params)
    alone = make_optimizer(name, lambda step: 0.1, 0.5, EVERYTHING_DECAYS, **options)
    head, its_state = {"head": params["head"]}, alone.init({"head": params["head"]})
    gradients = {"stem": {"kernel": jnp.full(7, 50.0)}, "head": {"kernel": jnp.array([1.0, -2.0])}}
    for _ in range(3):
        updates, state = optimizer.update(gradients, state, new)
        new = optax.apply_updates(new, updates)
        updates, its_state = alone.update({"head": gradients["head"]}, its_state, head)
        head = optax.apply_updates(head, updates)
    assert np.asarray(new["stem"]["kernel"]).tobytes() == np.asarray(params["stem"]["kernel"]).tobytes()
    # The rest moves as if there were nothing else, the norm that is clipped included.
    np.testing.assert_array_equal(new["head"]["kernel"], head["head"]["kernel"])
    assert len(jax.tree.leaves(state)) == len(jax.tree.leaves(its_state)), "no moments of frozen parameters"


def test_rules_that_freeze_nothing_or_everything_are_refused():
    def build(*rules):
        build_program(small_config(optimizer__rate_rules=rules))

    with pytest.raises(UserError, match=r"no parameter is frozen by '\^stemm/': give an expression for their paths"):
        build(("^stemm/", 0.0), ("^stage1", 0.0), (".*", 1.0))
    with pytest.raises(UserError, match=r"no parameter is frozen by '\^stem_': give"):
        build(("^stem", 0.5), ("^stem_", 0.0), (".*", 1.0))  # an earlier rule has them
    with pytest.raises(UserError, match="freezes every parameter: leave some a rate"):
        build((".*", 0.0))
    with pytest.raises(UserError, match=r"optimizer.rate_rules: no rule matches the parameter .*head/bias"):
        build(("^stem", 0.0), ("kernel$", 1.0), ("stage", 1.0))


def test_the_backward_pass_of_what_is_frozen_is_left_out():
    """The gradient of the head alone: no convolution is in it, neither by its input nor by its kernel."""

    def count(**fields):
        program = build_program(small_config(**fields, ema__decay=0.0))
        batch = {
            name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in program.task.batch_shapes(program.config)[0].items()
        }
        return str(program.train_step.trace(program.abstract_state, batch, np.uint32(0)).jaxpr).count("conv_general_dilated[")

    # Two thirds of all, as each convolution has a gradient by its input and one by its kernel.
    assert count(optimizer__rate_rules=RULES) <= count() / 2 > 0


def test_an_average_of_weights_may_follow():
    """Optimizers that keep parameters in their state have them of what is trained."""
    optimizer = scale_rates(optax.chain(optax.sgd(0.1), average_weights(0.9)), RULES)
    params = {"stem": {"kernel": jnp.ones(3)}, "head": {"kernel": jnp.ones(2)}}
    updates, _ = optimizer.update(jax.tree.map(jnp.ones_like, params), optimizer.init(params), params)
    assert not np.asarray(updates["stem"]["kernel"]).any() and np.asarray(updates["head"]["kernel"]).all()


def test_pieces_freeze_and_keep_the_other_rates():
    from attention_jax import recipes

    config = recipes.layerwise_lr_decay(small_config(), ("^stem_", "^stage1_", "^stage2_"), 0.5)
    rules = recipes.freeze(config, ("^stem_",)).optimizer.rate_rules
    assert rules[0] == ("^stem_", 0.0) and rules[1:] == config.optimizer.rate_rules
    build_program(override(small_config(), {"optimizer.rate_rules": rules}))
