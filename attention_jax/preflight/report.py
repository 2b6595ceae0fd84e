"""The command `preflight` for one config: does the step fit a slice, how fast and how long it runs, what to change."""

import dataclasses
import json
import math
from typing import Any

from ml_collections import ConfigDict

from attention_jax.errors import UserError
from attention_jax.preflight.chips import ChipSlice, find_slice
from attention_jax.preflight.hlo import BETWEEN
from attention_jax.preflight.measure import KINDS, StepCost, describe_devices, measure_input_rate, measure_step
from attention_jax.tasks import get_task
from attention_jax.tasks.resolve import ResolvedConfig, resolve_config
from attention_jax.train.input_rate import compare_rates, probe_data

# Published runs on TPU v3 took this many times compute + memory + interconnect: ResNet-RS-50 least, a Transformer, whose time
# includes evaluation, most (experiments/results/preflight.md).
_PUBLISHED = (0.9, 1.5)


@dataclasses.dataclass(frozen=True)
class Report:
    """A step's numbers on a slice, and the conclusions from them."""

    slice: ChipSlice
    cost: StepCost
    input_rate: float | None  # images per second that a core of this machine prepares

    @property
    def bounds(self) -> dict[str, float]:
        """The least seconds of a step at the chip's published peaks, by what bounds it; they can overlap.

        "network", the connection between slices, is there only with several slices.
        """
        chip, within, between = self.slice.chip, 0.0, 0.0
        for kind, (_, _, sent) in self.cost.collectives.items():
            within, between = (within, between + sent) if kind.endswith(BETWEEN) else (within + sent, between)
        network = {"network": between * chip.devices / chip.network} if self.slice.slices > 1 else {}
        return {
            "compute": self.cost.operations / self.cost.devices / (chip.flops / chip.devices),
            "memory": self.cost.traffic / (chip.bandwidth / chip.devices),
            "interconnect": within * chip.devices / self.slice.egress if self.slice.egress else 0.0,
            **network,
        }

    @property
    def step(self) -> float:
        """Seconds of a step at the roofline: the largest bound."""
        return max(self.bounds.values())

    @property
    def bound(self) -> str:
        """The name of the largest bound."""
        return max(self.bounds, key=self.bounds.__getitem__)

    @property
    def expected(self) -> tuple[float, float]:
        """Seconds of a step whose parts overlap as little as in published runs, and never less than the roofline."""
        least, most = (max(self.step, factor * sum(self.bounds.values())) for factor in _PUBLISHED)
        return least, most

    @property
    def available(self) -> float:
        """Bytes of memory that a program may use on one device."""
        return self.cost.too_large[1] if self.cost.too_large else self.slice.memory

    @property
    def fits(self) -> bool:
        """True if a device's memory holds the step."""
        return not self.cost.too_large and self.cost.needed <= self.slice.memory

    @property
    def state(self) -> int:
        """Bytes of the state on one device."""
        return sum(size for kind, size in self.cost.held.items() if kind != "batch")

    @property
    def rate(self) -> float:
        """Examples per second at the roofline."""
        return self.cost.examples / self.step

    @property
    def mfu(self) -> float:
        """Model FLOPs utilisation at the roofline."""
        return self.cost.model_operations / (self.step * self.slice.chips * self.slice.chip.flops)

    @property
    def hours(self) -> float:
        """Hours of all steps at the roofline."""
        return self.cost.steps * self.step / 3600

    def advice(self) -> list[str]:
        """Lists the changes that make the step fit, the cheapest first; empty if it fits."""
        if self.fits:
            return []
        cost, room, state = self.cost, self.slice.memory, self.state
        found = []
        if state < 0.9 * room:
            parts = 2 ** max(1, math.ceil(math.log2(max((cost.needed - state) / (room - state), 1.0))))
            half = "--config.precision=bfloat16: about half of what is kept for the backward pass"
            found += [
                f"--config.accumulation={parts * cost.accumulation}: the same batch in {parts} parts as large; more time for "
                "the parts' overhead, the same result without batch norm over the complete batch",
                *([half] if cost.precision == "float32" else []),
                "--config.model.remat=True where the network has it: layers are computed again in the backward pass, "
                "a third more time at most",
                f"a batch of 1/{parts}, with the learning rate that goes with it",
                f"a slice of {parts} times as many chips",
            ]
        if cost.devices > 1 and state > 0.25 * room:
            ways = min(cost.devices, 2 ** math.ceil(math.log2(max(2.0, 2 * state / room))))
            found.append(
                f"--config.parallel.fsdp={ways}: parameters, optimizer state and averages are shared by {ways} devices"
            )
        if state >= 0.9 * room and cost.devices == 1:
            found.append("a slice of more chips with --config.parallel.fsdp: the state alone fills this one")
        return found

    def numbers(self) -> dict[str, Any]:
        """Returns all numbers for a program to read, in seconds, bytes and operations."""
        cost, slice_ = self.cost, self.slice
        found = {
            **{name: getattr(slice_, name) for name in ("topology", "name", "chips", "hosts")},
            "chip": dataclasses.asdict(slice_.chip),
            **dataclasses.asdict(cost),
            "needed": cost.needed,
            "capacity": slice_.memory,
            "fits": self.fits,
            "advice": self.advice(),
        }
        if not cost.too_large:
            found |= {
                "roofline": {**self.bounds, "step": self.step, "bound": self.bound},
                "expected_step": self.expected,
                "examples_per_second": self.rate,
                "mfu_bound": self.mfu,
                "examples_per_second_per_host": self.rate / slice_.hosts,
                "examples_per_second_of_a_core_here": self.input_rate,
                "hours": self.hours,
                "chip_hours": self.hours * slice_.chips,
            }
        return found

    def text(self) -> str:
        """Formats the report for a terminal."""
        cost, slice_ = self.cost, self.slice
        chip = slice_.chip
        mesh = " x ".join(f"{name}={size}" for name, size in cost.mesh.items())
        which = f", the longest of {cost.shapes} shapes" if cost.shapes > 1 else ""
        kinds = ", ".join(f"{KINDS[kind]} {_format_bytes(size)}" for kind, size in cost.held.items() if kind != "step")
        bare = f" ({_format_bytes(sum(cost.state.values()))} without the filling of tiles)" if cost.laid_out else ""
        memory = f"needs {_format_bytes(cost.needed)} of {_format_bytes(self.available)} a device"
        if not cost.too_large:
            memory += f"; temporaries {_format_bytes(cost.temporaries)}, program {_format_bytes(cost.code)}"
        network = f", {chip.network / 1e9:.3g} GB/s to other slices" if slice_.slices > 1 else ""
        rows = {
            "slice": f"{slice_.topology} ({slice_.name}): {_count(slice_.chips, 'chip')}, {_count(slice_.hosts, 'host')}; "
            f"mesh {mesh}",
            "a chip": f"{chip.hbm / 2**30:.0f} GiB, {chip.flops / 1e12:.0f} TFLOP/s, {chip.bandwidth / 1e9:,.0f} GB/s; "
            f"{slice_.egress / 1e9:.0f} GB/s to its neighbours{network} ({chip.source})",
            "step": f"{cost.network}, {cost.parameters:,} parameters, {cost.precision}, batch {cost.shape}{which}",
            "versions": ", ".join(f"{name} {version}" for name, version in cost.versions.items()),
            "compiled": ", ".join(f"{name} {seconds:.0f} s" for name, seconds in cost.seconds.items()),
            "arguments": f"{kinds}; {_format_bytes(sum(cost.held.values()))} a device{bare}",
            "memory": f"{'fits' if self.fits else 'DOES NOT FIT'}: {memory}",
            **({} if cost.too_large else self._speed()),
            **{f"change {number}": text for number, text in enumerate(self.advice(), 1)},
        }
        width = max(map(len, rows))
        return "\n".join(f"{name:<{width}}  {text}" for name, text in rows.items())

    def _speed(self) -> dict[str, str]:
        cost = self.cost
        exchanges = {
            kind: f"{count} a step, {_format_bytes(size)} a device"
            for kind, (count, size, _) in sorted(cost.collectives.items())
        }
        largest = {
            f"  largest {number}": f"{_format_bytes(size)} {kind} of {purpose}"
            for number, (kind, purpose, size) in enumerate(cost.largest[:3], 1)
        }
        bounds = ", ".join(f"{name} {1e3 * seconds:.3g}" for name, seconds in self.bounds.items())
        expecting = " to ".join(dict.fromkeys(f"{1e3 * seconds:.3g}" for seconds in self.expected))
        host = f"each host must deliver {self.rate / self.slice.hosts:,.0f} {cost.unit} a second at best"
        if self.input_rate:
            cores = self.rate / self.slice.hosts / self.input_rate
            host += f": {cores:.1f} cores such as this machine's, which prepares {self.input_rate:,.0f}"
        return {
            "in place": f"{cost.donated[0]} of {cost.donated[1]} arrays of the state are overwritten",
            "work": f"{cost.operations / 1e12:,.4g} TFLOP in all ({cost.operations / cost.model_operations:.2f} of 2 x 3 x "
            f"multiply-adds of the forward pass), {_format_bytes(cost.traffic)} to and from memory a device",
            **(exchanges or {"collectives": "none"}),
            **largest,
            "at best": f"{1e3 * self.step:.3g} ms a step, bound by {self.bound} ({bounds}); "
            f"{self.rate:,.0f} {cost.unit} a second, {100 * self.mfu:.0f} % of the peak",
            "to expect": f"{expecting} ms a step if it is as in published runs, which took {_PUBLISHED[0]} to {_PUBLISHED[1]} "
            "times the sum of these bounds",
            "input": host,
            "schedule": f"{cost.steps:,} steps = {cost.steps / cost.steps_per_epoch:.1f} epochs: {self.hours:,.3g} hours, "
            f"{self.hours * self.slice.chips:,.3g} chip-hours at best, without evaluation and start",
        }


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"


def _format_bytes(size: float) -> str:
    """Formats bytes in a suitable unit."""
    for unit, factor in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if size >= factor:
            return f"{size / factor:,.2f} {unit}"
    return f"{size:.0f} B"


def resolve_without_data(config: ConfigDict) -> ResolvedConfig:
    """Resolves a config. If it needs data that are missing, raises UserError with the facts that the config could state."""
    missing = get_task(config.task).unresolved(config)
    try:
        return resolve_config(config)
    except UserError as error:
        if not missing:
            raise
        raise UserError(f"{str(error).rstrip('.')}; without the data, state config.{', '.join(missing)}.") from error


def print_report(config: ConfigDict, topology: str, as_json: bool, probe: bool = False) -> int:
    """Compiles the training step of a checked config for a slice that need not exist, and prints the report.

    Args:
        probe: also measures how fast the config's own data come here.

    Returns 0 if the step fits, else 1. Raises UserError.
    """
    slice_ = find_slice(topology)
    resolved = resolve_without_data(config)
    report = Report(slice_, measure_step(resolved, describe_devices(slice_)), measure_input_rate(resolved.config))
    numbers, text = report.numbers(), report.text()
    if probe:
        task, config = resolved.task, resolved.config
        data, reading = probe_data(task.loader(config, config.data.train_split, (0, 1), training=True))
        step = report.rate / slice_.hosts
        numbers["data_probe"] = {"data": data, "step": step, "share_of_reading": reading}
        text = f"{text}\n{compare_rates(data, step, reading)}"
    print(json.dumps(numbers) if as_json else text)
    return 0 if report.fits else 1
