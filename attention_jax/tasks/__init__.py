"""A task brings model, data and loss together: a module with these functions.

unresolved(config) -> [field]                 that `resolve` will read off the training data
resolve(config) -> config                     with what only the data know: number of classes, vocabulary
check_batches(config, mesh)                   UserError for batches that the devices cannot share
steps_per_epoch(config), examples_per_step(config)
describe(config) -> {name: text}              for a run's first lines
model(config, norm_group_size) -> module
example_inputs(config) -> tuple of shapes     of one example in a batch, to initialise and count
batch_shapes(config) -> [{name: shape}]       of the training batches; a step is compiled for each
loader(config, split, process, training) -> Loader
mix(config, batch, rng) -> batch              a batch before a training step divides it: mixup, CutMix
loss(config, model, variables, batch, rng, train) -> (weighted sums with "loss" and "weight", changed collections)
outputs(config, model, variables, batch) -> {name: [B, ...]}   per example, what evaluation collects; "weight" 0 leaves one out
metrics(config, {name: [N, ...]}) -> ({name: float}, outputs to keep)   from all outputs; "correct" among those kept
headline(config) -> name                      of the metric that chooses the best checkpoint, the higher the better
correct_means(config) -> name                 of the mean of "correct", the head of a table's column: "accuracy"
assets(config) -> {file name: bytes}          what a checkpoint must carry besides arrays and config
adopt(config, assets)                         uses a loaded checkpoint's assets for its config from now on
predictor(config, assets, model, variables) -> Predictor       what `load_run` offers in a notebook
"""

from types import ModuleType

from attention_jax.tasks import classification, translation

TASKS = {"classification": classification, "translation": translation}


def get_task(name: str) -> ModuleType:
    """Returns the task's module."""
    return TASKS[name]
