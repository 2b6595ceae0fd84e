"""The same optimizers, schedules, clipping and averages in PyTorch: `torch.optim` where it has them, else their formulas."""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from tests.helpers import parity
from tests.peers import torch_nets

Weights = Mapping[str, torch.Tensor]


def learning_rate(training: parity.Training, step: int) -> float:
    """A linear warm-up that reaches the peak with its last step, then a step at half-way, a cosine or a straight line."""
    peak, start, final = training.learning_rate, training.shape.get("warmup_start", 0), training.shape.get("final_share", 0)
    if step < training.warmup_steps:
        return start + (peak - start) * (step + 1) / training.warmup_steps
    if training.schedule == "step":
        falls = sum(step >= round(share * training.steps) for share in training.boundaries)
        return peak * training.shape.get("factor", 0.1) ** falls
    done = (step - training.warmup_steps) / (training.steps - training.warmup_steps)
    left = 0.5 * (1 + np.cos(np.pi * done)) if training.schedule == "cosine" else 1 - done
    return peak * (final + (1 - final) * left)


def optimizer(training: parity.Training, weights: Weights) -> Callable[[int], float]:
    """`apply(step)` changes the weights by their gradients and returns the gradients' norm before clipping."""
    options = dict(training.options)
    clip_norm, decoupled = options.pop("clip_norm", 0), options.pop("decay", "l2") == "decoupled"
    decayed = {path: training.weight_decay if training.decays(path) else 0.0 for path in weights}
    groups = [{"params": [value], "weight_decay": 0 if decoupled else decayed[path]} for path, value in weights.items()]
    by_formula = options.get("rate_in_velocity") or options.get("rmsprop") in ("tensorflow", "keras")
    advance = _with_rate_in_velocity(training, weights, decayed) if by_formula else _of_torch(training, groups, options)

    def apply(step: int) -> float:
        norm = torch.nn.utils.clip_grad_norm_(list(weights.values()), clip_norm or float("inf"))
        with torch.no_grad():
            rate = learning_rate(training, step)
            if decoupled:
                for path, value in weights.items():
                    value.mul_(1 - rate * decayed[path])
            advance(rate)
        return float(norm)

    return apply


def _of_torch(training: parity.Training, groups: list[dict], options: Mapping[str, Any]) -> Callable[[float], None]:
    if training.optimizer == "adamw":
        made = torch.optim.AdamW(groups, betas=(options["b1"], options["b2"]), eps=options["eps"])
    elif training.optimizer == "rmsprop":
        made = torch.optim.RMSprop(groups, alpha=options["b2"], eps=options["eps"], momentum=training.momentum)
    else:
        made = torch.optim.SGD(groups, momentum=training.momentum, nesterov=options.get("nesterov", False))

    def advance(rate: float) -> None:
        for group in made.param_groups:
            group["lr"] = rate
        made.step()

    return advance


def _with_rate_in_velocity(
    training: parity.Training, weights: Weights, decayed: Mapping[str, float]
) -> Callable[[float], None]:
    """v = m·v + lr·g, w = w - v; RMSProp divides g by sqrt(s + eps), where s starts at 1 in TensorFlow and at 0 in Keras."""
    options = training.options
    start = 1.0 if options.get("rmsprop") == "tensorflow" else 0.0
    second = {path: torch.full_like(value, start) for path, value in weights.items()}
    velocity = {path: torch.zeros_like(value) for path, value in weights.items()}

    def advance(rate: float) -> None:
        for path, value in weights.items():
            g = value.grad + decayed[path] * value
            if training.optimizer == "rmsprop":
                second[path] = options["b2"] * second[path] + (1 - options["b2"]) * g**2
                g = g / torch.sqrt(second[path] + options["eps"])
            velocity[path] = training.momentum * velocity[path] + rate * g
            value.sub_(velocity[path])

    return advance


def average_decay(training: parity.Training, step: int) -> float:
    """d of w̄ <- d·w̄ + (1 - d)·w."""
    return min(training.ema_decay, (1 + step) / (10 + step)) if training.ema_warmup else training.ema_decay


def train(training: parity.Training) -> parity.Results:
    """{"params" | "average": {path: [steps, *shape]}} of weights whose gradients are drawn."""
    weights = {
        path: nn.Parameter(torch.from_numpy(parity.draw(0, path, shape)).double()) for path, shape in training.shapes.items()
    }
    average = {path: value.detach().clone() for path, value in weights.items()}
    apply = optimizer(training, weights)
    results: parity.Results = {"params": {path: [] for path in weights}, "average": {path: [] for path in weights}}
    for step in range(training.steps):
        for path, value in weights.items():
            value.grad = torch.from_numpy(parity.gradient(path, value.shape, step)).double()
        apply(step)
        d = average_decay(training, step)
        for path, value in weights.items():
            average[path] = d * average[path] + (1 - d) * value.detach()
            results["params"][path].append(value.detach().numpy().copy())
            results["average"][path].append(average[path].numpy().copy())
    return {kind: {path: np.stack(value) for path, value in values.items()} for kind, values in results.items()}


class Followed(Protocol):
    """The first steps of a training run: `parity.Recipe` or `parity_recipes.Family`."""

    training: parity.Training
    steps: int

    @property
    def label_smoothing(self) -> float:
        """Of the loss."""

    def batch(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Images and labels of one step."""


def follow(recipe: parity.Recipe) -> tuple[parity.Results, float]:
    """Losses, gradient norms and rates of the steps, what they changed in the end, and how near a ReLU came to its kink."""
    net = torch_nets.fill(torch_nets.Network(recipe.case.network, recipe.case.dilations).double(), recipe.case.seed)
    paths = torch_nets.our_paths(net)
    return follow_network(recipe, net, lambda name, value: {paths[name]: torch_nets.to_ours(paths[name], value)})


def follow_network(
    recipe: Followed, net: nn.Module, our_arrays: Callable[[str, np.ndarray], dict[str, np.ndarray]]
) -> tuple[parity.Results, float]:
    """The same of a network that has its weights, in its precision; `our_arrays` names one of its arrays as ours."""
    training, dtype = recipe.training, next(net.parameters()).dtype
    net.train()
    names = {name: next(iter(our_arrays(name, value.detach().numpy()))) for name, value in net.named_parameters()}
    apply = optimizer(training, {names[name]: value for name, value in net.named_parameters()})
    kept = {name: value for name, value in net.state_dict().items() if value.is_floating_point()}
    before = {name: value.clone() for name, value in kept.items()}
    average = {name: value.clone() for name, value in kept.items()}
    seen: dict[str, list[float]] = {"loss": [], "grad_norm": [], "learning_rate": []}
    nearest = float("inf")
    for step in range(recipe.steps):
        images, labels = recipe.batch(step)
        net.zero_grad()
        with torch_nets._watched(net, (nn.ReLU,)) as into_relu:
            logits = net(torch_nets.nchw(images).to(dtype))
        nearest = min([nearest, *(x.abs().min().item() for inputs in into_relu.values() for x in inputs)])
        loss = F.cross_entropy(logits, torch.from_numpy(labels).long(), label_smoothing=recipe.label_smoothing)
        loss.backward()
        seen["loss"].append(loss.item())
        seen["grad_norm"].append(apply(step))
        seen["learning_rate"].append(learning_rate(training, step))
        d = average_decay(training, step)
        for name, value in kept.items():
            average[name] = d * average[name] + (1 - d) * value.detach()

    def changes(after: Weights) -> dict[str, np.ndarray]:
        found = {}
        for name, value in after.items():
            for path, change in our_arrays(name, (value.detach() - before[name]).numpy()).items():
                found[path] = parity.compress(path, change)
        return found

    results = {kind: {"": np.array(values)} for kind, values in seen.items()}
    averages = {"average_changes": changes(average)} if training.ema_decay else {}
    return {**results, "changes": changes(kept), **averages}, nearest
