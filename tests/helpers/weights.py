"""Small files of other libraries' weights (tests/fixtures/weights, made by `python -m tests.peers.freeze weights`)."""

from typing import Any

from tests.helpers.parity import FIXTURES

FOLDER = FIXTURES / "weights"


def _narrow(*widths: int) -> dict[str, dict[str, Any]]:
    return dict(theirs=dict(channels=widths), ours=dict(widths=widths))


# One network of each of timm's kinds, with one block a stage: fields of theirs and of ours.
_NAMES = "resnet18 resnet50c resnet50d wide_resnet50_2 resnetrs50 resnext50_32x4d resnext50d_32x4d resnext101_32x16d seresnet18"
KINDS = {
    **{name: _narrow(16, 16, 32, 32) for name in f"{_NAMES} seresnet152d seresnext50_32x4d ecaresnet50d".split()},
    "resnet50_gn": _narrow(64, 64, 64, 64),  # timm has 32 groups
    "senet154": _narrow(32, 32, 64, 64),
}
