"""EfficientNet and its Lite form: PyTorch's numbers, what their fields do, mistakes."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import attention_jax as aj
from attention_jax import tree
from attention_jax.models.efficientnet import EfficientNet, round_filters
from attention_jax.nn.conv import StochasticDepth
from attention_jax.optim.losses import cross_entropy
from tests.helpers import parity, parity_efficientnet
from tests.helpers.blocks import drawn, numbers, quick
from tests.models.test_parity import ours

TINY: dict[str, Any] = dict(num_classes=3, width=0.25, depth=0.25)
KEY = jax.random.key(0)


def paths(network: Any, images: Any) -> dict[str, Any]:
    """{path: shape} of the parameters."""
    return tree.flatten_by_path(jax.eval_shape(network.init, KEY, images)["params"])


def test_names_for_tensorflow_differ_in_padding_and_normalisation_alone() -> None:
    names = aj.list_models("efficientnet*")
    assert aj.list_models("tf_efficientnet*") == [f"tf_{name}" for name in names] and len(names) == 13
    for name in names:
        released = aj.create_model(f"tf_{name}")
        assert (released.padding, released.norm_epsilon, released.norm_momentum) == ("tensorflow", 1e-3, 0.99)
        same = dict(padding="symmetric", norm_epsilon=1e-5, norm_momentum=0.9)
        assert released.clone(**same) == aj.create_model(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", parity_efficientnet.CASES)
def test_network_equals_frozen_pytorch(name: str) -> None:
    """Logits, every gradient and running statistics, in evaluation and in training."""
    case = parity_efficientnet.CASES[name]
    parity.check(ours(case, EfficientNet(**case.network, norm_running_var="unbiased")), parity.load(name))


def test_filters_are_rounded_as_released() -> None:
    """To multiples of 8, and never by more than a tenth down."""
    assert [round_filters(filters) for filters in (4, 11.9, 12, 35.2, 43.9, 52.8)] == [8, 16, 16, 32, 40, 56]


@pytest.mark.parametrize(
    ("fields", "places"),
    [
        (
            dict(lite=True, padding="tensorflow", gate="bam", gate_args=dict(reduction=2)),
            ["stage1", "stage2", "stage3", "stage5"],
        ),
        (dict(gate="eca", gate_at="block", gate_stages=(2,)), [f"stage{stage}_block1" for stage in range(1, 8)]),
    ],
)
def test_every_parameter_has_a_gradient(fields: dict[str, Any], places: list[str]) -> None:
    """Also those of a gate after a stage and inside a block, which show their maps."""
    network, images = EfficientNet(**TINY, **fields), numbers("images", 4, 64, 96, 3)
    variables = drawn(network, images)
    sown = jax.eval_shape(lambda v: network.apply(v, images, mutable=["attention"])[1]["attention"], variables)
    found = {path.split("/")[0].removesuffix("_gate") for path in tree.flatten_by_path(sown)}
    assert sorted(found) == places

    @quick
    def slopes(params: Any) -> Any:
        def loss(params: Any) -> jax.Array:
            logits, _ = network.apply({**variables, "params": params}, images, train=True, mutable=["batch_stats"])
            return cross_entropy(logits, np.array([0, 1, 2, 0])).sum()

        return jax.value_and_grad(loss)(params)

    loss, gradients = slopes(variables["params"])
    assert np.isfinite(loss)
    sizes = {path: np.abs(leaf).max() for path, leaf in tree.flatten_by_path(gradients).items()}
    # A bias before batch normalisation, as in BAM, changes nothing.
    assert not {path: size for path, size in sizes.items() if not size > 1e-7 and not path.endswith("bias")}


def test_a_gate_in_the_block_stands_in_for_squeeze_and_excitation() -> None:
    images = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    own = paths(EfficientNet(**TINY), images)
    replaced = paths(EfficientNet(**TINY, gate="eca", gate_at="block", gate_stages=(2,)), images)
    assert {path for path in own.keys() - replaced.keys() if "/gate/" in path} == own.keys() - replaced.keys()
    assert {path.split("/")[0] for path in own.keys() ^ replaced.keys()} == {"stage2_block1"}
    beside = paths(EfficientNet(**TINY, gate="eca"), images)
    assert {path.split("/")[0] for path in beside.keys() - own.keys()} == {f"stage{stage}_gate" for stage in (1, 2, 3, 5)}
    assert not own.keys() - beside.keys()


@pytest.fixture(scope="module")
def evaluated() -> tuple:
    """A tiny network, its variables, two images, their logits and their maps."""
    network, images = EfficientNet(**TINY), numbers("images", 2, 70, 101, 3)
    variables = drawn(network, images)
    maps = quick(network.clone(features=True).apply)(variables, images)
    return network, variables, images, np.asarray(quick(network.apply)(variables, images)), maps


def test_features_have_their_strides(evaluated: tuple) -> None:
    """A network of features has every parameter but the head's."""
    network, _, images, _, maps = evaluated
    assert [x.shape for x in maps] == [(2, 18, 26, 8), (2, 9, 13, 16), (2, 5, 7, 32), (2, 3, 4, 80)]
    whole, without = paths(network, images), paths(network.clone(features=True), images)
    assert {path for path in whole if not path.startswith("head")} == without.keys()


def test_branches_are_dropped_more_often_the_deeper_they_lie() -> None:
    """Block i of n at rate·i/n, where there is a shortcut, and in training alone."""
    rates: dict[bool, list[float]] = {True: [], False: []}

    def record(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        if isinstance(context.module, StochasticDepth):
            rates[context.module.deterministic].append(context.module.rate)
        return call(*args, **kwargs)

    network = EfficientNet(**{**TINY, "depth": 0.5}, drop_path_rate=0.2)
    for train in (True, False):
        with nn.intercept_methods(record):
            images = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
            jax.eval_shape(lambda x, train=train: network.init({"params": KEY, "dropout": KEY}, x, train=train), images)
    # 1, 1, 1, 2, 2, 2 and 1 blocks; the first of a stage changes the shape, but in stage 1.
    for of_mode in rates.values():
        np.testing.assert_allclose(of_mode, [0.2 * i / 10 for i in (0, 4, 6, 8)])


def test_bfloat16_is_near_float32(evaluated: tuple) -> None:
    network, variables, images, exact, _ = evaluated
    rounded = np.asarray(quick(network.clone(dtype="bfloat16").apply)(variables, images))
    assert exact.dtype == rounded.dtype == np.float32
    assert 1e-5 < np.abs(exact - rounded).max() / np.abs(exact).max() < 5e-2
    maps = jax.eval_shape(network.clone(dtype="bfloat16", features=True).apply, variables, images)
    assert {x.dtype for x in maps} == {jnp.dtype("bfloat16")}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(padding="same"), "model.padding: 'same' is not one of"),
        (dict(gate_at="stem"), "model.gate_at: 'stem' is not one of"),
        (dict(drop_path_rate=1.0), "model.drop_path_rate=1.0"),
        (dict(width=0), "model.width=0"),
        (dict(gate="se", gate_stages=(8,)), "model.gate_stages=.* from 1 to 7"),
    ],
)
def test_mistakes(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(aj.UserError, match=message):
        EfficientNet(**fields).check()


def test_image_too_small() -> None:
    with pytest.raises(aj.UserError, match="images of 31x64 pixels are too small"):
        jax.eval_shape(EfficientNet().init, KEY, jnp.zeros((1, 31, 64, 3)))
