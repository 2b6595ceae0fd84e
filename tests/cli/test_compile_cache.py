"""A damaged entry of the compilation cache is removed once, instead of being warned about for ever."""

import os
import sys
import time
import zlib
from pathlib import Path

import pytest

from attention_jax.cli import compile_cache

# One program of a name of its own; its result tells that it ran.
COMPILE = """
import logging, sys
logging.basicConfig(level=logging.WARNING, format="%(message)s")
from attention_jax.cli.compile_cache import remove_damaged_entries
remove_damaged_entries()
assert "jax" not in sys.modules
import jax
@jax.jit
def tripled(x):
    return 3 * x
print(tripled(14.0))
"""


@pytest.fixture
def compile_once(run_python, tmp_path):
    """Compiles a function with a cache of its own: (stderr, the entry's path)."""

    def run() -> tuple[str, Path]:
        env = {"JAX_COMPILATION_CACHE_DIR": str(tmp_path), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
        done = run_python("-c", COMPILE, env=env)
        assert done.stdout == "42.0\n", done.stderr
        (entry,) = tmp_path.glob("jit_tripled-*-cache")
        return done.stderr, entry

    return run


@pytest.mark.slow
def test_truncated_entry_is_compiled_anew(compile_once):
    _, entry = compile_once()
    complete = entry.read_bytes()
    zlib.decompress(complete)
    before = entry.stat()
    stderr, _ = compile_once()
    after = entry.stat()
    assert stderr == ""
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns), "a complete entry must be left alone"

    entry.write_bytes(complete[: len(complete) // 2])
    stderr, again = compile_once()
    assert again == entry
    assert stderr.count("removed 1 unreadable") == 1
    assert "Error reading" not in stderr
    zlib.decompress(entry.read_bytes())


def entry(folder: Path, name: str, content: bytes, age: float = 0.0) -> Path:
    path = folder / f"{name}-cache"
    path.write_bytes(content)
    os.utime(path, (time.time() - age,) * 2)
    return path


def test_what_counts_as_damaged(tmp_path):
    complete = zlib.compress(os.urandom(3 << 20))  # more than is read at once
    kept = [entry(tmp_path, "complete", complete), entry(tmp_path, "old", complete, age=1e6)]
    flipped = bytearray(complete)
    flipped[len(complete) // 2] ^= 1
    damaged = [
        entry(tmp_path, "cut", complete[:-1]),
        entry(tmp_path, "old cut", complete[:1000], age=1e6),
        entry(tmp_path, "empty", b""),
        entry(tmp_path, "flipped", bytes(flipped)),
        entry(tmp_path, "other", b"no compressed stream"),
    ]
    other = tmp_path / "notes.txt"
    other.write_text("not an entry")
    assert sorted(compile_cache.remove_damaged_entries(tmp_path)) == sorted(damaged)
    assert all(path.exists() for path in [*kept, other])
    assert compile_cache.remove_damaged_entries(tmp_path) == []


def test_looks_only_at_what_is_new(tmp_path, monkeypatch):
    looked_at = []
    monkeypatch.setattr(compile_cache, "_is_complete", lambda path: looked_at.append(path.stem) or True)
    entry(tmp_path, "old", b"", age=60)
    compile_cache.remove_damaged_entries(tmp_path)
    entry(tmp_path, "new", b"")
    compile_cache.remove_damaged_entries(tmp_path)
    assert looked_at == ["old-cache", "new-cache"]


def test_an_entry_that_is_being_written_stays(tmp_path, monkeypatch):
    growing = entry(tmp_path, "growing", b"\x78\x9c")

    def another_process_writes(seconds: float) -> None:
        with growing.open("ab") as file:
            file.write(b"more")

    monkeypatch.setattr(time, "sleep", another_process_writes)
    assert compile_cache.remove_damaged_entries(tmp_path) == []
    assert growing.exists()


def test_never_raises(tmp_path, monkeypatch):
    assert compile_cache.remove_damaged_entries(tmp_path / "missing") == []
    assert compile_cache.remove_damaged_entries("gs://bucket/cache") == []
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    assert compile_cache.remove_damaged_entries() == []

    entry(tmp_path, "cut", b"\x78")

    def read_only(*arguments: object, **options: object) -> None:
        raise OSError(30, "Read-only file system")

    for name in ("unlink", "touch"):
        monkeypatch.setattr(Path, name, read_only)
    assert compile_cache.remove_damaged_entries(tmp_path) == []
    monkeypatch.setattr(os, "scandir", read_only)
    assert compile_cache.remove_damaged_entries(tmp_path) == []


@pytest.mark.skipif(sys.version_info < (3, 14), reason="the standard library has zstd from 3.14 on")
def test_zstd_entries(tmp_path):
    from compression import zstd

    complete = zstd.compress(os.urandom(3 << 20))
    kept, cut = entry(tmp_path, "complete", complete), entry(tmp_path, "cut", complete[:-1])
    assert compile_cache.remove_damaged_entries(tmp_path) == [cut]
    assert kept.exists()
