"""Probes: how well the frozen features of an image network separate classes, without training the network.

The features are the inputs of its linear classifier. Letters in shapes: N and M images, F features.
"""

from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from scipy.optimize import minimize

from attention_jax.distributed.mesh import find_batch_share, prefetch_batches
from attention_jax.errors import UserError
from attention_jax.kernels.switch import use_standard_numerics
from attention_jax.load import Run
from attention_jax.tasks import get_task
from attention_jax.train.program import Program

_L2 = tuple(10.0**power for power in range(1, -7, -1))  # the larger of two equally good values counts


def compute_features(model: nn.Module, variables: Any, images: jax.Array) -> jax.Array:
    """[B, H, W, C] -> [B, F], the input of the classifier: of the layer `head`, else of the last linear layer.

    Raises UserError for a network without a linear classifier.
    """
    inputs: dict[str | None, jax.Array] = {}

    def keep_input(function: Any, args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        if isinstance(context.module, nn.Dense) and context.method_name == "__call__":
            inputs[context.module.name] = args[0]
        return function(*args, **kwargs)

    with nn.intercept_methods(keep_input):
        model.apply(variables, images)
    found = inputs.get("head", next(reversed(inputs.values()), None))
    if found is None or found.ndim != 2:
        raise UserError(f"{type(model).__name__} has no flax.linen.Dense at its end, whose inputs are the features.")
    return found


@use_standard_numerics()
def read_features(program: Program, run: Run, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns the features [N, F] and the labels [N] of a split, without augmentation; collective.

    The labels come from the data; the network need not know them.
    """
    config, task = program.config.copy_and_resolve_references(), get_task(program.config.task)
    if config.task != "classification":
        raise UserError(f"probes are for runs of classification, and {run.path} is a run of {config.task!r}.")
    with config.unlocked():
        config.model.num_classes = task.source(config, split).num_classes
    loader = task.loader(config, split, find_batch_share(program.mesh), training=False)

    def features(variables: Any, batch: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array, jax.Array]:
        return compute_features(run.model, variables, batch["image"]), batch["label"], batch["weight"]

    compute = jax.jit(features, out_shardings=NamedSharding(program.mesh, PartitionSpec()))
    parts = [jax.device_get(compute(run.variables, batch)) for batch in prefetch_batches(loader.evaluation(), program.mesh)]
    vectors, labels, weight = (np.concatenate([np.asarray(part[i]) for part in parts]) for i in range(3))
    return vectors[weight > 0].astype(np.float32), labels[weight > 0]


def classify_by_neighbours(
    train_NF: np.ndarray, labels_N: np.ndarray, test_MF: np.ndarray, neighbours: int = 20, temperature: float = 0.07
) -> np.ndarray:
    """[N, F], [N], [M, F] -> [M]: the class with most votes of the nearest training features, weighted by exp(cosine / T).

    DINO is evaluated in this way (Caron et al. 2021, arXiv 2104.14294, Section 4.2 and code: 20 neighbours, T = 0.07).
    """
    train, test = (x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12) for x in (train_NF, test_MF))
    number, classes = min(neighbours, len(train)), np.eye(int(labels_N.max()) + 1)
    found = []
    for part in np.array_split(test, -(-len(test) // 1000)):
        cosines = part @ train.T
        nearest = np.argsort(-cosines, axis=1, kind="stable")[:, :number]
        similar = np.take_along_axis(cosines, nearest, 1)
        votes = np.exp((similar - similar[:, :1]) / temperature)  # relative to the nearest one, which cannot overflow
        found.append((votes[..., None] * classes[labels_N[nearest]]).sum(1).argmax(-1))
    return np.concatenate(found)


def fit_linear_probe(train_NF: np.ndarray, labels_N: np.ndarray, l2: float) -> np.ndarray:
    """[N, F], [N] -> [F + 1, K], the weights and, last, the biases of a logistic regression on all examples at once.

    It minimises the mean cross-entropy plus l2 / 2 · |weights|² with L-BFGS, from 0.
    """
    x = np.c_[train_NF, np.ones(len(train_NF), train_NF.dtype)].astype(np.float64)
    targets = np.eye(int(labels_N.max()) + 1)[labels_N]
    shape = x.shape[1], targets.shape[1]
    decay = l2 * np.r_[np.ones(shape[0] - 1), 0.0][:, None]

    def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
        weights = flat.reshape(shape)
        logits = x @ weights
        logits -= logits.max(1, keepdims=True)
        logs = logits - np.log(np.exp(logits).sum(1, keepdims=True))
        gradient = x.T @ (np.exp(logs) - targets) / len(x) + decay * weights
        return float(-(targets * logs).sum() / len(x) + (decay * weights**2).sum() / 2), gradient.ravel()

    return minimize(loss, np.zeros(shape).ravel(), jac=True, method="L-BFGS-B", options={"maxiter": 500}).x.reshape(shape)


def classify_linearly(train_NF: np.ndarray, labels_N: np.ndarray, test_MF: np.ndarray) -> tuple[np.ndarray, float]:
    """[N, F], [N], [M, F] -> ([M], the factor of the penalty), by `fit_linear_probe` on standardised features.

    The factor, between 1e-6 and 10, is the best on every fifth training example after a fit to the others.
    """
    mean, scale = train_NF.mean(0), train_NF.std(0) + 1e-6
    train, test = (train_NF - mean) / scale, (test_MF - mean) / scale
    held_out = np.arange(len(train)) % 5 == 4

    def classify(weights: np.ndarray, vectors: np.ndarray) -> np.ndarray:
        return (vectors @ weights[:-1] + weights[-1]).argmax(-1)

    def score(l2: float) -> float:
        weights = fit_linear_probe(train[~held_out], labels_N[~held_out], l2)
        return float((classify(weights, train[held_out]) == labels_N[held_out]).mean())

    best = max(_L2, key=score)
    return classify(fit_linear_probe(train, labels_N, best), test), best


def measure_probes(program: Program, run: Run, neighbours: int = 20, temperature: float = 0.07) -> dict[str, float]:
    """Measures, for a table, the accuracies (%) of both probes on the evaluation split, fitted to the training split."""
    data = program.config.data
    train, labels = read_features(program, run, data.train_split)
    test, right = read_features(program, run, data.eval_split)
    nearest = classify_by_neighbours(train, labels, test, neighbours, temperature)
    linear, l2 = classify_linearly(train, labels, test)
    return {
        "k-NN probe %": 100 * float((nearest == right).mean()),
        "linear probe %": 100 * float((linear == right).mean()),
        "linear probe's l2": l2,
    }
