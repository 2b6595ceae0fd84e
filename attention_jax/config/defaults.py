"""The start of a config file: every field that has a default, with this default.

    config = defaults.classification()
    config.batch_size = 128
    config.model.update(name="resnet20", num_classes=10)

A duration is absent until the file gives it in one of its units; `complete_config` adds the others.
"""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from attention_jax.config.accepted import OPEN, REQUIRED, Field
from attention_jax.config.fields import get_own_fields, merge_fields


def classification() -> ConfigDict:
    """Returns the start of a config for image classification."""
    return make_defaults("classification")


def imagenet(size: int = 224, eval_resize: int = 256) -> ConfigDict:
    """Returns the start of a config for ImageNet-1k: crops of 8 to 100 % of the area, flips, evaluation at the centre.

    `data.args.data_dir`, here DIR, holds ImageNet as ArrayRecord (`./launch.sh prepare imagenet2012 --data_dir=DIR`); None is
    ~/tensorflow_datasets. For DIR/train and DIR/val with a folder per class, as in torchvision: --config.data.source=folder
    --config.data.args="{'path': 'DIR'}" --config.data.eval_split=val. At gs://… also give --config.data.cache_dir: each host
    copies its 155 GB there on first use, see docs/clusters.md.

    Args:
        size: pixels a side of the network's images.
        eval_resize: pixels of the shorter side of the image whose centre is evaluated.
    """
    config = classification()
    config.model.num_classes = 1000
    config.data.update(source="tfds", args={"name": "imagenet2012", "data_dir": None}, eval_split="validation", threads=16)
    config.data.update(crop="random_resized", flip=True, interpolation="bicubic", eval_resize=eval_resize)
    config.data.update(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    config.data.update(image_shape=(size, size, 3), num_examples=1_281_167)
    return config


def cued_digits() -> ConfigDict:
    """Returns a config with two digits and a cue to one of them, and a network that is just large enough to read digits.

    The network has one basic block in each of two stages of 16 and 32 filters.
    """
    config = classification()
    config.batch_size = 100
    config.total_steps = 500
    config.model.update(name="resnet20", stage_sizes=(1, 1), widths=(16, 32))
    config.data.update(
        source="cued_digits", args={"key": "colour", "canvas": (10, 32)}, mean=(0.13, 0.13, 0.11), std=(0.27, 0.27, 0.24)
    )
    config.optimizer.update(name="adamw", weight_decay=0.01)
    config.schedule.update(name="cosine", learning_rate=3e-3, warmup_steps=50)
    config.evaluation.update(every_steps=50, batch_size=200)
    config.checkpoint.update(every_steps=500, keep_last=1)
    config.logging.update(every_steps=50, tensorboard=False)
    return config


def cifar10() -> ConfigDict:
    """Returns the recipe of He et al. 2016, Section 4.2: 64,000 steps of 128 images, rate / 10 at 32,000 and 48,000."""
    config = classification()
    config.batch_size = 128  # the paper has two GPUs with 64 examples each; here batch_norm.granularity is "all"
    config.total_steps = 64_000
    config.model.update(name="resnet20", num_classes=10)
    config.data.source = "tfds"
    config.data.args.update(name="cifar10", data_dir=None)  # None is ~/tensorflow_datasets
    config.data.update(crop_padding=4, flip=True)  # the paper's curves hold out 5,000: train_split="train[:45000]"
    config.data.update(mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616))
    config.data.update(image_shape=(32, 32, 3), num_examples=50_000)
    config.optimizer.weight_decay = 1e-4  # on every parameter
    config.schedule.update(name="step", learning_rate=0.1, boundaries=(0.5, 0.75))
    config.evaluation.update(every_epochs=5.0, batch_size=400)
    config.checkpoint.every_epochs = 5.0
    return config


def translation() -> ConfigDict:
    """Returns the start of a config for translation."""
    return make_defaults("translation")


def make_defaults(task: str) -> ConfigDict:
    """Returns the start of a config for a task: a built-in name, a dotted path, or `path/to/file.py:task`."""
    return ConfigDict({**_collect(merge_fields(get_own_fields(task))), "task": task}, type_safe=False)


def _collect(section: Mapping[str, Any]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, field in section.items():
        if not isinstance(field, Field):
            values[name] = _collect(field)
        elif field.default is OPEN:
            values[name] = {}
        elif not (field.default is REQUIRED or field.spelled_in):
            values[name] = field.default
    return values
