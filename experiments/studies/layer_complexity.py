"""Table 1 of Vaswani et al. 2017, "Why Self-Attention", measured on the layers themselves.

Multiply-adds and dependent operations are counted in traced programs, paths in the zeros of Jacobians; only times and
memory depend on the machine. `experiments/complexity.py` is the table.
"""

import dataclasses
import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from attention_jax.analysis import plots
from attention_jax.models.summary import summary
from experiments.studies.paths import count_longest_chain, count_path_length, find_dependence
from experiments.studies.sequence_layers import Convolution, FullSelfAttention, Recurrent, RestrictedSelfAttention


@dataclasses.dataclass(frozen=True)
class LayerType:
    """A row of the table."""

    make: Callable[[int, int, int], nn.Module]  # (features, width, dilation) -> the layer
    projections: tuple[str, ...] = ()  # last names of modules that take every position by itself, counted apart
    letter: str = ""  # the paper's for the width, "k" or "r"; empty for a layer without one
    widths: tuple[int, ...] = (0,)  # over which powers of it are fitted
    dilated: bool = False  # the layers of a stack have dilations 1, k, k², … below n, and then again from 1

    def variables(self, layer: nn.Module, features: int) -> dict[str, Any]:
        """Draws random weights without compiling an initialisation."""
        shapes = jax.eval_shape(layer.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 1, features), jnp.float32))
        rng = np.random.default_rng(0)
        return jax.tree.map(lambda x: rng.normal(scale=features**-0.5, size=x.shape).astype(np.float32), dict(shapes))

    def dilations(self, length: int, width: int) -> list[int]:
        """Lists the dilations of a stack's layers, to be repeated."""
        if not self.dilated:
            return [1]
        powers = (width**i for i in itertools.count())
        return list(itertools.takewhile(lambda dilation: dilation < max(length, 2), powers))


def _attention(kind: Callable[..., nn.Module], features: int, **fields: Any) -> nn.Module:
    return kind(heads=1, features=features, key_size=features, value_size=features, **fields)


_PROJECTIONS = ("query", "key", "value", "output")
_WIDE = (9, 17, 33)  # a width of k reaches (k - 1)/2 to each side: small ones would bend the fit
LAYER_TYPES = {
    "self-attention": LayerType(lambda d, width, dilation: _attention(FullSelfAttention, d), _PROJECTIONS),
    "recurrent": LayerType(lambda d, width, dilation: Recurrent(d), ("input",)),
    "contiguous convolution": LayerType(lambda d, width, dilation: Convolution(d, width), (), "k", _WIDE),
    "dilated convolution": LayerType(Convolution, (), "k", (3, 5, 9), dilated=True),
    "restricted self-attention": LayerType(
        lambda d, width, dilation: _attention(RestrictedSelfAttention, d, window=width), _PROJECTIONS, "r", _WIDE
    ),
}


def count_layer_macs(kind: LayerType, length: int, features: int, width: int = 0) -> tuple[int, int]:
    """Counts one layer's multiply-adds on one sequence: (what joins positions, the projections)."""
    counts = summary(kind.make(features, width, 1), (1, length, features), depth=9)
    projections = sum(macs for path, (_, macs) in counts.modules.items() if path.split("/")[-1] in kind.projections)
    return counts.macs - projections, projections


def fit_powers(counts: Mapping[Any, float]) -> tuple[float, list[float]]:
    """Fits {(a, b, …): count} -> (c, [α, β, …]) with count ≈ c · a^α · b^β · …, by least squares of logarithms."""
    points, values = np.log(np.array(list(counts), float)), np.log(np.array(list(counts.values()), float))
    solution, *_ = np.linalg.lstsq(np.column_stack([np.ones(len(points)), points]), values)
    return float(np.exp(solution[0])), [float(exponent) for exponent in solution[1:]]


def _powers(counts: Mapping[Any, float], letters: str) -> str:
    """Formats counts as "2.00·n^2.00·d^1.00", without the last letters if all counts have the same value of them."""
    if not any(counts.values()):
        return "none"
    coefficient, exponents = fit_powers(counts)
    return "·".join([f"{coefficient:.2f}", *(f"{letter}^{power:.2f}" for letter, power in zip(letters, exponents))])


def count_sequential_operations(kind: LayerType, length: int, features: int, width: int = 0) -> int:
    """Counts arithmetic operations of one layer that each wait for the one before; see `count_longest_chain`."""
    layer = kind.make(features, width, 1)
    variables = kind.variables(layer, features)
    return count_longest_chain(lambda x: layer.apply(variables, x), jax.ShapeDtypeStruct((1, length, features), jnp.float32))


def _linear(counts: Mapping[int, int]) -> str:
    """Formats {n: count} as "10" or "6n + 3"."""
    slope, start = np.polyfit(list(counts), list(counts.values()), 1)
    return f"{start:.4g}" if abs(slope) < 1e-6 else f"{slope:.4g}n {'-' if start < 0 else '+'} {abs(start):.4g}"


def find_maximum_path_length(kind: LayerType, length: int, width: int = 0, features: int = 4) -> int:
    """Finds how many layers a stack needs until every output position depends on every input position.

    A recurrent layer never sees later positions: there every position must depend on those up to itself, and the path runs
    through the layer's steps, as the paper counts it.
    """
    wanted = np.ones((length, length), bool)
    layer = kind.make(features, width, 1)
    if isinstance(layer, Recurrent):
        return count_path_length(_steps(layer, kind.variables(layer, features), length), np.tril(wanted))
    return count_path_length(itertools.cycle(_layers(kind, length, width, features)), wanted)


def _layers(kind: LayerType, length: int, width: int, features: int) -> Iterator[np.ndarray]:
    """`find_dependence` of each layer of a stack."""
    x_ND = np.random.default_rng(0).normal(size=(length, features))
    for dilation in kind.dilations(length, width):
        layer = kind.make(features, width, dilation)
        yield find_dependence(_on_one_sequence(layer, kind.variables(layer, features)), x_ND)


def _on_one_sequence(layer: nn.Module, variables: Mapping[str, Any]) -> Callable[[jax.Array], jax.Array]:
    return lambda x_ND: layer.apply(variables, x_ND[None])[0]


def _steps(layer: Recurrent, variables: Mapping[str, Any], length: int) -> Iterator[np.ndarray]:
    """Takes the input at every position, then hands on state after state, from all positions at once."""
    x_ND, h_ND, c_ND = np.random.default_rng(0).normal(size=(3, length, layer.features)).astype(np.float32)

    def advance(x: jax.Array, h: jax.Array, c: jax.Array) -> jax.Array:
        return layer.apply(variables, x, (h, c), method=layer.advance)[0]

    yield find_dependence(lambda x: advance(x, h_ND, c_ND), x_ND)
    handed_on = find_dependence(lambda h: advance(x_ND, jnp.pad(h[:-1], ((1, 0), (0, 0))), c_ND), h_ND)
    step = handed_on | np.eye(length, dtype=bool)  # a state that is there stays
    yield from itertools.repeat(step)


def _paths(kind: LayerType, paths: Mapping[tuple[int, int], int]) -> str:
    """Formats {(n, width): layers} as a number, a product of powers, or a multiple of a logarithm for dilated layers."""
    if len(set(paths.values())) == 1:
        return str(next(iter(paths.values())))
    if kind.dilated:
        slope, start = np.polyfit([np.log(n) / np.log(width) for n, width in paths], list(paths.values()), 1)
        return f"{slope:.2f}·log_k(n) {'-' if start < 0 else '+'} {abs(start):.2f}"
    if kind.letter:
        return _powers(paths, f"n{kind.letter}")
    return _powers({(n,): layers for (n, _), layers in paths.items()}, "n")


def time_forward(kind: LayerType, length: int, features: int, width: int, repeats: int) -> tuple[float, float]:
    """Runs a layer on one sequence: (milliseconds, median of `repeats` runs; megabytes XLA plans for temporaries)."""
    layer = kind.make(features, width, 1)
    variables = jax.device_put(kind.variables(layer, features))
    x_BND = jnp.asarray(np.random.default_rng(0).normal(size=(1, length, features)), jnp.float32)
    compiled = jax.jit(layer.apply).lower(variables, x_BND).compile()
    seconds = []
    for _ in range(repeats + 1):
        begin = time.perf_counter()
        jax.block_until_ready(compiled(variables, x_BND))
        seconds.append(time.perf_counter() - begin)
    memory = compiled.memory_analysis()
    return 1e3 * float(np.median(seconds[1:])), memory.temp_size_in_bytes / 1e6 if memory else float("nan")


def measure_layer_type(
    layer: str,
    lengths: Sequence[int],
    features: Sequence[int],
    path_lengths: Sequence[int],
    width: int,
    timed: Sequence[tuple[int, int]],
    repeats: int,
    **others: Any,
) -> dict[str, Any]:
    """Computes a row of the table, and arrays for the figure.

    Args:
        layer: one of `LAYER_TYPES`.
        lengths, features: n and d over which counts are fitted and which are drawn.
        path_lengths: n over which paths are fitted.
        width: k or r of everything that is not fitted over it, and of the paths that are drawn.
        timed: (n, d) at which the layer runs; and over `lengths` with the first of `features`.
        repeats: runs whose median is taken.
        others: arguments of the table's other rows.
    """
    kind = LAYER_TYPES[layer]
    grid = itertools.product(lengths, features, kind.widths)
    counts: dict[tuple[int, ...], tuple[int, int]] = {(n, d, w): count_layer_macs(kind, n, d, w) for n, d, w in grid}
    if not kind.letter:
        counts = {point[:2]: pair for point, pair in counts.items()}
    mixing, projections = ({point: pair[i] for point, pair in counts.items()} for i in (0, 1))
    one_width = {(n, d): count for (n, d, *w), count in projections.items() if w in ([], [kind.widths[0]])}
    chains = {n: count_sequential_operations(kind, n, features[0], width) for n in lengths}
    paths = {(n, w): find_maximum_path_length(kind, n, w) for n in path_lengths for w in kind.widths}
    values: dict[str, Any] = {
        "complexity per layer": _powers(mixing, f"nd{kind.letter}"),
        "its projections": _powers(one_width, "nd"),
        "sequential operations": _linear(chains),
        "maximum path length": _paths(kind, paths),
    }
    ran = {(n, d): time_forward(kind, n, d, width, repeats) for n, d in [*timed, *((n, features[0]) for n in lengths)]}
    for n, d in timed:
        values[f"ms, n={n} d={d}"], values[f"MB, n={n} d={d}"] = ran[n, d]

    drawn = [(n, d, *count_layer_macs(kind, n, d, width)) for n in lengths for d in features]
    return {
        **values,
        "counts": np.array(drawn),
        "times": np.array([(n, ran[n, features[0]][0]) for n in lengths]),
        "paths": np.array([(n, layers) for (n, w), layers in paths.items() if w in (0, width)]).reshape(-1, 2),
        "drawn at": np.array([features[0], width]),
    }


def find_crossing(x: np.ndarray, a: np.ndarray, b: np.ndarray) -> float | None:
    """Finds where a(x) grows past b(x), between points by straight lines on logarithmic axes; None where it does not."""
    order = np.argsort(x)
    x, above = np.log(x[order]), np.log(a[order] / b[order])
    after = int(np.argmax(above >= 0))
    if above[after] < 0 or after == 0:
        return None
    return float(np.exp(np.interp(0, above[after - 1 : after + 1], x[after - 1 : after + 1])))


def plot_layer_complexity(measured: Mapping[str, Sequence[Mapping[str, Any]]]) -> "plots.Figure":
    """Plots self-attention against recurrence in multiply-adds over n/d; time and longest paths of layers over n."""
    measured = {name: rows for name, rows in measured.items() if "paths" in rows[0]}
    figure = plots.make_figure(12, 4.4)
    cost, seconds, paths = figure.subplots(1, 3)
    compared = {label: measured[label][0]["counts"].T for label in ("self-attention", "recurrent") if label in measured}
    for projected, dashes in ((False, "-"), (True, "--")):
        curves = {}
        for i, (label, (n, d, mixing, projections)) in enumerate(compared.items()):
            order = np.argsort(n / d, kind="stable")
            curves[label] = ((mixing + projected * projections) / (n * d**2))[order]
            name = f"{label}, {'with projections' if projected else 'what joins positions'}"
            cost.plot((n / d)[order], curves[label], dashes, marker="o", markersize=3, color=plots.COLOURS[i], label=name)
        if len(curves) == 2:
            at = find_crossing((n / d)[order], *curves.values())
            if at is not None:
                cost.axvline(at, color="#555555", linewidth=0.8, linestyle=dashes)
                what = "complete layers" if projected else "what joins positions"
                cost.set_xlabel(f"{cost.get_xlabel()}\n{what}: equal at n = {at:.3g} d".strip())
    cost.set_title("multiply-adds, in n·d²", fontsize=10)
    cost.set_xlabel(f"n / d\n{cost.get_xlabel()}".strip())
    for i, (name, (values, *_)) in enumerate(measured.items()):
        style = {**plots.choose_style(i), "marker": "o", "markersize": 3, "linewidth": 4 - 0.7 * i}  # each curve shows
        seconds.plot(*values["times"].T, label=name, **style)
        paths.plot(*values["paths"].T, **style)
    d, width = next(iter(measured.values()))[0]["drawn at"]
    seconds.set_title(f"ms of a layer, forward; d = {d}, k = r = {width}", fontsize=10)
    paths.set_title(f"maximum path length; k = r = {width}", fontsize=10)
    for axes in (cost, seconds, paths):
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        plots.style_axes(axes)
    for axes in (seconds, paths):
        axes.set_xlabel("n")
    cost.legend(fontsize=8, frameon=False)
    plots.add_legend(figure, seconds)
    return figure
