"""A data set as TensorFlow Datasets prepares it, of noise, written without TensorFlow."""

import io
import json
from pathlib import Path

import numpy as np
from PIL import Image

SIDE, SHARDS, IN_SHARD = 40, 3, 30


def write_set(folder: Path) -> None:
    """Writes `tiny/1.0.0` with a training split in three files of some 150 kB; a label is its example's number modulo 10."""
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
    split = {"name": "train", "numBytes": "450000", "shardLengths": [str(IN_SHARD)] * SHARDS}
    split["filepathTemplate"] = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
    about = {"name": "tiny", "version": "1.0.0", "fileFormat": "array_record", "splits": [split]}
    (inside / "dataset_info.json").write_text(json.dumps(about))
    rng = np.random.default_rng(0)
    for shard in range(SHARDS):
        writer = ArrayRecordWriter(str(inside / f"tiny-train.array_record-{shard:05d}-of-{SHARDS:05d}"), "group_size:1")
        for number in range(IN_SHARD):
            buffer = io.BytesIO()
            Image.fromarray(rng.integers(0, 256, (SIDE, SIDE, 3), np.uint8)).save(buffer, "PNG")
            writer.write(make_example(buffer.getvalue(), (shard * IN_SHARD + number) % 10))
        writer.close()


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
