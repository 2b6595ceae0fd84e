"""Exports a run as a folder that other libraries load: safetensors in the names of timm, torchvision or ours, config, card."""

import dataclasses
import filecmp
import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import numpy as np

from attention_jax.config.code import CODE
from attention_jax.config.config import config_to_json
from attention_jax.config.plugins import strip_origin
from attention_jax.errors import UserError
from attention_jax.interop.layout import name_tensors
from attention_jax.interop.model_card import (
    CARD,
    CONFIG,
    RUN_CONFIG,
    WEIGHTS,
    Export,
    describe_export,
    render_card,
    simplify_field,
)
from attention_jax.interop.recognise import NATIVE, list_layouts
from attention_jax.load import load_run
from attention_jax.models.registry import create_model
from attention_jax.storage import is_remote

FORMATS = ("timm", "torchvision", "native")
# {our name: the library's name}; tests/peers compares them with the libraries' own lists.
_NAMES: dict[str, tuple[tuple[str, str], ...]] = {
    "timm": (
        (r"convnext_(tiny|small|base|large|xlarge)|(deit|vit|swin)_.+|(tf_)?efficientnet_.+", r"\g<0>"),
        (r"resnet(18|26|34|50|101|152|200)d?|resnet(50|101|152)c|resnet50_gn|resnetrs\d+|wide_resnet(50|101)_2", r"\g<0>"),
        (r"(se)?resnext(50_32x4d|101_(32x4d|32x8d|64x4d))|resnext(101_32x(16|32)d|50d_32x4d)|senet154", r"\g<0>"),
        (r"seresnet(18|34|50|101|152|152d|200d|269d)|seresnext(26d_32x4d|101d_32x8d)|ecaresnet(50|101|200|269)d", r"\g<0>"),
    ),
    "torchvision": (
        (r"resnet(18|34|50|101|152)|resnext50_32x4d|resnext101_(32x8d|64x4d)|wide_resnet(50|101)_2", r"\g<0>"),
        (r"convnext_(tiny|small|base|large)|efficientnet_b[0-7]", r"\g<0>"),
        (r"(?:vit|deit)_([bl])(?:ase|arge)_patch(16|32)_\d+", r"vit_\1_\2"),
        (r"swin_([tsb])(?:iny|mall|ase)_patch4_window7_224", r"swin_\1"),
    ),
}
# Fields without effect in evaluation are left out; of the others, those that the library's function takes: {class: {ours:
# theirs}}.
_FREE = {"num_classes", "drop_path_rate", "drop_path_by", "dropout_rate", "kernel_init", "zero_gamma", "head_init_scale"}
_FREE |= {"norm_group_size", "norm_momentum", "norm_running_var", "dtype", "parent", "name"}
_VIT = dict(image_size="img_size", patch_size="patch_size", layers="depth", width="embed_dim", heads="num_heads")
_SWIN = dict(patch_size="patch_size", window_size="window_size", stage_sizes="depths", width="embed_dim", heads="num_heads")
_ARGUMENTS: dict[tuple[str, str], dict[str, str]] = {
    ("timm", "VisionTransformer"): _VIT,
    ("timm", "SwinTransformer"): _SWIN,
    ("timm", "ConvNeXt"): dict(stage_sizes="depths", widths="dims", patch_size="patch_size"),
    ("timm", "ResNet"): dict(stage_sizes="layers", widths="channels"),
    ("timm", "EfficientNet"): dict(norm_epsilon="bn_eps"),
    ("torchvision", "VisionTransformer"): dict(image_size="image_size"),  # an argument: the library's names leave it out
}


def express_name(format: str, name: str) -> str | None:
    """Returns the library's name of one of our networks; None if the library does not have the network."""
    return next((re.sub(ours, theirs, name) for ours, theirs in _NAMES[format] if re.fullmatch(ours, name)), None)


def express_model(format: str, name: str, model: nn.Module, image_shape: tuple[int, ...]) -> Export:
    """Returns the name and arguments of a network in a format. Raises UserError if the format cannot express it."""
    if format == "native":
        return Export(name, {}, NATIVE)

    def refuse(reason: str) -> UserError:
        return UserError(f"--format={format}: {reason}: give --format=native.")

    architecture = express_name(format, name)
    layout = next((known for known in list_layouts(name) if known.name == format), None)
    if architecture is None or layout is None:
        raise refuse(f"{format} has no network {name!r}")
    reference = create_model(name, **layout.fields)
    known, arguments = _ARGUMENTS.get((format, type(model).__name__), {}), dict[str, Any]()
    names = [field.name for field in dataclasses.fields(reference)]  # type: ignore[arg-type]  # a module is one
    for field in (name for name in names if name not in _FREE):
        given, right = (simplify_field(getattr(net, field)) for net in (model, reference))
        if given == right or (field == "layer_scale" and None not in (given, right)):
            continue
        if field not in known:
            raise refuse(f"model.{field}={given!r} cannot be expressed there, where {architecture} has {right!r}")
        arguments[known[field]] = given
    arguments |= _fit_images(format, model, image_shape, refuse)
    return Export(architecture, dict(sorted(arguments.items())), layout)


def _fit_images(format: str, model: Any, image_shape: tuple[int, ...], refuse: Any) -> dict[str, Any]:
    """Returns the arguments for images of this shape. Raises UserError if the library computes something else for them."""
    height, width, channels = image_shape
    kind, timm = type(model).__name__, format == "timm"
    if channels != 3 and not timm:
        raise refuse(f"its networks read 3 channels, and this one {channels}")
    arguments: dict[str, Any] = {} if channels == 3 else {"in_chans": channels}
    if kind == "VisionTransformer" and (height, width) != (model.image_size,) * 2:
        if not timm:
            raise refuse(f"its ViT takes images of {model.image_size}x{model.image_size}, and this run's are {height}x{width}")
        arguments |= dict(dynamic_img_size=True, dynamic_img_pad=True)
    if kind == "VisionTransformer" and not timm and model.image_size != 224:
        arguments["image_size"] = model.image_size
    if kind == "SwinTransformer" and not timm and (height % model.patch_size or width % model.patch_size):
        raise refuse(f"its Swin leaves out what {model.patch_size} does not divide of a side, as in images of {height}x{width}")
    if kind == "SwinTransformer" and timm:
        stride = model.patch_size * 2 ** (len(model.stage_sizes) - 1) * model.window_size
        if height % stride or width % stride:
            # timm shifts before it pads, and shrinks a window that is larger than the map.
            raise refuse(f"its Swin pads images of {height}x{width} otherwise; sides that {stride} divides are the same")
        arguments["img_size"] = [height, width]
    return arguments


def export_run(
    workdir: str | Path,
    output: str | Path,
    format: str,
    weights: str | None = None,
    average: int = 1,
    licence: str | None = None,
    trust_code: bool = False,
) -> bool:
    """Writes a run's network as a folder; returns False if the folder already had the same content.

    The folder has `model.safetensors`, `config.json`, a card, `README.md`, and the run's config and code, if any, to train it
    again.

    Args:
        workdir, weights, average, trust_code: as in `load_run`.
        output: the folder; it appears complete or not at all.
        format: one of `FORMATS`.
        licence: licence of the weights, for config and card; None writes that none is stated.

    Raises:
        UserError: the format cannot express the network, or the folder has other content.
    """
    if format not in FORMATS:
        raise UserError(f"format={format!r} is not one of {', '.join(map(repr, FORMATS))}.")
    if is_remote(output):
        raise UserError(f"{output} is remote: give a folder on this machine, and copy it from there.")
    folder = Path(output).expanduser()
    run = load_run(workdir, weights, average, trust_code)
    if run.config.task != "classification":
        raise UserError(f"{workdir}: export is for image networks, and this run's task is {run.config.task!r}: use load_run.")
    shape = tuple(run.config.data.image_shape)
    export = express_model(format, strip_origin(run.config.model.name), run.model, shape)
    tensors = name_tensors(export.layout, run.model, run.variables)
    if format == "torchvision" and type(run.model).__name__ == "SwinTransformer":
        tensors |= _make_relative_indices(tensors, run.model.window_size)  # type: ignore[attr-defined]  # a Swin's
    about = describe_export(run, export, average, licence)
    partial = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    try:
        partial.mkdir(parents=True)
        write_safetensors(partial / WEIGHTS, tensors)
        (partial / CONFIG).write_text(json.dumps(about, indent=1, ensure_ascii=False) + "\n", "utf-8")
        (partial / RUN_CONFIG).write_text(config_to_json(run.config) + "\n", "utf-8")
        (partial / CARD).write_text(render_card(run, export, about), "utf-8")
        if CODE in run.assets:  # the user's code, which makes the network
            (partial / CODE).write_bytes(run.assets[CODE])
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            if not _is_same(partial, folder):
                raise UserError(f"{folder} exists and has other content: give another --output, or remove it.")
            return False
        partial.rename(folder)
    except OSError as error:
        raise UserError(f"{folder} could not be written ({error.strerror}): give another --output.") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return True


def _is_same(new: Path, old: Path) -> bool:
    names = [path.name for path in new.iterdir()]
    return old.is_dir() and {path.name for path in old.iterdir()} == {*names} == {*filecmp.cmpfiles(new, old, names, False)[0]}


def _make_relative_indices(tensors: Mapping[str, np.ndarray], window: int) -> dict[str, np.ndarray]:
    """Computes, for every pair of positions, its row in the table of biases; torchvision stores this beside each table."""
    y, x = np.divmod(np.arange(window**2), window)
    index = (y[:, None] - y + window - 1) * (2 * window - 1) + x[:, None] - x + window - 1
    tables = [name for name in tensors if name.endswith("relative_position_bias_table")]
    return {name.replace("bias_table", "index"): index.ravel().astype(np.int64) for name in tables}


def write_safetensors(path: str | Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Writes {name: array} of float32 or int64 as a .safetensors file (github.com/huggingface/safetensors)."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    ordered = sorted(tensors, key=lambda name: (-tensors[name].itemsize, name))  # every tensor begins at a multiple of its size
    end = 0
    for name in ordered:
        array = tensors[name]
        begin, end = end, end + array.nbytes
        kind = {"float32": "F32", "int64": "I64"}[array.dtype.name]
        header[name] = {"dtype": kind, "shape": list(array.shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in ordered:
            file.write(np.ascontiguousarray(tensors[name], tensors[name].dtype.newbyteorder("<")).data)
