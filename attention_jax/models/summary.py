"""Parameter and multiply-add counts of a network, module by module."""

import dataclasses
import math
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.errors import FlaxError
from jax.extend import core

from attention_jax import tree
from attention_jax.errors import UserError, one_sentence
from attention_jax.kernels.switch import use_kernels, use_standard_numerics


@dataclasses.dataclass(frozen=True)
class Summary:
    """Trainable parameters and multiply-adds (conv + linear + matmul, padding counted, as the papers print FLOPs)."""

    params: int
    macs: int
    modules: dict[str, tuple[int, int]]  # path -> (params, macs), in order of first use

    def __str__(self) -> str:
        width = max(map(len, [*self.modules, "total"]))
        rows = [*self.modules.items(), ("total", (self.params, self.macs))]
        head = f"{'module':<{width}}  {'params':>13}  {'MACs':>16}"
        return "\n".join([head, *(f"{name:<{width}}  {params:>13,}  {macs:>16,}" for name, (params, macs) in rows)])


def list_references() -> dict[str, dict[str, str]]:
    """Returns the columns of `names.tsv` for every network of this package by its name; "-" stands for no entry.

    `counted` names the reference with the same number of parameters and multiply-adds (or of parameters alone), for images of
    `input` pixels a side or sentences of `input` tokens. `top1` is the accuracy in percent on ImageNet, unless `published`,
    which names the source, names another set.
    """
    head, *rows = (line.split("\t") for line in (Path(__file__).parent / "names.tsv").read_text("utf-8").splitlines())
    return {name: dict(zip(head[1:], columns, strict=True)) for name, *columns in rows}


@use_standard_numerics()
def summary(model: nn.Module, shape: tuple, depth: int = 1, **kwargs: Any) -> Summary:
    """Counts a network without running it.

    Args:
        model: a Linen module.
        shape: shape of its input, batch first, or a tuple of shapes for several inputs; float32 unless a
            `jax.ShapeDtypeStruct` is given. Multiply-adds are of the entire batch: give batch 1 to compare with papers.
        depth: number of levels of the module path in a row of the table.
        **kwargs: passed to the call (`train=True`).
    """
    shapes = shape if isinstance(shape[0], (tuple, jax.ShapeDtypeStruct)) else (shape,)
    inputs = [s if isinstance(s, jax.ShapeDtypeStruct) else jax.ShapeDtypeStruct(s, jnp.float32) for s in shapes]
    if getattr(model, "scan_layers", False):  # the body of a loop has no names of layers
        model = model.clone(scan_layers=False)
    key = jax.random.key(0)
    with use_kernels("xla"):  # the same products in fewer equations
        # One trace also makes the variables: tracing takes the time, and initial values need no products.
        call = jax.make_jaxpr(lambda *x: model.init_with_output(key, *x, **kwargs), return_shape=True)
        try:
            jaxpr, (_, variables) = call(*inputs)
        except (TypeError, ValueError, FlaxError) as error:
            given = " and ".join(f"{x.dtype} {x.shape}" for x in inputs)
            reason = f"{type(error).__name__}: {one_sentence(error)}"
            raise UserError(
                f"{type(model).__name__} does not run on {given} ({reason}): give the shape of its input."
            ) from error

    root = type(model).__name__

    def module_of(path: str) -> str:
        parts: list[str] = []
        for part in path.split("/"):
            name, _, method = part.partition(".")  # "ResNet._stem" is a method of the module "ResNet"
            if not (method and name in parts):
                parts.append(name)
        return "/".join((parts[1:] if parts[0] == root else parts)[:depth])

    macs, params = Counter[str](), Counter[str]()
    for path, count in count_multiply_adds(jaxpr.jaxpr).items():
        macs[module_of(path)] += count
    for path, leaf in tree.flatten_by_path(variables["params"]).items():
        params["/".join(path.split("/")[:-1][:depth])] += leaf.size
    table = {name: (params[name], macs[name]) for name in {**macs, **params} if params[name] or macs[name]}
    return Summary(params.total(), macs.total(), table)


def count_multiply_adds(jaxpr: core.Jaxpr, padding: bool = True) -> dict[str, int]:
    """Counts multiply-adds of a traced program's convolutions and matrix products, by the module scope they were traced in.

    Args:
        padding: True also counts a convolution's products with the zeros of its padding and dilation, as papers do.
    """
    macs: dict[str, int] = defaultdict(int)

    def count(jaxpr: Any, stack: str, times: int) -> None:
        for equation in jaxpr.eqns:
            here = "/".join(filter(None, [stack, str(equation.source_info.name_stack)]))
            name, params = equation.primitive.name, equation.params
            macs[here] += 0  # a module without products keeps its place in the table
            if name == "conv_general_dilated":
                macs[here] += times * _convolution(equation, padding)
            elif name == "dot_general":
                macs[here] += times * _product(equation)
            elif params.get("branches_platforms"):  # `jax.lax.platform_dependent`: one branch runs, the default is XLA's own
                branch = params["branches_platforms"].index(None)
                count(params["branches"][branch].jaxpr, here, times)
            else:
                repeat = params["length"] if name == "scan" else params["mesh"].size if name == "shard_map" else 1
                for value in jax.tree.leaves(list(params.values()), is_leaf=_is_jaxpr):
                    if _is_jaxpr(value):
                        count(getattr(value, "jaxpr", value), here, times * repeat)

    count(jaxpr, "", 1)
    return macs


def _is_jaxpr(value: Any) -> bool:
    return isinstance(value, (core.Jaxpr, core.ClosedJaxpr))


def _product(equation: Any) -> int:
    (contract, _), _ = equation.params["dimension_numbers"]
    return equation.outvars[0].aval.size * math.prod(equation.invars[0].aval.shape[i] for i in contract)


def _convolution(equation: Any, padding: bool) -> int:
    x, kernel, out, params = equation.invars[0].aval, equation.invars[1].aval, equation.outvars[0].aval, equation.params
    numbers = params["dimension_numbers"]
    if padding:
        return out.size * math.prod(kernel.shape) // kernel.shape[numbers.rhs_spec[0]]
    channels = out.shape[numbers.out_spec[0]] * out.shape[numbers.out_spec[1]] * kernel.shape[numbers.rhs_spec[1]]
    for i, (low, _) in enumerate(params["padding"]):
        taps = np.arange(kernel.shape[numbers.rhs_spec[2 + i]]) * params["rhs_dilation"][i]
        starts = np.arange(out.shape[numbers.out_spec[2 + i]]) * params["window_strides"][i] - low
        places, holes = starts[:, None] + taps, params["lhs_dilation"][i]
        last = (x.shape[numbers.lhs_spec[2 + i]] - 1) * holes
        channels *= int(((places >= 0) & (places <= last) & (places % holes == 0)).sum())
    return channels
