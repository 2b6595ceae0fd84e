"""Vision Transformers and Swin Transformers as cases of `parity`: the same numbers on both sides, results alone are stored.

The references are timm's networks; torchvision's where a Swin's maps are padded, which timm does in another order.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from tests.helpers.parity import CLASSES


@dataclasses.dataclass(frozen=True)
class ViTCase:
    """One tiny network: `fields` of `VisionTransformer` or `SwinTransformer`, height and width of its images."""

    kind: str  # "vit" or "swin"
    fields: Mapping[str, Any]
    image: tuple[int, int]
    seed: int = 0

    @property
    def network(self) -> dict[str, Any]:
        """Every field of the network that the case sets."""
        vit = dict(image_size=16, patch_size=4, layers=2, width=16, heads=2)
        swin = dict(patch_size=2, window_size=3, stage_sizes=(2, 2), width=8, heads=(2, 4))
        return dict(vit if self.kind == "vit" else swin, num_classes=CLASSES, **self.fields)


VITS = {
    "vit": ViTCase("vit", {}, (16, 16)),
    "vit_resized": ViTCase("vit", {}, (23, 9)),  # 6x3 patches in place of 4x4, both sides padded
    "vit_mean": ViTCase("vit", dict(pool="mean"), (24, 24)),
    "deit_distilled": ViTCase("vit", dict(distilled=True), (16, 20)),
    "swin": ViTCase("swin", {}, (24, 12)),  # maps of 12x6 and 6x3: the last has one window a row, which does not shift
    "swin_padded": ViTCase("swin", {}, (17, 21)),  # of 9x11 and 5x6: padded to windows, and to pairs before they are merged
}
# Complete networks, compared live: timm's name, fields that both sides take, image sizes.
PUBLISHED = [
    ("vit_tiny_patch16_224", {}, (97, 130)),
    ("vit_tiny_patch16_224", {}, (224, 224)),
    ("vit_base_patch16_gap_224", dict(layers=2), (64, 48)),
    ("deit_tiny_distilled_patch16_224", {}, (97, 130)),
    ("swin_tiny_patch4_window7_224", {}, (224, 224)),
    ("swin_tiny_patch4_window7_224", dict(window_size=4), (128, 256)),
    ("swin_tiny_patch4_window7_224", {}, (131, 90)),  # torchvision's
]
