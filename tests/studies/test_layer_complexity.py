"""What the table of layers over sequences is made from: counts, chains and paths."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attention_jax.errors import UserError
from experiments.studies import layer_complexity
from experiments.studies.layer_complexity import (
    LAYER_TYPES,
    count_layer_macs,
    count_sequential_operations,
    find_crossing,
    find_maximum_path_length,
)
from experiments.studies.paths import count_longest_chain, count_path_length, find_dependence
from experiments.studies.sentence_lengths import compute_short_shares, measure_sentence_lengths
from tests.analysis.test_plots import nothing_is_cut_off

# --- chains ---------------------------------------------------------------------------------------------------------------

X = jax.ShapeDtypeStruct((4, 3), jnp.float32)


def total(x: jax.Array) -> jax.Array:
    """A chain of one operation for each row."""
    return jax.lax.scan(lambda carry, row: (carry + row, carry), jnp.zeros(3), x)[0]


def beside(x: jax.Array) -> jax.Array:
    """The same, with a long way to each row that waits for no other row."""
    return jax.lax.scan(lambda carry, row: (carry + jnp.exp(jnp.sin(jnp.tanh(row))), None), jnp.zeros(3), x)[0]


def unrelated(x: jax.Array) -> jax.Array:
    """Each step by itself."""
    return jax.lax.scan(lambda carry, row: (carry, jnp.exp(jnp.sin(row))), jnp.zeros(3), x)[1]


def alternating(x: jax.Array) -> jax.Array:
    """Two carries that change places: of four steps each grows in two."""
    return jax.lax.scan(lambda carry, row: ((carry[1], carry[0] + row), None), (jnp.zeros(3), jnp.zeros(3)), x)[0]


@jax.custom_vjp
def own_gradient(x: jax.Array) -> jax.Array:
    return jnp.sin(jnp.exp(x))


own_gradient.defvjp(lambda x: (own_gradient(x), x), lambda x, of_y: (of_y,))


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda x: x.T.reshape(2, 6)[:, ::2], 0),  # moves
        (lambda x: x @ jnp.ones((3, 3)) + 1, 2),
        (lambda x: jnp.exp(x).sum() + x, 3),  # the longer of two ways
        (lambda x: x * jnp.sin(jnp.exp(jnp.arange(3.0))), 1),  # what no input reaches comes before
        (lambda x: jax.jit(jnp.sin)(jax.checkpoint(jnp.exp)(x)), 2),
        (lambda x: own_gradient(x) + 1, 3),
        (lambda x: jax.lax.cond(x[0, 0] > 0, lambda y: jnp.sin(jnp.exp(y)), jnp.sin, x), 3),  # chosen first, then the longer
        (lambda x: jax.lax.platform_dependent(x, cpu=lambda x: jnp.sin(jnp.exp(x)), default=jnp.sin), 1),  # XLA's own
        (total, 4),
        (beside, 3 + 4),
        (unrelated, 2),
        (alternating, 2),
        (lambda x: jax.lax.scan(lambda carry, row: (row, None), jnp.sin(x[0]), x)[0], 0),  # forgets
        (lambda x: total(jnp.exp(x)) + jnp.sin(x[0]), 1 + 4 + 1),
        (lambda x: jax.lax.scan(lambda c, _: (total(x + c), None), jnp.zeros(3), None, length=5)[0], 5 * (1 + 4)),
    ],
)
def test_longest_chain(function, expected):
    assert count_longest_chain(function, X) == expected


def test_a_loop_without_a_known_end_has_no_chain():
    with pytest.raises(UserError, match="while loop, whose number of steps is not known"):
        count_longest_chain(lambda x: jax.lax.while_loop(lambda y: y[0, 0] < 1, lambda y: y + 1, x), X)


# --- paths ----------------------------------------------------------------------------------------------------------------


def test_dependence_is_the_sparsity_of_the_jacobian():
    x = np.random.default_rng(0).normal(size=(5, 2))
    lagged = find_dependence(lambda x: jnp.concatenate([jnp.zeros((1, 2)), x[:-1]]) @ jnp.ones((2, 3)), x)
    np.testing.assert_array_equal(lagged, np.eye(5, k=-1, dtype=bool))
    # The gradients of a softmax's outputs add up to nothing.
    turned = find_dependence(lambda x: jax.nn.softmax(x[::-1]), x)
    np.testing.assert_array_equal(turned, np.eye(5, dtype=bool)[::-1])


def test_path_length_counts_layers_until_all_that_is_wanted_is_connected():
    n = 9
    everything, neighbours = np.ones((n, n), bool), np.tri(n, k=1, dtype=bool) & ~np.tri(n, k=-2, dtype=bool)
    assert count_path_length([everything], everything) == 1
    assert count_path_length(itertools.repeat(neighbours), everything) == n - 1
    assert count_path_length(itertools.repeat(neighbours), neighbours) == 1
    with pytest.raises(UserError, match="never connect"):
        count_path_length(itertools.repeat(np.tri(n, dtype=bool)), everything, limit=50)
    with pytest.raises(UserError, match="never connect"):
        count_path_length([neighbours], everything)


# --- the layers of the table ----------------------------------------------------------------------------------------------


def test_multiply_adds_of_the_layers():
    n, d, w = 36, 8, 9
    counted = {name: count_layer_macs(kind, n, d, w) for name, kind in LAYER_TYPES.items()}
    projections = 4 * n * d * d
    assert counted == {
        "self-attention": (2 * n * n * d, projections),
        "recurrent": (4 * n * d * d, 4 * n * d * d),
        "contiguous convolution": (w * n * d * d, 0),
        "dilated convolution": (w * n * d * d, 0),
        "restricted self-attention": (2 * (2 * w - 1) * n * d, projections),
    }


def test_only_a_recurrence_grows_with_the_sequence():
    found = {name: [count_sequential_operations(kind, n, 4, 3) for n in (5, 9, 40)] for name, kind in LAYER_TYPES.items()}
    short, longer, long = found.pop("recurrent")
    step = (longer - short) // 4
    assert step > 1 and long - longer == 31 * step
    assert all(len(set(chains)) == 1 for chains in found.values()), found


@pytest.mark.slow
@pytest.mark.parametrize("name", LAYER_TYPES)
def test_path_lengths_are_those_of_real_stacks(name):
    """The stack that is said to connect everything does, by its own Jacobian; one layer less does not."""
    n, width, kind = 7, 3, LAYER_TYPES[name]
    length = find_maximum_path_length(kind, n, width)
    reach = -(-2 * (n - 1) // (width - 1))
    expected = {"self-attention": 1, "recurrent": n, "dilated convolution": 4}
    assert length == expected.get(name, reach)
    if name == "recurrent":  # its path runs through one layer
        (layer,) = stack = [kind.make(4, 0, 1)]
        wanted = np.tri(n, dtype=bool)
    else:
        dilations = itertools.cycle(kind.dilations(n, width))
        stack = [kind.make(4, width, next(dilations)) for _ in range(length)]
        wanted = np.ones((n, n), bool)

    def through(layers: list, x: jax.Array) -> jax.Array:
        for layer in layers:
            x = 3 * layer.apply(kind.variables(layer, 4), x[None])[0]  # of a size that does not underflow
        return x

    x = np.random.default_rng(0).normal(size=(n, 4))
    np.testing.assert_array_equal(find_dependence(lambda x: through(stack, x), x), wanted)
    if len(stack) > 1:
        assert not find_dependence(lambda x: through(stack[:-1], x), x).all()


def test_dilated_layers_reach_as_a_logarithm():
    kind = LAYER_TYPES["dilated convolution"]
    assert kind.dilations(27, 3) == [1, 3, 9] and kind.dilations(28, 3) == [1, 3, 9, 27]
    assert [find_maximum_path_length(kind, n, 3) for n in (9, 27)] == [4, 6]  # two rounds: paths near the ends must stay inside


def test_powers_and_lines_are_found():
    sizes = list(itertools.product((8, 16, 64), (3, 5)))
    coefficient, exponents = layer_complexity.fit_powers({(n, d): 3 * n**2 / d for n, d in sizes})
    assert [coefficient, *exponents] == pytest.approx([3, 2, -1])
    assert layer_complexity._powers({(n, d): 3 * n**2 * d for n, d in sizes}, "nd") == "3.00·n^2.00·d^1.00"
    assert layer_complexity._linear({4: 11, 8: 11}) == "11" and layer_complexity._linear({4: 9, 8: 17, 10: 21}) == "2n + 1"


def test_crossing():
    x = np.array([4.0, 1, 2, 8])
    assert find_crossing(x, 2 * x, np.full(4, 6.0)) == pytest.approx(3)
    assert find_crossing(x, x, np.full(4, 4.0)) == pytest.approx(4)
    assert find_crossing(x, x, np.full(4, 9.0)) is None and find_crossing(x, x, np.full(4, 0.5)) is None


@pytest.fixture(scope="module")
def measured():
    arguments = dict(lengths=(8, 16, 32), features=(8, 16), path_lengths=(9, 33), width=9, timed=((8, 16),), repeats=1)
    return {
        name: layer_complexity.measure_layer_type(name, **arguments)
        for name in ("self-attention", "recurrent", "contiguous convolution")
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("self-attention", ("2.00·n^2.00·d^1.00", "4.00·n^1.00·d^2.00", "11", "1")),
        ("recurrent", ("4.00·n^1.00·d^2.00", "4.00·n^1.00·d^2.00", "8n + 1", "1.00·n^1.00")),
        ("contiguous convolution", ("1.00·n^1.00·d^2.00·k^1.00", "none", "2", "1.73·n^0.89·k^-0.80")),
    ],
)
def test_a_line_of_the_table(measured, name, expected):
    columns = ("complexity per layer", "its projections", "sequential operations", "maximum path length")
    assert tuple(measured[name][column] for column in columns) == expected
    assert measured[name]["ms, n=8 d=16"] > 0 <= measured[name]["MB, n=8 d=16"]


def test_the_picture_says_where_self_attention_costs_as_much_as_a_recurrence(measured):
    figure = layer_complexity.plot_layer_complexity({name: [line] for name, line in measured.items()})
    cost, seconds, paths = figure.axes
    assert cost.get_xlabel() == "n / d\nwhat joins positions: equal at n = 2 d\ncomplete layers: equal at n = 2 d"
    ratio, whole = cost.lines[3].get_data()  # after two curves of what joins positions and the line where they meet
    np.testing.assert_allclose(whole, 4 + 2 * ratio)
    assert [line.get_label() for line in seconds.lines] == list(measured)
    assert [line.get_ydata().tolist() for line in paths.lines] == [[1, 1], [9, 33], [2, 8]]
    assert nothing_is_cut_off(figure)


def test_texts_that_are_shorter_than_a_model_is_wide():
    shares = compute_short_shares(np.array([3, 4, 4, 5]), (4, 5, 8))
    assert shares == {"n < d = 4, %": 25, "n < d = 5, %": 75, "n < d = 8, %": 100}
    found = measure_sentence_lengths(("everyday",), (4, 512), repeats=1)
    assert found["texts"] == "424" and found["n < d = 512, %"] == 100 and 3 < found["mean n"] < found["longest n"] < 40
    joined = measure_sentence_lengths(("quarter",), (512,), join=3)
    assert joined["mean n"] > 2.5 * measure_sentence_lengths(("quarter",), (512,))["mean n"]
