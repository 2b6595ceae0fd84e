"""Compares blocks: a user's block beside none, controls and published blocks, all at the same places of one network.

The rows form an ordinary table and follow its rules (`runner`, `verdicts`). The page begins with the verdict.
"""

import dataclasses
import inspect
import shlex
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

import attention_jax
from attention_jax.analysis import pointing
from attention_jax.config.config import apply_pieces, flatten_config, override
from attention_jax.config.plugins import load_object, split_name
from attention_jax.errors import UserError
from attention_jax.models import create_model
from attention_jax.models.gate import GATES
from attention_jax.models.registry import check_model
from attention_jax.tables.bases import BASES, Base, get_base
from attention_jax.tables.compare_page import CONTROL, NONE, PUBLISHED, YOURS, BlockComparison, run_comparison
from attention_jax.tables.match import match_costs
from attention_jax.tables.runner import make_request
from attention_jax.tables.table import Row, Scale, Table, check_labels
from attention_jax.tasks.resolve import resolve_config

_CONTROLS = "attention_jax.nn.controls"
# Published gates: label, gate, its arguments; BAM's released code is a reading of the paper of its own.
_PUBLISHED: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("SE", "se", {}),
    ("BAM", "bam", {}),
    ("BAM (released code)", "bam", {"combine": "product", "batch_norm": "code", "fit_dilation": False}),
    ("CBAM", "cbam", {}),
    ("ECA", "eca", {}),
    ("global context", "gc", {}),
    ("self-attention", "self_attention", {}),
)
_PIECES = ("label_smoothing", "mixup", "cutmix", "ema", "stochastic_depth", "randaugment", "cosine_lr")


def compare(
    gate: str | Callable[..., Any] | Sequence[str | Callable[..., Any]] | None = None,
    *,
    recipe: str | Sequence[str] | None = None,
    base: str | None = None,
    on: str = "cued_digits",
    at: str = "stage",
    scale: str | None = None,
    rows: Sequence[str] | None = None,
    seeds: int | None = None,
    tune: str | None = None,
    match: str | None = None,
    overrides: Mapping[str, Any] | None = None,
    workdir: str | Path | None = None,
    output: str | Path | None = None,
    dry_run: bool = False,
    rerun_stale: bool = False,
    trust_code: bool = False,
) -> BlockComparison:
    """Trains blocks side by side and judges yours; calling it again continues where the last call ended.

    Returns the verdict, the rows, and the path of the page. `code` is the exit code of `./launch.sh compare`.

    Args:
        gate: one or several blocks of yours: `path/to/file.py:Name`, a dotted path, or a module's class or function.
        recipe: recipe pieces to compare in place of gates, `path/to/file.py:piece` or names in `recipes`.
        base: the network's name, or a config file that replaces the task and recipe of `on`.
        on: a name in `bases.BASES`, or a data source.
        at: "stage" puts blocks after stages, "block" into every residual branch.
        scale: a scale of the task, by default its first.
        rows: labels or patterns of the rows to keep besides the first; None keeps all.
        seeds: number of seeds per row, by default the scale's.
        tune: "lr:N" tries N learning rates for each row on the validation split, N odd; the page has both tables.
        match: "params" or "macs" adjusts every other row to the cost of your first block.
        overrides: {dotted config field: value} for all rows.
        workdir: folder or URI of the runs, by default `runs/compare-<blocks>-<on>[-<scale>]`, also the name of the page.
        output: folder or URI of the page, by default the workdir.
        dry_run: True only prints what would run.
        rerun_stale, trust_code: see `run_table`.

    Raises UserError for a wrong name, place, scale or number, and for missing data.
    """
    gates, pieces = ([_name_object(each) for each in _list(given)] for given in (gate, recipe))
    if bool(gates) == bool(pieces):
        raise UserError("compare: give either --gate=FILE.py:Name or --recipe=FILE.py:piece.")
    if at not in ("stage", "block"):
        raise UserError(f"--at={at} is not right: give stage or block.")
    task, changes = get_base(on, base), dict(overrides or {})
    of_gates = {name: changes.pop(name) for name in list(changes) if name.startswith("model.gate_")}
    start = override(task.config(), changes)
    made = _list_recipe_rows(start, pieces) if pieces else _list_gate_rows(task, start, gates, at, of_gates)
    names = [split_name(on)[1] or on, *([base] if base and not base.endswith(".py") else []), *([at] if at != "stage" else [])]
    table = _make_table(task, made, changes, on, [*names, *([f"equal-{match}"] if match else [])])
    notes: list[str] = []
    if rows:
        table, notes = _keep_rows(table, table.select(rows))
    scale = table.scale(scale)
    for row in table.rows:
        _check_row(table, row, scale, needs_data=row is table.rows[0])
    if match:
        table, more = _match_rows(table, scale, match)
        notes += more
    given: dict[str, Any] = {"on": on if on != "cued_digits" else None, "base": base, "at": at if at != "stage" else None}
    given |= {"tune": tune, "match": match, "rows": ",".join(rows or ()), "seeds": seeds}
    words = [*(f"--gate={name}" for name in gates), *(f"--recipe={name}" for name in pieces)]
    words += [f"--{name}={value}" for name, value in given.items() if value]
    words += [f"--config.{name}={value}" for name, value in {**changes, **of_gates}.items()]
    start_words = [*_launcher(), "compare", *words]
    command = shlex.join([*start_words, *([f"--scale={scale}"] if scale != table.scale(None) else [])])
    request = make_request(table, scale, None, seeds, workdir, output, trust_code, command=command)
    further = list(_list_further(start_words, task, on, scale))
    return run_comparison(request, notes, further, tune, dry_run, rerun_stale)


def _list(given: Any) -> list[Any]:
    """Returns a list, whether one or several were given."""
    if given is None:
        return []
    return list(given) if isinstance(given, (list, tuple)) else [given]


def _name_object(given: str | Callable[..., Any]) -> str:
    """Returns the name by which a run's config knows a block or piece."""
    if isinstance(given, str):
        return given
    module, name = getattr(given, "__module__", "__main__"), getattr(given, "__qualname__", "")
    if module == "__main__" or "<" in name or not name:
        raise UserError(
            f"compare: {given!r} exists only in this notebook, and a run must keep the code that made it: write it to a file, "
            "with %%writefile my_block.py, and give 'my_block.py:Name'."
        )
    if module in sys.modules and not getattr(sys.modules[module], "__spec__", None):  # a module that was loaded by its path
        return f"{sys.modules[module].__file__}:{name}"
    return f"{module}:{name}"


def _label(name: str, rows: Sequence[Row]) -> str:
    """Returns the name without its file, or with it if another row has the same name."""
    where, short = split_name(name)
    known = {row.slug for row in rows}
    labels = (short or name, f"{short or name} ({Path(where).name or 'yours'})", f"{short or name} (yours)")
    return next((label for label in labels if Row(label).slug not in known), labels[0])


def _takes(gate: str, argument: str) -> bool:
    """True if a gate is made with an argument of this name."""
    make = load_object(gate, GATES, "gate")
    if not callable(make):
        raise UserError(
            f"--gate={gate} is not right: give a Linen or NNX module class, or a function that returns a Linen module."
        )
    return argument in inspect.signature(make).parameters


def _list_gate_rows(task: Base, config: ConfigDict, gates: Sequence[str], at: str, given: Mapping[str, Any]) -> list[Row]:
    """Returns the rows: none, controls, published gates, yours."""
    place = {"model.gate_at": at, **({"model.gate_stages": task.gate_stages} if at == "stage" and task.gate_stages else {})}
    place |= given

    def make_row(label: str, gate: str, kind: str, arguments: Mapping[str, Any] | None = None) -> Row:
        fields = {
            **({"reduction": task.reduction} if task.reduction and _takes(gate, "reduction") else {}),
            **(arguments or {}),
        }
        own = {"model.gate": gate, **{f"model.gate_args.{name}": value for name, value in fields.items()}}
        return Row(label, overrides={**own, **place}, kind=kind)

    rows = [Row(NONE, overrides={"model.gate": None} if config.model.get("gate") else {})]
    network = create_model(**config.model)
    sizes = getattr(network, "stage_sizes", None)
    if sizes:
        stages = place.get("model.gate_stages") or tuple(range(1, len(sizes) + (at == "block")))
        deeper = tuple(size + (stage in stages) for stage, size in enumerate(sizes, 1))
        rows.append(Row("a block more", overrides={**rows[0].overrides, "model.stage_sizes": deeper}, kind=CONTROL))
    rows += [
        make_row("added branch", f"{_CONTROLS}.AddedBranch", CONTROL),
        make_row("added mean", f"{_CONTROLS}.AddedMean", CONTROL),
    ]
    for label, gate, arguments in _PUBLISHED:
        own = {"reduction": 8, **arguments} if gate == "self_attention" else arguments  # the paper's ratio for queries and keys
        rows.append(make_row(label, gate, PUBLISHED, own))
    for gate in gates:
        rows.append(make_row(_label(gate, rows), gate, YOURS))
    return rows


def _list_recipe_rows(config: ConfigDict, pieces: Sequence[str]) -> list[Row]:
    """Returns the rows: none, pieces of this library that change something, yours."""
    rows, before = [Row(NONE)], flatten_config(config)
    rows += [
        Row(name.replace("_", " "), pieces=(name,), kind=PUBLISHED)
        for name in _PIECES
        if flatten_config(apply_pieces(config, (name,))) != before
    ]
    for piece in pieces:
        rows.append(Row(_label(piece, rows), pieces=(piece,), kind=YOURS))
    return rows


def _make_table(task: Base, rows: Sequence[Row], changes: Mapping[str, Any], on: str, names: Sequence[str]) -> Table:
    """Makes the table of the rows with the planned comparisons; `names` are part of the names of its files and workdir."""
    labels = {kind: [row.label for row in rows if row.kind == kind] for kind in (CONTROL, PUBLISHED, YOURS)}
    mine, others = labels[YOURS], "none, controls and published blocks" if labels[CONTROL] else "other pieces"
    scales = {name: Scale(seeds=scale.seeds, overrides={**scale.overrides, **changes}) for name, scale in task.scales.items()}
    table = Table(
        path=Path("-".join(["compare", *(row.slug for row in rows if row.kind == YOURS), *names])),
        title=f"{' and '.join(mine)} beside {others}: {on}",
        source=task.notes,
        scales=scales,
        base=task.config,
        rows=tuple(rows),
        compare_to="baseline",
        also_compared=tuple((row, other) for row in mine for other in [*labels[CONTROL], *labels[PUBLISHED]]),
        measures={"maps": pointing.measure_maps} if labels[CONTROL] else {},
        pictures={"maps": pointing.plot_maps_side_by_side} if labels[CONTROL] else {},
        notes=_describe_rows(task, labels),
    )
    check_labels(table)
    return table


def _keep_rows(table: Table, chosen: Collection[str]) -> tuple[Table, list[str]]:
    """Returns the table with the first row and the chosen ones, and a sentence about the rows left out."""
    rows = tuple(row for i, row in enumerate(table.rows) if i == 0 or row.label in chosen)
    kept = {row.label for row in rows}
    also = tuple(pair for pair in table.also_compared if kept.issuperset(pair))
    others = [row.label for row in table.rows if row.label not in kept]
    return dataclasses.replace(table, rows=rows, also_compared=also), [f"Rows that were left out: {', '.join(others)}."]


def _describe_rows(task: Base, labels: Mapping[str, Sequence[str]]) -> str:
    if not labels[CONTROL]:
        return "Each piece alone on the recipe of the first row."
    reduction = f" Reduction {task.reduction} in every block that takes one." if task.reduction else ""
    return (
        "All blocks stand at the same places. Controls have no map: a block more in each stage that a gate follows; added "
        "branch, BAM's dilated convolutions, added and not multiplied; added mean, x + W·mean(x). BAM is Park et al. 2018 as "
        f"the paper has it, and as its released code does.{reduction} The best control is the one with the highest score here, "
        "so that the choice favours no block."
    )


def _check_row(table: Table, row: Row, scale: str, needs_data: bool) -> None:
    """Raises UserError, before anything is trained, for a block that does not work or for missing data."""
    resolved = resolve_config(table.config(row, scale))
    check_model(resolved.config.model.to_dict())
    if needs_data:
        resolved.task.loader(resolved.config, resolved.config.data.train_split, (0, 1), training=True)
    if row.kind == YOURS:
        model, inputs = resolved.task.model(resolved.config), resolved.task.example_inputs(resolved.config)
        jax.eval_shape(model.init, jax.random.key(0), *inputs)


def _match_rows(table: Table, scale: str, by: str) -> tuple[Table, list[str]]:
    """Returns the table with all rows at the cost of your first row, and a sentence about each row that was adjusted."""
    target = next(row.label for row in table.rows if row.kind == YOURS)
    configs = {row.label: table.config(row, scale) for row in table.rows}
    matched, notes = match_costs(configs, target, by)
    rows = []
    for row in table.rows:
        before, after = flatten_config(configs[row.label]), flatten_config(matched[row.label])
        changed = {name: value for name, value in after.items() if before.get(name) != value}
        rows.append(dataclasses.replace(row, overrides={**row.overrides, **changed}))
    return dataclasses.replace(table, rows=tuple(rows)), [f"{label}: {sentence}" for label, sentence in notes.items()]


def _launcher() -> list[str]:
    """Returns the first words of the command, in a checkout or for an installed package."""
    is_checkout = (Path(attention_jax.__file__).parents[1] / "launch.sh").exists()
    return ["./launch.sh"] if is_checkout else ["python", "-m", "attention_jax"]


def _list_further(words: Sequence[str], task: Base, on: str, scale: str) -> Iterator[tuple[str, str]]:
    """Returns pairs (why, command): larger scales, real data, a TPU slice."""
    names = [name for name in task.scales if name != "smoke"]
    for name in names[names.index(scale) + 1 :] if scale in names else names:
        yield f"the scale {name}", shlex.join([*words, f"--scale={name}"])
    plain = [word for word in words if not word.startswith(("--on=", "--base=", "--config."))]
    for name in ("cifar10", "imagenet"):
        if on in BASES and name != on:
            yield (
                f"on {name} (needs its data)",
                shlex.join([*plain, f"--on={name}", "--scale=paper", "--config.data.args.data_dir=DIR"]),
            )
    if words[0] == "./launch.sh":
        slice_words = shlex.join([*plain[1:], "--on=imagenet", "--scale=paper", "--workdir=gs://BUCKET/compare"])
        yield "on TPU (needs a TPU slice)", f"./launch.sh tpu run NAME --zone=ZONE -- {slice_words}"
