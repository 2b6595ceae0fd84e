"""EfficientNet and EfficientNet-Lite in the names of timm, torchvision and efficientnet_pytorch.

timm's tensors have the same names in `efficientnet_*` and `tf_efficientnet_*`, whose padding and epsilon differ: the name of
the requested network decides between the two.
"""

import re
from collections.abc import Mapping
from typing import Any

from attention_jax.interop.layout import POINTWISE, Layout, Name, NameRule, name_modules

_FIRST, _BLOCK = r"stage(1)_block(\d+)", r"stage([2-7])_block(\d+)"  # the first stage does not expand
_ANY = r"stage(\d)_block(\d+)"


def _number(part: str) -> Name:
    """Returns the name "_blocks.N.part", where N counts blocks through all stages."""

    def name(match: re.Match, model: Any) -> str:
        before = sum(blocks for *_, blocks in model.scale_stages()[: int(match[1]) - 1])
        return f"_blocks.{before + int(match[2]) - 1}.{part}"

    return name


TIMM = {
    "stem_conv": "conv_stem",
    "stem_norm": "bn1",
    f"{_ANY}/depthwise_conv": "blocks.{1-1}.{2-1}.conv_dw",
    f"{_FIRST}/depthwise_norm": "blocks.{1-1}.{2-1}.bn1",
    f"{_FIRST}/project_conv": "blocks.{1-1}.{2-1}.conv_pw",
    f"{_FIRST}/project_norm": "blocks.{1-1}.{2-1}.bn2",
    f"{_BLOCK}/expand_conv": "blocks.{1-1}.{2-1}.conv_pw",
    f"{_BLOCK}/expand_norm": "blocks.{1-1}.{2-1}.bn1",
    f"{_BLOCK}/depthwise_norm": "blocks.{1-1}.{2-1}.bn2",
    f"{_BLOCK}/project_conv": "blocks.{1-1}.{2-1}.conv_pwl",
    f"{_BLOCK}/project_norm": "blocks.{1-1}.{2-1}.bn3",
    "head_conv": "conv_head",
    "head_norm": "bn2",
    "head": "classifier",
}
TORCHVISION = {
    "stem_conv": "features.0.0",
    "stem_norm": "features.0.1",
    f"{_FIRST}/depthwise_conv": "features.{1}.{2-1}.block.0.0",
    f"{_FIRST}/depthwise_norm": "features.{1}.{2-1}.block.0.1",
    f"{_FIRST}/project_conv": "features.{1}.{2-1}.block.2.0",
    f"{_FIRST}/project_norm": "features.{1}.{2-1}.block.2.1",
    f"{_BLOCK}/expand_conv": "features.{1}.{2-1}.block.0.0",
    f"{_BLOCK}/expand_norm": "features.{1}.{2-1}.block.0.1",
    f"{_BLOCK}/depthwise_conv": "features.{1}.{2-1}.block.1.0",
    f"{_BLOCK}/depthwise_norm": "features.{1}.{2-1}.block.1.1",
    f"{_BLOCK}/project_conv": "features.{1}.{2-1}.block.3.0",
    f"{_BLOCK}/project_norm": "features.{1}.{2-1}.block.3.1",
    "head_conv": "features.8.0",
    "head_norm": "features.8.1",
    "head": "classifier.1",
}
PYTORCH = {
    "stem_conv": "_conv_stem",
    "stem_norm": "_bn0",
    f"{_ANY}/expand_conv": _number("_expand_conv"),
    f"{_ANY}/expand_norm": _number("_bn0"),
    f"{_ANY}/depthwise_conv": _number("_depthwise_conv"),
    f"{_ANY}/depthwise_norm": _number("_bn1"),
    f"{_ANY}/project_conv": _number("_project_conv"),
    f"{_ANY}/project_norm": _number("_bn2"),
    "head_conv": "_conv_head",
    "head_norm": "_bn1",
    "head": "_fc",
}
# Squeeze-and-excitation; its layers are 1x1 convolutions there.
TIMM_GATE = {f"{_ANY}/gate/(reduce|expand)": "blocks.{1-1}.{2-1}.se.conv_{3}"}
TORCHVISION_GATE = {
    f"{stage}/gate/{layer}": f"features.{{1}}.{{2-1}}.block.{place}.{name}"
    for stage, place in ((_FIRST, 1), (_BLOCK, 2))
    for layer, name in (("reduce", "fc1"), ("expand", "fc2"))
}
PYTORCH_GATE = {f"{_ANY}/gate/{layer}": _number(f"_se_{layer}") for layer in ("reduce", "expand")}


def _name_all(names: Mapping[str, Name], gate: Mapping[str, Name]) -> tuple[NameRule, ...]:
    return (*name_modules(names), *name_modules(gate, kernel=POINTWISE))


_TENSORFLOW = dict(padding="tensorflow", norm_epsilon=1e-3, norm_momentum=0.99)

LAYOUTS: tuple[Layout, ...] = (
    Layout("timm", ("efficientnet_*", "tf_efficientnet_*"), _name_all(TIMM, TIMM_GATE)),
    Layout("torchvision", ("efficientnet_b[0-4]",), _name_all(TORCHVISION, TORCHVISION_GATE)),
    Layout(
        "torchvision",
        ("efficientnet_b[5-7]",),
        _name_all(TORCHVISION, TORCHVISION_GATE),
        fields=dict(norm_epsilon=1e-3, norm_momentum=0.99),
    ),
    Layout(
        "efficientnet_pytorch", ("efficientnet_*", "tf_efficientnet_*"), _name_all(PYTORCH, PYTORCH_GATE), fields=_TENSORFLOW
    ),
)
