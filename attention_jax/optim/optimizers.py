"""Optimizers as optax chains, decay masks, and the exponential moving average of weights."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from attention_jax import tree
from attention_jax.config.fields import OPTIMIZERS
from attention_jax.config.plugins import load_object
from attention_jax.errors import UserError

# RMSProp in TensorFlow, Keras and PyTorch: (first second moment, eps inside the root, rate in the velocity).
RMSPROP = {"tensorflow": (1.0, True, True), "keras": (0.0, True, True), "torch": (0.0, False, False)}


def make_decay_mask(rules: tree.Rules) -> Callable[[Any], Any]:
    """Returns a mask for optax (`optax.add_decayed_weights(1e-4, mask)`): a function of the parameters, True where they decay.

    Args:
        rules: (path regex, True to decay); the first match wins, and a parameter without one is an error.
    """
    return lambda params: tree.select_by_path(rules, params, "optimizer.decay_rules")


def is_frozen(rules: tree.Rules, path: str) -> bool:
    """Returns True for a parameter whose rate has the factor 0."""
    return tree.find_first_match(rules, path, "optimizer.rate_rules") == 0


def scale_rates(optimizer: optax.GradientTransformation, rules: tree.Rules) -> optax.GradientTransformation:
    """Multiplies each parameter's learning rate by a factor, as layer-wise decay does (Clark et al. 2020, ELECTRA).

    A factor of 0 freezes parameters: they do not move, not even by decay, and the optimizer keeps no state for them.

    Args:
        optimizer: the factor scales its complete updates, including decoupled decay, as PyTorch's parameter groups do.
        rules: (path regex, factor); the first match wins, and a parameter without one is an error.
    """
    if all(factor == 1 for _, factor in rules):
        return optimizer

    def factors(params: Any) -> Any:
        return tree.select_by_path(rules, params, "optimizer.rate_rules")

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        return jax.tree.map(lambda u, factor: u * factor if factor else jnp.zeros_like(u), updates, factors(params)), state

    def init(params: Any) -> optax.EmptyState:
        _check_rates(rules, params)
        return optax.EmptyState()

    if any(factor == 0 for _, factor in rules):
        optimizer = optax.masked(optimizer, lambda params: jax.tree.map(bool, factors(params)))
    return optax.chain(optimizer, optax.GradientTransformation(init, update))


def _check_rates(rules: tree.Rules, params: Any) -> None:
    """Raises UserError for rules that change no rate, rules that freeze nothing, and rules that freeze everything."""
    where, paths = "optimizer.rate_rules", tree.flatten_by_path(params)
    found = [tree.find_first_match(rules, path, where) for path in paths]
    patterns = [pattern for pattern, factor in rules if factor != 1]
    for pattern in (pattern for pattern, factor in rules if factor == 0):
        alone = [(other, other == pattern) for other, _ in rules]
        if not any(tree.find_first_match(alone, path, where) for path in paths):
            raise UserError(f"{where}: no parameter is frozen by {pattern!r}: give an expression for their paths.")
    if all(factor == 1 for factor in found):
        named = ", ".join(map(repr, patterns))
        raise UserError(f"{where}: no parameter is found by {named}: give expressions for their paths.")
    if not any(found):
        raise UserError(f"{where}={tuple(rules)!r} freezes every parameter: leave some a rate.")


def _make_own(
    name: str, schedule: optax.Schedule, mask: Callable[[Any], Any], args: dict[str, Any]
) -> optax.GradientTransformation:
    """Calls optax's or the user's `make(schedule, **args)`, and raises UserError unless it returns a transformation."""
    make = load_object(name, {}, "optimizer")
    try:
        if "mask" in inspect.signature(make).parameters:
            args = {"mask": mask, **args}
        made = make(schedule, **args)
    except TypeError as error:
        raise UserError(f"optimizer.args: {name!r} does not take these arguments ({error}).") from error
    if not isinstance(made, optax.GradientTransformation):
        raise UserError(
            f"optimizer.name={name!r} made {type(made).__name__}: give a function of the schedule that returns an "
            "optax.GradientTransformation."
        )
    return made


def make_optimizer(
    name: str,
    schedule: optax.Schedule,
    weight_decay: float,
    decay_rules: tree.Rules,
    momentum: float = 0.9,
    nesterov: bool = False,
    decay: str = "l2",
    rate_in_velocity: bool = False,
    rmsprop: str = "tensorflow",
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    clip_norm: float = 0.0,
    args: Mapping[str, Any] | None = None,
) -> optax.GradientTransformation:
    """Returns SGD with momentum, RMSProp with momentum, AdamW, or an optimizer from optax or from your own code.

    The order of a step: the gradient of the mean loss over the batch (after accumulation and over all devices) is clipped;
    L2 decay joins it; then come second moment, momentum and rate; decoupled decay comes last.

    Args:
        name: "sgd": v = m·v + g, w = w - lr·v, as PyTorch and TensorFlow's MomentumOptimizer have it;
            "rmsprop": s = b2·s + (1-b2)·g², v = m·v + lr·g / sqrt(s + eps), w = w - v (Hinton 2012, as Inception and
            EfficientNet used TensorFlow's);
            "adamw": Loshchilov & Hutter 2019, decay always decoupled;
            a dotted path such as "optax.lion", or `file.py:make`: called as make(schedule, **args), and with `mask` (which
            parameters decay) if it takes that. Of the other arguments it reads `clip_norm` alone.
        weight_decay: wd; 0 switches it off.
        decay_rules: (path regex, True to decay); a parameter that no rule matches is an error.
        nesterov: SGD uses g + m·v in place of v (Sutskever et al. 2013 as PyTorch and TensorFlow write it).
        decay: kind of decay in SGD and RMSProp: "l2" adds wd·w to the gradient, the gradient of wd/2·|w|²; "decoupled"
            subtracts lr·wd·w from the weight, so that the schedule scales it as in PyTorch's AdamW.
        rate_in_velocity: SGD uses v = m·v + lr·g, w = w - v, as in Caffe and Keras. The same at a constant rate; after the
            rate falls, the velocity still carries the old one (Goyal et al. 2017, equations 9 and 10).
        rmsprop: "tensorflow": s starts at 1, eps inside the root; "keras": s starts at 0, eps inside; "torch": s starts at
            0, eps outside the root, and the rate multiplies v, not g.
        b1, b2: first- and second-moment decay of AdamW; b2 also of RMSProp (0.9 in Inception and EfficientNet).
        eps: epsilon of AdamW (1e-8, outside the root) and RMSProp (1.0 in Inception-v3, 1e-3 in EfficientNet).
        clip_norm: largest global norm of the gradient, decay not counted (Pascanu et al. 2013); 0 for no limit.
        args: keyword arguments of any other optimizer.
    """
    mask = make_decay_mask(decay_rules)
    clip = [optax.clip_by_global_norm(clip_norm)] if clip_norm else []
    if name not in OPTIMIZERS:
        if weight_decay:
            raise UserError(
                f"{name!r} does not read optimizer.weight_decay={weight_decay}: set it to 0 and give the optimizer its own in "
                "optimizer.args."
            )
        return optax.chain(*clip, _make_own(name, schedule, mask, dict(args or {})))
    if args:
        raise UserError(f"{name!r} does not read optimizer.args={dict(args)}: leave it out, or name an optimizer of your own.")
    if name == "adamw":
        adamw = optax.adamw(schedule, b1, b2, eps, weight_decay=weight_decay, mask=mask)
        return optax.chain(*clip, adamw) if clip else adamw

    parts = []
    if name == "rmsprop":
        start, eps_in_root, rate_in_velocity = RMSPROP[rmsprop]
        nesterov = False  # none of the three uses it
        parts.append(optax.scale_by_rms(b2, eps, start, eps_in_root))
    velocity = optax.trace(momentum, nesterov, accumulator_dtype=jnp.float32)
    rate = optax.scale_by_learning_rate(schedule)
    parts += [rate, velocity] if rate_in_velocity else [velocity, rate]
    if not weight_decay:
        return optax.chain(*clip, optax.chain(*parts))
    if decay == "l2":
        return optax.chain(*clip, optax.add_decayed_weights(weight_decay, mask), optax.chain(*parts))
    return optax.chain(*clip, *parts, optax.add_decayed_weights(lambda step: -weight_decay * schedule(step), mask))


def update_average(average: Any, new: Any, decay: float, step: jax.Array, warmup: bool = True) -> Any:
    """Returns d·average + (1-d)·new, where d = min(decay, (1+t)/(10+t)) with warm-up (TensorFlow's ResNet-RS trainer).

    Args:
        decay: 0.9999 in the published recipes.
        step: t, optimizer steps done before this one.
        warmup: False keeps d constant, as timm's ModelEma and ConvNeXt do.
    """
    t = step.astype(jnp.float32)
    d = jnp.minimum(decay, (1 + t) / (10 + t)) if warmup else decay
    return jax.tree.map(lambda a, n: a + (1 - d) * (n - a), average, new)


class WeightAverage(NamedTuple):
    """State of `average_weights`: the number of steps, and the average of the weights after each step."""

    step: jax.Array
    average: Any


def average_weights(decay: float, warmup: bool = True) -> optax.GradientTransformation:
    """Averages weights as `update_average` does, at the end of an optax chain; its state holds them as `average`."""

    def init(params: Any) -> WeightAverage:
        return WeightAverage(jnp.zeros((), jnp.int32), params)

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, WeightAverage]:
        new = optax.apply_updates(params, updates)
        return updates, WeightAverage(state.step + 1, update_average(state.average, new, decay, state.step, warmup))

    return optax.GradientTransformation(init, update)
