"""Configs are data: loaded, overridden, checked against the table of fields, compared and saved."""

from attention_jax.config.config import (
    MAY_DIFFER,
    apply_pieces,
    check,
    difference,
    duration_steps,
    flatten,
    from_json,
    load_config,
    override,
    parse_value,
    save_json,
    to_json,
    upgrade,
)

__all__ = [
    "MAY_DIFFER",
    "apply_pieces",
    "check",
    "difference",
    "duration_steps",
    "flatten",
    "from_json",
    "load_config",
    "override",
    "parse_value",
    "save_json",
    "to_json",
    "upgrade",
]
