"""Caches hold code: one that others can write to is not used."""

import os
import types

import jax
import pytest

from attention_jax.cli.compile_cache import remove_damaged_entries
from attention_jax.errors import is_own_folder
from attention_jax.kernels import native


@pytest.mark.parametrize(("mode", "own"), [(0o700, True), (0o755, True), (0o777, False), (0o1777, False)])
def test_own_folders(tmp_path, mode, own):
    tmp_path.chmod(mode)
    assert is_own_folder(tmp_path) is own


@pytest.mark.parametrize(("group", "own"), [(1000, True), (100, False)])
def test_folder_that_a_group_can_write_to(monkeypatch, group, own):
    """A group with the user's own number has nobody else."""
    status = types.SimpleNamespace(st_uid=1000, st_gid=group, st_mode=0o775)
    monkeypatch.setattr(os, "stat", lambda path: status)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    found = is_own_folder("/cache")
    monkeypatch.undo()
    assert found is own


def test_folder_of_another_user(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: os.stat(tmp_path).st_uid + 1)
    assert not is_own_folder(tmp_path)


def test_kernels_are_not_loaded_from_an_open_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = tmp_path / "attention_jax" / "kernels"
    folder.mkdir(parents=True)
    folder.chmod(0o777)
    with pytest.raises(RuntimeError, match=r"holds code and is not yours alone to write to: chmod go-w"):
        native._built("conv")
    assert not list(folder.iterdir())


def test_compiled_programs_are_not_loaded_from_an_open_folder(tmp_path, monkeypatch, caplog):
    tmp_path.chmod(0o777)
    (tmp_path / "entry").write_bytes(b"planted")
    monkeypatch.setattr(jax.config, "update", (changed := {}).__setitem__)
    assert remove_damaged_entries(tmp_path) == []
    assert changed == {"jax_enable_compilation_cache": False} and "it is not used; chmod go-w" in caplog.text
    assert [path.name for path in tmp_path.iterdir()] == ["entry"]
