"""Flags of XLA and huge pages: set where they help, printed, recorded, never against the user's, and accepted by XLA."""

import os
import subprocess

import pytest

from attention_jax.launch import worker
from attention_jax.train.metrics import get_compiler_flags
from tests.conftest import ROOT, child_environment

FLAG = "--xla_gpu_enable_latency_hiding_scheduler"


@pytest.mark.parametrize(
    ("cards", "env", "flags"),
    [
        (2, {}, f"{FLAG}=true"),
        (2, {"XLA_FLAGS": "--xla_a=1"}, f"--xla_a=1 {FLAG}=true"),
        (1, {"AJ_PROCESSES": "2"}, f"{FLAG}=true"),
        (1, {}, ""),
        (0, {"AJ_PROCESSES": "2"}, ""),
        (2, {"XLA_FLAGS": f"{FLAG}=false"}, f"{FLAG}=false"),
        (2, {"AJ_XLA_FLAGS": "off"}, ""),
        (2, {"JAX_PLATFORMS": "cpu"}, ""),
    ],
)
def test_cards_that_exchange_gradients_get_the_flag(tmp_path, cards, env, flags):
    smi = "echo 'GPU 0: H100'\n" * cards or "exit 9\n"
    for name, text in {"nvidia-smi": smi, "python": 'printf "%s" "$XLA_FLAGS"\n'}.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}")
        (tmp_path / name).chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    given = {"XLA_FLAGS": "", "JAX_PLATFORMS": None, "ATTENTION_JAX_PYTHON": str(tmp_path / "python"), "PATH": path, **env}
    done = subprocess.run(
        [ROOT / "launch.sh", "train"], env=child_environment(given), capture_output=True, text=True, check=True
    )
    assert done.stdout == flags
    assert (f"XLA_FLAGS has {FLAG}=true" in done.stderr) == (flags != given["XLA_FLAGS"])


def test_xla_accepts_the_flag(run_python):
    """XLA ends the process at a flag that it does not know."""
    program = (
        "import jax; jax.devices(); from attention_jax.train.metrics import get_compiler_flags; print(get_compiler_flags())"
    )
    done = run_python("-c", program, env={"XLA_FLAGS": f"{FLAG}=true", "LIBTPU_INIT_ARGS": "--x"})
    assert done.stdout == f"{FLAG}=true --x\n", done.stderr


def test_no_flags_are_none(monkeypatch):
    for name in ("XLA_FLAGS", "LIBTPU_INIT_ARGS"):
        monkeypatch.delenv(name, raising=False)
    assert get_compiler_flags() == ""


def test_a_tpu_vm_gives_out_huge_pages(monkeypatch, tmp_path, capsys):
    pages = tmp_path / "enabled"
    pages.write_text("always [madvise] never")
    monkeypatch.setattr(worker, "HUGE_PAGES", pages)
    (tmp_path / "sudo").write_text('#!/bin/sh\n[ "$1" = -n ] && shift && exec "$@"\n')
    (tmp_path / "sudo").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    worker._use_huge_pages({"AJ_XLA_FLAGS": "off"})
    assert pages.read_text() == "always [madvise] never" and not capsys.readouterr().out
    worker._use_huge_pages({})
    assert pages.read_text() == "always\n" and "transparent huge pages: always" in capsys.readouterr().out
    pages.write_text("always [madvise] never")
    (tmp_path / "sudo").write_text("#!/bin/sh\nexit 1\n")
    worker._use_huge_pages({})
    assert "as they were: sudo refused" in capsys.readouterr().out
