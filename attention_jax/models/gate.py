"""The gate slot: attention modules by name or from outside the package, put into the places that a network names.

A gate is a module that takes [B, H, W, C] and returns an array of the same shape and dtype. The slot makes it anew in every
place that the network names, from one of

- a name in `GATES`, a dotted path, or `path/to/file.py:Name`, for one of the following, or one of them itself;
- a class of Linen modules, or a function that returns a Linen module, called with the network's `gate_args`, and with its
  `norm` (makes a normalisation layer) and `dtype` (of activations and products) if it has fields or arguments of these
  names; the module's call gets `train` if it takes that;
- a class of NNX modules, called with `gate_args`, `rngs`, `norm` and `dtype` likewise, and with the number of channels as
  the first of `channels`, `in_features` and `num_features` that its constructor has. It is put into training or evaluation
  mode (`module.train()`, `module.eval()`), and its variables are kept as a Linen module's are.
"""

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.errors import InvalidRngError, ModifyScopeVariableError

from attention_jax.config.plugins import load_object
from attention_jax.errors import UserError, one_sentence
from attention_jax.nn.attention import NonLocal, SelfAttention
from attention_jax.nn.bam import BAM
from attention_jax.nn.gates import (
    CBAM,
    ECA,
    CoordinateAttention,
    EffectiveSE,
    GatherExcite,
    GlobalContext,
    GlobalContextAdd,
    SqueezeExcite,
)

GATES: dict[str, type[nn.Module]] = {
    "se": SqueezeExcite,
    "ese": EffectiveSE,
    "eca": ECA,
    "ge": GatherExcite,
    "bam": BAM,
    "cbam": CBAM,
    "coord": CoordinateAttention,
    "gc": GlobalContext,
    "gca": GlobalContextAdd,
    "nl": NonLocal,
    "self_attention": SelfAttention,
}
_CHANNELS = ("channels", "in_features", "num_features")
_GIVE = "give a Linen or NNX module class, or a function that returns a Linen module"


class Gate(nn.Module):
    """Puts a gate into a network: [B, H, W, C] -> [B, H, W, C]; the head of this file says what a gate may be.

    Attributes:
        gate, args: the gate's class, function or name, and its keyword arguments.
        norm, dtype, train: the network's normalisation and dtype, and True in training.
    """

    gate: str | Callable[..., Any]
    args: Mapping[str, Any]
    norm: Callable[..., nn.Module]
    dtype: Any
    train: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, H, W, C] -> [B, H, W, C]. Raises UserError for a gate that breaks the rules at the head of this file."""
        make = load_object(self.gate, GATES, "gate")
        is_nnx = inspect.isclass(make) and any(base.__module__.startswith("flax.nnx.") for base in make.__mro__)
        module = self._make_nnx(make, x.shape[-1]) if is_nnx else self._make_linen(make)
        nn.share_scope(self, module)  # the gate's parameters sit directly under the name of its place
        takes_train = "train" in inspect.signature((make if is_nnx else type(module)).__call__).parameters
        if is_nnx and self.is_mutable_collection("batch_stats"):  # NNX would write into the caller's numpy arrays
            for name, value in self.variables.get("batch_stats", {}).items():
                self.put_variable("batch_stats", name, jax.tree.map(jnp.asarray, value))
        before = jax.tree.leaves(self.variables.get("batch_stats"))
        with explain_modes(what := f"model.gate: {self.gate!r}"):
            y = module(x, train=self.train) if takes_train else module(x)
            if self.is_initializing() and not self.train and not is_nnx:
                # A layer without a mode works while variables are made, and fails only at the first evaluation, many steps
                # later.
                evaluated: dict[str, Any] = {"train": False} if takes_train else {}
                jax.eval_shape(lambda v, x: module.clone(parent=None).apply(v, x, **evaluated), self.variables, x)
        self._check(x, y)
        after = jax.tree.leaves(self.variables.get("batch_stats"))
        if self.train and self.is_mutable_collection("batch_stats") and any(map(lambda a, b: a is b, before, after)):
            raise _make_mode_error(what, "its batch statistics stay as they are in training")
        return y

    def _call(self, make: Callable[..., Any], takes: Callable[..., Any], more: Mapping[str, Any]) -> Any:
        """Calls `make` with `args`, and with the network's own arguments that `takes` names and `args` leaves out."""
        bound = getattr(make, "keywords", {})  # the arguments that a functools.partial brings
        own = {"norm": self.norm, "dtype": self.dtype, **more}
        try:
            names = inspect.signature(takes).parameters.keys() - bound.keys()
            return make(**{**{name: value for name, value in own.items() if name in names}, **self.args})
        except TypeError as error:
            right = "give those that it has" if inspect.isclass(make) else _GIVE
            raise UserError(
                f"model.gate_args: {self.gate!r} does not take these arguments ({one_sentence(error)}): {right}."
            ) from error

    def _make_linen(self, make: Any) -> nn.Module:
        if isinstance(make, nn.Module):  # one module for all places: each place gets a copy
            make = make.clone
        module = self._call(make, make, {})
        if not isinstance(module, nn.Module):
            raise UserError(f"model.gate: {self.gate!r} made {type(module).__name__}: {_GIVE}.")
        return module if module.parent is self else module.clone(parent=self)

    def _make_nnx(self, make: Any, channels: int) -> nn.Module:
        """Returns a Linen module that makes the NNX module at each call, with the variables that Linen keeps for it."""
        from flax import nnx  # only this function of the package needs it

        takes = functools.partial(make.__init__, None)
        width = next((name for name in _CHANNELS if name in inspect.signature(takes).parameters), "channels")
        keys = {name: self.make_rng(name) for name in ("params", "dropout") if self.has_rng(name)}
        # Layers name the random streams that they draw from when they are made, even if they draw nothing.
        rngs = nnx.Rngs(keys.get("params", jax.random.key(0)), **keys)

        def make_in_mode() -> Any:
            module = self._call(make, takes, {width: channels, "rngs": rngs})
            others = nnx.state(module, nnx.Not(nnx.Any(nnx.Param, nnx.BatchStat, nnx.RngState)))
            if jax.tree.leaves(others):
                raise UserError(f"model.gate: {self.gate!r} has variables that are neither nnx.Param nor nnx.BatchStat.")
            module.train() if self.train else module.eval()
            return module

        return nnx.bridge.to_linen(make_in_mode, skip_rng=True)

    def _check(self, x: jax.Array, y: Any) -> None:
        if not isinstance(y, jax.Array) or (y.shape, y.dtype) != (x.shape, x.dtype):
            made = f"{y.dtype} {y.shape}" if isinstance(y, jax.Array) else type(y).__name__
            raise UserError(
                f"model.gate: {self.gate!r} turns {x.dtype} {x.shape} into {made}: a gate keeps the shape and the dtype, so "
                "give its layers the dtype of a field of that name, or return y.astype(x.dtype)."
            )


@contextlib.contextmanager
def explain_modes(what: str) -> Iterator[None]:
    """Raises UserError in place of Flax's errors for a layer that is not told whether it trains."""
    try:
        yield
    except (ValueError, InvalidRngError, ModifyScopeVariableError) as error:
        if isinstance(error, ValueError) and not any(n in str(error) for n in ("use_running_average", "deterministic")):
            raise
        raise _make_mode_error(what, one_sentence(error).partition(" (http")[0].rstrip(".")) from error


def _make_mode_error(what: str, reason: str) -> UserError:
    return UserError(
        f"{what} has a layer with a training mode, such as BatchNorm or Dropout, and does not set the mode ({reason}): let its "
        "__call__ take train, and give that layer "
        "use_running_average=not train or deterministic=not train."
    )
