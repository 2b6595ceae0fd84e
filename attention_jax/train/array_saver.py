"""Orbax, the only module that imports it: each process writes its own part of a state to a folder or to gs://."""

import asyncio
import contextlib
import itertools
import logging
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax

from attention_jax.distributed.mesh import is_main_process
from attention_jax.errors import UserError, one_sentence

_HOURS = 2 * 3_600_000  # milliseconds that processes wait for the slowest one's part
_numbers = itertools.count()  # numbers of saves, the same in all processes


def import_orbax() -> Any:
    """Imports Orbax when first needed (it takes seconds)."""
    try:
        import orbax.checkpoint
    except ImportError as error:
        raise UserError(f"no checkpoint can be read or written ({error}): install orbax-checkpoint.") from error
    return orbax.checkpoint


@contextlib.contextmanager
def silence_orbax() -> Iterator[None]:
    """Silences what this file reports in one sentence; after a failure for good, as what is left of it is collected later."""
    before, levels = sys.unraisablehook, {name: logging.getLogger(name).level for name in ("absl", "asyncio")}

    def hook(unraisable: Any) -> None:
        # When one file of a save or restore fails, Orbax closes its event loop before the other files have answered.
        if str(unraisable.exc_value) != "Event loop is closed":
            before(unraisable)

    sys.unraisablehook = hook
    for name in levels:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    yield
    sys.unraisablehook = before
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)


class ArraySaver:
    """Writes states in the background, one at a time: all processes together, each the parts that it holds.

    Of an array that several processes hold, each writes a share. Any process's failure fails the save in all of them.
    """

    def __init__(self) -> None:
        self._handler = import_orbax().PyTreeCheckpointHandler()
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def save(self, folder: str | Path, state: Any, complete: Callable[[], None]) -> None:
        """Returns when the arrays are in the host's memory; the main process calls `complete` when all have written.

        Args:
            folder: a URI at gs://, or a local folder that exists.
            complete: makes a checkpoint of what was written; runs in a thread.
        """
        from etils import epath  # with which Orbax names files

        ocp = import_orbax()
        path = epath.Path(folder)

        def start() -> Any:
            return asyncio.run(self._handler.async_save(path, args=ocp.args.PyTreeSave(state)))

        with ThreadPoolExecutor(1) as other:  # a notebook's thread has an event loop already
            parts = other.submit(start).result() or []

        def write() -> None:
            for part in parts:
                part.result()

        def end() -> None:
            self._handler.finalize(path)
            complete()

        arguments = f"attention_jax/save/{next(_numbers)}", write, end
        self._thread = threading.Thread(target=self._run, args=arguments, name="save")
        self._thread.start()

    def _run(self, key: str, write: Callable[[], None], end: Callable[[], None]) -> None:
        try:
            problem = self._try(write)
            if jax.process_count() > 1:
                client = import_orbax().multihost.get_jax_distributed_client()
                client.key_value_set(f"{key}/{jax.process_index()}", problem)
                if is_main_process():
                    problems = [client.blocking_key_value_get(f"{key}/{i}", _HOURS) for i in range(jax.process_count())]
                    problem = next(filter(None, problems), "") or self._try(end)
                    client.key_value_set(f"{key}/end", problem)
                else:
                    problem = client.blocking_key_value_get(f"{key}/end", _HOURS)
            elif not problem:
                problem = self._try(end)
            if problem and self._error is None:
                self._error = UserError(f"another process: {problem}")
        except BaseException as error:  # the runtime of the processes: one of them is gone
            self._error = error

    def _try(self, function: Callable[[], None]) -> str:
        """Returns "", or what went wrong, which is kept as this process's error."""
        try:
            function()
        except BaseException as error:
            self._error = error
            return one_sentence(error) or type(error).__name__
        return ""

    def is_saving(self) -> bool:
        """True while a save goes on in this process."""
        return self._thread is not None and self._thread.is_alive()

    def check(self) -> None:
        """Raises what has gone wrong in the background so far."""
        if self._error is not None:
            raise self._error

    def wait(self) -> None:
        """Returns when the last save has ended in all processes. Raises what has gone wrong."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self.check()
