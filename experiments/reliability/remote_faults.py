"""The faults of runs at gs://, on a server of ours (tests/helpers/gcs_server.py)."""

import functools
import signal
from typing import Any

from experiments.reliability.damage import flip_bit, remove_description, remove_staging_folder
from experiments.reliability.faults import (
    STOPPED,
    TWO,
    WIDE,
    Call,
    Fault,
    after_restore,
    after_save_starts,
    after_step,
    before_upload,
    kill,
    terminate,
)


def _fault(name: str, *calls: Call, **options: Any) -> Fault:
    return Fault(name, calls, remote=True, **options)


def list_remote_faults() -> list[Fault]:
    """Returns the scripted faults of remote workdirs."""
    gone = 128 + signal.SIGKILL
    stopped: dict[str, Any] = {"code": 0, "output": STOPPED}
    one_dies: dict[str, Any] = {"code": gone, "output": "process 1 of 2 on", "process": 1}
    damaged = functools.partial(Call, after_step(20, kill))
    return [
        _fault("remote: killed in a step", Call(after_step(16, kill))),
        _fault("remote: killed when a save had been asked for", Call(after_save_starts(12, kill))),
        _fault("remote: killed before the description", Call(before_upload("checkpoints/12-.*/metadata", kill))),
        _fault("remote: killed before the marker", Call(before_upload("checkpoints/18-.*[.]json", kill))),
        _fault("remote: killed, another machine goes on", damaged(after=remove_staging_folder)),
        _fault("remote: a bit of the newest checkpoint flips", damaged(after=flip_bit)),
        _fault("remote: SIGTERM in a step", Call(after_step(9, terminate), **stopped)),
        _fault("remote: SIGTERM while a save is written", Call(after_save_starts(12, terminate), **stopped)),
        _fault("remote, 2 x 1: one of two killed", Call(after_step(16, kill), **one_dies), last=TWO),
        _fault("remote, 2 x 1: one of two killed in a save", Call(after_save_starts(12, kill), **one_dies), last=TWO),
        _fault("remote, 2 x 1: both killed in a save", Call(after_save_starts(12, kill), gone, process=None), last=TWO),
        _fault(
            "remote, 2 x 1: killed before the marker",
            Call(before_upload("checkpoints/18-.*[.]json", kill), gone, "process 0 of 2 on"),
            last=TWO,
        ),
        _fault(
            "remote, 2 x 1: SIGTERM to one of two while a save is written",
            Call(after_save_starts(12, terminate), **stopped, process=1),
            last=TWO,
        ),
        _fault(
            "remote, 2 x 1: SIGTERM to one of two, then 1 x 2",
            Call(after_step(9, terminate), **stopped, process=1, on=TWO),
            last=WIDE,
        ),
        _fault("remote: killed while resuming", damaged(), Call(after_restore(kill))),
        _fault("remote: the newest checkpoint loses its description", damaged(after=remove_description)),
    ]
