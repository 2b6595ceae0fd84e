"""ConvNeXt in the names of timm, torchvision and the official repository, facebookresearch/ConvNeXt."""

from attention_jax.interop.layout import Layout, NameRule, Transform, name_modules

_LEVELS = ("convnext_[tsblx]*",)  # tiny, small, base, large, xlarge
_BLOCK, _SCALE = r"stage(\d)_block(\d+)", r"params/stage(\d)_block(\d+)/layer_scale"
_MAP = Transform(lambda x: x[:, 0, 0], lambda x: x[:, None, None])  # torchvision has a scale for each channel as [C, 1, 1]


def _name_official_block(block: str) -> dict[str, str]:
    layers = {"depthwise": "dwconv", "norm": "norm", "expand": "pwconv1", "project": "pwconv2"}
    return {f"{_BLOCK}/{ours}": f"{block}.{theirs}" for ours, theirs in layers.items()}


TIMM = {
    "stem_conv": "stem.0",
    "stem_norm": "stem.1",
    r"downsample(\d)_norm": "stages.{1-1}.downsample.0",
    r"downsample(\d)_conv": "stages.{1-1}.downsample.1",
    f"{_BLOCK}/depthwise": "stages.{1-1}.blocks.{2-1}.conv_dw",
    f"{_BLOCK}/norm": "stages.{1-1}.blocks.{2-1}.norm",
    f"{_BLOCK}/expand": "stages.{1-1}.blocks.{2-1}.mlp.fc1",
    f"{_BLOCK}/project": "stages.{1-1}.blocks.{2-1}.mlp.fc2",
    "head_norm": "head.norm",
    "head": "head.fc",
}
TORCHVISION = {
    "stem_conv": "features.0.0",
    "stem_norm": "features.0.1",
    r"downsample(\d)_norm": "features.{2*1-2}.0",
    r"downsample(\d)_conv": "features.{2*1-2}.1",
    f"{_BLOCK}/depthwise": "features.{2*1-1}.{2-1}.block.0",
    f"{_BLOCK}/norm": "features.{2*1-1}.{2-1}.block.2",
    f"{_BLOCK}/expand": "features.{2*1-1}.{2-1}.block.3",
    f"{_BLOCK}/project": "features.{2*1-1}.{2-1}.block.5",
    "head_norm": "classifier.0",
    "head": "classifier.2",
}
OFFICIAL = {
    "stem_conv": "downsample_layers.0.0",
    "stem_norm": "downsample_layers.0.1",
    r"downsample(\d)_norm": "downsample_layers.{1-1}.0",
    r"downsample(\d)_conv": "downsample_layers.{1-1}.1",
    **_name_official_block("stages.{1-1}.{2-1}"),
    "head_norm": "norm",
    "head": "head",
}
ISOTROPIC = {"stem_conv": "stem", **_name_official_block("blocks.{2-1}"), "head_norm": "norm", "head": "head"}

LAYOUTS = (
    Layout("timm", _LEVELS, (*name_modules(TIMM), NameRule(_SCALE, "stages.{1-1}.blocks.{2-1}.gamma"))),
    Layout("torchvision", _LEVELS, (*name_modules(TORCHVISION), NameRule(_SCALE, "features.{2*1-1}.{2-1}.layer_scale", _MAP))),
    Layout("official", _LEVELS, (*name_modules(OFFICIAL), NameRule(_SCALE, "stages.{1-1}.{2-1}.gamma"))),
    Layout("official", ("convnext_isotropic_*",), (*name_modules(ISOTROPIC), NameRule(_SCALE, "blocks.{2-1}.gamma"))),
)
