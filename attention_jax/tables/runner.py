"""Runs a table: rows one after another, the seeds of a row through one compiled step, each an ordinary run.

Everything is resumable because nothing is kept here: a run's workdir says whether it is finished, and the table, the
charts and the curves are made from the workdirs alone. Rows that a function computes come before all runs, each time anew.
"""

import contextlib
import dataclasses
import platform
import shlex
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import jax

from attention_jax import storage
from attention_jax.distributed.mesh import count_threads, is_main_process
from attention_jax.errors import UserError, get_stopped_exit_code, one_sentence
from attention_jax.tables import measures, publish, results
from attention_jax.tables.computed import Computed, compute
from attention_jax.tables.remote import Remote
from attention_jax.tables.results import FAILURE, Order, RowPlan, SeedRun
from attention_jax.tables.table import ComputedRow, Table, load_table
from attention_jax.train.checkpoint import get_package_versions
from attention_jax.train.loop import StopSignal, replace_seed, train_model
from attention_jax.train.program import Program, build_program


def run_table(
    file: str | Path,
    scale: str | None = None,
    rows: Sequence[str] | None = None,
    seeds: int | None = None,
    workdir: str | Path | None = None,
    output: str | Path | None = None,
    dry_run: bool = False,
) -> int:
    """Runs what is missing of a table and writes it; the same call goes on where the last one ended.

    Args:
        file: the table file, see `load_table`.
        scale: one of its scales, by default the first.
        rows: labels or shell-style patterns of the rows to run; the others are shown as they are.
        seeds: how many seeds a row, by default the scale's.
        workdir: folder or address that holds `row/seed` for each run; by default `runs/<file's stem>`, with `-<scale>` after
            the first scale.
        output: folder or address of the table, charts and pictures, by default the workdir.
        dry_run: only shows what would run.

    Returns:
        0 when every selected run is done or a signal ended the call, 1 when some failed.

    Raises:
        UserError: a table file, label, scale or number that is not right, or a workdir of another config.
    """
    table = load_table(file)
    scale = table.scale(scale)
    if seeds is not None and seeds < 1:
        raise UserError(f"--seeds={seeds} is not right: give a whole number from 1.")
    remote = Remote(str(workdir)) if storage.is_remote(workdir) else None
    folder = remote.folder if remote else Path(workdir or Path("runs") / table.edition(scale)).expanduser()
    output = output or (workdir if remote else folder)
    published = storage.RemoteFolder(str(output), write=is_main_process()) if storage.is_remote(output) else None
    order = Order(
        table=table,
        scale=scale,
        seeds=seeds or table.scales[scale].seeds,
        folder=folder,
        output=folder if published else Path(output).expanduser(),
        selected=frozenset(table.select(rows)),
        command=_command(table, scale, rows, seeds),
        remote=remote,
        published=published,
    )
    say = print if is_main_process() else (lambda *_: None)
    plans = results.plan(order, count_networks=not dry_run)
    for plan in plans:
        for run in plan.runs:
            run.pull()
    if dry_run:
        say("\n".join(_describe_runs(order, plans)))
        return 0
    results.refuse_other_configs([plan for plan in plans if plan.row.label in order.selected])
    say(_describe_start(order, plans))
    publish.make_folders(order.folder, order.output)

    begin = time.perf_counter()
    computed = [_compute(order, row) for row in table.computed] if is_main_process() else []
    stopped, failed = _run_rows(order, plans, computed) if plans else (False, 0)
    done = time.perf_counter()
    if is_main_process():
        say("", publish.publish(order, plans, computed, machine(), pictures=True), sep="\n")
    what = " and ".join([*(["computing"] if table.computed else []), *(["training"] if plans else [])])
    say(f"{done - begin:.0f} s of {what}, {time.perf_counter() - done:.0f} s for the table and its pictures.")
    uncomputed = [line.row.label for line in computed if line.failure]
    if uncomputed:
        say(f"not computed, as said above: {', '.join(uncomputed)}.")
    if stopped:
        say("stopped by a signal; what is done is saved, and the same command goes on from there.")
    elif failed:
        say(f"{failed} runs failed, see {FAILURE} in their workdirs; the same command tries them again.")
    elif table.next_commands and not uncomputed:
        say(
            "\nnext:",
            *(f"  # {why}\n  {command.replace('{workdir}', str(order.workdir))}" for why, command in table.next_commands),
            sep="\n",
        )
    if stopped:
        return get_stopped_exit_code()
    return 1 if failed or uncomputed else 0


def _compute(order: Order, row: ComputedRow) -> Computed:
    """Calls the function of a row that is selected."""
    if row.label not in order.selected:
        return Computed(row)
    line = compute(row, order.table.scales[order.scale].arguments)
    print(f"{row.label}: {f'failed: {line.failure}' if line.failure else f'computed in {line.seconds:.1f} s'}", flush=True)
    return line


def _run_rows(order: Order, plans: Sequence[RowPlan], computed: Sequence[Computed]) -> tuple[bool, int]:
    """(whether a signal ended it, how many runs failed)."""
    failed = 0
    chosen = [plan for plan in plans if plan.row.label in order.selected]
    with StopSignal().installed() as signal, _Progress(chosen) as progress:
        for plan in chosen:
            program, missing = None, _missing(plan)
            for run in missing:
                if signal.received:
                    return True, failed
                progress.begin(plan.row.label, run)
                if is_main_process():
                    (run.path / FAILURE).unlink(missing_ok=True)
                    run.push(FAILURE)
                begin = time.perf_counter()
                try:
                    if plan.broken:
                        raise plan.broken
                    program = program or build_program(plan.config)
                    stopped = run.correct is None and _train(program, run, progress.step)
                    if not stopped and is_main_process():
                        for name in measures.take(run.path, run.total_steps, order.table.measures, program):
                            run.push(name)
                except Exception as error:  # recorded, so that the others go on
                    failed += 1
                    progress.skip(run)
                    if is_main_process():
                        results.record_failure(run, error, traceback.format_exc())
                    progress.say(f"{plan.row.label}, seed {run.seed}: failed: {one_sentence(error)}")
                    continue
                if stopped:
                    return True, failed
                progress.say(f"{plan.row.label}, seed {run.seed}: {_score(run)} in {time.perf_counter() - begin:.1f} s")
            del program  # before the next one compiles: a row's programs are its largest part of memory
            if missing and is_main_process():
                publish.publish(order, plans, computed, machine(), pictures=False)
    return signal.received, failed


def _missing(plan: RowPlan) -> list[SeedRun]:
    """Runs of a row that are not finished."""
    return [run for run in plan.runs if plan.broken or not run.done]


def _train(program: Program, run: SeedRun, progress: Callable[[int], None]) -> bool:
    """Trains one seed to its end; returns whether a signal stopped it."""
    result = train_model(replace_seed(program.config, run.seed), run.place, program, progress)
    run.pull()
    if not result.stopped and is_main_process() and run.correct is None:
        raise UserError(
            f"{run.place}: evaluation.npz of step {run.total_steps} is not there: delete this folder to train it again."
        )
    return result.stopped


def _score(run: SeedRun) -> str:
    correct = run.correct if is_main_process() else None
    return "done" if correct is None else f"{100 * correct.mean():.2f} %"


class _Progress(contextlib.AbstractContextManager):
    """One bar over all steps of the selected runs, with the time left."""

    def __init__(self, plans: Sequence[RowPlan]):
        from tqdm import tqdm
        from tqdm.contrib.logging import logging_redirect_tqdm

        runs = [run for plan in plans for run in plan.runs]
        self._bar = tqdm(
            total=sum(run.total_steps for run in runs),
            initial=sum(min(run.step, run.total_steps) for run in runs),
            unit="step",
            disable=not is_main_process(),
            file=sys.stderr,
            smoothing=0.02,  # the time left comes from many steps: compiling and evaluating come in lumps
            mininterval=0.5 if sys.stderr.isatty() else 30,
            dynamic_ncols=True,
        )
        self._redirect = logging_redirect_tqdm(tqdm_class=tqdm)
        self._at = 0

    def __enter__(self) -> "_Progress":
        self._redirect.__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        self._redirect.__exit__(*exception)
        self._bar.close()

    def begin(self, label: str, run: SeedRun) -> None:
        """Names the run that the next steps belong to."""
        self._at = run.step
        self._bar.set_description(f"{label}, seed {run.seed}")

    def step(self, step: int) -> None:
        """`step` steps of the run are done."""
        self._bar.update(step - self._at)
        self._at = step

    def say(self, text: str) -> None:
        """Prints a line above the bar."""
        if not self._bar.disable:
            self._bar.write(text)

    def skip(self, run: SeedRun) -> None:
        """The rest of the run will not be done."""
        self._bar.total -= run.total_steps - self._at
        self._bar.refresh()


def machine() -> str:
    """Versions, devices and threads."""
    versions = get_package_versions()
    named = ", ".join(f"{name} {versions[name]}" for name in ("attention_jax", "jax", "jaxlib", "flax", "optax"))
    devices = f"{jax.process_count()} process(es) x {jax.local_device_count()} {jax.devices()[0].device_kind}"
    return f"Python {platform.python_version()}, {named}; {devices}, {count_threads()} CPU threads a process."


def _command(table: Table, scale: str, rows: Sequence[str] | None, seeds: int | None) -> str:
    """The command that makes this table again, from this folder."""
    with contextlib.suppress(ValueError):
        table = dataclasses.replace(table, path=table.path.resolve().relative_to(Path.cwd()))
    options = [] if scale == table.scale(None) else [f"--scale={scale}"]
    options += [f"--rows={','.join(rows)}"] if rows else []
    options += [f"--seeds={seeds}"] if seeds else []
    return shlex.join(["./launch.sh", "table", str(table.path), *options])


def _describe_start(order: Order, plans: Sequence[RowPlan]) -> str:
    chosen = [plan for plan in plans if plan.row.label in order.selected]
    missing = [run for plan in chosen for run in _missing(plan)]
    steps = sum(run.total_steps - min(run.step, run.total_steps) for run in missing)
    runs = sum(len(plan.runs) for plan in chosen)
    parts = []
    if order.table.computed:
        count = sum(row.label in order.selected for row in order.table.computed)
        parts.append(f"{count} of {len(order.table.computed)} rows to compute")
    if plans:
        parts.append(
            f"{len(chosen)} of {len(plans)} rows x {order.seeds} seeds = {runs} runs, "
            f"{runs - len(missing)} of them done; {steps:,} steps to go, in {order.workdir}"
        )
    return f"{order.table.title}\nscale {order.scale}: {'; '.join(parts)}\n{machine()}"


def _describe_runs(order: Order, plans: Sequence[RowPlan]) -> Iterator[str]:
    """A dry run: every row and seed with its workdir, status, changed fields and length."""
    trained = [f"{len(plans)} rows x {order.seeds} seeds"] if plans else []
    computed = [f"{len(order.table.computed)} computed rows"] if order.table.computed else []
    yield f"{order.table.title}: scale {order.scale}, {', '.join(computed + trained)} (dry run)"
    arguments = ", ".join(f"{name}={value!r}" for name, value in order.table.scales[order.scale].arguments.items())
    for row in order.table.computed:
        yield f"\n{row.label}: {'would be computed' if row.label in order.selected else 'not selected'}: {arguments or '–'}"
    for plan in plans:
        changes = ", ".join(f"{name}={value!r}" for name, value in plan.changes.items())
        length = f"{plan.durations.total} steps of {plan.config.batch_size} examples" if plan.durations else "length unknown"
        yield f"\n{plan.row.label}: {length}; {changes or 'the base config as it is'}"
        for run in plan.runs:
            yield f"  seed {run.seed}: {_status(order, plan, run)}: {run.place}"


def _status(order: Order, plan: RowPlan, run: SeedRun) -> str:
    if plan.broken:
        return f"would fail ({one_sentence(plan.broken)})"
    if lines := run.difference(plan.config):
        return f"belongs to another config ({'; '.join(lines)})"
    if run.done:
        return "done"
    if plan.row.label not in order.selected:
        return "not selected"
    if run.correct is not None:
        return "would be measured"
    return f"would run from step {run.step}" if run.step else "would run"
