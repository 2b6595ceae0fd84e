"""Runs a table: rows one after another, the seeds of a row through one compiled step, each an ordinary run.

Everything can be resumed, because no state is kept here: a run's workdir shows whether it is finished, and the table, the
charts and the curves are made from the workdirs alone. Computed rows come before all runs and are computed every time.
"""

import contextlib
import dataclasses
import functools
import itertools
import platform
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from attention_jax import storage
from attention_jax.config.code import record_code
from attention_jax.config.config import flatten_config
from attention_jax.distributed.mesh import count_threads, is_main_process
from attention_jax.errors import UserError, get_stopped_exit_code, one_sentence
from attention_jax.preflight.chips import find_peak
from attention_jax.tables import results
from attention_jax.tables.dry_run import describe_runs
from attention_jax.tables.measures import measure_run
from attention_jax.tables.publish import make_folders, write_false_verdicts, write_table
from attention_jax.tables.remote_workdir import RemoteWorkdir
from attention_jax.tables.results import ComputedResult, RowPlan, SeedRun, TableRequest
from attention_jax.tables.stale import handle_stale_runs, refuse_other_configs
from attention_jax.tables.statistics import MIN_SEEDS
from attention_jax.tables.table import ComputedRow, Table, load_table
from attention_jax.train.checkpoint import get_package_versions
from attention_jax.train.evaluate import read_arrays
from attention_jax.train.loop import catch_stop_signal, replace_seed, train_model
from attention_jax.train.metrics import TIMING, read_timing
from attention_jax.train.program import Program, build_program
from attention_jax.train.trackers import track_table
from attention_jax.train.workdir import EVALUATION, FAILURE, lock_folder

_Place = str | Path | None  # a folder or URI


def run_table(
    file: str | Path,
    scale: str | None = None,
    rows: Sequence[str] | None = None,
    seeds: int | None = None,
    workdir: _Place = None,
    output: _Place = None,
    dry_run: bool = False,
    rerun_stale: bool = False,
    trust_code: bool = False,
    aa: bool = False,
    topology: str | None = None,
) -> int:
    """Runs the missing parts of a table and writes it; calling it again continues where the last call ended.

    Returns 0 if every selected run is done or a signal ended the call, 1 if some failed. Raises UserError for a wrong table
    file, label, scale or number, and for a workdir of another config.

    Args:
        scale: a scale of the table, by default the first.
        rows: labels or shell-style patterns of the rows to run; the others are written as they are.
        seeds: number of seeds per row, by default the scale's.
        workdir: folder or URI that holds `row/seed` for each run; by default `runs/<Table.edition>`.
        output: folder or URI of the table and its plots, by default the workdir.
        dry_run: True only prints what would run; returns 1 if a selected row would fail.
        rerun_stale: True moves aside runs whose code or data have changed since, and trains them again.
        trust_code: see `load_run`; for runs that were trained elsewhere.
        aa: True trains each row twice, with other seeds, and reports how often its halves would be called different.
        topology: with `dry_run`, a TPU slice such as "v5e-16" whose chip-hours are estimated.
    """
    if topology and not dry_run:
        raise UserError(f"--slice={topology}: a slice is for --dry-run, which estimates its chip-hours: give that too.")
    request = make_request(load_table(file), scale, rows, seeds, workdir, output, trust_code, aa)
    return run_request(request, dry_run, rerun_stale, topology=topology)


def run_request(
    request: TableRequest,
    dry_run: bool = False,
    rerun_stale: bool = False,
    write: Callable[..., str] = write_table,
    on_stop: Callable[[], None] = lambda: None,
    topology: str | None = None,
) -> int:
    """Runs a request of `make_request`; returns and raises as `run_table`.

    Args:
        write: function that writes the files and returns the text to print, as `write_table` does.
        on_stop: function to call after a signal has ended the request.
        topology: a TPU slice such as "v5e-16", whose chip-hours a dry run estimates.
    """
    plans = results.plan_rows(request, count_networks=not dry_run)
    for run in (run for plan in plans for run in plan.runs):
        run.pull()
    if dry_run:
        _say(*describe_runs(request, plans, topology), *_describe_equal_rows(plans))
        return 1 if any(plan.broken and plan.row.label in request.selected for plan in plans) else 0
    chosen = [plan for plan in plans if plan.row.label in request.selected]
    refuse_other_configs(chosen)
    make_folders(request.folder, request.output)
    with lock_folder(request.folder, request.workdir, active=is_main_process()):
        handle_stale_runs(chosen, rerun_stale)
        return _run_chosen(request, plans, chosen, write, on_stop)


def _run_chosen(
    request: TableRequest,
    plans: Sequence[RowPlan],
    chosen: Sequence[RowPlan],
    write: Callable[..., str],
    on_stop: Callable[[], None],
) -> int:
    """Runs the missing runs and writes the table; returns the exit code."""
    for plan in chosen:
        record_code(plan.config, plan.code, write=is_main_process())
    _say(_describe_start(request, chosen), *_describe_equal_rows(plans))
    begin = time.perf_counter()
    computed = [_compute(request, row) for row in request.table.computed] if is_main_process() else []
    stopped, failed = _run_rows(request, plans, computed, write) if plans else (False, 0)
    done = time.perf_counter()
    if is_main_process():
        text = write(request, plans, computed, describe_machine(plans), with_plots=True)
        _say("", text)
        _track(request, plans, text)
        _say(*([write_false_verdicts(request, plans)] if request.aa else []))
    what = " and ".join([*(["computing"] if request.table.computed else []), *(["training"] if plans else [])])
    _say(f"{done - begin:.0f} s of {what}, {time.perf_counter() - done:.0f} s for the table and its plots.")
    uncomputed = [result.row.label for result in computed if result.failure]
    _say(*_describe_end(request, stopped, failed, uncomputed))
    if stopped:
        on_stop()
        return get_stopped_exit_code()
    return 1 if failed or uncomputed else 0


def _say(*lines: str) -> None:
    """Prints above the progress bar, in the main process."""
    if is_main_process() and lines:
        with tqdm.external_write_mode():
            print(*lines, sep="\n", flush=True)


def make_request(
    table: Table,
    scale: str | None = None,
    rows: Sequence[str] | None = None,
    seeds: int | None = None,
    workdir: _Place = None,
    output: _Place = None,
    trust_code: bool = False,
    aa: bool = False,
    command: str = "",
    first_seed: int = 0,
) -> TableRequest:
    """Checks the arguments of `run_table`.

    Args:
        command: command that makes the same table again, by default `./launch.sh table` with its file.
        first_seed: first seed of each row.
    """
    scale = table.scale(scale)
    table = table.keep_rows(scale)
    if seeds is not None and seeds < 1:
        raise UserError(f"--seeds={seeds} is not right: give a whole number from 1.")
    remote = RemoteWorkdir(str(workdir)) if storage.is_remote(workdir) else None
    folder = remote.folder if remote else Path(workdir or Path("runs") / table.edition(scale)).expanduser()
    place = str(output or (remote.workdir if remote else folder))
    published = storage.RemoteFolder(place, write=is_main_process()) if storage.is_remote(place) else None
    return TableRequest(
        table=table,
        scale=scale,
        seeds=2 * max(seeds or table.scales[scale].seeds, MIN_SEEDS) if aa else seeds or table.scales[scale].seeds,
        folder=folder,
        output=folder if published else Path(place).expanduser(),
        selected=frozenset(table.select(rows)),
        command=command or _command(table, scale, rows, seeds) + " --aa" * aa,
        remote=remote,
        published=published,
        trust_code=trust_code,
        aa=aa,
        first_seed=first_seed,
    )


def _compute(request: TableRequest, row: ComputedRow) -> ComputedResult:
    """Calls the function of a selected row."""
    if row.label not in request.selected:
        return ComputedResult(row)
    result = results.compute_row(row, request.table.scales[request.scale].arguments)
    _say(f"{row.label}: {f'failed: {result.failure}' if result.failure else f'computed in {result.seconds:.1f} s'}")
    return result


def _run_rows(
    request: TableRequest, plans: Sequence[RowPlan], computed: Sequence[ComputedResult], write: Callable[..., str]
) -> tuple[bool, int]:
    """Returns (True if a signal ended it, number of failed runs)."""
    failed = 0
    chosen = [plan for plan in plans if plan.row.label in request.selected]
    with catch_stop_signal() as stop_signal, _progress_bar(chosen) as bar:
        for plan in chosen:
            program, missing = None, _missing(plan)
            for run in plan.runs if is_main_process() else ():
                if run.failure is not None:
                    (run.path / FAILURE).unlink()
                    run.push(FAILURE)
            for run in missing:
                if stop_signal.is_set():
                    return True, failed
                name, before = f"{plan.row.label}, seed {run.seed}", bar.n - run.step  # steps of all runs before this one
                bar.set_description(name)
                begin = time.perf_counter()
                try:
                    if plan.broken:
                        raise plan.broken
                    program = program or build_program(plan.resolved or plan.config)
                    stopped = run.correct is None and _train(program, run, plan, functools.partial(_advance, bar, before))
                    if not stopped:
                        for file in measure_run(run.path, run.total_steps, request.table.measures, program, request.trust_code):
                            run.push(file)
                except Exception as error:  # recorded, so that the others go on
                    failed += 1
                    bar.total -= before + run.total_steps - bar.n  # the run's remaining steps will not be done
                    if is_main_process():
                        results.record_failure(run, error)
                    _say(f"{name}: failed: {one_sentence(error)}")
                    continue
                if stopped:
                    return True, failed
                _say(f"{name}: {_score(run)} in {time.perf_counter() - begin:.1f} s")
            del program  # before the next one compiles: a row's programs are its largest part of memory
            if missing and is_main_process():
                write(request, plans, computed, describe_machine(plans), with_plots=False)
    return stop_signal.is_set(), failed


def _track(request: TableRequest, plans: Sequence[RowPlan], text: str) -> None:
    """Sends the rows' accuracies in percent and the verdicts to the trackers that the rows' configs name."""
    correct = {plan.row.label: [run.correct for run in plan.runs if not plan.broken] for plan in plans}
    found = {label: [100 * each.mean() for each in seeds if each is not None] for label, seeds in correct.items()}
    if plans and plans[0].config.logging.trackers:
        track_table(plans[0].config, request.workdir, {label: sum(s) / len(s) for label, s in found.items() if s}, text)


def _advance(bar: Any, before: int, step: int) -> None:
    """Shows that `step` steps of a run are done, after `before` steps of other runs."""
    bar.update(before + step - bar.n)


def _missing(plan: RowPlan) -> list[SeedRun]:
    """Lists the runs of a row that are not finished."""
    return [run for run in plan.runs if plan.broken or not run.done]


def _train(program: Program, run: SeedRun, plan: RowPlan, progress: Callable[[int], None]) -> bool:
    """Trains one seed to its end; returns True if a signal stopped it."""
    peak = find_peak(program.mesh.devices.flat)
    result = train_model(replace_seed(program.config, run.seed), run.place, program, progress, plan.code, peak=peak)
    run.pull()
    if not result.stopped and is_main_process() and run.correct is None:
        if kept := read_arrays(run.path / EVALUATION, run.total_steps):
            raise UserError(results.describe_missing_correct(program.config.task, sorted(kept)))
        raise UserError(
            f"{run.place}: evaluation.npz of step {run.total_steps} is missing: delete this folder to train it again."
        )
    return result.stopped


def _score(run: SeedRun) -> str:
    correct = run.correct if is_main_process() else None
    return "done" if correct is None else f"{100 * correct.mean():.2f} %"


@contextlib.contextmanager
def _progress_bar(plans: Sequence[RowPlan]) -> Iterator[Any]:
    """Returns one bar over all steps of the selected runs, with the time left."""
    runs = [run for plan in plans for run in plan.runs]
    bar = tqdm(
        total=sum(run.total_steps for run in runs),
        initial=sum(min(run.step, run.total_steps) for run in runs),
        unit="step",
        disable=not is_main_process(),
        file=sys.stderr,
        smoothing=0.02,  # the time left comes from many steps: compiling and evaluating come in lumps
        mininterval=0.5 if sys.stderr.isatty() else 30,
        dynamic_ncols=True,
    )
    with bar, logging_redirect_tqdm(tqdm_class=tqdm):
        yield bar


def describe_machine(plans: Sequence[RowPlan] = ()) -> str:
    """Returns versions, devices and threads in one sentence: the threads of finished runs, or of this process without any."""
    timings = (read_timing(run.path / TIMING) for plan in plans for run in plan.runs)
    threads = sorted({line["threads"] for lines in timings for line in lines if "threads" in line}) or [count_threads()]
    versions = get_package_versions()
    named = ", ".join(f"{name} {versions[name]}" for name in ("attention_jax", "jax", "jaxlib", "flax", "optax"))
    devices = f"{jax.process_count()} process(es) x {jax.local_device_count()} {jax.devices()[0].device_kind}"
    return f"Python {platform.python_version()}, {named}; {devices}, {' or '.join(map(str, threads))} CPU threads a process."


def _command(table: Table, scale: str, rows: Sequence[str] | None, seeds: int | None) -> str:
    """Returns the command that makes this table again, from this folder."""
    with contextlib.suppress(ValueError):
        table = dataclasses.replace(table, path=table.path.resolve().relative_to(Path.cwd()))
    options = [] if scale == table.scale(None) else [f"--scale={scale}"]
    options += [f"--rows={','.join(rows)}"] if rows else []
    options += [f"--seeds={seeds}"] if seeds else []
    return shlex.join(["./launch.sh", "table", str(table.path), *options])


def _describe_equal_rows(plans: Sequence[RowPlan]) -> Iterator[str]:
    """Returns remarks on rows that would train the same thing."""
    for first, second in itertools.combinations(plans, 2):
        if flatten_config(first.config) == flatten_config(second.config):
            yield f"remark: rows {first.row.label!r} and {second.row.label!r} have one and the same config."


def _describe_start(request: TableRequest, chosen: Sequence[RowPlan]) -> str:
    missing = [run for plan in chosen for run in _missing(plan)]
    steps = sum(run.total_steps - min(run.step, run.total_steps) for run in missing)
    runs = sum(len(plan.runs) for plan in chosen)
    parts = []
    if request.table.computed:
        count = sum(row.label in request.selected for row in request.table.computed)
        parts.append(f"{count} of {len(request.table.computed)} rows to compute")
    if request.table.rows:
        parts.append(
            f"{len(chosen)} of {len(request.table.rows)} rows x {request.seeds} seeds = {runs} runs, "
            f"{runs - len(missing)} of them done; {steps:,} steps to go, in {request.workdir}"
        )
    return f"{request.table.title}\nscale {request.scale}: {'; '.join(parts)}\n{describe_machine()}"


def _describe_end(request: TableRequest, stopped: bool, failed: int, uncomputed: Sequence[str]) -> Iterator[str]:
    """Returns the failures and how to continue: the same command, or the table's next ones."""
    if uncomputed:
        yield f"not computed, for the reasons above: {', '.join(uncomputed)}."
    if stopped:
        yield "stopped by a signal; what is done is saved, and the same command goes on from there."
    elif failed:
        yield f"{failed} runs failed, see {FAILURE} in their workdirs; the same command tries them again."
    elif request.table.next_commands and not uncomputed:
        yield "\nnext:"
        for why, command in request.table.next_commands:
            yield f"  # {why}\n  {command.replace('{workdir}', str(request.workdir))}"
