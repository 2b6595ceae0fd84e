"""Vision Transformers and Swin Transformers: against PyTorch's frozen numbers, their invariants, maps, features, mistakes."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import attention_jax as aj
from attention_jax import tree
from attention_jax.analysis.query_points import map_query_point
from attention_jax.config import load_config, override
from attention_jax.models.swin import SwinTransformer, WindowBlock
from attention_jax.models.vit import VisionTransformer
from attention_jax.nn.conv import StochasticDepth
from attention_jax.optim.losses import cross_entropy
from attention_jax.train.program import build_program
from tests.helpers import parity
from tests.helpers.blocks import close, drawn, numbers, quick
from tests.helpers.parity_vit import VITS, ViTCase

KEY = jax.random.key(0)
MAKE: dict[str, Any] = {"vit": VisionTransformer, "swin": SwinTransformer}


def differentiate(model: Any, images: np.ndarray, labels: np.ndarray, seed: int) -> parity.Results:
    """Logits and the gradients of the summed cross entropy, as `torch_vit.differentiate` has them."""

    @quick
    def both(params: Any, images: jax.Array) -> Any:
        def loss(params: Any) -> tuple:
            logits = model.apply({"params": params}, images)
            return cross_entropy(logits, labels).sum(), logits

        return jax.value_and_grad(loss, has_aux=True)(params)

    (_, logits), gradients = jax.device_get(both(drawn(model, images, seed=seed)["params"], images))
    flat = tree.flatten_by_path(gradients)
    return {"logits": {"": logits}, "gradients": {path: parity.compress(path, flat[path]) for path in sorted(flat)}}


def ours(case: ViTCase) -> parity.Results:
    """What `parity.check` compares, from our network."""
    images, labels = parity.images(case.seed, *case.image), parity.labels(case.seed)
    return differentiate(MAKE[case.kind](**case.network), images, labels, case.seed)


@pytest.mark.parametrize("name", VITS)
def test_network_equals_frozen_pytorch(name: str) -> None:
    """Logits and every gradient."""
    parity.check(ours(VITS[name]), parity.load(name))


SMALL: dict[str, Any] = {
    "vit": VisionTransformer(**ViTCase("vit", dict(pool="mean"), (16, 16)).network),
    "deit": VisionTransformer(**ViTCase("vit", dict(distilled=True), (16, 16)).network),
    "swin": SwinTransformer(**ViTCase("swin", {}, (16, 16)).network),
}
HEIGHT, WIDTH = 17, 21  # which neither patch nor window divides


@pytest.fixture(scope="module", params=SMALL)
def small(request: pytest.FixtureRequest) -> tuple:
    """A tiny network of each kind, its variables, two images and their logits."""
    model, images = SMALL[request.param], numbers("images", 2, HEIGHT, WIDTH, 3)
    variables = drawn(model, images)
    return model, variables, images, np.asarray(quick(model.apply)(variables, images))


def test_maps_are_distributions_and_change_nothing(small: tuple) -> None:
    model, variables, images, logits = small
    seen, sown = quick(lambda v, x: model.apply(v, x, mutable=["attention"]))(variables, images)
    close(seen, logits)
    maps = tree.flatten_by_path(jax.tree.map(lambda calls: calls[0], sown["attention"], is_leaf=lambda x: isinstance(x, tuple)))
    if isinstance(model, VisionTransformer):  # 5x6 patches and the tokens before them
        tokens = 30 + len(model.prefix())
        expected = {f"block{i}/attention/weights": (2, 2, tokens, tokens) for i in (1, 2)}
    else:  # 9x11 places in 3x4 windows of 3x3, then 5x6 in 2x2
        shapes = ((2 * 12, 2, 9, 9), (2 * 4, 4, 9, 9))
        expected = {f"stage{s}_block{i}/attention/weights": shapes[s - 1] for s in (1, 2) for i in (1, 2)}
    assert {path: weights.shape for path, weights in maps.items()} == expected
    for weights in maps.values():
        close(weights.sum(-1), np.ones(weights.shape[:-1]))


def test_features_are_what_the_head_reads(small: tuple) -> None:
    """Maps at every stride; the last one, normalised and averaged, gives the logits, except where tokens do."""
    model, variables, images, logits = small
    maps = quick(model.clone(features=True).apply)(variables, images)
    sizes = [(2, 5, 6, 16)] if isinstance(model, VisionTransformer) else [(2, 9, 11, 8), (2, 5, 6, 16)]
    assert [x.shape for x in maps] == sizes
    if isinstance(model, SwinTransformer) or model.pool == "mean":
        norm, head = variables["params"]["norm"], variables["params"]["head"]
        x = np.asarray(maps[-1], np.float64)
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5) * norm["scale"] + norm["bias"]
        close(logits, x.mean((1, 2)) @ head["kernel"] + head["bias"], 2e-5)


def test_bfloat16_is_near_float32(small: tuple) -> None:
    model, variables, images, exact = small
    rounded = quick(model.clone(dtype="bfloat16").apply)(variables, images)
    assert rounded.dtype == jnp.float32
    assert 1e-4 < parity.difference(rounded, exact) < 5e-2


@pytest.mark.parametrize("kind", ["vit", "swin"])
def test_branches_are_dropped_more_often_the_deeper_they_lie(kind: str) -> None:
    """timm's linear rule, both branches of a block alike, and only in training."""
    rates: dict[bool, list[float]] = {True: [], False: []}

    def record(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        if isinstance(context.module, StochasticDepth):
            rates[context.module.deterministic].append(context.module.rate)
        return call(*args, **kwargs)

    model, images = SMALL[kind].clone(drop_path_rate=0.3), jnp.zeros((1, 12, 12, 3))
    for train in (True, False):
        with nn.intercept_methods(record):
            jax.eval_shape(lambda train=train: model.init({"params": KEY, "dropout": KEY}, images, train=train))
    expected = [0.0, 0.3] if kind == "vit" else [0.0, 0.1, 0.2, 0.3]
    for of_mode in rates.values():
        np.testing.assert_allclose(of_mode, np.repeat(expected, 2))


@pytest.mark.parametrize(("kind", "epsilon"), [("vit", 1e-6), ("swin", 1e-5)])
def test_epsilon_of_every_layer_norm(kind: str, epsilon: float) -> None:
    """timm's, and the Swin authors'; fixtures hardly see it, since their features have variances near 1."""
    epsilons = []

    def record(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        epsilons.extend([context.module.epsilon] if isinstance(context.module, nn.LayerNorm) else [])
        return call(*args, **kwargs)

    with nn.intercept_methods(record):
        jax.eval_shape(SMALL[kind].init, KEY, jnp.zeros((1, 12, 12, 3)))
    assert epsilons == [epsilon] * (5 if kind == "vit" else 11)


@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize("place", [(0, 0), (8, 10), (4, 2)])
def test_a_place_sees_its_window_and_the_map_of_the_point_says_which(shifted: bool, place: tuple[int, int]) -> None:
    """What one output of a block depends on is where `map_query_point` has weight, also round the edge and in padding."""
    model = SwinTransformer(patch_size=1, window_size=3, stage_sizes=(2,), width=4, heads=(2,), num_classes=3)
    images = numbers("images", 1, 9, 11, 3)
    maps = map_query_point(model, drawn(model, images), images, place)
    weights = maps[f"stage1_block{1 + shifted}/attention/weights"]
    assert weights.shape == (1, 2, 9, 11)

    block, x = WindowBlock(4, 2, 1e-5, 0.0, False, jnp.float32, 3, shifted), numbers("x", 1, 9, 11, 4)
    variables = drawn(block, x)
    depends = quick(jax.grad(lambda x: (block.apply(variables, x)[0][place] * numbers("of", 4)).sum()))(x)
    np.testing.assert_array_equal(np.abs(depends).max((0, -1)) > 1e-9, weights.min((0, 1)) > 0)
    sides = np.ptp(np.argwhere(weights[0, 0] > 0), axis=0) + 1
    assert sides.max() <= 3 and (weights > 0).sum() < 2 * 3 * 3 + 1


def test_map_of_a_point_over_patches() -> None:
    """A ViT's: one number a patch, with those of the tokens left out in sum 1; the upper left patch is the first query."""
    model, images = SMALL["deit"], numbers("images", 1, HEIGHT, WIDTH, 3)
    variables = drawn(model, images)
    (weights, *_) = map_query_point(model, variables, images, (3, 3)).values()
    sown = aj.attention_maps(model, variables, images)["block1/attention/weights"]
    assert weights.shape == (1, 2, HEIGHT, WIDTH)
    close(weights[:, :, ::4, ::4].reshape(1, 2, 30), sown[:, :, 2, 2:])
    np.testing.assert_array_equal(weights[:, :, :16, :20], weights[:, :, :16:4, :20:4].repeat(4, 2).repeat(4, 3))
    with pytest.raises(aj.UserError, match="no row and column"):
        map_query_point(model, variables, images, (17, 0))
    with pytest.raises(aj.UserError, match="takes a VisionTransformer"):
        map_query_point(aj.create_model("resnet20"), {}, images, (0, 0))


def test_initial_values() -> None:
    """timm's and the authors': normal with deviation 0.02, patches uniform as PyTorch has them, tokens near 0."""
    model = VisionTransformer(num_classes=300, image_size=32, patch_size=8, layers=1, width=64, heads=2)
    params = tree.flatten_by_path(quick(model.init)(KEY, jnp.zeros((1, 32, 32, 3)))["params"])
    for path in ("head/kernel", "positions", "block1/attention/query/kernel", "block1/mlp/hidden/kernel"):
        assert abs(float(params[path].std()) - 0.02) < 0.001, path
    bound = (8 * 8 * 3) ** -0.5
    assert 0.99 * bound < float(jnp.abs(params["patches/kernel"]).max()) <= bound
    assert 0 < float(jnp.abs(params["class_token"]).max()) < 1e-5
    assert not any(np.any(value) for path, value in params.items() if path.endswith("/bias"))


@pytest.mark.parametrize(
    ("kind", "fields", "message"),
    [
        ("vit", dict(heads=3), "does not divide model.width"),
        ("vit", dict(patch_size=5), "does not divide model.image_size"),
        ("vit", dict(pool="max"), "'max' is not one of 'token', 'mean'"),
        ("vit", dict(pool="mean", distilled=True), "a second token"),
        ("vit", dict(drop_path_rate=1.0), "give a rate"),
        ("vit", dict(layers=0), "whole number from 1"),
        ("swin", dict(heads=(3, 6)), "does not divide the 8 channels of stage 1"),
        ("swin", dict(heads=(2,)), "one head for each of the 2 stages"),
        ("swin", dict(stage_sizes=4), r"such as \(2,\)"),
        ("swin", dict(dtype="float16"), "not one of 'float32', 'bfloat16'"),
    ],
)
def test_mistakes(kind: str, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(aj.UserError, match=message):
        SMALL[kind].clone(**fields).check()
    assert SMALL[kind].check() is None
    with pytest.raises(aj.UserError, match=message):  # and where nobody checks first
        jax.eval_shape(SMALL[kind].clone(**fields).init, KEY, jnp.zeros((1, 12, 12, 3)))


def test_there_is_no_gate_slot() -> None:
    with pytest.raises(aj.UserError, match="has no field 'gate'"):
        aj.create_model("swin_tiny_patch4_window7_224", gate="se")


def test_trains_from_a_config() -> None:
    """The small Swin of a config: one step moves every parameter, and its schedule takes no d_model from a field `features`."""
    fields = dict(patch_size=1, window_size=4, width=8, heads=(2, 4), stage_sizes=(1, 1), drop_path_rate=0.1)
    config = override(load_config("configs/quickstart.py"), {"model.name": "swin_tiny_patch4_window7_224"})
    config = override(
        config,
        {"batch_size": 8, "total_steps": 4, "schedule.warmup_steps": 1, **{f"model.{name}": fields[name] for name in fields}},
    )
    program = build_program(config)
    state = program.init(0)
    before = tree.flatten_by_path(jax.device_get(state.params))
    images, labels = numbers("images", 8, 8, 8, 1), np.arange(8, dtype=np.int32)
    state, metrics = program.train_step(
        state, {"image": images, "label": labels, "weight": np.ones(8, np.float32)}, np.uint32(0)
    )
    after = tree.flatten_by_path(jax.device_get(state.params))
    assert np.isfinite(metrics["loss"])
    still = {path for path in before if np.array_equal(before[path], after[path])}
    assert still <= {path for path in before if path.endswith("key/bias")}  # which the softmax does not see
    with pytest.raises(aj.UserError, match="has none: give a number"):
        build_program(override(config, {"schedule.name": "noam"}))
