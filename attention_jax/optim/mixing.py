"""Mixup and CutMix of a batch, and random erasing, inside the step.

Mixing works as timm's batch mode, which DeiT, Swin and ConvNeXt use: one lambda for all; example i meets example B-1-i.
In a shuffled batch the reversed order is as random a partner as a permutation, and on several devices it moves every
image to one other device, where a random permutation would gather all of them everywhere.
"""

import math

import jax
import jax.numpy as jnp

Batch = dict[str, jax.Array]


def mix_images(
    rng: jax.Array, batch: Batch, mixup_alpha: float, cutmix_alpha: float, probability: float, switch_probability: float
) -> Batch:
    """Returns the batch with mixed "image" [B, H, W, C], and with "partner" [B] and "share" [B] beside "label" [B].

    An example's target is share·label + (1-share)·partner. One draw per batch decides whether to mix, and by which method.

    Args:
        batch: arrays of B examples; arrays other than image and label are kept.
        mixup_alpha: lambda ~ Beta(a, a) of mixup, image·lambda + partner·(1-lambda) (Zhang et al. 2018); 0 for no mixup.
        cutmix_alpha: lambda ~ Beta(a, a) of CutMix (Yun et al. 2019); 0 for no CutMix.
        switch_probability: probability of CutMix instead of mixup if both are on.
    """
    images, labels = batch["image"], batch["label"]
    b, h, w, _ = images.shape
    of_whether, of_which, of_lambda, of_box = jax.random.split(rng, 4)

    if mixup_alpha:
        share = jax.random.beta(of_lambda, mixup_alpha, mixup_alpha)
        keep = jnp.full((h, w), share)
    if cutmix_alpha:
        cut_keep, cut_share = draw_cutmix(of_box, jax.random.beta(of_lambda, cutmix_alpha, cutmix_alpha), h, w)
        if mixup_alpha:
            cut = jax.random.bernoulli(of_which, switch_probability)
            keep, share = jnp.where(cut, cut_keep, keep), jnp.where(cut, cut_share, share)
        else:
            keep, share = cut_keep, cut_share
    mixing = jax.random.bernoulli(of_whether, probability)
    keep, share = jnp.where(mixing, keep, 1.0), jnp.where(mixing, share, 1.0)

    keep = keep[:, :, None].astype(images.dtype)
    return {
        **batch,
        "image": keep * images + (1 - keep) * images[::-1],
        "partner": labels[::-1],
        "share": jnp.full((b,), share),
    }


def draw_cutmix(rng: jax.Array, share: jax.Array, h: int, w: int) -> tuple[jax.Array, jax.Array]:
    """Returns [H, W] with 0 inside a box and 1 outside, and the exact share outside.

    The box's sides are sqrt(1-lambda) of the image's. Its centre lies anywhere in the image and its edges are cut; the
    labels' share is the area that is left, not lambda (Yun et al. 2019, released code; timm's `correct_lam`).
    """
    ratio = jnp.sqrt(1 - share)
    inside = []
    for key, side in zip(jax.random.split(rng), (h, w), strict=True):
        half = jnp.floor(side * ratio).astype(jnp.int32) // 2
        centre = jax.random.randint(key, (), 0, side)
        place = jnp.arange(side)
        inside.append((centre - half <= place) & (place < centre + half))
    keep = 1.0 - (inside[0][:, None] & inside[1][None, :])
    return keep, keep.mean()


_AREAS, _RATIOS = (0.02, 1 / 3), (0.3, 1 / 0.3)  # shares of the image; height / width: Zhong et al., Section 4.1, and timm


def erase_boxes(rng: jax.Array, images: jax.Array, probability: float) -> jax.Array:
    """[B, H, W, C] -> [B, H, W, C]: fills a box with noise in some of the images (Zhong et al. 2020).

    The noise is normal in every pixel and channel, as in timm's mode "pixel", for normalised images. Ten boxes are drawn, with
    an area uniform in 2 to 33 % and the logarithm of height / width uniform; the first that is smaller than the image on both
    sides is erased, and none if all are too large.
    """
    b, h, w, _ = images.shape
    of_whether, of_area, of_ratio, of_place, of_noise = jax.random.split(rng, 5)
    area = h * w * jax.random.uniform(of_area, (b, 10), minval=_AREAS[0], maxval=_AREAS[1])
    ratio = jnp.exp(jax.random.uniform(of_ratio, (b, 10), minval=math.log(_RATIOS[0]), maxval=math.log(_RATIOS[1])))
    sides = jnp.round(jnp.sqrt(jnp.stack([area * ratio, area / ratio], -1)))
    limits = jnp.array([h, w])
    fits = (sides < limits).all(-1)
    side = jnp.take_along_axis(sides, fits.argmax(1)[:, None, None], 1)[:, 0]
    start = jnp.floor(jax.random.uniform(of_place, (b, 2)) * (limits - side + 1))
    rows, columns = (
        (start[:, i, None] <= jnp.arange(n)) & (jnp.arange(n) < (start + side)[:, i, None]) for i, n in enumerate((h, w))
    )
    erased = fits.any(1) & jax.random.bernoulli(of_whether, probability, (b,))
    box = rows[:, :, None] & columns[:, None] & erased[:, None, None]
    return jnp.where(box[..., None], jax.random.normal(of_noise, images.shape, images.dtype), images)
