"""A translation config small enough to train in a test: sentences of letters, whose translation is each letter's partner."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from attention_jax.config.config import config_to_json, load_config, override
from attention_jax.train.checkpoint import Checkpoints
from attention_jax.train.program import build_program
from tests.helpers.small import ROOT

CONFIG = ROOT / "configs" / "translate_quickstart.py"
LETTERS = "abcdefgh"


def write_pairs(folder: Path) -> Path:
    """train and test files with the ends .x and .y; returns the folder."""
    rng = np.random.default_rng(0)
    for split, number in (("train", 300), ("test", 40)):
        sentences = [rng.choice(list(LETTERS), rng.integers(1, 6)) for _ in range(number)]
        folder.joinpath(f"{split}.x").write_text("".join(" ".join(words) + "\n" for words in sentences))
        folder.joinpath(f"{split}.y").write_text("".join(" ".join(words).upper() + "\n" for words in sentences))
    return folder


def fields(folder: Path) -> dict[str, Any]:
    """What makes the quickstart's config small: overrides with dots."""
    return {
        "model.layers": 1,
        "model.features": 32,
        "model.hidden": 32,
        "model.heads": 2,
        "model.norm": "pre",
        "model.dropout": 0.0,
        "data.source": "files",
        "data.args.source": f"{folder}/{{split}}.x",
        "data.args.target": f"{folder}/{{split}}.y",
        "data.tokenizer": "words",
        "data.tokenizer_options": ConfigDict(),
        "data.vocab_size": None,
        "data.bucket_lengths": 2,
        "data.rows_multiple": 4,
        "batch_size": 200,
        "total_steps": 40,
        "schedule.warmup_steps": 5,
        "schedule.learning_rate": 1e-2,
        "ema.decay": 0.9,
        "search.max_extra": 4,
        "evaluation.every_steps": 20,
        "evaluation.batch_size": 200,
        "evaluation.bleu": "none",
        "checkpoint.every_steps": 10,
        "checkpoint.keep_last": 3,
        "logging.every_steps": 5,
    }


def small_config(folder: Path, **changes: Any) -> ConfigDict:
    """The small config with fields overridden; `__` stands for a dot."""
    named = {name.replace("__", "."): value for name, value in changes.items()}
    return override(load_config(str(CONFIG)), {**fields(folder), **named})


def as_options(folder: Path, **changes: Any) -> list[str]:
    """The same as options of the command line."""
    named = {**fields(folder), **{name.replace("__", "."): value for name, value in changes.items()}}
    named.pop("data.tokenizer_options")  # what "words" does not look at
    return [f"--config={CONFIG}", *(f"--config.{name}={value}" for name, value in named.items())]


def untrained_run(config: ConfigDict, workdir: Path) -> Path:
    """A workdir with a checkpoint of step 0, whose larger weights make translations that differ; returns the workdir."""
    program = build_program(config)
    state = program.init(0)
    state = dataclasses.replace(state, ema=None, params=jax.tree.map(lambda x: 3 * x, state.params))
    workdir.mkdir(parents=True, exist_ok=True)
    checkpoints = Checkpoints(workdir, 1, 1, lambda step: None)
    checkpoints.save(state, {"config": config_to_json(program.config)}, program.task.assets(program.config))
    checkpoints.wait()
    return workdir
