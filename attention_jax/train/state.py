"""Everything that training changes, as one pytree."""

from typing import Any

import flax
import jax
import jax.numpy as jnp
import optax
from flax import linen as nn


@flax.struct.dataclass
class State:
    """Training state after `step` optimizer steps.

    `ema` is None or {"params", "batch_stats"}, the average of both.
    """

    step: jax.Array
    params: Any
    batch_stats: Any
    opt_state: Any
    ema: Any

    def variables(self, weights: str = "params") -> dict[str, Any]:
        """What `model.apply` takes: the raw weights ("params") or their average ("ema")."""
        if weights == "ema":
            return dict(self.ema)
        return {"params": self.params, "batch_stats": self.batch_stats}


def create(model: nn.Module, optimizer: optax.GradientTransformation, inputs: tuple, seed: jax.Array, with_ema: bool) -> State:
    """The state before the first step; `inputs` are shapes of one example, `seed` a scalar."""
    zeros = [jnp.zeros(shape.shape, shape.dtype) for shape in inputs]
    variables = model.init(jax.random.key(seed), *zeros)
    params, batch_stats = variables["params"], variables.get("batch_stats", {})
    return State(
        step=jnp.zeros((), jnp.int32),
        params=params,
        batch_stats=batch_stats,
        opt_state=optimizer.init(params),
        ema={"params": params, "batch_stats": batch_stats} if with_ema else None,
    )
