"""Brings the networks of a table's rows to one size: by the reduction of a gate, or by the widths of the network."""

import bisect
import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
from ml_collections import ConfigDict

from attention_jax.config.config import override
from attention_jax.config.plugins import load_object
from attention_jax.errors import UserError
from attention_jax.models.gate import GATES, Gate
from attention_jax.models.summary import Summary, summary
from attention_jax.tasks.resolve import resolve_config

COUNTED = {"params": "parameters", "macs": "multiply-adds"}
_NEAR = 0.01  # a row that is off by no more of the target stays as it is
_WIDEST = 4  # times the widths that a row has
_PARTS = 8  # of a channel of the widest stage: the steps by which widths are scaled, so that stages round one by one


def match_costs(
    configs: Mapping[str, ConfigDict], target_label: str, by: str = "params"
) -> tuple[dict[str, ConfigDict], dict[str, str]]:
    """Returns the configs with every other row's network as large as the target's, and a sentence on each row it changed.

    A row that is off by more than 1 % gets another `reduction` of its gate, where the gate takes one; if that does not bring
    it within 1 %, its own reduction and scaled `widths`, whichever of all that comes nearest. A row that stays off by more
    has a sentence that says so. Networks are counted without being run.

    Args:
        by: "params" or "macs".

    Raises:
        UserError: another value of `by`; a label that no row has.
    """
    if by not in COUNTED:
        raise UserError(f"match={by!r} is not one of {', '.join(map(repr, COUNTED))}.")
    if target_label not in configs:
        raise UserError(f"no row is called {target_label!r}: the rows are {', '.join(map(repr, configs))}.")
    target = _Network(configs[target_label], by).count()
    matched, sentences = dict(configs), {}
    for label, config in configs.items():
        network = _Network(config, by)
        if label == target_label or abs(network.count() / target - 1) <= _NEAR:
            continue
        found = _find_nearest(network, target)
        changes, said = found or ({}, "the network as it is")
        count = network.count(**changes)
        reached = _describe_count(count, target, by, target_label)
        if changes:
            matched[label] = override(config, {f"model.{name}": value for name, value in _flatten(changes).items()})
        if abs(count / target - 1) > _NEAR:
            means = [name for name in ("reduction", "widths") if getattr(network, name)]
            near = f"as near as its {' and '.join(means)} {'come' if network.widths else 'comes'}"
            reached += f", {near}" if means else "; it has neither widths nor a gate with a reduction"
        sentences[label] = f"{said}: {reached}."
    return matched, sentences


def _describe_count(count: int, target: int, by: str, label: str) -> str:
    off = 100 * (count / target - 1)
    than = f"as many as {label}" if count == target else f"{abs(off):.2g} % {'more' if off > 0 else 'fewer'} than {label}"
    return f"{count:,} {COUNTED[by]}, {than}"


def _flatten(changes: Mapping[str, Any]) -> dict[str, Any]:
    """Names as a config has them."""
    return {("gate_args.reduction" if name == "reduction" else name): value for name, value in changes.items()}


class _Network:
    """The network of a config, with other reductions and widths."""

    def __init__(self, config: ConfigDict, by: str):
        resolved = resolve_config(config)
        self.config, self.task, self.by = resolved.config, resolved.task, by
        self.widths: tuple[int, ...] = tuple(getattr(self.task.model(self.config), "widths", ()))
        self.reduction = _find_reduction(self.config.model)
        self._counts: dict[Any, int] = {}

    def count(self, **changes: Any) -> int:
        """Returns parameters or multiply-adds; 0 for a network that refuses the changes, as one that is too narrow does."""
        key = tuple(sorted(changes.items()))
        if key not in self._counts:
            try:
                self._counts[key] = getattr(self.summarise(**changes), self.by)
            except UserError:
                if not changes:
                    raise
                self._counts[key] = 0
        return self._counts[key]

    def summarise(self, **changes: Any) -> Summary:
        """Returns the counts of a network."""
        config = override(self.config, {f"model.{name}": value for name, value in _flatten(changes).items()})
        return summary(self.task.model(config), self.task.example_inputs(config))

    def find_narrowest(self) -> int:
        """Returns the fewest channels that a gate is given."""
        channels = []

        def note(call: Callable[..., Any], args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
            if isinstance(context.module, Gate) and context.method_name == "__call__":
                channels.append(args[0].shape[-1])
            return call(*args, **kwargs)

        with nn.intercept_methods(note):
            self.summarise()
        return min(channels, default=0)


def _find_reduction(model: Mapping[str, Any]) -> int | None:
    """The reduction that the gate of a network has; None for a gate without."""
    if not (gate := model.get("gate")):
        return None
    stated = (model.get("gate_args") or {}).get("reduction")
    parameters = inspect.signature(load_object(gate, GATES, "gate")).parameters
    own = parameters["reduction"].default if "reduction" in parameters else None
    found = own if stated is None else stated
    return found if isinstance(found, int) else None


def _find_nearest(network: _Network, target: int) -> tuple[dict[str, Any], str] | None:
    """The changes that come nearest, and what they are; None where the network as it is comes nearest."""

    def distance(changes: Mapping[str, Any]) -> float:
        return abs(network.count(**changes) / target - 1)

    def nearest(values: range, make: Callable[[int], dict[str, Any]], sign: int) -> dict[str, Any]:
        """Counts grow with the values (sign 1) or fall (-1)."""
        at = bisect.bisect_left(values, sign * target, key=lambda value: sign * network.count(**make(value)))
        return min((make(value) for value in values[max(at - 1, 0) : at + 1]), key=distance)

    def scale(widest: int, part: int) -> dict[str, Any]:
        return {"widths": tuple(max(1, round(width * part / (_PARTS * widest))) for width in network.widths)}

    best: dict[str, Any] = {}
    if network.reduction and (channels := network.find_narrowest()):
        tried = nearest(range(1, channels + 1), lambda value: {"reduction": value}, -1)
        best = min(best, tried, key=distance)
    if network.widths and distance(best) > _NEAR:
        widest = max(network.widths)
        narrower = network.count() > target
        parts = range(1, _PARTS * widest + 1) if narrower else range(_PARTS * widest, _WIDEST * _PARTS * widest + 1)
        best = min(best, nearest(parts, functools.partial(scale, widest), 1), key=distance)
    if not best:
        return None
    old = {"reduction": network.reduction, "widths": network.widths}
    return best, ", ".join(f"{name} {value} in place of {old[name]}" for name, value in best.items())
