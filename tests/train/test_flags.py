"""Flags of JAX that a process sets for code of its own change neither training nor prediction."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import attention_jax as aj
from attention_jax.train.loop import train_model
from tests.helpers import small_text
from tests.helpers.small import small_config

pytestmark = pytest.mark.usefixtures("quickly")


@contextlib.contextmanager
def strict():
    with jax.enable_x64(True), jax.numpy_rank_promotion("raise"), jax.numpy_dtype_promotion("strict"):
        assert jnp.arange(2).dtype == jnp.int64
        yield


@pytest.mark.slow
@pytest.mark.parametrize("task", ["classification", "translation"])
def test_wide_types_and_strict_promotion(task, tmp_path):
    if task == "classification":
        lengths = {"total_steps": 2, "schedule__warmup_steps": 1, "evaluation__every_steps": 2, "checkpoint__every_steps": 2}
        config, inputs = small_config(**lengths, mix__mixup_alpha=0.2), np.zeros((2, 8, 8, 1), np.uint8)
    else:
        lengths = {"total_steps": 2, "evaluation__every_steps": 2, "checkpoint__every_steps": 2, "schedule__warmup_steps": 1}
        lengths |= {"logging__every_steps": 1, "evaluation__translate": False, "evaluation__headline": "token_accuracy"}
        config = small_text.small_config(small_text.write_pairs(tmp_path), **lengths)
        inputs = ["a b c"]
    train_model(config, tmp_path / "without")
    with strict():
        train_model(config, tmp_path / "with")
        run = aj.load_run(tmp_path / "with")
        found = run.predict(inputs)
    log = [(tmp_path / name / "metrics.jsonl").read_bytes() for name in ("with", "without")]
    assert log[0] == log[1] and log[0].count(b"\n") >= 1
    before = aj.load_run(tmp_path / "without")
    jax.tree.map(np.testing.assert_array_equal, run.variables, before.variables)
    expected = before.predict(inputs)
    if task == "classification":
        np.testing.assert_array_equal(found.probabilities, expected.probabilities)
    else:
        assert found == expected
