"""A data set as TensorFlow Datasets prepares it, of noise, written without TensorFlow."""

import io
import json
from pathlib import Path

import numpy as np
from PIL import Image

SIDE, SHARDS, IN_SHARD = 40, 3, 30


def write_set(folder: Path, images: list[list[bytes]] | None = None) -> None:
    """Writes `tiny/1.0.0`, whose label of an example is its number modulo 10.

    Args:
        images: encoded, of each file of the training split; by default PNGs in three files of some 150 kB.
    """
    from array_record.python.array_record_module import ArrayRecordWriter

    inside = folder / "tiny" / "1.0.0"
    inside.mkdir(parents=True)
    image = {"image": {"dtype": "uint8", "shape": {"dimensions": [str(SIDE), str(SIDE), "3"]}}}
    features = {
        "image": {**image, "pythonClassName": "tensorflow_datasets.core.features.image_feature.Image"},
        "label": {
            "classLabel": {"numClasses": "10"},
            "pythonClassName": "tensorflow_datasets.core.features.class_label_feature.ClassLabel",
        },
    }
    kind = "tensorflow_datasets.core.features.features_dict.FeaturesDict"
    (inside / "features.json").write_text(json.dumps({"featuresDict": {"features": features}, "pythonClassName": kind}))
    images = images or make_noise()
    split = {"name": "train", "numBytes": "450000", "shardLengths": [str(len(contents)) for contents in images]}
    split["filepathTemplate"] = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
    about = {"name": "tiny", "version": "1.0.0", "fileFormat": "array_record", "splits": [split]}
    (inside / "dataset_info.json").write_text(json.dumps(about))
    count = 0
    for shard, contents in enumerate(images):
        writer = ArrayRecordWriter(str(inside / f"tiny-train.array_record-{shard:05d}-of-{len(images):05d}"), "group_size:1")
        for content in contents:
            writer.write(make_example(content, count % 10))
            count += 1
        writer.close()


def make_noise() -> list[list[bytes]]:
    """Images of each of three files, as PNG."""

    def encode() -> bytes:
        buffer = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (SIDE, SIDE, 3), np.uint8)).save(buffer, "PNG")
        return buffer.getvalue()

    rng = np.random.default_rng(0)
    return [[encode() for _ in range(IN_SHARD)] for _ in range(SHARDS)]


def make_example(image: bytes, label: int) -> bytes:
    """A `tf.train.Example` of an image and a label below 128."""
    entries = field("image", field(1, field(1, image))), field("label", field(3, field(1, bytes([label]))))
    return field(1, b"".join(field(1, entry) for entry in entries))


def field(tag: int | str, content: bytes) -> bytes:
    """A field of a protocol buffer, or an entry of its map of features."""
    if isinstance(tag, str):
        return field(1, tag.encode()) + field(2, content)
    length, rest = b"", len(content)
    while rest > 127:
        length, rest = length + bytes([rest & 127 | 128]), rest >> 7
    return bytes([tag << 3 | 2]) + length + bytes([rest]) + content
