"""Exports: what is written, what comes back bitwise, what a format cannot express, and what is left alone."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import attention_jax as aj
from attention_jax import tree
from attention_jax.cli.main import main
from attention_jax.errors import UserError
from attention_jax.interop import export
from attention_jax.interop.export import express_model, write_safetensors
from attention_jax.interop.model_card import find_crop_share
from attention_jax.interop.read_tensors import read_tensors
from tests.helpers.drawn_runs import draw_run
from tests.helpers.make_tiny_run import RUN


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The stored run with a BAM gate, in the format native."""
    folder = tmp_path_factory.mktemp("export") / "deep" / "net"
    assert main(["export", f"--workdir={RUN}", f"--output={folder}", "--format=native", "--license=CC0-1.0"]) == 0
    return folder


def test_native_comes_back_bitwise(exported: Path) -> None:
    """Every network has this format; the call is the one that the card prints."""
    (call,) = (line for line in (exported / "README.md").read_text("utf-8").splitlines() if "load_pretrained" in line)
    scope: dict[str, Any] = {"aj": aj}
    exec(call.replace('"model.safetensors"', repr(str(exported / "model.safetensors"))), scope)
    run = aj.load_run(RUN)
    assert scope["model"].gate == "bam" and scope["model"].widths == (6, 12)
    ours, back = tree.flatten_by_path(run.variables), tree.flatten_by_path(scope["variables"])
    assert ours.keys() == back.keys() and all(np.array_equal(ours[path], back[path]) for path in ours)


def test_config_and_card_have_what_the_run_knows(exported: Path) -> None:
    about = json.loads((exported / "config.json").read_text("utf-8"))
    own = about["attention_jax"]
    assert about["architecture"] == "resnet20" and about["num_classes"] == 10 and len(about["label_names"]) == 10
    assert own["fields"] == {"gate": "bam", "gate_args": {"reduction": 2}, "stage_sizes": [1, 1], "widths": [6, 12]}
    assert (own["weights"], own["step"], own["license"]) == ("ema", 370, "CC0-1.0")
    assert own["metrics"]["eval_ema/accuracy"] == aj.load_run(RUN).curve("eval_ema/accuracy")[1][-1]
    assert own["preprocessing"]["mean"] == [0.3] and own["preprocessing"]["image_shape"] == [8, 8, 1]
    card = (exported / "README.md").read_text("utf-8")
    assert "accuracy 0.9199" in card and "CC0-1.0" in card and "3,112 parameters" in card
    config = aj.load_run(RUN).config
    assert main(["config", "--check", str(exported / "run_config.json")]) == 0 and config.model.widths == (6, 12)


def test_the_same_again_is_left_and_something_else_is_refused(exported: Path, capsys: pytest.CaptureFixture) -> None:
    arguments = ["export", f"--workdir={RUN}", f"--output={exported}", "--format=native"]
    before = {path.name: path.stat().st_mtime_ns for path in exported.iterdir()}
    assert main([*arguments, "--license=CC0-1.0"]) == 0 and "same content" in capsys.readouterr().out
    assert main([*arguments, "--license=CC0-1.0", "--weights=params"]) == 2
    assert "exists and has other content" in capsys.readouterr().err
    assert {path.name: path.stat().st_mtime_ns for path in exported.iterdir()} == before
    assert [path.name for path in exported.parent.iterdir()] == ["net"]  # nothing half-made is left


def test_what_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(export, "write_safetensors", stop)
    with pytest.raises(UserError, match="No space left"):
        export.export_run(RUN, tmp_path / "net", "native")
    assert not list(tmp_path.iterdir())


def test_an_unknown_format_and_a_remote_folder_are_refused() -> None:
    with pytest.raises(UserError, match="format='keras' is not one of 'timm'"):
        export.export_run(RUN, "net", "keras")
    with pytest.raises(UserError, match="gs://bucket/net is remote"):
        export.export_run(RUN, "gs://bucket/net", "native")


def test_safetensors_are_aligned_and_read_back(tmp_path: Path) -> None:
    tensors = {
        "b": np.arange(3, dtype=np.float32),
        "index": np.arange(4, dtype=np.int64),
        "ü": np.ones((2, 0, 3), np.float32),
        "scalar": np.float32(2.5).reshape(()),
        "turned": np.arange(6, dtype=np.float32).reshape(2, 3).T,
    }
    write_safetensors(tmp_path / "x.safetensors", tensors)
    back = read_tensors(tmp_path / "x.safetensors")
    assert back.keys() == tensors.keys()
    assert all(np.array_equal(back[name], array) and back[name].dtype == array.dtype for name, array in tensors.items())
    content = (tmp_path / "x.safetensors").read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    assert length % 8 == 0 and header["index"]["data_offsets"] == [0, 32]


@pytest.mark.parametrize(("side", "shorter"), [(224, 256), (384, 450), (32, 93), (8, 8), (299, 342)])
def test_crop_share_gives_the_size_back(side: int, shorter: int) -> None:
    """As timm computes it: floor(side / share)."""
    share = find_crop_share(side, shorter)
    assert math.floor(side / share) == shorter and abs(share - side / shorter) < 1e-12


@pytest.mark.parametrize(
    ("format", "name", "shape", "fields", "arguments"),
    [
        ("timm", "convnext_tiny", (32, 32, 3), dict(widths=(4, 8, 12, 16), layer_scale=0.1, drop_path_rate=0.2), None),
        ("timm", "vit_tiny_patch16_224", (224, 224, 1), dict(layers=2), {"depth": 2, "in_chans": 1}),
        ("timm", "vit_tiny_patch16_224", (64, 64, 3), dict(image_size=64), {"img_size": 64}),
        ("timm", "vit_tiny_patch16_224", (64, 64, 3), {}, {"dynamic_img_size": True, "dynamic_img_pad": True}),
        ("torchvision", "vit_base_patch16_384", (384, 384, 3), {}, {"image_size": 384}),
        ("torchvision", "efficientnet_b5", (64, 64, 3), dict(norm_epsilon=1e-3), {}),
    ],
)
def test_arguments_of_the_librarys_function(format: str, name: str, shape: Any, fields: Any, arguments: Any) -> None:
    expected = {"dims": [4, 8, 12, 16]} if arguments is None else arguments
    assert express_model(format, name, aj.create_model(name, **fields), shape).arguments == expected


@pytest.mark.parametrize(
    ("format", "name", "shape", "fields", "said"),
    [
        ("timm", "bam_resnet50", (32, 32, 3), {}, "timm has no network 'bam_resnet50'"),
        ("timm", "resnet18", (32, 32, 3), dict(gate="bam"), "model.gate='bam' cannot be expressed"),
        ("timm", "resnet18", (32, 32, 3), dict(stem="cifar"), "model.stem='cifar' .* has 'imagenet'"),
        ("timm", "convnext_tiny", (32, 32, 3), dict(layer_scale=None), "model.layer_scale=None"),
        ("timm", "seresnet18", (32, 32, 3), dict(gate_args={"reduction": 4}), "model.gate_args="),
        ("timm", "swin_tiny_patch4_window7_224", (131, 224, 3), {}, "pads images of 131x224 otherwise"),
        ("torchvision", "swin_tiny_patch4_window7_224", (131, 224, 3), {}, "leaves out what 4"),
        ("torchvision", "vit_base_patch16_224", (64, 64, 3), {}, "takes images of 224x224"),
        ("torchvision", "resnet18", (32, 32, 1), {}, "read 3 channels, and this one 1"),
        ("torchvision", "efficientnet_b5", (64, 64, 3), {}, "model.norm_epsilon=1e-05"),
        ("torchvision", "tf_efficientnet_b0", (64, 64, 3), {}, "torchvision has no network"),
        ("timm", "my_net.py:MyNet", (32, 32, 3), {}, "timm has no network"),
    ],
)
def test_what_a_format_cannot_express_names_native(format: str, name: str, shape: Any, fields: Any, said: str) -> None:
    model = aj.create_model("resnet18" if ":" in name else name, **fields)
    with pytest.raises(UserError, match=said) as caught:
        express_model(format, name, model, shape)
    assert str(caught.value).endswith("give --format=native.")


def test_torchvisions_swin_has_its_indices() -> None:
    """Beside each table of biases, in PyTorch's integers: the place of every pair of places of a window."""
    made = export._make_relative_indices(
        {"features.1.0.attn.relative_position_bias_table": np.zeros(0), "norm.bias": np.zeros(0)}, 7
    )
    ((name, index),) = made.items()
    assert name == "features.1.0.attn.relative_position_index"
    assert index.dtype == np.int64 and index.shape == (49 * 49,) and (index[0], index[1], index[49]) == (84, 83, 85)


def test_torchvisions_card_has_its_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = draw_run("efficientnet_b0", (64, 64, 3))
    monkeypatch.setattr(export, "load_run", lambda *_: run)
    assert export.export_run("somewhere", tmp_path / "net", "torchvision")
    assert "classifier.1.weight" in read_tensors(tmp_path / "net" / "model.safetensors")
    card = (tmp_path / "net" / "README.md").read_text("utf-8")
    assert "torchvision.models.efficientnet_b0(num_classes=5)" in card and "a, b, c, d, e" in card and "c0ffee" in card


def test_export_of_translation_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = draw_run("resnet20", (8, 8, 3), stage_sizes=(1,), widths=(4,))
    run.config.task = "translation"
    monkeypatch.setattr(export, "load_run", lambda *_: run)
    with pytest.raises(UserError, match="task is 'translation'"):
        export.export_run("somewhere", tmp_path / "net", "native")
