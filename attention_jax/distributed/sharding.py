"""How a state lies on the mesh: rules by the paths of parameters, and weights that are put together where a layer uses them.

A rule is (path regex, placement), the first that is found in a parameter's path decides. A placement is

- "fsdp": the largest dimension that the axis `fsdp` divides evenly is divided over it;
- a tuple with None, "fsdp" or "model" for each dimension; without "fsdp" the largest of the others goes over that axis;
- "replicated": every device has the whole array.

Optimizer state, averages and gradients follow their parameter: its path is the end of theirs (`2/mu/Conv_0/kernel`), and
their shape is its. What is no parameter or has another shape is replicated. Where an axis does not divide a dimension, the
array is whole over that axis; `Placement.undivided` lists those.
"""

import dataclasses
import fnmatch
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

# Megatron's division (Shoeybi et al. 2019, Section 3): a device has whole heads, a part of the hidden layer and of the
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
# Pattern of model names -> rules of that family; "fsdp" is what all else gets.
RULES: dict[str, tree.Rules] = {"transformer_*": _TRANSFORMER, "*": ()}


_COPIES = ("convert_element_type", "transpose", "reshape", "copy")  # primitives


def rules_for(model: str, own: tree.Rules = ()) -> tree.Rules:
    """The rules of a network by its name, a config's own before them."""
    family = next(rules for pattern, rules in RULES.items() if fnmatch.fnmatch(model, pattern))
    return (*own, *family, (".*", FSDP))


@dataclasses.dataclass(frozen=True)
class Placement:
    """Where the arrays of a state are.

    Attributes:
        mesh: of the devices.
        shardings: a tree like the state.
        undivided: paths of the parameters and batch statistics that an axis should divide by their rule, and cannot.
    """

    mesh: Mesh
    shardings: Any
    undivided: tuple[str, ...]

    @property
    def divides(self) -> bool:
        """Whether any array is in parts."""
        return self.mesh.shape[FSDP] * self.mesh.shape[MODEL] > 1

    def abstract(self, shapes: Any) -> Any:
        """The shapes of a state with its shardings."""
        return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, self.shardings)

    def gathered(self, values: Any, shardings: Any) -> Any:
        """Inside a jitted function: arrays that lie as `shardings`, a part of this object's, whole over `fsdp`."""
        if not self.divides:
            return values
        return jax.tree.map(lambda x, s: jax.lax.with_sharding_constraint(x, _whole(s)), values, shardings)

    def in_parts(self, params: Any) -> Any:
        """Inside a jitted function: parameters that a module puts together where it uses them, for `model.apply`.

        Their gradients come back in parts, summed over the devices that have a part of the batch.
        """
        if not self.divides:
            return params
        return jax.tree.map(lambda x, s: InParts(x, s), params, self.shardings.params)

    def remembering_parts(self, loss: Callable[..., Any], params: Any) -> Callable[..., Any]:
        """`loss(params, ...)` whose gradient puts every weight together anew, so that no device keeps them whole."""
        if self.mesh.shape[FSDP] == 1:
            return loss
        shapes = {leaf.shape for leaf in jax.tree.leaves(params)}

        def keep(primitive: Any, *operands: Any, **options: Any) -> bool:
            # A cast weight is as large a copy as the weight itself.
            is_copy = primitive.name in _COPIES and getattr(operands[0], "shape", None) in shapes
            return not is_copy and primitive.name != "sharding_constraint"

        return jax.checkpoint(loss, policy=keep)


def place(state: Any, weights: Mapping[str, Any], rules: tree.Rules, mesh: Mesh) -> Placement:
    """Where a state goes.

    Args:
        state: shapes, as `jax.eval_shape` gives them.
        weights: {path: shape} of parameters and batch statistics, whose paths end those of the state.
        rules: as the head of this file says.

    Raises:
        UserError: a rule's tuple does not fit an array, or an axis of more than one device divides nothing.
    """
    found = {path: _spec(path, leaf.shape, rules, mesh) for path, leaf in weights.items()}

    def sharding(path: str, leaf: Any) -> NamedSharding:
        # Of several parameters whose path ends this one the longest is meant.
        parts = path.split("/")
        ends = ("/".join(parts[i:]) for i in range(len(parts)))
        name = next((end for end in ends if end in found and weights[end].shape == leaf.shape), None)
        return NamedSharding(mesh, found[name][0] if name else PartitionSpec())

    placement = Placement(mesh, tree.map_with_path(sharding, state), tuple(path for path, (_, short) in found.items() if short))
    used = {axis for spec, _ in found.values() for axis in spec}
    for axis, what in ((FSDP, "leaves every parameter whole"), (MODEL, "divides no parameter of this network")):
        if mesh.shape[axis] > 1 and axis not in used:
            raise UserError(f"parallel.{axis}={mesh.shape[axis]} {what}: give 1, another number, or other parallel.rules.")
    return placement


def _spec(path: str, shape: tuple[int, ...], rules: tree.Rules, mesh: Mesh) -> tuple[PartitionSpec, bool]:
    """(the axes of each dimension, whether an axis could not divide it as the rule has it)."""
    placement = tree.first_match(rules, path, "parallel.rules")
    if placement == "replicated":
        return PartitionSpec(), False
    wanted = [None] * len(shape) if placement == FSDP else list(placement)
    if len(wanted) != len(shape):
        raise UserError(f"parallel.rules: {placement!r} is for {len(wanted)} dimensions, and {path!r} has {len(shape)}.")

    def divides(axis: str, i: int) -> bool:
        return mesh.shape[axis] > 1 and shape[i] % mesh.shape[axis] == 0

    axes = [axis if axis and divides(axis, i) else None for i, axis in enumerate(wanted)]
    free = [i for i in range(len(shape)) if wanted[i] is None and divides(FSDP, i)]
    if FSDP not in wanted and free:
        axes[max(free, key=lambda i: shape[i])] = FSDP
    asked = {*filter(None, wanted), *([] if wanted and None not in wanted else [FSDP])}
    while axes and axes[-1] is None:  # as XLA hands them back: a longer way to say the same would be another program
        axes.pop()
    return PartitionSpec(*axes), any(mesh.shape[axis] > 1 and axis not in axes for axis in asked)


def _whole(sharding: NamedSharding) -> NamedSharding:
    """The same without `fsdp`."""
    return NamedSharding(sharding.mesh, PartitionSpec(*(None if axis == FSDP else axis for axis in sharding.spec)))


class InParts(flax.struct.PyTreeNode, nn.meta.AxisMetadata):
    """A weight of which each device has a part; Flax asks for the whole (`unbox`) where a module names its parameter."""

    value: jax.Array
    sharding: NamedSharding = flax.struct.field(pytree_node=False)

    def unbox(self) -> jax.Array:
        # Backwards a gradient is whole first and then in parts: asked for parts alone, XLA divides the activations by
        # features to make them, which moves them all. A TPU sums into parts at once, whatever the words are.
        value = jax.lax.with_sharding_constraint(self.value, self.sharding)
        return jax.lax.with_sharding_constraint(value, _whole(self.sharding))

    def replace_boxed(self, val: Any) -> "InParts":
        return self.replace(value=val)

    def add_axis(self, index: int, params: dict[Any, Any]) -> "InParts":
        raise NotImplementedError("a module that stacks its layers' parameters with nn.scan or nn.vmap")

    remove_axis = add_axis


def bytes_per_device(state: Any) -> int:
    """Bytes that one device holds of a state of arrays or of shapes with shardings."""
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(state))
