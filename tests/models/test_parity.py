"""Our networks, optimizer and average against what PyTorch computed for the same numbers (tests/fixtures).

`tests/peers` holds the PyTorch side and compares with it live.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from attention_jax import tree
from attention_jax.models import create_model
from attention_jax.models.resnet import ResNet
from attention_jax.optim.losses import cross_entropy
from attention_jax.optim.optimizers import make_optimizer, update_average
from attention_jax.optim.schedules import make_schedule
from tests.helpers import parity
from tests.helpers.blocks import quick
from tests.helpers.follow_recipes import follow
from tests.helpers.small import small_config

DECAY_RULES = (("(bias|scale)$", False), (".*", True))


def drawn(model: Any, images: np.ndarray, seed: int) -> dict[str, Any]:
    """Variables of `model` with the value of `parity.draw` at every path."""
    shapes = jax.eval_shape(model.init, jax.random.key(0), images)

    def leaf(path: str, shape: jax.ShapeDtypeStruct) -> np.ndarray:
        return parity.draw(seed, path, shape.shape)

    return {name: tree.map_with_path(leaf, dict(shapes)[name]) for name in ("params", "batch_stats") if name in shapes}


def ours(case: parity.Case, model: Any = None, dtype: type = np.float32) -> parity.Results:
    """What `parity.check` compares, from our networks; `dtype` is of the images and the variables."""
    model = model or ResNet(**case.network, norm_running_var="unbiased")
    images, labels = parity.images(case.seed, *case.image), parity.labels(case.seed)
    images, variables = jax.tree.map(lambda x: np.asarray(x, dtype), (images, drawn(model, images, case.seed)))

    @quick
    def everything(variables: dict[str, Any], images: jax.Array) -> dict[str, Any]:
        def loss(params: Any, train: bool) -> tuple:
            logits, changed = model.apply(
                {**variables, "params": params}, images, train=train, mutable=["batch_stats"] if train else []
            )
            return cross_entropy(logits, labels, case.label_smoothing).sum(), (logits, changed)

        (_, (logits, _)), gradients = jax.value_and_grad(loss, has_aux=True)(variables["params"], False)
        (_, (train_logits, changed)), train_gradients = jax.value_and_grad(loss, has_aux=True)(variables["params"], True)
        return {
            "logits": {"": logits},
            "train_logits": {"": train_logits},
            "gradients": tree.flatten_by_path(gradients),
            "train_gradients": tree.flatten_by_path(train_gradients),
            "statistics": tree.flatten_by_path(changed.get("batch_stats", {})),
        }

    results = jax.device_get(everything(variables, images))
    for kind in ("gradients", "train_gradients"):
        results[kind] = {path: parity.compress(path, value) for path, value in results[kind].items()}
    return results


def our_training(training: parity.Training) -> parity.Results:
    """What `torch_nets.train` gives, from our optimizer, schedule and average."""
    schedule = make_schedule(
        training.schedule, training.learning_rate, training.steps, training.warmup_steps, training.boundaries, **training.shape
    )
    optimizer = make_optimizer(
        training.optimizer, schedule, training.weight_decay, DECAY_RULES, training.momentum, **training.options
    )

    @jax.jit
    def step(params: Any, average: Any, state: Any, gradients: Any, t: jax.Array) -> tuple:
        updates, state = optimizer.update(gradients, state, params)
        params = optax.apply_updates(params, updates)
        return params, update_average(average, params, training.ema_decay, t, training.ema_warmup), state

    params = tree.nest_by_path({path: jnp.asarray(parity.draw(0, path, shape)) for path, shape in training.shapes.items()})
    average, state = params, optimizer.init(params)
    seen = []
    for t in range(training.steps):
        gradients = tree.nest_by_path({path: parity.gradient(path, shape, t) for path, shape in training.shapes.items()})
        params, average, state = step(params, average, state, gradients, jnp.asarray(t))
        seen.append((tree.flatten_by_path(params), tree.flatten_by_path(average)))
    return {
        kind: {path: np.stack([values[i][path] for values in seen]) for path in training.shapes}
        for i, kind in enumerate(("params", "average"))
    }


def our_recipe(recipe: parity.Recipe) -> parity.Results:
    """What `torch_training.follow` gives, from the train step of a config."""
    case, training = recipe.case, recipe.training
    fields = {
        "batch_size": parity.BATCH,
        "total_steps": training.steps,
        "data.image_shape": (*case.image, 3),
        "data.num_examples": 10 * parity.BATCH,
        "data.mean": (0.5,) * 3,
        "data.std": (0.5,) * 3,
        "optimizer.name": training.optimizer,
        "optimizer.momentum": training.momentum,
        "optimizer.nesterov": False,
        "optimizer.weight_decay": training.weight_decay,
        "optimizer.decay_rules": DECAY_RULES,
        "schedule.name": training.schedule,
        "schedule.learning_rate": training.learning_rate,
        "schedule.warmup_steps": training.warmup_steps,
        "loss.label_smoothing": case.label_smoothing,
        "ema.decay": training.ema_decay,
        "ema.warmup": training.ema_warmup,
        "parallel.data": 1,
        **{f"optimizer.{name}": value for name, value in training.options.items()},
        **{f"schedule.{name}": value for name, value in training.shape.items()},
        **{f"model.{name}": value for name, value in case.network.items()},
        "model.norm_running_var": "unbiased",
    }
    return follow(small_config(**fields), recipe, case.seed)


def our_imagenet_logits(name: str) -> np.ndarray:
    """[2, 1000] of a published network."""
    model, images = create_model(name), parity.images(0, *parity.IMAGENET_IMAGE, batch=2)
    return np.asarray(quick(model.apply)(drawn(model, images, 0), images))


@pytest.mark.slow
@pytest.mark.parametrize("name", parity.CASES)
def test_network_equals_frozen_pytorch(name: str) -> None:
    """Logits, every gradient, and the running statistics, in evaluation and in training."""
    theirs = parity.load(name)
    theirs.pop("biased_statistics", None)
    parity.check(ours(parity.CASES[name]), theirs)


def test_biased_running_variance_equals_its_formula() -> None:
    """The fixture has 0.9·old + 0.1·(sum of squares / n) of each layer's inputs."""
    case, theirs = parity.CASES[parity.BIASED], parity.load(parity.BIASED)
    model = ResNet(**case.network, norm_running_var="biased")
    images = parity.images(case.seed, *case.image)
    _, changed = quick(lambda v, x: model.apply(v, x, train=True, mutable=["batch_stats"]))(
        drawn(model, images, case.seed), images
    )
    statistics = tree.flatten_by_path(changed["batch_stats"])
    variances = {path: np.asarray(value) for path, value in statistics.items() if path.endswith("/var")}
    parity.check({"statistics": variances}, {"statistics": theirs["biased_statistics"]})
    assert parity.difference(variances["stem_norm/var"], theirs["statistics"]["stem_norm/var"]) > 5 * parity.STATISTICS


@pytest.mark.parametrize("name", parity.TRAININGS)
def test_optimizer_and_average_equal_frozen_pytorch(name: str) -> None:
    """Momentum, masked decay, clipping, warm-up and schedule, and the average of the weights, step by step."""
    parity.check(our_training(parity.TRAININGS[name]), parity.load(name))


@pytest.mark.slow
@pytest.mark.parametrize("name", parity.RECIPES)
def test_whole_recipe_equals_frozen_pytorch(name: str) -> None:
    """The train step of a config: smoothed loss, clipping, decay, momentum, schedule, averages of weights and statistics."""
    parity.check(our_recipe(parity.RECIPES[name]), parity.load(name))


@pytest.mark.slow
@pytest.mark.parametrize("name", parity.IMAGENET)
def test_whole_network_equals_frozen_pytorch(name: str) -> None:
    """torchvision's and timm's own networks at 64x64."""
    theirs = parity.load("imagenet")["logits"][name]
    assert parity.difference(our_imagenet_logits(name), theirs) < parity.LOGITS
