"""Brings the networks of a table's rows to one size, by the reduction of a gate or by the widths of the network."""

import bisect
import functools
import inspect
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
from ml_collections import ConfigDict

from attention_jax.config.config import override
from attention_jax.config.plugins import load_object
from attention_jax.errors import UserError
from attention_jax.models.gate import GATES, Gate
from attention_jax.models.summary import summary
from attention_jax.tasks.resolve import resolve_config

COUNTED = {"params": "parameters", "macs": "multiply-adds"}
_REDUCTION, _WIDTHS = "model.gate_args.reduction", "model.widths"
_ACCEPTED = 0.01  # share of the target: a row that is off by less stays as it is
_WIDEST = 4  # limit of widening, in multiples of a row's widths
_PARTS = 8  # parts of a channel of the widest stage: steps of the scale, so that stages round one at a time


def match_costs(
    configs: Mapping[str, ConfigDict], target_label: str, by: str = "params"
) -> tuple[dict[str, ConfigDict], dict[str, str]]:
    """Returns the configs with every other row's network as large as the target's, and a sentence on each row it changed.

    A row that is off by more than 1 % gets another `reduction` of its gate, if the gate has one. If that does not bring
    it within 1 %, it gets its own reduction and scaled `widths`, or whatever comes nearest. A sentence reports every row that
    stays off by more. Networks are counted without being run.

    Args:
        by: the cost to match, "params" or "macs".

    Raises:
        UserError: another value of `by`; a label that no row has.
    """
    if by not in COUNTED:
        raise UserError(f"match={by!r} is not one of {', '.join(map(repr, COUNTED))}.")
    if target_label not in configs:
        raise UserError(f"no row is called {target_label!r}: the rows are {', '.join(map(repr, configs))}.")
    target = _Network(configs[target_label], by).count({})
    matched, sentences = dict(configs), {}
    for label, config in configs.items():
        network = _Network(config, by)
        if label == target_label or network.measure_distance(target, {}) <= _ACCEPTED:
            continue
        changes = _find_changes(network, target)
        if changes:
            matched[label] = override(config, changes)
        said = [f"{_name(key)} {value} in place of {network.levers[key]}" for key, value in changes.items()]
        count = network.count(changes)
        off = 100 * (count / target - 1)
        than = f"{abs(off):.2g} % {'more' if off > 0 else 'fewer'} than" if count != target else "as many as"
        reached = f"{count:,} {COUNTED[by]}, {than} {target_label}"
        if abs(off) > 100 * _ACCEPTED:
            levers = " or ".join({_WIDTHS: "scale of its widths"}.get(name, _name(name)) for name in network.levers)
            reached += f"; no other {levers} is closer" if levers else "; it has neither widths nor a gate with a reduction"
        sentences[label] = f"{said[0] if said else 'the network as it is'}: {reached}."
    return matched, sentences


def _name(field: str) -> str:
    return field.rpartition(".")[2]


class _Network:
    """The network of a config with other reductions and widths; `levers` lists which of the two it has."""

    def __init__(self, config: ConfigDict, by: str):
        resolved = resolve_config(config)
        self.config, self.task, self.by = resolved.config, resolved.task, by
        widths = getattr(self.task.model(self.config), "widths", None)
        own: dict[str, Any] = {_REDUCTION: _find_reduction(self.config.model), _WIDTHS: widths}
        self.levers = {name: value for name, value in own.items() if value}
        self._counts: dict[str, int] = {}

    def count(self, changes: Mapping[str, Any]) -> int:
        """Returns parameters or multiply-adds; 0 for a network that refuses the changes, as a too narrow one does."""
        if (key := repr(changes)) not in self._counts:
            config = override(self.config, changes)
            try:
                counts = summary(self.task.model(config), self.task.example_inputs(config))
                self._counts[key] = getattr(counts, self.by)
            except UserError:
                if not changes:
                    raise
                self._counts[key] = 0
        return self._counts[key]

    def measure_distance(self, target: int, changes: Mapping[str, Any]) -> float:
        """Returns the distance of the count from the target, as a share of the target."""
        return abs(self.count(changes) / target - 1)

    def find_narrowest(self) -> int:
        """Returns the fewest channels that any gate gets."""
        channels = []

        def note(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
            if isinstance(context.module, Gate) and context.method_name == "__call__":
                channels.append(args[0].shape[-1])
            return call(*args, **kwargs)

        with nn.intercept_methods(note):
            summary(self.task.model(self.config), self.task.example_inputs(self.config))
        return min(channels, default=0)


def _find_reduction(model: Mapping[str, Any]) -> int | None:
    """Returns the reduction of a network's gate; None without one."""
    if not (gate := model.get("gate")):
        return None
    own = inspect.signature(load_object(gate, GATES, "gate")).parameters.get("reduction")
    found = (model.get("gate_args") or {}).get("reduction", own and own.default)
    return found if isinstance(found, int) else None


def _find_changes(network: _Network, target: int) -> dict[str, Any]:
    """Returns the changes that come closest; none if the network comes closest unchanged."""
    distance = functools.partial(network.measure_distance, target)

    def search(values: range, name: str, make: Any, sign: int) -> dict[str, Any]:
        """Searches by bisection: counts grow with the values (sign 1) or fall (-1)."""
        at = bisect.bisect_left(values, sign * target, key=lambda value: sign * network.count({name: make(value)}))
        return min(({name: make(value)} for value in values[max(at - 1, 0) : at + 1]), key=distance)

    best: dict[str, Any] = {}
    if _REDUCTION in network.levers and (channels := network.find_narrowest()):
        best = min(best, search(range(1, channels + 1), _REDUCTION, int, -1), key=distance)
    if _WIDTHS in network.levers and distance(best) > _ACCEPTED:
        widths = network.levers[_WIDTHS]
        unscaled = _PARTS * max(widths)
        parts = range(1, unscaled + 1) if network.count({}) > target else range(unscaled, _WIDEST * unscaled + 1)
        scaled = search(parts, _WIDTHS, lambda part: tuple(max(1, round(width * part / unscaled)) for width in widths), 1)
        best = min(best, scaled, key=distance)
    return best
