"""The messages of a training command on the terminal."""

import contextlib
import json
import platform
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax

from attention_jax import tree
from attention_jax.config.config import flatten_config, get_fields
from attention_jax.config.describe import name_batch_unit
from attention_jax.config.unread import list_resting
from attention_jax.distributed.mesh import count_threads
from attention_jax.distributed.sharding import count_bytes_per_device
from attention_jax.models.summary import summary
from attention_jax.optim.optimizers import is_frozen
from attention_jax.storage import is_remote
from attention_jax.tasks.resolve import resolve_config
from attention_jax.train import metrics
from attention_jax.train.checkpoint import get_package_versions
from attention_jax.train.loop import TrainingResult
from attention_jax.train.program import Program, build_optimizer, uses_stored_statistics
from attention_jax.train.restore import list_steps
from attention_jax.train.save_times import count_written_bytes, describe_notice
from attention_jax.train.workdir import read_config


def describe_run(program: Program, overrides: Mapping[str, str]) -> str:
    """Returns a table of the settings that decide a run's numbers: versions, devices, mesh, batch norm, counts, durations."""
    config, durations, devices = program.config, program.durations, program.mesh.devices
    counts = summary(program.model, program.task.example_inputs(config))
    versions = ", ".join(f"{name} {version}" for name, version in get_package_versions().items())
    mesh = " x ".join(f"{name}={size}" for name, size in program.mesh.shape.items())
    rows = {
        "versions": f"python {platform.python_version()}, {versions}",
        "devices": f"{jax.process_count()} process(es) x {jax.local_device_count()} {devices.flat[0].device_kind}, "
        f"{count_threads()} threads a process",
        "mesh": f"{mesh}, mode {config.parallel.mode}",
        "state": _state(program),
        "saving": describe_notice(count_written_bytes(program.abstract_state), config.checkpoint.megabytes_per_second),
        "precision": config.precision,
        **program.task.describe(config),
        "network": f"{config.model.name}: {counts.params:,} parameters, {counts.macs:,} multiply-adds an example",
        "length": f"{durations.total} steps = {durations.total / durations.steps_per_epoch:g} epochs of "
        f"{durations.steps_per_epoch} batches of {config.batch_size} {name_batch_unit(config)}, seed {config.seed}",
        "overrides": ", ".join(f"{name}={value}" for name, value in overrides.items()) or "none",
    }
    if frozen := _frozen(program):
        rows["frozen"] = frozen
    if flags := metrics.get_compiler_flags():
        rows["XLA flags"] = flags
    if config.evaluation.patience:
        after = f"after {config.evaluation.patience} evaluations, one in {durations.evaluate_every} steps, without a better"
        where = f"{program.task.headline(config)} on split {config.data.eval_split!r}"
        rows["early stop"] = f"{after} {where}; the schedule is that of all {durations.total} steps"
    if config.data.eval_split.startswith("test") and durations.evaluate_every < durations.total:
        chosen = f"checkpoint.keep_best={config.checkpoint.keep_best} chooses on split {config.data.eval_split!r}"
        rows["checkpoints"] = f"{chosen}, where only the last may be judged: choose with data.eval_split='validation'"
    if resting := list_resting(flatten_config(config), get_fields(config)):
        rows["not read"] = ", ".join(resting)
    width = max(map(len, rows))
    return "\n".join(f"{name:<{width}}  {text}" for name, text in rows.items())


def _frozen(program: Program) -> str:
    """Returns the frozen parameters, if any, and the statistics that batch norm then uses."""
    rules, params = program.config.optimizer.rate_rules, tree.flatten_by_path(program.abstract_state.params)
    frozen = sum(leaf.size for path, leaf in params.items() if is_frozen(rules, path))
    if not frozen:
        return ""
    moving = "still those of each batch, which batch_norm.granularity='stored' changes"
    statistics = f"; batch norm's statistics are {'the stored ones' if uses_stored_statistics(program.config) else moving}"
    text = f"{frozen:,} of {sum(leaf.size for leaf in params.values()):,} parameters, whose rate is 0"
    return text + statistics * bool(tree.flatten_by_path(program.abstract_state.batch_stats))


def _state(program: Program) -> str:
    """Returns the bytes of the state on a device, and the parameters that are replicated against their rule."""
    sharding, state = program.sharding, program.abstract_state
    if not sharding.is_sharded:
        return "replicated on every device"
    total = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
    text = f"{count_bytes_per_device(state):,} of {total:,} bytes on a device"
    left, rest = sharding.undivided[:8], len(sharding.undivided[8:])
    return f"{text}; replicated against its rule: {', '.join(left) or 'nothing'}{f' and {rest} more' if rest else ''}"


def describe_extension(program: Program, path: str) -> str:
    """Returns what a longer total changes in the schedule of a run in a workdir, and "" if it changes nothing.

    The rate of the next step and of the last one, by the old total and by the new one.
    """
    saved = None if is_remote(path) else read_config(Path(path).expanduser())
    names = [name for name in saved or {} if name.startswith("total_")]
    if saved is None or not names or any(saved[name] >= program.config.get(name, 0) for name in names):
        return ""
    old = program.config.copy_and_resolve_references()
    with old.unlocked(), old.ignore_type():
        old.update({name: saved[name] for name in names})
    before = resolve_config(old)
    (was, _), (will, _) = build_optimizer(before), build_optimizer(program.resolved)
    step, ends = max(list_steps(Path(path).expanduser()), default=0), (before.durations.total, program.durations.total)
    rates = [f"{float(rate(at)):.4g}" for rate, at in ((was, step), (will, step), (was, ends[0] - 1), (will, ends[1] - 1))]
    totals = ", ".join(f"{name} {saved[name]} -> {program.config.get(name)}" for name in names)
    return (
        f"extension: {totals}, {ends[0]} -> {ends[1]} steps. The learning rate of step {step + 1}, the next, was {rates[0]} by "
        f"the old length and will be {rates[1]}; that of the last step was {rates[2]} at step {ends[0]} and will be {rates[3]} "
        f"at step {ends[1]}. The steps before had the rate of the old length: the end is not that of a run which was as long "
        "from the beginning."
    )


class ProgressBar:
    """A bar on the terminal: finished steps, time left, and the newest loss, score and examples a second of the log.

    Called with the number of finished steps.
    """

    def __init__(self, bar: Any):
        self._bar, self._newest = bar, dict[str, str]()

    def __call__(self, step: int) -> None:
        self._bar.update(step - self._bar.n)

    def show_line(self, line: Mapping[str, Any]) -> None:
        """Shows what a line of the log, or of its times, says."""
        names = {"train/loss": "loss", "train/accuracy": "accuracy", "headline": "eval", "examples_per_second": "examples/s"}
        for name, text in names.items():
            if name in line:
                self._newest[text] = f"{line[name]:,.0f}" if name == "examples_per_second" else f"{line[name]:.4g}"
        self._bar.set_postfix(self._newest, refresh=False)


@contextlib.contextmanager
def show_progress(total: int | None, active: bool, label: str = "training", unit: str = "step") -> Iterator[ProgressBar]:
    """Shows a bar, with the time left if the total is known."""
    from tqdm import tqdm

    with tqdm(total=total, desc=label, unit=unit, disable=not active, file=sys.stderr, mininterval=0.5) as bar:
        yield ProgressBar(bar)


def describe_outcome(result: TrainingResult) -> str:
    """Returns the last lines of a training command: the seconds until the first step, compilation among them, and the end."""
    first = "no step was left to take."
    if result.first_step is not None:
        first = "first step after {:.1f} s ({:.1f} s to trace and compile).".format(*result.first_step)
    if result.mfu is not None:
        first += f"\nmodel FLOPs utilisation {100 * result.mfu:.1f} %; ./launch.sh preflight says how much it can be at most."
    if result.stopped:
        return f"{first}\nstopped after step {result.step} and saved; the same command goes on from there."
    last = next(line for line in reversed(metrics.read_log(result.folder)) if "headline" in line)
    scores = {name: v if isinstance(v, str) else round(v, 6) for name, v in last.items() if "/" in name}
    early = f"\nstopped early: {result.early_stop}. --best takes the best checkpoint." if result.early_stop else ""
    return f"{first}\ndone after step {result.step}: {json.dumps(scores)}{early}"
