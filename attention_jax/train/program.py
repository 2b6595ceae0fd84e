"""The program of a config: its model, mesh and jitted functions, built once and used by every seed of a table row."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import optax
from flax import linen as nn
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from attention_jax import tree
from attention_jax.distributed.mesh import (
    MODEL,
    check_parallel_mode,
    make_config_mesh,
    map_over_replicas,
    resolve_batch_norm_group,
)
from attention_jax.distributed.sharding import StateSharding, get_sharding_rules, shard_state
from attention_jax.errors import UserError
from attention_jax.kernels.switch import use_standard_numerics
from attention_jax.models.gate import explain_modes
from attention_jax.models.summary import summary
from attention_jax.optim.optimizers import make_optimizer, scale_rates
from attention_jax.optim.schedules import make_schedule
from attention_jax.tasks.base import Task
from attention_jax.tasks.resolve import Durations, ResolvedConfig, resolve_config
from attention_jax.train.step import State, create_state, make_train_step

# The initialisation runs once: without optimisation it compiles in half the time for a ResNet-20.
_QUICKLY = {"xla_backend_optimization_level": 0}


@dataclasses.dataclass(frozen=True, eq=False)
class Program:
    """A config with its model, mesh and jitted functions, which take the seed as an argument.

    `abstract_state` has the shapes and shardings of the state.
    """

    resolved: ResolvedConfig
    model: nn.Module
    mesh: Mesh
    sharding: StateSharding
    abstract_state: State
    init: Callable[..., State]  # (seed, {path: array, in place of an initial value} = {}) -> state
    train_step: jax.stages.Wrapped  # (state, batch, seed) -> (state, sums)
    outputs: jax.stages.Wrapped  # (variables, batch) -> {name: [B, ...]}

    @property
    def config(self) -> ConfigDict:
        """The config, with the facts of its data."""
        return self.resolved.config

    @property
    def task(self) -> Task:
        """The config's task."""
        return self.resolved.task

    @property
    def durations(self) -> Durations:
        """The config's durations in steps."""
        return self.resolved.durations

    @property
    def weights(self) -> tuple[str, ...]:
        """The kinds of weights to evaluate; the last kind gives the headline metric."""
        return ("params", "ema") if self.config.ema.decay else ("params",)


def build_optimizer(resolved: ResolvedConfig) -> tuple[optax.Schedule, optax.GradientTransformation]:
    """Returns the schedule and the optimizer of a config. Raises UserError for arguments that they do not take."""
    config, durations = resolved.config, resolved.durations
    shape = {name: config.schedule[name] for name in ("boundaries", "factor", "warmup_start", "final_share", "d_model", "args")}
    schedule = make_schedule(config.schedule.name, config.schedule.learning_rate, durations.total, durations.warmup, **shape)
    options = config.optimizer.to_dict()
    rate_rules = options.pop("rate_rules")
    return schedule, scale_rates(make_optimizer(schedule=schedule, **options), rate_rules)


@use_standard_numerics()
def build_program(config: ConfigDict | ResolvedConfig, mesh: Mesh | None = None) -> Program:
    """Checks a config against its devices, and defines its jitted functions; compiles nothing yet.

    Args:
        config: the config, resolved here if necessary.
        mesh: None makes the config's mesh from the present devices. Devices that are only described
            (`jax.experimental.topologies`) suffice to compile without running.
    """
    resolved = resolve_config(config)
    config, task = resolved.config, resolved.task
    mesh = mesh or make_config_mesh(config)
    check_parallel_mode(config.parallel.mode, mesh)
    task.check_batches(config, mesh)

    schedule, optimizer = build_optimizer(resolved)
    model = task.model(config, resolve_batch_norm_group(config, mesh) if "batch_norm" in config else None)
    heads, ways = getattr(model, "heads", 0), mesh.shape[MODEL]
    # A larger number would split single heads, which every layer would gather again; a Swin Transformer has one number per
    # stage.
    if any(number % ways for number in (heads if isinstance(heads, tuple) else (heads,))):
        raise UserError(f"parallel.model={ways} does not divide the network's {heads} heads: give a number that does.")
    inputs = task.example_inputs(config)

    def init(seed: Any, given: dict[str, jax.Array] | None = None) -> State:
        return create_state(model, optimizer, inputs, seed, bool(config.ema.decay), given)

    try:
        with explain_modes(f"model {config.model.name!r}"):
            shapes = jax.eval_shape(init, 0)
    except KeyError as error:  # a rule list that misses a parameter
        raise UserError(str(error.args[0])) from error
    if not hasattr(model, "norm_group_size") and shapes.batch_stats and uses_stored_statistics(config):
        raise UserError(
            f"batch_norm.granularity='stored': model {config.model.name!r} has no field norm_group_size, which is 0 then: give "
            "it one."
        )
    rules = get_sharding_rules(config.model.name, config.parallel.rules)
    weights = {**tree.flatten_by_path(shapes.params), **tree.flatten_by_path(shapes.batch_stats)}
    sharding = shard_state(shapes, weights, rules, mesh)

    def outputs(variables: dict, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
        shardings = {name: getattr(sharding.shardings, name) for name in variables}
        return task.outputs(config, model, sharding.gather(variables, shardings), batch)

    on_cpu = mesh.devices.flat[0].platform == "cpu"
    step = make_train_step(config, task, model, optimizer, schedule, sharding, unroll=on_cpu)
    if config.parallel.mode == "pmap":
        step = map_over_replicas(step, mesh)
    everywhere = NamedSharding(mesh, PartitionSpec())
    return Program(
        resolved=resolved,
        model=model,
        mesh=mesh,
        sharding=sharding,
        abstract_state=sharding.add_to_shapes(shapes),
        init=jax.jit(
            init, donate_argnames="given", out_shardings=sharding.shardings, compiler_options=_QUICKLY if on_cpu else None
        ),
        train_step=jax.jit(step, donate_argnums=0, out_shardings=(sharding.shardings, everywhere)),
        outputs=jax.jit(outputs, out_shardings=everywhere),
    )


def count_model_operations(program: Program) -> float:
    """Counts floating-point operations of a step's longest batch: 2 x 3 x multiply-adds of the forward pass, with padding."""
    config, task = program.config, program.task
    rows, *_ = max((x.shape for x in task.batch_shapes(config)[-1].values()), key=len)
    return 6.0 * rows * summary(program.model, task.example_inputs(config)).macs


def uses_stored_statistics(config: ConfigDict) -> bool:
    """True if batch norm normalises with the statistics of `init_from` in training."""
    return "batch_norm" in config and config.batch_norm.granularity == "stored"
