"""Shares of maps inside boxes, Grad-CAM and deletion have known answers, and a map that follows the cue is seen to do so."""

import types

import jax
import numpy as np
import pytest

from attention_jax.analysis.saliency import weigh_features
from attention_jax.data.images.cued import CuedDigits
from attention_jax.models import create_model
from experiments.studies import pointing
from tests.helpers.blocks import TINY, drawn, quick

CANVAS = (16, 32)
BOX = np.array([[4, 0, 12, 8]])


def mask(boxes: np.ndarray) -> np.ndarray:
    """[N, 16, 32], 1 inside the boxes."""
    maps = np.zeros((len(boxes), *CANVAS))
    for one, (top, left, bottom, right) in zip(maps, boxes, strict=True):
        one[top:bottom, left:right] = 1
    return maps


def test_the_share_of_a_map_inside_a_box():
    area = 64 / (16 * 32)
    for maps, share in ((mask(BOX), 1), (1 - mask(BOX), 0), (np.ones((1, 16, 32)), area), (np.zeros((1, 4, 8)), area)):
        np.testing.assert_allclose(pointing.measure_shares(maps, BOX, CANVAS), share, atol=1e-9)
    small = np.zeros((1, 4, 8))
    small[0, 1, 0], small[0, 3, 7] = 3, 1  # a position of 4x4 pixels inside the box, and one outside
    np.testing.assert_allclose(pointing.measure_shares(small, BOX, CANVAS), 0.75)
    with np.errstate(all="raise"):
        half = pointing.measure_shares(np.eye(2)[None, :, :][:, [1]], BOX, CANVAS)  # left half 0, right half 1
    np.testing.assert_allclose(half, 0, atol=1e-9)


def test_grad_cam_is_the_gradient_of_the_logit():
    rng = np.random.default_rng(0)
    features, kernel, classes = rng.normal(size=(2, 3, 4, 5)), rng.normal(size=(5, 6)), np.array([1, 4])

    weights = np.zeros((2, 5))  # of channels, the mean of the logit's gradient over positions, as in the paper's equation 1
    for channel in range(5):
        changed = features.copy()
        changed[..., channel] += 1  # the logit is linear
        gain = (changed - features).mean((1, 2)) @ kernel
        weights[:, channel] = gain[[0, 1], classes] / 12
    expected = np.maximum(np.einsum("nhwc,nc->nhw", features, weights), 0)
    np.testing.assert_allclose(weigh_features(features, kernel.T[classes]) / 12, expected, atol=1e-6)


def test_the_tenth_with_the_highest_scores_is_deleted():
    images, scores = np.ones((2, 10, 20, 3)), np.arange(400.0).reshape(2, 10, 20)
    kept = pointing.delete_pixels(images, scores).all(-1)
    assert (kept.reshape(2, -1)[:, :180]).all() and not kept.reshape(2, -1)[:, 180:].any() and images.all()
    random = ~pointing.delete_pixels(images, np.zeros((2, 10, 20))).all(-1)
    assert random.sum() == 40 and len({tuple(place) for place in np.argwhere(random)[:, 1:]}) > 20


def test_a_map_that_follows_the_cue():
    """Maps of a network that looks at the named digit: all inside its box, none of it under the other cue."""
    source = CuedDigits("test", number=6)
    made = [source.make(index) for index in range(6)]
    boxes, others = (np.array([one["boxes"][(one["cue"] + i) % 2] for one in made]) for i in (0, 1))
    labels = np.array([one["label"] for one in made])
    right = mask(boxes)

    def view(variables: str, images: np.ndarray) -> dict[str, np.ndarray]:
        named = np.array([(image != 0).any(-1) for image in images])  # a deleted pixel is 0, a black one not
        sees = np.array([named[i][right[i] > 0].mean() > 0.5 for i in range(6)])
        maps = {"trained": mask(boxes), "untrained": np.ones((6, 4, 8))}[variables]
        if not (images == own).all() and sees.all() and named.all():
            maps = mask(others)
        return {"predicted": np.where(sees, labels, -1), "map": maps, "M(F)": np.eye(20)[[1] * 6]}

    own = np.stack([one["image"] for one in made]).astype(float) + 1
    state = types.SimpleNamespace(variables=lambda: "untrained")
    task = types.SimpleNamespace(source=lambda config, split: source)
    program = types.SimpleNamespace(task=task, model=None, init=lambda seed: state)
    config = types.SimpleNamespace(seed=0, data=types.SimpleNamespace(eval_split="test"))
    run = types.SimpleNamespace(config=config, variables="trained", preprocess=lambda images: images.astype(float) + 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pointing, "make_viewer", lambda model, query: view)
        found = pointing.measure_pointing(program, run)
    assert found["chance %"] == pytest.approx(12.5) and found["map in the box %, untrained"] == pytest.approx(12.5)
    assert found["map in the box %"] == pytest.approx(100, abs=1e-6)
    assert found["map in the box %, under the other cue"] == pytest.approx(0, abs=1e-6)
    assert found["map in the cue %"] == pytest.approx(0, abs=1e-6) and found["M(F) below 0.1, % of values"] == 100
    assert found["accuracy % without map's tenth"] == 0 and found["accuracy % without a random tenth"] == 100
    assert found["boxes"][0][found["right"][0]].tolist() == boxes[0].tolist() and found["right"][0] != found["right"][1]


def test_maps_of_a_network():
    """CBAM's spatial map of the last block, and Grad-CAM of what the head reads."""
    model = create_model("resnet20", **TINY, gate="cbam", gate_at="block", gate_args={"reduction": 2})
    images = np.random.default_rng(0).normal(size=(3, 8, 16, 3)).astype(np.float32)
    variables = drawn(model, images[:1])
    variables["params"]["head"]["bias"] = np.zeros(3, np.float32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "jit", quick)
        found = pointing.make_viewer(model, (0.5, 0.5))(variables, images)
    logits, kept = quick(lambda v, x: model.apply(v, x, train=False, mutable=["attention"]))(variables, images)
    np.testing.assert_allclose(found["map"], kept["attention"]["stage2_block1"]["gate"]["spatial"][0], atol=1e-5)
    assert found.keys() == {"predicted", "Grad-CAM", "map"} and found["predicted"].tolist() == logits.argmax(-1).tolist()
    # The head reads the mean of features: that of Grad-CAM is at least the logit, as nothing below 0 is in it.
    assert found["Grad-CAM"].shape == (3, 4, 8) and (found["Grad-CAM"].mean((1, 2)) >= logits.max(-1) - 1e-5).all()
