"""Gradient flow, receptive fields and query maps: against their definitions, and what the tables say with them."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attention_jax import tree
from attention_jax.errors import UserError
from attention_jax.models import create_model
from attention_jax.train.program import build_program
from experiments.studies import gradient_flow, query_maps, receptive_field
from tests.analysis.test_plots import nothing_is_cut_off
from tests.helpers.small import small_config


def first_batch(program):
    return program.task.loader(program.config, "train", (0, 1), training=True).training_batch(0)


# --- gradient flow --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_gradient_norms_are_those_of_the_training_step():
    program = build_program(small_config())
    state, batch = program.init(np.uint32(3)), first_batch(program)
    norms = gradient_flow.compute_gradient_norms(program, state.variables(), batch)
    assert norms.keys() == tree.flatten_by_path(program.abstract_state.params).keys()
    _, metrics = program.train_step(state, batch, np.uint32(3))
    assert np.sqrt(sum(norm**2 for norm in norms.values())) == pytest.approx(float(metrics["grad_norm"]), rel=1e-5)


def test_layers_come_in_the_order_of_their_use():
    program = build_program(small_config(model__stage_sizes=(1, 2)))
    blocks = ("stage1_block1", "stage2_block1", "stage2_block2")
    expected = ["stem_conv", *(f"{block}/conv{i}" for block in blocks for i in (1, 2))]
    assert gradient_flow.list_convolutions(program) == [f"{path}/kernel" for path in expected]


@pytest.mark.slow
def test_without_normalisation_shortcuts_keep_the_gradient_and_with_it_nothing_vanishes():
    """The two claims of `experiments/residual.py`, at 14 layers and at initialisation."""

    def first_layer(**fields) -> float:
        fields = {f"model__{name}": value for name, value in fields.items()}
        program = build_program(small_config(model__stage_sizes=(2, 2, 2), model__widths=(4, 8, 16), **fields))
        norms = gradient_flow.compute_gradient_norms(program, program.init(np.uint32(0)).variables(), first_batch(program))
        return norms["stem_conv/kernel"]

    plain = first_layer(residual=False, norm="none")
    assert first_layer(residual=True, norm="none") > 10 * plain
    assert first_layer(residual=False, norm="batch") > 10 * plain


def test_gradient_picture_draws_the_geometric_mean():
    seeds = [
        {"gradients": np.array([[1.0, 4.0], [2.0, 2.0]]) * scale, "gradient_steps": np.array([0, 9])} for scale in (1, 100)
    ]
    figure = gradient_flow.plot_gradient_flow({"a": seeds, "b": seeds[:1], "c": seeds}, columns=2)
    lines = figure.axes[0].lines
    np.testing.assert_allclose([line.get_ydata() for line in lines], [[10.0, 40.0], [20.0, 20.0]])
    np.testing.assert_allclose(figure.axes[1].lines[0].get_ydata(), [1.0, 4.0])
    assert [axes.get_title() for axes in figure.axes[:3]] == ["a", "b", "c"]
    assert nothing_is_cut_off(figure)


# --- receptive fields -----------------------------------------------------------------------------------------------------


class OneConvolution(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Conv(3, (3, 3), use_bias=False, name="inner")(x)
        return x.mean((1, 2))


def test_the_field_of_a_convolution_is_its_kernel():
    kernel = np.random.default_rng(0).normal(size=(3, 3, 2, 3)).astype(np.float32)
    images = np.ones((4, 6, 7, 2), np.float32)
    variables = {"params": {"inner": {"kernel": kernel}}}
    field = receptive_field.compute_receptive_field(OneConvolution(), variables, images, "inner", (2, 4))
    expected = np.zeros((6, 7))
    expected[1:4, 3:6] = np.abs(kernel.sum(-1)).sum(-1)
    np.testing.assert_allclose(field, expected, rtol=1e-6)
    corner = receptive_field.compute_receptive_field(OneConvolution(), variables, images, "inner", (0, 0))
    np.testing.assert_allclose(corner[:2, :2], expected[2:4, 4:6], rtol=1e-6)
    with pytest.raises(UserError, match="the network has no module 'outer'"):
        receptive_field.compute_receptive_field(OneConvolution(), variables, images, "outer")


FIELDS = {"stem": "cifar", "stage_sizes": (1, 1), "widths": (8, 8), "num_classes": 3, "gate_stages": (1,)}
IMAGES = np.random.default_rng(0).normal(size=(8, 16, 16, 1)).astype(np.float32)


def random_variables(model: nn.Module) -> dict:
    """Kernels at random, the rest as it starts; drawn with numpy, because compiling an initialisation takes seconds."""
    rng = np.random.default_rng(0)
    start = {"kernel": lambda shape: 0.3 * rng.normal(size=shape), "scale": np.ones, "var": np.ones}
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.asarray(IMAGES[:1]))
    shapes = {name: shapes[name] for name in ("params", "batch_stats")}
    return tree.map_with_path(lambda path, x: start.get(path.rpartition("/")[2], np.zeros)(x.shape).astype(np.float32), shapes)


def field_of(gate=None, gamma=None, **gate_args) -> np.ndarray:
    """Of the middle position after stage 1 of a ResNet with random weights."""
    model = create_model("resnet20", **FIELDS, gate=gate, gate_args=gate_args)
    variables = random_variables(model)
    if gamma is not None:
        variables["params"]["stage1_gate"]["gamma"] = jnp.float32(gamma)
    at = "stage1_gate" if gate else "stage1_block1"
    return receptive_field.compute_receptive_field(model, variables, IMAGES, at)


def test_what_the_first_stage_sees():
    square = np.zeros((16, 16), bool)
    square[5:12, 5:12] = True  # three 3x3 see 7x7 around (8, 8)
    plain = field_of()
    np.testing.assert_array_equal(plain > 0, square)
    assert (field_of("bam", spatial=False, reduction=4) > 0).all()  # pools the whole map
    np.testing.assert_array_equal(field_of("self_attention", gamma=0.0) > 0, square)
    assert (field_of("self_attention", gamma=1.0) > 0).all()
    assert receptive_field.describe_field(plain, plain) == {
        "pixels seen %": pytest.approx(100 * 49 / 256),
        "effective field %": pytest.approx(100 * (plain > 0.0455 * plain.max()).mean()),
        "beyond convolutions %": 0.0,
    }
    beyond = receptive_field.describe_field(np.ones((16, 16)), plain)
    assert beyond["beyond convolutions %"] == pytest.approx(100 * (256 - 49) / 256) and beyond["effective field %"] == 100


# --- query maps -----------------------------------------------------------------------------------------------------------


class Sower(nn.Module):
    """Attention over keys of 2x1 from queries of 2x3, in known numbers, and a map of another kind beside it."""

    @nn.compact
    def __call__(self, x, train=False):
        weights = jnp.arange(x.shape[0] * 2 * 3 * 2 * 1.0).reshape(x.shape[0], 2, 3, 2, 1)
        self.sow("attention", "weights", weights)
        self.sow("attention", "map", x)
        return x.mean((1, 2))


class Sowing(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        return Sower(name="gate")(x)


def test_query_maps_are_the_rows_of_the_points():
    images = np.zeros((2, 4, 6, 1), np.float32)
    points = [[(0, 0), (3, 5)], [(1, 4), (2, 1)]]
    maps = query_maps.compute_query_maps(Sowing(), {}, images, points)
    weights = np.arange(24.0).reshape(2, 2, 3, 2, 1)
    expected = [[weights[0, 0, 0], weights[0, 1, 2]], [weights[1, 0, 2], weights[1, 1, 0]]]
    assert maps.keys() == {"gate"}
    np.testing.assert_array_equal(maps["gate"], expected)
    with pytest.raises(UserError, match=r"query point \(4, 0\) is not right: the images have 4 rows and 6 columns"):
        query_maps.compute_query_maps(Sowing(), {}, images, [[(4, 0)], [(0, 0)]])


def test_query_maps_of_self_attention_sum_to_one():
    model = create_model("resnet20", **{**FIELDS, "gate_stages": (1, 2)}, gate="self_attention", gate_args={"pool": 2})
    variables = random_variables(model)
    maps = query_maps.compute_query_maps(model, variables, IMAGES[:2], [[(0, 0), (15, 15), (8, 8)]] * 2)
    assert {path: array.shape for path, array in maps.items()} == {"stage1_gate": (2, 3, 8, 8), "stage2_gate": (2, 3, 4, 4)}
    for array in maps.values():
        np.testing.assert_allclose(array.sum((-1, -2)), 1, rtol=1e-5)


def test_query_picture_marks_the_points_and_draws_the_maps():
    rng = np.random.default_rng(0)
    images, points = rng.integers(0, 255, (2, 8, 8, 1)), np.array([[(1, 2), (3, 4)], [(5, 6), (7, 0)]])
    one = {"images": images, "points": points, "queries stage1_gate": rng.random((2, 2, 4, 4))}
    two = {**one, "queries stage2_gate": rng.random((2, 2, 2, 2))}
    figure = query_maps.plot_query_maps({"none": [{"images": images, "points": points}], "one": [one, two], "two": [two]})
    panels = np.array(figure.axes).reshape(4, 4)
    assert [axes.get_title() for axes in panels[0]] == ["query", "one", "two:\nstage1", "two:\nstage2"]
    for row, (i, j) in enumerate([(0, 0), (0, 1), (1, 0), (1, 1)]):
        for axes, drawn in zip(panels[row], (images[i, ..., 0], *(v["queries stage1_gate"][i, j] for v in (one, two)))):
            np.testing.assert_array_equal(axes.images[0].get_array(), drawn)
            assert axes.lines[0].get_xydata().tolist() == [[points[i, j, 1], points[i, j, 0]]]
    assert nothing_is_cut_off(figure)
    with pytest.raises(UserError, match="no row that is done has self-attention"):
        query_maps.plot_query_maps({"none": [{"images": images, "points": points}]})


def test_points_lie_on_the_stroke_in_the_middle_and_in_the_corner():
    image = np.zeros((6, 8, 1), np.uint8)
    image[4, 1] = 9
    assert query_maps.choose_points(image) == [(4, 1), (3, 4), (0, 0)]
