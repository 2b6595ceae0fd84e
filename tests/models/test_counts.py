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
from attention_jax.nn.attention import SelfAttention
from attention_jax.nn.bam import BAM

IMAGENET = (1, 224, 224, 3)
CIFAR = (1, 32, 32, 3)

# From ResNet-200 to ResNet-RS-200 at 256 pixels: the architecture rows of Bello et al. 2021, Table 1.
_SE = dict(gate="se", gate_at="block", gate_args=dict(reduction=4))
RS_STEPS = [
    ({}, (64_673_832, 19_600_982_016)),
    (_SE, (93_153_768, 19_629_391_872)),
    (dict(_SE, stem="deep", shortcut="D"), (93_173_000, 19_942_391_808)),
    (dict(_SE, stem="rs", shortcut="D"), (93_209_992, 20_093_386_752)),
]
# timm's ResNet-50 with its gate in every block: what ours takes for timm's defaults, and the parameters.
TIMM_GATES: dict[str, tuple[dict[str, Any], int]] = {
    "ese": ({}, 45_691_688),
    "ge": (dict(mlp=True), 28_088_024),
    "gc": (dict(fuse="scale", reduction=8, epsilon=1e-6), 30_622_808),
    "gca": ({}, 30_622_808),
    "coord": (dict(reduction=24, divisor=8, use_bias=False), 28_083_464),
    "nl": (dict(reduction=8, scaled=True), 35_667_784),
}
# torchvision's ResNets and the released code of BAM on them, with the CIFAR stem and 100 classes.
CIFAR_100 = {
    "resnet18": (11_220_132, 555_468_800),
    "resnet34": (21_328_292, 1_159_448_576),
    "resnet50": (23_705_252, 1_298_014_208),
    "resnet101": (42_697_380, 2_510_168_064),
    "bam_resnet18.code": (11_243_123, 557_157_888),
    "bam_resnet34.code": (21_351_283, 1_161_137_664),
    "bam_resnet50.code": (24_063_319, 1_324_953_600),
    "bam_resnet101.code": (43_055_447, 2_537_107_456),
    "cbam_resnet50": (26_237_844, 1_303_487_840),
}
# He et al. 2016, Section 4.2, as a closed form: option A with 10 classes, option B with 10, option A with 100.
CIFAR_6N_2 = {
    "resnet20": (269_722, 272_474, 275_572),
    "resnet32": (464_154, 466_906, 470_004),
    "resnet44": (658_586, 661_338, 664_436),
    "resnet56": (853_018, 855_770, 858_868),
    "resnet110": (1_727_962, 1_730_714, 1_733_812),
}
# ResNeXt-29 with 10 and 100 classes (Xie et al. 2017, Section 5.3), as a closed form.
RESNEXT_29 = {
    "resnext29_1x64d": (4_914_250, 5_006_500),
    "resnext29_2x64d": (9_130_314, 9_222_564),
    "resnext29_4x64d": (17_562_442, 17_654_692),
    "resnext29_8x64d": (34_426_698, 34_518_948),
    "resnext29_16x64d": (68_155_210, 68_247_460),
    "resnext29_1x128d": (13_775_178, 13_867_428),
    "resnext29_1x256d": (45_431_626, 45_523_876),
    "resnext29_32x4d": (4_775_754, 4_868_004),
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


@pytest.mark.slow
@pytest.mark.parametrize("name", CIFAR_100)
def test_imagenet_network_on_cifar_100(name: str) -> None:
    assert counts(aj.create_model(name, stem="cifar", num_classes=100), CIFAR) == CIFAR_100[name]


@pytest.mark.slow
@pytest.mark.parametrize("name", CIFAR_6N_2)
def test_cifar_network(name: str) -> None:
    """Shortcuts of option A have no parameters, so that the plain network has the same number."""
    option_a, option_b, option_a_100 = CIFAR_6N_2[name]
    assert params(aj.create_model(name)) == params(aj.create_model(f"{name}.plain")) == option_a
    assert params(aj.create_model(name, shortcut="B")) == option_b
    assert params(aj.create_model(name, num_classes=100)) == option_a_100


@pytest.mark.slow
@pytest.mark.parametrize(("fields", "expected"), RS_STEPS)
def test_from_resnet_200_to_resnet_rs_200(fields: dict[str, Any], expected: tuple[int, int]) -> None:
    assert counts(aj.create_model("resnet200", **fields), (1, 256, 256, 3)) == expected


@pytest.mark.slow
@pytest.mark.parametrize("name", RESNEXT_29)
def test_resnext_29(name: str) -> None:
    assert (params(aj.create_model(name)), params(aj.create_model(name, num_classes=100))) == RESNEXT_29[name]


@pytest.mark.parametrize("channels", [64, 256])
def test_self_attention_module(channels: int) -> None:
    """SAGAN: C²/2 + 1 in the paper, 5C²/4 + 1 in the released code, 5C²/4 + 5C/4 + 1 in the first version."""
    shape = (1, 8, 8, channels)
    assert params(SelfAttention(), shape) == channels**2 // 2 + 1
    assert params(SelfAttention(value_reduction=2, pool=2), shape) == 5 * channels**2 // 4 + 1
    first = SelfAttention(value_reduction=1, project=False, use_bias=True)
    assert params(first, shape) == 5 * channels**2 // 4 + 5 * channels // 4 + 1


def test_self_attention_multiply_adds() -> None:
    """Three projections and their way back, and two products over all pairs of N places; pooling divides the keys by 4."""
    channels, places = 64, 8 * 12
    projections = places * channels * (channels // 8) * 4
    assert counts(SelfAttention(), (1, 8, 12, channels))[1] == projections + 2 * places**2 * (channels // 8)
    official = SelfAttention(value_reduction=2, pool=2)
    projections = places * channels * (2 * channels // 8 + 2 * channels // 2)
    pairs = places * places // 4
    assert counts(official, (1, 8, 12, channels))[1] == projections + pairs * (channels // 8 + channels // 2)


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


@pytest.mark.slow
@pytest.mark.parametrize("reduction", BAM_REDUCTION)
def test_bam_resnet50_by_reduction_and_branch(reduction: int) -> None:
    """The rows of the paper's ablation, in the released code's layout."""
    for expected, branches in zip(BAM_REDUCTION[reduction], ({}, dict(spatial=False), dict(channel=False)), strict=True):
        args = dict(reduction=reduction, batch_norm="code", **branches)
        assert params(aj.create_model("bam_resnet50", stem="cifar", num_classes=100, gate_args=args)) == expected


@pytest.mark.slow
def test_bam_of_the_paper() -> None:
    """Batch norm at the ends of the branches alone gives the published 24.07 M (CIFAR-100) and 25.92 M (ImageNet)."""
    assert params(aj.create_model("bam_resnet50", stem="cifar", num_classes=100)) == 24_066_013
    assert params(aj.create_model("bam_resnet50"), IMAGENET) == 25_917_793
    # Neither the combination nor the dilation has parameters.
    for args in (dict(combine="max"), dict(combine="product"), dict(dilation=1)):
        assert params(aj.create_model("bam_resnet50", gate_args=args), IMAGENET) == 25_917_793


@pytest.mark.slow
@pytest.mark.parametrize("reduction", SE_REDUCTION)
def test_se_resnet50_by_reduction(reduction: int) -> None:
    for expected, use_bias in zip(SE_REDUCTION[reduction], (False, True), strict=True):
        args = dict(reduction=reduction, use_bias=use_bias)
        assert params(aj.create_model("resnet50", gate="se", gate_at="block", gate_args=args), IMAGENET) == expected


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_se_in_one_stage(stage: int) -> None:
    """Hu et al. 2018, Table 15, which has no biases."""
    expected = {1: 25_581_608, 2: 25_688_104, 3: 26_343_464}[stage]
    args = dict(gate="se", gate_at="block", gate_stages=(stage,), gate_args=dict(use_bias=False))
    assert params(aj.create_model("resnet50", **args), IMAGENET) == expected


@pytest.mark.slow
@pytest.mark.parametrize("name", TIMM_GATES)
def test_gates_of_timm(name: str) -> None:
    """To the digit; tests/peers makes timm's networks."""
    args, expected = TIMM_GATES[name]
    assert params(aj.create_model("resnet50", gate=name, gate_at="block", gate_args=args)) == expected


@pytest.mark.slow
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
    stem = tables[0].modules["stem_conv"]
    assert stem[0] and stem[1] and next(iter(tables[0].modules)) == "stem_conv"  # one row, the first

    # A row is what its module has, and the totals are printed.
    shapes = jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct(CIFAR, jnp.float32))["params"]
    for path, (count, _) in tables[0].modules.items():
        inside = [leaf.size for key, leaf in tree.flatten_by_path(shapes).items() if key.startswith(f"{path}/")]
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
