"""The gate slot: attention modules by name or from outside the package, put where a network says."""

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax

from attention_jax.config.plugins import load_object
from attention_jax.errors import UserError
from attention_jax.nn.attention import SelfAttention
from attention_jax.nn.bam import BAM
from attention_jax.nn.gates import CBAM, ECA, GlobalContext, SqueezeExcite

GATES = {
    "se": SqueezeExcite,
    "bam": BAM,
    "cbam": CBAM,
    "eca": ECA,
    "gc": GlobalContext,
    "self_attention": SelfAttention,
}


class Gate(nn.Module):
    """A gate by name (`GATES`), dotted path, `file.py:Name` or class: any module [B, H, W, C] -> [B, H, W, C].

    A gate with a field `norm` or `dtype` gets the network's; one whose `__call__` takes `train` gets that.
    """

    gate: str | Callable[..., nn.Module]
    args: Mapping[str, Any]
    norm: Callable[..., nn.Module]
    dtype: Any
    train: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, H, W, C] -> [B, H, W, C]."""
        make = load_object(self.gate, GATES, "gate")
        args = dict(self.args)
        if dataclasses.is_dataclass(make):
            names = {field.name for field in dataclasses.fields(make)}
            own = {"norm": self.norm, "dtype": self.dtype}
            args = {**{name: value for name, value in own.items() if name in names}, **args}
        try:
            module = make(**args)
        except TypeError as error:
            raise UserError(f"model.gate_args: {self.gate!r} does not take these arguments ({error}).") from error
        nn.share_scope(self, module)  # the gate's parameters sit directly under the name of its place
        takes_train = "train" in inspect.signature(type(module).__call__).parameters
        y = module(x, train=self.train) if takes_train else module(x)
        if y.shape != x.shape:
            raise UserError(f"model.gate: {self.gate!r} turns {x.shape} into {y.shape}; a gate keeps the shape.")
        return y.astype(x.dtype)
