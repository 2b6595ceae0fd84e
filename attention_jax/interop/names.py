"""Weights under other libraries' names, carried into our parameter tree."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from attention_jax import tree
from attention_jax.errors import UserError


class Rule(NamedTuple):
    """A rule for the weights whose complete name matches `pattern`.

    Attributes:
        pattern: regular expression.
        path: replacement that gives our path; None for weights that follow from others.
        transform: of the array.
    """

    pattern: str
    path: str | None
    transform: Callable[[np.ndarray], np.ndarray] = np.asarray


def dense_rules(pattern: str, path: str) -> tuple[Rule, Rule]:
    """Converts a `torch.nn.Linear` weight [out, in] to a Flax kernel [in, out]."""
    return Rule(rf"{pattern}\.weight", f"{path}/kernel", np.transpose), Rule(rf"{pattern}\.bias", f"{path}/bias")


def layer_norm_rules(pattern: str, path: str) -> tuple[Rule, Rule]:
    """Converts the parameters of a `torch.nn.LayerNorm`."""
    return Rule(rf"{pattern}\.weight", f"{path}/scale"), Rule(rf"{pattern}\.bias", f"{path}/bias")


def convert_weights(
    weights: Mapping[str, Any], rules: Sequence[Rule], shapes: Mapping[str, tuple[int, ...]], where: str
) -> dict:
    """Converts {their name: array} to our parameters, a tree of float32 arrays; the first rule that matches counts.

    Several names may lead to one path, as tied weights do, if they hold the same numbers.

    Args:
        shapes: of our parameters by path; every one must be found.
        where: the source, for the error.

    Raises:
        UserError: names all weights without a rule or a parameter, with another shape or that disagree, and all parameters
            that were not found.
    """
    found: dict[str, np.ndarray] = {}
    wrong: dict[str, list[str]] = {}
    for name, array in weights.items():
        rule = next((rule for rule in rules if re.fullmatch(rule.pattern, name)), None)
        if rule is None:
            wrong.setdefault("unknown names", []).append(name)
            continue
        if rule.path is None:
            continue
        path = re.sub(rule.pattern, rule.path, name)
        value = np.asarray(rule.transform(np.asarray(array)), np.float32)
        if path not in shapes:
            wrong.setdefault("weights for which this network has no place", []).append(name)
        elif value.shape != shapes[path]:
            wrong.setdefault("other shapes", []).append(f"{name} {value.shape} where {path} is {shapes[path]}")
        elif path in found and not np.array_equal(found[path], value):
            wrong.setdefault("names of one parameter with different numbers", []).append(f"{name} for {path}")
        else:
            found[path] = value
    missing = [path for path in shapes if path not in found]
    if missing:
        wrong["parameters that nothing gives"] = missing
    if wrong:
        raise UserError(
            f"{where}: the weights do not fit; " + "; ".join(f"{what}: {_some(names)}" for what, names in wrong.items()) + "."
        )
    return tree.nest_by_path({path: found[path] for path in shapes})


def _some(names: Iterable[str], most: int = 8) -> str:
    names = list(names)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
