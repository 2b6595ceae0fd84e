"""Tasks by name: image classification, translation, and tasks from your own code."""

import functools
import inspect
from collections.abc import Mapping
from typing import Any

from attention_jax.config.plugins import load_object
from attention_jax.data.images import sources
from attention_jax.data.text import pairs
from attention_jax.errors import UserError
from attention_jax.tasks import classification, translation
from attention_jax.tasks.base import Task, complete_task

TASKS = {"classification": classification, "translation": translation}


@functools.cache  # programs are cached by the task's functions
def get_task(name: str) -> Task:
    """Returns a task by its built-in name, dotted path, or `path/to/file.py:name`."""
    return complete_task(name, load_object(name, TASKS, "task"))


def list_text_arguments(task: str, source: str) -> set[str]:
    """Returns the names of a data source's arguments that are annotated as text: for them, a number is text too."""
    of_task: dict[str, Mapping[str, Any]] = {"classification": sources.SOURCES, "translation": pairs.SOURCES}
    builtin = of_task.get(task, {})
    try:
        parameters = inspect.signature(load_object(source, builtin, "data source")).parameters.values()
    except (UserError, TypeError, ValueError):  # reported when the source is opened
        return set()
    texts = ("str", "Path", "str | None", "str | Path", "str | Path | None")
    return {each.name for each in parameters if getattr(each.annotation, "__name__", str(each.annotation)) in texts}
