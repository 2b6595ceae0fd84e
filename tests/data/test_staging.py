"""Remote data staged on this host: the same batches from the store, while files come, and from the complete copy."""

import functools
import logging
import re
import shutil
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import fsspec
import numpy as np
import pytest

from attention_jax import storage
from attention_jax.cli.main import main
from attention_jax.data import array_records, staging
from attention_jax.data.images import sources
from attention_jax.data.images.sources import open_source
from attention_jax.data.loader import Loader
from attention_jax.errors import UserError
from tests.helpers.objects import Objects
from tests.helpers.small import as_options, same_batches
from tests.helpers.tiny_set import write_set

ROOT = Path(__file__).resolve().parents[2]
FILE = "1.0.0/tiny-train.array_record-00001-of-00003"
ARGS = {"name": "tiny", "data_dir": "objects://bucket/data"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The data set in a folder of this disk."""
    write_set(here := tmp_path_factory.mktemp("data"))
    return here


@pytest.fixture(autouse=True)
def reads(folder, monkeypatch):
    """The data set in a store of objects; the list of what is read there: paths."""
    fsspec.register_implementation("objects", Objects, clobber=True)
    found = []
    for name, value in (("store", {}), ("pseudo_dirs", [""]), ("written", []), ("before_read", staticmethod(found.append))):
        monkeypatch.setattr(Objects, name, value)
    remote = storage.RemoteFolder("objects://bucket/data")
    for path in filter(lambda path: path.is_file(), folder.rglob("*")):
        remote.write(path.relative_to(folder).as_posix(), path.read_bytes())
    monkeypatch.setattr(storage, "PAUSES", ())
    staging.open_staged_folder.cache_clear()
    return found


def open_set(cache_dir=None, **args):
    return open_source("tfds", "train", {**ARGS, **args}, cache_dir and str(cache_dir))


def open_again(cache_dir):
    staging.open_staged_folder.cache_clear()
    return open_set(cache_dir)


def wait_for_copy(source, seconds: float = 20.0):
    """Returns the source when it reads its copy alone; `readers` counts a file as local once it has been read there."""
    end = time.monotonic() + seconds
    while source.readers > 1:
        assert time.monotonic() < end, "not staged"
        for index in (0, 30, 60):
            source[index]
    return source


def batches(source, steps=4):
    def transform(example, rng):
        return {"image": np.frombuffer(example["image"], np.uint8)[rng.integers(0, 60, 32)], "label": example["label"]}

    loader = Loader(source, batch_size=16, seed=1, transform=transform, collate=dict, threads=2)
    return list(loader.training(0, steps))


def test_the_same_batches_while_files_come_and_from_the_copy(folder, tmp_path, reads):
    expected = batches(open_source("tfds", "train", {**ARGS, "data_dir": str(folder)}))
    source = open_set(tmp_path)
    assert same_batches(batches(source), expected)
    files = [path for path in reads if "array_record" in path]
    assert len(files) == len(set(files)) == 3, "each file is read once, as a whole"
    copy = wait_for_copy(open_again(tmp_path))
    reads.clear()
    assert same_batches(batches(copy), expected) and copy.readers == 1 and not reads
    assert not list(tmp_path.rglob("*.partial"))


@pytest.fixture
def bucket(folder, monkeypatch):
    """The data set at gs://bucket of a server that array_record reads too."""
    pytest.importorskip("gcsfs")
    command = [sys.executable, str(ROOT / "experiments/benchmarks/slow_store.py"), str(folder), "--latency-ms=0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        address = f"http://127.0.0.1:{process.stdout.readline().strip()}"
        for name in ("STORAGE_EMULATOR_HOST", "CLOUD_STORAGE_EMULATOR_ENDPOINT"):
            monkeypatch.setenv(name, address)
        yield "gs://bucket"
        process.terminate()


def test_training_starts_before_the_files_are_here(folder, bucket, tmp_path, monkeypatch):
    """array_record reads single records of gs:// itself."""
    expected = batches(open_source("tfds", "train", {**ARGS, "data_dir": str(folder)}))
    may_come, fetch = threading.Event(), storage.RemoteFolder.fetch
    monkeypatch.setattr(storage.RemoteFolder, "fetch", lambda *arguments: may_come.wait(20) and fetch(*arguments))
    source = open_set(tmp_path, data_dir=bucket)
    assert same_batches(batches(source), expected) and source.readers == array_records.READERS
    assert not list(tmp_path.rglob("*.array_record-*"))
    may_come.set()
    assert same_batches(batches(wait_for_copy(source)), expected)


def flip(path):
    content = bytearray(path.read_bytes())
    content[20_000:60_000] = bytes(40_000)
    path.write_bytes(content)


@pytest.mark.parametrize("is_open", [True, False], ids=["while it is read", "before it is opened"])
@pytest.mark.parametrize("damage", [flip, lambda path: path.write_bytes(path.read_bytes()[:-80_000])], ids=["changed", "cut"])
def test_a_damaged_copy_is_fetched_again(folder, tmp_path, damage, is_open, caplog):
    source = wait_for_copy(open_set(tmp_path))
    expected = batches(open_source("tfds", "train", {**ARGS, "data_dir": str(folder)}))
    (copy,) = tmp_path.rglob(FILE)
    intact = copy.read_bytes()
    damage(copy)
    assert same_batches(batches(source if is_open else open_again(tmp_path)), expected)
    assert "images could not be decoded" not in caplog.text
    wait_for_copy(open_again(tmp_path))
    assert copy.read_bytes() == intact


def test_a_thread_that_still_reads_the_damaged_copy_gets_the_new_one(folder, tmp_path, monkeypatch):
    """It reads while another thread replaces the copy, and fails when the new one is already here."""
    source, expected = wait_for_copy(open_set(tmp_path)), open_source("tfds", "train", {**ARGS, "data_dir": str(folder)})
    replace, others = staging.StagedFolder.replace, []

    def replace_slowly(folder, name):
        others.append(threads.submit(source.__getitem__, 36))
        time.sleep(0.3)
        replace(folder, name)
        folder.wait_for(name)

    monkeypatch.setattr(staging.StagedFolder, "replace", replace_slowly)
    flip(next(tmp_path.rglob(FILE)))
    with ThreadPoolExecutor() as threads:
        assert source[34]["image"] == expected[34]["image"]
        assert [other.result()["image"] for other in others] == [expected[36]["image"]]


def test_a_changed_file_is_fetched_again(folder, tmp_path):
    wait_for_copy(open_set(tmp_path))
    (copy,) = tmp_path.rglob(FILE)
    content = bytearray(copy.read_bytes())
    content[100_000] ^= 1  # as long as before
    time.sleep(0.01)
    storage.RemoteFolder("objects://bucket/data/tiny").write(FILE, bytes(content))
    wait_for_copy(open_again(tmp_path))
    assert copy.read_bytes() == content


def test_two_processes_share_one_copy(folder, tmp_path):
    program = (
        "import sys, time; from attention_jax import storage; from attention_jax.data import staging\n"
        "fetched, fetch = [], storage.RemoteFolder.fetch\n"
        "def count(*arguments): time.sleep(0.2); fetched.append(arguments); return fetch(*arguments)\n"
        "storage.RemoteFolder.fetch = count\n"
        "folder = staging.StagedFolder(sys.argv[1], sys.argv[2])\n"
        "names = [name for name in folder.files if 'array_record' in name]\n"
        "folder.stage(names)\n"
        "while not all(map(folder.is_here, names)): time.sleep(0.01)\n"
        "print(len(fetched))\n"
    )
    command = [sys.executable, "-c", program, f"file://{folder}/tiny", str(tmp_path)]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    counts = [int(process.communicate(timeout=60)[0]) for process in processes]
    assert sum(counts) == 3


def test_no_room_ends_the_command_before_training(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(staging.shutil, "disk_usage", lambda path: SimpleNamespace(free=2**18))
    options = {
        "data__source": "tfds",
        "data__args": ARGS,
        "data__cache_dir": str(tmp_path / "cache"),
        "data__eval_split": "train",
    }
    assert main(["train", *as_options(**options), f"--workdir={tmp_path / 'run'}"]) == 2
    said = capsys.readouterr().err
    assert re.search(
        r"cache_dir=.*cache: objects://bucket/data/tiny needs 0\.000\d+ GiB more, and .* has 0\.000244 GiB left", said
    )
    assert not (tmp_path / "run").exists()


def test_a_store_that_does_not_answer_matters_only_without_a_copy(folder, tmp_path, monkeypatch, caplog):
    expected = batches(wait_for_copy(open_set(tmp_path)))

    def refuse(self, uri, write=False):
        raise UserError(f"{uri}: no answer.")

    monkeypatch.setattr(storage.RemoteFolder, "__init__", refuse)
    assert same_batches(batches(open_again(tmp_path)), expected)
    assert "is used as it is" in caplog.text
    (copy,) = tmp_path.rglob(f"{FILE}.staged")
    copy.unlink()
    with pytest.raises(UserError, match="does not answer, and .*00001-of-00003 is no complete copy"):
        batches(open_again(tmp_path))
    shutil.rmtree(tmp_path)
    with pytest.raises(UserError, match="no answer"):
        open_again(tmp_path)


def test_a_network_that_fails_ends_training_and_leaves_no_image_out(tmp_path, monkeypatch, caplog):
    def fail(path):
        if path.endswith(FILE):
            raise OSError("the network is gone")

    monkeypatch.setattr(Objects, "before_read", staticmethod(fail))
    source = open_set(tmp_path)
    with pytest.raises(UserError, match="00001-of-00003 could not be staged .*the network is gone"):
        batches(source)
    assert "could not be decoded" not in caplog.text


def test_the_checksum_of_the_store_is_held_against_what_came(tmp_path, monkeypatch, caplog):
    describe = staging._describe
    monkeypatch.setattr(staging, "_describe", lambda info: describe(info)._replace(crc32c="0000AA=="))
    folder = staging.StagedFolder("objects://bucket/data/tiny", str(tmp_path))
    folder.stage([FILE])
    with pytest.raises(UserError, match="could not be staged .*the store says 0000"):
        folder.wait_for(FILE)
    assert not folder.is_here(FILE) and "is not staged" in caplog.text


def test_a_remote_folder_keeps_each_image_that_was_read(tmp_path, reads):
    remote = storage.RemoteFolder("objects://bucket/images")
    for name in ("train/a/0.png", "train/b/1.png"):
        remote.write(name, name.encode())

    def read():
        staging.open_staged_folder.cache_clear()
        source = open_source("folder", "train", {"path": "objects://bucket/images"}, str(tmp_path))
        reads.clear()
        return [source[i]["image"] for i in range(2)]

    assert read() == [b"train/a/0.png", b"train/b/1.png"] and len(reads) == 1  # the first when it was opened
    assert read() == [b"train/a/0.png", b"train/b/1.png"] and not reads
    (copy,) = tmp_path.rglob("0.png")
    copy.write_bytes(b"TRAIN/a/0.png" + copy.read_bytes()[-4:])
    time.sleep(0.01)
    remote.write("train/b/1.png", b"another image")
    assert read() == [b"train/a/0.png", b"another image"]


def test_what_reads_no_copy_is_said(folder, tmp_path, caplog, monkeypatch):
    caplog.set_level("INFO")
    open_source("tfds", "train", {**ARGS, "data_dir": str(folder)}, str(tmp_path / "a"))
    open_source("digits", "train", {}, str(tmp_path / "b"))
    assert not [record for record in caplog.records if record.levelname == "WARNING"]
    monkeypatch.setattr(sources, "_warn_once", functools.cache(logging.getLogger("w").warning))
    storage.RemoteFolder("objects://bucket/images").write("train/a/0.png", b"0")
    for _ in range(2):
        open_source("folder", "train", {"path": "objects://bucket/images"})
    (warned,) = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert "reads objects://bucket/images over the network, one request a record: data.cache_dir keeps" in warned
    assert "a is read by nothing: the data are not remote" in caplog.text
    assert "b is read by nothing: data.source=digits has no argument cache_dir" in caplog.text
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="give a folder that can be written to"):
        open_set(tmp_path / "file")
