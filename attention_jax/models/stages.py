"""The base class of networks, and the fields that networks with stages share: their checks, gated stages and drop rates."""

from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
from flax.core import DenyList

from attention_jax.errors import UserError

DTYPES = ("float32", "bfloat16")
GATE_PLACES = ("block", "stage")
_NO_MAPS = DenyList(("intermediates", "attention"))  # the collections that sowing fills


class Network(nn.Module):
    """A network whose `init` returns parameters and statistics only; Linen's also returns the maps that its layers sow."""

    @nn.nowrap
    def init(self, *args: Any, mutable: Any = _NO_MAPS, **kwargs: Any) -> Any:
        """Returns {"params": tree}, and {"batch_stats": tree} if the network has statistics; takes Linen's arguments."""
        return super().init(*args, mutable=mutable, **kwargs)


def check_choices(network: Any, choices: Mapping[str, Sequence[str]]) -> None:
    """Raises UserError for a field whose value is not one of its `choices`."""
    for field, accepted in choices.items():
        if getattr(network, field) not in accepted:
            raise UserError(f"model.{field}: {getattr(network, field)!r} is not one of {', '.join(map(repr, accepted))}.")


def check_rates(network: Any, *fields: str) -> None:
    """Raises UserError for a field whose value is no rate."""
    for field in fields:
        if not 0 <= (rate := getattr(network, field)) < 1:
            raise UserError(f"model.{field}={rate} is not right: give a rate from 0 up to, not including, 1.")


def check_sizes(network: Any, *fields: str) -> None:
    """Raises UserError for a field whose value is no whole number from 1."""
    for field in fields:
        if not isinstance(size := getattr(network, field), int) or size < 1:
            raise UserError(f"model.{field}={size!r} is not right: give a whole number from 1.")


def check_stages(network: Any, *per_stage: str) -> None:
    """Raises UserError unless `stage_sizes`, the fields `per_stage` and any `gate_stages` are tuples that fit one another."""
    gate_stages = getattr(network, "gate_stages", None)
    for field in ("stage_sizes", *per_stage, *(() if gate_stages is None else ("gate_stages",))):
        value = getattr(network, field)
        if not isinstance(value, (tuple, list)) or not all(isinstance(number, int) for number in value):
            raise UserError(f"model.{field}={value!r} is not right: give a tuple of whole numbers, such as (2,).")
    stages = len(network.stage_sizes)
    for field in per_stage:
        if stages != len(value := getattr(network, field)):
            raise UserError(f"model.{field}: {value} needs one {field.removesuffix('s')} for each of the {stages} stages.")
    if any(not 1 <= stage <= stages for stage in gate_stages or ()):
        raise UserError(f"model.gate_stages={gate_stages} is not right: the stages are 1 to {stages}.")


def list_gated_stages(network: Any) -> tuple[int, ...]:
    """Returns the numbers of the stages that have the gate, from 1; by default all for blocks, all but the last for stages."""
    if network.gate is None:
        return ()
    if network.gate_stages is not None:
        return tuple(network.gate_stages)
    stages = range(1, len(network.stage_sizes) + 1)
    return tuple(stages if network.gate_at == "block" else stages[:-1])


def grow_drop_rates(largest: float, stage_sizes: Sequence[int]) -> list[list[float]]:
    """Returns the stochastic-depth rate of every block, stage by stage: linear from 0 at the first block, as in timm."""
    blocks = sum(stage_sizes)
    rates = iter(largest * i / max(1, blocks - 1) for i in range(blocks))
    return [[next(rates) for _ in range(size)] for size in stage_sizes]


def check_image_size(height: int, width: int, reduction: int, instead: str) -> None:
    """Raises UserError for images with fewer pixels a side than the network's stride; `instead` says what to give."""
    if min(height, width) < reduction:
        raise UserError(
            f"images of {height}x{width} pixels are too small for this network, which reduces them {reduction}-fold: {instead}."
        )
