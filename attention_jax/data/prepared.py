"""Opens data sets that TensorFlow Datasets has prepared, without TensorFlow."""

import importlib
import types
from typing import Any

from attention_jax import storage
from attention_jax.data.array_records import StagedRecords
from attention_jax.data.staging import StagedFolder, open_staged_folder
from attention_jax.errors import UserError

_SMALL = 2**24  # bytes; what describes a data set has less


def open_staged(name: str, data_dir: str | None, cache_dir: str | None) -> StagedFolder | None:
    """Returns the remote folder of a data set, with what describes the set in its copy; None where nothing is staged."""
    if not cache_dir or not storage.is_remote(data_dir):
        return None
    folder = open_staged_folder(f"{data_dir}/{name.split(':')[0].split('/')[0]}", cache_dir)
    for file, about in folder.files.items():
        if ".array_record" not in file and about.size < _SMALL:
            folder.copy_small(file)
    return folder


def stage_records(records: Any, folder: StagedFolder) -> None:
    """Has a data source of TFDS, which was opened in the copy of a folder, read records that need not be there yet."""
    from tensorflow_datasets.core.data_sources import base

    records.data_source = StagedRecords(folder, base.file_instructions(records.dataset_info, records.split))


def open_builder(name: str, data_dir: str | None) -> Any:
    """Returns the builder of a data set that was prepared as ArrayRecord.

    The features.json of a data set may name classes from any module, and TFDS would import it; here only TFDS's own modules are
    imported. Raises ValueError for other modules, and the exceptions of TFDS.
    """
    import tensorflow_datasets
    from tensorflow_datasets.core.features import feature

    if storage.is_remote(data_dir):
        storage.RemoteFolder(str(data_dir))  # raises if it does not answer; TFDS would wait without a message
    feature.importlib = types.SimpleNamespace(import_module=_import_own)
    try:
        builder = tensorflow_datasets.builder(name, data_dir=data_dir, file_format="array_record")
        _ = builder.info.features
    finally:
        feature.importlib = importlib
    return builder


def find_image_and_label(name: str, info: Any) -> tuple[str, str]:
    """Returns the names of a data set's image and class features: its supervised keys, else the only pair.

    Raises UserError if there are none, or several pairs.
    """
    from tensorflow_datasets import features

    images = [key for key, feature in info.features.items() if isinstance(feature, features.Image)]
    labels = [key for key, feature in info.features.items() if isinstance(feature, features.ClassLabel)]
    pairs = [(image, label) for image in images for label in labels]
    if info.supervised_keys in pairs:
        return info.supervised_keys
    if len(pairs) != 1:
        raise UserError(f"data.source=tfds: {name!r} is no classification set; it has {', '.join(info.features)}.")
    return pairs[0]


def _import_own(name: str) -> types.ModuleType:
    if not name.startswith("tensorflow_datasets."):
        raise ValueError(f"its features.json names a class of {name}, which is not imported unless you have done so before")
    return importlib.import_module(name)
