"""Tiny ConvNeXts and steps of the roadmap that are compared with PyTorch; the numbers are drawn as in `parity`."""

import dataclasses
from typing import Any

from tests.helpers import parity


@dataclasses.dataclass(frozen=True)
class Case(parity.Case):
    """One tiny network: `fields` of `ConvNeXt`, or of `ConvNeXtRoadmap` where there is a `width`."""

    @property
    def network(self) -> dict[str, Any]:
        """Every field of the network that the case sets."""
        tiny = dict(num_classes=parity.CLASSES, stage_sizes=(1, 2))
        return {**tiny, **self.fields}

    @property
    def is_roadmap(self) -> bool:
        """Whether it is a `ConvNeXtRoadmap`."""
        return "width" in self.fields


_LAST = dict(width=4, stem="patchify", depthwise=True, block="depthwise_first", kernel_size=7, activation="gelu")
_LAST.update(fewer_activations=True, fewer_norms=True, norm="layer")
_FOUR = dict(widths=(4, 8, 12, 16), stage_sizes=(1, 1, 2, 1))  # timm's class has four stages
# Odd sides leave pixels over at the stem and at every downsampling.
CASES = {
    "convnext": Case(_FOUR, image=(75, 70)),
    "convnext_even": Case(_FOUR, image=(64, 96), seed=1),
    "isotropic": Case(
        dict(widths=(8,), stage_sizes=(2,), patch_size=4, stem_norm=False, layer_scale=None),
        image=(21, 16),
        label_smoothing=0.1,
    ),
    "roadmap_depthwise": Case(dict(width=4, depthwise=True), image=(25, 20), seed=1),
    "roadmap_inverted": Case(dict(width=4, stem="patchify", depthwise=True, block="inverted"), image=(21, 16)),
    "roadmap_moved_up": Case(dict(_LAST, activation="relu", fewer_activations=False, fewer_norms=False, norm="batch")),
    "roadmap_fewer": Case(dict(_LAST, norm="batch"), image=(19, 16)),
    "roadmap_layer_norm": Case(dict(_LAST, final_norm=True), image=(19, 16)),
    "roadmap_last": Case(dict(_LAST, final_norm=True, downsampling="separate_norm"), image=(23, 20)),
}
IMAGENET_IMAGES = ((64, 64), (75, 97))
