"""Whole networks made of `nn` blocks; `create_model` is the way in."""

from attention_jax.models import resnet_names  # noqa: F401  registers them
from attention_jax.models.registry import create_model, list_models

__all__ = ["create_model", "list_models"]
