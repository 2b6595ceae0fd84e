"""Parameter trees by path: names, and rules in which the first matching regular expression wins."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

Rules = Sequence[tuple[str, Any]]


def format_path(path: tuple) -> str:
    """Returns a JAX key path as `a/b/c`."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def flatten_by_path(tree: Any) -> dict[str, Any]:
    """Returns `{path: leaf}` in the order of the tree."""
    return {format_path(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def map_with_path(function: Callable[..., Any], tree: Any, *rest: Any) -> Any:
    """Maps like `jax.tree.map`; the function gets the leaf's path as its first argument."""
    return jax.tree_util.tree_map_with_path(lambda path, *leaves: function(format_path(path), *leaves), tree, *rest)


def find_first_match(rules: Rules, path: str, where: str) -> Any:
    """Returns the value of the first rule whose expression is found in `path`. Raises KeyError with the path without one."""
    for pattern, value in rules:
        if re.search(pattern, path):
            return value
    raise KeyError(f"{where}: no rule matches the parameter {path!r}; the rules are {[pattern for pattern, _ in rules]}")


def select_by_path(rules: Rules, tree: Any, where: str) -> Any:
    """Returns a tree like `tree` with, at each leaf, the value of the first rule that matches its path."""
    return map_with_path(lambda path, _: find_first_match(rules, path, where), tree)


def nest_by_path(flat: Mapping[str, Any]) -> dict:
    """Inverts `flatten_by_path` for trees of dicts."""
    tree: dict = {}
    for path, leaf in flat.items():
        *parents, last = path.split("/")
        node = tree
        for key in parents:
            node = node.setdefault(key, {})
        node[last] = leaf
    return tree
