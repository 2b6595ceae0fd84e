"""A task is data, network, loss and scores.

A task is an object or a class with the functions of `Task`; each takes the config as its first argument. Its name is a built-in
name, `package.module.name`, or `path/to/file.py:name`. A task may leave out functions that have a body below.
"""

import abc
import functools
import json
import types
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from attention_jax.data.fingerprint import compute_fingerprint
from attention_jax.data.loader import Batch, ImagePlan, Loader
from attention_jax.distributed.mesh import BatchShare, check_batch_size
from attention_jax.errors import UserError
from attention_jax.models.registry import FACTS, create_model, list_model_fields


class BatchLoader(Protocol):
    """Yields this process's rows of the batches of one split; each batch has a "weight" [B], 0 for padding."""

    def training(self, first_step: int, num_steps: int) -> Iterator[Batch]:
        """Yields the batches of the steps after `first_step`, up to and including `num_steps`."""

    def evaluation(self) -> Iterator[Batch]:
        """Yields batches that together hold every example once."""


class ArrayPredictor:
    """Applies the network to arrays without preprocessing."""

    labels: tuple[str, ...] = ()

    def __init__(self, model: nn.Module, variables: dict[str, Any]):
        self._apply = functools.partial(jax.jit(model.apply), variables)

    def preprocess(self, inputs: Any) -> np.ndarray:
        """Returns the inputs as an array."""
        return np.asarray(inputs)

    def predict(self, inputs: Any) -> Any:
        """Returns the network's outputs."""
        return jax.device_get(self._apply(self.preprocess(inputs)))


class Task(Protocol):
    """The functions of a task. Those marked `abc.abstractmethod` are required; most tasks share the others.

    `fields` are the task's own fields in a config, {section: {name: Field}} as in `config/fields.py`.
    """

    fields: Mapping[str, Any] = {}

    # Data

    @abc.abstractmethod
    def source(self, config: ConfigDict, split: str) -> Any:
        """Returns random access to a split: `len(source)` and `source[i] -> {name: array}`, with equal shapes for all i."""

    def unresolved(self, config: ConfigDict) -> list[str]:
        """Returns the fields that `resolve` reads off the training data."""
        return ["data.num_examples"] if config.data.num_examples is None else []

    def resolve(self, config: ConfigDict) -> ConfigDict:
        """Returns a copy with the facts of the data: the number of examples; in other tasks classes and vocabulary."""
        config = config.copy_and_resolve_references()
        if config.data.num_examples is None:
            with config.unlocked():
                config.data.num_examples = len(self.source(config, config.data.train_split))
        return config

    def check_batches(self, config: ConfigDict, mesh: Mesh) -> None:
        """Raises UserError for batches that the devices cannot share."""
        check_batch_size("batch_size", config.batch_size, mesh, config.accumulation)
        check_batch_size("evaluation.batch_size", config.evaluation.batch_size, mesh)

    def steps_per_epoch(self, config: ConfigDict) -> int:
        """Returns the batches in an epoch of a resolved config."""
        return ImagePlan(config.data.num_examples, config.batch_size, config.seed).steps_per_epoch

    def examples_per_step(self, config: ConfigDict) -> float:
        """Returns the mean number of examples in a batch."""
        return config.batch_size

    def batch_shapes(self, config: ConfigDict) -> list[dict[str, jax.ShapeDtypeStruct]]:
        """Returns the shapes of training batches; a step is compiled for each."""
        example = {name: np.asarray(value) for name, value in self.source(config, config.data.train_split)[0].items()}
        example["weight"] = np.ones((), np.float32)
        return [{name: jax.ShapeDtypeStruct((config.batch_size, *x.shape), x.dtype) for name, x in example.items()}]

    def loader(self, config: ConfigDict, split: str, process: BatchShare, training: bool) -> BatchLoader:
        """Returns the loader of one split."""
        return Loader(
            source=self.source(config, split),
            batch_size=config.batch_size if training else config.evaluation.batch_size,
            seed=config.seed,
            transform=lambda example, rng: example,
            collate=lambda batch: batch,
            threads=config.data.threads,
            process=process,
            on_broken=config.data.on_broken,
        )

    def evaluation_loader(self, config: ConfigDict, process: BatchShare, assets: Mapping[str, bytes]) -> BatchLoader:
        """Returns the loader of the evaluation split for a network with these assets, and reports its oddities once."""
        return self.loader(config, config.data.eval_split, process, training=False)

    def fingerprint(self, config: ConfigDict, split: str) -> dict[str, Any]:
        """Returns the fingerprint of a split, see `data/fingerprint.py`; nothing if the task has no `source`."""
        source = self.source(config, split)
        return {} if source is None else compute_fingerprint(source)

    def mix(self, config: ConfigDict, batch: Mapping[str, jax.Array], rng: jax.Array) -> Mapping[str, jax.Array]:
        """Returns a batch for a training step before it is divided, for example after mixup."""
        return batch

    # Network

    def model(self, config: ConfigDict, norm_group_size: int | None = None) -> nn.Module:
        """Returns the network of a resolved config; sets num_classes, vocab_size, dtype and norm_group_size if it has them."""
        fields = config.model.to_dict()
        name = fields.pop("name")
        takes = list_model_fields(name)
        ours = {"norm_group_size": norm_group_size, **{fact: fields.pop(fact, None) for fact in FACTS}}
        if config.precision == "bfloat16":
            ours["dtype"] = "bfloat16"
            if takes is not None and "dtype" not in takes:
                raise UserError(f"config.precision='bfloat16': model {name!r} has no field dtype: give it one, or 'float32'.")
        fields.update({key: value for key, value in ours.items() if value is not None and (takes is None or key in takes)})
        return create_model(name, **fields)

    @abc.abstractmethod
    def example_inputs(self, config: ConfigDict) -> tuple[jax.ShapeDtypeStruct, ...]:
        """Returns the shapes of the network's inputs for a batch of one, to initialise and count."""

    @abc.abstractmethod
    def loss(
        self,
        config: ConfigDict,
        model: nn.Module,
        variables: dict[str, Any],
        batch: Mapping[str, jax.Array],
        rng: jax.Array,
        train: bool,
    ) -> tuple[dict[str, jax.Array], Mapping[str, Any]]:
        """Returns sums over the batch, "loss" and "weight" among them, and the changed collections of variables."""

    # Scores

    @abc.abstractmethod
    def outputs(
        self, config: ConfigDict, model: nn.Module, variables: dict[str, Any], batch: Mapping[str, jax.Array]
    ) -> dict[str, jax.Array]:
        """Returns {name: [B, ...]} for evaluation to collect; "weight" 0 leaves an example out."""

    def metrics(self, config: ConfigDict, outputs: dict[str, np.ndarray]) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """Returns the metrics of all outputs (by default the mean of each), and the outputs to keep; tables read "correct"."""
        means = {name: float(values.astype(np.float64).mean()) for name, values in outputs.items()}
        return means, outputs

    @abc.abstractmethod
    def headline(self, config: ConfigDict) -> str:
        """Returns the metric that chooses the best checkpoint."""

    def lower_is_better(self, config: ConfigDict) -> bool:
        """True if the headline metric is an error."""
        return False

    def correct_means(self, config: ConfigDict) -> str:
        """Returns the name of the mean of "correct", for the head of a table's column."""
        return "accuracy"

    # Runs

    def describe(self, config: ConfigDict) -> dict[str, str]:
        """Returns {name: text} for a run's first lines."""
        return {}

    def assets(self, config: ConfigDict) -> dict[str, bytes]:
        """Returns {file name: bytes} that a checkpoint must carry besides arrays and config."""
        return {}

    def adopt(self, config: ConfigDict, assets: Mapping[str, bytes]) -> None:
        """Uses a loaded checkpoint's assets for its config from now on."""

    def predictor(self, config: ConfigDict, assets: Mapping[str, bytes], model: nn.Module, variables: dict[str, Any]) -> Any:
        """Returns the predictor for `load_run` in a notebook: `labels`, `preprocess(inputs)` and `predict(inputs)`."""
        return ArrayPredictor(model, variables)


class _Completed:
    """A user's task, completed by the shared functions."""

    def __init__(self, own: Any):
        self._own = own

    def __getattr__(self, name: str) -> Any:
        if hasattr(self._own, name):
            return getattr(self._own, name)
        shared = getattr(Task, name)
        return types.MethodType(shared, self) if callable(shared) else shared


def pack_fingerprints(task: Task, config: ConfigDict, *splits: str) -> bytes:
    """Returns a `data.json`, {split: fingerprint}, by default for the training and the evaluation split."""
    splits = splits or (config.data.train_split, config.data.eval_split)
    return json.dumps({split: task.fingerprint(config, split) for split in splits}).encode()


def complete_task(name: str, own: Any) -> Task:
    """Returns a task completed by the shared functions. Raises UserError with the required functions that it lacks."""
    own = own() if isinstance(own, type) else own
    needed = [n for n in vars(Task) if getattr(getattr(Task, n), "__isabstractmethod__", False)]
    if all(hasattr(own, n) for n in ("loader", "resolve", "batch_shapes")):
        needed.remove("source")  # only the shared functions read it
    if missing := [n for n in needed if not hasattr(own, n)]:
        raise UserError(
            f"task {name!r} has no {', '.join(missing)}: give these functions, as attention_jax/tasks/base.py describes them."
        )
    task: Any = _Completed(own)
    return task
