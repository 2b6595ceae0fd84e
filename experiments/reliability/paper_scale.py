"""Every row of every table at the papers' size: resolved without data, counted, and its training step lowered; nothing runs.

    nice ./launch.sh python experiments/reliability/paper_scale.py [--tables='resn*'] [--workdir=runs/paper_scale]

Of the scales whose names begin with "paper". A row is resolved where its data need not be there: task, durations, optimizer;
of sentence pairs their number, vocabulary and longest batches are stated, as experiments/preflight.py does.
Its network is counted at the scale's own image size, and so is the paper's network that the row names, with the scale's number
of classes, stem and vocabulary: both must be equal. The training step is traced and lowered for one CPU device with arguments
that are shapes alone. A row that is done is a file in the workdir, and is not done again; the page has all of them.
"""

import argparse
import fnmatch
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from attention_jax.config import override  # noqa: E402
from attention_jax.config.plugins import load_file  # noqa: E402
from attention_jax.errors import one_sentence  # noqa: E402
from attention_jax.models import create_model  # noqa: E402
from attention_jax.models.summary import Summary, summary  # noqa: E402
from attention_jax.preflight.measure import list_batches  # noqa: E402
from attention_jax.preflight.report import resolve_without_data  # noqa: E402
from attention_jax.tables.page import REAL_SIZE  # noqa: E402
from attention_jax.tables.table import Row, Table, load_table  # noqa: E402
from attention_jax.train.program import build_program  # noqa: E402
from experiments.benchmarks.page import render_page  # noqa: E402

# What batches by length read off their data, stated as experiments/preflight.py does.
_STATED = load_file(ROOT / "experiments/preflight.py")._PAIRS
OF_PAIRS = {name: value for name, value in _STATED.items() if name != "precision"}
_OF_THE_SCALE = ("num_classes", "stem", "vocab_size")  # fields of a network that its data decide


def list_rows() -> Iterator[tuple[Table, str, Row]]:
    """Yields (table, scale, row) of every table at the papers' size, tables by name."""
    for file in sorted((ROOT / "experiments").glob("*.py")):
        if "scales" not in file.read_text("utf-8"):
            continue
        table = load_table(file)
        for scale in table.scales:
            if scale.startswith(REAL_SIZE):
                yield from ((table, scale, row) for row in table.keep_rows(scale).rows)


def count_named_network(row: Row, config: ConfigDict, inputs: tuple) -> Summary | None:
    """Counts the network that a row names as the paper's, with the classes, stem and vocabulary of a resolved config."""
    if not row.network:
        return None
    ours = create_model(**{name: value for name, value in config.model.items() if name in ("name", *_OF_THE_SCALE)})
    own = {name: getattr(ours, name) for name in _OF_THE_SCALE if hasattr(ours, name)}
    return summary(create_model(**{**row.network, **own}), inputs)


def check_row(table: Table, scale: str, row: Row, **overrides: Any) -> dict[str, Any]:
    """Returns what was found of a row; "failure" where it does not resolve, run or lower.

    Args:
        overrides: fields of the network that are changed, for a smaller one with the same recipe.
    """
    found: dict[str, Any] = {"table": table.path.stem, "scale": scale, "row": row.label}
    try:
        fields = {f"model.{name}": value for name, value in overrides.items()}
        fields |= OF_PAIRS if table.config(row, scale).task == "translation" else {}
        resolved = resolve_without_data(override(table.config(row, scale), fields))
        config, task = resolved.config, resolved.task
        inputs = task.example_inputs(config)
        counts = summary(task.model(config), inputs)
        named = None if overrides else count_named_network(row, config, inputs)
        found |= {"steps": resolved.durations.total, "examples": task.examples_per_step(config)}
        found |= {"params": counts.params, "macs": counts.macs}
        found |= {"named": [named.params, named.macs] if named else None}
        program = build_program(resolved)
        seed = jax.ShapeDtypeStruct((), "uint32")
        lowered = program.train_step.trace(program.abstract_state, list_batches(program)[-1], seed).lower()
        found["operations"] = lowered.as_text().count(" = ")
    except Exception as error:  # goes to the page
        found["failure"] = f"{type(error).__name__}: {one_sentence(error)}"
    return found


def is_right(found: dict[str, Any]) -> bool:
    """True if a row resolved and lowered, and its counts are those of the network that it names."""
    return "operations" in found and found["named"] in (None, [found["params"], found["macs"]])


def write_page(lines: list[dict[str, Any]], number: int, path: Path) -> None:
    """Writes the page: a sentence, and every row."""
    wrong = [f"{line['table']}: {line['row']} ({line.get('failure', 'other counts')})" for line in lines if not is_right(line)]
    naming = sum(bool(line.get("named")) for line in lines)
    cells = [["table, scale, row", "params", "MACs", "the network it names", "steps", "examples a step", "lowered, operations"]]
    for line in lines:
        named = line.get("named")
        same = (
            "–" if not named else "equal" if named == [line["params"], line["macs"]] else " and ".join(f"{n:,}" for n in named)
        )
        numbers = [f"{line[name]:,}" if name in line else "–" for name in ("params", "macs", "steps", "examples", "operations")]
        label = f"{line['table']}, {line['scale']}, {line['row']}"
        cells.append([label, *numbers[:2], same, *numbers[2:4], line.get("failure", numbers[4])])
    head, *rows = ("| " + " | ".join(row) + " |" for row in cells)
    per_table: dict[str, list[bool]] = {}
    for line in lines:
        per_table.setdefault(line["table"], []).append(is_right(line))
    short = ["| table | rows | of them right |", "| --- | ---: | ---: |"]
    short += [f"| {name} | {len(right)} | {sum(right)} |" for name, right in per_table.items()]
    text = render_page(
        "Every table at the papers' size: resolved, counted and lowered, not run",
        f"{len(lines) - len(wrong)} of {len(lines)} rows resolve without data, have the counts of the network that they name "
        f"({naming} name one), and lower their training step{'; not ' + '; '.join(wrong) if wrong else ''}. "
        f"{number - len(lines)} of {number} were not checked.",
        "\n".join(short),
        "`./launch.sh python experiments/reliability/paper_scale.py`. A row is right if it resolves without data, has the "
        "counts of "
        "the network that it names, and lowers its training step for one CPU device. In the folded table: parameters and "
        "multiply-adds of one example; operations of the step before it is compiled.",
        f"jax {jax.__version__}.",
        {"Each row": "\n".join([head, "| --- |" + " ---: |" * (len(cells[0]) - 1), *rows])},
    )
    path.write_text(text, "utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", default="*")
    parser.add_argument("--workdir", type=Path, default=ROOT / "runs" / "paper_scale")
    parser.add_argument("--output", type=Path, default=ROOT / "experiments" / "results")
    options = parser.parse_args()
    options.workdir.mkdir(parents=True, exist_ok=True)
    rows = {f"{table.path.stem}.{scale}.{row.slug}.json": (table, scale, row) for table, scale, row in list_rows()}
    for name, row in rows.items():
        done = options.workdir / name
        if fnmatch.fnmatchcase(row[0].path.stem, options.tables) and not done.exists():
            found = check_row(*row)
            done.write_text(json.dumps(found))
            print(done.read_text(), flush=True)
            jax.clear_caches()
    lines = [json.loads(path.read_text()) for path in (options.workdir / name for name in rows) if path.exists()]
    write_page(lines, len(rows), options.output / "paper_scale.md")


if __name__ == "__main__":
    main()
