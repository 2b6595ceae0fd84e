"""Configs are data: loaded, overridden, checked against the table of fields, compared and saved."""

from attention_jax.config import defaults
from attention_jax.config.config import apply_pieces, load_config, override

__all__ = ["apply_pieces", "defaults", "load_config", "override"]
