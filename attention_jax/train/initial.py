"""The weights that a run begins with if `init_from` names a source: a run, one of its checkpoints, or a file of weights.

The source is read once, before the first step: the run saves its initial weights as its checkpoint 0 and their record as
`init.json`, and never needs the source again.
"""

import dataclasses
import hashlib
import json
import logging
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from ml_collections import ConfigDict

from attention_jax import storage, tree
from attention_jax.config.code import CODE
from attention_jax.data.fingerprint import DATA
from attention_jax.distributed.mesh import is_main_process
from attention_jax.errors import UserError
from attention_jax.interop.layout import Layout, fill_variables, match_names
from attention_jax.interop.read_tensors import open_weights, select_weights
from attention_jax.interop.recognise import NATIVE, recognise_layout
from attention_jax.models.registry import FACTS
from attention_jax.tasks.base import Task
from attention_jax.train import remote_runs, restore
from attention_jax.train.step import State

log = logging.getLogger(__name__)
INIT = "init.json"  # file name in a workdir, and among a checkpoint's assets
LABELS = "labels.json"
_FILES = (".safetensors", ".npz", ".pth", ".pt", ".th", ".bin", ".tar")  # at a URI, the ending of the name must tell


@dataclasses.dataclass(frozen=True)
class WeightSource:
    """Weights to begin with.

    Attributes:
        path: path of the run's step, or of the file.
        layout: layout of the tensors' names.
        tensors: {name: array}.
        assets: assets of a run.
        about: {"sha256": hash of the file or of the run's checksums, and further facts to keep}.
    """

    path: str
    layout: Layout
    tensors: Mapping[str, np.ndarray]
    assets: Mapping[str, bytes]
    about: Mapping[str, Any]


def read_initial_weights(
    config: ConfigDict, task: Task, model: nn.Module, state: State
) -> tuple[dict[str, jax.Array], dict[str, bytes]]:
    """Returns ({path: array} for `create_state`, {"init.json": the origin of each array}) and logs the origins; collective.

    A parameter that the source lacks begins as it would without a source; so does the classifier if the classes are others.
    Positions and relative biases are interpolated to the network's size.

    Args:
        state: shapes and shardings.

    Raises:
        UserError: there is no source, it is of another network, or its arrays have other shapes.
    """
    spec = config.init_from.replace("{seed}", str(config.seed))
    where = f"init_from={spec}"
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    leaves = tree.flatten_by_path(variables)
    shapes = {path: leaf.shape for path, leaf in leaves.items()}
    source = restore.call_together(lambda: _open_source(spec, where, config, model))
    _refuse_other_tokens(where, task.assets(config), source.assets)

    places = match_names(source.layout, model, list(shapes))
    names = {path: place.name for path, place in places.items() if place and place.name in source.tensors}
    classifier = _list_classifier(config, task, shapes) & names.keys()
    right = {path: place.transform.shape_of(shapes[path]) for path, place in places.items() if place and path in names}
    other_classes = _name_other_classes(task.assets(config), source.assets) or any(
        source.tensors[names[path]].shape != right[path] for path in classifier
    )
    kept = {path: shape for path, shape in shapes.items() if path in names and not (other_classes and path in classifier)}
    new = [path for path in shapes if path not in kept]
    if len(kept) < len(shapes) / 2:
        raise UserError(
            f"{where}: {source.path} has {len(kept)} of this network's {len(shapes)} arrays, and lacks for example "
            f"{_shorten(new, 3)}: give weights of {config.model.name!r}, or of a network that shares most of its layers."
        )
    used = {names[path] for path in kept}
    tensors = {name: source.tensors[name] for name in used}
    arrays, notes = fill_variables(source.layout, model, kept, tensors, f"{where}: {source.path}")
    is_ignored = re.compile("|".join(source.layout.ignored) or "$^").search
    left_out = [name for name in source.tensors if name not in used and not is_ignored(name)]
    record = {
        "init_from": spec,
        "path": source.path,
        "layout": source.layout.name,
        **source.about,
        "arrays": len(kept),
        "new": new,
        "left_out": left_out,
        "notes": notes,
    }
    parts = [f"new: {_shorten(new)}{' (other classes)' * bool(other_classes)}" if new else ""]
    parts += [f"left out: {_shorten(left_out)}" if left_out else "", *source.about.get("wrappers", ()), *notes]
    text = "; ".join(
        [f"{len(kept)} of {len(shapes)} arrays are from {source.path} ({source.layout.name})", *filter(None, parts)]
    )
    if is_main_process():
        log.info("%s: %s.", where, text)
    placed = {path: _place_array(array, leaves[path]) for path, array in arrays.items()}
    return placed, {INIT: json.dumps(record, indent=1).encode()}


def _place_array(array: np.ndarray, leaf: jax.ShapeDtypeStruct) -> jax.Array:
    """Returns the array on the devices; the processes that own them fill it, and the host keeps only the copy that was read."""
    return jax.make_array_from_callback(leaf.shape, leaf.sharding, lambda index: array[index].astype(leaf.dtype, copy=False))


def _shorten(names: Sequence[str], number: int = 6) -> str:
    rest = len(names) - number
    return ", ".join(names[:number]) + (f" and {rest} more" if rest > 0 else "")


def _list_classifier(config: ConfigDict, task: Task, shapes: Mapping[str, tuple[int, ...]]) -> set[str]:
    """Lists the paths of the arrays whose shapes depend on the number of classes."""
    if not (number := config.model.get("num_classes")):
        return set()
    other = config.copy_and_resolve_references()
    with other.unlocked():
        other.model.num_classes = number + 1
    inputs = [jax.ShapeDtypeStruct(each.shape, each.dtype) for each in task.example_inputs(config)]
    variables = jax.eval_shape(task.model(other).init, jax.random.key(0), *inputs)
    return {path for path, leaf in tree.flatten_by_path(variables).items() if path in shapes and leaf.shape != shapes[path]}


def _name_other_classes(ours: Mapping[str, bytes], theirs: Mapping[str, bytes]) -> bool:
    return LABELS in ours and LABELS in theirs and json.loads(ours[LABELS]) != json.loads(theirs[LABELS])


def _refuse_other_tokens(where: str, ours: Mapping[str, bytes], theirs: Mapping[str, bytes]) -> None:
    """Raises UserError for a run with another tokenizer, on which its arrays depend."""
    ignored = (LABELS, CODE, DATA, INIT)
    differ = [name for name in theirs if name not in ignored and theirs[name] != ours.get(name, theirs[name])]
    if differ:
        raise UserError(f"{where}: its {' and '.join(differ)} is not this run's: give data.tokenizer that file.")


def _open_source(spec: str, where: str, config: ConfigDict, model: nn.Module) -> WeightSource:
    if not storage.is_remote(spec):
        path = Path(spec).expanduser().resolve()
        if not path.exists():
            raise UserError(f"{where}: there is no such file or folder: give a run's workdir, one of its steps, or weights.")
        return _open_run(path, where) if path.is_dir() else _open_file(path, where, config, model)
    if not spec.endswith(_FILES):
        return dataclasses.replace(_open_run(remote_runs.download_run(spec), where), path=spec)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / spec.rpartition("/")[2]
        path.write_bytes(storage.read_remote_file(spec, where))
        return dataclasses.replace(_open_file(path, where, config, model), path=spec)


def _open_file(path: Path, where: str, config: ConfigDict, model: nn.Module) -> WeightSource:
    tensors, notes = select_weights(open_weights(path), where)
    layout = NATIVE  # the only layout for networks of other tasks
    if config.task == "classification":
        fields = {name: value for name, value in config.model.to_dict().items() if name not in ("name", *FACTS)}
        channels = config.data.image_shape[-1]
        layout = recognise_layout(config.model.name, tensors, where, in_channels=channels, **fields).layout
    for field, value in layout.fields.items():
        if getattr(model, field) != value:
            raise UserError(
                f"{where}: its layout {layout.name} is that of networks with {field}={value!r}, and model.{field} is "
                f"{getattr(model, field)!r}: give --config.model.{field}={value}."
            )
    with path.open("rb") as file:
        facts = {"sha256": hashlib.file_digest(file, "sha256").hexdigest(), "wrappers": notes}
    return WeightSource(str(path), layout, tensors, {}, facts)


def _open_run(path: Path, where: str) -> WeightSource:
    """Returns the averaged weights of a run if it has an average, as `load_run` does."""
    try:
        state, about, folder = restore.read_newest(path)
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
    weights = "params" if state.get("ema") is None else "ema"
    variables = state["ema"] if weights == "ema" else {kind: state.get(kind) or {} for kind in ("params", "batch_stats")}
    checksums = json.dumps(about["checksums"], sort_keys=True).encode()
    facts = {"sha256": hashlib.sha256(checksums).hexdigest(), "step": about["step"], "weights": weights}
    return WeightSource(str(folder), NATIVE, tree.flatten_by_path(variables), about["assets"], facts)
