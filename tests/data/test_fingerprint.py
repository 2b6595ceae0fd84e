"""What data are known by: changes of examples are seen, moves are not."""

import hashlib
import json
import shutil

import numpy as np
import pytest

from attention_jax.data import ArraySource
from attention_jax.data.fingerprint import compare_data, compute_fingerprint, read_sample
from attention_jax.data.images.decoding import BrokenImage
from attention_jax.data.images.sources import open_source
from attention_jax.data.text.pairs import open_pairs
from tests.helpers.photos import jpeg, write_photos


def pack(**splits) -> bytes:
    return json.dumps(splits).encode()


def change(before: dict, after: dict) -> str:
    return compare_data(pack(test=before), pack(test=after))


def of_folder(folder) -> dict:
    return compute_fingerprint(open_source("folder", "val", {"path": str(folder)}))


def test_a_folder_is_known_by_its_pictures_and_not_by_its_path(tmp_path):
    before = of_folder(write_photos(tmp_path / "here"))
    assert before["length"] == 6 and before["classes"] == ["ant", "bee", "cat"] and len(before["contents"]) == 64
    there = shutil.copytree(tmp_path / "here", tmp_path / "there", copy_function=shutil.copyfile)
    assert of_folder(there) == before and change(before, of_folder(there)) == ""
    (there / "val" / "ant" / "0.jpg").write_bytes(jpeg(77, 60, 45))
    assert change(before, of_folder(there)) == "split 'test' has other contents"
    (there / "val" / "ant" / "0.jpg").unlink()
    (there / "train" / "cat").rename(there / "train" / "zcat")
    (there / "val" / "cat").rename(there / "val" / "zcat")
    assert change(before, of_folder(there)) == "split 'test' has other length and classes and contents"


def test_an_archive_is_read_at_64_fixed_places(tmp_path):
    pixels, labels = np.zeros((640, 4, 4, 1), np.uint8), np.arange(640) % 3
    before = compute_fingerprint(ArraySource(pixels, labels))
    read = []

    class Counted(ArraySource):
        def __getitem__(self, index):
            read.append(index)
            return super().__getitem__(index)

    assert compute_fingerprint(Counted(pixels, labels)) == before
    assert len({*read}) == 64 and {0, 639} < {*read}
    place = sorted({*read})[20]
    for index, said in ((place, "split 'test' has other contents"), (place + 1, "")):
        other = pixels.copy()
        other[index, 0, 0] = 1
        assert change(before, compute_fingerprint(ArraySource(other, labels))) == said
    turned = np.where(np.arange(640) == place, (labels + 1) % 3, labels)
    assert change(before, compute_fingerprint(ArraySource(pixels, turned))) == "split 'test' has other contents"


def test_pairs_are_known_by_their_sentences(tmp_path):
    for name, text in (("a", "one\ttwo\n"), ("b", "one\ttwo\n"), ("c", "o\tnetwo\n")):
        (tmp_path / f"{name}.tsv").write_text(text * 3)
    a, b, c = (compute_fingerprint(open_pairs("tsv", "x", {"path": f"{tmp_path}/{n}.tsv"}, "stop")) for n in "abc")
    assert a == b and change(a, c) == "split 'test' has other contents"


def test_a_source_may_have_a_fingerprint_of_its_own():
    class Stream:
        def __len__(self):
            raise AssertionError("not read")

        def fingerprint(self):
            return "edition 7"

    assert compute_fingerprint(Stream()) == {"fingerprint": "edition 7"}
    assert change({"fingerprint": "edition 6"}, compute_fingerprint(Stream())) == "split 'test' has other fingerprint"


def test_what_is_unknown_is_no_change():
    known = {"length": 3, "classes": [], "contents": "ab"}
    assert change(known, {**known, "contents": None}) == change({"fingerprint": "x"}, known) == ""
    assert compare_data(None, pack(test=known)) == compare_data(pack(train=known), pack(test=known)) == ""
    for damaged in (b"", b"{", b"[1]", b'{"test": [7, 8]}', b'{"test": 3}', b"\xff", b"null"):
        assert compare_data(damaged, pack(test=known)) == "" == compare_data(pack(test=known), damaged)


def test_examples_that_differ_each_time_have_no_fingerprint_and_broken_ones_do():
    rng = np.random.default_rng()

    class Noise(list):
        def __getitem__(self, index):
            return {"x": rng.random()}

    class Broken(list):
        def __getitem__(self, index):
            raise BrokenImage("gone")

    assert compute_fingerprint(Noise("ab"))["contents"] is None
    assert read_sample(Broken("ab")) == [None, None] and compute_fingerprint(Broken("ab"))["contents"]


@pytest.mark.parametrize("source", ["digits", "cldr"])
def test_embedded_data_that_change_need_another_version(source):
    content = hashlib.sha256()
    for split in ("train", "test") if source == "digits" else ("train", "dev", "test"):
        found = open_source(source, split, {}) if source == "digits" else open_pairs(source, split, {}, "stop")
        (version,) = compute_fingerprint(found).values()
        content.update(found.images.tobytes() + found.labels.tobytes() if source == "digits" else repr(found).encode())
    assert {"digits 1": "ebc508603f505f40", "cldr 1": "a1c52a2faa4c94b3"}[version] == content.hexdigest()[:16]
