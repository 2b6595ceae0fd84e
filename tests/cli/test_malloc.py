"""Freed memory is kept for the next step, unless the environment says otherwise."""

from types import SimpleNamespace

import pytest

from attention_jax.cli import malloc

GB = 1 << 30

# Prints True if the memory of a freed block of 64 MB was kept: of another thread, then of the first thread.
FREED = """
import resource, sys, threading
from pathlib import Path
from attention_jax.cli import malloc
malloc._memory_bytes = lambda: int(sys.argv[1])
said = malloc.keep_freed_memory()
import numpy as np

def resident():
    return resource.getpagesize() * int(Path("/proc/self/statm").read_text().split()[1])

def block():
    np.ones(64 << 20, np.uint8)

before = resident()
thread = threading.Thread(target=block)
thread.start()
thread.join()
of_thread = resident() - before > 32 << 20
block()
print(said, of_thread, resident() - before > 32 << 20)
"""


@pytest.fixture
def freed(run_python):
    """Prints the result of keep_freed_memory, and True if glibc kept a block of another thread and of the first."""

    def run(memory: int = 24 * GB, **env: str) -> list[str]:
        unsaid = {"AJ_COORDINATOR": None, "GLIBC_TUNABLES": None, "JAX_PLATFORMS": "cpu"}
        done = run_python("-c", FREED, memory, env=unsaid | env)
        assert done.returncode == 0, done.stderr
        return done.stdout.split()

    return run


def test_freed_blocks_are_kept(freed):
    assert freed() == ["True", "True", "True"]
    assert freed(GLIBC_TUNABLES="glibc.malloc.hugetlb=1") == ["True", "True", "True"]
    assert freed(memory=48 * GB) == ["True", "True", "True"]  # a twelfth of it is 0 for a C int


def test_blocks_that_are_large_for_the_machine_are_given_back(freed):
    assert freed(memory=12 * (32 << 20)) == ["True", "False", "False"]


@pytest.mark.parametrize(
    "said",
    [
        {"AJ_COORDINATOR": "a:1"},
        {"AJ_KEEP_MEMORY": "0"},
        {"GLIBC_TUNABLES": "glibc.malloc.arena_max=4"},
        {"MALLOC_ARENA_MAX": "4"},
    ],
)
def test_several_processes_and_what_the_user_says_come_first(freed, said):
    assert freed(**said) == ["False", "False", "False"]


def test_host_of_an_accelerator_is_left_alone(monkeypatch):
    monkeypatch.setattr(malloc.importlib.metadata, "entry_points", lambda group: [group])
    monkeypatch.setenv("JAX_PLATFORMS", "cuda,cpu")
    assert malloc.keep_freed_memory() is False
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    assert not malloc._has_accelerator()


@pytest.mark.parametrize("device", ["accel0", "vfio/0"])
def test_tpu_is_found_by_its_device(monkeypatch, tmp_path, device):
    monkeypatch.setattr(malloc.importlib.metadata, "entry_points", lambda group: [])
    monkeypatch.setattr(malloc, "_DEVICES", tmp_path)
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    (tmp_path / "vfio").mkdir()
    (tmp_path / "vfio/vfio").touch()  # which machines without a TPU have as well
    assert not malloc._has_accelerator()
    (tmp_path / device).touch()
    assert malloc._has_accelerator()


def test_memory_is_that_of_the_container(monkeypatch, tmp_path):
    limit, none = tmp_path / "limit", tmp_path / "none"
    monkeypatch.setattr(malloc, "_LIMITS", (none, tmp_path / "missing", limit))
    none.write_text("max\n")
    limit.write_text("9223372036854771712\n")
    machine = malloc._memory_bytes()
    assert GB / 4 < machine < 1 << 60
    limit.write_text("123456\n")
    assert malloc._memory_bytes() == 123456


def test_another_c_library_is_left_alone(monkeypatch):
    monkeypatch.setattr(malloc, "_is_configured", lambda: False)
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.delenv("AJ_COORDINATOR", raising=False)
    monkeypatch.setattr(malloc.ctypes, "CDLL", lambda name: SimpleNamespace())
    assert malloc.keep_freed_memory() is False


@pytest.fixture
def kept_by(run_python, tmp_path):
    """What a command prints, "kept" or "threads" when it keeps memory before or after JAX has threads, and its exit code."""

    def run(*command: str) -> list[str]:
        code = f"""
from attention_jax.cli import main as cli, malloc
from jax._src import xla_bridge
malloc.keep_freed_memory = lambda: print("threads" if xla_bridge.backends_are_initialized() else "kept")
print(cli.main({[*command, f"--workdir={tmp_path / 'missing'}"]}))
"""
        return run_python("-c", code).stdout.split()

    return run


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "kept"),
    [
        (["train", "--config=configs/translate_quickstart.py", "--config.data.source=none"], True),
        (["train", "--config=configs/quickstart.py", "--config.data.source=none"], False),
        (["translate"], True),
        (["table", "experiments/quickstart_translation.py", "--rows=none"], True),
        (["table", "experiments/quickstart.py", "--rows=nothing"], False),
    ],
)
def test_command_line_keeps_memory_for_translation_before_jax_has_threads(kept_by, command, kept):
    assert kept_by(*command) == ["kept"] * kept + ["2"]


@pytest.mark.slow
def test_table_without_a_base_keeps_no_memory(kept_by):
    *printed, code = kept_by("table", "experiments/complexity.py", "--dry-run")
    assert code == "0" and not {"kept", "threads"} & set(printed)
