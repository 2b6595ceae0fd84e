"""The sentence about data and step, before a run and after its first minute."""

import logging
import re
import time

import jax.numpy as jnp
import pytest

from attention_jax.data.loader import LoadingTimes
from attention_jax.errors import UserError
from attention_jax.tasks import get_task
from attention_jax.train import input_rate
from attention_jax.train.input_rate import InputRate, probe_data
from tests.helpers.small import small_config


class TimedLoader:
    def __init__(self, reading: float, decoding: float):
        self.times, self._of_a_batch = LoadingTimes(), (8, reading, reading + decoding, decoding)

    def load(self) -> None:
        self.times.add(*self._of_a_batch)


def measure(loader: TimedLoader, caplog, step: float = 0.01) -> tuple[dict, str]:
    """What is recorded and said of 30 steps with a batch of 8 each, one thread."""
    recorded, caplog.records[:] = [], []
    caplog.set_level(logging.INFO)
    rate = InputRate(loader, 1, 8, recorded.append)
    for _ in range(30):
        loader.load()
        begin = time.perf_counter()
        time.sleep(step)
        rate.add(begin, {"loss": jnp.zeros(())})
    rate.close()
    for _ in range(200):
        if recorded:
            break
        time.sleep(0.01)
    return (recorded or [{}])[0], caplog.text


def test_the_slower_of_data_and_step_is_named(caplog, monkeypatch):
    monkeypatch.setattr(input_rate, "SECONDS", 0.1)
    found, text = measure(TimedLoader(reading=0.9, decoding=0.1), caplog)  # 8 examples a second, where the step takes < 800
    assert found["data"] == pytest.approx(8) and 100 < found["step"] < 800 and found["share_of_reading"] == pytest.approx(0.9)
    assert re.search(
        r"data give 8 examples .* short by a factor of \d+(\.\d)?, and reading takes 90% of their time \(see data\.cache_dir\)",
        text,
    )
    found, text = measure(TimedLoader(reading=0.0, decoding=0.08), caplog)
    assert found["data"] == pytest.approx(100) and "data.threads, or a host with more cores" in text
    found, text = measure(TimedLoader(reading=0.0, decoding=1e-4), caplog)
    assert found["data"] > found["step"] and "the step is the slower, by a factor of" in text


def test_less_than_a_minute_and_loaders_without_times_are_not_judged(caplog, monkeypatch):
    assert measure(TimedLoader(0.9, 0.1), caplog) == ({}, "")
    monkeypatch.setattr(input_rate, "SECONDS", 0.1)
    loader = TimedLoader(0.9, 0.1)
    loader.load = lambda: None
    loader.times = None
    assert measure(loader, caplog) == ({}, "")


def test_a_probe_measures_the_loader_of_the_config():
    config = small_config()
    task = get_task(config.task)
    loader = task.loader(task.resolve(config), "train", (0, 1), training=True)
    rate, reading = probe_data(loader, seconds=0.1)
    assert rate > 100 and 0 < reading < 1 and not loader.times.sums().any()
    with pytest.raises(UserError, match="--probe-data measures images"):
        probe_data(object())
