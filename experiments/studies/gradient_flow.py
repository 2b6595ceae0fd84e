"""Norm of the loss's gradient at every convolution of a network, before and during training.

Without normalisation the gradients of a plain network become too small to train with as it gets deeper, and residual
connections prevent that. With batch normalisation they do not vanish in plain networks either, and yet deep ones fit even
the training data worse, a difficulty of optimisation (He et al. 2016, Section 4.1).
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from attention_jax import tree
from attention_jax.analysis import plots
from attention_jax.load import Run, load_run
from attention_jax.train import restore
from attention_jax.train.program import Program
from experiments.studies.compiling import jit_quickly


def list_convolutions(program: Program) -> list[str]:
    """Returns the paths of the kernels of all convolutions, in the order in which the network uses them."""
    used: dict[str, None] = {}

    def note(call: Callable[..., Any], args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        used["/".join((*context.module.path, "kernel"))] = None
        return call(*args, **kwargs)

    with nn.intercept_methods(note):
        inputs = program.task.example_inputs(program.config)
        params = jax.eval_shape(lambda *x: program.model.init(jax.random.key(0), *x), *inputs)["params"]
    kernels = tree.flatten_by_path(params)
    return [path for path in used if path in kernels and kernels[path].ndim == 4]


@functools.lru_cache(1)
def _gradient(program: Program) -> Callable[..., dict[str, jax.Array]]:
    """(variables, batch, rng) -> norms by path, compiled once for the seeds of a row."""

    def norms(variables: dict[str, Any], batch: dict[str, jax.Array], rng: jax.Array) -> dict[str, jax.Array]:
        def loss(params: Any) -> jax.Array:
            full = {**variables, "params": params}
            sums, _ = program.task.loss(program.config, program.model, full, batch, rng, train=True)
            return sums["loss"] / sums["weight"]

        grads = tree.flatten_by_path(jax.grad(loss)(variables["params"]))
        return {path: jnp.sqrt(jnp.square(grad.astype(jnp.float32)).sum()) for path, grad in grads.items()}

    return jit_quickly(norms)


def compute_gradient_norms(program: Program, variables: Mapping[str, Any], batch: Mapping[str, Any]) -> dict[str, float]:
    """Returns the Euclidean norm of the gradient of the mean loss with respect to each parameter, `{path: norm}`.

    `variables` are "params" and "batch_stats"; batch norm takes its statistics from the loader's `batch`, as in training.
    """
    norms = _gradient(program)(dict(variables), dict(batch), jax.random.key(0))
    return {path: float(norm) for path, norm in jax.device_get(norms).items()}


def measure_gradient_flow(program: Program, run: Run) -> dict[str, Any]:
    """Measures, for a table, the gradient norms at the first convolution before and after training.

    For the figure: `gradients` [T, L] at each of L convolutions for the run's first batch, at initialisation and at every
    checkpoint that is left, and `gradient_steps` [T].
    """
    loader: Any = program.task.loader(run.config, run.config.data.train_split, (0, 1), training=True)
    batch = loader.training_batch(0)
    paths = list_convolutions(program)

    def norms(variables: Mapping[str, Any]) -> list[float]:
        found = compute_gradient_norms(program, variables, batch)
        return [found[path] for path in paths]

    rows = {0: norms(program.init(np.uint32(run.config.seed)).variables())}
    for step, name in restore.list_checkpoints(run.path.parent.parent):
        rows[step] = norms(load_run(run.path.with_name(name), "params").variables)
    gradients = np.array(list(rows.values()))
    return {
        "gradient, untrained": gradients[0, 0],
        "gradient, trained": gradients[-1, 0],
        "gradients": gradients,
        "gradient_steps": np.array(list(rows)),
    }


def plot_gradient_flow(measured: Mapping[str, Sequence[Mapping[str, np.ndarray]]], columns: int = 4) -> "plots.Figure":
    """Plots a panel for each row of a table: the norm at every convolution, at initialisation and at the checkpoints.

    Lines are geometric means over seeds. All panels share their axes, so that rows of a panel grid can be compared.
    """
    rows = -(-len(measured) // columns)
    figure = plots.make_figure(2.9 * columns + 0.6, 2.1 * rows + 0.9)
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel()
    for axes in panels[len(measured) :]:
        axes.axis("off")
    for axes, (label, seeds) in zip(panels, measured.items(), strict=False):
        # A gradient of exactly 0 cannot be drawn on a logarithmic axis.
        norms = np.exp(np.mean([np.log(np.maximum(seed["gradients"], 1e-30)) for seed in seeds], axis=0))
        steps = seeds[0]["gradient_steps"]
        for i, (step, line) in enumerate(zip(steps, norms, strict=True)):
            share = step / max(steps[-1], 1)
            start = {"color": "black", "linewidth": 2, "label": "at initialisation"}
            later = {"color": plots.COLOURS[0], "alpha": 0.3 + 0.7 * share, "label": "at checkpoints, darker with time"}
            axes.plot(np.arange(1, len(line) + 1), line, **(later if i else start))
        axes.set_yscale("log")
        axes.set_title(label, fontsize=10)
        plots.style_axes(axes)
    figure.supxlabel("convolution, from the image to the classifier", fontsize=10)
    figure.supylabel("norm of the loss's gradient", fontsize=10)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles[:2], labels[:2], loc="outside upper center", ncols=2, frameon=False, fontsize=9)
    return figure
