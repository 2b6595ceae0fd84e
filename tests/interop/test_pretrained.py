"""`load_pretrained`: another library's file in one call, with what was changed on the way in one line."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import attention_jax as aj
from attention_jax import tree
from attention_jax.interop import layouts_resnet
from attention_jax.interop.layout import Layout, list_shapes, name_tensors
from attention_jax.interop.read_tensors import read_tensors
from tests.helpers import parity
from tests.helpers.blocks import quick
from tests.helpers.weights import FOLDER

AKAMASTER, TRAINING = FOLDER / "akamaster.th", FOLDER / "training.pth"
CIFAR: dict[str, Any] = dict(stage_sizes=(1, 1, 1), widths=(4, 8, 16))
SMALL: dict[str, Any] = dict(stage_sizes=(1, 1), widths=(4, 8))
IMAGES = parity.images(0, 16, 16, batch=2)
LOGITS = dict(np.load(FOLDER / "logits.npz"))


def logits(model: Any, variables: Any, images: np.ndarray = IMAGES) -> np.ndarray:
    return np.asarray(quick(model.apply)(variables, images))


def refusal(*args: Any, **kwargs: Any) -> str:
    with pytest.raises(aj.UserError) as error:
        aj.load_pretrained(*args, **kwargs)
    return str(error.value)


@pytest.fixture(scope="module")
def trained() -> tuple[Any, dict[str, Any], np.ndarray]:
    model, variables = aj.load_pretrained("resnet18", TRAINING, **SMALL)
    return model, variables, logits(model, variables)


def test_option_a_of_the_common_cifar_networks(capsys: pytest.CaptureFixture) -> None:
    """A file does not show on which side option A pads: its layout says so, and the logits are PyTorch's."""
    model, variables = aj.load_pretrained("resnet20", AKAMASTER, **CIFAR)
    assert capsys.readouterr().err == (
        f"{AKAMASTER}: 44 tensors in the layout akamaster; from 'state_dict'; without the prefix 'module.'; "
        "shortcut='A-centred' as this layout has it; "
        "images as aj.preprocessing('resnet20', source='akamaster') has them.\n"
    )
    assert model.shortcut == "A-centred" and set(variables) == {"params", "batch_stats"}
    assert parity.difference(logits(model, variables), LOGITS["akamaster"]) < parity.LOGITS
    assert parity.difference(logits(model.clone(shortcut="A"), variables), LOGITS["akamaster"]) > 1e-2
    text = refusal("resnet20", AKAMASTER, **CIFAR, shortcut="A")
    assert text.endswith(
        "shortcut='A' is not right for the layout akamaster, whose networks have shortcut='A-centred': leave it out, or give "
        "the layout that the file has."
    )


def test_tensors_that_fit_two_padded_shortcuts(tmp_path: Path) -> None:
    tensors = {name: array for name, array in read_tensors(AKAMASTER).items() if not name.startswith("linear")}
    np.savez(tmp_path / "f.npz", **tensors)
    text = refusal("resnet20", tmp_path / "f.npz", num_classes=3, **CIFAR)
    assert "its tensors do not show which of the layouts 'timm', 'akamaster' it has: give layout= with one of them." in text
    model, _ = aj.load_pretrained("resnet20", tmp_path / "f.npz", num_classes=3, layout="akamaster", **CIFAR)
    assert (model.shortcut, model.num_classes) == ("A-centred", 3)


def test_the_side_of_option_a_that_a_file_does_not_show_is_said(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    model = aj.create_model("resnet20", **CIFAR)
    variables = tree.nest_by_path({path: np.full(shape, 0.5, np.float32) for path, shape in list_shapes(model).items()})
    np.savez(tmp_path / "f.npz", **name_tensors(layouts_resnet.TIMM, model, variables))
    doubt = "; option A with all zeros after the channels: give shortcut='A-centred' if its code pads on both sides"
    aj.load_pretrained("resnet20", tmp_path / "f.npz", **CIFAR)
    assert doubt in capsys.readouterr().err
    aj.load_pretrained("resnet20", tmp_path / "f.npz", **CIFAR, shortcut="A")
    assert doubt not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "layout", "fields"),
    [
        ("resnet20", layouts_resnet.AKAMASTER_B, CIFAR),
        ("resnet20", layouts_resnet.CHENYAOFO, CIFAR),
        ("resnet18", layouts_resnet.KUANGLIU, SMALL),
        ("bam_resnet18", layouts_resnet.BAM, dict(stage_sizes=(1, 1), widths=(16, 32))),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_the_layout_sets_fields(name: str, layout: Layout, fields: dict[str, Any], tmp_path: Path) -> None:
    """A file in each layout is recognised, and gives the network that its repository has."""
    model = aj.create_model(name, **{**fields, **layout.fields})
    variables = tree.nest_by_path({path: np.full(shape, 0.5, np.float32) for path, shape in list_shapes(model).items()})
    np.savez(tmp_path / "f.npz", **name_tensors(layout, model, variables))
    loaded, found = aj.load_pretrained(name, tmp_path / "f.npz", **fields)
    assert loaded == model and jax.tree.all(jax.tree.map(np.array_equal, found, variables))


def test_half_precision_and_the_classes_of_the_file(trained: Any, capsys: pytest.CaptureFixture) -> None:
    model, variables, found = trained
    aj.load_pretrained("resnet18", TRAINING, num_classes=5, **SMALL)
    assert capsys.readouterr().err == (
        f"{TRAINING}: 44 tensors in the layout torchvision or timm; from 'model'; images as aj.preprocessing('resnet18', "
        "source='timm' or 'torchvision') has them; float16 made float32.\n"
    )
    assert model.num_classes == 5 and {str(leaf.dtype) for leaf in jax.tree.leaves(variables)} == {"float32"}
    assert parity.difference(found, LOGITS["training"]) < parity.LOGITS


def test_a_fresh_head(trained: Any, capsys: pytest.CaptureFixture) -> None:
    """The head is the one of `model.init`; all else is the file's."""
    model, variables = aj.load_pretrained("resnet18", TRAINING, num_classes=3, **SMALL)
    assert "; a fresh head of 3 classes in place of 5; " in capsys.readouterr().err
    flat, old = tree.flatten_by_path(variables), tree.flatten_by_path(trained[1])
    assert {path for path in flat if not np.array_equal(flat[path], old[path])} == {"params/head/kernel", "params/head/bias"}
    first = quick(model.init)(jax.random.key(0), IMAGES)["params"]["head"]
    np.testing.assert_allclose(flat["params/head/kernel"], first["kernel"], rtol=1e-5)
    assert model.num_classes == 3 and list(flat) == list(tree.flatten_by_path(trained[1]))


def test_grey_images(trained: Any) -> None:
    grey = IMAGES[..., :1]
    model, variables = aj.load_pretrained("resnet18", TRAINING, in_channels=1, **SMALL)
    three = logits(trained[0], trained[1], np.repeat(grey, 3, -1))
    assert parity.difference(logits(model, variables, grey), three) < parity.LOGITS


def test_maps_in_place_of_logits(trained: Any) -> None:
    model, variables = aj.load_pretrained("resnet18", TRAINING, features=True, **SMALL)
    assert "head" not in variables["params"]
    shapes = jax.eval_shape(model.apply, variables, IMAGES)
    assert [x.shape for x in shapes] == [(2, 4, 4, 4), (2, 2, 2, 8)]


def test_a_layout_from_outside(tmp_path: Path, trained: Any) -> None:
    """A network and a layout of the user's own, in one file."""
    code = """
import flax.linen as nn
from attention_jax.interop.layout import KERNEL, Layout, NameRule

class Net(nn.Module):
    num_classes: int = 4

    @nn.compact
    def __call__(self, images, train=False):
        return nn.Dense(self.num_classes, name="head")(images.mean((1, 2)))

LAYOUT = Layout("mine", (), (NameRule("params/head/kernel", "w", KERNEL), NameRule("params/head/bias", "b")))
"""
    (tmp_path / "mine.py").write_text(code)
    np.savez(tmp_path / "f.npz", w=(w := np.arange(6.0).reshape(2, 3)), b=np.ones(2))
    model, variables = aj.load_pretrained(f"{tmp_path}/mine.py:Net", tmp_path / "f.npz", layout=f"{tmp_path}/mine.py:LAYOUT")
    assert model.num_classes == 2  # the file's
    np.testing.assert_array_equal(variables["params"]["head"]["kernel"], w.T)
    assert "give an attention_jax.interop.layout.Layout" in refusal("resnet18", TRAINING, layout=f"{tmp_path}/mine.py:Net")
    assert "unknown layout 'tim' (did you mean 'timm'?)" in refusal("resnet18", TRAINING, layout="tim")


def test_networks_without_a_head_or_images(tmp_path: Path) -> None:
    code = "import flax.linen as nn\nclass Net(nn.Module):\n    @nn.compact\n    def __call__(self, images, train=False):\n"
    (tmp_path / "maps.py").write_text(f"{code}        return nn.Dense(4, name='project')(images)\n")
    name, file = f"{tmp_path}/maps.py:Net", tmp_path / "f.npz"
    np.savez(file, **{"params/project/kernel": np.ones((3, 4)), "params/project/bias": np.ones(4)})
    assert aj.load_pretrained(name, file)[1]["params"]["project"]["kernel"].shape == (3, 4)
    assert refusal(name, file, num_classes=3) == (
        f"num_classes=3: {name!r} has no head that the layout native knows: leave it out."
    )
    assert refusal("transformer_base", file).startswith("Transformer does not take images alone (")


def test_our_own_names(tmp_path: Path, trained: Any) -> None:
    np.savez(tmp_path / "f.npz", **tree.flatten_by_path(trained[1]))
    _, variables = aj.load_pretrained("resnet18", tmp_path / "f.npz", **SMALL)
    assert jax.tree.all(jax.tree.map(np.array_equal, variables, trained[1]))


def test_another_network(tmp_path: Path) -> None:
    np.savez(tmp_path / "f.npz", a=np.ones(3), b=np.ones(3))
    text = refusal("resnet18", tmp_path / "f.npz", **SMALL)
    assert text.startswith(f"{tmp_path / 'f.npz'}: its 2 tensors (a, b, …) are not those of 'resnet18' in any known layout (")
    assert "timm: " in text and text.endswith("give the name of another network, or layout='file.py:LAYOUT'.")
    text = refusal("resnet34", TRAINING, stage_sizes=(1, 2), widths=(4, 8))
    assert "in the layout torchvision; missing: layer2.1.bn1.running_mean (the nearest is " not in text
    assert "missing: " in text and "layer2.1.conv2.weight" in text
