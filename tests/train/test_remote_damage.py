"""Files of a remote workdir that are damaged, exchanged or removed; those of earlier versions."""

import hashlib
import json
import logging
import threading

import pytest

import attention_jax as aj
from attention_jax import storage
from attention_jax.errors import UserError
from attention_jax.train import remote_runs, restore
from attention_jax.train.loop import train_model
from attention_jax.train.program import build_program
from tests.helpers.gcs import empty_server
from tests.helpers.small import small_config

pytestmark = pytest.mark.usefixtures("quickly")

CONFIG = small_config(total_steps=12, evaluation__every_steps=6, checkpoint__every_steps=6, logging__every_steps=2)
RUN = "gs://bucket/run"


@pytest.fixture(scope="module")
def program():
    return build_program(CONFIG)


@pytest.fixture(scope="module")
def finished(program, tmp_path_factory):
    """The objects of a finished run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AJ_STAGING", str(tmp_path_factory.mktemp("staging")))
        server = empty_server()
        train_model(CONFIG, RUN, program)
        return {name: stored.content for name, stored in server.objects.items()}


@pytest.fixture
def folder(finished, tmp_path, monkeypatch):
    """A finished run in a store."""
    monkeypatch.setenv("AJ_STAGING", str(tmp_path / "staging"))
    server = empty_server()
    for name, content in finished.items():
        server.put(name, content)
    return storage.RemoteFolder(RUN, write=True)


def read_log(uri: str = RUN) -> bytes:
    return (remote_runs.download_run(uri) / "metrics.jsonl").read_bytes()


def test_files_that_are_damaged_are_restored(program, folder, caplog):
    log, config = read_log(), folder.read("config.json")
    folder.write("config.json", b"{")
    folder.write("metrics.jsonl", log[:-9])
    folder.write("failure.txt", b"of an attempt before")
    run = aj.load_run(RUN)
    assert run.step == 12 and len(run.metrics) == log.count(b"\n") and folder.read("metrics.jsonl") == log[:-9], "only read"
    assert train_model(CONFIG, RUN, program).first_step is None, "no step was left to take"
    assert read_log() == log == folder.read("metrics.jsonl")
    assert folder.read("config.json") == config and folder.read("config.json.damaged") == b"{"
    assert folder.read("failure.txt") is None and "config.json is damaged or missing" in caplog.text


def test_exchanged_checkpoints_are_seen(program, folder, caplog):
    log, names = read_log(), [name for _, name in restore.list_checkpoints(folder)]
    files = {name: folder.read(name) for name in folder.find() if name.startswith("checkpoints/")}
    for name in files:
        folder.remove(name)
    for name, content in files.items():
        folder.write(name.replace(names[0], "x").replace(names[1], names[0]).replace("s/x", f"s/{names[1]}"), content)
    train_model(CONFIG, RUN, program)
    assert all(f"checkpoint {a} is damaged (it is the checkpoint of step {b}" in caplog.text for a, b in ((12, 6), (6, 12)))
    assert read_log() == log and aj.load_run(RUN).step == 12


def test_a_workdir_that_was_removed_is_not_made_again(program, folder):
    def remove(step):
        if step == 7:
            for thread in threading.enumerate():
                if thread.name == "save":
                    thread.join()
            for name in folder.find():
                folder.remove(name)

    remove(7)
    with pytest.raises(UserError, match="this workdir was removed"):
        train_model(CONFIG, RUN, program, remove)
    assert not folder.find()


def test_a_copied_run_opens_and_goes_on(program, folder, tmp_path):
    """From a bucket to a folder, and from a folder to a bucket."""
    log = read_log()
    for name in folder.find():
        path = tmp_path / "here" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(folder.read(name))
    assert aj.load_run(tmp_path / "here").step == 12
    longer = small_config(**{"total_steps": 18, **{f"{name}__every_steps": 6 for name in ("evaluation", "checkpoint")}})
    longer.logging.every_steps = 2
    train_model(longer, tmp_path / "here", extend=True)
    kept = {name for _, name in restore.list_checkpoints(tmp_path / "here")}
    assert restore.list_steps(tmp_path / "here")[-2:] == [12, 18] and aj.load_run(tmp_path / "here").step == 18
    assert {path.name.removesuffix(".json") for path in (tmp_path / "here/checkpoints").iterdir()} == kept
    there = storage.RemoteFolder("gs://bucket/copied", write=True)
    for path in (tmp_path / "here").rglob("*"):
        if path.is_file() and path.suffix != ".json":
            there.write(str(path.relative_to(tmp_path / "here")), path.read_bytes())
    assert aj.load_run("gs://bucket/copied").step == 18
    assert read_log("gs://bucket/copied").startswith(log)


def test_runs_of_earlier_versions_open_and_are_not_gone_on_with(program, folder, caplog):
    """Their marker lists the parts of the log; an interrupted upload has no marker."""
    log = read_log()
    arrays = {}
    for step, name in restore.list_checkpoints(folder):
        for file in folder.find(f"checkpoints/{name}"):
            arrays[file.replace(name, str(step))] = folder.read(file)
    outputs = folder.read("evaluation.npz")
    for name in folder.find():
        if name.split("/")[0] not in ("config.json", "code.json", "data.json"):
            folder.remove(name)
    part = f"log/{hashlib.sha256(log).hexdigest()[:16]}.jsonl"
    folder.write(part, log)
    for name, content in arrays.items():
        folder.write(name, content)
    marker = {"files": {}, "log": [[part, hashlib.sha256(log).hexdigest(), len(log)]]}
    for step in (6, 12):
        folder.write(f"checkpoints/{step}.json", json.dumps(marker).encode())
        folder.write(f"checkpoints/{step}/evaluation.npz", outputs)
    folder.write("checkpoints/18/state/manifest.ocdbt", b"of an upload that was interrupted")
    local = remote_runs.download_run(RUN)
    assert (local / "metrics.jsonl").read_bytes() == log and (local / "evaluation.npz").read_bytes() == outputs
    assert aj.load_run(RUN).step == 12
    before = {name: folder.read(name) for name in folder.find()}
    with pytest.raises(UserError, match="was written by an earlier version, whose remote checkpoints are read only"):
        train_model(CONFIG, RUN, program)
    assert {name: folder.read(name) for name in folder.find()} == before
    folder.write("checkpoints/12/about/metadata", b"{")
    with caplog.at_level(logging.WARNING, "attention_jax"):
        assert aj.load_run(RUN).step == 6 and "checkpoints/12 is damaged" in caplog.text
