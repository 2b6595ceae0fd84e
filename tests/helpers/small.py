"""A config small enough to train in a test."""

from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from attention_jax.config import load_config, override

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / "configs" / "quickstart.py"

# Two blocks on the digits, 36 steps; every piece of the state in use: momentum, batch statistics, their average.
FIELDS = {
    "model.stage_sizes": (1, 1),
    "model.widths": (4, 8),
    "total_steps": 36,
    "batch_size": 32,
    "schedule.name": "cosine",
    "schedule.warmup_steps": 5,
    "ema.decay": 0.9,
    "loss.label_smoothing": 0.1,
    "evaluation.every_steps": 12,
    "checkpoint.every_steps": 6,
    "checkpoint.keep_last": 2,
    "logging.every_steps": 4,
    "logging.tensorboard": False,
}


def small_config(**fields: Any) -> ConfigDict:
    """The small config with fields overridden; `__` stands for a dot."""
    changes = {**FIELDS, **{name.replace("__", "."): value for name, value in fields.items()}}
    return override(load_config(str(CONFIG)), changes)


def as_options(**fields: Any) -> list[str]:
    """The same as options of the command line."""
    changes = {**FIELDS, **{name.replace("__", "."): value for name, value in fields.items()}}
    return [f"--config={CONFIG}", *(f"--config.{name}={value}" for name, value in changes.items())]


def same_batches(a: list[dict], b: list[dict]) -> bool:
    return len(a) == len(b) and all(x.keys() == y.keys() and all((x[k] == y[k]).all() for k in x) for x, y in zip(a, b))
