"""Maps of the stages in place of logits, as dense tasks need them; `init` returns none of attention."""

from typing import Any

import jax
import jax.numpy as jnp
import pytest

import attention_jax as aj
from attention_jax import tree
from attention_jax.models.resnet import ResNet
from tests.helpers.blocks import TINY, close, drawn, numbers, quick

# Every kind of stem, block and number of stages; other names of these families are these with other gates, depths and widths.
_PATTERNS = ("resnet18*", "resnet20*", "bam_resnet20", "resnetrs50", "senet*", "resnext29_1x64d", "convnext_*")


def check_maps(name: str) -> None:
    """One map for each stage, at the strides 4, 8, 16 and 32, or a network's own, without a head."""
    model = aj.create_model(name, features=True)
    stages = len(model.stage_sizes)
    first = getattr(model, "patch_size", 1 if getattr(model, "stem", "") == "cifar" else 4)
    images = jax.ShapeDtypeStruct((2, 64, 96, 3), jnp.float32)
    maps, variables = jax.eval_shape(lambda x: model.init_with_output(jax.random.key(0), x), images)
    strides = [first * 2**stage for stage in range(stages)]
    assert [x.shape[:3] for x in maps] == [(2, 64 // stride, 96 // stride) for stride in strides]
    assert {x.dtype for x in maps} == {jnp.dtype("float32")}
    assert not [path for path in tree.flatten_by_path(variables["params"]) if path.startswith("head")]


@pytest.mark.parametrize("name", ["resnet18", "bam_resnet20", "convnext_isotropic_small"])
def test_some_names(name: str) -> None:
    check_maps(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted({name for pattern in _PATTERNS for name in aj.list_models(pattern)}))
def test_names(name: str) -> None:
    check_maps(name)


def test_are_what_the_head_sees() -> None:
    """With the variables of the network that has the head; a gate after a stage belongs to the map."""
    images = numbers("images", 2, 9, 8, 3)
    model = ResNet(**TINY, gate="se", gate_stages=(2,), gate_args=dict(reduction=2))
    variables = drawn(model, images)
    maps = quick(model.clone(features=True).apply)(variables, images)
    head = variables["params"]["head"]
    close(quick(model.apply)(variables, images), maps[-1].mean((1, 2)) @ head["kernel"] + head["bias"])


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("bam_resnet20", dict(stage_sizes=(1, 1), widths=(8, 16), gate_args=dict(reduction=2))),
        ("convnext_tiny", dict(stage_sizes=(1, 1), widths=(8, 16), gate="eca", gate_at="block")),
        ("efficientnet_b0", dict(depth=0.1)),
        ("vit_tiny_patch16_224", dict(layers=1)),
        ("swin_tiny_patch4_window7_224", dict(stage_sizes=(1, 1), heads=(1, 2))),
    ],
)
def test_init_gives_parameters_and_statistics_and_no_maps(name: str, fields: dict[str, Any]) -> None:
    model, images = aj.create_model(name, **fields), jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    assert set(jax.eval_shape(model.init, jax.random.key(0), images)) <= {"params", "batch_stats"}
