"""Our names of the tensors of timm's and torchvision's networks, out of the tables by which weights are loaded and exported."""

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import numpy as np

from attention_jax.interop import layouts_convnext, layouts_efficientnet, layouts_swin, layouts_vit
from attention_jax.interop.layout import Transform, list_shapes, match_names
from attention_jax.models.convnext import ConvNeXt
from attention_jax.models.efficientnet import EfficientNet
from attention_jax.models.swin import SwinTransformer
from attention_jax.models.vit import VisionTransformer

MODULES: dict[Any, Any] = {
    ConvNeXt: layouts_convnext,
    EfficientNet: layouts_efficientnet,
    SwinTransformer: layouts_swin,
    VisionTransformer: layouts_vit,
}


def list_parts(model: Any, library: str = "timm") -> dict[str, list[tuple[str, Transform]]]:
    """{their name: [(our path without "params/", form)]}; queries, keys and values have one name."""
    layout = next(layout for layout in MODULES[type(model)].LAYOUTS if layout.name == library)
    parts = defaultdict(list)
    for path, place in match_names(layout, model, list(list_shapes(model))).items():
        assert place, f"{library} has no name for {path}"
        parts[place.name].append((path.partition("/")[2], place.transform))
    return parts


def our_paths(model: Any, library: str = "timm") -> dict[str, str]:
    """{their name: our path} of a network none of whose tensors has several of ours."""
    return {name: path for name, ((path, _),) in list_parts(model, library).items()}


def make_our_arrays(model: Any, library: str = "timm") -> Callable[[str, np.ndarray], dict[str, np.ndarray]]:
    """A function from the name and the array of one of their tensors, or of its gradient, to {our path: our array}."""
    parts = list_parts(model, library)
    return lambda name, array: {path: form.take(array) for path, form in parts[name]}
