"""Opens data sets that TensorFlow Datasets has prepared, without TensorFlow."""

import importlib
import types
from typing import Any

from attention_jax import storage


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


def _import_own(name: str) -> types.ModuleType:
    if not name.startswith("tensorflow_datasets."):
        raise ValueError(f"its features.json names a class of {name}, which is not imported unless you have done so before")
    return importlib.import_module(name)
