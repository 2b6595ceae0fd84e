"""Finds runs in a table's workdirs that do not fit it any more: of another config, or stale (code or data have changed)."""

import os
import shutil
from collections.abc import Sequence

import jax
from jax.experimental import multihost_utils

from attention_jax.distributed.mesh import is_main_process
from attention_jax.errors import UserError
from attention_jax.storage import RemoteFolder
from attention_jax.tables.results import RowPlan, SeedRun
from attention_jax.train.workdir import lock_folder


def refuse_other_configs(plans: Sequence[RowPlan]) -> None:
    """Raises UserError with the difference if a workdir of these rows was made with another config."""
    for plan in plans:
        for run in plan.runs:
            lines = [] if plan.broken else run.difference(plan.config)
            if lines:
                raise UserError(
                    f"row {plan.row.label!r}, seed {run.seed}: {run.place} belongs to another config ({'; '.join(lines)}): "
                    "give another --workdir, or the table file as it was."
                )


def handle_stale_runs(plans: Sequence[RowPlan], rerun: bool) -> None:
    """Moves stale runs aside, or keeps them. Raises UserError with the difference for an unfinished one."""
    for plan in plans:
        for run in plan.list_stale():
            if rerun:
                _move_aside(run)
            elif not run.done:
                difference = run.code_change(plan.code)
                raise UserError(
                    f"row {plan.row.label!r}, seed {run.seed}: {run.place} was begun with other "
                    f"{'code' if difference else 'data'}: give --rerun-stale to move it aside and train it again, or another "
                    "--workdir; what has changed:\n"
                    f"{difference or plan.describe_change(run)}"
                )


def _move_aside(run: SeedRun) -> None:
    """Renames a run to `<seed>-stale-<number>`, so that its folder becomes free; collective."""
    if is_main_process():
        place = str(run.place)
        row = place.rpartition("/")[0]
        there = RemoteFolder(row).names("") if run.remote else os.listdir(row)
        target = next(f"{place}-stale-{i}" for i in range(10**6) if f"{run.seed}-stale-{i}" not in there)
        if run.remote:
            old, new = RemoteFolder(place), RemoteFolder(target)
            for name in old.find():
                new.write(name, old.read(name) or b"")
            RemoteFolder(row).remove(str(run.seed))  # when all of it is copied
        else:
            with lock_folder(run.path, run.path, active=True):  # raises if a process is training it
                run.path.rename(target)
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("stale run moved")
    if run.remote:
        shutil.rmtree(run.path, ignore_errors=True)
