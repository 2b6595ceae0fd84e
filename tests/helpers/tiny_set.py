"""A data set as TensorFlow Datasets prepares it, of noise, written without TensorFlow."""

import io
import itertools
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

SIDE, SHARDS, IN_SHARD = 40, 3, 30


def write_set(folder: Path, images: list[list[bytes]] | None = None) -> None:
    """Writes `tiny/1.0.0`, whose label of an example is its number modulo 10.

    Args:
        images: encoded, of each file of the training split; by default PNGs in three files of some 150 kB.
    """
    count, labelled = itertools.count(), []
    for contents in images or make_noise():
        labelled.append([(content, next(count) % 10) for content in contents])
    write_splits(folder / "tiny" / "1.0.0", {"train": labelled}, classes=10, side=SIDE)


def write_splits(folder: Path, splits: Mapping[str, list[list[tuple[bytes, int]]]], classes: int, side: int | None) -> None:
    """Writes a data set, whose name and version are those of `folder`, as ArrayRecord.

    Args:
        splits: {name: (encoded image, label) of each file of the split}.
        side: pixels of each image's sides; None if images differ.
    """
    from array_record.python.array_record_module import ArrayRecordWriter

    folder.mkdir(parents=True)
    sides = str(side or -1)
    image = {"image": {"dtype": "uint8", "shape": {"dimensions": [sides, sides, "3"]}}}
    features = {
        "image": {**image, "pythonClassName": "tensorflow_datasets.core.features.image_feature.Image"},
        "label": {
            "classLabel": {"numClasses": str(classes)},
            "pythonClassName": "tensorflow_datasets.core.features.class_label_feature.ClassLabel",
        },
    }
    kind = "tensorflow_datasets.core.features.features_dict.FeaturesDict"
    (folder / "features.json").write_text(json.dumps({"featuresDict": {"features": features}, "pythonClassName": kind}))
    name, described = folder.parent.name, []
    for split, files in splits.items():
        size = sum(len(content) for contents in files for content, _ in contents)
        about = {"name": split, "numBytes": str(size), "shardLengths": [str(len(contents)) for contents in files]}
        described.append({**about, "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"})
        for shard, contents in enumerate(files):
            path = folder / f"{name}-{split}.array_record-{shard:05d}-of-{len(files):05d}"
            writer = ArrayRecordWriter(str(path), "group_size:1")
            for content, label in contents:
                writer.write(make_example(content, label))
            writer.close()
    about = {"name": name, "version": folder.name, "fileFormat": "array_record", "splits": described}
    (folder / "dataset_info.json").write_text(json.dumps(about))


def make_noise() -> list[list[bytes]]:
    """Images of each of three files, as PNG."""

    def encode() -> bytes:
        buffer = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (SIDE, SIDE, 3), np.uint8)).save(buffer, "PNG")
        return buffer.getvalue()

    rng = np.random.default_rng(0)
    return [[encode() for _ in range(IN_SHARD)] for _ in range(SHARDS)]


def make_example(image: bytes, label: int) -> bytes:
    """A `tf.train.Example` of an image and a label."""
    entries = field("image", field(1, field(1, image))), field("label", field(3, field(1, varint(label))))
    return field(1, b"".join(field(1, entry) for entry in entries))


def field(tag: int | str, content: bytes) -> bytes:
    """A field of a protocol buffer, or an entry of its map of features."""
    if isinstance(tag, str):
        return field(1, tag.encode()) + field(2, content)
    return bytes([tag << 3 | 2]) + varint(len(content)) + content


def varint(number: int) -> bytes:
    """A number as protocol buffers have it, seven bits a byte."""
    digits = b""
    while number > 127:
        digits, number = digits + bytes([number & 127 | 128]), number >> 7
    return digits + bytes([number])
