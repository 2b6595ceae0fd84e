"""Mixup and CutMix: what they guarantee, and what the step does with them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attention_jax import tree
from attention_jax.optim.losses import cross_entropy
from attention_jax.optim.mixing import draw_cutmix, erase_boxes, mix_images
from attention_jax.tasks import classification
from attention_jax.train.program import build_program
from tests.helpers.blocks import quick
from tests.helpers.small import small_config

B, H, W = 6, 12, 10
KEYS = 400


def batch() -> dict[str, np.ndarray]:
    """Images that say at every pixel which example they are."""
    images = np.broadcast_to(np.arange(B, dtype=np.float32)[:, None, None, None], (B, H, W, 2))
    return {"image": images, "label": np.arange(B, dtype=np.int32), "weight": np.ones(B, np.float32)}


def many(count: int = KEYS, **options: float) -> dict[str, np.ndarray]:
    """The batch mixed with `count` keys: arrays with one more axis in front."""
    options = {"mixup_alpha": 0.0, "cutmix_alpha": 0.0, "probability": 1.0, "switch_probability": 0.5, **options}
    keys = jax.random.split(jax.random.key(0), count)
    mixed = quick(jax.vmap(lambda key: mix_images(key, batch(), **options)))
    return jax.device_get(mixed(keys))


def test_mixup_is_the_convex_combination_that_its_targets_say():
    mixed = many(20, mixup_alpha=0.8)
    np.testing.assert_array_equal(mixed["partner"], np.broadcast_to(np.arange(B)[::-1], (20, B)))
    np.testing.assert_array_equal(mixed["label"], np.broadcast_to(np.arange(B), (20, B)))
    share = mixed["share"][:, :, None, None, None]
    own, other = np.arange(B)[None, :, None, None, None], np.arange(B)[::-1][None, :, None, None, None]
    np.testing.assert_allclose(
        mixed["image"], np.broadcast_to(share * own + (1 - share) * other, mixed["image"].shape), atol=1e-5
    )
    assert (mixed["share"] == mixed["share"][:, :1]).all(), "one lambda a batch"
    assert len(np.unique(mixed["share"])) == 20


@pytest.mark.parametrize("alpha", [0.2, 1.0, 8.0])
def test_lambda_is_beta(alpha):
    """Mean 1/2, variance 1 / (4·(2·alpha + 1))."""
    share = many(4000, mixup_alpha=alpha)["share"][:, 0]
    variance = 0.25 / (2 * alpha + 1)
    assert share.mean() == pytest.approx(0.5, abs=4 * np.sqrt(variance / 4000))
    assert share.var() == pytest.approx(variance, rel=0.1)


def test_cutmix_pastes_one_box_and_counts_its_pixels():
    mixed = many(cutmix_alpha=1.0)
    own = mixed["image"] == np.arange(B)[None, :, None, None, None]
    other = mixed["image"] == np.arange(B)[::-1][None, :, None, None, None]
    assert (own ^ other).all(), "a pixel is wholly of one image"
    np.testing.assert_allclose(own.mean((2, 3, 4)), mixed["share"], atol=1e-6)
    pasted = ~own[:, 0, :, :, 0]
    rows, columns = pasted.any(2), pasted.any(1)
    np.testing.assert_array_equal(pasted, rows[:, :, None] & columns[:, None, :])
    for places in (rows, columns):
        edges = np.diff(places.astype(int), axis=1, prepend=0, append=0)
        assert ((edges != 0).sum(1) <= 2).all(), "one interval"


def test_box_is_the_published_one():
    """Sides 2·(floor(side·sqrt(1-lambda)) // 2) around a uniform centre, cut at the edges, as in the released code."""
    lam = 0.6
    keep, share = jax.vmap(lambda key: draw_cutmix(key, jnp.float32(lam), H, W))(jax.random.split(jax.random.key(1), 2000))
    inside = np.asarray(keep) == 0
    for axis, side in ((2, H), (1, W)):
        full = 2 * (int(side * np.sqrt(1 - lam)) // 2)
        widths = inside.any(axis).sum(1)
        expected = [min(centre + full // 2, side) - max(centre - full // 2, 0) for centre in range(side)]
        assert widths.max() == full and widths.min() == min(expected)
        assert widths.mean() == pytest.approx(np.mean(expected), rel=0.02), "the centre is uniform"
    np.testing.assert_allclose(share, 1 - inside.mean((1, 2)), atol=1e-6)
    assert np.mean(share) > lam + 0.02, "boxes cut at an edge leave more than lambda"


@pytest.mark.parametrize("probability", [0.3, 1.0])
def test_probability_is_of_mixing_a_batch(probability):
    mixed = many(mixup_alpha=1.0, probability=probability)
    untouched = mixed["share"][:, 0] == 1
    assert untouched.mean() == pytest.approx(1 - probability, abs=0.1)
    np.testing.assert_array_equal(mixed["image"][untouched], np.broadcast_to(batch()["image"], mixed["image"][untouched].shape))


@pytest.mark.slow
@pytest.mark.parametrize("switch", [0.0, 0.25, 1.0])
def test_switch_probability_is_of_cutmix(switch):
    mixed = many(mixup_alpha=8.0, cutmix_alpha=1.0, switch_probability=switch)
    images = mixed["image"][:, 0, :, :, 0]
    blended = ((images > 0) & (images < B - 1)).all((1, 2))
    assert 1 - blended.mean() == pytest.approx(switch, abs=0.1 if 0 < switch < 1 else 0)


# In the task and in the step


def test_without_mixing_the_batch_is_the_very_same():
    for fields in ({}, dict(mix__mixup_alpha=1.0, mix__probability=0.0)):
        given = batch()
        assert classification.mix(small_config(**fields), given, jax.random.key(0)) is given


class Fixed:
    """A model whose logits are given."""

    def __init__(self, logits: np.ndarray):
        self.logits = jnp.asarray(logits)

    def apply(self, variables: dict, images: jax.Array, **options: object) -> tuple:
        return self.logits, {}


@pytest.mark.parametrize("over", ["uniform", "others"])
def test_loss_of_a_mixed_example_is_the_mean_of_its_two(over):
    config = small_config(loss__smoothing_over=over)
    logits = np.random.RandomState(0).standard_normal((3, 4)).astype(np.float32)
    label, partner = np.asarray([0, 1, 2]), np.asarray([2, 1, 0])
    share, weight = np.asarray([0.25, 0.7, 1.0], np.float32), np.asarray([1.0, 2.0, 0.5], np.float32)
    mixed = {"image": np.zeros((3, 2, 2, 1)), "label": label, "partner": partner, "share": share, "weight": weight}
    sums, _ = classification.loss(config, Fixed(logits), {}, mixed, jax.random.key(0), train=True)
    own, other = (cross_entropy(logits, labels, 0.1, over) for labels in (label, partner))
    assert float(sums["loss"]) == pytest.approx(float((weight * (share * own + (1 - share) * other)).sum()), rel=1e-5)
    assert float(sums["weight"]) == 3.5


def test_accuracy_of_a_mixed_example_is_about_the_larger_share():
    logits = np.eye(4, dtype=np.float32)[[2, 0, 2]]
    mixed = {
        "image": np.zeros((3, 2, 2, 1)),
        "label": np.asarray([0, 0, 0]),
        "partner": np.asarray([2, 2, 2]),
        "share": np.asarray([0.25, 0.75, 0.75], np.float32),
        "weight": np.ones(3, np.float32),
    }
    sums, _ = classification.loss(small_config(), Fixed(logits), {}, mixed, jax.random.key(0), train=True)
    assert float(sums["accuracy"]) == 2


@pytest.mark.slow
def test_accumulation_mixes_the_whole_batch():
    """With statistics of single examples two micro-batches are one batch, mixed as one; without mixing they are another."""

    def two_steps(parts: int, probability: float) -> tuple:
        mixing = dict(mix__mixup_alpha=0.8, mix__cutmix_alpha=1.0, mix__probability=probability)
        program = build_program(small_config(batch_norm__granularity=1, accumulation=parts, parallel__data=1, **mixing))
        loader = program.task.loader(program.config, "train", (0, 1), training=True)
        step = quick(program.train_step)
        state, losses = program.init(0), []
        for _ in range(2):
            state, metrics = step(state, loader.training_batch(0), np.uint32(0))
            losses.append(float(metrics["loss"]))
        assert step._cache_size() == 1, "another step runs through the same program"
        return tree.flatten_by_path(state.params), losses

    (one, losses), (two, same), (_, unmixed) = two_steps(1, 1.0), two_steps(2, 1.0), two_steps(1, 0.0)
    for path, value in one.items():
        np.testing.assert_allclose(value, two[path], rtol=2e-4, atol=2e-5, err_msg=path)
    np.testing.assert_allclose(losses, same, rtol=1e-5)
    assert (np.abs(np.subtract(losses, unmixed)) > 1e-3).all()


class TestErasing:
    """Boxes of random erasing, in images whose pixels are all 7."""

    H, W = 24, 40

    @pytest.fixture(scope="class")
    @classmethod
    def erased(cls) -> tuple[np.ndarray, np.ndarray]:
        images = np.full((4000, cls.H, cls.W, 2), 7, np.float32)
        after = np.asarray(quick(lambda key: erase_boxes(key, images, 0.25))(jax.random.key(3)))
        return after, (after != 7).any(-1)

    def test_share_of_images(self, erased: tuple) -> None:
        share = erased[1].any((1, 2)).mean()
        assert share == pytest.approx(0.25, abs=4 * np.sqrt(0.25 * 0.75 / 4000))

    def test_boxes_are_the_papers(self, erased: tuple) -> None:
        """Filled rectangles of 2 to 33 % whose height / width is 0.3 to 3.3, as far as pixels allow, anywhere in the image."""
        boxes = erased[1][erased[1].any((1, 2))]
        heights, widths = boxes.any(2).sum(1), boxes.any(1).sum(1)
        np.testing.assert_array_equal(heights * widths, boxes.sum((1, 2)))
        for sides, limit in ((heights, self.H), (widths, self.W)):
            assert sides.max() < limit
        area = (heights - 0.5) * (widths - 0.5), (heights + 0.5) * (widths + 0.5)
        assert (area[1] >= 0.02 * self.H * self.W).all() and (area[0] <= self.H * self.W / 3).all()
        assert ((heights + 0.5) / (widths - 0.5) >= 0.3).all() and ((heights - 0.5) / (widths + 0.5) <= 1 / 0.3).all()
        # Few candidates are refused: area and log of the ratio are nearly uniform.
        assert (heights * widths).mean() / (self.H * self.W) == pytest.approx((0.02 + 1 / 3) / 2, abs=0.015)
        assert np.log(heights / widths).mean() == pytest.approx(0, abs=0.12)
        touched = boxes.any(0)
        assert touched[[0, 0, -1, -1], [0, -1, 0, -1]].all()

    def test_noise_is_normal_in_every_pixel(self, erased: tuple) -> None:
        noise = erased[0][erased[1]]
        assert len(np.unique(noise)) > 0.9 * noise.size
        assert noise.mean() == pytest.approx(0, abs=0.01) and noise.std() == pytest.approx(1, abs=0.01)

    def test_the_task_erases_before_it_mixes(self) -> None:
        """With lambda near 1/2 most pixels of a box are the mean of noise and of the partner's 7."""
        config = small_config(**{"mix.erasing_probability": 1.0, "mix.mixup_alpha": 1e6, "data.image_shape": (24, 40, 1)})
        images = np.full((2, 24, 40, 1), 7, np.float32)
        of_batch = {"image": images, "label": np.zeros(2, np.int32), "weight": np.ones(2, np.float32)}
        mixed = np.asarray(classification.mix(config, of_batch, jax.random.key(0))["image"])
        changed = mixed[mixed < 6.9]
        assert changed.size > 0.02 * 960 and changed.mean() == pytest.approx(3.5, abs=1.0)
        alone = classification.mix(small_config(**{"mix.erasing_probability": 1.0}), of_batch, jax.random.key(0))
        assert (np.asarray(alone["image"]) != 7).any((1, 2, 3)).all() and "partner" not in alone
