"""Parameters and multiply-adds of the registered networks, to the digit.

Sources of the numbers: torchvision 0.29.1 and timm 1.0.31 (parameters of the built network; multiply-adds of conv and
linear layers as fvcore counts them, batch 1); the classes released with the BAM paper; the papers' own definitions as
closed forms where that is said.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

import attention_jax as aj
from attention_jax import tree
from attention_jax.nn.bam import BAM

IMAGENET = (1, 224, 224, 3)
CIFAR = (1, 32, 32, 3)

# torchvision, timm, and the released code of BAM on its torchvision-like ResNets.
AT_224 = {
    "resnet18": (11_689_512, 1_814_073_344),
    "resnet34": (21_797_672, 3_663_761_408),
    "resnet50": (25_557_032, 4_089_184_256),
    "resnet101": (44_549_160, 7_801_405_440),
    "resnet152": (60_192_808, 11_513_626_624),
    "seresnet18": (11_779_624, 1_814_161_408),
    "seresnet50": (28_088_024, 4_091_699_200),
    "seresnet101": (49_326_872, 7_806_148_608),
    "seresnet152": (66_821_848, 11_520_204_800),
    "bam_resnet18.code": (11_712_503, 1_819_224_000),
    "bam_resnet34.code": (21_820_663, 3_668_912_064),
    "bam_resnet50.code": (25_915_099, 4_171_331_328),
    "bam_resnet101.code": (44_907_227, 7_883_552_512),
}
# The same classes with the CIFAR stem and 100 classes.
CIFAR_100 = {
    "resnet18": (11_220_132, 555_468_800),
    "resnet34": (21_328_292, 1_159_448_576),
    "resnet50": (23_705_252, 1_298_014_208),
    "resnet101": (42_697_380, 2_510_168_064),
    "bam_resnet18.code": (11_243_123, 557_157_888),
    "bam_resnet34.code": (21_351_283, 1_161_137_664),
    "bam_resnet50.code": (24_063_319, 1_324_953_600),
    "bam_resnet101.code": (43_055_447, 2_537_107_456),
}
# He et al. 2016, Section 4.2, as a closed form: option A with 10 classes, option B with 10, option A with 100.
CIFAR_6N_2 = {
    "resnet20": (269_722, 272_474, 275_572),
    "resnet32": (464_154, 466_906, 470_004),
    "resnet44": (658_586, 661_338, 664_436),
    "resnet56": (853_018, 855_770, 858_868),
    "resnet110": (1_727_962, 1_730_714, 1_733_812),
}
# ResNet-50 with the CIFAR stem and 100 classes, released BAM classes: both branches, channel only, spatial only.
BAM_REDUCTION = {
    4: (26_293_351, 24_396_516, 25_602_087),
    8: (24_613_127, 24_051_780, 24_266_599),
    16: (24_063_319, 23_879_412, 23_889_159),
    32: (23_860_991, 23_793_228, 23_773_015),
}
# SE-ResNet-50 by reduction ratio, without biases (Hu et al. 2018, Table 10) and with, from a timm network so built.
SE_REDUCTION = {
    2: (45_676_584, 45_699_240),
    4: (35_616_808, 35_635_688),
    8: (30_586_920, 30_603_912),
    16: (28_071_976, 28_088_024),
    32: (26_814_504, 26_830_080),
}


def params(model: Any, shape: tuple[int, ...] = CIFAR) -> int:
    """Trainable parameters."""
    variables = jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct(shape, jnp.float32))
    return sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))


def counts(model: Any, shape: tuple[int, ...]) -> tuple[int, int]:
    """(parameters, multiply-adds)."""
    summary = aj.summary(model, shape)
    return summary.params, summary.macs


@pytest.mark.parametrize("name", AT_224)
def test_imagenet_network(name: str) -> None:
    assert counts(aj.create_model(name), IMAGENET) == AT_224[name]


@pytest.mark.parametrize("name", CIFAR_100)
def test_imagenet_network_on_cifar_100(name: str) -> None:
    assert counts(aj.create_model(name, stem="cifar", num_classes=100), CIFAR) == CIFAR_100[name]


@pytest.mark.parametrize("name", CIFAR_6N_2)
def test_cifar_network(name: str) -> None:
    """Shortcuts of option A have no parameters, so that the plain network has the same number."""
    option_a, option_b, option_a_100 = CIFAR_6N_2[name]
    assert params(aj.create_model(name)) == params(aj.create_model(f"{name}.plain")) == option_a
    assert params(aj.create_model(name, shortcut="B")) == option_b
    assert params(aj.create_model(name, num_classes=100)) == option_a_100


def test_where_a_bottleneck_strides() -> None:
    """v1 and v1.5 of ResNet-50 have equal parameters; the papers print 3.8 and torchvision's network has 4.1 GMAC."""
    first, last = aj.create_model("resnet50", stride_at="1x1"), aj.create_model("resnet50")
    (params_1x1, macs_1x1), (params_3x3, macs_3x3) = counts(first, IMAGENET), counts(last, IMAGENET)
    assert params_1x1 == params_3x3
    # Each of the three strided blocks has its 1x1 at a quarter of the places: 3/4 of H·W·Cin·width less.
    saved = sum(3 * side**2 * 4 * width // 2 * width // 4 for side, width in ((56, 128), (28, 256), (14, 512)))
    assert macs_1x1 == macs_3x3 - saved
    assert round(macs_1x1 / 1e9, 3) == 3.858
    assert round(macs_3x3 / 1e9, 3) == 4.089


def bam_closed_form(channels: int, reduction: int) -> tuple[int, int]:
    """(channel branch, spatial branch) of the released code; h = C / r."""
    h = channels // reduction
    return 2 * channels * h + 3 * h + channels, channels * h + 3 * h + 2 * (9 * h * h + 3 * h) + h + 1


@pytest.mark.parametrize("reduction", BAM_REDUCTION)
def test_bam_module(reduction: int) -> None:
    """The closed form, branch by branch; batch norm at the ends instead of inside trades 8h for 2C + 2 parameters."""
    for channels in (64, 256, 1024):
        shape, h = (1, 8, 8, channels), channels // reduction
        channel, spatial = bam_closed_form(channels, reduction)
        code = dict(reduction=reduction, batch_norm="code")
        assert params(BAM(**code, spatial=False), shape) == channel
        assert params(BAM(**code, channel=False), shape) == spatial
        assert params(BAM(**code), shape) == channel + spatial
        assert params(BAM(reduction=reduction), shape) == channel + spatial - 8 * h + 2 * channels + 2
    assert sum(bam_closed_form(256, 16)) == 17_361


@pytest.mark.parametrize("reduction", BAM_REDUCTION)
def test_bam_resnet50_by_reduction_and_branch(reduction: int) -> None:
    """The rows of the paper's ablation, in the released code's layout."""
    for expected, branches in zip(BAM_REDUCTION[reduction], ({}, dict(spatial=False), dict(channel=False)), strict=True):
        args = dict(reduction=reduction, batch_norm="code", **branches)
        assert params(aj.create_model("bam_resnet50", stem="cifar", num_classes=100, gate_args=args)) == expected


def test_bam_of_the_paper() -> None:
    """Batch norm at the ends of the branches alone gives the published 24.07 M (CIFAR-100) and 25.92 M (ImageNet)."""
    assert params(aj.create_model("bam_resnet50", stem="cifar", num_classes=100)) == 24_066_013
    assert params(aj.create_model("bam_resnet50"), IMAGENET) == 25_917_793
    # Neither the combination nor the dilation has parameters.
    for args in (dict(combine="max"), dict(combine="product"), dict(dilation=1)):
        assert params(aj.create_model("bam_resnet50", gate_args=args), IMAGENET) == 25_917_793


@pytest.mark.parametrize("reduction", SE_REDUCTION)
def test_se_resnet50_by_reduction(reduction: int) -> None:
    for expected, use_bias in zip(SE_REDUCTION[reduction], (False, True), strict=True):
        args = dict(reduction=reduction, use_bias=use_bias)
        assert params(aj.create_model("resnet50", gate="se", gate_at="block", gate_args=args), IMAGENET) == expected


@pytest.mark.parametrize("name", ["resnet20", "bam_resnet20", "seresnet18"])
def test_table_sums_to_the_total(name: str) -> None:
    """At every depth of the table; the parameters are those of the tree."""
    model = aj.create_model(name)
    tables = [aj.summary(model, CIFAR, depth=depth) for depth in (1, 3)]
    for table in tables:
        rows = table.modules.values()
        assert (sum(p for p, _ in rows), sum(m for _, m in rows)) == (table.params, table.macs)
        assert (table.params, table.macs) == (tables[0].params, tables[0].macs)
    assert tables[0].params == params(model)
    head = tables[0].modules["head"]
    assert head == (head[1] + model.num_classes, head[1])  # K·C multiply-adds, K·C + K parameters

    # A row is what its module has, and the totals are printed.
    shapes = jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct(CIFAR, jnp.float32))["params"]
    for path, (count, _) in tables[0].modules.items():
        inside = [leaf.size for key, leaf in tree.flatten(shapes).items() if key.startswith(f"{path}/")]
        assert count == sum(inside), path
    assert str(tables[0]).splitlines()[-1].split() == ["total", f"{tables[0].params:,}", f"{tables[0].macs:,}"]


class Looped(nn.Module):
    """A product inside a compiled function inside a loop."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = self.param("kernel", nn.initializers.ones, (8, 8))
        step = jax.jit(lambda x: x @ kernel)
        return jax.lax.scan(lambda x, _: (step(x), None), x, length=5)[0]


def test_products_inside_loops_and_compiled_functions() -> None:
    assert counts(Looped(), (3, 8)) == (64, 5 * 3 * 8 * 8)


def test_multiply_adds_scale_with_the_batch() -> None:
    model = aj.create_model("bam_resnet20")
    assert aj.summary(model, (3, 32, 32, 3)).macs == 3 * aj.summary(model, CIFAR).macs
