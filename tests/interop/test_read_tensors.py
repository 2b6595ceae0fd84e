"""Files of weights are read without PyTorch, and a file that lies gets one sentence while nothing in it runs."""

import contextlib
import copyreg
import json
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import attention_jax as aj
from attention_jax.interop.read_tensors import open_weights, read_tensors, select_weights
from attention_jax.interop.torch_files import Placeholder
from tests.helpers.weights import FOLDER


def piece(value: Any) -> bytes:
    """The opcodes that put a value on a pickle's stack."""
    return pickle.dumps(value, 2)[2:-1]


def tensor(shape: Any, strides: tuple, offset: int = 0, numel: int = 6, kind: str = "FloatStorage", key: str = "0") -> bytes:
    """The opcodes of a tensor as `torch.save` writes them."""
    storage = b"(" + piece("storage") + f"ctorch\n{kind}\n".encode() + piece(key) + piece("cpu") + piece(numel) + b"tQ"
    arguments = storage + piece(offset) + piece(shape) + piece(strides) + piece(False) + b"Nt"
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + arguments + b"R"


def save(path: Path, *values: bytes, sizes: tuple[int, ...] = (24,), **options: Any) -> Path:
    """A checkpoint in the zip form: {"w": the first value, "w1": …} and storages of these sizes in bytes."""
    items = b"".join(piece(f"w{i or ''}") + value for i, value in enumerate(values))
    with zipfile.ZipFile(path, "w", **options) as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02}(" + items + b"u.")
        for i, size in enumerate(sizes):
            archive.writestr(f"archive/data/{i}", np.arange(size // 4, dtype=np.float32).tobytes())
    return path


GOOD = tensor((2, 3), (3, 1))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "file.pth"


def refusal(path: Path) -> str:
    with pytest.raises(aj.UserError) as error:
        read_tensors(path)
    text = str(error.value)
    assert text.startswith(f"{path}: ") and text.endswith(".") and "\n" not in text
    return text.removeprefix(f"{path}: ")


@pytest.mark.parametrize("name", ["tensors.pt", "tensors_legacy.pt"])
def test_tensors_of_pytorch(name: str) -> None:
    """Views, shared and expanded storages, all kinds of numbers, parameters: as PyTorch saved them."""
    found, base = read_tensors(FOLDER / name), np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    assert {key: str(array.dtype) for key, array in found.items()} == {
        "base": "float32",
        "view": "float32",
        "bfloat16": "bfloat16",
        "int64": "int64",
        "bool": "bool",
        "empty": "float32",
        "expanded": "float32",
        "parameter": "float64",
    }
    expected = {"base": base, "view": base[:, 1:].transpose(2, 1, 0), "bfloat16": [1.5, -2], "int64": 3, "bool": [True, False]}
    expected |= {"empty": np.zeros((0, 3)), "expanded": np.ones(5), "parameter": np.ones((2, 2))}
    for key, value in expected.items():
        np.testing.assert_array_equal(np.asarray(found[key], np.float64), value)


def test_wrappers_are_seen_through() -> None:
    tensors, notes = select_weights(open_weights(FOLDER / "akamaster.th"), "f")
    assert "layer1.0.conv1.weight" in tensors and notes == ["from 'state_dict'", "without the prefix 'module.'"]


def test_average_is_taken_when_asked_or_alone() -> None:
    content = open_weights(FOLDER / "training.pth")
    assert isinstance(content["args"], Placeholder) and content["args"].kind == "argparse.Namespace"
    for weights, note, name in ((None, "from 'model'", "conv1.weight"), ("ema", "from 'model_ema'", "fc.bias")):
        tensors, notes = select_weights(content, "f", weights)
        assert name in tensors and notes == [note]
    del content["model"]
    assert select_weights(content, "f")[1] == ["from 'model_ema'"]
    del content["model_ema"]
    with pytest.raises(aj.UserError, match="f: it has no averaged weights"):
        select_weights(content, "f", "ema")
    with pytest.raises(aj.UserError, match="f: it has no tensors; its entries: 'epoch', 'args', 'scheduler'."):
        select_weights(content, "f")


def test_a_dict_that_contains_itself(path: Path) -> None:
    save(path, GOOD)
    with zipfile.ZipFile(path.with_name("own.pth"), "w") as archive:
        archive.writestr("a/data.pkl", b"\x80\x02}q\x00(" + piece("model").replace(b"q\x00", b"q\x01") + b"h\x00u.")
    assert refusal(path.with_name("own.pth")) == "it has no tensors; its entries: 'model'."
    with pytest.raises(aj.UserError, match="weights='mean': give 'ema', 'params' or None."):
        select_weights({}, "f", "mean")


def test_an_object_in_place_of_the_model() -> None:
    text = refusal(FOLDER / "object.pt")
    assert (
        text
        == "it has an object of torch.nn.modules.linear.Linear instead of named tensors: give a file of model.state_dict()."
    )


def test_an_object_in_place_of_a_tensor(path: Path) -> None:
    text = refusal(save(path, GOOD, b"cnumpy.core.multiarray\nscalar\n(" + piece("x") + b"tR"))
    assert text == "w1 is an object of numpy.core.multiarray.scalar and no tensor that can be read."


class Command:
    """A pickle of it runs a command when Python's own `pickle` opens it."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self) -> tuple:
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("legacy", [False, True])
def test_code_does_not_run(path: Path, legacy: bool) -> None:
    program, marker = piece(Command(path.with_name("marker"))), path.with_name("marker")
    if legacy:
        start = (FOLDER / "tensors_legacy.pt").read_bytes()
        at = start.index(b"}", start.index(b"type_sizes"))  # the system's sizes come before what was saved
        at = start.index(b"\x80\x02", at)
        path.write_bytes(start[:at] + b"\x80\x02" + program + b"." + start[at:])
    else:
        save(path, GOOD, program)
    assert refusal(path) == f"it would run {os.name}.system when it is opened by PyTorch; nothing of it was run."
    assert not marker.exists()


@pytest.mark.parametrize(
    "call", [b"c__builtin__\neval\n", b"cbuiltins\nexec\n", b"csubprocess\nPopen\n", b"cimportlib\nimport_module\n"]
)
def test_names_of_programs_are_refused(path: Path, call: bytes) -> None:
    assert "it would run " in refusal(save(path, GOOD, call + b"(" + piece("1/0") + b"tR"))


@pytest.mark.parametrize(
    "program",
    [
        b"cargparse\nNamespace\n)\x81}(" + piece("lr") + piece(0.1) + b"ub",  # made without its constructor, then given a state
        b"ccopyreg\n_reconstructor\n(cargparse\nNamespace\nc__builtin__\nobject\nNtR",
        b"cmy_project.lists\nBag\n)R(" + piece(1) + b"e(" + piece("a") + piece(1) + b"u",
        b"ctorch.serialization\nload\n(" + piece("/etc/passwd") + b"tR",
    ],
)
def test_unknown_classes_and_functions_do_nothing(path: Path, program: bytes) -> None:
    content = open_weights(save(path, GOOD, program))
    assert isinstance(content["w1"], Placeholder) and not vars(content["w1"])
    np.testing.assert_array_equal(content["w"].read(), np.arange(6).reshape(2, 3))


def test_extensions_and_attributes_are_out_of_reach(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No opcode reaches what the process registered, and none changes the reader itself."""
    monkeypatch.setitem(copyreg._extension_cache, 1, "registered")  # type: ignore[attr-defined]  # a private table
    assert "damaged" in refusal(save(path, GOOD, b"\x82\x01"))
    assert "damaged" in refusal(save(path, GOOD, pickle.BYTEARRAY8 + (2**62).to_bytes(8, "little")))  # would be made first
    assert "(KeyError: 150)" in refusal(path)
    for name in (b"ctorch._utils\n_rebuild_tensor_v2\n", b"ccollections\nOrderedDict\n", b"ctorch\nFloatStorage\n"):
        state = b"(N}(" + b"".join(piece(key) + b"N" for key in ("name", "load", "items", "__call__")) + b"utb"
        np.testing.assert_array_equal(read_tensors(save(path, GOOD, name + state, GOOD))["w2"], np.arange(6).reshape(2, 3))


@pytest.mark.parametrize(
    ("value", "sizes", "reason"),
    [
        (tensor((2, 3), (-3, 1)), (24,), "a tensor of shape (2, 3), strides (-3, 1) and offset 0 is not possible"),
        (tensor((2, 3), (3, 1), offset=-1), (24,), "a tensor of shape (2, 3), strides (3, 1) and offset -1 is not possible"),
        (
            tensor((1,) * 65, (1,) * 65),
            (24,),
            f"a tensor of shape {(1,) * 65}, strides {(1,) * 65} and offset 0 is not possible",
        ),
        (tensor([2], (1,)), (24,), "a tensor of shape [2], strides (1,) and offset 0 is not possible"),
        (tensor((2,), (3, 1)), (24,), "a tensor of shape (2,), strides (3, 1) and offset 0 is not possible"),
        (tensor((2, 3), (3, 1), offset=1), (24,), "w: a tensor of shape (2, 3) does not fit into its storage of 6 numbers"),
        (tensor((3, 3), (3, 1)), (24,), "w: a tensor of shape (3, 3) does not fit into its storage of 6 numbers"),
        (GOOD, (20,), "w: the storage 0 has 20 bytes where 6 float32 are needed"),
        (GOOD, (400,), "w: the storage 0 has 400 bytes where 6 float32 are needed"),
        (tensor((2, 3), (3, 1), kind="QInt8Storage"), (24,), "a tensor has the type torch.QInt8Storage, which cannot be read"),
        (
            tensor((2, 3), (3, 1), key="../data.pkl"),
            (24,),
            "w: \"There is no item named 'archive/data/../data.pkl' in the archive\"",
        ),
        (b"(" + piece("else") + piece(1) + b"tQ", (24,), "it refers to ('else', 1), which is no storage of a tensor"),
    ],
)
def test_sizes_that_lie(path: Path, value: bytes, sizes: tuple[int, ...], reason: str) -> None:
    assert refusal(save(path, value, sizes=sizes)) == f"{reason}."


def test_a_bomb_is_not_unpacked(path: Path) -> None:
    """100 MB of zeros in 100 kB: PyTorch does not compress."""
    save(path, tensor((25, 2**20), (2**20, 1), numel=25 * 2**20), sizes=(), compression=zipfile.ZIP_DEFLATED)
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data/0", bytes(100 * 2**20))
    assert "say that they unpack to 104,857,7" in refusal(path)
    with zipfile.ZipFile(path.with_suffix(".npz"), "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("w.npy", bytes(100 * 2**20))
    assert "say that they unpack to 104,857,6" in refusal(path.with_suffix(".npz"))


@pytest.mark.parametrize("name", ["tensors.pt", "tensors_legacy.pt", "akamaster.th"])
def test_cut_off_and_damaged_files(path: Path, name: str) -> None:
    content = (FOLDER / name).read_bytes()
    for length in (3, 60, 200, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:length])
        reason = refusal(path)
    assert ("File is not a zip file" if content.startswith(b"PK") else "as in a file that was cut off") in reason
    random = np.random.RandomState(0)
    for _ in range(60):  # anything but another exception
        damaged = bytearray(content)
        for at in random.randint(0, min(len(content), 1500), 4):
            damaged[at] = random.randint(256)
        path.write_bytes(damaged)
        with contextlib.suppress(aj.UserError):
            read_tensors(path)


def test_other_files(path: Path) -> None:
    assert refusal(path) == "there is no such file."
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1")
    assert "it begins with b'version https://': give a .safetensors" in refusal(path)
    save(path)  # an empty dict
    assert refusal(path) == "it has no tensors; its entries: none."


def write_safetensors(path: Path, header: dict[str, Any] | str, data: bytes) -> Path:
    text = header if isinstance(header, str) else json.dumps(header)
    path.write_bytes(len(text).to_bytes(8, "little") + text.encode() + data)
    return path


def entry(start: int, end: int, *shape: int, dtype: str = "F32") -> dict[str, Any]:
    return dict(dtype=dtype, shape=shape, data_offsets=[start, end])


def test_safetensors(path: Path) -> None:
    data = np.arange(3, dtype=np.float32).tobytes() + np.array([1, 2], np.float16).tobytes() + b"\x80\x3f"
    header = {"b": entry(12, 16, 2, dtype="F16"), "c": entry(16, 18, dtype="BF16"), "a": entry(0, 12, 3, 1)}
    found = read_tensors(write_safetensors(path, {"__metadata__": {"format": "pt"}, **header}, data))
    expected: dict[str, Any] = {"a": [[0], [1], [2]], "b": [1, 2], "c": 1}
    for name, value in expected.items():
        np.testing.assert_array_equal(np.asarray(found[name], np.float32), np.asarray(value, np.float32))


@pytest.mark.parametrize(
    ("header", "size", "reason"),
    [
        (
            {"a": entry(0, 8, 2), "b": entry(4, 12, 2)},
            12,
            "b of shape [2] at bytes 4 to 12 overlaps another tensor or leaves the file",
        ),
        ({"a": entry(0, 80, 20)}, 12, "a of shape [20] at bytes 0 to 80 overlaps another tensor or leaves the file"),
        ({"a": entry(0, 8, -2)}, 8, "a of shape [-2] at bytes 0 to 8 overlaps another tensor or leaves the file"),
        ({"a": entry(0, 8, 3)}, 8, "a of shape [3] and type F32 has 8 bytes"),
        ({"a": entry(0, 8, 2)}, 12, "its tensors have 8 bytes and the file has 12"),
        ({"a": entry(0, 8, 2, dtype="F8_E5M2")}, 8, "a has the type 'F8_E5M2', which is none of "),
        ('{"a": 1, "a": 2}', 8, "its header has a name twice"),
        ('{"a": 1', 8, "it is damaged ("),
    ],
)
def test_safetensors_that_lie(path: Path, header: Any, size: int, reason: str) -> None:
    assert refusal(write_safetensors(path, header, bytes(size))).startswith(reason)


def test_a_header_longer_than_the_file(path: Path) -> None:
    path.write_bytes((2**40).to_bytes(8, "little") + b"{}")
    assert refusal(path) == f"its header of {2**40} bytes does not fit into its 10 bytes, as in a file that was cut off."


def test_npz(tmp_path: Path) -> None:
    arrays = {"a": np.arange(6.0).reshape(2, 3), "b": np.float16([1, 2])}
    np.savez_compressed(tmp_path / "f.npz", **arrays)
    found = read_tensors(tmp_path / "f.npz")
    assert found.keys() == arrays.keys() and all(np.array_equal(found[name], arrays[name]) for name in arrays)
    np.savez(tmp_path / "g.npz", a=np.array([Command(tmp_path / "marker")], object))
    assert "it is damaged (ValueError: Object arrays cannot be loaded" in refusal(tmp_path / "g.npz")
    assert not (tmp_path / "marker").exists()
