"""Remote workdirs and data: the same run as in a folder, on a file system that neither appends nor renames."""

import csv
import dataclasses
import io
import json
import logging
import threading

import fsspec
import numpy as np
import pytest

import attention_jax as aj
from attention_jax import storage, tree
from attention_jax.config import override
from attention_jax.data.images import sources
from attention_jax.data.images.decoding import BrokenImage
from attention_jax.data.text import pairs as parallel_text
from attention_jax.data.text import tokenizer
from attention_jax.errors import UserError
from attention_jax.tables import runner
from attention_jax.tables.runner import run_table
from attention_jax.train import remote_checkpoints, restore
from attention_jax.train.loop import train_model
from attention_jax.train.program import build_program
from tests.helpers.objects import Objects
from tests.helpers.small import FIELDS, ROOT, small_config

pytestmark = pytest.mark.usefixtures("quickly")

CONFIG = small_config()
RUN = "objects://bucket/run"


@pytest.fixture(autouse=True)
def store(tmp_path, monkeypatch):
    """An empty store; the staging folders are in `tmp_path`."""
    fsspec.register_implementation("objects", Objects, clobber=True)
    monkeypatch.setenv("AJ_STAGING", str(tmp_path / "staging"))
    monkeypatch.setattr(storage, "PAUSES", (0, 0))
    for name, empty in (("store", {}), ("pseudo_dirs", [""]), ("written", [])):
        monkeypatch.setattr(Objects, name, empty)
    return Objects


@pytest.fixture(scope="module")
def program():
    return build_program(CONFIG)


@pytest.fixture(scope="module")
def local_run(program, tmp_path_factory):
    """The run in a folder: arrays of its last checkpoint and of its evaluation, its log, the steps of its checkpoints."""
    workdir = tmp_path_factory.mktemp("local")
    train_model(CONFIG, workdir, program)
    return *contents(workdir), restore.list_steps(workdir)


def contents(workdir):
    with np.load(workdir / "evaluation.npz") as outputs:
        arrays = {**tree.flatten_by_path(restore.read_newest(workdir)[0]), **outputs}
    return arrays, (workdir / "metrics.jsonl").read_bytes()


def assert_same_as(local_run, uri: str = RUN) -> None:
    arrays, log = contents(remote_checkpoints.download_run(uri))
    assert arrays.keys() == local_run[0].keys()
    assert all(arrays[path].tobytes() == local_run[0][path].tobytes() for path in arrays)
    assert log == local_run[1]
    assert remote_checkpoints.list_remote_steps(storage.RemoteFolder(uri)) == local_run[2]


class Killed(BaseException):
    pass


def killed_after(step: int):
    """Ends a call after a step. Its last upload may still end, as a request may that a dead process has sent."""

    def progress(done: int) -> None:
        if done == step:
            raise Killed

    return progress


def with_tensorboard(program):
    config = override(program.config, {"logging.tensorboard": True})
    return dataclasses.replace(program, resolved=dataclasses.replace(program.resolved, config=config))


def uploads_end() -> None:
    for thread in threading.enumerate():
        if thread.name == "upload":
            thread.join()


def another_machine(monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("AJ_STAGING", str(tmp_path / "another machine"))


def test_remote_run_is_the_local_one_and_another_machine_goes_on_with_it(program, local_run, store, tmp_path, monkeypatch):
    # TensorBoard changes no number.
    program = with_tensorboard(program)
    with pytest.raises(Killed):
        train_model(CONFIG, RUN, program, killed_after(21))
    uploads_end()
    storage.RemoteFolder(RUN, write=True).write("tensorboard/events.out.tfevents.1.other", b"of a call before")
    another_machine(monkeypatch, tmp_path)
    assert train_model(CONFIG, RUN, program).step == 36
    assert_same_as(local_run)
    (events,) = storage.RemoteFolder(RUN).names("tensorboard")  # made anew at each start
    events = storage.RemoteFolder(RUN).read(f"tensorboard/{events}")
    assert events.count(b"train/loss") == len([line for line in local_run[1].splitlines() if b"train/loss" in line]) > 3
    # What counts is written once: nothing was appended to and no marker or segment took another's place.
    once = [name for name in store.written if name.startswith("log/") or (name.endswith(".json") and "checkpoints/" in name)]
    assert len(set(once)) == len(once) >= 8
    assert storage.RemoteFolder(RUN).read("timing.jsonl").count(b'"event": "start"') == 2
    assert not [path for path in store.store if ".probe" in path] and any(".probe" in name for name in store.written)
    run = aj.load_run(RUN)
    assert run.step == 36 and run.metrics[-1]["headline"] == json.loads(local_run[1].splitlines()[-1])["headline"]
    before = len(store.written)
    assert train_model(CONFIG, RUN, program).step == 36  # a finished run, started again
    assert not [name for name in store.written[before:] if name.startswith(("log/", "checkpoints/"))]


@pytest.mark.parametrize("step", [12, 36])
def test_checkpoint_counts_only_with_its_marker(step, program, local_run, store, tmp_path, monkeypatch):
    refused = []

    def refuse(path):
        if path.endswith(f"checkpoints/{step}.json"):
            refused.append(path)
            raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(Objects, "before_write", staticmethod(refuse))
        with pytest.raises(UserError, match=r"Permission denied.*the last good one is kept"):
            train_model(CONFIG, RUN, program)
    assert len(refused) == 1  # who may not write need not try again
    assert f"checkpoints/{step}/about/metadata" in store.written and f"checkpoints/{step}.json" not in store.written
    assert remote_checkpoints.download_run(RUN).joinpath("checkpoints", f"{step - 6}").is_dir()
    assert train_model(CONFIG, RUN, program).step == 36
    assert_same_as(local_run)


def test_events_that_cannot_be_brought_cost_a_warning(program, local_run, store, caplog, monkeypatch):
    program = with_tensorboard(program)
    refused = []

    def refuse(path):
        if "/tensorboard/" in path and len(refused) < 2:
            refused.append(path)
            raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING, "attention_jax"):
        patch.setattr(Objects, "before_write", staticmethod(refuse))
        assert train_model(CONFIG, RUN, program).step == 36
    uploads_end()
    assert caplog.text.count("could not be uploaded") == 2 == len(refused)
    assert_same_as(local_run)
    assert len(storage.RemoteFolder(RUN).names("tensorboard")) == 1  # with a later checkpoint


def test_damaged_newest_at_a_uri_costs_steps_and_nothing_else(program, local_run, store, caplog):
    with pytest.raises(Killed):
        train_model(CONFIG, RUN, program, killed_after(30))
    uploads_end()
    newest = max(remote_checkpoints.list_remote_steps(storage.RemoteFolder(RUN)))
    largest = max((path for path in store.store if f"checkpoints/{newest}/" in path), key=lambda path: store.store[path].size)
    content = bytearray(store.store[largest].getvalue())
    content[len(content) // 2] ^= 1
    Objects().pipe_file(largest, bytes(content))
    with caplog.at_level(logging.WARNING, "attention_jax"), pytest.raises(Killed):
        train_model(CONFIG, RUN, program, killed_after(newest - 5))
    assert f"checkpoint {newest} is damaged" in caplog.text and f"checkpoints/{newest}.damaged" in store.written
    assert max(remote_checkpoints.list_remote_steps(storage.RemoteFolder(RUN))) == newest - 6
    train_model(CONFIG, RUN, program)
    assert_same_as(local_run)


def test_the_newest_and_the_best_are_kept(store, tmp_path):
    folder = storage.RemoteFolder(RUN, write=True)
    for step in range(1, 7):
        folder.write(f"checkpoints/{step}.json", b"{}")
    scores = {2: 0.5, 3: 0.5, 4: 0.1}  # of equal ones the earliest
    assert remote_checkpoints.RemoteCheckpoints(folder, tmp_path, 2, 1, scores.get)._not_kept() == [1, 3, 4]


def test_only_what_differs_from_its_marker_is_damaged(program, local_run, store, tmp_path, monkeypatch):
    with pytest.raises(Killed):
        train_model(CONFIG, RUN, program, killed_after(13))
    uploads_end()
    folder = storage.RemoteFolder(RUN)
    for name in ("checkpoints/12.json", "checkpoints/12/evaluation.npz"):
        content = folder.read(name)
        for other in (content[:-1], content[:-1] + b"?", None):
            folder.remove(name) if other is None else folder.write(name, other)
            with pytest.raises(restore.Damaged):
                remote_checkpoints.download_checkpoint(folder, 12, tmp_path / "fetched")
        folder.write(name, content)

    def fails(part, error):
        def fail(path):
            if part in path:
                raise error

        return staticmethod(fail)

    denied = PermissionError(13, "Permission denied")
    cannot = rf"checkpoint 12 cannot be read \({{}}\): {RUN}/checkpoints/12: nothing was changed"
    before = {path: file.getvalue() for path, file in store.store.items() if not path.endswith("writer.json")}
    for part, error, said in (
        ("checkpoints/12/", OSError("connection reset"), rf"{RUN}/checkpoints/12/.*: connection reset, after 3 attempts"),
        ("checkpoints/12/", denied, cannot.format("permission denied")),
        ("checkpoints/12.json", ValueError("bad request"), cannot.format("ValueError: bad request")),
        ("log/", NotImplementedError("ranges"), cannot.format("NotImplementedError: ranges")),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(Objects, "before_read", fails(part, error))
            for reading in (lambda: train_model(CONFIG, RUN, program), lambda: aj.load_run(RUN)):
                with pytest.raises(UserError, match=said):
                    reading()
    with monkeypatch.context() as patch:
        patch.setattr(restore, "_checksum", lambda x: (_ for _ in ()).throw(MemoryError()))
        with pytest.raises(UserError, match=cannot.format("MemoryError: MemoryError")):
            train_model(CONFIG, RUN, program)
    with monkeypatch.context() as patch:
        patch.setattr(Objects, "ls", lambda *_, **__: (_ for _ in ()).throw(denied))
        with pytest.raises(
            UserError, match=rf"the list of checkpoints cannot be read \(permission denied\): {RUN}/checkpoints"
        ):
            train_model(CONFIG, RUN, program)
    assert {path: file.getvalue() for path, file in store.store.items() if not path.endswith("writer.json")} == before
    train_model(CONFIG, RUN, program)
    assert_same_as(local_run)


def test_network_that_fails_for_a_while(program, local_run, store, monkeypatch):
    failed = set()

    def fail_first(path):
        if len(failed) < 12 and path not in failed and "probe" not in path:
            failed.add(path)
            raise OSError("connection reset")

    monkeypatch.setattr(Objects, "before_write", staticmethod(fail_first))
    monkeypatch.setattr(Objects, "before_read", staticmethod(fail_first))
    train_model(CONFIG, RUN, program)
    assert_same_as(local_run)
    assert len(failed) == 12


def test_who_comes_later_takes_the_workdir_over(program, store):
    def taken_over(step: int) -> None:
        if step == 13:
            storage.RemoteFolder(RUN).write("writer.json", b'{"token": "another machine"}')

    with pytest.raises(UserError, match="another process has taken over this workdir"):
        train_model(CONFIG, RUN, program, taken_over)
    assert max(remote_checkpoints.list_remote_steps(storage.RemoteFolder(RUN))) <= 12


def test_workdir_of_another_config_at_a_uri(program, store):
    with pytest.raises(Killed):
        train_model(CONFIG, RUN, program, killed_after(9))
    uploads_end()
    other = small_config(schedule__learning_rate=0.5)
    with pytest.raises(UserError, match=r"belongs to another config .*learning_rate"):
        train_model(other, RUN, build_program(other, program.mesh))


def test_uri_that_does_not_answer_is_reported_in_time(monkeypatch):
    never = threading.Event()
    monkeypatch.setattr(storage, "SECONDS", 0.2)
    monkeypatch.setattr(Objects, "before_write", staticmethod(lambda path: never.wait(30)))
    with pytest.raises(UserError, match=r"objects://bucket/run: no answer within 0.2 s: check that this machine has a network"):
        train_model(CONFIG, RUN)
    monkeypatch.setattr(Objects, "info", lambda self, path: never.wait(30))
    with pytest.raises(UserError, match="no answer within"):
        parallel_text.open_pairs("tsv", "train", {"path": "objects://bucket/{split}.tsv"}, "stop")
    never.set()


def test_uri_of_an_unknown_kind_or_that_is_not_there():
    with pytest.raises(UserError, match=r"Protocol not known: nowhere.* give a URI that fsspec knows"):
        storage.RemoteFolder("nowhere://bucket/run")
    with pytest.raises(UserError, match="data.tokenizer=objects://bucket/none.model"):
        tokenizer.read_tokenizer("objects://bucket/none.model")
    with pytest.raises(UserError, match="data.args.path=objects://bucket/images: there is no such folder"):
        sources.open_folder("train", "objects://bucket/images")


@pytest.mark.slow
def test_table_at_a_uri_is_the_one_in_a_folder(store, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    base, steps = str(ROOT / "configs/quickstart.py"), {**FIELDS, "total_steps": 4, "schedule.warmup_steps": 1}
    steps |= {"evaluation.every_steps": 2, "checkpoint.every_steps": 2, "logging.every_steps": 1}
    text = f"title, source, base = 'A table', 'After nobody.', {base!r}\n"
    text += f"scales = {{'tiny': {{'seeds': 1, 'overrides': {steps!r}}}}}\n"
    text += "measures = {'errors': 'attention_jax.tables.measures:measure_errors'}\nrows = [{'label': 'a'}]\n"
    for name in ("local", "remote"):
        (tmp_path / f"{name}.py").write_text(text)
    assert run_table(tmp_path / "local.py", workdir=tmp_path / "local") == 0

    there, uri = storage.RemoteFolder("objects://bucket/table", write=True), "objects://bucket/table"
    with monkeypatch.context() as patch:
        patch.setattr(runner, "build_program", lambda config: (_ for _ in ()).throw(RuntimeError("no room")))
        assert run_table(tmp_path / "remote.py", workdir=uri) == 1
    assert there.read("a/0/failure.txt").startswith(b"RuntimeError: no room")
    assert run_table(tmp_path / "remote.py", workdir=uri) == 0
    assert there.read("a/0/failure.txt") is None and f"in {uri}" in capsys.readouterr().out

    another_machine(monkeypatch, tmp_path)
    before = len(store.written)
    assert run_table(tmp_path / "remote.py", workdir=uri) == 0
    assert not [name for name in store.written[before:] if "/0/" in name], "nothing is trained or measured again"
    csv_text, ours = (tmp_path / "local/local.csv").read_text(), there.read("remote.csv").decode()
    (row,), (our_row,) = (list(csv.DictReader(io.StringIO(text))) for text in (csv_text, ours))
    assert {key: row[key] for key in row if "second" not in key} == {key: our_row[key] for key in row if "second" not in key}
    assert our_row["status"] == "done" and {"remote.md", "remote.png", "remote_curves.png"} <= set(there.names(""))

    assert float(our_row["seconds"]) > 0
    (tmp_path / "other.py").write_text(text.replace("'total_steps': 4", "'total_steps': 6"))
    with pytest.raises(UserError, match=f"{uri}/a/0 belongs to another config"):
        run_table(tmp_path / "other.py", workdir=uri)

    there.remove("a/0/measure_errors.npz")
    assert run_table(tmp_path / "remote.py", workdir=uri) == 0
    assert there.read("a/0/measure_errors.npz"), "what was taken away there is measured again"
    assert run_table(tmp_path / "local.py", workdir=tmp_path / "local", output="objects://bucket/results") == 0
    assert storage.RemoteFolder("objects://bucket/results").read("local.csv").decode() == csv_text
    assert not (tmp_path / "objects:").exists(), "a URI is no path"


def test_data_at_a_uri_are_those_in_a_folder(tmp_path):
    lines = {"train.en": "one\ntwo\n", "train.de": "eins\nzwei\n", "train.tsv": "one\teins\ntwo\tzwei\n"}
    words = tokenizer.train_tokenizer("words", ["one two eins zwei"], None, "", {})
    np.savez(tmp_path / "digits.npz", x_train=np.zeros((3, 4, 4), np.uint8), y_train=np.arange(3))
    contents = {name: text.encode() for name, text in lines.items()}
    contents |= {"words.json": words.assets()["words.json"], "digits.npz": (tmp_path / "digits.npz").read_bytes()}
    folder = storage.RemoteFolder("objects://bucket/data", write=True)
    for name, content in contents.items():
        folder.write(name, content)
    pairs = [("one", "eins"), ("two", "zwei")]
    for source, args in (("files", {"source": "{split}.en", "target": "{split}.de"}), ("tsv", {"path": "{split}.tsv"})):
        args = {name: f"objects://bucket/data/{value}" for name, value in args.items()}
        assert list(parallel_text.open_pairs(source, "train", args, "stop")) == pairs
    assert tokenizer.read_tokenizer("objects://bucket/data/words.json") == words
    assert sources.open_npz("train", "objects://bucket/data/digits.npz")[2]["label"] == 2


def test_images_at_a_uri_are_those_in_a_folder(tmp_path):
    names = ["train/bee/deep/2.JPG", "train/bee/10.png", "train/ant/1.jpg", "train/bee/.hidden.jpg", "train/bee/notes.txt"]
    names += ["train/beech/7.jpg", ".cache/bee/3.jpg", "train/.old/4.jpg", "val/bee/5.jpg", "README", "train/ant/6.jpg"]
    store = storage.RemoteFolder("objects://bucket/images", write=True)
    for name in names:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
        store.write(name, name.encode())

    def seen(split, path, **args):
        source = sources.open_folder(split, path, **args)
        items = [(source.name(i).removeprefix(path), source[i]["image"], int(source[i]["label"])) for i in range(len(source))]
        return items, source.label_names

    for split, args in (("train", {}), ("val", {}), ("train", {"holdout": 0.5}), ("test", {"holdout": 0.5})):
        here, there = (seen(split, path, **args) for path in (str(tmp_path), "objects://bucket/images"))
        assert here == there and here[0]
    for path in (str(tmp_path), "objects://bucket/images"):
        with pytest.raises(UserError, match=f"{path} has no folder of that name; give one of train, val, or"):
            sources.open_folder("test", path)
    source = sources.open_folder("train", "objects://bucket/images")
    store.remove("train/ant/1.jpg")
    with pytest.raises(BrokenImage, match="there is no such file any more"):
        source[0]


@pytest.mark.slow
def test_google_cloud_storage_as_an_emulator_speaks_it(program, local_run, monkeypatch):
    for module in ("gcsfs", "gcp_storage_emulator"):
        pytest.importorskip(module, reason=f"{module} is not installed here: ./launch.sh setup dev does it")
    from gcp_storage_emulator import server

    emulator = server.create_server("127.0.0.1", 0, in_memory=True, default_bucket="bucket")
    emulator.start()
    try:
        host, port = emulator._api._httpd.server_address[:2]
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://{host}:{port}")
        with pytest.raises(Killed):
            train_model(CONFIG, "gs://bucket/run", program, killed_after(21))
        uploads_end()
        train_model(CONFIG, "gs://bucket/run", program)
        assert_same_as(local_run, "gs://bucket/run")
    finally:
        emulator.stop()
