"""Checkpoints that are damaged, and who is told."""

import logging
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import multihost_utils

from attention_jax.errors import UserError
from attention_jax.train import checkpoint
from attention_jax.train.checkpoint import Checkpoints
from attention_jax.train.step import State


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


def restored(workdir):
    checkpoints = Checkpoints(workdir, 2, 1, lambda step: None)
    try:
        return checkpoints.restore(
            jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state_of(0))
        )
    finally:
        checkpoints.close()


def test_round_trip(workdir):
    state, about = restored(workdir)
    assert about["step"] == 2 and same(state, state_of(2))
    arrays, about, folder = checkpoint.read_newest(workdir)
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
            arrays, about, folder = checkpoint.read_newest(workdir)
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


def test_fingerprint_sees_every_single_bit():
    x = np.arange(12, dtype=np.float32).reshape(3, 4)
    base = checkpoint.compute_checksums({"x": jnp.asarray(x)})[0]
    seen = set()
    for byte in range(x.nbytes):
        for bit in range(8):
            data = bytearray(x.tobytes())
            data[byte] ^= 1 << bit
            flipped = np.frombuffer(bytes(data), np.float32).reshape(3, 4)
            seen.add(checkpoint.compute_checksums({"x": flipped})[0]["x"])
    assert base["x"] not in seen


def test_fingerprint_sees_exchanged_elements():
    x = jnp.asarray([1.0, 2.0, 3.0])
    assert checkpoint.compute_checksums({"x": x})[0] != checkpoint.compute_checksums({"x": x[::-1]})[0]


def test_state_that_is_not_finite_is_not_saved(workdir):
    checkpoints = Checkpoints(workdir, 2, 1, lambda step: None)
    bad = state_of(3)
    bad.params["b"] = bad.params["b"].at[0].set(jnp.nan)
    with pytest.raises(UserError, match="after step 3 is not finite"):
        checkpoints.save(bad, ABOUT, {})
    checkpoints.close()
    assert checkpoint.list_steps(workdir) == [1, 2]


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
    assert checkpoint.list_steps(tmp_path) == [2, 5, 6]


def test_only_the_loop_asks_whether_to_stop(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(multihost_utils, "reached_preemption_sync_point", lambda number: asked.append(number) or False)
    checkpoints = Checkpoints(tmp_path, 2, 1, lambda step: None)
    for step in (1, 2):
        checkpoints.save(state_of(step), ABOUT, {})
    checkpoints.close()
    assert checkpoint.list_steps(tmp_path) == [1, 2] and not asked


def test_nothing_there_says_what_was_found(tmp_path):
    (tmp_path / "notes.txt").touch()
    with pytest.raises(UserError, match=r"no checkpoint here \(found: notes.txt\)"):
        checkpoint.read_newest(tmp_path)
