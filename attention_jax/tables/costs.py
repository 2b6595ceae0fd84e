"""Measures the costs of a table's networks: counts, memory, and the time of a training step, all in one run."""

import contextlib
import dataclasses
import itertools
import time
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from attention_jax.distributed.mesh import count_threads, find_batch_share, prefetch_batches
from attention_jax.kernels.switch import use_standard_numerics
from attention_jax.models.summary import summary
from attention_jax.train.program import Program, build_program

_DROPPED = 2  # first rounds, in which steps are slower
_HELD = 2**32  # states stay on the devices up to this number of bytes in total


@dataclasses.dataclass(frozen=True)
class Cost:
    """The costs of one row; milliseconds are medians over rounds, with their quartiles.

    Attributes:
        macs: multiply-adds of the forward pass for one example.
        memory_bytes: bytes of one device for the compiled step, as XLA reports them: arguments, temporaries, results that
            reuse no argument's memory, and code.
        ratio, ratio_low, ratio_high: median and quartiles of this row's time over the first row's in the same round.
        device: name of the device.
    """

    params: int
    macs: int
    step_ms: float
    step_low_ms: float
    step_high_ms: float
    memory_bytes: int
    ratio: float
    ratio_low: float
    ratio_high: float
    device: str


class _Timed:
    """Holds the compiled step of a config, with its state and the first batch of its data."""

    def __init__(self, program: Program):
        config, share = program.config, find_batch_share(program.mesh)
        loader = program.task.loader(config, config.data.train_split, share, training=True)
        with contextlib.closing(prefetch_batches(itertools.islice(loader.training(0, 1), 1), program.mesh)) as batches:
            self.batch = next(batches)
        self.seed = np.uint32(config.seed)
        self.counts = summary(program.model, program.task.example_inputs(config))
        self.state: Any = program.init(self.seed)
        self.shardings = program.sharding.shardings
        self.step: Any = program.train_step.lower(self.state, self.batch, self.seed).compile()
        memory: Any = self.step.memory_analysis()
        self.memory = memory.argument_size_in_bytes + memory.temp_size_in_bytes + memory.generated_code_size_in_bytes
        self.memory += memory.output_size_in_bytes - memory.alias_size_in_bytes
        self.times: list[float] = []

    def put_away(self) -> None:
        """Moves the state off the devices."""
        self.state = jax.device_get(self.state)

    def take_step(self) -> None:
        """Takes a step and records its milliseconds."""
        state = jax.block_until_ready(jax.device_put(self.state, self.shardings))
        begin = time.perf_counter()
        state, _ = jax.block_until_ready(self.step(state, self.batch, self.seed))
        self.times.append(1000 * (time.perf_counter() - begin))
        self.state = state


@use_standard_numerics()
def measure_costs(configs: Mapping[str, ConfigDict], repeats: int = 20) -> dict[str, Cost]:
    """Returns the costs of every config's network, as {label: Cost}; ratios are relative to the first.

    Each round takes one step of every network, in an order that changes from round to round, so that other work on
    the machine disturbs all of them alike. Each network repeats the first training batch of its data.

    Args:
        repeats: number of timed rounds, after two untimed ones.
    """
    timed = {label: _Timed(build_program(config)) for label, config in configs.items()}
    stays = sum(leaf.nbytes for each in timed.values() for leaf in jax.tree.leaves(each.state)) <= _HELD
    rng, labels = np.random.default_rng(0), list(timed)
    for _ in range(_DROPPED + repeats):
        for i in rng.permutation(len(labels)):
            timed[labels[i]].take_step()
            if not stays:
                timed[labels[i]].put_away()
    device = f"{jax.device_count()} x {jax.devices()[0].device_kind}, {count_threads()} CPU threads"
    first = np.array(timed[labels[0]].times[_DROPPED:])
    found = {}
    for label, each in timed.items():
        times = np.array(each.times[_DROPPED:])
        low, median, high = map(float, np.percentile(times, (25, 50, 75)))
        ratio_low, ratio, ratio_high = map(float, np.percentile(times / first, (25, 50, 75)))
        counts = (each.counts.params, each.counts.macs)
        found[label] = Cost(*counts, median, low, high, each.memory, ratio, ratio_low, ratio_high, device)
    return found
