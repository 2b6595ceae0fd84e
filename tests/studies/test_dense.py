"""Segmentation by one linear layer: masks, scores, the head, and the costs of backbones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import FrozenDict

from attention_jax.data.images.cued import ClutteredDigits
from attention_jax.models import create_model
from experiments.studies.dense import (
    CLASSES,
    LinearSegmenter,
    SegmentationTask,
    SegmentedDigits,
    count_kept_bytes,
    measure_cost,
)
from tests.helpers.blocks import quick

TINY = {"stage_sizes": (1, 1), "widths": (4, 8), "shortcut": "B"}


def test_the_mask_is_the_digits_class_in_its_box():
    source, plain = SegmentedDigits("train", number=5), ClutteredDigits("train", number=5)
    for index in range(5):
        example, known = source[index], plain.make(index)
        top, left, bottom, right = known["box"]
        inside = example["mask"][top:bottom, left:right]
        assert (inside == known["label"] + 1).all() and np.count_nonzero(example["mask"]) == inside.size == 64
        assert np.allclose(example["image"] * 0.25 + 0.11, known["image"] / 255, atol=1e-5)
    assert source.groups() == plain.groups() and source.fingerprint() != plain.fingerprint()


class _Says:
    """A network that finds the given classes, whatever it is shown."""

    def __init__(self, found):
        self.found = jnp.asarray(found)

    def apply(self, variables, images):
        return 9.0 * jax.nn.one_hot(self.found, CLASSES)


def test_scores():
    mask = np.zeros((4, 4, 4), np.int32)
    mask[:, :2, :2] = 3
    found = mask.copy()
    found[1] = 0  # nothing found
    found[2, :2, :2] = 4  # of another class
    found[3, 0], found[3, 1] = 3, 0  # two pixels of four, and two beside them
    batch = {"image": jnp.zeros((4, 4, 4, 3)), "mask": jnp.asarray(mask), "weight": jnp.ones(4)}
    task = SegmentationTask()
    outputs = jax.device_get(task.outputs(None, _Says(found), {}, batch))
    assert outputs["correct"] == pytest.approx([1, 0, 0, 2 / 6])
    scores, _ = task.metrics(None, outputs)
    assert scores["IoU"] == pytest.approx((1 + 2 / 6) / 4)
    # Of all pixels: class 3 has 4 + 2 of 16 and 2 more, class 4 none, the background 12 + 12 + 12 + 10 of 48 and 4 + 2 more.
    assert scores["mean_IoU"] == pytest.approx(np.mean([46 / 54, 6 / 18, 0]))


@pytest.fixture(scope="module")
def segmenter():
    images = jnp.asarray(np.stack([SegmentedDigits("train")[i]["image"] for i in range(2)]))
    model = LinearSegmenter("resnet20", FrozenDict(TINY))
    return model, quick(model.init)(jax.random.key(0), images), images


def test_the_head_is_one_linear_layer_on_the_joined_maps(segmenter):
    """Enlarging what a linear layer makes of each map is the linear layer on the enlarged maps beside one another."""
    model, variables, images = segmenter
    params = variables["params"]
    rest = {name: value["ResNet_0"] for name, value in variables.items() if name != "params"}
    maps = create_model("resnet20", **TINY, features=True)
    maps = quick(maps.apply)({"params": params["ResNet_0"], **rest}, images)
    assert [x.shape[1] for x in maps] == [24, 12]
    joined, kernels = [], []
    for i, x in enumerate(maps, 1):
        x = (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + 1e-6)
        joined.append(jax.image.resize(x, (2, 24, 24, x.shape[-1]), "linear"))
        kernels.append(params[f"head{i}"]["kernel"])
    expected = jnp.concatenate(joined, -1) @ jnp.concatenate(kernels) + params["bias"]
    logits = quick(model.apply)(variables, images)
    assert logits.shape == (2, 24, 24, CLASSES) and np.allclose(logits, expected, atol=1e-4)


def test_every_parameter_learns(segmenter):
    model, variables, images = segmenter
    batch = {
        "image": images,
        "mask": jnp.asarray([SegmentedDigits("train")[i]["mask"] for i in range(2)]),
        "weight": jnp.ones(2),
    }

    def loss(params):
        sums, changed = SegmentationTask().loss(None, model, {**variables, "params": params}, batch, jax.random.key(1), True)
        return sums["loss"] / sums["weight"], changed

    gradient, changed = quick(jax.grad(loss, has_aux=True))(variables["params"])
    assert all(jnp.abs(leaf).max() > 0 for leaf in jax.tree.leaves(gradient))
    moved = jax.tree.map(lambda new, old: jnp.abs(new - old).max(), changed["batch_stats"], variables["batch_stats"])
    assert all(distance > 0 for distance in jax.tree.leaves(moved)), "it trains: statistics are the batch's"


def test_costs_grow_with_pixels_and_those_of_attention_with_their_square():
    conv = create_model("resnet20", **TINY, features=True)
    small, large = (count_kept_bytes(conv, side) for side in (32, 64))
    assert large / small == pytest.approx(4, rel=0.01)
    fields = {"patch_size": 4, "layers": 2, "width": 8, "heads": 2}
    costs = measure_cost("vit_small_patch16_224", (32, 64), **fields)
    patches = [(side // 4) ** 2 for side in (32, 64)]
    tokens = [n + 1 for n in patches]
    # For each token 12 D² of the block and, of every pair of tokens, D each of q·k and of the weights times the values.
    expected = [2 * (12 * t * 8**2 + 2 * t**2 * 8) + n * 48 * 8 for t, n in zip(tokens, patches)]
    assert costs["macs"] * 1e9 == pytest.approx(expected)
    pairs = [2 * 2 * t**2 * 4 for t in tokens]  # bytes of the weights, of two layers and two heads
    assert (costs["kept"] * 2**30 > pairs).all() and costs["kept"][1] / costs["kept"][0] > 6
    assert costs["GMACs, 64"] == costs["macs"][1] and costs["GiB kept, 32"] == costs["kept"][0]
