"""A table's workdirs: the plan of its runs, which of them are done, and their numbers."""

import contextlib
import dataclasses
import functools
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.core import FrozenDict
from ml_collections import ConfigDict

from attention_jax.config.config import flatten_config, list_differences
from attention_jax.config.plugins import load_object
from attention_jax.errors import UserError, one_sentence
from attention_jax.models import create_model
from attention_jax.models.summary import Summary, summary
from attention_jax.storage import RemoteFolder
from attention_jax.tables.measures import read_arrays, read_measure
from attention_jax.tables.remote import RemoteWorkdir
from attention_jax.tables.table import ComputedRow, Row, Table
from attention_jax.tasks import get_task
from attention_jax.train import metrics, restore, workdir
from attention_jax.train.loop import replace_seed
from attention_jax.train.program import Durations, resolve_durations
from attention_jax.train.workdir import EVALUATION

FAILURE = "failure.txt"


@dataclasses.dataclass(frozen=True)
class TableRequest:
    """One call of `run_table`, checked.

    Attributes:
        scale: the name of one of the table's scales.
        seeds: number of them in a row.
        folder: holds `row/seed` for each run.
        output: folder of the table and its plots.
        selected: labels of the rows to run.
        command: makes the same table again.
        remote: what `folder` stands for, when the workdir is remote.
        published: where the output goes instead of `output`, when that is remote.
    """

    table: Table
    scale: str
    seeds: int
    folder: Path
    output: Path
    selected: frozenset[str]
    command: str
    remote: RemoteWorkdir | None = None
    published: RemoteFolder | None = None

    @property
    def workdir(self) -> str | Path:
        """The folder or URI that holds the runs."""
        return self.remote.workdir if self.remote else self.folder


@dataclasses.dataclass(frozen=True)
class SeedRun:
    """One ordinary run; all that is known about it is in its workdir."""

    seed: int
    path: Path
    total_steps: int
    measures: tuple[str, ...] = ()
    remote: RemoteWorkdir | None = None

    @property
    def place(self) -> str | Path:
        """The folder or URI where it is trained."""
        return self.remote.uri(self.path) if self.remote else self.path

    def pull(self) -> None:
        """Fetches a remote run."""
        if self.remote:
            self.remote.pull(self.path)

    def push(self, name: str) -> None:
        """Uploads a file that was written here, or removes one that was removed, when the run is remote."""
        if self.remote:
            self.remote.push(self.path / name)

    @property
    def step(self) -> int:
        """Step of the newest checkpoint; 0 without one."""
        return max(restore.list_steps(self.path), default=0)

    @property
    def correct(self) -> np.ndarray | None:
        """[N], 1 where the test example was right after the last step; None when the run is not finished."""
        finished = self.step == self.total_steps
        outputs = read_arrays(self.path / EVALUATION, self.total_steps, ["correct"]) if finished else None
        return outputs["correct"].astype(float) if outputs else None

    @property
    def measured(self) -> dict[str, np.ndarray]:
        """Values of all measures after the last step, {name: number or array}."""
        found = [read_measure(self.path, self.total_steps, name) for name in self.measures]
        return {key: value for values in found if values for key, value in values.items()}

    @property
    def done(self) -> bool:
        """True if it is trained, evaluated and measured."""
        return self.correct is not None and all(read_measure(self.path, self.total_steps, name) for name in self.measures)

    @property
    def failure(self) -> str | None:
        """The reason why the last attempt failed, in one line."""
        path = self.path / FAILURE
        return path.read_text().partition("\n")[0] if path.exists() else None

    def difference(self, config: ConfigDict) -> list[str]:
        """Lists how the config that the workdir was made with differs from this one."""
        saved = workdir.read_config(self.path)
        return list_differences(saved, replace_seed(config, self.seed)) if saved is not None else []

    def seconds(self) -> float | None:
        """Returns the wall-clock time of all calls for this run; None when it was never measured."""
        calls = [line["seconds"] for line in metrics.read_log(self.path / metrics.TIMING) if line.get("event") == "call"]
        return sum(calls) if calls else None

    def lines(self) -> list[dict[str, Any]]:
        """Reads the log."""
        return list(metrics.read_log(self.path / metrics.METRICS))


@dataclasses.dataclass(frozen=True)
class RowPlan:
    """A row with its config resolved against the data, and its runs; `broken` is the reason if that failed.

    `network` counts the paper's network, `counts` the one that is trained.
    """

    row: Row
    config: ConfigDict
    changes: dict[str, Any]
    durations: Durations | None
    counts: Summary | None
    network: Summary | None
    runs: tuple[SeedRun, ...]
    broken: Exception | None = None


@dataclasses.dataclass(frozen=True)
class RowResult:
    """The results of a row's finished runs.

    Attributes:
        correct: [finished seeds, N]; None when there are none.
        measured: {name: number or array} of each finished seed, as far as it has been measured.
        seconds: wall-clock time of a run, mean over seeds.
        failure: one line for each seed that failed.
    """

    plan: RowPlan
    correct: np.ndarray | None
    measured: tuple[dict[str, np.ndarray], ...]
    seconds: float | None
    failures: tuple[str, ...]

    @property
    def label(self) -> str:
        """The row's label."""
        return self.plan.row.label

    @property
    def done(self) -> int:
        """Number of finished seeds."""
        return 0 if self.correct is None else len(self.correct)

    @property
    def status(self) -> str:
        """ "done", "failed", "not run", or "partial" when some seeds are missing."""
        if self.done == len(self.plan.runs):
            return "done"
        return "partial" if self.done else ("failed" if self.failures else "not run")


def plan_rows(request: TableRequest, count_networks: bool = True) -> list[RowPlan]:
    """Finds every row's steps, counts and workdirs without compiling anything.

    The papers' networks are large and take seconds to count; a dry run does not print their counts.
    """
    return [_plan_row(request, row, count_networks) for row in request.table.rows]


def _plan_row(request: TableRequest, row: Row, count_network: bool) -> RowPlan:
    table = request.table
    config, base = table.config(row, request.scale), table.base_config(request.scale)
    before, after = flatten_config(base), flatten_config(config)
    changes = {name: after.get(name) for name in [*after, *before] if after.get(name) != before.get(name)}
    durations = counts = network = broken = None
    try:
        task = get_task(config.task)
        config = task.resolve(config)
        task.loader(config, config.data.train_split, (0, 1), training=True)  # fails where the data are missing
        durations = resolve_durations(config)
        counts = summary(task.model(config), task.example_inputs(config))
        if row.network and count_network:
            network = _count(FrozenDict(row.network), tuple(table.network_shape))
    except Exception as error:  # recorded when the row's turn comes, so that the others go on
        broken = error
    total = durations.total if durations else 0
    runs = tuple(
        SeedRun(seed, request.folder / row.slug / str(seed), total, tuple(table.measures), request.remote)
        for seed in range(request.seeds)
    )
    return RowPlan(row, config, changes, durations, counts, network, runs, broken)


@functools.cache
def _count(network: FrozenDict, shape: tuple[int, ...] | tuple[tuple[int, ...], ...]) -> Summary:
    """Rows that differ in their recipe alone share a network: counting a ResNet-200 takes seconds."""
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
    )


def have_same_examples(a: RowPlan, b: RowPlan) -> bool:
    """True if two rows are evaluated on the same test examples, so that they can be compared example by example."""

    def data(plan: RowPlan) -> tuple[Any, ...]:
        fields = plan.config.data
        return fields.source, fields.eval_split, tuple(sorted(flatten_config(fields.args).items()))

    return data(a) == data(b)


def refuse_other_configs(plans: Sequence[RowPlan]) -> None:
    """Raises UserError with the difference when a workdir of these rows was made with another config."""
    for plan in plans:
        for run in plan.runs:
            lines = [] if plan.broken else run.difference(plan.config)
            if lines:
                raise UserError(
                    f"row {plan.row.label!r}, seed {run.seed}: {run.place} belongs to another config ({'; '.join(lines)}): "
                    "give another --workdir, or the table file as it was."
                )


@dataclasses.dataclass(frozen=True)
class ComputedResult:
    """A row's result; `values` is None when its function failed, for the reason `failure`, or was not called."""

    row: ComputedRow
    values: Mapping[str, Any] | None = None
    failure: str | None = None
    seconds: float = 0.0

    @property
    def status(self) -> str:
        """ "computed", "failed" or "not run"."""
        return "failed" if self.failure else ("computed" if self.values else "not run")


def compute_row(row: ComputedRow, arguments: Mapping[str, Any]) -> ComputedResult:
    """Calls a row's function; an exception becomes the row's failure, and its traceback goes to the standard error."""
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
    with contextlib.suppress(OSError):  # what made the run fail may make this fail
        run.path.mkdir(parents=True, exist_ok=True)
        (run.path / FAILURE).write_text(f"{explain_failure(error)}\n\n{''.join(traceback.format_exception(error))}")
        run.push(FAILURE)


def explain_failure(error: BaseException) -> str:
    """Returns one line for a table: a user error's sentence, or the exception's type and the first line of its text."""
    return " ".join((str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {one_sentence(error)}").split())
