"""Learning-rate schedules: step -> learning rate."""

from collections.abc import Sequence

import optax


def make_schedule(
    name: str,
    learning_rate: float,
    total_steps: int,
    warmup_steps: int = 0,
    boundaries: Sequence[float] = (),
    factor: float = 0.1,
) -> optax.Schedule:
    """A linear warm-up from 0 followed by one of three shapes.

    Args:
        name: "constant"; "step", which multiplies by `factor` at each boundary (He et al. 2016); "cosine",
            0.5·(1 + cos(pi·t/T)) down to 0 (Loshchilov & Hutter 2017), whose clock starts after the warm-up.
        learning_rate: the peak.
        total_steps: of the run, warm-up included.
        warmup_steps: step s of the warm-up has (s + 1) / warmup_steps of the peak, so that the first is not lost.
        boundaries: shares of `total_steps`.
        factor: of one boundary.
    """
    if name == "constant":
        main = optax.constant_schedule(learning_rate)
    elif name == "step":
        steps = [round(share * total_steps) - warmup_steps for share in boundaries]
        main = optax.piecewise_constant_schedule(learning_rate, dict.fromkeys(steps, factor))
    elif name == "cosine":
        main = optax.cosine_decay_schedule(learning_rate, max(1, total_steps - warmup_steps))
    else:
        raise ValueError(f"unknown schedule {name!r}")
    if not warmup_steps:
        return main
    warmup = optax.linear_schedule(learning_rate / warmup_steps, learning_rate, max(1, warmup_steps - 1))
    return optax.join_schedules([warmup, main], [warmup_steps])
