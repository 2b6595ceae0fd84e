"""Commands as a user gives them, in this process or in one of their own, and how they ended."""

import contextlib
import dataclasses
import io
import json
import logging
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import attention_jax as aj
from attention_jax.cli import main as cli
from attention_jax.config.config import config_to_json
from attention_jax.tables import runner
from attention_jax.tasks.resolve import ResolvedConfig
from attention_jax.train import loop, program

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 120  # seconds for a command in this process
_BUILT: dict[str, Any] = {}


class Problem(Exception):
    """What must not be."""


@dataclasses.dataclass(frozen=True)
class Ended:
    """How a command ended; the traceback is empty where there was none."""

    code: int
    out: str
    err: str
    traceback: str = ""

    def refuse_traceback(self) -> None:
        """Raises Problem for a traceback, an unknown exit code, or one that no sentence explains."""
        if self.traceback:
            raise Problem(f"a traceback: {self.traceback.strip().splitlines()[-1][:200]}")
        if self.code not in (0, 1, 2):
            raise Problem(f"exit code {self.code}")
        if self.code and not any(sign in self.err + self.out for sign in ("error: ", "failed", "would fail")):
            raise Problem(f"exit code {self.code} without a sentence")

    def describe(self) -> str:
        """Returns how it ended, where nothing was wrong."""
        return "refused" if self.code else "right"


def open_run(workdir: str) -> int:
    """Opens a run as a notebook does, and prints what it has; 2 with a sentence where that cannot be."""
    try:
        run = aj.load_run(workdir)
        found = run.predict(np.arange(128, dtype=np.uint8).reshape(2, 8, 8, 1)).probabilities.tolist()
    except aj.UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(json.dumps({"step": run.step, "probabilities": found, "metrics": run.metrics, "config": config_to_json(run.config)}))
    return 0


def call_process(command: Sequence[str], folder: Path) -> Ended:
    """Runs a command in a process of its own."""
    start = (
        [str(ROOT / "experiments" / "reliability" / "fuzz.py"), "--open"] if command[0] == "open" else ["-m", "attention_jax"]
    )
    words = command[1:] if command[0] == "open" else command
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    run = subprocess.run(
        [sys.executable, *start, *words], cwd=folder, env=env, capture_output=True, text=True, errors="replace", check=False
    )
    return Ended(run.returncode, run.stdout, run.stderr, run.stderr if "Traceback (most" in run.stderr else "")


def call_here(command: Sequence[str], folder: Path) -> Ended:
    """Runs a command in this process, in a folder."""
    out, err, failure, code = io.StringIO(), io.StringIO(), "", 1

    def stop(number: int, frame: Any) -> None:
        raise TimeoutError(f"no end after {PATIENCE} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(PATIENCE)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), contextlib.chdir(folder), _keep_programs():
            code = open_run(command[1]) if command[0] == "open" else cli.main(list(command))
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException:
        failure = traceback.format_exc()
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    return Ended(code, out.getvalue(), err.getvalue(), failure)


@contextlib.contextmanager
def _keep_programs() -> Iterator[None]:
    """Compiles the programs of equal configs once in this process, and shows warnings on what is standard error just now."""
    modules, build = (program, loop, runner), program.build_program

    def build_once(config: Any, mesh: Any = None) -> Any:
        key = config_to_json(config.config if isinstance(config, ResolvedConfig) else config)
        if key not in _BUILT:
            _BUILT[key] = build(config, mesh)
        return _BUILT[key]

    root, handler = logging.getLogger(), logging.StreamHandler(sys.stderr)
    others, root.handlers = root.handlers, [handler]
    for module in modules:
        module.build_program = build_once
    try:
        yield
    finally:
        root.handlers = others
        for module in modules:
            module.build_program = build
