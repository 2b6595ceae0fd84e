"""The training state as one pytree, and the train step, one pure function for all tasks."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import flax
import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jax.interpreters.partial_eval import dce_jaxpr
from ml_collections import ConfigDict

from attention_jax import tree
from attention_jax.distributed.mesh import DATA, count_replicas, map_over_replicas
from attention_jax.distributed.sharding import StateSharding
from attention_jax.optim.optimizers import is_frozen, update_average
from attention_jax.tasks import TASKS
from attention_jax.tasks.base import Task

Metrics = dict[str, jax.Array]
_MIXING = 2**32 - 1  # folded into the key of mixing; micro-batches use the numbers from 0


@flax.struct.dataclass
class State:
    """The training state after `step` optimizer steps; `ema` is None or {"params", "batch_stats"}, the average of both."""

    step: jax.Array
    params: Any
    batch_stats: Any
    opt_state: Any
    ema: Any

    def variables(self, weights: str = "params") -> dict[str, Any]:
        """Returns the variables for `model.apply`: the raw weights ("params") or their average ("ema")."""
        if weights == "ema":
            return dict(self.ema)
        return {"params": self.params, "batch_stats": self.batch_stats}


def create_state(
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    inputs: tuple,
    seed: jax.Array,
    with_ema: bool,
    given: Mapping[str, jax.Array] | None = None,
) -> State:
    """Returns the state before the first step.

    Args:
        inputs: shapes of one example.
        seed: a scalar.
        given: {"params/head/kernel": array, ...} replaces initial values.
    """
    zeros = [jnp.zeros(shape.shape, shape.dtype) for shape in inputs]
    initial = model.init(jax.random.key(seed), *zeros)
    variables = {"params": initial["params"], "batch_stats": initial.get("batch_stats", {})}
    variables = tree.map_with_path(lambda path, leaf: (given or {}).get(path, leaf), variables)
    params, batch_stats = variables["params"], variables["batch_stats"]
    return State(
        step=jnp.zeros((), jnp.int32),
        params=params,
        batch_stats=batch_stats,
        opt_state=optimizer.init(params),
        ema={"params": params, "batch_stats": batch_stats} if with_ema else None,
    )


def make_train_step(
    config: ConfigDict,
    task: Task,
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    sharding: StateSharding,
    unroll: bool,
) -> Callable[[State, dict[str, jax.Array], jax.Array], tuple[State, Metrics]]:
    """Returns a pure function `(state, batch, seed) -> (state, metrics)`.

    Randomness is `fold_in(key(seed), step)`. The metrics are sums over the batch, including "weight", and the two scalars
    "grad_norm" (before clipping) and "learning_rate". In mode "pmap" the function is one replica's and reduces over `data`;
    mixing is then among the examples of one replica.

    Args:
        unroll: unrolls the loop over micro-batches; on CPU the gradient of a convolution inside a loop is 20 times slower.
    """
    replicas_apart = config.parallel.mode == "pmap"
    may_part = not replicas_apart and _may_part(config, model, sharding)
    frozen = functools.partial(_stop_where_frozen, config.optimizer.rate_rules)

    def gradients(params: Any, batch_stats: Any, batch: dict[str, jax.Array], rng: jax.Array) -> tuple:
        # Statistics are vectors; gathering them where they are used keeps their sharding from spreading to activations.
        gather = functools.partial(sharding.gather, shardings=sharding.shardings.batch_stats)
        statistics = gather(batch_stats)

        def summed_loss(params):
            wrapped = sharding.wrap_params(tree.map_with_path(frozen, params))
            variables = {"params": wrapped, "batch_stats": statistics}
            sums, changed = task.loss(config, model, variables, batch, rng, train=True)
            return sums["loss"], (sums, gather(changed.get("batch_stats", {})))

        loss = sharding.apply_remat_policy(summed_loss, params)
        (_, (sums, batch_stats_)), grads = jax.value_and_grad(loss, has_aux=True)(params)
        return grads, sums, batch_stats_

    def accumulated(state: State, batch: dict[str, jax.Array], rng: jax.Array) -> tuple:
        """Sums over micro-batches, before the division by the weight; batch statistics pass from one to the next."""
        parts = config.accumulation
        if parts == 1:
            return gradients(state.params, state.batch_stats, batch, rng)
        # [B] -> [B/A, A] -> [A, B/A] keeps every device's examples where they are.
        micro = jax.tree.map(lambda x: x.reshape(-1, parts, *x.shape[1:]).swapaxes(0, 1), batch)

        def add(carry, scanned):
            grads, sums, batch_stats = carry
            index, part = scanned
            new_grads, new_sums, batch_stats = gradients(state.params, batch_stats, part, jax.random.fold_in(rng, index))
            return (*jax.tree.map(jnp.add, (grads, sums), (new_grads, new_sums)), batch_stats), None

        first = jax.tree.map(lambda x: x[0], micro)
        shapes = jax.eval_shape(gradients, state.params, state.batch_stats, first, rng)
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes[:2])
        carry, _ = jax.lax.scan(add, (*zeros, state.batch_stats), (jnp.arange(parts), micro), unroll=parts if unroll else 1)
        return carry

    reduced = _reduce_over_replicas(accumulated)

    def train_step(state: State, batch: dict[str, jax.Array], seed: jax.Array) -> tuple[State, Metrics]:
        rng = jax.random.fold_in(jax.random.key(seed), state.step)
        if replicas_apart:
            rng = jax.random.fold_in(rng, jax.lax.axis_index(DATA))
        batch = dict(task.mix(config, batch, jax.random.fold_in(rng, _MIXING)))
        accumulate = reduced if replicas_apart else accumulated
        if may_part and not _depends_on_last(gradients, state.params, state.batch_stats, batch, rng):
            accumulate = map_over_replicas(reduced, sharding.mesh)
        grads, sums, batch_stats = accumulate(state, batch, rng)
        grads = jax.tree.map(lambda g: g / sums["weight"], grads)

        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        average = state.ema
        if average is not None:
            new = {"params": params, "batch_stats": batch_stats}
            average = update_average(average, new, config.ema.decay, state.step, config.ema.warmup)
        metrics = {**sums, "grad_norm": optax.tree.norm(grads), "learning_rate": schedule(state.step)}
        return State(state.step + 1, params, batch_stats, opt_state, average), metrics

    return train_step


def _stop_where_frozen(rules: tree.Rules, path: str, param: jax.Array) -> jax.Array:
    # without these gradients, XLA leaves out the backward pass below the first trained layer
    return jax.lax.stop_gradient(param) if is_frozen(rules, path) else param


def _reduce_over_replicas(accumulated: Callable[..., tuple]) -> Callable[..., tuple]:
    """Returns the same for one replica's examples, with sums over all replicas once per step."""

    def reduced(state: State, batch: dict[str, jax.Array], rng: jax.Array) -> tuple:
        grads, sums, batch_stats = accumulated(state, batch, rng)
        return *jax.lax.psum((grads, sums), DATA), jax.lax.pmean(batch_stats, DATA)

    return reduced


def _may_part(config: ConfigDict, model: nn.Module, sharding: StateSharding) -> bool:
    """True if each replica may compute by itself with the same result, provided that nothing is drawn at random.

    Nothing is divided then but the batch, and batch statistics are those of a part of a replica's examples. A network or task
    of the user's may let examples see one another and stays in the global view. It saves a reduction of the gradients for every
    micro-batch, which XLA does on CPU, and a copy of arrays in groups, which it makes on TPU.
    """
    ours = config.task in TASKS and type(model).__module__.startswith("attention_jax.")
    if not ours or sharding.is_sharded or count_replicas(sharding.mesh) == 1:
        return False
    granularity = config.batch_norm.granularity if jax.tree.leaves(sharding.shardings.batch_stats) else "stored"
    return granularity != "all" and (config.accumulation > 1 or granularity != "stored")


def _depends_on_last(function: Callable[..., Any], *arguments: Any) -> bool:
    """True if a result of the function depends on its last argument, one array."""
    jaxpr = jax.make_jaxpr(function)(*arguments).jaxpr
    return dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))[1][-1]
