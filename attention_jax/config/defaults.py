"""The start of a config file: every field that has a default, with it.

    config = defaults.classification()
    config.batch_size = 128
    config.model.update(name="resnet20", num_classes=10)

A duration is absent until the file gives it in one of its units; `complete_config` adds those that it does not give.
"""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from attention_jax.config.accepted import OPEN, REQUIRED, Field
from attention_jax.config.fields import get_own_fields, merge_fields


def classification() -> ConfigDict:
    """Returns the start of a config for image classification."""
    return make_defaults("classification")


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
