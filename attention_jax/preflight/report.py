"""From a compiled step's numbers to what a slice would do: does it fit, how fast at best, how long, what to change."""

import dataclasses
import math
from typing import Any

from attention_jax.preflight.chips import Slice
from attention_jax.preflight.measure import KINDS, Measured

# What the compiler keeps of a chip's memory for itself: it offers 15.75 of v5e's 16 GiB.
_RESERVED = 2**28

# What published runs on TPU v3 took of compute + memory + interconnect: ResNet-RS-50 least, a Transformer most, whose time has
# evaluation in it (experiments/results/preflight.md).
_PUBLISHED = (0.9, 1.5)


@dataclasses.dataclass(frozen=True)
class Roofline:
    """Seconds that a step takes at least, by what bounds it; the three can overlap."""

    compute: float
    memory: float
    interconnect: float

    @property
    def step(self) -> float:
        """The largest."""
        return max(self.compute, self.memory, self.interconnect)

    @property
    def apart(self) -> float:
        """All three one after another."""
        return self.compute + self.memory + self.interconnect

    @property
    def bound(self) -> str:
        """Which is the largest."""
        return max(("compute", "memory", "interconnect"), key=lambda name: getattr(self, name))


def roofline(measured: Measured, slice_: Slice) -> Roofline:
    """At the chip's published peaks."""
    chip = slice_.chip
    sent = sum(sent for _, _, sent in measured.collectives.values())
    return Roofline(
        compute=measured.operations / measured.devices / (chip.flops / chip.devices),
        memory=measured.traffic / (chip.bandwidth / chip.devices),
        interconnect=sent * chip.devices / slice_.egress if slice_.egress else 0.0,
    )


def expected(measured: Measured, slice_: Slice) -> tuple[float, float]:
    """Seconds of a step whose parts overlap as little as in published runs, and not less than at best."""
    line = roofline(measured, slice_)
    least, most = (max(line.step, factor * line.apart) for factor in _PUBLISHED)
    return least, most


def capacity(slice_: Slice) -> float:
    """Bytes of memory that a program may use on one device."""
    return slice_.chip.hbm / slice_.chip.devices - _RESERVED


def fits(measured: Measured, slice_: Slice) -> bool:
    """Whether a device's memory holds the step."""
    return not measured.too_large and measured.needed <= capacity(slice_)


def advice(measured: Measured, slice_: Slice) -> list[str]:
    """What to change so that the step fits, what costs least first; empty when it does."""
    if fits(measured, slice_):
        return []
    room, state = capacity(slice_), sum(n for kind, n in _state(measured).items() if kind != "batch")
    rest = measured.needed - state
    found = []
    if state < 0.9 * room:
        parts = _parts(rest / (room - state))
        found.append(
            f"--config.accumulation={parts * measured.accumulation}: the same batch in {parts} parts as large; more time for "
            "the parts' overhead, the same result without batch norm over a whole batch"
        )
        if measured.precision == "float32":
            found.append("--config.precision=bfloat16: about half of what is kept for the backward pass")
        found.append(
            "--config.model.remat=True where the network has it: layers are computed again in the backward pass, "
            "a third more time at most"
        )
        found.append(f"a batch of 1/{parts}, with the learning rate that goes with it")
        found.append(f"a slice of {parts} times as many chips")
    if measured.devices > 1 and state > 0.25 * room:
        ways = min(measured.devices, 2 ** math.ceil(math.log2(max(2.0, 2 * state / room))))
        found.append(f"--config.parallel.fsdp={ways}: parameters, optimizer state and averages are shared by {ways} devices")
    if state >= 0.9 * room and measured.devices == 1:
        found.append("a slice of more chips with --config.parallel.fsdp: the state alone fills this one")
    return found


def _parts(factor: float) -> int:
    """The next power of two."""
    return 2 ** max(1, math.ceil(math.log2(max(factor, 1.0))))


def _state(measured: Measured) -> dict[str, int]:
    return measured.laid_out or measured.state


@dataclasses.dataclass(frozen=True)
class Report:
    """What preflight says."""

    slice: Slice
    measured: Measured
    rate: float | None  # images a second that a core of this machine prepares

    def numbers(self) -> dict[str, Any]:
        """Everything, for a program to read; seconds, bytes, operations."""
        measured, slice_ = self.measured, self.slice
        found = {
            "topology": slice_.topology,
            "name": slice_.name,
            "chips": slice_.chips,
            "hosts": slice_.hosts,
            "chip": dataclasses.asdict(slice_.chip),
            **dataclasses.asdict(measured),
            "needed": measured.needed,
            "capacity": capacity(slice_),
            "fits": fits(measured, slice_),
            "advice": advice(measured, slice_),
        }
        if not measured.too_large:
            line = roofline(measured, slice_)
            found |= {
                "roofline": {**dataclasses.asdict(line), "step": line.step, "bound": line.bound},
                "expected_step": expected(measured, slice_),
                "examples_per_second": measured.examples / line.step,
                "mfu_bound": self.mfu,
                "examples_per_second_per_host": measured.examples / line.step / slice_.hosts,
                "examples_per_second_of_a_core_here": self.rate,
                "hours": self.hours,
                "chip_hours": self.hours * slice_.chips,
            }
        return found

    @property
    def mfu(self) -> float:
        """Model FLOPs utilisation at the roofline."""
        step = roofline(self.measured, self.slice).step
        return self.measured.model_operations / (step * self.slice.chips * self.slice.chip.flops)

    @property
    def hours(self) -> float:
        """Of all steps at the roofline."""
        return self.measured.steps * roofline(self.measured, self.slice).step / 3600

    def text(self) -> str:
        """For a terminal."""
        measured, slice_ = self.measured, self.slice
        chip = slice_.chip
        mesh = " x ".join(f"{name}={size}" for name, size in measured.mesh.items())
        which = f", the longest of {measured.shapes} shapes" if measured.shapes > 1 else ""
        versions = ", ".join(f"{name} {version}" for name, version in measured.versions.items())
        rows = [
            (
                "slice",
                f"{slice_.topology} ({slice_.name}): {_many(slice_.chips, 'chip')}, {_many(slice_.hosts, 'host')}; mesh {mesh}",
            ),
            (
                "a chip",
                f"{chip.hbm / 2**30:.0f} GiB, {chip.flops / 1e12:.0f} TFLOP/s, {chip.bandwidth / 1e9:,.0f} GB/s; "
                f"{slice_.egress / 1e9:.0f} GB/s to its neighbours ({chip.source})",
            ),
            (
                "step",
                f"{measured.network}, {measured.parameters:,} parameters, {measured.precision}, batch {measured.shape}{which}",
            ),
            ("versions", versions),
            ("compiled", ", ".join(f"{name} {seconds:.0f} s" for name, seconds in measured.seconds.items())),
        ]
        kinds = _state(measured)
        parts = ", ".join(f"{KINDS[kind]} {_size(size)}" for kind, size in kinds.items() if kind != "step")
        bare = f" ({_size(sum(measured.state.values()))} without the filling of tiles)" if measured.laid_out else ""
        rows.append(("arguments", f"{parts}; {_size(sum(kinds.values()))} a device{bare}"))
        there = measured.too_large[1] if measured.too_large else capacity(slice_)
        verdict = "fits" if fits(measured, slice_) else "DOES NOT FIT"
        if measured.too_large:
            rows.append(("memory", f"{verdict}: needs {_size(measured.needed)} of {_size(there)} a device"))
        else:
            rows.append(
                (
                    "memory",
                    f"{verdict}: {_size(measured.needed)} of {_size(there)} a device; temporaries "
                    f"{_size(measured.temporaries)}, program {_size(measured.code)}",
                )
            )
            rows += self._speed()
        for number, text in enumerate(advice(measured, slice_), 1):
            rows.append((f"change {number}", text))
        width = max(len(name) for name, _ in rows)
        return "\n".join(f"{name:<{width}}  {text}" for name, text in rows)

    def _speed(self) -> list[tuple[str, str]]:
        measured, slice_ = self.measured, self.slice
        line = roofline(measured, slice_)
        done, of = measured.donated
        share = measured.operations / measured.model_operations
        rows = [
            ("in place", f"{done} of {of} arrays of the state are overwritten where they are"),
            (
                "work",
                f"{measured.operations / 1e12:,.4g} TFLOP in all ({share:.2f} of 2 x 3 x multiply-adds of the forward pass), "
                f"{_size(measured.traffic)} to and from memory a device",
            ),
        ]
        for kind, (count, size, _) in sorted(measured.collectives.items()):
            rows.append((kind, f"{count} a step, {_size(size)} a device"))
        if not measured.collectives:
            rows.append(("collectives", "none"))
        for kind, purpose, size in measured.largest[:3]:
            rows.append(("  largest", f"{_size(size)} {kind} of {purpose}"))
        rate = measured.examples / line.step
        ms = {name: 1e3 * getattr(line, name) for name in ("compute", "memory", "interconnect")}
        expecting = [f"{1e3 * seconds:.3g}" for seconds in expected(measured, slice_)]
        rows += [
            (
                "at best",
                f"{1e3 * line.step:.3g} ms a step, bound by {line.bound} "
                f"({', '.join(f'{name} {value:.3g}' for name, value in ms.items())}); {rate:,.0f} {measured.unit} a second, "
                f"{100 * self.mfu:.0f} % of the peak",
            ),
            (
                "to expect",
                f"{' to '.join(dict.fromkeys(expecting))} ms a step "
                f"if it is as in published runs, which took {_PUBLISHED[0]} to {_PUBLISHED[1]} times the sum of the three",
            ),
            ("input", self._input(rate)),
            (
                "schedule",
                f"{measured.steps:,} steps = {measured.steps / measured.steps_per_epoch:.1f} epochs: {self.hours:,.3g} hours, "
                f"{self.hours * slice_.chips:,.3g} chip-hours at best, without evaluation and start",
            ),
        ]
        return rows

    def _input(self, rate: float) -> str:
        host = rate / self.slice.hosts
        if not self.rate:
            return f"each host must deliver {host:,.0f} {self.measured.unit} a second at best"
        return (
            f"each host must deliver {host:,.0f} images a second at best: {host / self.rate:.1f} cores "
            f"such as this machine's, which prepares {self.rate:,.0f}"
        )


def _many(count: int, what: str) -> str:
    return f"{count} {what}{'s' * (count != 1)}"


def _size(size: float) -> str:
    """Bytes in the unit that suits."""
    for unit, factor in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if size >= factor:
            return f"{size / factor:,.2f} {unit}"
    return f"{size:.0f} B"
