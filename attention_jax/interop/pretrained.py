"""Loads weights of other libraries into our networks in one call."""

import re
import sys
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from attention_jax import tree
from attention_jax.data.images.preprocessing import list_preprocessing
from attention_jax.errors import UserError
from attention_jax.interop.layout import Layout, Place, fill_variables, list_shapes, match_names
from attention_jax.interop.read_tensors import open_weights, select_weights
from attention_jax.interop.recognise import Recognised, recognise_layout
from attention_jax.models.registry import find_model


def load_pretrained(
    name: str,
    file: str | Path | None = None,
    num_classes: int | None = None,
    in_channels: int = 3,
    layout: str | Layout | None = None,
    weights: str | None = None,
    **fields: Any,
) -> Any:
    """Returns (model, variables) of the network `name` with a file's weights, ready for `model.apply(variables, images)`.

    "marian:FOLDER" alone returns a `Run` that translates text, see `open_marian`.

    Prints one line on stderr about the changes on the way: wrappers that were removed, a field that the layout sets,
    a fresh head, tensors that were folded or resized, half precision.

    Args:
        name: as for `create_model`.
        file: a .safetensors, an .npz, or a .pth, .pt or .th from any version of PyTorch; no code in it is run.
        num_classes: classes of the network; if the file has other classes, the head starts fresh, as `model.init` draws it from
            key 0. None takes the file's number.
        in_channels: channels of the images; the first kernel is summed over its colours for 1, and repeated for more than 3.
        layout: the name of a layout or `path/to/file.py:LAYOUT`; None recognises it.
        weights: "ema" or "params" if a file has both; None takes the average only if there is nothing else.
        **fields: fields of the network.

    Raises:
        UserError: a damaged file, or the file of another network; one message has all missing, extra and misshapen tensors.
    """
    if file is None or name.startswith("marian:"):
        if file is not None or not name.startswith("marian:") or num_classes or fields:
            raise UserError(
                f"load_pretrained({name!r}): give a network's name and a file, or 'marian:FOLDER' and nothing else."
            )
        from attention_jax.interop.marian_run import open_marian  # a run imports the training code

        return open_marian(name.removeprefix("marian:"))
    where, features = str(file), fields.pop("features", False)
    tensors, notes = select_weights(open_weights(file), where, weights)
    found = recognise_layout(name, tensors, where, layout, in_channels, **fields)
    model, shapes, defaults = found.model, found.shapes, find_model(name)[1]
    said = [f"{len(tensors)} tensors in the layout {' or '.join([found.layout.name, *found.also])}", *notes]
    said += [
        f"{key}={value!r} as this layout has it" for key, value in found.layout.fields.items() if defaults.get(key) != value
    ]

    said += describe_doubts(name, found, fields)
    places = match_names(found.layout, model, list(shapes))
    head = {path: place for path, place in places.items() if place and re.search(found.layout.head, path)}
    fresh: set[str] = set()
    if num_classes and not (head and hasattr(model, "num_classes")):
        raise UserError(
            f"num_classes={num_classes}: {name!r} has no head that the layout {found.layout.name} knows: leave it out."
        )
    if head and hasattr(model, "num_classes"):
        has = next((count_classes(place, tensors[place.name]) for place in head.values() if place.name in tensors), None)
        classes = num_classes or has
        if classes and classes != model.num_classes:
            model = model.clone(num_classes=classes)
            shapes = {path: (*shape[:-1], classes) if path in head else shape for path, shape in shapes.items()}
        if num_classes and num_classes != has:
            fresh = set(head)
            theirs_names = {place.name for place in head.values()}
            tensors = {key: array for key, array in tensors.items() if key not in theirs_names}
            said.append(f"a fresh head of {num_classes} classes in place of {has or 'none'}")
    kept = {path: shape for path, shape in shapes.items() if path not in fresh}
    flat, changes = fill_variables(found.layout, model, kept, tensors, where)
    if kinds := {str(array.dtype) for array in tensors.values()} & {"float16", "bfloat16"}:
        said.append(f"{' and '.join(sorted(kinds))} made float32")
    flat |= draw_parameters(model, fresh, in_channels) if fresh else {}
    print(f"{where}: {'; '.join([*said, *changes])}.", file=sys.stderr)
    if features:  # the network returns maps and lacks the head that files have
        model = model.clone(features=features)
        shapes = list_shapes(model, in_channels)
    return model, tree.nest_by_path({path: flat[path] for path in shapes})


def describe_doubts(name: str, found: Recognised, fields: Mapping[str, Any]) -> list[str]:
    """Returns what a user must know and a file cannot show: whose preprocessing it needs, and on which side option A pads."""
    said, layouts = [], (found.layout.name, *found.also)
    try:
        sources = list_preprocessing(name)
    except UserError:  # the name of a user's own network
        sources = ()
    if known := [source for source in sources if source.split("_")[0] in layouts] or list(sources):
        said.append(f"images as aj.preprocessing({name!r}, source={' or '.join(map(repr, known))}) has them")
    if getattr(found.model, "shortcut", None) == "A" and "shortcut" not in fields:
        said.append("option A with all zeros after the channels: give shortcut='A-centred' if its code pads on both sides")
    return said


def count_classes(place: Place, array: np.ndarray) -> int:
    """Returns the number of classes of a classifier's kernel or bias in another library's form."""
    return place.transform.take(np.broadcast_to(np.float32(0), array.shape)).shape[-1]


def draw_parameters(model: nn.Module, paths: Collection[str], in_channels: int = 3, seed: int = 0) -> dict[str, np.ndarray]:
    """Returns {path: array} for some of the parameters, as `model.init` draws them, and computes nothing else."""
    side = getattr(model, "image_size", 224)

    def draw(key: jax.Array) -> Mapping[str, jax.Array]:
        flat = tree.flatten_by_path(model.init(key, jnp.zeros((1, side, side, in_channels))))
        return {path: flat[path] for path in paths}

    return jax.device_get(jax.jit(draw)(jax.random.key(seed)))
