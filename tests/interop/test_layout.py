"""One table a layout, read in both directions: names, forms, and one error for all that does not fit."""

import re
from typing import Any

import numpy as np
import pytest

import attention_jax as aj
from attention_jax import tree
from attention_jax.interop.layout import (
    KERNEL,
    Layout,
    NameRule,
    Transform,
    fill_variables,
    fold_channels,
    list_shapes,
    match_names,
    name_module,
    name_tensors,
)
from attention_jax.interop.layouts_resnet import BAM, CBAM, TIMM
from tests.helpers.blocks import numbers
from tests.helpers.weights import FOLDER, KINDS

NAMES = (FOLDER / "timm_names.txt").read_text()
Shapes = dict[str, tuple[int, ...]]


def frozen(name: str) -> Shapes:
    """{timm's name: shape}."""
    lines = re.search(rf"^{name}\n((?:  .*\n)+)", NAMES, re.MULTILINE)[1].split("\n")[:-1]  # type: ignore[index]
    return {words[0]: tuple(map(int, words[1:])) for words in map(str.split, lines)}


def named(layout: Layout, model: Any, shapes: Shapes) -> Shapes:
    """{their name: shape of their array} by the layout; a path without a name is an error."""
    places = match_names(layout, model, list(shapes))
    return {place.name: place.transform.shape_of(shapes[path]) for path, place in places.items() if place or 1 / 0}


@pytest.mark.parametrize("name", KINDS)
def test_names_and_shapes_are_those_of_timm(name: str) -> None:
    model = aj.create_model(name, stage_sizes=(1, 1, 1, 1), **KINDS[name]["ours"])
    assert named(TIMM, model, list_shapes(model)) == frozen(name)


def drawn(shapes: Shapes) -> dict[str, np.ndarray]:
    return {path: np.abs(numbers(path, *shape)).astype(np.float32) for path, shape in shapes.items()}


SMALL: dict[str, Any] = dict(stage_sizes=(1, 1), widths=(16, 32))


@pytest.fixture(scope="module")
def small() -> tuple[Any, Shapes]:
    model = aj.create_model("resnet18", **SMALL)
    return model, list_shapes(model)


@pytest.mark.parametrize(("name", "layout"), [("bam_resnet18.code", BAM), ("cbam_resnet18", CBAM), ("seresnet18", TIMM)])
def test_a_round_trip_changes_nothing(name: str, layout: Layout) -> None:
    model = aj.create_model(name, **SMALL)
    flat = drawn(shapes := list_shapes(model))
    theirs = name_tensors(layout, model, tree.nest_by_path(flat))
    assert {key: array.shape for key, array in theirs.items()} == named(layout, model, shapes)
    back, notes = fill_variables(layout, model, shapes, theirs, "f")
    assert back.keys() == flat.keys() and all(np.array_equal(back[path], flat[path]) for path in flat) and not notes


def test_parts_of_one_tensor_and_functions() -> None:
    """Queries, keys and values that are one array there; a name from a function of the match and the network."""
    parts = (
        rule for i, part in enumerate("qkv") for rule in name_module(f"block(\\d)/{part}", "blocks.{1-1}.qkv", part=(i, 3))
    )
    token = NameRule("params/token", lambda match, model: f"{model}_token", Transform(lambda x: x[0], lambda x: x[None]))
    layout = Layout("mine", ("x",), (*parts, token))
    shapes = {f"params/block1/{part}/{leaf}": shape for part in "qkv" for leaf, shape in (("kernel", (3, 2)), ("bias", (2,)))}
    flat = drawn({**shapes, "params/token": (4,)})
    theirs = name_tensors(layout, "the", tree.nest_by_path(flat))  # type: ignore[arg-type]  # any object
    expected = {"blocks.0.qkv.weight": (6, 3), "blocks.0.qkv.bias": (6,), "the_token": (1, 4)}
    assert {name: array.shape for name, array in theirs.items()} == expected
    np.testing.assert_array_equal(theirs["blocks.0.qkv.weight"][2:4], flat["params/block1/k/kernel"].T)
    back, _ = fill_variables(layout, "the", {path: x.shape for path, x in flat.items()}, theirs, "f")  # type: ignore[arg-type]
    assert all(np.array_equal(back[path], flat[path]) for path in flat)


def test_all_that_does_not_fit_is_in_one_error(small: tuple[Any, Shapes]) -> None:
    model, shapes = small
    tensors = name_tensors(TIMM, model, tree.nest_by_path(drawn(shapes)))
    tensors["layer1.0.convs1.weight"] = tensors.pop("layer1.0.conv1.weight")
    tensors["fc.weight"] = tensors["fc.weight"].T
    tensors["bn1.running_mean"], tensors["bn1.running_var"] = tensors["bn1.running_var"], -tensors["bn1.running_mean"]
    tensors["layer2.0.bn1.bias"] = tensors["layer2.0.bn1.bias"] * np.float32(np.nan)
    tensors["layer1.0.bn1.bias"] = tensors["layer1.0.bn1.bias"] * np.complex64(1j)
    tensors |= {"bn1.num_batches_tracked": np.array(3), "decoder.weight": np.zeros(3)}
    with pytest.raises(aj.UserError) as error:
        fill_variables(TIMM, model, {**shapes, "params/own/kernel": (1,)}, tensors, "f")
    assert str(error.value) == (
        "f: its tensors are not those of this network in the layout timm; missing: layer1.0.conv1.weight (the nearest is "
        "'layer1.0.convs1.weight'), params/own/kernel; not of this network: layer1.0.convs1.weight, decoder.weight; of another "
        "shape: fc.weight (32, 1000) where (1000, 32) is right; with values that are complex or not finite, or variances below "
        "0: bn1.running_var, layer1.0.bn1.bias, layer2.0.bn1.bias."
    )


def test_a_parameter_without_a_name_cannot_be_written(small: tuple[Any, Shapes]) -> None:
    with pytest.raises(aj.UserError, match="layout timm has no names for params/own/kernel: use the format native."):
        name_tensors(TIMM, small[0], {"params": {"own": {"kernel": np.zeros(1)}}})


def test_resizing_is_noted_and_its_error_is_in_the_one() -> None:
    layout = Layout("mine", ("x",), (NameRule("params/p", "p", Transform(resize=lambda x, shape: np.resize(x, shape))),))
    found, notes = fill_variables(layout, None, {"params/p": (5,)}, {"p": np.ones(3)}, "f")  # type: ignore[arg-type]
    assert found["params/p"].shape == (5,) and notes == ["p was (3,) and is resized to (5,)"]
    stem = Layout("mine", ("x",), name_module("stem_conv", "c"))
    shapes = {"params/stem_conv/kernel": (1, 1, 4, 2)}
    with pytest.raises(
        aj.UserError, match=r"c.weight \(2, 2, 1, 1\) where \(2, 4, 1, 1\) is right \(only a kernel that reads 3"
    ):
        fill_variables(stem, None, shapes, {"c.weight": np.ones((2, 2, 1, 1))}, "f")  # type: ignore[arg-type]


def test_channels_are_folded_and_repeated() -> None:
    """A grey image gives what three equal colours gave; more channels are repeated and scaled (timm's rule)."""
    kernel = numbers("kernel", 2, 2, 3, 5)
    grey = fold_channels(kernel, (2, 2, 1, 5))
    np.testing.assert_allclose(grey[:, :, 0], kernel.sum(2), rtol=1e-6)
    four = fold_channels(kernel, (2, 2, 4, 5))
    np.testing.assert_allclose(four, kernel[:, :, [0, 1, 2, 0]] * 0.75, rtol=1e-6)
    assert KERNEL.out(KERNEL.into(kernel)).shape == kernel.shape
