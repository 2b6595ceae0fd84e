"""A table's workdirs: the plan of its runs, which of them are finished, and their numbers."""

import contextlib
import dataclasses
import functools
import logging
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.core import FrozenDict
from ml_collections import ConfigDict

from attention_jax.config.code import RunCode, collect_code, compare_code
from attention_jax.config.config import flatten_config, list_differences
from attention_jax.config.plugins import load_object
from attention_jax.data.fingerprint import DATA, compare_data
from attention_jax.errors import UserError, one_sentence
from attention_jax.models import create_model
from attention_jax.models.registry import check_model, list_origins, refuse_unread_reduction
from attention_jax.models.summary import Summary, summary
from attention_jax.storage import RemoteFolder
from attention_jax.tables.measures import read_measure
from attention_jax.tables.remote_workdir import RemoteWorkdir
from attention_jax.tables.table import ComputedRow, Row, Table
from attention_jax.tasks import TASKS
from attention_jax.tasks.base import Task, pack_fingerprints
from attention_jax.tasks.resolve import Durations, ResolvedConfig, resolve_config
from attention_jax.train import metrics, restore, workdir
from attention_jax.train.early_stop import find_recorded_stop
from attention_jax.train.evaluate import read_arrays
from attention_jax.train.loop import replace_seed
from attention_jax.train.program import build_optimizer
from attention_jax.train.workdir import EVALUATION, FAILURE

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class TableRequest:
    """The checked arguments of one call of `run_table`."""

    table: Table
    scale: str
    seeds: int  # in a row
    folder: Path  # holds `row/seed` for each run
    output: Path  # holds the table and its plots
    selected: frozenset[str]  # labels of the rows to run
    command: str  # command that makes the same table again
    remote: RemoteWorkdir | None = None  # the remote workdir that `folder` mirrors
    published: RemoteFolder | None = None  # remote folder for the output, in place of `output`
    trust_code: bool = False  # True trusts runs that came with code
    aa: bool = False  # True gives each row twice its seeds and compares the halves
    first_seed: int = 0

    @property
    def workdir(self) -> str | Path:
        """The folder or URI that holds the runs."""
        return self.remote.workdir if self.remote else self.folder


@dataclasses.dataclass(frozen=True)
class SeedRun:
    """One ordinary run; its workdir holds everything that is known about it."""

    seed: int
    path: Path
    planned_steps: int
    measures: Mapping[str, str | Callable[..., Any]] = dataclasses.field(default_factory=dict)
    remote: RemoteWorkdir | None = None

    @property
    def place(self) -> str | Path:
        """The folder or URI in which the run is trained."""
        return self.remote.uri(self.path) if self.remote else self.path

    def pull(self) -> None:
        """Fetches a remote run."""
        if self.remote:
            self.remote.pull(self.path)

    def push(self, name: str) -> None:
        """Uploads a file that was written or removed here, if the run is remote."""
        if self.remote:
            self.remote.push(self.path / name)

    @property
    def step(self) -> int:
        """The step of the newest checkpoint; 0 without one."""
        return max(restore.list_steps(self.path), default=0)

    @property
    def total_steps(self) -> int:
        """The last step of the finished run: that of the config, or the one after which it was stopped early."""
        stopped = 0 < self.step < self.planned_steps and find_recorded_stop(self.lines(), self.step)
        return self.step if stopped else self.planned_steps

    @property
    def stopped_early(self) -> bool:
        """True if training ended before the last step of the config, because the score had not become better."""
        return self.total_steps < self.planned_steps

    @property
    def correct(self) -> np.ndarray | None:
        """[N], 1 if the test example was right after the last step; None if the run is not finished."""
        outputs = read_arrays(self.path / EVALUATION, self.step, ["correct"]) if self.step == self.total_steps else None
        return outputs["correct"].astype(float) if outputs else None

    @property
    def measured(self) -> dict[str, np.ndarray]:
        """Values of all measures after the last step, {name: number or array}."""
        found = [read_measure(self.path, self.total_steps, *measure) for measure in self.measures.items()]
        return {key: value for values in found if values for key, value in values.items()}

    @property
    def done(self) -> bool:
        """True if it is trained, evaluated and measured."""
        measured = (read_measure(self.path, self.total_steps, *measure) for measure in self.measures.items())
        return self.correct is not None and None not in measured

    @property
    def failure(self) -> str | None:
        """The reason why the last attempt failed, in one line."""
        with contextlib.suppress(OSError):
            return (self.path / FAILURE).read_text(errors="replace").partition("\n")[0]
        return None

    def difference(self, config: ConfigDict) -> list[str]:
        """Lists the differences between the workdir's config and this one."""
        saved = workdir.read_config(self.path)
        return list_differences(saved, replace_seed(config, self.seed)) if saved is not None else []

    def code_change(self, code: RunCode) -> str:
        """Returns the unified diff from the workdir's code to this code; empty without code."""
        saved = workdir.read_workdir_code(self.path)
        return compare_code(saved, code) if saved else ""

    def seconds(self) -> float | None:
        """Returns the wall-clock time of all calls for this run; None if it was never measured."""
        calls = [line["seconds"] for line in metrics.read_timing(self.path / metrics.TIMING) if line["event"] == "call"]
        return sum(calls) if calls else None

    def lines(self) -> list[dict[str, Any]]:
        """Reads the log."""
        return metrics.read_log(self.path)


@dataclasses.dataclass(frozen=True)
class RowPlan:
    """A row with its config resolved against the data, and its runs; `broken` is the reason if the config cannot be resolved.

    `network` counts the paper's network, `counts` the trained one; `data` holds fingerprints, if they are known and needed.
    """

    row: Row
    config: ConfigDict
    changes: dict[str, Any]
    resolved: ResolvedConfig | None
    counts: Summary | None
    network: Summary | None
    runs: tuple[SeedRun, ...]
    code: RunCode
    broken: Exception | None = None
    data: bytes | None = None

    def describe_change(self, run: SeedRun) -> str:
        """Returns the change in code or data since a run was made; empty if nothing has changed."""
        if not self.broken and run.code_change(self.code):
            return "its code has changed since"
        change = compare_data(restore.read_content(run.path, DATA), self.data) if run.step else ""
        return f"data changed ({change})" if change else ""

    def list_stale(self) -> list[SeedRun]:
        """Returns the runs whose code or data have changed since."""
        return [run for run in self.runs if self.describe_change(run)]

    @property
    def durations(self) -> Durations | None:
        """The config's durations; None without its data."""
        return self.resolved.durations if self.resolved else None


@dataclasses.dataclass(frozen=True)
class RowResult:
    """The results of a row's finished runs."""

    plan: RowPlan
    correct: np.ndarray | None  # [finished seeds, N]; None without a finished seed
    measured: tuple[dict[str, np.ndarray], ...]  # one for each finished seed, with the measures that were taken
    seconds: float | None  # wall-clock time of a run, mean over seeds
    failures: tuple[str, ...]  # a line for each seed that failed
    is_stale: bool = False  # True if the code or the data of a finished run have changed since

    @property
    def label(self) -> str:
        """The row's label."""
        return self.plan.row.label

    @property
    def done(self) -> int:
        """The number of finished seeds."""
        return 0 if self.correct is None else len(self.correct)

    @property
    def status(self) -> str:
        """One of "done", "failed", "not run", or "partial" if some seeds are missing."""
        if self.done == len(self.plan.runs):
            return "done"
        return "partial" if self.done else ("failed" if self.failures else "not run")


def plan_rows(request: TableRequest, count_networks: bool = True) -> list[RowPlan]:
    """Finds every row's steps, counts and workdirs without compiling anything.

    The papers' networks take seconds to count; a dry run does not print their counts.
    """
    known: dict[str, bytes | None] = {}  # fingerprints of the data that rows share
    return [_plan_row(request, row, count_networks, known) for row in request.table.rows]


def _plan_row(request: TableRequest, row: Row, count_network: bool, known: dict[str, bytes | None]) -> RowPlan:
    table = request.table
    config, base = table.config(row, request.scale), table.base_config(request.scale)
    before, after = flatten_config(base), flatten_config(config)
    changes = {name: after.get(name) for name in [*after, *before] if after.get(name) != before.get(name)}
    resolved = counts = network = broken = None
    code = RunCode()
    try:
        check_model(config.model.to_dict())
        resolved = resolve_config(config)
        build_optimizer(resolved)
        config, task = resolved.config, resolved.task
        task.loader(config, config.data.train_split, (0, 1), training=True)  # fails if the data are missing
        model, inputs = task.model(config), task.example_inputs(config)
        _refuse_without_correct(config, task, model, inputs)
        refuse_unread_reduction(config.model, lambda: jax.eval_shape(model.init, jax.random.key(0), *inputs)["params"])
        counts = summary(model, inputs)
        code = collect_code(config, list_origins(), table.list_code(row, request.scale))
        if row.network and count_network:
            network = _count(FrozenDict(row.network), tuple(table.network_shape))
    except Exception as error:  # recorded when it is the row's turn, so that the others go on
        broken = error
    total = resolved.durations.total if resolved else 0
    runs = tuple(
        SeedRun(seed, request.folder / row.slug / str(seed), total, table.measures, request.remote)
        for seed in range(request.first_seed, request.first_seed + request.seeds)
    )
    can_be_stale = not broken and any((run.path / DATA).exists() for run in runs)
    data = _identify_data(resolved, known) if resolved and can_be_stale else None
    return RowPlan(row, config, changes, resolved, counts, network, runs, code, broken, data)


def _identify_data(resolved: ResolvedConfig, known: dict[str, bytes | None]) -> bytes | None:
    """Returns the fingerprints of a row's data, read once for all rows that share them; None if they cannot be read."""
    key = f"{resolved.config.task} {resolved.config.data.to_json_best_effort(sort_keys=True)}"
    if key not in known:
        try:
            known[key] = pack_fingerprints(resolved.task, resolved.config)
        except UserError as error:
            log.warning("whether data have changed is unknown: %s", error)
            known[key] = None
    return known[key]


def _refuse_without_correct(config: ConfigDict, task: Task, model: nn.Module, inputs: tuple) -> None:
    """Raises UserError, before anything is trained, for a task whose outputs lack "correct", by which rows are compared."""
    if config.task in TASKS or getattr(task.metrics, "__func__", None) is not Task.metrics:
        return  # the task's own metrics may add it
    variables = jax.eval_shape(model.init, jax.random.key(0), *inputs)
    made = jax.eval_shape(functools.partial(task.outputs, config, model), variables, task.batch_shapes(config)[0])
    if "correct" not in made:
        raise UserError(describe_missing_correct(config.task, sorted(made)))


def describe_missing_correct(task: str, given: Sequence[str]) -> str:
    """Returns the sentence for a task without an output by which a table could compare rows."""
    return (
        f"task {task!r} gives the outputs {', '.join(given)}: a table compares rows by 'correct', 1 where an example is right "
        "and 0 where not, so give that too."
    )


@functools.cache
def _count(network: FrozenDict, shape: tuple[int, ...] | tuple[tuple[int, ...], ...]) -> Summary:
    """Counts a network once for all rows that share it: counting a ResNet-200 takes seconds."""
    tokens = isinstance(shape[0], tuple)  # several inputs are token sequences
    inputs = tuple(jax.ShapeDtypeStruct(each, jnp.int32) for each in shape) if tokens else shape
    return summary(create_model(**network), inputs)


def read_row(plan: RowPlan) -> RowResult:
    """Reads the numbers of a row's finished runs; runs of another config do not count."""
    correct, measured, seconds, failures = [], [], [], []
    for run in plan.runs:
        outputs = None if plan.broken or run.difference(plan.config) else run.correct
        if outputs is not None:
            correct.append(outputs)
            measured.append(run.measured)
            seconds.append(run.seconds())
        if run.failure and not (outputs is not None and run.done):
            failures.append(f"seed {run.seed}: {run.failure}")
    known = [value for value in seconds if value is not None]
    return RowResult(
        plan=plan,
        correct=np.stack(correct) if correct else None,
        measured=tuple(measured),
        seconds=float(np.mean(known)) if known else None,
        failures=tuple(failures),
        is_stale=bool(correct) and any(run.correct is not None for run in plan.list_stale()),
    )


def have_same_examples(a: RowPlan, b: RowPlan) -> bool:
    """True if two rows are evaluated on the same test examples, so that they can be compared example by example."""
    one, other = a.config.data, b.config.data
    return (one.source, one.eval_split, one.args) == (other.source, other.eval_split, other.args)


@dataclasses.dataclass(frozen=True)
class ComputedResult:
    """The result of a computed row; `values` is None if its function failed, for the reason `failure`, or was not called."""

    row: ComputedRow
    values: Mapping[str, Any] | None = None
    failure: str | None = None
    seconds: float = 0.0

    @property
    def status(self) -> str:
        """One of "computed", "failed" or "not run"."""
        return "failed" if self.failure else ("computed" if self.values else "not run")


def compute_row(row: ComputedRow, arguments: Mapping[str, Any]) -> ComputedResult:
    """Calls a row's function; an exception becomes the row's failure, and its traceback is printed on standard error."""
    begin = time.perf_counter()
    try:
        values = load_object(row.function, {}, "function")(**arguments)
        if not (isinstance(values, Mapping) and values and all(map(_is_kept, values.values()))):
            raise UserError(f"its function gave {values!r}: give {{column: number or text, name: array}}.")
    except Exception as error:  # recorded, so that the other rows go on
        if not isinstance(error, UserError):
            traceback.print_exc(file=sys.stderr)
        return ComputedResult(row, failure=explain_failure(error))
    return ComputedResult(row, values, seconds=time.perf_counter() - begin)


def _is_kept(value: Any) -> bool:
    return isinstance(value, str) or np.asarray(value).dtype.kind in "biuf"


def record_failure(run: SeedRun, error: BaseException) -> None:
    """Writes `failure.txt`: the reason in one line, then the traceback."""
    with contextlib.suppress(OSError):  # the cause of the failure may strike here too
        run.path.mkdir(parents=True, exist_ok=True)
        (run.path / FAILURE).write_text(f"{explain_failure(error)}\n\n{''.join(traceback.format_exception(error))}")
        run.push(FAILURE)


def explain_failure(error: BaseException) -> str:
    """Returns one line for a table: a user error's sentence, or the exception's type and the first line of its text."""
    return " ".join((str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {one_sentence(error)}").split())
