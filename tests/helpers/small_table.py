"""Tables of small networks, and how to run them."""

import contextlib
import io
from pathlib import Path

from attention_jax.tables.runner import run_table

ROOT = Path(__file__).resolve().parents[2]

SMALL = {
    "model.stage_sizes": (1, 1),
    "model.widths": (4, 8),
    "total_steps": 4,
    "schedule.warmup_steps": 1,
    "evaluation.every_steps": 2,
    "checkpoint.every_steps": 2,
    "logging.every_steps": 1,
    "logging.tensorboard": False,
}

ROWS = '{"label": "a"}, {"label": "b", "pieces": ("ema",)},'


def table_text(rows: str, **names: object) -> str:
    defaults = {
        "title": "A small table",
        "source": "After nobody.",
        "base": str(ROOT / "configs/quickstart.py"),
        "scales": {"tiny": {"seeds": 2, "overrides": SMALL}, "other": {"seeds": 1}},
    }
    lines = [f"{name} = {value!r}" for name, value in {**defaults, **names}.items()]
    return "import functools\nfrom attention_jax import recipes\n" + "\n".join(lines) + f"\nrows = [{rows}]\n"


def write_table(folder: Path, rows: str, **names: object) -> Path:
    """Every file has a name of its own: a process reads a file once."""
    path = folder / f"table{len(list(folder.glob('table*.py')))}.py"
    path.write_text(table_text(rows, **names))
    return path


def call(*arguments: object, **options: object) -> tuple[int, str]:
    """(exit code, what it prints) of `run_table`."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        code = run_table(*arguments, **options)
    return code, out.getvalue()
