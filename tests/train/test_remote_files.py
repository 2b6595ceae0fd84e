"""Remote workdirs: the same run as in a folder, at gs:// on a server of ours; and data at any URI."""

import csv
import dataclasses
import io
import json
import logging
import re
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
from attention_jax.data.text import tokenizer, vocabularies
from attention_jax.errors import UserError
from attention_jax.tables import runner
from attention_jax.tables.runner import run_table
from attention_jax.train import remote_runs, restore
from attention_jax.train.loop import train_model
from attention_jax.train.program import build_program
from tests.helpers.gcs import empty_server
from tests.helpers.objects import Objects
from tests.helpers.small import FIELDS, ROOT, small_config

pytestmark = pytest.mark.usefixtures("quickly")

CONFIG = small_config()
RUN = "gs://bucket/run"


@pytest.fixture(autouse=True)
def server(tmp_path, monkeypatch):
    """An empty server; the staging folders are in `tmp_path`."""
    fsspec.register_implementation("objects", Objects, clobber=True)
    monkeypatch.setenv("AJ_STAGING", str(tmp_path / "staging"))
    monkeypatch.setattr(storage, "PAUSES", (0, 0))
    for name, empty in (("store", {}), ("pseudo_dirs", [""]), ("written", [])):
        monkeypatch.setattr(Objects, name, empty)
    return empty_server()


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
    arrays, log = contents(remote_runs.download_run(uri))
    assert arrays.keys() == local_run[0].keys()
    assert all(arrays[path].tobytes() == local_run[0][path].tobytes() for path in arrays)
    assert log == local_run[1] == storage.RemoteFolder(uri).read("metrics.jsonl")
    assert steps_there(uri) == local_run[2]


def steps_there(uri: str = RUN) -> list[int]:
    return restore.list_steps(storage.RemoteFolder(uri))


def find_name(step: int) -> str:
    """The folder of a step's checkpoint."""
    (name,) = [name for number, name in restore.list_checkpoints(storage.RemoteFolder(RUN)) if number == step]
    return name


class Killed(BaseException):
    pass


def killed_after(step: int):
    """Ends a call after a step. Its last save may still end, as a request may that a dead process has sent."""

    def progress(done: int) -> None:
        if done == step:
            raise Killed

    return progress


def with_tensorboard(program):
    config = override(program.config, {"logging.tensorboard": True})
    return dataclasses.replace(program, resolved=dataclasses.replace(program.resolved, config=config))


def saves_end() -> None:
    for thread in threading.enumerate():
        if thread.name == "save":
            thread.join()


def answer(status: int, pattern: str, methods: str = "POST", times: int = 10**6):
    """Returns a fault: requests for these paths are answered with `status`, `times` times."""
    left = [times]

    def fault(method: str, name: str, client: str) -> int | None:
        if left[0] and method in methods.split() and re.search(pattern, name):
            left[0] -= 1
            return status
        return None

    return fault


def another_machine(monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("AJ_STAGING", str(tmp_path / "another machine"))


def test_remote_run_is_the_local_one_and_another_machine_goes_on_with_it(program, local_run, server, tmp_path, monkeypatch):
    # TensorBoard changes no number.
    program = with_tensorboard(program)
    with pytest.raises(Killed):
        train_model(CONFIG, RUN, program, killed_after(21))
    saves_end()
    storage.RemoteFolder(RUN, write=True).write("tensorboard/events.out.tfevents.1.other", b"of a call before")
    another_machine(monkeypatch, tmp_path)
    assert train_model(CONFIG, RUN, program).step == 36
    assert_same_as(local_run)
    (events,) = storage.RemoteFolder(RUN).names("tensorboard")  # made anew at each start
    events = storage.RemoteFolder(RUN).read(f"tensorboard/{events}")
    assert events.count(b"train/loss") == len([line for line in local_run[1].splitlines() if b"train/loss" in line]) > 3
    # No marker took another's place.
    once = [name for name in server.written if re.search(r"checkpoints/[^/]*[.]json$", name)]
    assert len(set(once)) == len(once) >= 6
    assert storage.RemoteFolder(RUN).read("timing.jsonl").count(b'"event": "start"') == 2
    assert not [name for name in server.objects if ".probe" in name] and any(".probe" in name for name in server.written)
    run = aj.load_run(RUN)
    assert run.step == 36 and run.metrics[-1]["headline"] == json.loads(local_run[1].splitlines()[-1])["headline"]
    assert aj.load_run(f"{RUN}/checkpoints/{find_name(30)}").step == aj.load_run(f"{RUN}/checkpoints/30").step == 30
    before = len(server.written)
    assert train_model(CONFIG, RUN, program).step == 36  # a finished run, started again
    assert not [name for name in server.written[before:] if "/checkpoints/" in name]


@pytest.mark.parametrize("step", [12, 36])
def test_checkpoint_counts_only_with_its_marker(step, program, local_run, server):
    server.fault = answer(403, rf"checkpoints/{step}-[^/]*[.]json$")
    with pytest.raises(UserError, match=r"Forbidden.*the last good one is kept"):
        train_model(CONFIG, RUN, program)
    server.fault = lambda *_: None
    written = [name for name in server.written if f"checkpoints/{step}-" in name]
    assert any(name.endswith("about/metadata") for name in written) and any("/state/" in name for name in written)
    assert not [name for name in written if name.endswith(".json")] and steps_there()[-1] == step - 6
    assert aj.load_run(RUN).step == step - 6
    assert train_model(CONFIG, RUN, program).step == 36
    assert_same_as(local_run)
    left = {name.split("/")[3] for name in server.objects if "/checkpoints/" in name and ".json" not in name}
    assert left == {find_name(step) for step in steps_there()}, "what an interrupted save has left is removed"


def test_files_for_people_that_cannot_be_brought_cost_a_warning(program, local_run, server, caplog):
    program = with_tensorboard(program)
    server.fault = answer(403, "/tensorboard/", times=6)
    with caplog.at_level(logging.WARNING, "attention_jax"):
        assert train_model(CONFIG, RUN, program).step == 36
    assert caplog.text.count("could not be uploaded") == 2  # each after three attempts
    assert_same_as(local_run)
    assert len(storage.RemoteFolder(RUN).names("tensorboard")) == 1  # with a later checkpoint


def test_damaged_newest_at_a_uri_costs_steps_and_nothing_else(program, local_run, server, caplog):
    with pytest.raises(Killed):
        train_model(CONFIG, RUN, program, killed_after(30))
    saves_end()
    newest = steps_there()[-1]
    name = find_name(newest)
    inside = [path for path in server.objects if re.search(f"checkpoints/{name}/state/.*/d/", path)]
    largest = max(inside, key=lambda path: len(server.objects[path].content))
    content = bytearray(server.objects[largest].content)
    content[16] ^= 1  # of an array: they come first, then nodes of an index that the merge of all processes has replaced
    server.put(largest, bytes(content))
    with caplog.at_level(logging.WARNING, "attention_jax"), pytest.raises(Killed):
        train_model(CONFIG, RUN, program, killed_after(newest - 5))
    assert f"checkpoint {newest} is damaged" in caplog.text and f"bucket/run/checkpoints/{name}.damaged" in server.written
    assert steps_there()[-1] == newest - 6
    train_model(CONFIG, RUN, program)
    assert_same_as(local_run)


def test_only_what_differs_from_what_was_saved_is_damaged(program, local_run, server, monkeypatch):
    with pytest.raises(Killed):
        train_model(CONFIG, RUN, program, killed_after(13))
    saves_end()
    folder, name = storage.RemoteFolder(RUN), find_name(12)
    for file in (f"checkpoints/{name}.json", f"checkpoints/{name}/about/metadata", f"checkpoints/{name}/state/manifest.ocdbt"):
        content = folder.read(file)
        for other in (content[:-9], b"?" + content[1:-20] + b"?" * 19, None):
            if other is None and file.endswith(".json"):
                continue  # then there is no checkpoint
            folder.remove(file) if other is None else folder.write(file, other)
            with pytest.raises(restore.Damaged):
                restore.read_checkpoint(folder, f"checkpoints/{name}")
        folder.write(file, content)

    def kept() -> dict[str, bytes]:
        return {path: each.content for path, each in server.objects.items() if not path.endswith("writer.json")}

    before = kept()
    cannot = rf"checkpoint {name} cannot be read \({{}}"
    for pattern, said in (
        (f"checkpoints/{name}/about", rf"{RUN}/checkpoints/{name}/about/metadata: Forbidden.* after 3 attempts"),
        (f"checkpoints/{name}/state/.*d/", rf"{RUN}/checkpoints/{name}/state/.*: Forbidden.* after 3 attempts"),
        (f"checkpoints/{name}.json", rf"{RUN}/checkpoints/{name}.json: Forbidden.* after 3 attempts"),
    ):
        server.fault = answer(403, pattern, "GET")
        for reading in (lambda: train_model(CONFIG, RUN, program), lambda: aj.load_run(RUN)):
            with pytest.raises(UserError, match=said):
                reading()
        server.fault = lambda *_: None
    with monkeypatch.context() as patch:
        patch.setattr(restore, "_checksum", lambda x: (_ for _ in ()).throw(MemoryError()))
        with pytest.raises(UserError, match=cannot.format("MemoryError: MemoryError")):
            train_model(CONFIG, RUN, program)
    server.fault = answer(403, "run/checkpoints/?$", "GET")
    with pytest.raises(UserError, match=rf"{RUN}/checkpoints: Forbidden.* after 3 attempts"):
        train_model(CONFIG, RUN, program)
    server.fault = lambda *_: None
    assert kept() == before
    train_model(CONFIG, RUN, program)
    assert_same_as(local_run)


def test_network_that_fails_for_a_while(program, local_run, server):
    """Each of the first requests is answered with 503, and others are cut off; TensorStore and we try again."""
    failed = set()

    def fail_first(method: str, name: str, client: str) -> int | None:
        if len(failed) < 12 and (method, name) not in failed and "probe" not in name:
            failed.add((method, name))
            return 503 if len(failed) % 3 else 0
        return None

    server.fault = fail_first
    train_model(CONFIG, RUN, program)
    assert_same_as(local_run)
    assert len(failed) == 12


def test_who_comes_later_takes_the_workdir_over(program, server):
    def taken_over(step: int) -> None:
        if step == 13:
            storage.RemoteFolder(RUN).write("writer.json", b'{"token": "another machine"}')

    with pytest.raises(UserError, match="another process has taken over this workdir"):
        train_model(CONFIG, RUN, program, taken_over)
    assert steps_there()[-1] <= 12


def test_workdir_of_another_config_at_a_uri(program, server):
    with pytest.raises(Killed):
        train_model(CONFIG, RUN, program, killed_after(9))
    saves_end()
    other = small_config(schedule__learning_rate=0.5)
    with pytest.raises(UserError, match=r"belongs to another config .*learning_rate"):
        train_model(other, RUN, build_program(other, program.mesh))


def test_checkpoints_at_other_uris_are_refused():
    for uri in ("memory://run", "objects://bucket/run", "s3://bucket/run", "file:///tmp/run"):
        with pytest.raises(UserError, match=f"workdir={uri}: checkpoints are written to a folder or to gs://bucket/run"):
            train_model(CONFIG, uri)


def test_uri_that_does_not_answer_is_reported_in_time(monkeypatch, server):
    never = threading.Event()
    monkeypatch.setattr(storage, "SECONDS", 0.2)
    server.fault = lambda *_: never.wait(30) and None
    with pytest.raises(UserError, match=r"gs://bucket/run: no answer within 0.2 s: check that this machine has a network"):
        train_model(CONFIG, RUN)
    never.set()
    monkeypatch.setattr(Objects, "info", lambda self, path: threading.Event().wait(2))
    with pytest.raises(UserError, match="no answer within"):
        parallel_text.open_pairs("tsv", "train", {"path": "objects://bucket/{split}.tsv"}, "stop")


def test_uri_of_an_unknown_kind_or_that_is_not_there():
    with pytest.raises(UserError, match=r"Protocol not known: nowhere.* give a URI that fsspec knows"):
        storage.RemoteFolder("nowhere://bucket/run")
    with pytest.raises(UserError, match="data.tokenizer=objects://bucket/none.model"):
        vocabularies.read_tokenizer("objects://bucket/none.model")
    with pytest.raises(UserError, match="data.args.path=objects://bucket/images: there is no such folder"):
        sources.open_folder("train", "objects://bucket/images")


@pytest.mark.slow
def test_table_at_a_uri_is_the_one_in_a_folder(server, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    base, steps = str(ROOT / "configs/quickstart.py"), {**FIELDS, "total_steps": 4, "schedule.warmup_steps": 1}
    steps |= {"evaluation.every_steps": 2, "checkpoint.every_steps": 2, "logging.every_steps": 1}
    text = f"title, source, base = 'A table', 'After nobody.', {base!r}\n"
    text += f"scales = {{'tiny': {{'seeds': 1, 'overrides': {steps!r}}}}}\n"
    text += "measures = {'errors': 'attention_jax.tables.measures:measure_errors'}\nrows = [{'label': 'a'}]\n"
    for name in ("local", "remote"):
        (tmp_path / f"{name}.py").write_text(text)
    assert run_table(tmp_path / "local.py", workdir=tmp_path / "local") == 0

    there, uri = storage.RemoteFolder("gs://bucket/table", write=True), "gs://bucket/table"
    with monkeypatch.context() as patch:
        patch.setattr(runner, "build_program", lambda config: (_ for _ in ()).throw(RuntimeError("no room")))
        assert run_table(tmp_path / "remote.py", workdir=uri) == 1
    assert there.read("a/0/failure.txt").startswith(b"RuntimeError: no room")
    assert run_table(tmp_path / "remote.py", workdir=uri) == 0
    assert there.read("a/0/failure.txt") is None and f"in {uri}" in capsys.readouterr().out

    another_machine(monkeypatch, tmp_path)
    before = len(server.written)
    assert run_table(tmp_path / "remote.py", workdir=uri) == 0
    assert not [name for name in server.written[before:] if "/0/" in name], "nothing is trained or measured again"
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
    assert run_table(tmp_path / "local.py", workdir=tmp_path / "local", output="gs://bucket/results") == 0
    assert storage.RemoteFolder("gs://bucket/results").read("local.csv").decode() == csv_text
    assert not (tmp_path / "gs:").exists(), "a URI is no path"


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
    assert vocabularies.read_tokenizer("objects://bucket/data/words.json") == words
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
