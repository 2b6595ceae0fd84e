"""Swin Transformers in the names of timm, torchvision and the official repository, microsoft/Swin-Transformer.

The official names, timm's until 0.9, merge patches at the end of a stage; we and today's timm merge them at the start of the
next one. All of them merge four positions in the same order.
"""

from attention_jax.interop.layout import Layout, NameRule, Transform, name_modules
from attention_jax.interop.layouts_vit import name_fused, resize_grid

_BLOCK = r"stage(\d)_block(\d+)"


def _name_swin(ends: dict[str, str], block: str, hidden: str, output: str) -> tuple[NameRule, ...]:
    names = {
        **ends,
        "norm": "norm",
        f"{_BLOCK}/norm1": f"{block}.norm1",
        f"{_BLOCK}/attention/output": f"{block}.attn.proj",
        f"{_BLOCK}/norm2": f"{block}.norm2",
        f"{_BLOCK}/mlp/hidden": f"{block}.mlp.{hidden}",
        f"{_BLOCK}/mlp/output": f"{block}.mlp.{output}",
    }
    table = f"{block}.attn.relative_position_bias_table"
    return (
        NameRule(f"params/{_BLOCK}/relative_bias", table, Transform(resize=resize_grid)),  # from another window
        *name_fused(f"{_BLOCK}/attention", f"{block}.attn.qkv"),
        *name_modules(names),
    )


_PATCHES = {"patches": "patch_embed.proj", "patches_norm": "patch_embed.norm"}
TIMM = {
    **_PATCHES,
    r"stage(\d)_merge": "layers.{1-1}.downsample.reduction",
    r"stage(\d)_merge_norm": "layers.{1-1}.downsample.norm",
    "head": "head.fc",
}
OFFICIAL = {
    **_PATCHES,
    r"stage(\d)_merge": "layers.{1-2}.downsample.reduction",
    r"stage(\d)_merge_norm": "layers.{1-2}.downsample.norm",
    "head": "head",
}
TORCHVISION = {
    "patches": "features.0.0",
    "patches_norm": "features.0.2",
    r"stage(\d)_merge": "features.{2*1-2}.reduction",
    r"stage(\d)_merge_norm": "features.{2*1-2}.norm",
    "head": "head",
}
LAYOUTS = (
    Layout("timm", ("swin_*",), _name_swin(TIMM, "layers.{1-1}.blocks.{2-1}", "fc1", "fc2")),
    Layout("official", ("swin_*",), _name_swin(OFFICIAL, "layers.{1-1}.blocks.{2-1}", "fc1", "fc2")),
    Layout("torchvision", ("swin_*",), _name_swin(TORCHVISION, "features.{2*1-1}.{2-1}", "0", "3")),
)
