"""Our train step through the first steps of a recipe, from weights that are drawn by name."""

import contextlib
from collections.abc import Iterator
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from attention_jax import tree
from attention_jax.config import load_config, override
from attention_jax.kernels.switch import use_kernels
from attention_jax.train.program import build_optimizer, build_program
from attention_jax.train.step import State
from tests.helpers import parity
from tests.helpers.blocks import drawn, quick
from tests.helpers.parity_recipes import SIDE, Family
from tests.helpers.small import ROOT


def follow(config: ConfigDict, recipe: Any, seed: int, compile_step: Any = quick) -> parity.Results:
    """What `torch_training.follow` gives, of the batches of a recipe and our train step of a config."""
    program = build_program(config)
    train_step = compile_step(program.train_step)
    before = drawn(program.model, recipe.batch(0)[0], seed=seed)
    before.setdefault("batch_stats", {})
    before = jax.tree.map(lambda value: np.asarray(value, jnp.float32), before)
    _, optimizer = build_optimizer(program.resolved)
    weights, average = jax.tree.map(jnp.copy, before), jax.tree.map(jnp.copy, before) if config.ema.decay else None
    # Put together here: `program.init` takes seconds to compile for weights that are not used.
    state = State(jnp.zeros((), int), **weights, opt_state=optimizer.init(weights["params"]), ema=average)
    seen = []
    for step in range(recipe.steps):
        images, labels = recipe.batch(step)
        batch = {"image": images, "label": labels, "weight": np.ones(len(labels), np.float32)}
        state, metrics = train_step(state, batch, np.uint32(0))
        seen.append({**metrics, "loss": metrics["loss"] / metrics["weight"]})

    def changes(after: dict[str, Any]) -> dict[str, np.ndarray]:
        differences = jax.tree.map(lambda new, old: np.float64(new) - np.float64(old), after, before)
        flat = {path: value for part in differences.values() for path, value in tree.flatten_by_path(part).items()}
        return {path: parity.compress(path, value) for path, value in flat.items()}

    results = {kind: {"": np.array([step[kind] for step in seen])} for kind in ("loss", "grad_norm", "learning_rate")}
    averages = {"average_changes": changes(state.variables("ema"))} if config.ema.decay else {}
    return {**results, "changes": changes(state.variables()), **averages}


def family_config(family: Family) -> ConfigDict:
    """The family's config with a tiny network, few steps and small batches, without what is random."""
    config = load_config(f"{ROOT}/configs/imagenet_{family.config}.py")
    training = family.training
    fields = {
        **{f"model.{name}": value for name, value in family.fields.items()},
        **{f"model.{name}": 0.0 for name in ("drop_path_rate", "dropout_rate") if name in config.model},
        **{"model.num_classes": parity.CLASSES, "data.image_shape": (SIDE, SIDE, 3), "data.num_examples": 1000},
        **{"mix.mixup_alpha": 0.0, "mix.cutmix_alpha": 0.0, "mix.erasing_probability": 0.0, "precision": "float32"},
        **{"batch_size": family.examples, "total_steps": training.steps, "schedule.warmup_steps": training.warmup_steps},
        **{"schedule.learning_rate": training.learning_rate, "schedule.warmup_start": 0.0, "parallel.data": 1},
        "ema.decay": training.ema_decay,
    }
    if family.config in ("resnet_rs", "efficientnet"):
        fields["model.norm_running_var"] = "unbiased"
    return override(config, fields)


@contextlib.contextmanager
def compute_in_float64() -> Iterator[None]:
    """Makes float32 mean float64 to what is traced inside; the kernels of one platform stay out.

    Errors of rounding grow in networks with batch normalisation and ReLU: PyTorch itself has another curve in float32 than in
    float64 after ten steps.
    """

    def dtype(name: Any) -> np.dtype:
        return np.dtype("float64" if name == "float32" else name)

    with (
        jax.enable_x64(True),
        use_kernels("xla"),
        mock.patch.object(jnp, "float32", jnp.float64),
        mock.patch.object(jnp, "dtype", dtype),
    ):
        yield


def follow_family(family: Family, compile_step: Any = quick) -> parity.Results:
    """The same of a family's config."""
    return follow(family_config(family), family, family.seed, compile_step)
