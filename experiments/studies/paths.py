"""Chains of dependent operations in a program, and paths between positions, which no number of processors shortens.

A path counts the layers, or steps of a recurrence, that a signal passes from one position of a sequence to another.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from attention_jax.errors import UserError
from experiments.studies.compiling import jit_quickly

# They move, cut or name numbers and compute none. Everything else counts one, a product of matrices or a sum over an axis too,
# as in Table 1 of Vaswani et al. 2017.
_MOVES = (
    *("broadcast_in_dim", "concatenate", "convert_element_type", "copy", "dynamic_slice", "dynamic_update_slice", "gather"),
    *("name", "optimization_barrier", "pad", "reshape", "rev", "select_n", "sharding_constraint", "slice", "split", "squeeze"),
    *("stop_gradient", "transpose"),
)
# Operations from an input to a value; None where no input reaches the value, as in a mask made from positions.
Depth = int | None


def count_longest_chain(function: Callable[..., Any], *inputs: Any) -> int:
    """Counts arithmetic operations that each need the one before, from the inputs to any output; nothing is computed.

    A `scan` counts what its carry passes through, step after step: a part of its body that does not wait for the carry counts
    once. `inputs` are arrays or `jax.ShapeDtypeStruct`; weights that `function` holds are none. Raises UserError when the
    program has a loop whose number of steps is not known.
    """
    jaxpr = jax.make_jaxpr(function)(*inputs).jaxpr
    return max((depth for depth in _through(jaxpr, [0] * len(jaxpr.invars)) if depth is not None), default=0)


def _later(*depths: Depth) -> Depth:
    return max((depth for depth in depths if depth is not None), default=None)


def _through(jaxpr: core.Jaxpr, inputs: Sequence[Depth]) -> list[Depth]:
    """Depths of the outputs of a program from those of its inputs."""
    known: dict[core.Var, Depth] = dict(zip(jaxpr.invars, inputs, strict=True))

    def depth(value: Any) -> Depth:
        return None if isinstance(value, core.Literal) else known.get(value)

    for equation in jaxpr.eqns:
        outputs = _after(equation, [depth(value) for value in equation.invars])
        known.update(zip(equation.outvars, outputs, strict=True))
    return [depth(value) for value in jaxpr.outvars]


def _after(equation: core.JaxprEqn, inputs: Sequence[Depth]) -> list[Depth]:
    name, params = equation.primitive.name, equation.params
    if name == "scan":
        return _scan(equation, inputs)
    if name == "while":
        raise UserError("longest chain: the program has a while loop, whose number of steps is not known: use jax.lax.scan.")
    if name == "cond":  # `jax.lax.platform_dependent`: one branch runs, the default is XLA's own
        platforms = params.get("branches_platforms")
        branches = [params["branches"][platforms.index(None)]] if platforms else params["branches"]
        choice, *operands = inputs
        chosen = [_later(choice, operand) for operand in operands]
        return [_later(choice, *depths) for depths in zip(*(_through(branch.jaxpr, chosen) for branch in branches))]
    if inner := _called(params, len(inputs)):
        return _through(inner, inputs)
    latest = _later(*inputs)
    if latest is not None and name not in _MOVES:
        latest += 1
    return [latest] * len(equation.outvars)


def _called(params: dict[str, Any], inputs: int) -> core.Jaxpr | None:
    """Returns the program inside a call: jit, checkpoint, a function with a custom derivative."""
    for name in ("jaxpr", "call_jaxpr", "fun_jaxpr"):
        inner = params.get(name)
        inner = getattr(inner, "jaxpr", inner)
        if isinstance(inner, core.Jaxpr) and len(inner.invars) == inputs:
            return inner
    return None


def _scan(equation: Any, inputs: Sequence[Depth]) -> list[Depth]:
    """Passes the carry through the body as often as the loop runs; an array of all steps has an axis more than in the body."""
    body = equation.params["jaxpr"].jaxpr
    carries = sum(outer.aval.ndim == inner.aval.ndim for outer, inner in zip(equation.outvars, body.outvars))
    constants = sum(outer.aval.ndim == inner.aval.ndim for outer, inner in zip(equation.invars, body.invars)) - carries
    fixed, carry, xs = inputs[:constants], inputs[constants : constants + carries], inputs[constants + carries :]
    stacked: list[Depth] = [None] * (len(body.outvars) - carries)
    for _ in range(equation.params["length"]):
        outputs = _through(body, [*fixed, *carry, *xs])
        stacked = [_later(*pair) for pair in zip(outputs[carries:], stacked)]
        if outputs[:carries] == list(carry):
            break  # no step waits for the one before, and all later ones are like this one
        carry = outputs[:carries]
    return [*carry, *stacked]


def find_dependence(function: Callable[[jax.Array], jax.Array], inputs: np.ndarray) -> np.ndarray:
    """[N, N], True where a position of the output has a nonzero gradient with respect to a position of the input.

    `function` is [N, D] -> [N, F]; `inputs` [N, D] are random: a gradient that is zero by chance would be missed.
    """

    def rows(x_ND: jax.Array) -> jax.Array:
        y_NF, back = jax.vjp(function, x_ND)
        # One random direction over features, so that their gradients do not cancel.
        direction_F = jnp.asarray(np.random.default_rng(1).normal(size=y_NF.shape[1]), y_NF.dtype)

        def row(position: jax.Array) -> jax.Array:
            (of_x_ND,) = back(jnp.zeros_like(y_NF).at[position].set(direction_F))
            return (of_x_ND != 0).any(-1)

        return jax.lax.map(row, jnp.arange(len(y_NF)), batch_size=16)  # all at once would be N³ for attention

    return np.asarray(jit_quickly(rows)(jnp.asarray(inputs, jnp.float32)))


def count_path_length(layers: Iterable[np.ndarray], wanted: np.ndarray, limit: int = 10_000) -> int:
    """Counts the layers until every wanted pair of positions is connected: the longest of all shortest paths.

    Raises UserError when they are not after `limit` layers, or after all.

    Args:
        layers: `find_dependence` [N, N] of the first layer, the second, …
        wanted: [N, N], (output, input) True where they must be connected in the end.
    """
    reached = np.eye(len(wanted), dtype=np.float32)
    for count, layer in enumerate(layers, 1):
        reached = np.minimum(layer.astype(np.float32) @ reached, 1)
        if (reached > 0)[wanted].all():
            return count
        if count == limit:
            break
    raise UserError("path length: these layers never connect every wanted pair of positions.")
