"""Measures how fast a config's own source gives examples on this machine, beside the need of the step per host."""

import dataclasses
import os
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from ml_collections import ConfigDict

from attention_jax.data.images.decoding import BrokenImage
from attention_jax.tasks import get_task


@dataclasses.dataclass(frozen=True)
class DataProbe:
    """Rates in examples a second."""

    needed: float  # need of a host, at best
    prepared: float | None  # by a core of this machine
    source: float  # read, not decoded
    readers: int  # at once

    def __str__(self) -> str:
        cores = len(os.sched_getaffinity(0))
        rates = {f"the source, read by {self.readers} threads,": self.source}
        if self.prepared:
            rates[f"the {cores} cores"] = cores * self.prepared
        given = " and ".join(f"{name} {'gives' if 'source' in name else 'prepare'} {rate:,.0f}" for name, rate in rates.items())
        name, rate = min(rates.items(), key=lambda item: item[1])
        outcome = f"both keep up, by a factor of {rate / self.needed:.2g}"
        if rate < self.needed:
            who = "the source is" if "source" in name else f"{name} are"
            advice = "give data.cache_dir" if "source" in name else f"it takes {self.needed / (rate / cores):,.0f} such cores"
            outcome = f"{who} short by a factor of {self.needed / rate:.3g}: {advice}"
        return f"data: here {given} examples a second, and the step needs {self.needed:,.0f} of a host: {outcome}."


def measure_source(config: ConfigDict, seconds: float = 10.0) -> tuple[float, int]:
    """Returns how many examples a second a training split gives at random places, not decoded, and how many threads read."""
    source = get_task(config.task).source(config, config.data.train_split)
    readers = max(config.data.threads, getattr(source, "readers", 1))
    end, places = time.perf_counter() + seconds, np.random.default_rng(0)

    def read(indices: list[int]) -> int:
        for number, index in enumerate(indices):
            if time.perf_counter() >= end:
                return number
            try:
                source[index]
            except BrokenImage:
                continue
        return len(indices)

    begin, count = time.perf_counter(), 0
    with ThreadPoolExecutor(readers) as pool:
        while time.perf_counter() < end:
            count += sum(pool.map(read, places.integers(0, len(source), (readers, 256)).tolist()))
    return count / (time.perf_counter() - begin), readers
