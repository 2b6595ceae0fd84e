"""Optimizers as optax chains."""

from typing import Any

import optax

from attention_jax import tree


def make_optimizer(
    name: str,
    schedule: optax.Schedule,
    weight_decay: float,
    decay_rules: tree.Rules,
    momentum: float = 0.9,
    nesterov: bool = False,
) -> optax.GradientTransformation:
    """SGD with momentum and L2 decay, or AdamW.

    Args:
        name: "sgd": decay joins the gradient before the momentum, v = m·v + g + wd·w, w = w - lr·v, as in PyTorch;
            "adamw": decoupled decay, b2 0.999.
        schedule: step -> learning rate.
        weight_decay: 0 switches it off.
        decay_rules: (path regex, whether to decay); a parameter that no rule matches is an error.
        momentum: of SGD, first-moment decay of AdamW.
        nesterov: of SGD.
    """

    def mask(params: Any) -> Any:
        return tree.select(decay_rules, params, "optimizer.decay_rules")

    if name == "sgd":
        parts = [optax.sgd(schedule, momentum, nesterov)]
        if weight_decay:
            parts.insert(0, optax.add_decayed_weights(weight_decay, mask))
        return optax.chain(*parts)
    if name == "adamw":
        return optax.adamw(schedule, b1=momentum, weight_decay=weight_decay, mask=mask)
    raise ValueError(f"unknown optimizer {name!r}")
