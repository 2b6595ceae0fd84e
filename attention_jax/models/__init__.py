"""Complete networks, made of blocks from `nn`; `create_model` makes one by its name."""

from attention_jax.models import (  # noqa: F401  they register their names
    convnext,
    convnext_roadmap,
    efficientnet,
    resnet_names,
    rnnsearch,
    seq2seq,
    swin,
    transformer,
    vit,
)
from attention_jax.models.registry import create_model, list_models, register_model

__all__ = ["create_model", "list_models", "register_model"]
