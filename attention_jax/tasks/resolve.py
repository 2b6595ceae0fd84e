"""Resolves a config once: types, facts of the data, durations in steps."""

import dataclasses

from ml_collections import ConfigDict

from attention_jax.config.config import complete_config, convert_duration
from attention_jax.errors import UserError
from attention_jax.tasks import get_task
from attention_jax.tasks.base import Task


@dataclasses.dataclass(frozen=True)
class Durations:
    """A config's durations in steps."""

    steps_per_epoch: int
    total: int
    warmup: int
    evaluate_every: int
    checkpoint_every: int
    log_every: int


@dataclasses.dataclass(frozen=True)
class ResolvedConfig:
    """A config with a value for every field, its task and its durations; programs and runs are made from it."""

    config: ConfigDict
    task: Task
    durations: Durations


def resolve_config(config: ConfigDict | ResolvedConfig) -> ResolvedConfig:
    """Returns a config with all fields, in their types, and with the facts of its data; a resolved config stays as it is.

    Raises UserError for a wrong field, data that cannot be opened, or a warm-up that is longer than the run.
    """
    if isinstance(config, ResolvedConfig):
        return config
    config = complete_config(config)
    task = get_task(config.task)
    config = task.resolve(config)
    if config.schedule.name == "noam" and config.schedule.d_model is None:
        features = getattr(task.model(config), "features", None)
        if type(features) is not int:  # in a network for images, `features` says whether it returns its maps
            raise UserError(
                f"schedule.d_model=None takes the network's features, and {config.model.name!r} has none: give a number."
            )
        with config.unlocked():
            config.schedule.d_model = features
    steps_per_epoch, batch_size = task.steps_per_epoch(config), task.examples_per_step(config)
    fields = {
        "total": (config, "total"),
        "warmup": (config.schedule, "warmup"),
        "evaluate_every": (config.evaluation, "every"),
        "checkpoint_every": (config.checkpoint, "every"),
        "log_every": (config.logging, "every"),
    }
    steps = {name: convert_duration(*field, steps_per_epoch, batch_size) for name, field in fields.items()}
    durations = Durations(steps_per_epoch, **steps)
    if durations.warmup >= durations.total:
        raise UserError(f"schedule.warmup is {durations.warmup} steps of a run of {durations.total}: give a shorter one.")
    return ResolvedConfig(config, task, durations)
