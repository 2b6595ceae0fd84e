"""Checkpoints that are damaged, checkpoints that cannot be read, and who is told."""

import contextlib
import logging
import os
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import multihost_utils

from attention_jax.errors import UserError
from attention_jax.train import restore
from attention_jax.train.checkpoint import Checkpoints
from attention_jax.train.step import State
from tests.conftest import child_environment, without_root


def state_of(step: int) -> State:
    rng = np.random.default_rng(step)
    # Arrays above 1 kB lie in files of their own, which have no checksum but ours.
    params = {"a": jnp.asarray(rng.normal(size=(64, 96)), jnp.float32), "b": jnp.asarray(rng.normal(size=7), jnp.float32)}
    stats = {"mean": jnp.asarray(rng.normal(size=5), jnp.float32)}
    return State(jnp.int32(step), params, stats, ({"mu": params}, jnp.int32(step)), {"params": params, "batch_stats": stats})


def same(a, b) -> bool:
    return all(np.asarray(x).tobytes() == np.asarray(y).tobytes() for x, y in zip(*map(jax.tree.leaves, (a, b)), strict=True))


ABOUT = {"config": "{}", "sums": {}}


@pytest.fixture(scope="module")
def two_saves(tmp_path_factory):
    """A workdir with checkpoints of steps 1 and 2."""
    workdir = tmp_path_factory.mktemp("two")
    checkpoints = Checkpoints(workdir, 2, 1, lambda step: None)
    for step in (1, 2):
        checkpoints.save(state_of(step), ABOUT, {"labels.json": b'["a", "b"]'})
    checkpoints.close()
    return workdir


@pytest.fixture
def workdir(two_saves, tmp_path):
    return shutil.copytree(two_saves, tmp_path / "run")


def abstract(state):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)


def restored(workdir, like=None):
    checkpoints = Checkpoints(workdir, 2, 1, lambda step: None)
    try:
        return checkpoints.restore(like or abstract(state_of(0)))
    finally:
        checkpoints.close()


def test_round_trip(workdir):
    state, about = restored(workdir)
    assert about["step"] == 2 and same(state, state_of(2))
    arrays, about, folder = restore.read_newest(workdir)
    assert folder.name == "2" and about["assets"] == {"labels.json": b'["a", "b"]'}
    assert same(arrays["params"], state_of(2).params)


def test_any_flipped_byte_of_the_newest_is_noticed_or_harmless(two_saves, tmp_path, caplog):
    rng = np.random.default_rng(0)
    files = sorted(path.relative_to(two_saves) for path in (two_saves / "checkpoints" / "2").rglob("*") if path.is_file())
    largest = max(files, key=lambda file: (two_saves / file).stat().st_size)
    fallen_back = 0
    for number in range(60):
        workdir = shutil.copytree(two_saves, tmp_path / str(number))
        path = workdir / (largest if number % 3 == 0 else files[number % len(files)])
        data = bytearray(path.read_bytes())
        data[rng.integers(len(data))] ^= 1 << rng.integers(8)
        path.write_bytes(data)
        caplog.clear()
        with caplog.at_level(logging.WARNING, "attention_jax"):
            arrays, about, folder = restore.read_newest(workdir)
            state, about_restored = restored(workdir)
        for step, params in ((about["step"], arrays["params"]), (about_restored["step"], state.params)):
            assert same(params, state_of(step).params), path
        if about_restored["step"] == 1:
            fallen_back += 1
            assert "checkpoint 2 is damaged" in caplog.text
            assert (workdir / "checkpoints_damaged" / "2-0").is_dir()
    assert fallen_back >= 20


def test_any_truncated_file_of_the_newest_is_noticed_or_harmless(two_saves, tmp_path):
    files = sorted(path.relative_to(two_saves) for path in (two_saves / "checkpoints" / "2").rglob("*") if path.is_file())
    fallen_back = 0
    for number, file in enumerate(files):
        workdir = shutil.copytree(two_saves, tmp_path / str(number))
        data = (workdir / file).read_bytes()
        (workdir / file).write_bytes(data[: len(data) // 2])
        state, about = restored(workdir)
        assert same(state, state_of(about["step"])), file
        fallen_back += about["step"] == 1
    assert fallen_back >= 4


def contents(workdir) -> dict[str, bytes]:
    return {str(path.relative_to(workdir)): path.read_bytes() for path in workdir.rglob("*") if path.is_file()}


def raises(error):
    """A fault: the checksum of an array ends with `error`."""

    @contextlib.contextmanager
    def fault(folder, monkeypatch):
        with monkeypatch.context() as patch:
            patch.setattr(restore, "_checksum", lambda x: (_ for _ in ()).throw(error))
            yield

    return fault


@contextlib.contextmanager
def transfers_are_guarded(folder, monkeypatch):
    with jax.transfer_guard("disallow_explicit"):
        yield


@contextlib.contextmanager
def tensorstore_is_missing(folder, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "tensorstore", None)
        yield


def cannot_be_read_from_the_disk(name):
    """A fault: reading the file ends with EIO, as reading a process's memory at address 0 does."""

    @contextlib.contextmanager
    def fault(folder, monkeypatch):
        path, kept = folder / name, folder.parent.parent / "kept"
        path.rename(kept)
        path.symlink_to("/proc/self/mem")
        try:
            yield
        finally:
            path.unlink()
            kept.rename(path)

    return fault


FAULTS = {
    "memory": (raises(MemoryError()), "MemoryError: MemoryError"),
    "memory of a device": (
        raises(jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")),
        "JaxRuntimeError: RESOURCE",
    ),
    "a bug": (raises(TypeError("unsupported operand")), "TypeError: unsupported operand"),
    "a feature": (raises(NotImplementedError("int3")), "NotImplementedError: int3"),
    "a flag of JAX": (transfers_are_guarded, "JaxRuntimeError: INVALID_ARGUMENT: Disallowed host-to-device transfer"),
    "a package": (tensorstore_is_missing, "ModuleNotFoundError: .*tensorstore"),
    "disk, description": (cannot_be_read_from_the_disk("about/metadata"), "input/output error"),
    "disk, list of arrays": (cannot_be_read_from_the_disk("state/manifest.ocdbt"), "input/output error"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_what_cannot_be_read_is_not_damaged(name, workdir, monkeypatch):
    fault, reason = FAULTS[name]
    if name.startswith("disk") and not os.path.exists("/proc/self/mem"):
        pytest.skip("imitates a broken disk with Linux's /proc")
    before, like = contents(workdir), abstract(state_of(0))
    with fault(workdir / "checkpoints" / "2", monkeypatch):
        for reading in (lambda path: restored(path, like), restore.read_newest):
            with pytest.raises(UserError, match=rf"checkpoint 2 cannot be read \({reason}.*\): .*: nothing was changed"):
                reading(workdir)
    assert contents(workdir) == before and not (workdir / "checkpoints_damaged").exists()
    assert restored(workdir)[1]["step"] == 2 == restore.read_newest(workdir)[1]["step"]


def test_state_of_another_version_is_not_damaged(workdir):
    before, ours = contents(workdir), state_of(0)
    others = {
        r"params/b is float32\[7\] in .* and bfloat16\[7\] here": {**ours.params, "b": jnp.zeros(7, jnp.bfloat16)},
        r"params/b is float32\[7\] in .* and float32\[8\] here": {**ours.params, "b": jnp.zeros(8)},
        r"params/c is missing in .* and float32\[2\] here": {**ours.params, "c": jnp.zeros(2)},
        r"params/b is float32\[7\] in .* and missing here": {"a": ours.params["a"]},
    }
    for said, params in others.items():
        with pytest.raises(UserError, match=rf"checkpoint 2 cannot be read \({said}\): use the version and the flags"):
            restored(workdir, abstract(ours.replace(params=params)))
    assert contents(workdir) == before


DENIED = """
import sys
from pathlib import Path
from attention_jax.errors import UserError
from attention_jax.train import restore
from tests.train.test_checkpoint import restored

for workdir in map(Path, sys.argv[1:]):
    for reading in (restored, restore.read_newest):
        try:
            reading(workdir)
        except UserError as error:
            print(error)
"""


@pytest.mark.slow
def test_without_permission_nothing_is_damaged(two_saves, tmp_path):
    denied = {"2/about/metadata": 0, "2/state/manifest.ocdbt": 0, "2/state": 0, "2": 0, ".": 0, "../checkpoints": 0o400}
    chunk = max((two_saves / "checkpoints" / "2").rglob("*"), key=lambda path: path.stat().st_size)
    denied[str(chunk.relative_to(two_saves / "checkpoints"))] = 0
    workdirs, before = [], contents(two_saves)
    for number, (name, mode) in enumerate(denied.items()):
        workdirs.append(shutil.copytree(two_saves, tmp_path / str(number)))
        (workdirs[-1] / "checkpoints" / name).chmod(mode)
    done = subprocess.run(
        [*without_root(), sys.executable, "-c", DENIED, *workdirs],
        env=child_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    said = done.stdout.splitlines()
    assert done.returncode == 0 and len(said) == 2 * len(denied), done.stdout + done.stderr
    assert all("cannot be read (permission denied): /" in line for line in said)
    assert sum(line.startswith("checkpoint 2 ") for line in said) == 2 * len(denied) - 2  # but where no list is to be had
    for workdir, name in zip(workdirs, denied):
        (workdir / "checkpoints" / name).chmod(0o755)
        assert contents(workdir) == before and not (workdir / "checkpoints_damaged").exists()


def test_all_processes_go_the_way_of_the_worst(monkeypatch):
    kinds = {"good": None, "damaged": restore.Damaged("bits"), "unreadable": OSError(5, "Input/output error")}

    def do(kind):
        if kinds[kind]:
            raise kinds[kind]
        return 7

    monkeypatch.setattr(jax, "process_count", lambda: 2)
    for mine in kinds:
        for theirs, number in zip(kinds, range(3)):
            monkeypatch.setattr(multihost_utils, "process_allgather", lambda kind, number=number: np.array([kind, number]))
            worst = max(mine, theirs, key=list(kinds).index)
            if worst == "good":
                assert restore.call_together(lambda: do("good")) == 7
                continue
            expected = restore.Damaged if worst == "damaged" else UserError if mine != worst else OSError
            with pytest.raises(expected):
                restore.call_together(lambda mine=mine: do(mine))


def test_fingerprint_sees_every_single_bit():
    x = np.arange(12, dtype=np.float32).reshape(3, 4)
    base = restore.compute_checksums({"x": jnp.asarray(x)})[0]
    seen = set()
    for byte in range(x.nbytes):
        for bit in range(8):
            data = bytearray(x.tobytes())
            data[byte] ^= 1 << bit
            flipped = np.frombuffer(bytes(data), np.float32).reshape(3, 4)
            seen.add(restore.compute_checksums({"x": flipped})[0]["x"])
    assert base["x"] not in seen


def test_fingerprint_sees_exchanged_elements():
    x = jnp.asarray([1.0, 2.0, 3.0])
    assert restore.compute_checksums({"x": x})[0] != restore.compute_checksums({"x": x[::-1]})[0]


def test_state_that_is_not_finite_is_not_saved(workdir):
    checkpoints = Checkpoints(workdir, 2, 1, lambda step: None)
    bad = state_of(3)
    bad.params["b"] = bad.params["b"].at[0].set(jnp.nan)
    with pytest.raises(UserError, match="after step 3 is not finite"):
        checkpoints.save(bad, ABOUT, {})
    checkpoints.close()
    assert restore.list_steps(workdir) == [1, 2]


def test_folder_that_cannot_be_made_fails_the_save_itself(workdir):
    """And not a wait for Orbax's 300 seconds, which a folder made in the background would cost."""
    checkpoints = Checkpoints(workdir, 2, 1, lambda step: None)
    shutil.rmtree(workdir / "checkpoints")
    (workdir / "checkpoints").write_text("a file")
    with pytest.raises(UserError, match="a checkpoint could not be written.*the last good one is kept"):
        checkpoints.save(state_of(3), ABOUT, {})


def test_best_and_last_are_kept(tmp_path):
    scores = {1: 0.1, 2: 0.9, 3: 0.5, 4: 0.9, 5: 0.2, 6: None}
    checkpoints = Checkpoints(tmp_path, 2, 1, scores.get)
    for step in scores:
        checkpoints.save(state_of(step), ABOUT, {})
    checkpoints.close()
    assert restore.list_steps(tmp_path) == [2, 5, 6]


def test_only_the_loop_asks_whether_to_stop(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(multihost_utils, "reached_preemption_sync_point", lambda number: asked.append(number) or False)
    checkpoints = Checkpoints(tmp_path, 2, 1, lambda step: None)
    for step in (1, 2):
        checkpoints.save(state_of(step), ABOUT, {})
    checkpoints.close()
    assert restore.list_steps(tmp_path) == [1, 2] and not asked


def test_nothing_there_says_what_was_found(tmp_path):
    (tmp_path / "notes.txt").touch()
    with pytest.raises(UserError, match=r"no checkpoint here \(found: notes.txt\)"):
        restore.read_newest(tmp_path)
