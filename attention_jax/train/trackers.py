"""Trackers that mirror a run's log elsewhere: Weights & Biases, and trackio, which has its interface.

The log is the source of truth, and a tracker never stops a run: it works in a thread of its own, and an error, or an end that
takes too long, costs a warning. Offline, wandb keeps its files for `wandb sync` with WANDB_MODE=offline.
"""

import contextlib
import hashlib
import importlib
import logging
import os
import queue
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from attention_jax.config.config import flatten_config
from attention_jax.errors import one_sentence
from attention_jax.storage import is_remote

log = logging.getLogger(__name__)
PATIENCE = 30.0  # seconds that the end of a run waits for a tracker
_MOST_WAITING = 100_000  # lines; later ones are dropped when a tracker hangs


class Tracker:
    """A tracker sends lines of the log to a module with the interface of wandb: `init`, `run.log`, `run.finish`.

    Args:
        module: "wandb" or "trackio".
        options: arguments of `init`.
    """

    def __init__(self, module: str, options: Mapping[str, Any]):
        self._module, self._options = module, dict(options)
        self._lines: queue.Queue[Mapping[str, Any] | None] = queue.Queue(_MOST_WAITING)
        self._failed = False
        self._thread = threading.Thread(target=self._work, name=f"tracker {module}", daemon=True)
        self._thread.start()

    def __call__(self, line: Mapping[str, Any]) -> None:
        """Accepts a line of the log, or of its times."""
        if not self._failed:
            with contextlib.suppress(queue.Full):
                self._lines.put_nowait(line)

    def close(self, patience: float | None = None) -> None:
        """Sends what is waiting and ends; after `patience` seconds, by default 30, a warning is all that is left of it."""
        end = time.monotonic() + (PATIENCE if patience is None else patience)
        with contextlib.suppress(queue.Full):
            self._lines.put(None, timeout=max(end - time.monotonic(), 0))
        self._thread.join(max(end - time.monotonic(), 0))
        if self._thread.is_alive():
            self._failed = True
            log.warning("%s did not end in time: what it lacks is in the run's log.", self._module)

    def _work(self) -> None:
        try:
            run = importlib.import_module(self._module).init(**self._options)
            for line in iter(self._lines.get, None):
                values = {name: value for name, value in line.items() if name not in ("step", "event")}
                if "event" in line:
                    values = {f"time/{name}": v for name, v in values.items() if name == "examples_per_second"}
                if values and "step" in line:
                    run.log(values, step=line["step"])
            run.finish()
        except BaseException as error:  # wandb raises KeyboardInterrupt when nobody answers its prompt for a key
            self._failed = True
            is_missing = isinstance(error, ModuleNotFoundError) and error.name == self._module  # not one that it needs
            missing = f": install it with pip install {self._module}" if is_missing else ""
            log.warning(
                "%s does not track this run (%s)%s; the log has everything.", self._module, one_sentence(error), missing
            )


def start_trackers(config: ConfigDict, path: str | Path, active: bool) -> list[Tracker]:
    """Starts the trackers of `logging.trackers` but for TensorBoard, which the log writes itself; none where not active.

    A run has the same id at each start, so that a resumed one goes on. Its name is that of its workdir; a seed of a table's row
    is "row/seed" in the group of the table.
    """
    names = [name for name in config.logging.trackers if name != "tensorboard"] if active else []
    place = str(path).rstrip("/") if is_remote(path) else os.path.abspath(os.path.expanduser(path))
    parts = place.split("/")
    is_seed = parts[-1].isdecimal() and len(parts) > 3
    named = {"name": "/".join(parts[-2:]), "group": parts[-3]} if is_seed else {"name": parts[-1]}
    options: dict[str, Any] = {"project": os.environ.get("WANDB_PROJECT") or "attention_jax", **named}
    options["config"] = {key: str(v) if isinstance(v, tuple) else v for key, v in flatten_config(config).items()}
    options["resume"] = "allow"
    identity = hashlib.sha256(place.encode()).hexdigest()[:16]
    # trackio knows a run by its name alone, and other folders may have the same.
    own = {"wandb": {"id": identity}, "trackio": {"name": f"{named['name']}-{identity[:6]}"}}
    return [Tracker(name, options | own[name]) for name in names]


def track_table(config: ConfigDict, path: str | Path, accuracies: Mapping[str, float], verdict: str) -> None:
    """Sends a table to the trackers that its rows have, as a run of its own: accuracy in percent of each row, and the text."""
    for tracker in start_trackers(config, path, active=True):
        tracker({"step": 0, **{f"table/{label}": value for label, value in accuracies.items()}, "verdict": verdict})
        tracker.close()
