"""Where examples come from: random access by index, nothing else.

A source has `len(source)`, `source[i] -> {"image": uint8 [H, W, C], "label": int}` and `num_classes`; `label_names` is
optional. A data set of your own is a function `make(split, **args)` that returns one, named `path/to/file.py:make`.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from attention_jax.data import embedded
from attention_jax.errors import UserError, one_sentence, require
from attention_jax.plugins import load_object


class Source(Protocol):
    """Random access to examples."""

    num_classes: int

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, Any]: ...


class ArraySource:
    """Images and labels that are in memory.

    Args:
        images: uint8 [N, H, W, C].
        labels: integers [N] from 0.
        num_classes: K; by default the largest label + 1.
        label_names: a name for each class.
    """

    def __init__(self, images: np.ndarray, labels: np.ndarray, num_classes: int | None = None, label_names: Sequence[str] = ()):
        if images.dtype != np.uint8 or images.ndim != 4:
            raise UserError(f"ArraySource: images are {images.dtype} {images.shape}; give uint8 of shape [N, H, W, C].")
        if len(images) != len(labels):
            raise UserError(f"ArraySource: {len(images)} images but {len(labels)} labels; give one label an image.")
        self.images, self.labels = images, np.asarray(labels, np.int32)
        self.num_classes = num_classes or (int(self.labels.max()) + 1 if len(labels) else 0)
        self.label_names = tuple(label_names)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"image": self.images[index], "label": self.labels[index]}


def digits(split: str) -> ArraySource:
    """UCI digits (1,797 images of 8x8 pixels, 10 classes), which scikit-learn carries; splits "train" and "test"."""
    images, labels = embedded.digits(split)
    return ArraySource(images, labels, num_classes=10, label_names=[str(i) for i in range(10)])


def tfds(split: str, name: str, data_dir: str | None = None) -> Source:
    """A classification set of TensorFlow Datasets that was prepared as ArrayRecord; read without TensorFlow.

    Args:
        split: as TFDS spells it, e.g. "train[:45000]".
        name: of the data set, e.g. "cifar10".
        data_dir: the folder that holds it; `gs://` addresses need the extra `gcs`.
    """
    import tensorflow_datasets

    if str(data_dir).startswith("gs://"):
        require("gcsfs", "gcs", f"data.args.data_dir={data_dir}")
    try:
        builder = tensorflow_datasets.builder(name, data_dir=data_dir, file_format="array_record")
        records = builder.as_data_source(split=split)
        return _TfdsSource(records, builder.info.features["label"])
    except (KeyError, ImportError, ValueError, OSError, AssertionError, NotImplementedError) as error:
        raise UserError(
            f"data.source=tfds: {name!r} split {split!r} cannot be read from {data_dir or '~/tensorflow_datasets'} "
            f"({one_sentence(error)}): prepare it there as ArrayRecord, or point data.args.data_dir to the folder that has it."
        ) from error


class _TfdsSource:
    def __init__(self, records: Sequence[Mapping[str, Any]], label_feature: Any):
        self._records = records
        self.num_classes = label_feature.num_classes
        self.label_names = tuple(label_feature.names)

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        record = self._records[index]
        return {"image": record["image"], "label": np.int32(record["label"])}


SOURCES = {"digits": digits, "tfds": tfds}


def open_source(source: str, split: str, args: Mapping[str, Any]) -> Source:
    """The source that `data.source` names, for one split. Raises UserError when it cannot be read or is empty."""
    make = load_object(source, SOURCES, "data source")
    try:
        opened = make(split, **args)
        length = len(opened)
        first = opened[0] if length else None
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"data.source={source}: split {split!r} cannot be read ({type(error).__name__}: {error}).") from error
    if first is None:
        raise UserError(f"data.source={source}: split {split!r} is empty.")
    image = first["image"]
    if getattr(image, "dtype", None) != np.uint8 or image.ndim != 3:
        raise UserError(f"data.source={source}: image 0 is {getattr(image, 'dtype', type(image))}; give uint8 [H, W, C].")
    return opened
