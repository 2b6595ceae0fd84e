"""Tables between our parameters' paths and another library's names, read in both directions.

    RULES = (*name_module("head", "fc"), *name_module(r"stage(\\d)_block(\\d+)/conv(\\d)", "layer{1}.{2-1}.conv{3}"))
    LAYOUT = Layout("mine", models=("resnet*",), rules=RULES)

A rule goes from our path to their name, so import and export share one table: the names that a file must have are
computed from its parameters' paths, looked up in a file (`fill_variables`) or written into one (`name_tensors`).
"""

import dataclasses
import difflib
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from attention_jax import tree
from attention_jax.errors import UserError, one_sentence
from attention_jax.kernels.switch import use_kernels

Array = np.ndarray
# A template with groups, "layer{1}.{2-1}.conv{3}" or "features.{2*1-1}", or a function of the match and the network where names
# need more.
Name = str | Callable[[re.Match, nn.Module], str]
# Counters and tables that follow from the network's sizes, and the counters that the package thop leaves behind.
IGNORED = (r"num_batches_tracked$", r"relative_(position|coords)_(index|table)$", r"attn_mask$", r"total_(ops|params)$")


@dataclasses.dataclass(frozen=True)
class Transform:
    """Converts an array between two forms.

    Attributes:
        into: function from their array to ours.
        out: function from our array to theirs; the inverse of `into`.
        part: (i, n): our array is part i, from 0, of n equal parts of their first axis; queries, keys and values are such
            parts.
        resize: function (array in our form, shape) -> array of that shape, for positions learned at another size; None if
            only one shape is right. Raises UserError for an array that cannot be resized.
    """

    into: Callable[[Array], Array] = np.asarray
    out: Callable[[Array], Array] = np.asarray
    part: tuple[int, int] = (0, 1)
    resize: Callable[[Array, tuple[int, ...]], Array] | None = None

    def take(self, theirs: Array) -> Array:
        """Returns our array, given their complete one."""
        i, n = self.part
        return self.into(np.split(theirs, n)[i] if n > 1 else theirs)

    def shape_of(self, ours: tuple[int, ...]) -> tuple[int, ...]:
        """Returns the shape of their complete array."""
        first, *rest = self.out(np.broadcast_to(np.float32(0), ours)).shape or (None,)
        return () if first is None else (first * self.part[1], *rest)


_INTO = {4: (2, 3, 1, 0), 3: (2, 1, 0), 2: (1, 0)}
_OUT = {4: (3, 2, 0, 1), 3: (2, 1, 0), 2: (1, 0)}
AS_IT_IS = Transform()
# OIHW -> HWIO, OIW -> WIO, [out, in] -> [in, out].
KERNEL = Transform(lambda x: x.transpose(_INTO[x.ndim]), lambda x: x.transpose(_OUT[x.ndim]))
# A 1x1 convolution [out, in, 1, 1] is a matrix [in, out] here.
POINTWISE = Transform(lambda x: x[:, :, 0, 0].T, lambda x: x.T[:, :, None, None])


class NameRule(NamedTuple):
    """A rule for the parameters whose path, such as "params/stage1_block1/conv1/kernel", matches `path` completely."""

    path: str
    name: Name
    transform: Transform = AS_IT_IS


def name_module(path: str, name: Name, kernel: Transform = KERNEL, part: tuple[int, int] = (0, 1)) -> tuple[NameRule, ...]:
    """Returns the rules of a layer or a normalisation with PyTorch's names of its parameters and statistics.

    Args:
        path: regular expression for the module's path, "stage(\\d)_block(\\d+)/conv(\\d)".
        name: name of their module.
        kernel: conversion of its kernel.
        part: part of their kernel and bias, see `Transform`.
    """

    def leaf(last: str) -> Name:
        return f"{name}.{last}" if isinstance(name, str) else lambda match, model: f"{name(match, model)}.{last}"

    return (
        NameRule(f"params/{path}/kernel", leaf("weight"), dataclasses.replace(kernel, part=part)),
        NameRule(f"params/{path}/scale", leaf("weight")),
        NameRule(f"params/{path}/bias", leaf("bias"), Transform(part=part)),
        NameRule(f"batch_stats/{path}/mean", leaf("running_mean")),
        NameRule(f"batch_stats/{path}/var", leaf("running_var")),
    )


def name_modules(names: Mapping[str, Name], **kwargs: Any) -> tuple[NameRule, ...]:
    """Returns the rules of `name_module` for each {path: name}."""
    return tuple(rule for path, name in names.items() for rule in name_module(path, name, **kwargs))


@dataclasses.dataclass(frozen=True)
class Layout:
    """Holds the names and forms that one library gives to the tensors of some networks.

    Attributes:
        name: name of the layout in messages, `layout=` and `--format`.
        models: shell-style patterns of the names of our networks.
        rules: rules for paths; the first that matches counts.
        fields: values that these fields of the network must have for weights in this layout, if the name gives others.
        ignored: regular expressions for their names of tensors that hold nothing learned.
        head, stem: regular expressions for our paths of the classifier, and of the first kernel, which reads the image.
    """

    name: str
    models: tuple[str, ...]
    rules: tuple[NameRule, ...]
    fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    ignored: tuple[str, ...] = IGNORED
    head: str = r"^params/head(_distillation)?/"
    stem: str = r"^params/(stem_conv1?|patches)/kernel$"

    def ignores(self, name: str) -> bool:
        """True if their tensor of this name holds nothing learned."""
        return any(re.search(rule, name) for rule in self.ignored)


class Place(NamedTuple):
    """The name and the form of one of our parameters in another library."""

    name: str
    transform: Transform


def list_shapes(model: nn.Module, in_channels: int = 3) -> dict[str, tuple[int, ...]]:
    """Returns {path: shape} of a network's parameters and statistics, "params/head/kernel" for example.

    Raises UserError for a network that takes no images.
    """
    side = getattr(model, "image_size", 224)
    images = jax.ShapeDtypeStruct((1, side, side, in_channels), jnp.float32)
    try:
        with use_kernels("xla"):
            variables = jax.eval_shape(model.init, jax.random.key(0), images)
    except TypeError as error:  # another number of inputs, or tokens
        raise UserError(f"{type(model).__name__} does not take images alone ({one_sentence(error)}).") from error
    kept = {kind: variables[kind] for kind in ("params", "batch_stats") if kind in variables}
    return {path: leaf.shape for path, leaf in tree.flatten_by_path(kept).items()}


def match_names(layout: Layout, model: nn.Module, paths: Sequence[str]) -> dict[str, Place | None]:
    """Returns {our path: its place in the layout}, with None for a path that no rule matches."""
    rules = [(re.compile(rule.path), rule) for rule in layout.rules]

    def find(path: str) -> Place | None:
        for pattern, rule in rules:
            if match := pattern.fullmatch(path):
                name = _expand(rule.name, match) if isinstance(rule.name, str) else rule.name(match, model)
                return Place(name, rule.transform)
        return None

    return {path: find(path) for path in paths}


def _expand(template: str, match: re.Match) -> str:
    """Fills a template such as "layer{1}.{2-1}" or "features.{2*1-1}" with the match's groups; arithmetic needs numbers."""

    def fill(place: re.Match) -> str:
        times, group, more = place[1], match[int(place[2])], place[3]
        return group if times is None and more is None else str(int(times or 1) * int(group) + int(more or 0))

    return re.sub(r"\{(?:(\d)\*)?(\d)([+-]\d+)?\}", fill, template)


def count_shared(layout: Layout, model: nn.Module, paths: Sequence[str], tensors: Collection[str]) -> float:
    """Returns how many names a network in this layout and `tensors` share, as a share of all names of both."""
    ours = {place.name if place else path for path, place in match_names(layout, model, paths).items()}
    theirs = {name for name in tensors if not layout.ignores(name)}
    return len(ours & theirs) / max(1, len(ours | theirs))


def name_tensors(layout: Layout, model: nn.Module, variables: Mapping[str, Any]) -> dict[str, Array]:
    """Returns {their name: array} of a network's variables, the inverse of `fill_variables`.

    Raises UserError with every parameter that has no name in the layout.
    """
    flat = {path: np.asarray(leaf) for path, leaf in tree.flatten_by_path(variables).items()}
    parts: dict[str, dict[int, Array]] = {}
    nameless = []
    for path, place in match_names(layout, model, list(flat)).items():
        if place is None:
            nameless.append(path)
        else:
            parts.setdefault(place.name, {})[place.transform.part[0]] = place.transform.out(flat[path])
    if nameless:
        raise UserError(f"layout {layout.name} has no names for {', '.join(nameless)}: use the format native.")
    joined = {name: [some[i] for i in sorted(some)] for name, some in parts.items()}
    return {name: np.ascontiguousarray(np.concatenate(some) if len(some) > 1 else some[0]) for name, some in joined.items()}


def fill_variables(
    layout: Layout, model: nn.Module, shapes: Mapping[str, tuple[int, ...]], tensors: Mapping[str, Array], where: str
) -> tuple[dict[str, Array], list[str]]:
    """Returns {our path: float32 array} for all `shapes`, and notes on the changes on the way.

    Args:
        layout: layout of the tensors.
        model: the network, for names that depend on its fields.
        shapes: {path: shape} of the parameters and statistics to fill, all or some of those of `list_shapes`.
        tensors: {their name: array}.
        where: the file, for messages.

    Raises:
        UserError: missing, extra and misshapen tensors, and values that no network has, all in one message.
    """
    places = match_names(layout, model, list(shapes))
    wanted = {place.name for place in places.values() if place}
    extra = [name for name in tensors if name not in wanted and not layout.ignores(name)]
    found: dict[str, Array] = {}
    missing, misshapen, impossible, notes = list[str](), list[str](), list[str](), list[str]()
    for path, shape in shapes.items():
        if (place := places[path]) is None:
            missing.append(path)
            continue
        right = place.transform.shape_of(shape)
        if (array := tensors.get(place.name)) is None:
            missing.append(f"{place.name}{_nearest(place.name, right, extra, tensors)}")
            continue
        wrong = f"{place.name} {array.shape} where {right} is right"
        resize = place.transform.resize or (fold_channels if re.search(layout.stem, path) else None)
        if array.shape != right and not (resize and array.ndim == len(right)):
            misshapen.append(wrong)
            continue
        raw = place.transform.take(np.asarray(array))
        value = np.asarray(raw.real, np.float32)
        if value.shape != shape and resize:
            try:
                value = np.asarray(resize(value, shape), np.float32)
            except UserError as error:
                misshapen.append(f"{wrong} ({error})")
                continue
            notes.append(f"{place.name} was {array.shape} and is resized to {right}")
        if np.iscomplexobj(raw) or not np.isfinite(value).all() or (path.endswith("/var") and value.min(initial=0) < 0):
            impossible.append(place.name)
        found[path] = np.ascontiguousarray(value)
    problems = {
        "missing": missing,
        "not of this network": extra,
        "of another shape": misshapen,
        "with values that are complex or not finite, or variances below 0": impossible,
    }
    text = "; ".join(f"{what}: {', '.join(dict.fromkeys(names))}" for what, names in problems.items() if names)
    if text:
        raise UserError(f"{where}: its tensors are not those of this network in the layout {layout.name}; {text}.")
    return found, notes


def _nearest(name: str, shape: tuple[int, ...], extra: Sequence[str], tensors: Mapping[str, Array]) -> str:
    """Returns " (the nearest is 'x')" for the unused name closest to `name`; names with the same shape come first."""
    for known in ([other for other in extra if tensors[other].shape == shape], extra):
        if matches := difflib.get_close_matches(name, known, n=1, cutoff=0.5):
            return f" (the nearest is {matches[0]!r})"
    return ""


def fold_channels(kernel: Array, shape: tuple[int, ...]) -> Array:
    """[H, W, 3, O] -> [H, W, n, O]: sums over colours for n = 1, else repeats the kernel and scales it by 3/n (timm's rule).

    A grey image then gives the same output as three equal colours. Raises UserError for any other change of shape.
    """
    channels = shape[-2]
    if kernel.shape != (*shape[:-2], 3, shape[-1]):
        raise UserError(f"only a kernel that reads 3 channels can change their number; this one has the shape {kernel.shape}")
    if channels == 1:
        return kernel.sum(-2, keepdims=True)
    return np.concatenate([kernel] * -(-channels // 3), -2)[..., :channels, :] * np.float32(3 / channels)
