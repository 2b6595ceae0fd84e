"""Finds, among the layouts that this library knows, the layout of a file."""

import fnmatch
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import numpy as np
from flax.core import FrozenDict

from attention_jax.config.plugins import load_object
from attention_jax.errors import UserError
from attention_jax.interop import layouts_convnext, layouts_efficientnet, layouts_resnet, layouts_swin, layouts_vit
from attention_jax.interop.layout import Layout, NameRule, Transform, count_shared, list_shapes, match_names
from attention_jax.models import create_model

# Our own paths, for networks that no other library has, and for the format native.
NATIVE = Layout(
    "native",
    ("*",),
    (
        NameRule("params/positions", "{0}", Transform(resize=layouts_vit.resize_positions)),
        NameRule(".+/relative_bias", "{0}", Transform(resize=layouts_vit.resize_grid)),
        NameRule(".+", "{0}"),
    ),
)
_FAMILIES = (layouts_resnet, layouts_convnext, layouts_vit, layouts_swin, layouts_efficientnet)
LAYOUTS = (NATIVE, *(layout for family in _FAMILIES for layout in family.LAYOUTS))
LEAST = 0.3  # the least share of common names among all names of file and network; below, the file belongs to another network


class Recognised(NamedTuple):
    """A layout, its network, and the shapes of the network's parameters and statistics."""

    layout: Layout
    model: nn.Module
    shapes: dict[str, tuple[int, ...]]
    also: tuple[str, ...] = ()  # names of layouts in which the same tensors have the same names


def list_layouts(name: str) -> list[Layout]:
    """Returns the layouts for the network of that name."""
    return [layout for layout in LAYOUTS if any(fnmatch.fnmatchcase(name, pattern) for pattern in layout.models)]


def get_layout(spec: str | Layout, name: str) -> Layout:
    """Returns the layout called `spec` for the network `name`, or `path/to/file.py:LAYOUT`; UserError for another."""
    its = {layout.name: layout for layout in list_layouts(name)}
    layout = load_object(spec, its, "layout")  # type: ignore[arg-type]  # or a Layout
    if not isinstance(layout, Layout):
        raise UserError(f"layout {spec!r} is {type(layout).__name__}: give an attention_jax.interop.layout.Layout.")
    return layout


def recognise_layout(
    name: str,
    tensors: Mapping[str, np.ndarray],
    where: str,
    layout: str | Layout | None = None,
    in_channels: int = 3,
    **fields: Any,
) -> Recognised:
    """Returns the layout that shares most names with `tensors`, and the network with `fields` and the layout's own fields.

    Args:
        name: name of the network.
        tensors: {their name: array}.
        where: the file, for messages.
        layout: a given layout; nothing is recognised then.
        in_channels: channels of the images that the network will read.

    Raises:
        UserError: too little in common with every layout, two layouts that the tensors do not tell apart, or a field that
            contradicts the layout.
    """
    candidates = [get_layout(layout, name)] if layout else list_layouts(name)
    made: dict[str, tuple[nn.Module, dict[str, tuple[int, ...]]]] = {}
    found = []
    for known in candidates:
        its = {**known.fields, **fields}
        if (key := repr(its)) not in made:
            model = create_model(name, **its)
            made[key] = model, list_shapes(model, in_channels)
        model, shapes = made[key]
        found.append((count_shared(known, model, list(shapes), tensors), Recognised(known, model, shapes)))
    most = max(share for share, _ in found)
    if most < (0 if layout else LEAST):
        looked = "; ".join(f"{known.layout.name}: {_example(known)}" for _, known in found)
        has = ", ".join(list(tensors)[:4])
        raise UserError(
            f"{where}: its {len(tensors)} tensors ({has}, …) are not those of {name!r} in any known layout ({looked}): give "
            "the name of another network, or layout='file.py:LAYOUT'."
        )
    best = [known for share, known in found if share == most]
    wrong = {id(known): _contradict(known.layout, fields) for known in best}
    if all(wrong.values()):
        raise UserError(f"{where}: {wrong[id(best[0])]}: leave it out, or give the layout that the file has.")
    best = [known for known in best if not wrong[id(known)]]
    first = best[0]
    if any(other.layout.fields != first.layout.fields for other in best):
        names = ", ".join(repr(other.layout.name) for other in best)
        raise UserError(f"{where}: its tensors do not show which of the layouts {names} it has: give layout= with one of them.")
    return first._replace(also=tuple(other.layout.name for other in best[1:]))


def _contradict(layout: Layout, fields: Mapping[str, Any]) -> str:
    for field, value in layout.fields.items():
        given = fields.get(field, value)
        if (FrozenDict(given) if isinstance(given, Mapping) else given) != value:
            return f"{field}={given!r} is not right for the layout {layout.name}, whose networks have {field}={value!r}"
    return ""


def _example(known: Recognised) -> str:
    names = [place.name for place in match_names(known.layout, known.model, list(known.shapes)).values() if place]
    return ", ".join([*names[:1], *names[-1:], "…"]) if names else "nothing"
