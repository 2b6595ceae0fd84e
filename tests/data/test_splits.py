"""The split "validation": a source's own by any name, else a tenth of the training split, which training leaves out."""

import copy
import hashlib
import logging
import pickle
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from ml_collections import ConfigDict

from attention_jax.cli import main as cli
from attention_jax.data import ArraySource, splits
from attention_jax.data.fingerprint import compute_fingerprint
from attention_jax.data.images import sources
from attention_jax.data.images.decoding import BrokenImage
from attention_jax.data.splits import Subset, choose_validation
from attention_jax.errors import UserError
from attention_jax.tasks import classification, translation
from tests.helpers import small_text
from tests.helpers.photos import write_photos
from tests.helpers.small import small_config


@pytest.fixture(autouse=True)
def new_process(monkeypatch):
    monkeypatch.setattr(splits, "_own", {})
    splits._report_once.cache_clear()


def images(source: str, eval_split: str = "validation", **args) -> ConfigDict:
    return small_config(data__source=source, data__args=args, data__eval_split=eval_split)


def pairs(kind: str, **args) -> ConfigDict:
    data = dict(source=kind, args=args, train_split="train", eval_split="validation", on_broken="stop")
    return ConfigDict({"data": data})


def texts(config: ConfigDict, split: str) -> list:
    found = translation.source(config, split)
    return [found[i] for i in range(len(found))]


def is_divided(complete, train, carved) -> bool:
    """True if two sources are a division of a complete one, in its order."""
    places = np.setdiff1d(np.arange(len(complete)), carved.indices)
    return [*train.indices] == [*places] and len(train) + len(carved) == len(complete)


# Which examples are carved


@pytest.mark.parametrize("number", [100, 101, 1198, 12_345])
def test_a_tenth_is_carved_by_a_permutation_of_the_number_alone(number):
    places = choose_validation([("a", "b")] * number)
    assert len(places) == number // 10 == len({*places.tolist()}) and (np.diff(places) > 0).all()
    assert places.tolist() == choose_validation(ArraySource(np.zeros((number, 1, 1, 1), np.uint8), np.arange(number))).tolist()
    assert 0 <= places[0] < number / 10 and 0.9 * number < places[-1] < number


def test_the_carved_examples_never_change():
    """Runs that were selected on others would have been trained on these."""
    content = hashlib.sha256(choose_validation(range(1198)).astype("<i8").tobytes()).hexdigest()
    assert content[:16] == "a0096ac71d85b248"


@pytest.mark.parametrize(
    ("labels", "size", "kept_classes"),
    [([0, 1, 2] * 10, 3, 3), ([*range(10)] * 2, 10, 10), ([0] * 20 + [1], 2, 1), ([0, 1, 2], 1, 0), ([0] * 60 + [1] * 2, 6, 2)],
)
def test_few_examples_have_each_class_that_can_be_spared(labels, size, kept_classes):
    source = ArraySource(np.zeros((len(labels), 1, 1, 1), np.uint8), labels)
    carved = source.labels[choose_validation(source)]
    left = np.delete(source.labels, choose_validation(source))
    assert len(carved) == size and len({*carved.tolist()} & {*left.tolist()}) == kept_classes
    assert kept_classes == 0 or {*left.tolist()} == {*labels}, "training keeps every class"


def test_a_broken_image_among_few_is_no_reason_to_stop():
    class Broken(list):
        def __getitem__(self, index):
            if index == 3:
                raise BrokenImage("gone")
            return {"label": 0}

    assert len(choose_validation(Broken(range(30)))) == 3
    with pytest.raises(UserError, match="has a single example, and validation needs one"):
        choose_validation([("a", "b")])


# Images


def test_digits_are_divided_and_untouched_where_test_is_evaluated(caplog):
    config, of_test = images("digits"), images("digits", "test")
    complete = classification.source(of_test, "train")
    assert isinstance(complete, ArraySource) and isinstance(classification.source(of_test, "test"), ArraySource)
    assert isinstance(classification.source(config, "test"), ArraySource) and "carved" not in caplog.text
    with caplog.at_level(logging.INFO):
        train, carved, *_ = (classification.source(config, split) for split in ("train", "validation") * 2)
    assert is_divided(complete, train, carved) and (len(train), len(carved)) == (1079, 119)
    assert caplog.text.count("119 of the 1,198 examples of split 'train' are carved out for validation") == 1
    assert (
        carved[5]["image"] == complete[int(carved.indices[5])]["image"]
    ).all() and carved.label_names == complete.label_names
    assert (train.labels == complete.labels[train.indices]).all() and train.num_classes == 10
    known = [compute_fingerprint(source)["fingerprint"] for source in (complete, train, carved)]
    assert known[0] == "digits 1" and len({*known}) == 3 and "119 of 1198" in known[2]
    # A notebook may open it in a run that evaluates on the test: the training split then stays complete.
    assert len(classification.source(of_test, "validation")) == 119 and len(classification.source(of_test, "train")) == 1198


def test_the_number_that_is_trained_on_is_resolved():
    assert classification.resolve(images("digits", "test")).data.num_examples == 1198
    config = classification.resolve(images("digits"))
    assert config.data.num_examples == 1079
    loader = classification.loader(config, "train", (0, 1), training=True)
    assert len(loader.source) == 1079
    config.data.num_examples = 1198
    with pytest.raises(UserError, match="num_examples=1198 but split 'train' of data.source=digits has 1079"):
        classification.loader(config, "train", (0, 1), training=True)


def test_a_source_that_makes_its_own_is_left_to_do_so():
    source = classification.source(images("cued_digits"), "validation")
    assert not isinstance(source, Subset) and len(source) == 2_000 and source.split == "validation"
    assert len(classification.source(images("cued_digits"), "train")) == 10_000


@pytest.mark.parametrize("name", ["validation", "val", "valid", "dev", None])
def test_folders(tmp_path, name):
    folder = write_photos(tmp_path / "photos")
    config = images("folder", path=str(folder))
    complete = classification.source(images("folder", "test", path=str(folder)), "train")
    if name is None:
        shutil.rmtree(folder / "val")
        train, carved = (classification.source(config, split) for split in ("train", "validation"))
        assert is_divided(complete, train, carved) and sorted(carved.labels) == [0, 1, 2]
        assert carved.name(0) == complete.name(int(carved.indices[0])) and carved.channels == 3
        assert classification.fingerprint(config, "validation")["length"] == 3
        assert classification.fingerprint(config, "train") != classification.fingerprint(config, "validation")
        return
    (folder / "val").rename(folder / name)
    found = classification.source(config, "validation")
    assert len(found) == 6 and f"/{name}/" in found.name(0) and len(classification.source(config, "train")) == 12
    # What is wrong with a split of its own is an error, and no reason to carve one.
    splits._own.clear()
    (folder / name / "dog").mkdir()
    with pytest.raises(UserError, match="class 'dog' of .* is not in"):
        classification.source(config, "validation")


def test_a_folder_with_a_share_held_out_has_no_validation_split(tmp_path):
    config = images("folder", path=str(write_photos(tmp_path / "photos") / "train"), holdout=0.25)
    train, carved, test = (classification.source(config, split) for split in ("train", "validation", "test"))
    names = [{source.name(i) for i in range(len(source))} for source in (train, carved, test)]
    assert sum(map(len, names)) == len(set.union(*names)) == 12 and len(carved) == 3


@pytest.mark.parametrize("name", ["validation", "val", None])
def test_archives(tmp_path, name):
    pixels, path = np.arange(40 * 4, dtype=np.uint8).reshape(40, 2, 2), str(tmp_path / "a.npz")
    own = {f"x_{name}": pixels[:7], f"y_{name}": np.zeros(7, int)} if name else {}
    np.savez(path, x_train=pixels, y_train=np.arange(40) % 4, x_test=pixels[:9], y_test=np.arange(9) % 4, **own)
    found = classification.source(images("npz", path=path), "validation")
    assert isinstance(found, Subset) == (name is None) and len(found) == (7 if name else 4)


def test_a_set_of_tfds_that_has_none(monkeypatch):
    """TFDS's own error; a set that is damaged is not taken for one without."""
    tfds = pytest.importorskip("tensorflow_datasets")
    rows = {"train": [{"image": b"x", "label": i % 2} for i in range(50)], "test": [{"image": b"x", "label": 0}]}
    known = [tfds.core.SplitInfo(name=name, shard_lengths=[len(row)], num_bytes=1) for name, row in rows.items()]
    info = SimpleNamespace(splits=tfds.core.splits.SplitDict(known), supervised_keys=("image", "label"))
    info.features = {"image": tfds.features.Image(shape=(None, None, 3)), "label": tfds.features.ClassLabel(num_classes=2)}
    made = []

    def read(split, decoders):
        made.append(split)
        _ = info.splits[split]
        return rows[split.partition("[")[0]]

    builder = SimpleNamespace(info=info, as_data_source=read)
    monkeypatch.setattr(sources, "open_builder", lambda name, data_dir: builder)
    config = images("tfds", name="pretended")
    train, carved = (classification.source(config, split) for split in ("train", "validation"))
    assert (len(train), len(carved)) == (45, 5) and made[:4] == ["validation", "val", "valid", "dev"] and made.count("dev") == 1
    splits._own.clear()
    info.splits["validation"] = tfds.core.SplitInfo(name="validation", shard_lengths=[3], num_bytes=1)
    rows["validation"] = ValueError
    with pytest.raises(UserError, match="cannot be"):
        classification.source(config, "validation")


MINE = """
import numpy as np
from attention_jax.data import ArraySource


def pixels(first, number):
    values = (np.arange(number * 4) + first) % 256
    return ArraySource(values.astype(np.uint8).reshape(number, 2, 2, 1), np.arange(number) % 2)


def ends_in_else(split):
    return pixels(0, 120) if split == "train" else pixels(7, 30)


def ends_in_train(split):
    return pixels(7, 30) if split == "test" else pixels(0, 120)


def looks_up(split):
    return {"train": pixels(0, 120), "test": pixels(7, 30)}[split]


def opens(split):
    return pixels(0, 120) if split == "train" else open(f"/nowhere/{split}.bin")


def has_dev(split):
    return {"train": pixels(0, 120), "dev": pixels(9, 20)}[split]


def damaged(split):
    return pixels(0, 120) if split == "train" else int("damaged")
"""


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        ("ends_in_else", "its 'validation' is its 'test'"),
        ("ends_in_train", "its 'validation' is its 'train'"),
        ("looks_up", "KeyError: 'validation'"),
        ("opens", "No such file"),
        ("has_dev", None),
        ("damaged", ValueError),
    ],
)
def test_functions_of_the_users_own(tmp_path, caplog, function, reason):
    (tmp_path / "mine.py").write_text(MINE)
    config = images(f"{tmp_path}/mine.py:{function}")
    if reason is ValueError:
        with pytest.raises(UserError, match="'validation' cannot be read .ValueError"):
            classification.source(config, "validation")
        return
    with caplog.at_level(logging.INFO):
        found = classification.source(config, "validation")
    assert (len(found), len(classification.source(config, "train"))) == ((12, 108) if reason else (20, 120))
    assert (reason or "") in caplog.text and ("carved" in caplog.text) == bool(reason)


def test_what_a_source_says_of_each_example_is_that_of_the_part():
    class Grouped(list):
        label_names = ("a", "b")

        def groups(self):
            return [10 * i for i in self]

        def fingerprint(self):
            return "edition 7"

    part = Subset(Grouped(range(9)), np.array([2, 5]))
    assert (part.groups(), part.label_names, [*part]) == ([20, 50], ("a", "b"), [2, 5])
    assert part.fingerprint() == "edition 7, 2 of 9 examples, carved by version 1"
    assert not hasattr(part, "name") and not hasattr(Subset(range(3), np.array([0])), "fingerprint")


# Sentence pairs


def test_cldr_has_its_own():
    config = pairs("cldr")
    assert texts(config, "validation") == texts(config, "dev") and not isinstance(translation.source(config, "train"), Subset)


@pytest.mark.parametrize("name", ["validation", "val", "valid", "dev", None])
def test_files_and_tab_separated_files(tmp_path, name):
    for split, number in (("train", 150), ("test", 12), (name, 20)):
        if split:
            lines = [f"{split} {i}" for i in range(number)]
            (tmp_path / f"{split}.x").write_text("".join(f"{line}\n" for line in lines))
            (tmp_path / f"{split}.y").write_text("".join(f"{line.upper()}\n" for line in lines))
            (tmp_path / f"{split}.tsv").write_text("".join(f"{line}\t{line.upper()}\n" for line in lines))
    files = pairs("files", source=f"{tmp_path}/{{split}}.x", target=f"{tmp_path}/{{split}}.y")
    for config in (files, pairs("tsv", path=f"{tmp_path}/{{split}}.tsv")):
        train, found = texts(config, "train"), texts(config, "validation")
        assert (len(train), len(found)) == ((150, 20) if name else (135, 15)) and not {*train} & {*found}
        assert found[0][0].startswith(name or "train")
        config.data.eval_split = "test"
        assert len(texts(config, "train")) == 150 and isinstance(translation.source(config, "train"), list)


def test_a_path_that_names_no_split_is_not_read_as_validation(tmp_path, caplog):
    (tmp_path / "all.tsv").write_text("".join(f"{i}\t{i}\n" for i in range(50)))
    config = pairs("tsv", path=f"{tmp_path}/all.tsv")
    with caplog.at_level(logging.INFO):
        assert not {*texts(config, "train")} & {*texts(config, "validation")}
    assert "its 'validation' is its 'train'" in caplog.text


def test_launchers_look_for_the_files_that_are_there(tmp_path, capsys):
    small_text.write_pairs(tmp_path)
    (tmp_path / "dev.x").write_text("a\n")
    (tmp_path / "dev.y").write_text("A\n")
    options = small_text.as_options(tmp_path, data__eval_split="validation")[1:]
    assert cli.main(["config", str(small_text.CONFIG), "--check", "--files", *options]) == 0
    named = [line.rpartition("/")[2] for line in capsys.readouterr().out.splitlines() if line.startswith("data.args")]
    assert sorted(named) == ["dev.x", "dev.y", "train.x", "train.y"]


def test_a_part_of_a_source_can_be_copied_and_pickled():
    part = Subset(ArraySource(np.zeros((4, 2, 2, 1), np.uint8), np.arange(4)), np.array([1, 3]))
    for again in (copy.deepcopy(part), pickle.loads(pickle.dumps(part))):
        assert len(again) == 2 and again.labels.tolist() == [1, 3] and again.num_classes == 4
