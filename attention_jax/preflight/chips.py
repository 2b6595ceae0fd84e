"""TPU chips and slices: their peaks and their names."""

import dataclasses
import math
import re
from collections.abc import Iterable
from typing import Any

from attention_jax.errors import UserError, suggest_name

_DOCS = "https://cloud.google.com/tpu/docs"
_RESERVED = 2**28  # bytes of a device's memory that the compiler keeps for itself: it offers 15.75 of v5e's 16 GiB


@dataclasses.dataclass(frozen=True)
class Chip:
    """The peaks of one chip, from the published tables, read in November 2026."""

    name: str
    flops: float  # floating-point operations per second in bfloat16; float32 products take the same unit by default
    hbm: float  # bytes of memory
    bandwidth: float  # bytes per second between chip and memory
    link: float  # bytes per second in one direction of one link to a neighbour
    network: float  # bytes per second of a chip's share of its host's connection to other slices; 0 if slices are not joined
    devices: int  # number of JAX devices in a chip
    cores: int  # number of cores of a chip in names such as v4-8
    wraps: int  # a side of this length, or a multiple of it, is a ring; shorter sides are open chains
    shapes: tuple[str, ...]  # shapes of slices, smallest first
    source: str


# Networks: v5e and v6e "data center network bandwidth per Pod" over 256 chips, v5p 50 Gbps per chip; v4's pages say nothing,
# 25 GB/s per host of four is "typical" (jax-ml.github.io/scaling-book, Part 2); v3 has no Multislice.
# Links: a pod's all-reduce bandwidth / chips / links of a chip (v3 4, v4 6, v5e 4, v6e 4), as the pages give them; for v5p
# the chip's 1,200 GB/s in both directions over 6 links. HBM of v5e in the pages is 819 GB/s or 800 GiB/s, of v6e 1,640.
_FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_CUBIC = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8")
CHIPS = {
    chip.name: chip
    for chip in (
        Chip("v3", 123e12, 32 * 2**30, 900e9, 83e9, 0.0, 2, 2, 32, ("2x2", "4x4", "8x8", "8x16", "16x16"), f"{_DOCS}/v3"),
        Chip("v4", 275e12, 32 * 2**30, 1200e9, 45e9, 6.25e9, 1, 2, 4, _CUBIC, f"{_DOCS}/v4"),
        Chip("v5e", 197e12, 16 * 2**30, 819e9, 50e9, 3.125e9, 1, 1, 16, _FLAT, f"{_DOCS}/v5e"),
        Chip("v5p", 459e12, 95 * 2**30, 2765e9, 100e9, 6.25e9, 1, 2, 4, _CUBIC, f"{_DOCS}/v5p"),
        Chip("v6e", 918e12, 32 * 2**30, 1640e9, 100e9, 12.5e9, 1, 1, 16, _FLAT, f"{_DOCS}/v6e"),
        # Two devices a chip, as v3; its page gives 1,200 GB/s in both directions for all links, over the 6 links of a torus.
        Chip("tpu7x", 2307e12, 192 * 2**30, 7380e9, 100e9, 12.5e9, 2, 2, 4, _CUBIC, f"{_DOCS}/tpu7x"),
    )
}
# As `jax.Device.device_kind` names them.
DEVICE_KINDS = {
    "TPU v3": "v3",
    "TPU v4": "v4",
    "TPU v5 lite": "v5e",
    "TPU v5": "v5p",
    "TPU v5p": "v5p",
    "TPU v6 lite": "v6e",
    "TPU7x": "tpu7x",
}
_ALIASES = {"v5litepod": "v5e", "v5lite": "v5e", "trillium": "v6e", "7x": "tpu7x", "v7x": "tpu7x", "ironwood": "tpu7x"}


@dataclasses.dataclass(frozen=True)
class ChipSlice:
    """Chips that are wired together, `sides` of them along each axis, or several such slices over a slower network."""

    chip: Chip
    sides: tuple[int, ...]
    slices: int = 1

    @property
    def _several(self) -> str:
        return f"{self.slices}x" if self.slices > 1 else ""

    @property
    def shape(self) -> str:
        """The name that the compiler takes for one slice: `v5e:4x4`."""
        return f"{self.chip.name}:{'x'.join(map(str, self.sides))}"

    @property
    def topology(self) -> str:
        """The shape, with the number of several slices before it: `2xv5e:4x4`."""
        return self._several + self.shape

    @property
    def name(self) -> str:
        """The name under which the slice is ordered: `v5litepod-16`, `v4-8`, `2xv4-8`."""
        family = "v5litepod" if self.chip.name == "v5e" else self.chip.name
        return f"{self._several}{family}-{math.prod(self.sides) * self.chip.cores}"

    @property
    def chips(self) -> int:
        """The number of chips, of all slices."""
        return self.slices * math.prod(self.sides)

    @property
    def devices(self) -> int:
        """The number of devices in JAX."""
        return self.chips * self.chip.devices

    @property
    def hosts(self) -> int:
        """The number of machines with one process each: four chips per machine, or up to eight for v5e and v6e."""
        return self.slices * self._hosts_of_a_slice

    @property
    def _hosts_of_a_slice(self) -> int:
        chips = math.prod(self.sides)
        return 1 if chips <= 8 and self.chip.cores == 1 else max(1, chips // 4)

    @property
    def options(self) -> dict[str, Any]:
        """The compiler's options besides the shape."""
        a_host = self.sides if self._hosts_of_a_slice == 1 else (2, 2)
        cores = {"chip_config_name": "megacore"} if self.chip.name == "v4" else {}  # two cores are one device, not two
        slices = {"num_slices": self.slices} if self.slices > 1 else {}
        return {"chips_per_host_bounds": (*a_host, 1, 1)[:3], **cores, **slices}

    @property
    def memory(self) -> float:
        """Bytes that a program may use on one device."""
        return self.chip.hbm / self.chip.devices - _RESERVED

    @property
    def egress(self) -> float:
        """Bytes per second that a chip at a corner can send over all of its links; 0 for a single chip."""
        rings = [side % self.chip.wraps == 0 for side in self.sides]
        if len(rings) == 3:  # a slice of v4 or v5p is a torus if all of its sides allow it
            rings = [all(rings)] * 3
        return self.chip.link * sum(1 + ring for side, ring in zip(self.sides, rings) if side > 1)


def find_peak(devices: Iterable[Any]) -> float | None:
    """Returns floating-point operations a second of all devices together; None for devices whose peak is not in the table."""
    devices = list(devices)
    chip = CHIPS.get(DEVICE_KINDS.get(devices[0].device_kind, ""))
    return len(devices) * chip.flops / chip.devices if chip else None


def find_slice(text: str, option: str = "--topology") -> ChipSlice:
    """Returns the slice named `v5e-16`, `v5litepod-16`, `v5e:4x4`, `v4-8`, `v4:2x2x1`, …, or several: `2xv5e-16`.

    Raises UserError for any other.
    """
    several = re.fullmatch(r"(\d+)x(.*)", text.strip().lower())
    if several:
        one, count = find_slice(several[2], option), int(several[1])
        if count > 1 and not one.chip.network:
            raise UserError(
                f"{option}={text}: slices of {one.chip.name} are not joined to larger ones: give one, or of v4 or newer."
            )
        if not 1 <= count <= 256:
            raise UserError(f"{option}={text}: give 1 to 256 slices.")
        return dataclasses.replace(one, slices=count)
    match = re.fullmatch(r"(?:tpu[ -])?([a-z0-9]+)(?:-(\d+)|:(\d+(?:x\d+)*))", text.strip().lower())
    family = _ALIASES.get(match[1], match[1]) if match else ""
    if not match or family not in CHIPS:
        hint = suggest_name(family or text.lower().partition("-")[0].partition(":")[0], [*CHIPS, *_ALIASES])
        raise UserError(
            f"{option}={text} is not a slice{hint}: give one such as v5e-16, v5e:4x4, v4-8, v5p-8, v6e-8 or 2xv5e-16."
        )
    chip = CHIPS[family]
    slices = [ChipSlice(chip, tuple(map(int, shape.split("x")))) for shape in chip.shapes]
    if match[2]:
        found = [s for s in slices if s.chips * chip.cores == int(match[2])]
        names = [f"{match[1]}-{s.chips * chip.cores}" for s in slices]
        counted = "cores, two a chip" if chip.cores == 2 else "chips"
        known = f"the number counts {counted}: give one of {', '.join(names)}"
    else:
        sides = tuple(map(int, match[3].split("x")))
        found = [s for s in slices if s.sides == sides or (len(sides) == 2 and s.sides == (*sides, 1))]
        known = f"give one of {', '.join(s.topology for s in slices)}"
    if not found:
        raise UserError(f"{option}={text}: there is no such slice; {known}.")
    return found[0]
