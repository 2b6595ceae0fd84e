"""Learning-rate schedules, functions of the step; steps count from 0, and the last step of a run is total_steps - 1."""

import inspect
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from attention_jax.config.fields import SCHEDULES
from attention_jax.config.plugins import load_object
from attention_jax.errors import UserError

# Names under which a schedule of optax or of your own may take the peak rate, and the number of its steps.
_PEAK, _STEPS = ("learning_rate", "peak_value", "init_value", "value"), ("total_steps", "decay_steps", "transition_steps")


def make_schedule(
    name: str,
    learning_rate: float,
    total_steps: int,
    warmup_steps: int = 0,
    boundaries: Sequence[float] = (),
    factor: float = 0.1,
    warmup_start: float = 0.0,
    final_share: float = 0.0,
    d_model: int = 512,
    args: Mapping[str, Any] | None = None,
) -> optax.Schedule:
    """Returns a schedule: a linear warm-up, then one of four shapes whose clock starts after it; or "noam", which is both in
    one.

    Args:
        name: "constant"; "step", which multiplies by `factor` at each boundary (He et al. 2016); "cosine",
            f + (1-f)·0.5·(1 + cos(pi·t/T)) times the peak (Loshchilov & Hutter 2017; the clock as in He et al. 2019 and
            ConvNeXt, while TensorFlow's model garden starts it at step 0); "linear", f + (1-f)·(1 - t/T) times the peak;
            "noam", see `noam_schedule`; a dotted path such as "optax.exponential_decay", or `file.py:make`: called with
            `args`, and with the peak and the steps after the warm-up if it takes them (`learning_rate`, `peak_value`,
            `init_value` or `value`; `total_steps`, `decay_steps` or `transition_steps`).
        learning_rate: the peak; for "noam" the factor in front of its formula.
        total_steps: steps of the run, including the warm-up.
        warmup_steps: W; step s of the warm-up has start + (peak - start)·(s + 1)/W: the first step already moves, and the last
            one has the peak.
        boundaries: shares of `total_steps`, for "step".
        warmup_start: the rate from which the warm-up rises; "noam" always rises from 0.
        final_share: f in "cosine" and "linear", the share of the peak after the last step.
        args: keyword arguments of any other schedule.
    """
    after = max(1, total_steps - warmup_steps)
    if args and name in SCHEDULES:
        raise UserError(f"{name!r} does not read schedule.args={dict(args)}: leave it out, or name a schedule of your own.")
    if name == "constant":
        main = optax.constant_schedule(learning_rate)
    elif name == "step":
        steps = Counter(round(share * total_steps) - warmup_steps for share in boundaries)
        main = optax.piecewise_constant_schedule(learning_rate, {step: factor**times for step, times in steps.items()})
    elif name == "cosine":
        main = optax.cosine_decay_schedule(learning_rate, after, final_share)
    elif name == "linear":
        main = optax.linear_schedule(learning_rate, final_share * learning_rate, after)
    elif name == "noam":
        return noam_schedule(d_model, warmup_steps, learning_rate)
    else:
        main = _make_own(name, learning_rate, after, dict(args or {}))
    return warmup_schedule(main, warmup_steps, learning_rate, warmup_start)


def warmup_schedule(main: optax.Schedule, warmup_steps: int, learning_rate: float, warmup_start: float = 0.0) -> optax.Schedule:
    """Returns a schedule that rises linearly to `learning_rate` in its first steps and then follows `main` from step 0."""
    if not warmup_steps:
        return main
    first = warmup_start + (learning_rate - warmup_start) / warmup_steps
    warmup = optax.linear_schedule(first, learning_rate, max(1, warmup_steps - 1))
    return optax.join_schedules([warmup, main], [warmup_steps])


def noam_schedule(d_model: int, warmup_steps: int, factor: float = 1.0) -> optax.Schedule:
    """Returns factor·d_model^-0.5·min(s^-0.5, s·W^-1.5) with s = step + 1 (Vaswani et al. 2017, Section 5.3).

    Its peak, at step W - 1, is factor / sqrt(d_model·W). Tensor2tensor's later presets have factor 2 and W = 8,000.
    """
    if not warmup_steps:
        raise UserError("schedule.name='noam' divides by its warm-up of 0 steps: give the paper's 4000.")
    scale = factor * d_model**-0.5

    def rate(step: jax.Array) -> jax.Array:
        s = jnp.asarray(step, jnp.float32) + 1
        return scale * jnp.minimum(s**-0.5, s * warmup_steps**-1.5)

    return rate


def _make_own(name: str, learning_rate: float, steps: int, args: dict[str, Any]) -> optax.Schedule:
    """Calls optax's or the user's function with `args`, the peak and the steps; raises UserError for any other result."""
    make = load_object(name, {}, "schedule")
    try:
        takes = inspect.signature(make).parameters
        for names, value in ((_PEAK, learning_rate), (_STEPS, steps)):
            ours = next((word for word in names if word in takes), None)
            if names is _PEAK and (ours is None or ours in args):
                raise UserError(
                    f"{name!r} does not read schedule.learning_rate={learning_rate}"
                    + (
                        f", as schedule.args has {ours!r}: leave that out."
                        if ours
                        else f": it takes none of {', '.join(names)}."
                    )
                )
            if ours:
                args = {ours: value, **args}
        made = make(**args)
    except TypeError as error:
        raise UserError(f"schedule.args: {name!r} does not take these arguments ({error}).") from error
    if not callable(made):
        raise UserError(f"schedule.name={name!r} made {type(made).__name__}: give a function that returns an optax schedule.")
    return made
