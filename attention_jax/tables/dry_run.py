"""A dry run of a table: the runs, their differences, and an estimate of their costs, here and on a TPU slice."""

import dataclasses
import functools
import time
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp

from attention_jax.config.describe import name_batch_unit
from attention_jax.errors import one_sentence
from attention_jax.models.summary import Summary, summary
from attention_jax.preflight.chips import Chip, find_slice
from attention_jax.tables.results import RowPlan, SeedRun, TableRequest

_PASSES = 3  # a training step in multiply-adds of its forward pass: the backward pass has two products for each
_UTILISATION = 0.3  # share of a chip's peak, for estimates of chip-hours


def describe_runs(request: TableRequest, plans: Sequence[RowPlan], topology: str | None = None) -> Iterator[str]:
    """Yields every row and seed with its workdir, status, changed fields, length and costs.

    Args:
        topology: a TPU slice, such as "v5e-16", whose chip-hours are estimated.
    """
    table = request.table
    trained = [f"{len(plans)} rows x {request.seeds} seeds"] if plans else []
    computed = [f"{len(table.computed)} computed rows"] if table.computed else []
    yield f"{table.title}: scale {request.scale}, {', '.join(computed + trained)} (dry run)"
    arguments = ", ".join(f"{name}={value!r}" for name, value in table.scales[request.scale].arguments.items())
    for row in table.computed:
        yield f"\n{row.label}: {'would be computed' if row.label in request.selected else 'not selected'}: {arguments or '–'}"
    slice_ = find_slice(topology, "--slice") if topology else None
    costs = {plan.row.label: _estimate_cost(plan, plans) for plan in plans}
    for plan in plans:
        changes = ", ".join(f"{name}={value!r}" for name, value in plan.changes.items())
        length = (
            f"{plan.durations.total} steps of {plan.config.batch_size} {name_batch_unit(plan.config)}"
            if plan.durations
            else "length unknown"
        )
        yield f"\n{plan.row.label}: {length}; {changes or 'the base config as it is'}"
        if cost := costs[plan.row.label]:
            hours = f"; about {cost.count_chip_hours(slice_.chip):.2g} chip-hours" if slice_ else ""
            counts = f"{cost.counts.params:,} parameters, {cost.counts.macs:,} multiply-adds an example"
            yield f"  {counts}; a run: about {_format_seconds(cost.seconds)} here, {cost.method}{hours}"
        for run in plan.runs:
            yield f"  seed {run.seed}: {_status(request, plan, run)}: {run.place}"
    missing = [
        (costs[p.row.label], sum(run.correct is None for run in p.runs)) for p in plans if p.row.label in request.selected
    ]
    known = [(cost, number) for cost, number in missing if cost and number]
    if known:
        yield f"\nwhat is missing: about {_format_seconds(sum(cost.seconds * number for cost, number in known))} here"
    if slice_ and known:
        total = sum(cost.count_chip_hours(slice_.chip) * number for cost, number in known)
        yield (
            f"on {slice_.name}: about {total:.2g} chip-hours, {total / slice_.chips:.2g} hours: an estimate from {_PASSES} x "
            f"the multiply-adds of the forward pass at {100 * _UTILISATION:.0f} % of a chip's {slice_.chip.flops / 1e12:.0f} "
            "TFLOP/s, which small networks do not reach, without evaluation; ./launch.sh preflight compiles the step"
        )


@dataclasses.dataclass(frozen=True)
class RunCost:
    """Estimates the cost of one run of a row."""

    counts: Summary
    multiply_adds: float  # over all its training steps
    seconds: float  # on this machine
    method: str  # how the seconds were estimated

    def count_chip_hours(self, chip: Chip) -> float:
        """Returns the hours of one chip at `_UTILISATION` of its peak."""
        return 2 * self.multiply_adds / (_UTILISATION * chip.flops) / 3600


def _estimate_cost(plan: RowPlan, plans: Sequence[RowPlan]) -> RunCost | None:
    """Returns None if the config is not resolved or its network does not run; the row's status then has the reason."""
    if not (work := _count_work(plan)):
        return None
    if seconds := _list_seconds(plan):
        return RunCost(*work, sum(seconds) / len(seconds), "as its finished runs took")
    timed = [(each[1], _list_seconds(other)) for other in plans if (each := _count_work(other))]
    if spent := sum(sum(seconds) for _, seconds in timed):
        rate = sum(multiply_adds * len(seconds) for multiply_adds, seconds in timed) / spent
        return RunCost(*work, work[1] / rate, "by its multiply-adds, from finished runs of other rows")
    return RunCost(
        *work, work[1] / _measure_rate(), "a rough guess by its multiply-adds and the rate of one convolution's gradient"
    )


def _count_work(plan: RowPlan) -> tuple[Summary, float] | None:
    """Returns the network's counts, and the multiply-adds of all training steps."""
    if plan.resolved is None:
        return None
    config, task = plan.resolved.config, plan.resolved.task
    try:
        counts = plan.counts or summary(task.model(config), task.example_inputs(config))
    except Exception:  # the reason is in the row's status
        return None
    examples = next(iter(task.batch_shapes(config)[-1].values())).shape[0]
    return counts, float(_PASSES * counts.macs * examples * plan.resolved.durations.total)


def _list_seconds(plan: RowPlan) -> list[float]:
    """Returns the wall-clock times of the row's trained runs."""
    runs = [] if plan.broken else [run for run in plan.runs if run.correct is not None and not run.difference(plan.config)]
    return [seconds for run in runs if (seconds := run.seconds())]


@functools.cache
def _measure_rate() -> float:
    """Measures this machine's multiply-adds per second in a convolution and its gradient, best of five."""
    images, kernel = jnp.ones((32, 16, 16, 32)), jnp.ones((3, 3, 32, 32))

    @jax.jit
    def step(images: jax.Array, kernel: jax.Array) -> tuple[jax.Array, jax.Array]:
        dimensions = ("NHWC", "HWIO", "NHWC")

        def loss(images: jax.Array, kernel: jax.Array) -> jax.Array:
            return jnp.square(jax.lax.conv_general_dilated(images, kernel, (1, 1), "SAME", dimension_numbers=dimensions)).sum()

        return jax.grad(loss, (0, 1))(images, kernel)

    times = []
    for _ in range(6):  # the first compiles
        begin = time.perf_counter()
        jax.block_until_ready(step(images, kernel))
        times.append(time.perf_counter() - begin)
    return _PASSES * 32 * 16 * 16 * kernel.size / min(times[1:])


def _format_seconds(seconds: float) -> str:
    for unit, size in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:,.3g} {unit}"
    return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"


def _status(request: TableRequest, plan: RowPlan, run: SeedRun) -> str:
    if plan.broken:
        return f"would fail ({one_sentence(plan.broken)})" + "; whether its data have changed: unknown" * bool(run.step)
    if lines := run.difference(plan.config):
        return f"belongs to another config ({'; '.join(lines)})"
    if change := plan.describe_change(run):
        return f"{'done' if run.done else 'begun'}, stale: {change}; --rerun-stale trains it again"
    if run.done:
        return "done"
    if plan.row.label not in request.selected:
        return "not selected"
    if run.correct is not None:
        return "would be measured"
    return f"would run from step {run.step}" if run.step else "would run"
