"""The only place where model, data and loss meet. A task is a module with these functions, the config their first argument.

resolve(config) -> config                     facts that only the data know (number of classes, image shape) filled in
model(config, norm_group_size) -> module
example_inputs(config) -> tuple of shapes     of one example in a batch, to initialise and count
loader(config, split, process, training) -> Loader
mix(config, batch, rng) -> batch              the whole batch before a training step divides it: mixup, CutMix
loss(config, model, variables, batch, rng, train) -> (weighted sums with "loss" and "weight", changed collections)
outputs(config, model, variables, batch) -> {name: [B, ...]}   per example, what evaluation collects; "weight" 0 leaves one out
metrics(config, {name: [N, ...]}) -> {name: float}             from all outputs; "accuracy" is better when higher
assets(config) -> {file name: bytes}          what a checkpoint must carry besides arrays and config
predictor(config, assets, forward) -> Predictor                what `load_run` offers in a notebook
"""

from types import ModuleType

from attention_jax.tasks import classification

TASKS = {"classification": classification}


def get_task(name: str) -> ModuleType:
    """The task's module."""
    return TASKS[name]
