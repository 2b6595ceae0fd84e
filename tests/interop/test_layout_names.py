"""Layouts of ConvNeXt, ViT, Swin and EfficientNet: their names against frozen ones, and small networks there and back."""

from typing import Any

import flax.linen as nn
import numpy as np
import pytest

from attention_jax import tree
from attention_jax.errors import UserError
from attention_jax.interop import layouts_convnext, layouts_efficientnet, layouts_swin, layouts_vit
from attention_jax.interop.layout import Layout, fill_variables, list_shapes, name_tensors
from attention_jax.interop.layouts_vit import resize_grid, resize_positions
from attention_jax.models.convnext import ConvNeXt
from attention_jax.models.efficientnet import EfficientNet
from attention_jax.models.swin import SwinTransformer
from attention_jax.models.vit import VisionTransformer
from tests.helpers import parity
from tests.helpers.parity_vit import VITS

_K = dict(num_classes=parity.CLASSES)
NETWORKS: dict[str, tuple[Any, nn.Module]] = {  # case: module of its layouts, network
    "convnext": (layouts_convnext, ConvNeXt(**_K, stage_sizes=(1, 1, 2, 1), widths=(4, 8, 12, 16))),
    "isotropic": (
        layouts_convnext,
        ConvNeXt(**_K, stage_sizes=(2,), widths=(8,), patch_size=16, stem_norm=False, layer_scale=None),
    ),
    "vit": (layouts_vit, VisionTransformer(**VITS["vit"].network)),
    "vit_mean": (layouts_vit, VisionTransformer(**VITS["vit_mean"].network)),
    "deit_distilled": (layouts_vit, VisionTransformer(**VITS["deit_distilled"].network)),
    "swin": (layouts_swin, SwinTransformer(**VITS["swin"].network)),
    "efficientnet": (layouts_efficientnet, EfficientNet(**_K, width=0.25, depth=0.3)),
    "efficientnet_lite": (layouts_efficientnet, EfficientNet(**_K, width=0.3, depth=0.3, lite=True)),
}


def read_frozen() -> dict[str, dict[str, tuple[int, ...]]]:
    """{"layout case": {name: shape}} of `tests/fixtures/layout_names.txt`."""
    sections: dict[str, dict[str, tuple[int, ...]]] = {}
    for line in (parity.FIXTURES / "layout_names.txt").read_text("utf-8").splitlines():
        if line.startswith("["):
            names = sections.setdefault(line[1:-1], {})
        else:
            name, *shape = line.split()
            names[name] = tuple(map(int, shape))
    return sections


FROZEN = read_frozen()


def find_layout(name: str, case: str) -> Layout:
    """The layout of a case; the last of that name is the one for isotropic networks."""
    found = [layout for layout in NETWORKS[case][0].LAYOUTS if layout.name == name]
    return found[-1 if case == "isotropic" else 0]


@pytest.fixture(scope="module")
def variables() -> dict[str, dict[str, np.ndarray]]:
    """{case: {path: array}}, drawn by path."""
    shapes = {case: list_shapes(model) for case, (_, model) in NETWORKS.items()}
    return {case: {path: parity.draw(0, path, shape) for path, shape in some.items()} for case, some in shapes.items()}


@pytest.mark.parametrize("section", FROZEN)
def test_names_and_shapes_are_the_references(section: str, variables: dict) -> None:
    """Every name of the reference but its counters and indices, each in its shape; and back, bitwise."""
    name, case = section.split()
    layout, model, ours = find_layout(name, case), NETWORKS[case][1], variables[case]
    theirs = name_tensors(layout, model, tree.nest_by_path(ours))
    expected = {
        key: shape for key, shape in FROZEN[section].items() if not key.endswith(("_tracked", "position_index", "attn_mask"))
    }
    assert {key: array.shape for key, array in theirs.items()} == expected
    everything = {**theirs, **{key: np.zeros(shape) for key, shape in FROZEN[section].items() if key not in theirs}}
    shapes = {path: array.shape for path, array in ours.items()}
    back, notes = fill_variables(layout, model, shapes, everything, "it")
    assert not notes and back.keys() == ours.keys()
    assert all(np.array_equal(back[path], ours[path]) for path in ours)


def test_every_layout_is_frozen() -> None:
    """No layout is without a section."""
    frozen = {id(find_layout(*section.split())) for section in FROZEN}
    modules = (layouts_convnext, layouts_efficientnet, layouts_swin, layouts_vit)
    missing = [layout for module in modules for layout in module.LAYOUTS if id(layout) not in frozen]
    assert [(layout.name, layout.models) for layout in missing] == [("torchvision", ("efficientnet_b[5-7]",))]


def test_positions_are_interpolated_and_tokens_kept(variables: dict) -> None:
    """A table for 4x4 patches fits a network of 6x6: a plane stays a plane inside, the tokens stay as they are."""
    model = NETWORKS["deit_distilled"][1].clone(image_size=24)
    layout = find_layout("timm", "deit_distilled")
    ours = dict(variables["deit_distilled"])
    rows, columns = np.mgrid[:4, :4].reshape(2, -1).astype(np.float32)
    ours["params/positions"] = np.concatenate([ours["params/positions"][:2], (rows + 10 * columns)[:, None] * np.ones(16)])
    tensors = name_tensors(layout, model, tree.nest_by_path(ours))
    filled, notes = fill_variables(layout, model, list_shapes(model), tensors, "it")
    table = filled["params/positions"]
    assert len(notes) == 1 and "pos_embed" in notes[0] and table.shape == (2 + 36, 16)
    assert np.array_equal(table[:2], ours["params/positions"][:2].astype(np.float32))
    inside = table[2:].reshape(6, 6, 16)[2:4, 2:4, 0]
    np.testing.assert_allclose(np.diff(inside, axis=0), 4 / 6, rtol=1e-5)
    np.testing.assert_allclose(np.diff(inside, axis=1), 40 / 6, rtol=1e-5)


def test_relative_biases_are_interpolated_for_another_window(variables: dict) -> None:
    model = NETWORKS["swin"][1].clone(window_size=4)
    layout = find_layout("official", "swin")
    tensors = name_tensors(layout, NETWORKS["swin"][1], tree.nest_by_path(variables["swin"]))
    filled, notes = fill_variables(layout, model, list_shapes(model), tensors, "it")
    assert len(notes) == 4  # a table a block
    table, before = filled["params/stage1_block1/relative_bias"], variables["swin"]["params/stage1_block1/relative_bias"]
    assert table.shape == (49, 2)
    np.testing.assert_allclose(table[24], before[12], rtol=1e-5)  # the offset of nothing stays in the middle


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ((17, 8), (16, 8), "1 tokens .* needs 0"),
        ((15, 8), (17, 8), "15 positions are not"),
        ((17, 8), (26, 4), "same channels"),
    ],
)
def test_positions_that_do_not_fit_are_refused(before: tuple, after: tuple, said: str) -> None:
    with pytest.raises(UserError, match=said):
        resize_positions(np.zeros(before, np.float32), after)


def test_a_grid_that_is_no_square_is_refused() -> None:
    with pytest.raises(UserError, match="squares"):
        resize_grid(np.zeros((6, 2), np.float32), (9, 2))


@pytest.mark.parametrize("name", ["official", "torchvision"])
def test_swapped_names_of_patch_merging_are_seen(name: str, variables: dict) -> None:
    """timm's names of today in place of the old ones: missing and extra tensors, each with the other's name beside it."""
    model = NETWORKS["swin"][1]
    timm = name_tensors(find_layout("timm", "swin"), model, tree.nest_by_path(variables["swin"]))
    with pytest.raises(UserError, match="missing: .*not of this network: "):
        fill_variables(find_layout(name, "swin"), model, list_shapes(model), timm, "it")
