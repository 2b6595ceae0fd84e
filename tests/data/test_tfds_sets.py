"""python -m attention_jax prepare, without network and without TensorFlow."""

import importlib.util
import shutil
import types
from pathlib import Path

import numpy as np
import pytest

from attention_jax.cli import main as cli
from attention_jax.data.images import sources
from attention_jax.data.images.decoding import BrokenImage
from attention_jax.data.loader import Loader
from attention_jax.errors import UserError

tfds = pytest.importorskip("tensorflow_datasets")


@pytest.fixture
def tensorflow(monkeypatch):
    """As if TensorFlow were installed; nothing here imports it."""
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: True if name == "tensorflow" else find(name, *rest))


class Builder:
    """A set of one file to download; what it was called with is in `recorded`."""

    MANUAL_DOWNLOAD_INSTRUCTIONS = None
    size = 1000
    error: Exception | None = None

    def __init__(self, name, data_dir, file_format):
        self.name, self.data_dir, self.file_format = name, str(Path(data_dir) / name / "1.0.0"), file_format
        self.url_infos = {"https://there/file.tar": types.SimpleNamespace(size=self.size, filename="file.tar")}
        self.info = types.SimpleNamespace(dataset_size=500)

    def download_and_prepare(self, download_config):
        if self.error:
            raise self.error
        Builder.recorded = self, download_config
        Path(self.data_dir).mkdir(parents=True)
        (Path(self.data_dir) / "dataset_info.json").write_text("{}")


@pytest.fixture
def builder(monkeypatch, tensorflow):
    monkeypatch.setattr(tfds, "builder", Builder)
    return Builder


def prepare(capsys, *arguments: object) -> tuple[int, str]:
    code = cli.main(["prepare", *map(str, arguments)])
    out, err = capsys.readouterr()
    assert "Traceback" not in err and (code == 2) == err.startswith("error: ")
    return code, out + err


def test_prepares_as_array_record_with_checksums(capsys, builder, tmp_path):
    code, said = prepare(capsys, "flowers", f"--data_dir={tmp_path}")
    assert code == 0 and f"{tmp_path}/flowers/1.0.0 is ready" in said and f"--config.data.args.data_dir={tmp_path}" in said
    made, options = builder.recorded
    assert made.file_format == "array_record" and options.force_checksums_validation
    assert options.manual_dir is None and not options.try_download_gcs and not options.register_checksums


def test_does_not_overwrite(capsys, builder, tmp_path):
    there = tmp_path / "flowers" / "1.0.0"
    there.mkdir(parents=True)
    code, said = prepare(capsys, "flowers", f"--data_dir={tmp_path}")
    assert code == 2 and f"{there} exists already" in said and not list(there.iterdir())


def test_a_file_at_hand_in_place_of_a_download(capsys, builder, tmp_path, monkeypatch):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file.tar").write_bytes(b"x")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: types.SimpleNamespace(free=600))  # 500 for the records
    code, _ = prepare(capsys, "flowers", f"--data_dir={tmp_path / 'data'}", f"--manual_dir={tmp_path / 'mine'}")
    assert code == 0 and str(builder.recorded[1].manual_dir) == str(tmp_path / "mine")
    assert builder.recorded[1].force_checksums_validation, "what is at hand is checked as well"
    code, said = prepare(capsys, "trees", f"--data_dir={tmp_path / 'data'}")
    assert code == 2 and "trees takes at least 0.0 GB" in said, "without the file, 1,000 more to download"


def test_a_disk_too_small(capsys, builder, tmp_path, monkeypatch):
    monkeypatch.setattr(builder, "size", 7 * 10**9)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: types.SimpleNamespace(free=2 * 10**9))
    code, said = prepare(capsys, "flowers", f"--data_dir={tmp_path}/not/yet")
    assert code == 2 and "takes at least 7.0 GB" in said and "2.0 GB free" in said and not (tmp_path / "not").exists()


@pytest.mark.parametrize("error", [tfds.download.DownloadError("no route"), OSError("no route"), ValueError("no route\nmore")])
def test_what_goes_wrong_is_one_sentence(capsys, builder, tmp_path, monkeypatch, error):
    monkeypatch.setattr(builder, "error", error)
    code, said = prepare(capsys, "flowers", f"--data_dir={tmp_path}")
    assert code == 2 and said == f"error: flowers could not be prepared in {tmp_path} (no route).\n"


def test_instructions_of_sets_that_are_fetched_by_hand(capsys, builder, tmp_path, monkeypatch):
    monkeypatch.setattr(builder, "MANUAL_DOWNLOAD_INSTRUCTIONS", "  Ask the authors\n  for files.zip.\n")
    code, said = prepare(capsys, "flowers", f"--data_dir={tmp_path}")
    assert code == 2 and f"into {tmp_path}/downloads/manual or a folder" in said and "Ask the authors for files.zip.\n" in said
    (tmp_path / "downloads" / "manual").mkdir(parents=True)
    (tmp_path / "downloads" / "manual" / "files.zip").write_bytes(b"x")
    assert prepare(capsys, "flowers", f"--data_dir={tmp_path}")[0] == 0
    assert not builder.recorded[1].force_checksums_validation, "TFDS has none for them"


def test_imagenet_says_which_files_before_anything_slow_is_imported(run_python, tmp_path):
    program = (
        "import sys; from attention_jax.cli import main as cli\n"
        f"code = cli.main(['prepare', 'imagenet2012', '--data_dir={tmp_path}'])\n"
        "print(code, {'jax', 'tensorflow', 'tensorflow_datasets'} & set(sys.modules))"
    )
    done = run_python("-c", program)
    assert done.stdout == "2 set()\n"
    assert "put ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar from https://image-net.org" in done.stderr
    assert f"into {tmp_path}/downloads/manual, or give their folder as --manual_dir=DIR" in done.stderr


def test_imagenet_misses_one_of_two_files(capsys, builder, tmp_path, monkeypatch):
    (tmp_path / "ILSVRC2012_img_train.tar").write_bytes(b"x" * 3000)
    options = ("imagenet2012", f"--data_dir={tmp_path / 'data'}", f"--manual_dir={tmp_path}")
    code, said = prepare(capsys, *options)
    assert code == 2 and "put ILSVRC2012_img_val.tar from" in said and f"into {tmp_path}," in said
    (tmp_path / "ILSVRC2012_img_val.tar").write_bytes(b"x" * 1000)
    assert prepare(capsys, *options)[0] == 0


def test_without_tensorflow(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None)
    code, said = prepare(capsys, "cifar10", f"--data_dir={tmp_path}")
    assert (
        code == 2
        and "preparing cifar10 needs the package 'tensorflow': install it with pip install 'attention_jax[prep" in said
    )


def test_names_and_folders_that_are_not_there(capsys, tensorflow, tmp_path):
    code, said = prepare(capsys, "cifar11", f"--data_dir={tmp_path}")
    assert code == 2 and "TensorFlow Datasets has no 'cifar11'" in said and said.count("\n") == 1
    code, said = prepare(capsys, "Not a name", f"--data_dir={tmp_path}")
    assert code == 2 and "'Not a name' is no data set that can be prepared" in said
    code, said = prepare(capsys, "cifar10", f"--data_dir={tmp_path}", "--manual_dir=nowhere")
    assert code == 2 and said == "error: --manual_dir=nowhere: there is no such folder.\n"


def test_a_damaged_record_is_left_out_as_a_broken_image_is(tmp_path, monkeypatch, caplog):
    writing = pytest.importorskip("array_record.python.array_record_module")
    reading = pytest.importorskip("array_record.python.array_record_data_source")
    writer = writing.ArrayRecordWriter(str(tmp_path / "records"), "group_size:1")
    contents = [np.random.default_rng(i).bytes(1000) for i in range(8)]
    for content in contents:
        writer.write(content)
    writer.close()
    data = bytearray((tmp_path / "records").read_bytes())
    data[data.index(contents[0][:50])] ^= 1  # the first, at which a source is looked at
    (tmp_path / "records").write_bytes(data)

    class Records(reading.ArrayRecordDataSource):
        def __getitem__(self, index):
            return {"image": super().__getitem__(index), "label": index}

    features = {
        "image": types.SimpleNamespace(shape=(8, 8, 1)),
        "label": types.SimpleNamespace(num_classes=8, names="abcdefgh"),
    }
    info = types.SimpleNamespace(features=features)
    made = types.SimpleNamespace(info=info, as_data_source=lambda **options: Records([str(tmp_path / "records")]))
    monkeypatch.setattr(sources, "open_builder", lambda name, folder: made)
    monkeypatch.setattr(sources, "find_image_and_label", lambda name, info: ("image", "label"))
    source = sources.open_source("tfds", "train", {"name": "set"})
    loader = Loader(source, 4, 0, lambda example, rng: {"label": example["label"]}, lambda batch: batch)
    weights = np.concatenate([batch["weight"] for batch in loader.evaluation()])
    assert weights.tolist() == [0, *[1] * 7] and source[7]["image"] == contents[7]
    assert "example 0 cannot be decoded (Corrupted Riegeli/records file: chunk data hash mismatch" in caplog.text
    assert "data: 1 of 8 images could not be decoded" in caplog.text


class _Failing(list):
    """Records that fail the first `times` times, as array_record's do without a network."""

    data_source, times = None, 1

    def __getitem__(self, index):
        if self.times:
            self.times -= 1
            raise RuntimeError("Failed to read record")
        return super().__getitem__(index)


def test_a_failing_network_is_no_damaged_record(monkeypatch):
    """Another image in its place would be another epoch, and the run would not say so."""
    features = {
        "image": types.SimpleNamespace(shape=(8, 8, 1)),
        "label": types.SimpleNamespace(num_classes=2, names=["a", "b"]),
    }
    answers = {"gs://there": lambda: None, "gs://away": lambda: (_ for _ in ()).throw(UserError("gs://away: no answer"))}
    monkeypatch.setattr("attention_jax.data.images.sources.storage.RemoteFolder", lambda uri: answers[uri]())

    def read(uri, times):
        records = _Failing([{"image": b"pixels", "label": 1}])
        records.times = times
        return sources._TfdsSource(records, features, "image", "label", uri)[0]

    assert read("gs://there", 1)["image"] == b"pixels"
    with pytest.raises(BrokenImage):
        read("gs://there", 2)
    with pytest.raises(UserError, match="no answer"):
        read("gs://away", 1)
    with pytest.raises(BrokenImage):
        read(None, 1)
