"""Files of a remote workdir that are damaged, exchanged or removed."""

import json

import fsspec
import pytest

import attention_jax as aj
from attention_jax import storage
from attention_jax.errors import UserError
from attention_jax.train import remote_checkpoints, restore
from attention_jax.train.loop import train_model
from attention_jax.train.program import build_program
from tests.helpers.objects import Objects
from tests.helpers.small import small_config

pytestmark = pytest.mark.usefixtures("quickly")

CONFIG = small_config(total_steps=12, evaluation__every_steps=6, checkpoint__every_steps=6, logging__every_steps=2)
RUN = "objects://bucket/run"


@pytest.fixture(scope="module")
def program():
    return build_program(CONFIG)


@pytest.fixture
def folder(program, tmp_path, monkeypatch):
    """A finished run in a store."""
    fsspec.register_implementation("objects", Objects, clobber=True)
    monkeypatch.setenv("AJ_STAGING", str(tmp_path / "staging"))
    for name, empty in (("store", {}), ("pseudo_dirs", [""]), ("written", [])):
        monkeypatch.setattr(Objects, name, empty)
    train_model(CONFIG, RUN, program)
    return storage.RemoteFolder(RUN, write=True)


def read_log(uri: str = RUN) -> bytes:
    return (remote_checkpoints.download_run(uri) / "metrics.jsonl").read_bytes()


def test_files_that_are_damaged_are_restored(program, folder, caplog):
    log, config = read_log(), folder.read("config.json")
    segments = {f"log/{name}": folder.read(f"log/{name}") for name in folder.names("log")}
    first, last = segments
    folder.write("config.json", b"{")
    folder.remove(first)
    folder.write(last, segments[last][:-1])
    folder.write("failure.txt", b"of an attempt before")
    run = aj.load_run(RUN)
    assert run.step == 12 and len(run.metrics) == log.count(b"\n") and folder.read(first) is None  # reading writes nothing
    assert train_model(CONFIG, RUN, program).first_step is None, "no step was left to take"
    assert read_log() == log and {name: folder.read(name) for name in segments} == segments
    assert folder.read("config.json") == config and folder.read("config.json.damaged") == b"{"
    assert folder.read("failure.txt") is None
    assert "config.json is damaged or missing" in caplog.text and "the lines come from checkpoint 12" in caplog.text


def test_a_part_of_the_log_is_damaged_only_if_the_checkpoint_has_no_copy(folder, tmp_path):
    log, marker = read_log(), folder.read_json("checkpoints/12.json")
    name, digest, size = marker["log"][-1]
    segment = folder.read(name)
    for other in (segment[:-1], segment[:-1] + b"?", None):
        folder.remove(name) if other is None else folder.write(name, other)
        assert remote_checkpoints.download_checkpoint(folder, 12, tmp_path)["lost"] == {name: segment}
        assert (tmp_path / "metrics.jsonl").read_bytes() == log
    folder.write("checkpoints/12.json", json.dumps({**marker, "log": [[name, digest[::-1], size]]}).encode())
    with pytest.raises(restore.Damaged):
        remote_checkpoints.download_checkpoint(folder, 12, tmp_path)


def test_exchanged_checkpoints_are_seen(program, folder, caplog):
    log = read_log()
    files = {name: folder.read(name) for name in folder.find() if name.startswith("checkpoints/")}
    for name in files:
        folder.remove(name)
    for name, content in files.items():
        folder.write(name.replace("s/12", "s/x").replace("s/6", "s/12").replace("s/x", "s/6"), content)
    train_model(CONFIG, RUN, program)
    assert all(f"checkpoint {a} is damaged (it is the checkpoint of step {b}" in caplog.text for a, b in ((12, 6), (6, 12)))
    assert read_log() == log and aj.load_run(RUN).step == 12


def test_a_workdir_that_was_removed_is_not_made_again(program, folder):
    def remove(step):
        for name in folder.find() if step == 7 else ():
            folder.remove(name)

    remove(7)
    with pytest.raises(UserError, match="this workdir was removed"):
        train_model(CONFIG, RUN, program, remove)
    assert not folder.find()
