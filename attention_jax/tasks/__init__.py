"""Tasks by name: image classification, translation, and those of the user's own."""

import functools

from attention_jax.config.plugins import load_object
from attention_jax.tasks import classification, translation
from attention_jax.tasks.base import Task, complete_task

TASKS = {"classification": classification, "translation": translation}


@functools.cache  # programs are cached by the task's functions
def get_task(name: str) -> Task:
    """Returns a task by its built-in name, dotted path, or `path/to/file.py:name`."""
    return complete_task(name, load_object(name, TASKS, "task"))
