"""Live curves of runs and tables as plain text on a terminal; the command `watch`."""

import math
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from attention_jax.errors import UserError
from attention_jax.train.metrics import METRICS, TIMING, read_log, read_timing
from attention_jax.train.workdir import FAILURE, read_config

_MARKS = "ox+*#@%&abcdefghijklmnpqrstuvwyz"
_QUIET = 120.0  # seconds without a line after which an unfinished run is called quiet


def list_runs(places: Sequence[str]) -> list[Path]:
    """Returns the folders with a log, at these places or below them: of runs, and of the rows of tables.

    Raises UserError if there is none.
    """
    found: dict[Path, None] = {}
    for place in places:
        root = Path(place).expanduser()
        here = sorted(path.parent for path in root.rglob(METRICS) if "checkpoints" not in path.relative_to(root).parts)
        if not here:
            raise UserError(f"watch {place}: there is no {METRICS} in it or below: give a run's folder, or a table's.")
        found |= dict.fromkeys(here)
    return list(found)


def draw_curves(curves: Mapping[str, Sequence[tuple[float, float]]], title: str, width: int, height: int) -> str:
    """Draws points (x, y) as text of `width` x `height` characters, each curve with a mark of its own.

    If several curves meet, the last one's mark is drawn. A curve without points is left out; "" if none has any.
    """
    points = [(x, y, i) for i, curve in enumerate(curves.values()) for x, y in curve if math.isfinite(y)]
    if not points:
        return ""
    left, right = min(x for x, _, _ in points), max(x for x, _, _ in points)
    low, high = min(y for _, y, _ in points), max(y for _, y, _ in points)
    labels = [f"{high:.4g}", f"{low:.4g}"]
    margin = max(map(len, labels)) + 1
    columns, rows = max(width - margin - 1, 8), max(height - 3, 3)
    grid = [[" "] * columns for _ in range(rows)]
    for x, y, i in points:
        column = round((x - left) / ((right - left) or 1) * (columns - 1))
        row = round((high - y) / ((high - low) or 1) * (rows - 1))
        grid[row][column] = _MARKS[i % len(_MARKS)]
    sides = [labels[0], *[""] * (rows - 2), labels[1]]
    lines = [f"{side:>{margin}}|{''.join(line).rstrip()}" for side, line in zip(sides, grid, strict=True)]
    ends = f"{left:.4g}", f"{right:.4g}"
    axis = f"{'':>{margin}} {ends[0]}{ends[1]:>{columns - len(ends[0])}}"
    return "\n".join([title, *lines, axis])


def describe_runs_now(folders: Sequence[Path], width: int, height: int, now: float | None = None) -> str:
    """Returns the state of runs as text: a line for each, then the curves of their score and of their training loss.

    Args:
        width, height: size of the terminal in characters.
        now: seconds since the epoch, by default the clock's.
    """
    now = time.time() if now is None else now
    logs = {_name(folder, folders): read_log(folder) for folder in folders}
    lines = []
    for i, (folder, (name, log)) in enumerate(zip(folders, logs.items(), strict=True)):
        lines.append(_describe_run(_MARKS[i % len(_MARKS)], name, folder, log, now))
    size = max((height - len(lines) - 4) // 2, 6)
    parts = ["\n".join(line[:width] for line in lines)]
    for key, title in (("headline", "score"), ("train/loss", "training loss")):
        curves = {name: [(line["step"], float(line[key])) for line in log if key in line] for name, log in logs.items()}
        if drawn := draw_curves(curves, f"{title} by step", width, size):
            parts.append(drawn)
    return "\n\n".join(parts)


def _name(folder: Path, folders: Sequence[Path]) -> str:
    """Returns the shortest end of a path that no other folder has."""
    parts = folder.resolve().parts
    for number in range(1 + parts[-1].isdecimal(), len(parts)):  # a seed alone says nothing
        end = parts[-number:]
        if sum(other.resolve().parts[-number:] == end for other in folders) == 1:
            return "/".join(end)
    return str(folder)


def _describe_run(mark: str, name: str, folder: Path, log: Sequence[Mapping[str, Any]], now: float) -> str:
    timing = read_timing(folder / TIMING) if (folder / TIMING).exists() else []
    newest: dict[str, Any] = {key: value for line in log for key, value in line.items()}
    step, total = int(newest.get("step", 0)), _find_total(folder, log)
    rate = next((line["examples_per_second"] for line in reversed(timing) if "examples_per_second" in line), None)
    text = f"{mark} {name}: step {step:,}"
    text += f" of {total:,} ({100 * step / total:.0f} %)" if total else ""
    for key, title in (("train/loss", "loss"), ("train/accuracy", "accuracy"), ("headline", "score")):
        text += f", {title} {newest[key]:.4g}" if key in newest else ""
    text += f", {rate:,.0f} examples/s" if rate else ""
    age = now - max((path.stat().st_mtime for path in (folder / METRICS, folder / TIMING) if path.exists()), default=now)
    if (folder / FAILURE).exists():
        return f"{text}, FAILED: {(folder / FAILURE).read_text(errors='replace').strip().splitlines()[0]}"
    if total and step >= total:
        return f"{text}, done"
    seconds = _seconds_left(timing, step, total)
    return f"{text}{f', {seconds} left' if seconds else ''}{f', quiet for {age / 60:.0f} min' if age > _QUIET else ''}"


def _find_total(folder: Path, log: Sequence[Mapping[str, Any]]) -> int | None:
    """Returns the steps of a run, if its config and the log give them."""
    config = read_config(folder)
    rate = next((line["step"] / line["epoch"] for line in log if line.get("epoch")), None)
    if config is None:
        return None
    if (steps := config.get("total_steps")) is not None:
        return int(steps)
    epochs = config.get("total_epochs")
    return None if epochs is None or not rate else round(epochs * rate)


def _seconds_left(timing: Sequence[Mapping[str, Any]], step: int, total: int | None) -> str:
    """Estimates the time left from the newest seconds per step."""
    laps = [line for line in timing if line["event"] == "training"]
    if not total or not laps or "seconds_per_step" not in laps[-1]:
        return ""
    left = (total - step) * laps[-1]["seconds_per_step"]
    return time.strftime("%H:%M:%S", time.gmtime(left)) if left < 86400 else f"{left / 86400:.1f} days"


def watch_runs(places: Sequence[str], every: float, once: bool) -> None:
    """Prints the state of runs at this interval, in seconds, until Ctrl-C, or once."""
    while True:
        folders, size = list_runs(places), shutil.get_terminal_size()
        clear = "" if once or not sys.stdout.isatty() else "\x1b[2J\x1b[H"
        print(f"{clear}{describe_runs_now(folders, size.columns, size.lines)}", flush=True)
        if once:
            return
        time.sleep(every)
