"""Vision Transformers in timm's names, which DeiT's official repository shares, and in torchvision's."""

import dataclasses
import math

import jax
import numpy as np

from attention_jax.errors import UserError
from attention_jax.interop.layout import KERNEL, Array, Layout, NameRule, Transform, name_module, name_modules

QKV = ("query", "key", "value")  # their order in a joint array


def resize_grid(table: Array, shape: tuple[int, ...]) -> Array:
    """[side², C] -> shape [side², C]: interpolates a square bicubically and smooths when it shrinks (timm's for positions)."""
    before, after = math.isqrt(len(table)), math.isqrt(shape[0])
    if (before**2, after**2, *table.shape[1:]) != (len(table), *shape):
        raise UserError("only squares of positions with the same channels can be interpolated")
    return np.asarray(jax.image.resize(table.reshape(before, before, -1), (after, after, shape[1]), "cubic")).reshape(shape)


def resize_positions(table: Array, shape: tuple[int, ...]) -> Array:
    """[tokens + side², D] -> shape [tokens + side², D]: keeps the tokens, and interpolates the square of patches."""
    tokens, right = _count_tokens(len(table)), _count_tokens(shape[0])
    if tokens != right:
        raise UserError(f"it has {tokens} tokens before the patches, and the network needs {right}")
    return np.concatenate([table[:tokens], resize_grid(table[tokens:], (shape[0] - tokens, *shape[1:]))])


def _count_tokens(length: int) -> int:
    """Returns the number of tokens before a square of patches, 0 to 2; squares from 1 on are more than 2 apart."""
    for tokens in range(3):
        if math.isqrt(max(0, length - tokens)) ** 2 == length - tokens > 0:
            return tokens
    raise UserError(f"{length} positions are not up to two tokens and a square of patches")


_TOKEN = Transform(lambda x: x[0, 0], lambda x: x[None, None])
_POSITIONS = Transform(lambda x: x[0], lambda x: x[None], resize=resize_positions)
_BLOCK, _LAYER = r"block(\d+)", "encoder.layers.encoder_layer_{1-1}"


def name_fused(path: str, name: str) -> tuple[NameRule, ...]:
    """Returns the rules for queries, keys and values that are one layer in the other library."""
    return tuple(rule for i, part in enumerate(QKV) for rule in name_module(f"{path}/{part}", name, part=(i, 3)))


TIMM = {
    "patches": "patch_embed.proj",
    f"{_BLOCK}/norm1": "blocks.{1-1}.norm1",
    f"{_BLOCK}/attention/output": "blocks.{1-1}.attn.proj",
    f"{_BLOCK}/norm2": "blocks.{1-1}.norm2",
    f"{_BLOCK}/mlp/hidden": "blocks.{1-1}.mlp.fc1",
    f"{_BLOCK}/mlp/output": "blocks.{1-1}.mlp.fc2",
    "norm": "norm",
    "head": "head",
    "head_distillation": "head_dist",
}
TORCHVISION = {
    "patches": "conv_proj",
    f"{_BLOCK}/norm1": f"{_LAYER}.ln_1",
    f"{_BLOCK}/attention/output": f"{_LAYER}.self_attention.out_proj",
    f"{_BLOCK}/norm2": f"{_LAYER}.ln_2",
    f"{_BLOCK}/mlp/hidden": f"{_LAYER}.mlp.0",
    f"{_BLOCK}/mlp/output": f"{_LAYER}.mlp.3",
    "norm": "encoder.ln",
    "head": "heads.head",
}
# In the form of the published files; torchvision converts them when it reads them.
TORCHVISION_012 = {
    **TORCHVISION,
    f"{_BLOCK}/mlp/hidden": f"{_LAYER}.mlp.linear_1",
    f"{_BLOCK}/mlp/output": f"{_LAYER}.mlp.linear_2",
}
_IN_PROJ = tuple(  # the joint projection of torch.nn.MultiheadAttention
    NameRule(f"params/{_BLOCK}/attention/{part}/{leaf}", f"{_LAYER}.self_attention.in_proj_{name}", form)
    for i, part in enumerate(QKV)
    for leaf, name, form in (
        ("kernel", "weight", dataclasses.replace(KERNEL, part=(i, 3))),
        ("bias", "bias", Transform(part=(i, 3))),
    )
)

LAYOUTS = (
    Layout(
        "timm",
        ("vit_*", "deit_*"),
        (
            NameRule("params/class_token", "cls_token", _TOKEN),
            NameRule("params/distillation_token", "dist_token", _TOKEN),
            NameRule("params/positions", "pos_embed", _POSITIONS),
            *name_fused(f"{_BLOCK}/attention", "blocks.{1-1}.attn.qkv"),
            *name_modules(TIMM),
        ),
    ),
    *(
        Layout(
            library,
            ("vit_*_patch*", "deit_*[ely]_patch*"),  # DeiT without distillation
            (
                NameRule("params/class_token", "class_token", _TOKEN),
                NameRule("params/positions", "encoder.pos_embedding", _POSITIONS),
                *_IN_PROJ,
                *name_modules(names),
            ),
        )
        for library, names in (("torchvision", TORCHVISION), ("torchvision.0.12", TORCHVISION_012))
    ),
)
