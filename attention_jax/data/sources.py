"""Where examples come from: random access by index, nothing else.

A source has `len(source)`, `source[i] -> {"image": uint8 [H, W, C] or encoded bytes, "label": int}` and `num_classes`.
Optional: `label_names`, `name(i)` (what a message calls example i) and, of encoded images, `channels` (1 or 3, else 3).
A data set of your own is a function `make(split, **args)` that returns one, named `path/to/file.py:make`.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from attention_jax import far
from attention_jax.data import embedded
from attention_jax.data.arrays import ArraySource
from attention_jax.data.decode import BrokenImage
from attention_jax.data.files import folder, npz
from attention_jax.errors import UserError, one_sentence
from attention_jax.plugins import load_object


class Source(Protocol):
    """Random access to examples."""

    num_classes: int

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, Any]: ...


def digits(split: str, channels: int = 1) -> ArraySource:
    """UCI digits (1,797 images of 8x8 pixels, 10 classes), which scikit-learn carries; splits "train" and "test".

    Three equal `channels` are for what needs colour images, such as RandAugment's operation on colour.
    """
    images, labels = embedded.digits(split)
    return ArraySource(images.repeat(channels, -1), labels, num_classes=10, label_names=[str(i) for i in range(10)])


def tfds(split: str, name: str, data_dir: str | None = None) -> Source:
    """A classification set of TensorFlow Datasets that was prepared as ArrayRecord; read without TensorFlow.

    Args:
        split: as TFDS spells it, e.g. "train[:45000]".
        name: of the data set, e.g. "cifar10".
        data_dir: the folder that holds it; `gs://` addresses need the extra `gcs`.
    """
    import tensorflow_datasets

    if far.is_far(data_dir):
        far.Folder(str(data_dir))  # says so when it does not answer, where the readers beneath would wait in silence
    try:
        builder = tensorflow_datasets.builder(name, data_dir=data_dir, file_format="array_record")
        image, label = _image_and_label(name, builder.info)
        # Whoever crops decodes, at the scale that the crop needs.
        records = builder.as_data_source(split=split, decoders={image: tensorflow_datasets.decode.SkipDecoding()})
        try:
            _ = records[0]
        except ImportError:  # tfds.testing.mock_data encodes what it pretends with TensorFlow, or else leaves it decoded
            records = builder.as_data_source(split=split)
        return _TfdsSource(records, builder.info.features, image, label)
    except (KeyError, ImportError, ValueError, OSError, AssertionError, NotImplementedError) as error:
        raise UserError(
            f"data.source=tfds: {name!r} split {split!r} cannot be read from {data_dir or '~/tensorflow_datasets'} "
            f"({one_sentence(error)}): prepare it there with python -m attention_jax prepare {name}, or point "
            "data.args.data_dir to the folder that has it."
        ) from error


def _image_and_label(name: str, info: Any) -> tuple[str, str]:
    """Names of a data set's image and class features: its supervised keys, else the only ones of their kind."""
    from tensorflow_datasets import features

    images = [key for key, feature in info.features.items() if isinstance(feature, features.Image)]
    labels = [key for key, feature in info.features.items() if isinstance(feature, features.ClassLabel)]
    pairs = [(image, label) for image in images for label in labels]
    if info.supervised_keys in pairs:
        return info.supervised_keys
    if len(pairs) != 1:
        raise UserError(f"data.source=tfds: {name!r} is no classification set; it has {', '.join(info.features)}.")
    return pairs[0]


class _TfdsSource:
    def __init__(self, records: Sequence[Mapping[str, Any]], features: Mapping[str, Any], image: str, label: str):
        self._records, self._image, self._label = records, image, label
        self.channels = 1 if features[image].shape[-1] == 1 else 3
        self.num_classes = features[label].num_classes
        self.label_names = tuple(features[label].names)

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        record = self._records[index]
        return {"image": record[self._image], "label": np.int32(record[self._label])}


SOURCES = {"digits": digits, "folder": folder, "npz": npz, "tfds": tfds}


def open_source(source: str, split: str, args: Mapping[str, Any]) -> Source:
    """The source that `data.source` names, for one split. Raises UserError when it cannot be read or is empty."""
    make = load_object(source, SOURCES, "data source")
    try:
        opened = make(split, **args)
        length = len(opened)
        first = opened[0]["image"] if length else b""
    except UserError:
        raise
    except BrokenImage:
        return opened  # its loader deals with it
    except Exception as error:
        raise UserError(f"data.source={source}: split {split!r} cannot be read ({type(error).__name__}: {error}).") from error
    if not length:
        raise UserError(f"data.source={source}: split {split!r} is empty.")
    if not isinstance(first, bytes) and (getattr(first, "dtype", None) != np.uint8 or first.ndim != 3):
        kind = getattr(first, "dtype", type(first))
        raise UserError(f"data.source={source}: image 0 is {kind}; give uint8 [H, W, C] or encoded bytes.")
    return opened
