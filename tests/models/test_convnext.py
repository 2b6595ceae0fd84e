"""ConvNeXt and the steps that lead there: PyTorch's numbers, and what the fields do."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import attention_jax as aj
from attention_jax import tree
from attention_jax.models.convnext import ConvNeXt
from attention_jax.models.convnext_roadmap import ROADMAP, ConvNeXtRoadmap
from attention_jax.models.registry import check_model
from tests.helpers import parity, parity_convnext
from tests.helpers.blocks import close, drawn, numbers, quick
from tests.models.test_parity import ours

TINY = dict(num_classes=3, stage_sizes=(1, 2), widths=(4, 8))
TINY_STEP = dict(num_classes=3, stage_sizes=(1, 1), width=4)
TINY_LAST = {**ROADMAP["resnet50"]["layer_norm"], **TINY_STEP}


def build(case: parity_convnext.Case) -> Any:
    """Our network of a case."""
    return ConvNeXtRoadmap(**case.network, norm_running_var="unbiased") if case.is_roadmap else ConvNeXt(**case.network)


@pytest.mark.slow
@pytest.mark.parametrize("name", parity_convnext.CASES)
def test_network_equals_frozen_pytorch(name: str) -> None:
    """Logits, every gradient and running statistics, in evaluation and in training."""
    case = parity_convnext.CASES[name]
    parity.check(ours(case, build(case)), parity.load(name))


@pytest.mark.parametrize("network", [ConvNeXt(**TINY), ConvNeXtRoadmap(**TINY_STEP)])
def test_features_are_what_the_head_sees(network: Any) -> None:
    """With the same variables; a network of features alone has those but the head."""
    images = numbers("images", 2, 19, 16, 3)
    variables = drawn(network, images)
    maps = quick(network.clone(features=True).apply)(variables, images)
    # Patches leave out what does not fill one; strided convolutions pad.
    assert [x.shape[1:3] for x in maps] == ([(4, 4), (2, 2)] if isinstance(network, ConvNeXt) else [(5, 4), (3, 2)])
    pooled = maps[-1].mean((1, 2))
    if isinstance(network, ConvNeXt):
        norm = variables["params"]["head_norm"]
        pooled = (pooled - pooled.mean(-1, keepdims=True)) / jnp.sqrt(pooled.var(-1, keepdims=True) + 1e-6)
        pooled = pooled * norm["scale"] + norm["bias"]
    head = variables["params"]["head"]
    close(quick(network.apply)(variables, images), pooled @ head["kernel"] + head["bias"], 1e-5)

    def paths(network: Any) -> set[str]:
        return {*tree.flatten_by_path(jax.eval_shape(network.init, jax.random.key(0), images)["params"])}

    assert {path for path in paths(network) if not path.startswith("head")} == paths(network.clone(features=True))


def test_start_of_a_convnext() -> None:
    """Blocks start as almost the identity; the classifier's kernel has the factor, and its bias is 0."""
    images = numbers("images", 2, 16, 16, 3)
    start = quick(ConvNeXt(**TINY, head_init_scale=1e-3).init)(jax.random.key(0), images)["params"]
    scales = [leaf for path, leaf in tree.flatten_by_path(start).items() if path.endswith("layer_scale")]
    assert len(scales) == 3 and all((scale == np.float32(1e-6)).all() for scale in scales)
    assert 1e-5 < np.std(start["head"]["kernel"]) < 3e-5
    assert not start["head"]["bias"].any()
    assert 0.015 < np.std(start["stage2_block1"]["expand"]["kernel"]) < 0.025


@pytest.mark.parametrize(
    ("network", "places"),
    [
        (ConvNeXt(**TINY, gate="bam", gate_args=dict(reduction=2)), ["stage1_gate"]),
        (ConvNeXt(**TINY, gate="eca", gate_at="block"), ["stage1_block1/gate", "stage2_block1/gate", "stage2_block2/gate"]),
        (ConvNeXtRoadmap(**TINY_STEP, norm="layer", gate="bam", gate_args=dict(reduction=2)), ["stage1_gate"]),
    ],
)
def test_gates_train_and_show_their_maps(network: Any, places: list[str]) -> None:
    """Also BAM, whose spatial map has one channel: LayerNorm would leave nothing of it."""
    images = numbers("images", 2, 48, 40, 3)
    variables = drawn(network, images)
    maps = aj.attention_maps(network, variables, images)
    assert sorted({path.rpartition("/")[0] for path in maps}) == places

    @quick
    def slopes(params: Any) -> Any:
        def loss(params: Any) -> jax.Array:
            logits, _ = network.apply({**variables, "params": params}, images, train=True, mutable=["batch_stats"])
            return (logits * numbers("weights", 2, 3)).sum()

        return jax.grad(loss)(params)

    gradients = {path: np.abs(leaf).max() for path, leaf in tree.flatten_by_path(slopes(variables["params"])).items()}
    gate = {path: size for path, size in gradients.items() if "gate/" in path and not path.endswith("bias")}
    assert gate and min(gate.values()) > 1e-7, gate


def test_branches_are_dropped_in_training_alone() -> None:
    images = numbers("images", 4, 16, 16, 3)
    network = ConvNeXt(**TINY, drop_path_rate=0.9)
    variables = drawn(network, images)
    train = quick(lambda key: network.apply(variables, images, train=True, rngs={"dropout": key}))
    assert np.abs(np.asarray(train(jax.random.key(0))) - train(jax.random.key(1))).max() > 1e-3
    close(quick(network.apply)(variables, images), quick(ConvNeXt(**TINY).apply)(variables, images))


@pytest.mark.parametrize(("make", "fields"), [(ConvNeXt, TINY), (ConvNeXtRoadmap, TINY_LAST)])
def test_bfloat16_is_near_float32(make: Any, fields: dict[str, Any]) -> None:
    images = numbers("images", 2, 16, 16, 3)
    variables = drawn(make(**fields), images)
    exact, rounded = (quick(make(**fields, dtype=dtype).apply)(variables, images) for dtype in ("float32", "bfloat16"))
    assert exact.dtype == rounded.dtype == jnp.float32
    assert 1e-5 < np.abs(np.asarray(exact) - rounded).max() / np.abs(exact).max() < 3e-2
    maps = jax.eval_shape(make(**fields, dtype="bfloat16", features=True).apply, variables, images)
    assert {x.dtype for x in maps} == {jnp.dtype("bfloat16")}


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (ConvNeXt(widths=(4, 8)), "model.widths: .* needs one width for each of the 4 stages"),
        (ConvNeXt(drop_path_rate=1.0), "model.drop_path_rate=1.0"),
        (ConvNeXt(gate_at="stem"), "model.gate_at: 'stem' is not one of"),
        (ConvNeXt(gate="se", gate_stages=(5,)), "the stages are 1 to 4"),
        (ConvNeXt(patch_size=0), "model.patch_size=0"),
        (ConvNeXtRoadmap(block="inverse"), "model.block: 'inverse' is not one of"),
        (ConvNeXtRoadmap(gate="se", gate_at="block"), "model.gate_at: 'block' is not one of 'stage'"),
        (ConvNeXtRoadmap(norm_running_var="exact"), "model.norm_running_var"),
    ],
)
def test_mistakes(network: Any, message: str) -> None:
    with pytest.raises(aj.UserError, match=message):
        network.check()


def test_a_config_does_not_train_maps() -> None:
    check_model({"name": "convnext_tiny", "features": False})
    check_model({"name": "transformer_base", "features": 64})
    with pytest.raises(aj.UserError, match="config.model.features=True: model 'convnext_tiny' would return its maps"):
        check_model({"name": "convnext_tiny", "features": True})


@pytest.mark.parametrize(("name", "side"), [("convnext_tiny", 31), ("convnext_isotropic_small", 15)])
def test_image_too_small(name: str, side: int) -> None:
    model = aj.create_model(name)
    with pytest.raises(aj.UserError, match=f"images of {side}x64 pixels are too small"):
        jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, side, 64, 3)))
