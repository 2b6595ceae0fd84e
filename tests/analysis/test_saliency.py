"""Where a network looked: Grad-CAM and roll-out against their definitions, and a map for every gate."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attention_jax.analysis import saliency
from attention_jax.analysis.evaluation_plots import plot_overlays
from attention_jax.errors import UserError
from attention_jax.models import create_model
from attention_jax.models.gate import GATES
from tests.analysis.test_analysis import random_variables

pytestmark = pytest.mark.usefixtures("quickly")
RNG = np.random.default_rng(0)


class Linear(nn.Module):
    """A 1x1 convolution, global average pooling and a linear head: all gradients are known."""

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Conv(5, (1, 1), use_bias=False, name="features")(x)
        return nn.Dense(4, use_bias=False, name="head")(x.mean((1, 2)))


def test_grad_cam_of_a_linear_network():
    images, kernel, head = RNG.normal(size=(2, 3, 4, 2)), RNG.normal(size=(1, 1, 2, 5)), RNG.normal(size=(5, 4))
    variables = {"params": {"features": {"kernel": kernel}, "head": {"kernel": head}}}
    features = images @ kernel[0, 0]
    for classes in (np.array([3, 1]), None):
        chosen = (features.mean((1, 2)) @ head).argmax(-1) if classes is None else classes
        expected = np.maximum(np.einsum("nhwc,cn->nhw", features, head[:, chosen]) / 12, 0)  # 12 positions share the mean
        found = saliency.compute_grad_cam(Linear(), variables, images, classes)
        np.testing.assert_allclose(found.maps, expected, atol=1e-5)
        assert found.caption.endswith("of the output of features")
    with pytest.raises(UserError, match=r"no module 'feature' \(did you mean 'features'\?\)"):
        saliency.compute_grad_cam(Linear(), variables, images, module="feature")
    with pytest.raises(UserError, match="no map"):
        saliency.compute_grad_cam(Linear(), variables, images, module="head")


def test_a_gate_in_its_slot_is_changed_once():
    """The slot and the module in it have one path; with a head behind it, a change counted twice would double the map."""
    model = create_model(
        "resnet20",
        stem="cifar",
        stage_sizes=(1,),
        widths=(4,),
        num_classes=3,
        gate="se",
        gate_stages=(1,),
        gate_args={"reduction": 2},
    )
    images = RNG.normal(size=(2, 8, 8, 3)).astype(np.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.asarray(images))
    variables = jax.tree.map(lambda x: RNG.normal(size=x.shape).astype(np.float32) ** 2, shapes)
    found = saliency.compute_grad_cam(model, variables, images, [0, 2])
    assert found.caption.endswith("stage1_gate")
    features = saliency.capture_outputs(model, variables, images, modules="stage1_gate")["stage1_gate"]
    head = variables["params"]["head"]["kernel"]
    expected = np.maximum(np.einsum("nhwc,cn->nhw", features, head[:, [0, 2]]) / 64, 0)
    np.testing.assert_allclose(found.maps, expected, rtol=1e-4)


def test_roll_out():
    weights = [jax.nn.softmax(RNG.normal(size=(2, 3, 5, 5)), -1) for _ in range(3)]
    total = saliency.roll_out_attention(weights)
    np.testing.assert_allclose(total.sum(-1), 1, rtol=1e-6)
    np.testing.assert_allclose(saliency.roll_out_attention([np.tile(np.eye(4), (1, 2, 1, 1))] * 3)[0], np.eye(4))
    first, second, third = (0.5 * np.asarray(layer).mean(1) + 0.5 * np.eye(5) for layer in weights)
    np.testing.assert_allclose(total, third @ second @ first, rtol=1e-6)
    with pytest.raises(UserError, match="no layers"):
        saliency.roll_out_attention([])


FIELDS = {"stem": "cifar", "stage_sizes": (1, 1), "widths": (8, 8), "num_classes": 3, "gate_stages": (1,)}


class Own(nn.Module):
    """Sows a map under a name of its own, and something that is no map."""

    @nn.compact
    def __call__(self, x):
        self.sow("attention", "looks", jnp.arange(x[..., 0].size, dtype=x.dtype).reshape(x.shape[:3]))
        self.sow("attention", "other", x.sum())
        return x


ARGS = {gate: {"reduction": 4} for gate in ("bam", "se", "cbam", "gc", "gca", "nl", "coord")}


@pytest.mark.parametrize("gate", [*GATES, Own])
def test_every_gate_has_a_map_that_is_laid_over_the_image(gate):
    model = create_model("resnet20", **FIELDS, gate=gate, gate_args=ARGS.get(gate, {}))
    images = RNG.normal(size=(2, 8, 8, 1)).astype(np.float32)
    found = saliency.locate_attention(model, random_variables(model), images)
    assert list(found) == ["stage1_gate"] and found["stage1_gate"].caption
    maps = found["stage1_gate"].maps
    assert maps.shape == (2, 8, 8) and np.isfinite(maps).all()
    large = np.zeros((2, 16, 24, 1), np.uint8)  # black, so that the colours are those of the map
    for picture in [axes.images[0].get_array() for axes in plot_overlays(large, found).axes][1::2]:  # after each image its map
        assert picture.shape == (16, 24, 3) and (picture == picture[::2, ::3].repeat(2, 0).repeat(3, 1)).all()
        assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 10
    if gate is Own:
        np.testing.assert_array_equal(maps, np.arange(128).reshape(2, 8, 8))
    if gate in ("self_attention", "nl", "gc", "gca"):  # shares of positions
        np.testing.assert_allclose(maps.sum((1, 2)), 1, rtol=1e-5)
    assert ("|F'|" in found["stage1_gate"].caption) == (gate in ("se", "ese", "eca", "ge")), "these weigh channels alone"
    if gate == "se":
        output = saliency.capture_outputs(model, random_variables(model), images, modules="stage1_g*")
        np.testing.assert_allclose(maps, np.abs(output["stage1_gate"]).mean(-1), rtol=1e-6)


@pytest.mark.parametrize("kind", ["token", "mean", "swin"])
def test_transformers_lay_their_attention_on_the_image(kind):
    fields = {"num_classes": 3, "patch_size": 2, "image_size": 8}
    if kind == "swin":
        model = create_model(
            "swin_tiny_patch4_window7_224",
            num_classes=3,
            patch_size=2,
            stage_sizes=(2, 1),
            width=8,
            heads=(1, 2),
            window_size=3,
        )
    else:
        model = create_model("vit_tiny_patch16_224", **fields, layers=2, width=8, heads=2, pool=kind)
    images = RNG.normal(size=(2, 8, 8, 1)).astype(np.float32)
    variables = random_variables_of(model, images)
    found = saliency.locate_attention(model, variables, images)
    if kind == "swin":
        assert [chosen.maps.shape for chosen in found.values()] == [(2, 4, 4), (2, 4, 4), (2, 2, 2)]
        with pytest.raises(UserError, match="not SwinTransformer"):
            saliency.compute_rollout(model, variables, images)
        return
    assert [chosen.maps.shape for chosen in found.values()] == [(2, 4, 4)] * 2
    rollout = saliency.compute_rollout(model, variables, images)
    assert rollout.maps.shape == (2, 4, 4) and (rollout.maps.sum((1, 2)) <= 1 + 1e-6).all()
    if kind == "token":
        assert saliency.compute_grad_cam(model, variables, images).maps.shape == (2, 4, 4)


def random_variables_of(model, images):
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.asarray(images))
    return {"params": jax.tree.map(lambda x: (0.3 * RNG.normal(size=x.shape)).astype(np.float32), shapes["params"])}


def test_features_by_path():
    model = create_model("resnet20", **FIELDS)
    images = RNG.normal(size=(1, 8, 8, 1)).astype(np.float32)
    variables = random_variables(model)
    found = saliency.capture_outputs(model, variables, images, modules="stage?_block1")
    assert {path: array.shape for path, array in found.items()} == {
        "stage1_block1": (1, 8, 8, 8),
        "stage2_block1": (1, 4, 4, 8),
    }
    with pytest.raises(UserError, match=r"'stage1_blck1' matches none .* \(did you mean 'stage1_block1'\?\)"):
        saliency.capture_outputs(model, variables, images, modules="stage1_blck1")
