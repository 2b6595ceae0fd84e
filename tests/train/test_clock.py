"""Wall-clock times of a run."""

import time

from attention_jax.train.clock import Clock


class Lines(list):
    """A log that keeps its lines."""

    time = list.append


def test_the_share_of_the_peak_is_that_of_the_steps(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    lines = Lines()
    clock = Clock(lines, batch_size=32, called=0.0)
    with clock.first_step():
        now[0] = 50.0
    clock.seconds_at_peak = 0.1
    for step, second in ((10, 60.0), (20, 64.0)):
        now[0] = second
        clock.lap(step)
    *_, last = lines
    rates = {"examples_per_second": 80.0, "seconds_per_step": 0.4, "mfu": 0.25}
    assert last == {"event": "training", "step": 20, **rates} and clock.mfu == 0.25
    clock.seconds_at_peak = None  # no peak is known, as of a CPU
    now[0] = 70.0
    clock.lap(30)
    assert "mfu" not in lines[-1] and clock.mfu is None
