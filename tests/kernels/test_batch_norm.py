"""Batch norm's forms for platforms give one result, and TPU and GPU need one pass."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attention_jax.kernels import batch_norm
from attention_jax.nn.norm import BatchNorm
from tests.helpers.blocks import close, numbers, quick

CPU, ELSEWHERE = (
    (getattr(batch_norm, f"forward_{place}"), getattr(batch_norm, f"backward_{place}")) for place in ("on_cpu", "elsewhere")
)


def test_one_pass_about_the_running_mean() -> None:
    """Other platforms compute two passes' numbers if the running mean is near, also at mean 1,000."""
    x = numbers("x", 2, 4, 16, 2) + 1000

    @quick
    def one_pass(guess: jax.Array) -> tuple:
        return batch_norm.forward_elsewhere(x, jnp.ones(2), jnp.zeros(2), guess, axes=(1, 2), epsilon=1e-5)[1:]

    exact = x.astype(np.float64)
    exact = exact.mean((1, 2), keepdims=True), exact.var((1, 2), keepdims=True)
    for guess in (997.0, 1000.5):
        close(one_pass(jnp.full(2, guess)), exact, 1e-5)
    errors = [np.abs(np.subtract(one_pass(jnp.full(2, guess))[1], exact[1])) for guess in (0.0, 999.0)]
    assert errors[0].max() > 100 * errors[1].max()


@pytest.mark.parametrize("shift", [0.5, 1000.0])
def test_other_platforms_forms(shift: float) -> None:
    """With fewer operations an element they give, as CPU's do, what 64 bits give, up to the rounding of x."""
    x, of_y = numbers("x", 8, 6, 5, 3) + np.float32(shift), numbers("of_y", 8, 6, 5, 3)
    scale, bias, axes = numbers("scale", 3), numbers("bias", 3), (0, 1, 2)

    def all_of(forward: Callable, backward: Callable, x: Any, of_y: Any, scale: Any, bias: Any) -> tuple:
        y, mean, variance = forward(x, scale, bias, scale * 0 + shift - 0.5, axes, 1e-5)
        return y, mean, variance, *backward(x, of_y, scale, mean, 1 / (variance + 1e-5) ** 0.5, axes)

    with jax.enable_x64():
        exact = all_of(*CPU, *map(jnp.float64, (x, of_y, scale, bias)))
    for forms in (CPU, ELSEWHERE):
        run = quick(functools.partial(all_of, *forms))
        for ours, theirs in zip(run(x, of_y, scale, bias), exact):
            assert np.abs(np.float64(ours) - theirs).max() < max(1e-6, 2e-7 * shift) * np.abs(theirs).max()


def test_sums_of_other_platforms_do_not_wait_for_the_mean() -> None:
    """On TPU and GPU nothing that is summed contains the batch's mean, so that one pass over the batch is enough."""
    x = jnp.ones((4, 2, 3, 5))
    module = BatchNorm()
    variables = module.init(jax.random.key(0), x)
    traced = jax.jit(lambda v, x: module.apply(v, x, mutable=["batch_stats"])).trace(variables, x)
    texts = {platform: traced.lower(lowering_platforms=(platform,)).as_text() for platform in ("cpu", "tpu", "cuda")}
    maxima = {platform: text.count("stablehlo.maximum") for platform, text in texts.items()}  # of the variance and 0
    assert maxima == {"cpu": 0, "tpu": 1, "cuda": 1}
