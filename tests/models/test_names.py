"""Every name of a network has the counts of `names.tsv`; each family's smallest network trains and shows its maps."""

import fnmatch
from typing import Any

import jax
import numpy as np
import pytest

import attention_jax as aj
from attention_jax import tree
from attention_jax.cli import main as cli
from attention_jax.models import registry
from attention_jax.models.convnext import ConvNeXt
from attention_jax.models.convnext_roadmap import ConvNeXtRoadmap
from attention_jax.models.registry import list_origins
from attention_jax.models.resnet import ResNet
from attention_jax.models.summary import list_references
from attention_jax.models.swin import SwinTransformer
from attention_jax.models.vit import VisionTransformer
from attention_jax.optim.losses import cross_entropy
from tests.helpers.blocks import TINY, drawn, numbers, quick
from tests.helpers.parity_vit import ViTCase

REFERENCES = list_references()
# timm 1.0.31, torchvision 0.29.1 and the authors' code by fvcore; formulas from the shapes in the papers.
COUNTED_BY = {"timm", "torchvision", "authors' code", "timm (parameters)", "formula (parameters)"}
# Names that nobody else has counted: their counts are this package's own, kept so that a change shows.
UNCOUNTED = {
    "bam_resne*": "the authors count the released code on four depths; the paper's module has its closed form in test_counts",
    "cbam_resnet*": "the authors count four depths",
    "ecaresnet*": "timm has other depths, most of them with stem and shortcuts of ResNet-D",
    "gcresnet*": "timm's have another stem (gcresnet50t)",
    "resnet*_gn": "timm has ResNet-50 alone; each norm has the parameters of a batch norm",
    "resnet*c": "timm has depths from 50; the others have the same stem",
    "sagan_resnet*": "the paper puts the module into a GAN; it has its closed form in test_counts",
    "seresne*": "timm has other depths and groups",
}
FAST = ("resnet20", "convnext_tiny", "convnext_from_resnet50.baseline", "swin_tiny_patch4_window7_224", "efficientnet_lite0")


def test_the_table_has_every_name_and_who_else_has_counted_it() -> None:
    """A new name fails here until it has a row, and a reference or a sentence why it has none."""
    make = {name: aj.create_model(name) for name, origin in list_origins().items() if origin is None}
    ours = {name for name, model in make.items() if type(model).__module__.startswith("attention_jax.")}
    assert ours == REFERENCES.keys()
    uncounted = {name for name, row in REFERENCES.items() if row["counted"] not in COUNTED_BY}
    explained = {pattern: fnmatch.filter(uncounted, pattern) for pattern in UNCOUNTED}
    assert uncounted == {name for names in explained.values() for name in names}
    assert all(explained.values())
    for name, row in REFERENCES.items():
        assert (row["top1"] == "-") == (row["published"] == "-") and row["counted"] != "", name
        assert row["top1"] == "-" or 65 < float(row["top1"]) < 98, name


# TensorFlow's padding changes no count: test_efficientnet.
@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[] if name in FAST else pytest.mark.slow) for name in REFERENCES if not name.startswith("tf_")],
)
def test_counts(name: str) -> None:
    """To the digit. The network is traced, and nothing is computed."""
    row = REFERENCES[name]
    size, *unit = row["input"].split()
    side = int(size)
    inputs: Any = (jax.ShapeDtypeStruct((1, side), "int32"),) * 2 if unit else (1, side, side, 3)
    counted = aj.summary(aj.create_model(name), inputs)
    assert (counted.params, counted.macs) == (int(row["params"]), int(row["macs"]))


# fvcore's counts of the authors' networks.
AT_384 = {"convnext_tiny": 13_092_317_184, "convnext_base": 45_122_117_632}


@pytest.mark.slow
@pytest.mark.parametrize("name", AT_384)
def test_multiply_adds_of_larger_images(name: str) -> None:
    assert aj.summary(aj.create_model(name), (1, 384, 384, 3)).macs == AT_384[name]


def test_tf_names_have_the_counts_of_the_others() -> None:
    for name, row in REFERENCES.items():
        if name.startswith("tf_"):
            assert row == REFERENCES[name.removeprefix("tf_")], name


def test_one_command_prints_all(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry._MODELS, "zz_mine", registry._MODELS["resnet20"])
    assert cli.main(["summary", "*"]) == 0
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.split() == ["name", "params", "MACs", "input", "top-1", "%", "published", "by"]
    assert len(lines) == len(aj.list_models()) > 280
    assert lines[-1].split() == ["zz_mine", *"-----"]
    (line,) = [line for line in lines if line.startswith("resnetrs50 ")]
    assert line.split(maxsplit=5) == ["resnetrs50", "35,691,912", "2,278,629,376", "160", "78.8", "Bello et al. 2021, Table 9"]


_CONVNEXT: dict[str, Any] = dict(num_classes=3, stage_sizes=(1, 1), widths=(4, 8))
SMALLEST: dict[str, Any] = {
    "resnet": ResNet(**TINY, gate="bam", gate_args=dict(reduction=2), norm="group"),
    "resnet_rs": ResNet(
        **{**TINY, "block": "bottleneck", "stem": "rs", "shortcut": "D"},
        gate="se",
        gate_at="block",
        gate_args=dict(reduction=4),
    ),
    "convnext": ConvNeXt(**_CONVNEXT, gate="self_attention", gate_args=dict(reduction=2, value_reduction=2)),
    "convnext_roadmap": ConvNeXtRoadmap(num_classes=3, stage_sizes=(1, 1), width=4, norm="layer", gate="eca"),
    "vit": VisionTransformer(**{**ViTCase("vit", {}, (16, 16)).network, "num_classes": 3}),
    "swin": SwinTransformer(**{**ViTCase("swin", {}, (16, 16)).network, "num_classes": 3}),
}


@pytest.mark.parametrize("family", SMALLEST)
def test_smallest_of_each_family(family: str) -> None:
    """Finite loss, a gradient for every parameter, and maps; features, bfloat16 and EfficientNet have tests of their own."""
    network, images = SMALLEST[family], numbers("images", 4, 17, 20, 3)
    variables = drawn(network, images)

    @quick
    def train(params: Any) -> tuple:
        def loss(params: Any) -> tuple:
            whole = {**variables, "params": params}
            logits, changed = network.apply(whole, images, train=True, mutable=["batch_stats", "attention"])
            return cross_entropy(logits, np.array([0, 1, 2, 0])).sum(), changed["attention"]

        return jax.value_and_grad(loss, has_aux=True)(params)

    (value, maps), gradients = jax.device_get(train(variables["params"]))
    assert np.isfinite(value)
    sizes = {path: np.abs(leaf).max() for path, leaf in tree.flatten_by_path(gradients).items()}
    # A bias before a normalisation or of keys before a softmax changes nothing.
    assert not {path for path, size in sizes.items() if not size > 1e-7 and not path.endswith("bias")}
    assert jax.tree.leaves(maps) and all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(maps))
