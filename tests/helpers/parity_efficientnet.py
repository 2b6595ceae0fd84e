"""Tiny EfficientNets that are compared with PyTorch; the numbers are drawn as in `parity`."""

import dataclasses
from typing import Any

from tests.helpers import parity

# Swish and sigmoid gates, block after block, leave the first layers 1e-4 of the last one's gradient in evaluation, in float32
# still right to 1e-5 of itself; in training, where each normalisation makes up for them, it is 5e-3.
FAINTEST = 1e-5


@dataclasses.dataclass(frozen=True)
class Case(parity.Case):
    """One tiny network: `fields` of `EfficientNet`."""

    @property
    def network(self) -> dict[str, Any]:
        """Every field of the network that the case sets."""
        return {"num_classes": parity.CLASSES, "width": 0.25, "depth": 0.3, **self.fields}


# TensorFlow pads even sides unevenly where it strides: sides of 32 are even at every stage, of 37 odd.
# Lite's seed is one whose ReLU6 has no value at either kink. The other two paddings are compared on published networks.
_TENSORFLOW = dict(padding="tensorflow", norm_epsilon=1e-3, norm_momentum=0.99)
CASES = {
    "efficientnet": Case(_TENSORFLOW, image=(32, 37), label_smoothing=0.1, seed=1),
    "efficientnet_lite": Case(dict(lite=True, width=0.3), image=(34, 33), seed=66),
}
IMAGENET = ("efficientnet_b0", "tf_efficientnet_b1", "efficientnet_lite2", "tf_efficientnet_lite0")
IMAGENET_IMAGES = ((64, 64), (75, 97))
