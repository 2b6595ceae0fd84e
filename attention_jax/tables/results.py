"""What the workdirs of a table hold: a plan of its runs, which of them are done, and the numbers they left."""

import contextlib
import dataclasses
import functools
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.core import FrozenDict
from ml_collections import ConfigDict

from attention_jax.config.config import flatten_config, list_differences
from attention_jax.errors import UserError, one_sentence
from attention_jax.models import create_model
from attention_jax.models.summary import Summary, summary
from attention_jax.storage import RemoteFolder
from attention_jax.tables import measures
from attention_jax.tables.remote import Remote
from attention_jax.tables.table import Row, Table
from attention_jax.tasks import get_task
from attention_jax.train import checkpoint, metrics, workdir
from attention_jax.train.loop import replace_seed
from attention_jax.train.program import Durations, resolve_durations
from attention_jax.train.workdir import EVALUATION

FAILURE = "failure.txt"


@dataclasses.dataclass(frozen=True)
class Order:
    """What a call of `run_table` asks for.

    Attributes:
        scale: the name of one of the table's scales.
        seeds: how many a row.
        folder: holds `row/seed` for each run.
        output: folder of the table, charts and pictures.
        selected: labels of the rows to run.
        command: makes the same table again.
        remote: what `folder` stands for, when that is at an address.
        published: where `output` is brought, when that is at an address.
    """

    table: Table
    scale: str
    seeds: int
    folder: Path
    output: Path
    selected: frozenset[str]
    command: str
    remote: Remote | None = None
    published: RemoteFolder | None = None

    @property
    def workdir(self) -> str | Path:
        """The folder or address that holds the runs."""
        return self.remote.workdir if self.remote else self.folder


@dataclasses.dataclass(frozen=True)
class SeedRun:
    """One ordinary run: its workdir is all there is to know about it."""

    seed: int
    path: Path
    total_steps: int
    measures: tuple[str, ...] = ()
    remote: Remote | None = None

    @property
    def place(self) -> str | Path:
        """Where it is trained."""
        return self.remote.address(self.path) if self.remote else self.path

    def pull(self) -> None:
        """Brings what is at an address here."""
        if self.remote:
            self.remote.pull(self.path)

    def push(self, name: str) -> None:
        """Brings a file that was written or removed here to the address."""
        if self.remote:
            self.remote.push(self.path / name)

    @property
    def step(self) -> int:
        """Of the newest checkpoint; 0 without one."""
        return max(checkpoint.list_steps(self.path), default=0)

    @property
    def correct(self) -> np.ndarray | None:
        """[N] whether each test example was right after the last step; None when the run is not finished."""
        if self.step != self.total_steps:
            return None
        try:
            with np.load(self.path / EVALUATION) as outputs:
                return outputs["correct"].astype(float) if int(outputs["step"]) == self.total_steps else None
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):  # missing or cut short
            return None

    @property
    def measured(self) -> dict[str, np.ndarray]:
        """{name: number or array} of all measures that were taken after the last step."""
        taken = [measures.read(self.path, self.total_steps, name) for name in self.measures]
        return {key: value for values in taken if values for key, value in values.items()}

    @property
    def done(self) -> bool:
        """Whether it is trained, evaluated and measured."""
        taken = (measures.read(self.path, self.total_steps, name) is not None for name in self.measures)
        return self.correct is not None and all(taken)

    @property
    def failure(self) -> str | None:
        """Why the last attempt ended, in one line."""
        path = self.path / FAILURE
        return path.read_text().partition("\n")[0] if path.exists() else None

    def difference(self, config: ConfigDict) -> list[str]:
        """How the config that the workdir was made with differs from this one."""
        saved = workdir.read_config(self.path)
        return list_differences(saved, replace_seed(config, self.seed)) if saved is not None else []

    def seconds(self) -> float | None:
        """Wall-clock time of all calls that the run took; None when it was never measured."""
        calls = [line["seconds"] for line in metrics.read_log(self.path / metrics.TIMING) if line.get("event") == "call"]
        return sum(calls) if calls else None

    def lines(self) -> list[dict[str, Any]]:
        """The log."""
        return list(metrics.read_log(self.path / metrics.METRICS))


@dataclasses.dataclass(frozen=True)
class RowPlan:
    """A row with its config resolved against the data and its runs; `broken` says why that failed, if it did.

    `network` counts the paper's network, `params` and `macs` the one that is trained.
    """

    row: Row
    config: ConfigDict
    changes: dict[str, Any]
    durations: Durations | None
    params: int | None
    macs: int | None
    network: Summary | None
    runs: tuple[SeedRun, ...]
    broken: Exception | None = None


@dataclasses.dataclass(frozen=True)
class RowResult:
    """What a row's finished runs came to.

    Attributes:
        correct: [seeds that are finished, N]; None when none is.
        measured: {name: number or array} of each seed that is finished, as far as it has been measured.
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
        return self.plan.row.label

    @property
    def status(self) -> str:
        """ "done", "failed", "not run", or "partial" when some seeds are missing."""
        done = 0 if self.correct is None else len(self.correct)
        if done == len(self.plan.runs):
            return "done"
        return "partial" if done else ("failed" if self.failures else "not run")


def plan(order: Order, count_networks: bool = True) -> list[RowPlan]:
    """Every row's steps, counts and workdirs, found without compiling anything.

    The papers' networks are large and take seconds to count, which a call that shows no counts leaves out.
    """
    return [_plan_row(order, row, count_networks) for row in order.table.rows]


def _plan_row(order: Order, row: Row, count_network: bool) -> RowPlan:
    config, base = order.table.config(row, order.scale), order.table.base_config(order.scale)
    before, after = flatten_config(base), flatten_config(config)
    changes = {name: after.get(name) for name in [*after, *before] if after.get(name) != before.get(name)}
    durations = params = macs = network = broken = None
    try:
        task = get_task(config.task)
        config = task.resolve(config)
        task.loader(config, config.data.train_split, (0, 1), training=True)  # whether the data are there
        durations = resolve_durations(config)
        counts = summary(task.model(config), task.example_inputs(config))
        params, macs = counts.params, counts.macs
        if row.network and count_network:
            network = _count(FrozenDict(row.network), tuple(order.table.network_shape))
    except Exception as error:  # recorded when the row's turn comes, so that the others go on
        broken = error
    total = durations.total if durations else 0
    names = tuple(order.table.measures)
    runs = tuple(SeedRun(seed, order.folder / row.slug / str(seed), total, names, order.remote) for seed in range(order.seeds))
    return RowPlan(row, config, changes, durations, params, macs, network, runs, broken)


@functools.cache
def _count(network: FrozenDict, shape: tuple[int, ...] | tuple[tuple[int, ...], ...]) -> Summary:
    """Rows that differ in their recipe alone share a network: counting a ResNet-200 takes seconds."""
    if isinstance(shape[0], tuple):  # several inputs are token sequences
        shape = tuple(jax.ShapeDtypeStruct(each, jnp.int32) for each in shape)
    return summary(create_model(**network), shape)


def read_row(plan: RowPlan) -> RowResult:
    """The numbers that the finished runs of a row left; runs of another config do not count."""
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


def same_examples(a: RowPlan, b: RowPlan) -> bool:
    """Whether two rows are evaluated on the same test examples, so that they can be compared example by example."""

    def data(plan: RowPlan) -> tuple[Any, ...]:
        fields = plan.config.data
        return fields.source, fields.eval_split, tuple(sorted(flatten_config(fields.args).items()))

    return data(a) == data(b)


def refuse_other_configs(plans: Sequence[RowPlan]) -> None:
    """Raises UserError with the difference when a workdir of these rows was made by another config."""
    for plan in plans:
        for run in plan.runs:
            lines = [] if plan.broken else run.difference(plan.config)
            if lines:
                raise UserError(
                    f"row {plan.row.label!r}, seed {run.seed}: {run.place} belongs to another config ({'; '.join(lines)}): "
                    "give another --workdir, or the table file as it was."
                )


def record_failure(run: SeedRun, error: BaseException, traceback: str) -> None:
    """Writes `failure.txt`: one line that says why, then the traceback."""
    reason = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {one_sentence(error)}"
    with contextlib.suppress(OSError):  # what made the run fail may make this fail
        run.path.mkdir(parents=True, exist_ok=True)
        (run.path / FAILURE).write_text(f"{' '.join(reason.split())}\n\n{traceback}")
        run.push(FAILURE)
