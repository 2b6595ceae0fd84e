"""Attention maps for one point of an image, in every layer of a Vision Transformer or Swin Transformer."""

import re
from typing import Any

import flax.linen as nn
import numpy as np

from attention_jax.analysis.attention_maps import attention_maps
from attention_jax.errors import UserError
from attention_jax.models.swin import SwinTransformer, lay_windows
from attention_jax.models.vit import VisionTransformer


def map_query_point(model: nn.Module, variables: dict[str, Any], images: Any, point: tuple[int, int]) -> dict[str, np.ndarray]:
    """Returns {module path: [B, heads, H, W] float32}: the attention from the point's patch to the patch of each pixel.

    All pixels of a patch have the weight of the patch; a ViT's other tokens are left out. In a Swin Transformer a point attends
    only inside its window, which is put in its place on the image; everything else is 0, and padding is cut away. The patches
    of
    its later stages are several merged into one.

    Args:
        images: normalised images [B, H, W, C].
        point: row and column of a pixel.

    Raises:
        UserError: another network, or a point outside of the images.
    """
    images = np.asarray(images)
    (h, w), (y, x) = images.shape[1:3], point
    if not isinstance(model, (VisionTransformer, SwinTransformer)):
        raise UserError(f"map_query_point takes a VisionTransformer or SwinTransformer, not {type(model).__name__}.")
    if not (0 <= y < h and 0 <= x < w):
        raise UserError(f"map_query_point: point={point} is no row and column in images of {h}x{w} pixels.")
    maps = {}
    for path, sown in attention_maps(model, variables, images).items():
        weights: np.ndarray = np.asarray(sown, np.float32)
        if isinstance(model, VisionTransformer):
            patch, columns = model.patch_size, -(-w // model.patch_size)
            query = len(model.prefix()) + y // patch * columns + x // patch
            seen = weights[:, :, query, len(model.prefix()) :].reshape(*weights.shape[:2], -1, columns)
        else:
            stage, block = map(int, re.findall(r"\d+", path)[:2])
            patch = model.patch_size * 2 ** (stage - 1)
            rows, columns = -(-h // patch), -(-w // patch)
            places, _ = lay_windows(rows, columns, model.window_size, shifted=block % 2 == 0)
            padded = -(-columns // model.window_size) * model.window_size
            ((window, query),) = np.argwhere(places == y // patch * padded + x // patch)
            weights = weights.reshape(len(images), len(places), *weights.shape[1:])[:, window, :, query]
            seen = np.zeros((*weights.shape[:2], places.size), np.float32)
            seen[..., places[window]] = weights
            seen = seen.reshape(*weights.shape[:2], -1, padded)
        maps[path] = seen.repeat(patch, 2).repeat(patch, 3)[:, :, :h, :w]
    return maps
