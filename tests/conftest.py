"""What tests share: JAX on the CPU, one compilation cache for the whole session, the command line as a user starts it."""

import gc
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# Before anything imports JAX, which reads its environment once. The cache is shared with every subprocess, so that
# runs started again and again (killed, resumed, compared) compile once.
_CACHE = tempfile.TemporaryDirectory(prefix="attention_jax-tests-")
os.environ.update(
    JAX_PLATFORMS="cpu",
    JAX_COMPILATION_CACHE_DIR=_CACHE.name,
    JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0.05",
    JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES="0",
    MPLBACKEND="agg",
    XDG_STATE_HOME=f"{_CACHE.name}/state",  # not the user's own trusted code
)
for _name in ("XLA_FLAGS", "AJ_COORDINATOR", "AJ_PROCESSES", "AJ_PROCESS", "PYTHONWARNINGS", "PYTHONDONTWRITEBYTECODE"):
    os.environ.pop(_name, None)
if sys.dont_write_bytecode:  # then each of some hundred processes would compile JAX's modules anew, in 2 s
    sys.dont_write_bytecode, sys.pycache_prefix = False, f"{_CACHE.name}/bytecode"
    os.environ["PYTHONPYCACHEPREFIX"] = sys.pycache_prefix


def child_environment(env: Mapping[str, str | None] | None = None) -> dict[str, str]:
    """This process's environment with the checkout first in PYTHONPATH, changed by `env` (None removes a name)."""
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    changed = {**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1", **(env or {})}
    return {name: value for name, value in changed.items() if value is not None}


def without_root() -> list[str]:
    """What to put before a command so that the modes of files count for it, also where the tests run as root."""
    if os.geteuid() == 0 and not shutil.which("setpriv"):
        pytest.skip("root reads everything")
    rights = "-dac_override,-dac_read_search"
    return [] if os.geteuid() else ["setpriv", f"--bounding-set={rights}", f"--inh-caps={rights}"]


# Files with the longest tests come first, so that no worker is left with one of them at the end.
LONG_FILES = (
    "parallel",
    "experiments",
    "translation",
    "survival",
    "notebooks",
    "resume",
    "transformer",
    "counts",
    "readme",
    "tpu",
    "seq2seq",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Orders files; the tests of a file keep their order."""
    rank = {f"test_{name}.py": place for place, name in enumerate(LONG_FILES)}
    items.sort(key=lambda item: rank.get(item.path.name, len(rank)))


def pytest_collection_finish() -> None:
    """What is imported stays: looking through it for garbage again and again is a fifth of the time of tracing."""
    gc.freeze()
    gc.set_threshold(100_000, 20, 20)


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout."""
    return ROOT


@pytest.fixture(scope="module")
def quickly() -> Iterator[None]:
    """What a module's tests and their processes compile is not optimised, which much of their time would go to."""
    import jax

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
        jax.config.update("jax_disable_most_optimizations", True)
        yield
        jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="session")
def run_python() -> Callable[..., subprocess.CompletedProcess]:
    """`run_python("-c", "...", env={}, cwd=ROOT, timeout=240)`: a Python process of its own, output as text."""

    def run(
        *arguments: object, env: Mapping[str, str | None] | None = None, cwd: Path | str = ROOT, timeout: float = 240
    ) -> subprocess.CompletedProcess:
        return subprocess.run(
            [sys.executable, *map(str, arguments)],
            env=child_environment(env),
            cwd=cwd,
            timeout=timeout,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )

    return run


@pytest.fixture(scope="session")
def run_cli(run_python: Callable[..., subprocess.CompletedProcess]) -> Callable[..., subprocess.CompletedProcess]:
    """`run_cli("train", "--config=...", ..., env={}, cwd=ROOT, timeout=240)`: the command line, to its end."""

    def run(*arguments: object, **options: object) -> subprocess.CompletedProcess:
        return run_python("-m", "attention_jax", *arguments, **options)

    return run


@pytest.fixture
def start_cli() -> Iterator[Callable[..., subprocess.Popen]]:
    """`start_cli("train", ..., env={}, cwd=ROOT)`: the command line as a running process, killed when the test ends.

    Both streams arrive as text in `.stdout`.
    """
    started: list[subprocess.Popen] = []

    def start(*arguments: object, env: Mapping[str, str | None] | None = None, cwd: Path | str = ROOT) -> subprocess.Popen:
        process = subprocess.Popen(
            [sys.executable, "-m", "attention_jax", *map(str, arguments)],
            env=child_environment(env),
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
        process.stdout.close()
        process.wait()
