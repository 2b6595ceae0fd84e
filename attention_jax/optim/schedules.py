"""Learning-rate schedules, functions of the step; steps count from 0, and the last of a run is total_steps - 1."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import optax

from attention_jax.errors import UserError


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
) -> optax.Schedule:
    """A linear warm-up followed by one of four shapes, whose clock starts after it, or Noam, which is both in one.

    Args:
        name: "constant"; "step", which multiplies by `factor` at each boundary (He et al. 2016); "cosine",
            f + (1-f)·0.5·(1 + cos(pi·t/T)) of the peak (Loshchilov & Hutter 2017; the clock as in He et al. 2019 and
            ConvNeXt, while TensorFlow's model garden starts it at step 0); "linear", f + (1-f)·(1 - t/T) of the peak;
            "noam", learning_rate·d_model^-0.5·min(s^-0.5, s·W^-1.5) with s = step + 1 (Vaswani et al. 2017,
            Section 5.3); its peak, at step W - 1, is learning_rate / sqrt(d_model·W). Tensor2tensor's later presets have
            learning_rate 2 and W = 8,000.
        learning_rate: the peak; of "noam" the factor before its formula.
        total_steps: of the run, warm-up included.
        warmup_steps: W; its step s has start + (peak - start)·(s + 1)/W, so that the first is not lost and the last has
            the peak.
        boundaries: of "step", shares of `total_steps`.
        warmup_start: the rate from which the warm-up rises; "noam" always rises from 0.
        final_share: f of "cosine" and "linear", what of the peak is left after the last step.
    """
    after = max(1, total_steps - warmup_steps)
    if name == "constant":
        main = optax.constant_schedule(learning_rate)
    elif name == "step":
        steps = [round(share * total_steps) - warmup_steps for share in boundaries]
        main = optax.piecewise_constant_schedule(learning_rate, dict.fromkeys(steps, factor))
    elif name == "cosine":
        main = optax.cosine_decay_schedule(learning_rate, after, final_share)
    elif name == "linear":
        main = optax.linear_schedule(learning_rate, final_share * learning_rate, after)
    elif name == "noam":
        if not warmup_steps:
            raise UserError("schedule.name='noam' with a warm-up of 0 steps: its formula divides by it, give the paper's 4000.")
        scale = learning_rate * d_model**-0.5

        def rate(step: jax.Array) -> jax.Array:
            s = jnp.asarray(step, jnp.float32) + 1
            return scale * jnp.minimum(s**-0.5, s * warmup_steps**-1.5)

        return rate
    else:
        raise ValueError(f"unknown schedule {name!r}")
    if not warmup_steps:
        return main
    first = warmup_start + (learning_rate - warmup_start) / warmup_steps
    warmup = optax.linear_schedule(first, learning_rate, max(1, warmup_steps - 1))
    return optax.join_schedules([warmup, main], [warmup_steps])
