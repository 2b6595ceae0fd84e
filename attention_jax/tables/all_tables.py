"""Runs all tables of a folder one after another, on one machine or in shards on several, and writes the page of results."""

import dataclasses
import functools
import itertools
import re
import shutil
import sys
import traceback
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import jax

from attention_jax import storage
from attention_jax.config.plugins import load_file
from attention_jax.distributed.mesh import is_main_process
from attention_jax.errors import UserError, get_stopped_exit_code, one_sentence
from attention_jax.tables import results
from attention_jax.tables.page import STATEMENTS, write_page
from attention_jax.tables.runner import make_request, run_request
from attention_jax.tables.table import Table, load_table
from attention_jax.train import restore
from attention_jax.train.metrics import METRICS
from attention_jax.train.workdir import CONFIG, lock_folder

FOLDER, SCALE = "experiments", "quick"


def run_all_tables(
    folder: str | Path = FOLDER,
    scale: str | None = None,
    shard: str | None = None,
    workdir: str | Path | None = None,
    output: str | Path | None = None,
    seeds: int | None = None,
    dry_run: bool = False,
    rerun_stale: bool = False,
    trust_code: bool = False,
    topology: str | None = None,
) -> int:
    """Runs or resumes every table file of a folder, and writes the page of results.

    Returns 0 if all are done or a signal ended the call, 1 if some failed; a failure does not stop the others.

    Args:
        scale: scale of every table, by default "quick"; tables without this scale are left out.
        shard: "i/n" takes every n-th row of all tables together, from the i-th on; computed rows and the page come when the
            shards' workdirs are merged.
        workdir: folder or URI with a workdir for each table, by default `runs`.
        output: folder or URI of tables and plots; by default `results` in the folder for "quick", else each table's workdir.
    """
    size, (number, shards) = scale or SCALE, _parse_shard(shard)
    tables, failures = _load_tables(Path(folder), size)
    if output is None and size == SCALE and shards == 1:
        output = Path(folder) / "results"
    turn, stopped = itertools.count(), list[bool]()
    stop = functools.partial(stopped.append, True)
    for table in tables:
        labels = [row.label for row in table.keep_rows(size).rows if next(turn) % shards == number - 1]
        place = f"{workdir or 'runs'}/{table.edition(size)}"
        if stopped or not (labels or (table.computed and shards == 1)):
            continue
        _say(f"\n=== {table.path} ===")
        try:
            request = make_request(table, size, None, seeds, place, output, trust_code)
            if shards > 1:
                request = dataclasses.replace(request, selected=frozenset(labels))
            code = 0
            first = table.scales[size].after
            if first and not dry_run and any(not run.done for plan in results.plan_rows(request, False) for run in plan.runs):
                code = run_request(make_request(table, first), rerun_stale=rerun_stale, on_stop=stop)
            if not stopped:
                code = run_request(request, dry_run, rerun_stale, on_stop=stop, topology=topology) or code
            if code and not stopped:
                failures.append(f"{table.path}: rows failed, as said above")
        except Exception as error:  # reported at the end, so that the other tables go on
            if not isinstance(error, UserError):
                traceback.print_exc(file=sys.stderr)
            failures.append(f"{table.path}: {one_sentence(error)}")
            _say(f"error: {failures[-1]}")
        jax.clear_caches()  # drop the programs of thirty tables
    if (
        output
        and shards == 1
        and not dry_run
        and is_main_process()
        and not storage.is_remote(output)
        and (Path(folder) / STATEMENTS).exists()
    ):
        own = Path(output) != Path(folder) / "results"
        _say(f"\n{write_page(folder, output if own else None)} is written.")
    _say(*(["\nnot done:", *(f"  {failure}" for failure in failures)] if failures else []))
    return get_stopped_exit_code() if stopped else 1 if failures else 0


def _say(*lines: str) -> None:
    if is_main_process() and lines:
        print(*lines, sep="\n", flush=True)


def _parse_shard(shard: str | None) -> tuple[int, int]:
    """Returns (number of this shard from 1, number of shards)."""
    match = re.fullmatch(r"(\d+)/(\d+)", shard or "1/1")
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise UserError(f"--shard={shard} is not right: give i/n, the i-th of n shards, such as 1/4.")
    return int(match[1]), int(match[2])


def _load_tables(folder: Path, scale: str) -> tuple[list[Table], list[str]]:
    """Returns the tables that have the scale, and failures; prints why any other file is left out."""
    tables, failures = list[Table](), list[str]()
    if not (files := sorted(folder.glob("*.py"))):
        raise UserError(f"table all: there are no table files in {folder.resolve()}: start it in the folder above {FOLDER}/.")
    for file in files:
        try:
            if not hasattr(load_file(file), "scales"):
                _say(f"{file} is left out: it has no scales, as a table file has.")
                continue
            table = load_table(file)
        except UserError as error:
            failures.append(f"{file}: {one_sentence(error)}")
            continue
        if scale in table.scales:
            tables.append(table)
        else:
            _say(f"{file} is left out: it has no scale {scale!r}, but {', '.join(table.scales)}.")
    return tables, failures


def merge_workdirs(shards: Sequence[str | Path], workdir: str | Path) -> int:
    """Copies the runs of shards' workdirs, `table/row/seed`, into one workdir, overwrites nothing, and returns their number.

    If a run is in two places, the longer one counts, provided that its log continues the other's. Raises UserError, before
    anything is copied, if the two differ, a folder is missing, or something trains in it.
    """
    target, best = Path(workdir).expanduser(), dict[Path, Path]()
    places = [Path(shard).expanduser() for shard in shards]
    for place in places:
        if not place.is_dir() or target.resolve() == place.resolve():
            raise UserError(
                f"table merge: {place} is no folder of a shard: give the shards' --workdir folders, and another one."
            )
    with ExitStack() as locks:
        for place in [*([target] if target.is_dir() else []), *places]:
            for table in sorted({path.parent.parent for path in _list_runs(place)}):
                locks.enter_context(lock_folder(table, table, active=True))
            for run in _list_runs(place):
                name = run.relative_to(place)
                best[name] = _choose(best[name], run) if name in best else run
        copied = {name: run for name, run in best.items() if target not in run.parents}
        for name, run in copied.items():
            if (target / name).exists():
                raise UserError(f"{target / name} is behind {run}: move it away, so that the longer run can take its place.")
        for name, run in copied.items():
            partial = target / name.parent / f"{name.name}.partial"
            shutil.rmtree(partial, ignore_errors=True)
            shutil.copytree(run, partial)
            partial.rename(target / name)
    return len(copied)


def _list_runs(place: Path) -> list[Path]:
    """Lists runs with a checkpoint, without those that were moved aside as stale."""
    found = sorted(path.parent for path in place.glob(f"*/*/*/{CONFIG}"))
    return [run for run in found if run.name.isdigit() and restore.list_steps(run)]


def _choose(one: Path, other: Path) -> Path:
    """Returns the run that continues the other."""
    configs, logs = ([(run / name).read_bytes() for run in (one, other)] for name in (CONFIG, METRICS))
    if configs[0] != configs[1] or not (logs[0].startswith(logs[1]) or logs[1].startswith(logs[0])):
        what = "config" if configs[0] != configs[1] else "log"
        raise UserError(f"{one} and {other} are the same run with a different {what}: keep one of them, and merge again.")
    return one if len(logs[0]) >= len(logs[1]) else other
