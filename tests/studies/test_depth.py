"""Units of 5x5 and of two 3x3 see as much, and have the weights that the table's page says."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attention_jax.errors import UserError
from attention_jax.models.summary import summary
from experiments.studies.depth import KernelNet, plot_plain_and_residual
from tests.helpers.blocks import drawn, quick

UNITS = ("5x5", "3x3", "3x3 linear")


@pytest.mark.parametrize("unit", UNITS)
def test_a_unit_sees_5x5(unit):
    """The response of one unit to a point, which the pooled mean does not show; with ReLUs that let all through."""
    model = KernelNet(10, unit=unit, features=2, layers=1)
    images = np.zeros((1, 15, 15, 1), np.float32)
    variables = drawn(model, images)
    params, stats = variables["params"], variables["batch_stats"]
    for layer in (name for name in params if "conv" in name):
        params[layer]["kernel"] = np.ones_like(params[layer]["kernel"])
    for norm in stats:
        params[norm] = {"scale": np.ones(2, np.float32), "bias": np.zeros(2, np.float32)}
        stats[norm] = {"mean": np.zeros(2, np.float32), "var": np.ones(2, np.float32)}
    last = max(name for name in stats if name.startswith("unit"))

    def seen(images: jax.Array) -> jax.Array:
        _, kept = model.apply(variables, images, mutable=["intermediates"], capture_intermediates=lambda m, _: m.name == last)
        return kept["intermediates"][last]["__call__"][0]

    images[0, 7, 7] = 1
    rows = np.flatnonzero(np.asarray(quick(seen)(jnp.asarray(images)))[0].sum((1, 2)))
    assert rows.tolist() == list(range(4, 11))  # 3x3 of the stem and 5x5 of the unit


def test_two_3x3_have_fewer_weights():
    """18 in place of 25 for each pair of features; 6 features of 5x5 have about as many as 7 of two 3x3."""
    weights = {}
    for name, unit, features in (("5x5", "5x5", 7), ("3x3", "3x3", 7), ("linear", "3x3 linear", 7), ("narrow", "5x5", 6)):
        counted = summary(KernelNet(10, unit=unit, features=features, layers=2), (1, 8, 8, 1)).params
        norms = 2 * features * (5 if "3x3" in unit else 3)
        weights[name] = counted - 9 * features - norms - 10 * (features + 1)  # without stem, norms and head
    assert weights == {"5x5": 50 * 49, "3x3": 36 * 49, "linear": 36 * 49, "narrow": 50 * 36}
    with pytest.raises(UserError, match="model.unit='7x7' is not one of '5x5', '3x3', '3x3 linear'"):
        KernelNet(10, unit="7x7").init(jax.random.key(0), jnp.zeros((1, 8, 8, 1)))


def test_errors_are_plotted_over_depth():
    measured = {
        f"{kind} {depth}": [{"training error %": depth + s, "test error %": 2.0 * depth} for s in (0, 2)]
        for kind in ("plain", "residual")
        for depth in (20, 8)
    }
    training, test = plot_plain_and_residual(measured | {"one 5x5": [{}]}).axes
    (plain, *_), lines = training.lines, {line.get_label(): line for line in test.lines}
    assert plain.get_xdata().tolist() == [8, 20] and plain.get_ydata().tolist() == [9, 21]
    assert lines["residual"].get_ydata().tolist() == [16, 40]
