"""The reason for dividing by √d_k: what large keys do to a softmax (Vaswani et al. 2017, Section 3.2.1)."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.special import entr, log_softmax  # JAX brings SciPy

from attention_jax.analysis import plots
from attention_jax.load import Run
from attention_jax.train.program import Program
from experiments.studies.head_diversity import collect_attention


def compute_softmax_statistics(logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """[..., n] -> entropy of the softmax in nats [...], and the norm of its Jacobian diag(p) - p pᵀ [...] (Frobenius)."""
    log_p = log_softmax(logits, axis=-1)
    p = np.exp(log_p)
    jacobian = p[..., None] * (np.eye(p.shape[-1]) - p[..., None, :])
    return -(p * log_p).sum(-1), np.linalg.norm(jacobian, axis=(-2, -1))


def _scales(key_size: int) -> dict[str, float]:
    return {"not divided": 1.0, "divided": key_size**-0.5}


def measure_random_softmax(key_size: int, words: int, examples: int) -> dict[str, Any]:
    """Computes a row of the table: softmax(q·k) of `words` queries and keys of `key_size` components from N(0, 1).

    Means and medians are taken over `examples` and their queries.
    """
    rng = np.random.default_rng(key_size)
    q_BTK, k_BSK = rng.normal(size=(2, examples, words, key_size))
    products_BTS = q_BTK @ k_BSK.swapaxes(1, 2)
    values: dict[str, Any] = {"key sizes": np.array([key_size]), "variance of q·k": float(products_BTS.var())}
    found = {name: compute_softmax_statistics(scale * products_BTS) for name, scale in _scales(key_size).items()}
    for name, (entropy, _) in found.items():
        values[f"entropy / log n, {name}"] = float(entropy.mean() / np.log(words))
    for name, (_, gradient) in found.items():
        values[f"gradient, {name}: mean"] = float(gradient.mean())
        values[f"gradient, {name}: median"] = float(np.median(gradient))
    return values


def compute_relative_entropy(weights_NHTS: np.ndarray, keys_NT: np.ndarray) -> np.ndarray:
    """[N, H, T, S] attention, [N, T] number of keys seen -> entropy over the log of that number, [N, T, H]; nan for one key."""
    p = np.asarray(weights_NHTS, np.float64).transpose(0, 2, 1, 3)
    with np.errstate(divide="ignore", invalid="ignore"):
        return entr(p).sum(-1) / np.log(keys_NT)[..., None]


def measure_trained_softmax(program: Program, run: Run, pairs: int = 128) -> dict[str, float]:
    """Measures, for a table, the relative entropy of a trained Transformer's softmax over the first evaluated pairs.

    Mean over layers, heads and queries that see two or more keys. Columns "entropy / log n, encoder", "…, decoder"
    (self-attention) and "…, cross".
    """
    return {
        f"entropy / log n, {kind}": float(
            np.mean([compute_relative_entropy(weights, keys_NT)[queries_NT].mean() for weights in layers])
        )
        for kind, layers, queries_NT, keys_NT in collect_attention(run, pairs)
    }


def plot_softmax_scaling(measured: Mapping[str, Sequence[Mapping[str, Any]]]) -> "plots.Figure | None":
    """Plots entropy and gradient against d_k, divided and not, for random queries and keys; None without such rows."""
    rows = [values for label in measured for values in measured[label] if "key sizes" in values]
    if not rows:
        return None
    sizes = [row["key sizes"][0] for row in rows]
    figure = plots.make_figure(9, 4)
    entropy, gradient = figure.subplots(1, 2)
    for colour, name in zip(plots.COLOURS, _scales(1)):
        style: dict[str, Any] = {"marker": "o", "markersize": 4, "color": colour}
        entropy.plot(sizes, [row[f"entropy / log n, {name}"] for row in rows], label=name, **style)
        for statistic, dashes in (("mean", "-"), ("median", "--")):
            curve = [row[f"gradient, {name}: {statistic}"] for row in rows]
            gradient.plot(sizes, curve, dashes, label=f"{name}, {statistic}", **style)
    entropy.set_title("entropy of the softmax / log n", fontsize=10)
    entropy.set_ylim(0, 1)
    gradient.set_title("gradient: norm of the softmax's Jacobian", fontsize=10)
    gradient.set_yscale("log")
    for axes in (entropy, gradient):
        axes.set_xscale("log", base=2)
        axes.set_xlabel("d_k")
        axes.legend(frameon=False, fontsize=9)
        plots.style_axes(axes)
    return figure
