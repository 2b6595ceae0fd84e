"""Shards a state over the mesh: rules by parameter path, and weights that a layer gathers where it uses them.

A rule is (path regex, layout); the first whose expression is found in a parameter's path applies. A layout is

- "fsdp": the largest dimension that the axis `fsdp` divides evenly is split over it;
- a tuple with None, "fsdp" or "model" for each dimension; without "fsdp", the largest other dimension is split over `fsdp`;
- "replicated": every device has the complete array.

Optimizer state, averages and gradients follow their parameter: their path ends in its path (`2/mu/Conv_0/kernel`) and their
shape is the same. Anything else is replicated. If an axis does not divide a dimension, the array is replicated over that
axis; `StateSharding.undivided` lists those.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import flax
import jax
from flax import linen as nn
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from attention_jax import tree
from attention_jax.distributed.mesh import FSDP, MODEL
from attention_jax.errors import UserError

# Megatron's division (Shoeybi et al. 2019, Section 3): a device has complete heads, a part of the hidden layer and of the
# vocabulary, and one sum over devices ends each sub-layer.
_TRANSFORMER: tree.Rules = (
    (r"_attention/(query|key|value)/kernel$", (None, MODEL)),
    (r"_attention/(query|key|value)/bias$", (MODEL,)),
    (r"_attention/output/kernel$", (MODEL, None)),
    (r"mlp/hidden/kernel$", (None, MODEL)),
    (r"mlp/hidden/bias$", (MODEL,)),
    (r"mlp/output/kernel$", (MODEL, None)),
    (r"_embedding/embedding$", (MODEL, None)),
    (r"logits_bias$", (MODEL,)),
)
_COPIES = ("convert_element_type", "transpose", "reshape", "copy")  # primitives


def get_sharding_rules(model: str, custom: tree.Rules = ()) -> tree.Rules:
    """Returns a config's custom rules, followed by those of the named network, and "fsdp" for all other parameters."""
    return (*custom, *(_TRANSFORMER if model.startswith("transformer_") else ()), (".*", FSDP))


@dataclasses.dataclass(frozen=True)
class StateSharding:
    """The sharding of every array of a state.

    Attributes:
        shardings: a tree like the state.
        undivided: paths of the parameters and batch statistics that an axis should split by their rule, and cannot.
    """

    mesh: Mesh
    shardings: Any
    undivided: tuple[str, ...]

    @property
    def is_sharded(self) -> bool:
        """True if some array is split over devices."""
        return self.mesh.shape[FSDP] * self.mesh.shape[MODEL] > 1

    def add_to_shapes(self, shapes: Any) -> Any:
        """Returns the shapes of a state with its shardings."""
        return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, self.shardings)

    def gather(self, values: Any, shardings: Any) -> Any:
        """Inside a jitted function: gathers arrays over `fsdp`; `shardings` are a part of this object's."""
        if not self.is_sharded:
            return values
        return jax.tree.map(lambda x, s: jax.lax.with_sharding_constraint(x, _without_fsdp(s)), values, shardings)

    def wrap_params(self, params: Any) -> Any:
        """Inside a jitted function: returns parameters for `model.apply` that a module gathers where it uses them.

        Their gradients are sharded again, summed over the devices that share the batch.
        """
        if not self.is_sharded:
            return params
        return jax.tree.map(lambda x, s: ShardedParam(x, s), params, self.shardings.params)

    def apply_remat_policy(self, loss: Callable[..., Any], params: Any) -> Callable[..., Any]:
        """Returns `loss(params, ...)` whose gradient gathers every weight again, so that no device keeps gathered weights."""
        if self.mesh.shape[FSDP] == 1:
            return loss
        shapes = {leaf.shape for leaf in jax.tree.leaves(params)}

        def keep(primitive: Any, *operands: Any, **options: Any) -> bool:
            # A cast weight is as large a copy as the weight itself.
            is_copy = primitive.name in _COPIES and getattr(operands[0], "shape", None) in shapes
            return not is_copy and primitive.name != "sharding_constraint"

        return jax.checkpoint(loss, policy=keep)


def shard_state(state: Any, weights: Mapping[str, Any], rules: tree.Rules, mesh: Mesh) -> StateSharding:
    """Returns the sharding of a state on a mesh.

    Args:
        state: shapes, from `jax.eval_shape`.
        weights: {path: shape} of parameters and batch statistics; paths in the state end in these.
        rules: described at the head of this file.

    Raises:
        UserError: a rule's tuple does not fit an array, or an axis of more than one device splits nothing.
    """
    found = {path: _spec(path, leaf.shape, rules, mesh) for path, leaf in weights.items()}

    def sharding(path: str, leaf: Any) -> NamedSharding:
        # Several parameter paths may end this one: the longest applies.
        parts = path.split("/")
        ends = ("/".join(parts[i:]) for i in range(len(parts)))
        name = next((end for end in ends if end in found and weights[end].shape == leaf.shape), None)
        return NamedSharding(mesh, found[name][0] if name else PartitionSpec())

    undivided = tuple(path for path, (_, is_undivided) in found.items() if is_undivided)
    used = {axis for spec, _ in found.values() for axis in spec}
    for axis, what in ((FSDP, "splits no parameter"), (MODEL, "splits no parameter of this network")):
        if mesh.shape[axis] > 1 and axis not in used:
            raise UserError(f"parallel.{axis}={mesh.shape[axis]} {what}: give 1, another number, or other parallel.rules.")
    return StateSharding(mesh, tree.map_with_path(sharding, state), undivided)


def _spec(path: str, shape: tuple[int, ...], rules: tree.Rules, mesh: Mesh) -> tuple[PartitionSpec, bool]:
    """Returns (axis of each dimension, True if an axis cannot divide the array as its rule says)."""
    layout = tree.find_first_match(rules, path, "parallel.rules")
    if layout == "replicated":
        return PartitionSpec(), False
    wanted = [None] * len(shape) if layout == FSDP else list(layout)
    if len(wanted) != len(shape):
        raise UserError(f"parallel.rules: {layout!r} is for {len(wanted)} dimensions, and {path!r} has {len(shape)}.")

    def divides(axis: str, i: int) -> bool:
        return mesh.shape[axis] > 1 and shape[i] % mesh.shape[axis] == 0

    axes = [axis if axis and divides(axis, i) else None for i, axis in enumerate(wanted)]
    free = [i for i in range(len(shape)) if wanted[i] is None and divides(FSDP, i)]
    if FSDP not in wanted and free:
        axes[max(free, key=lambda i: shape[i])] = FSDP
    required = {*filter(None, wanted), *([] if wanted and None not in wanted else [FSDP])}
    while axes and axes[-1] is None:  # XLA returns specs without them; with them, the same sharding compiles twice
        axes.pop()
    return PartitionSpec(*axes), any(mesh.shape[axis] > 1 and axis not in axes for axis in required)


def _without_fsdp(sharding: NamedSharding) -> NamedSharding:
    """Returns the same sharding with `fsdp` replicated."""
    return NamedSharding(sharding.mesh, PartitionSpec(*(None if axis == FSDP else axis for axis in sharding.spec)))


class ShardedParam(flax.struct.PyTreeNode, nn.meta.AxisMetadata):
    """A sharded weight that Flax gathers (`unbox`) where a module names its parameter."""

    value: jax.Array
    sharding: NamedSharding = flax.struct.field(pytree_node=False)

    def unbox(self) -> jax.Array:
        """Gathers the weight."""
        # The gradient is constrained to be complete first and sharded second: with the second constraint alone, XLA shards
        # the activations by features to make it, which moves them all. A TPU fuses both into one reduce-scatter.
        value = jax.lax.with_sharding_constraint(self.value, self.sharding)
        return jax.lax.with_sharding_constraint(value, _without_fsdp(self.sharding))

    def replace_boxed(self, val: Any) -> "ShardedParam":
        """Returns another value with the same sharding."""
        return self.replace(value=val)

    def add_axis(self, index: int, params: dict[Any, Any]) -> "ShardedParam":
        """Refuses lifted transforms that stack parameters."""
        raise NotImplementedError("a module that stacks its layers' parameters with nn.scan or nn.vmap")

    remove_axis = add_axis


def count_bytes_per_device(state: Any) -> int:
    """Returns the bytes that one device holds of a state of arrays, or of shapes with shardings."""
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(state))
