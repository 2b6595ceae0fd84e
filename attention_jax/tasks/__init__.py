"""The only place where model, data and loss meet. A task is a module with these functions, the config their first argument.

unresolved(config) -> [field]                  that `resolve` will read off the training data, since the config does not say
resolve(config) -> config                     facts that only the data know (number of classes, vocabulary) filled in
check(config, mesh)                           UserError for batches that the devices cannot share
steps_per_epoch(config), examples_per_step(config)
describe(config) -> {name: text}              for a run's first lines
model(config, norm_group_size) -> module
example_inputs(config) -> tuple of shapes     of one example in a batch, to initialise and count
batch_shapes(config) -> [{name: shape}]       of the training batches, each of which a step is compiled for
loader(config, split, process, training) -> Loader
mix(config, batch, rng) -> batch              the whole batch before a training step divides it: mixup, CutMix
loss(config, model, variables, batch, rng, train) -> (weighted sums with "loss" and "weight", changed collections)
outputs(config, model, variables, batch) -> {name: [B, ...]}   per example, what evaluation collects; "weight" 0 leaves one out
metrics(config, {name: [N, ...]}) -> ({name: float}, outputs to keep)   from all outputs; "correct" among those kept
headline(config) -> name                      of the metric that chooses the best checkpoint; better when higher
correct_means(config) -> name                 of the share that the mean of "correct" is, over a table's column: "accuracy"
assets(config) -> {file name: bytes}          what a checkpoint must carry besides arrays and config
adopt(config, assets)                         a loaded checkpoint's assets serve its config from now on
predictor(config, assets, model, variables) -> Predictor       what `load_run` offers in a notebook
"""

from types import ModuleType

from attention_jax.tasks import classification, translation

TASKS = {"classification": classification, "translation": translation}


def get_task(name: str) -> ModuleType:
    """The task's module."""
    return TASKS[name]
