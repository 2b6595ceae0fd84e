"""Saves by the clock, and what a save's duration means for a spot notice."""

import json

import jax
import numpy as np
import pytest
from jax.experimental import multihost_utils

from attention_jax import tree
from attention_jax.train import restore, save_times
from attention_jax.train.loop import train_model
from attention_jax.train.program import build_program
from tests.helpers.small import small_config

pytestmark = pytest.mark.usefixtures("quickly")
SHORT = dict(total_steps=12, evaluation__every_steps=6, checkpoint__every_steps=12, checkpoint__keep_last=9)


def test_saves_by_the_clock_change_no_number(tmp_path):
    config = small_config(**SHORT)
    by_clock = small_config(**SHORT, checkpoint__every_minutes=1e-9)
    train_model(config, tmp_path / "a", build_program(config))
    train_model(by_clock, tmp_path / "b")
    assert restore.list_steps(tmp_path / "a") == [12] and restore.list_steps(tmp_path / "b") == [4, 8, 12]
    a, b = (tree.flatten_by_path(restore.read_newest(tmp_path / name)[0]) for name in "ab")
    assert all(a[path].tobytes() == b[path].tobytes() for path in a) and a.keys() == b.keys()
    assert (tmp_path / "a/metrics.jsonl").read_bytes() == (tmp_path / "b/metrics.jsonl").read_bytes()
    timing = [json.loads(line) for line in (tmp_path / "b/timing.jsonl").open()]
    saved = [line for line in timing if line["event"] == "saved"]
    assert len(saved) == 3 and all(line["bytes"] > 0 and line["seconds"] > 0 for line in saved)
    train_model(config, tmp_path / "b")  # the clock may differ in a workdir


def test_the_first_process_alone_decides(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    config, state = small_config(checkpoint__every_minutes=10), {"a": np.zeros(4)}
    for decided in (False, True):
        monkeypatch.setattr(multihost_utils, "broadcast_one_to_all", lambda here, decided=decided: np.int32(decided))
        assert save_times.SaveTimes(config, state, None, None).is_due() is decided
    config = small_config()
    monkeypatch.setattr(multihost_utils, "broadcast_one_to_all", None)
    assert not save_times.SaveTimes(config, state, None, None).is_due(), "without the field nobody asks"


def test_what_the_first_lines_say_about_a_spot_notice():
    assert save_times.count_written_bytes({"a": np.zeros((3, 5), np.float32), "b": np.int32(1)}) == 64
    say = save_times.describe_notice
    assert say(3 * 10**9, 200.0) == "3,000,000,000 bytes by each process, 15 s at 200 MB/s: within a spot notice of 30 s"
    assert "60 s at 50 MB/s: not within" in say(3 * 10**9, 50.0)
    assert "within a spot notice of 30 s from 100 MB/s; the first save measures" in say(3 * 10**9, 0.0)
