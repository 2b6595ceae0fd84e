"""Opens trained runs in a notebook, on any machine with one call, and makes a run from weights."""

import dataclasses
import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from attention_jax import storage, tree
from attention_jax.config import defaults
from attention_jax.config.code import CODE, bind_code, collect_code, read_code, record_code
from attention_jax.config.config import complete_config, config_from_json, config_to_json
from attention_jax.data.images.preprocessing import Preprocessing
from attention_jax.errors import UserError
from attention_jax.kernels.switch import use_standard_numerics
from attention_jax.models.registry import describe_model, list_origins
from attention_jax.tasks import get_task
from attention_jax.tasks.examples import read_examples
from attention_jax.train import metrics, remote_runs, restore
from attention_jax.train.checkpoint import Checkpoints
from attention_jax.train.outcomes import Evaluation, read_evaluation
from attention_jax.train.step import State
from attention_jax.train.workdir import CONFIG, read_config


@dataclasses.dataclass(frozen=True)
class Run:
    """A trained run.

    Attributes:
        path, step: path and step of the checkpoint.
        config: the run's config; names of the user's code lead to the copies that the run keeps.
        model, variables: for `model.apply(variables, inputs)`; `model` raises UserError if its code is not trusted.
        weights: the kind of the weights in `variables`, "ema" or "params".
        assets: {file name: bytes} saved with the checkpoint, such as labels or a tokenizer.
        metrics: the log's lines up to `step`, each {"step": ..., name: value}.
        untrusted: code that may not run, because it is not trusted.
    """

    path: Path
    step: int
    config: ConfigDict
    model: nn.Module = dataclasses.field(repr=False)
    variables: dict[str, Any]
    weights: str
    assets: dict[str, bytes]
    metrics: list[dict[str, Any]]
    untrusted: tuple[str, ...] = ()

    def __getattr__(self, name: str) -> Any:
        """Raises UserError for the network of a run with untrusted code, which is not loaded."""
        if name == "model" and self.untrusted:
            raise UserError(
                f"{self.path}: this run needs {', '.join(self.untrusted)}, which you have not trained with on this machine: "
                "read it (run.assets has what is saved), then give load_run(..., trust_code=True) or --trust-code to run it."
            )
        raise AttributeError(f"a Run has no {name!r}")

    def __getstate__(self) -> dict[str, Any]:
        """Returns everything for a pickle but the predictor, whose compiled programs cannot be pickled."""
        return {name: value for name, value in vars(self).items() if name != "predictor"}

    @functools.cached_property
    def predictor(self) -> Any:
        """Predicts for raw inputs; for a translation run, a `Translator`."""
        model = self.model  # raises UserError that says all that is not trusted
        return get_task(self.config.task).predictor(self.config, self.assets, model, self.variables)

    @property
    def labels(self) -> list[str]:
        """Names of the classes or the tokens."""
        return self.predictor.labels

    def preprocess(self, inputs: Any) -> np.ndarray:
        """Converts raw inputs (uint8 images [N, H, W, C], sentences) to inputs of `model.apply`, as evaluation does."""
        return self.predictor.preprocess(inputs)

    @use_standard_numerics()
    def predict(self, inputs: Any, **options: Any) -> Any:
        """Returns predictions for raw inputs.

        For uint8 images [N, H, W, C]: `.labels`, `.classes` [N] and `.probabilities` [N, K]. For sentences: a list of
        translations with `.text`; options change the config's `search`, as in `beam=5, n_best=3`.
        """
        return self.predictor.predict(inputs, **options)

    def score(self, sources: Any, targets: Any, **options: Any) -> list[Any]:
        """Returns `.score`, `.log_prob`, `.tokens` and `.log_probs` of given translations; see `Translator.score`."""
        return self._get_translator("score").score(sources, targets, **options)

    def align(self, sources: Any, targets: Any, **options: Any) -> list[list[tuple[int, int]]]:
        """Returns pairs (source word, target word) by the attention with which targets are written; see `Translator.align`."""
        return self._get_translator("align").align(sources, targets, **options)

    def _get_translator(self, name: str) -> Any:
        if not hasattr(self.predictor, name):
            raise UserError(f"{self.path}: {name} takes a run of the task 'translation', not of {self.config.task!r}.")
        return self.predictor

    def read_examples(self, number: int | None = None) -> tuple[Any, Any]:
        """Returns inputs of the evaluation split as `predict` takes them, and the right answers: see `read_examples`."""
        return read_examples(self.config, self.assets, number)

    @functools.cached_property
    def evaluation(self) -> Evaluation:
        """The evaluation of this step that training made and kept, example by example. Raises UserError if there is none."""
        return read_evaluation(self.path.parent.parent, self.step, self.config, self.assets)

    def read_evaluation(self, file: str | Path) -> Evaluation:
        """Opens an evaluation of this step that `./launch.sh evaluate --predictions=FILE.npz` wrote."""
        return read_evaluation(Path(file).expanduser(), self.step, self.config, self.assets)

    def curve(self, name: str) -> tuple[list[int], list[float]]:
        """Returns (steps, values) of a logged metric, e.g. "eval/accuracy". Raises UserError if it was never logged."""
        lines = [line for line in self.metrics if name in line]
        if not lines:
            known = sorted({key for line in self.metrics for key in line} - {"step"})
            raise UserError(f"{self.path}: {name!r} was not logged; the log has {', '.join(known) or 'no lines'}.")
        return [line["step"] for line in lines], [line[name] for line in lines]


@use_standard_numerics()
def load_run(path: str | Path, weights: str | None = None, average: int = 1, trust_code: bool = False) -> Run:
    """Opens a run: network, weights, config, assets, metrics, and `predict`.

    The user's code comes from the run. Unless this machine has trained with it, everything but the network can be read.

    Args:
        path: a workdir (its newest good checkpoint), or the folder of one step; a remote one is copied first.
        weights: "ema" or "params"; None takes the average if there is one.
        average: n takes the mean of the newest n checkpoints' weights (Vaswani et al. 2017, Section 6.1: 5 or 20).
        trust_code: True runs the code that the run came with, unchecked.

    Raises:
        UserError: no checkpoint, one that cannot be read, no such weights, or too few checkpoints for the average.
    """
    path = remote_runs.download_run(str(path), average) if storage.is_remote(path) else path
    state, about, folder = restore.read_newest(path)
    code = read_code(about["assets"].get(CODE))
    config, untrusted = bind_code(config_from_json(about["config"]), code, list_origins(), trust_code)
    has_ema = state.get("ema") is not None
    weights = weights or ("ema" if has_ema else "params")
    if weights not in ("ema", "params") or (weights == "ema" and not has_ema):
        raise UserError(f"weights={weights!r}: {folder} has {'ema and params' if has_ema else 'params only'}.")
    workdir = folder.parent.parent
    variables = _mean(workdir, about["step"], weights, average) if average > 1 else _variables(state, weights)
    lines = metrics.read_log(workdir, about)
    model: Any = None if untrusted else get_task(config.task).model(config)
    run = Run(folder, about["step"], config, model, variables, weights, about["assets"], lines, tuple(untrusted))
    if untrusted:
        object.__delattr__(run, "model")
    return run


def find_best_checkpoint(workdir: str | Path) -> tuple[Path, str]:
    """Returns the folder of the kept checkpoint with the best headline metric, for `load_run`, and a sentence about it.

    Of equal ones the latest. Raises UserError for a remote workdir, and for one without an evaluated checkpoint.
    """
    config = None if storage.is_remote(workdir) else read_config(Path(workdir).expanduser())
    if config is None:
        raise UserError(f"{workdir}: the best checkpoint is looked for in a run's local workdir: give one, or a step's folder.")
    folder, task = Path(workdir).expanduser() / restore.FOLDER, get_task(config.task)
    kept = restore.list_steps(folder.parent)
    lines = [line for line in metrics.read_log(folder.parent) if "headline" in line and line["step"] in kept]
    if not lines:
        raise UserError(f"{workdir}: none of the checkpoints {', '.join(map(str, kept)) or '(none)'} was evaluated.")
    sign = -1 if task.lower_is_better(config) else 1
    best = max(lines, key=lambda line: (sign * line["headline"], line["step"]))
    split = config.data.eval_split
    text = f"best: step {best['step']} with {task.headline(config)}={best['headline']:.6g} on split {split!r}"
    if split.startswith("test"):
        text += ", where it was chosen and must not be judged: choose with data.eval_split='validation'"
    return folder / str(best["step"]), f"{text}."


def _variables(state: dict[str, Any], weights: str) -> dict[str, Any]:
    return state["ema"] if weights == "ema" else {name: state.get(name) or {} for name in ("params", "batch_stats")}


def _mean(workdir: Path, last: int, weights: str, number: int) -> dict[str, Any]:
    """Returns the mean of the weights of the newest checkpoints up to step `last`."""
    names = [name for step, name in restore.list_checkpoints(workdir) if step <= last][-number:]
    if len(names) < number:
        raise UserError(
            f"{workdir}: average={number} but there are {len(names)} checkpoints up to step {last}: give a smaller number, or "
            "train with a larger checkpoint.keep_last."
        )
    states = (restore.read_newest(workdir / restore.FOLDER / name)[0] for name in names)
    total = None
    for state in states:  # one at a time: twenty large ones would not fit
        part = jax.tree.map(lambda x: np.asarray(x, np.float64), _variables(state, weights))
        total = part if total is None else jax.tree.map(np.add, total, part)
    return jax.tree.map(lambda x: (x / number).astype(np.float32), total)


def load_checkpoint(
    path: str | Path, weights: str | None = None, average: int = 1, trust_code: bool = False
) -> tuple[nn.Module, dict[str, Any]]:
    """Opens a run as (model, variables), ready for `model.apply(variables, inputs)`; arguments as in `load_run`."""
    run = load_run(path, weights, average, trust_code)
    return run.model, run.variables


def save_run(
    model: nn.Module,
    variables: Mapping[str, Any],
    path: str | Path,
    preprocessing: Preprocessing | Mapping[str, Any],
    labels: Sequence[str] = (),
) -> Path:
    """Makes a run from any weights of an image network, for `load_run`, `evaluate` and `init_from`; returns its workdir.

    It has no data: `./launch.sh evaluate --workdir=PATH --config.data.source=folder --config.data.args.path=DIR`.

    Args:
        variables: "params", and "batch_stats" if the network has them.
        path: a folder that does not exist.
        preprocessing: `aj.preprocessing(name)`, whose test size images get, or these fields of a config's section `data`:
            image_shape, mean, std and, for images of any size, eval_resize and interpolation.
        labels: names of the classes; by default their numbers.

    Raises:
        UserError: the folder exists or is remote, or the variables are not the network's.
    """
    folder = Path(path).expanduser()
    if storage.is_remote(path) or folder.exists():
        raise UserError(
            f"save_run({str(path)!r}): {'it is remote' if storage.is_remote(path) else 'it exists'}: give a new folder."
        )
    data = preprocessing.to_fields(test=True) if isinstance(preprocessing, Preprocessing) else dict(preprocessing)
    config = defaults.classification()
    config.update(batch_size=1, total_steps=1)
    config.model.update(describe_model(model))
    config.data.update(source="folder", args={"path": "nowhere: a run of weights alone"}, num_examples=1, **data)
    config.schedule.learning_rate = 0.0
    config = complete_config(config)
    task, kept = get_task(config.task), {name: dict(variables.get(name) or {}) for name in ("params", "batch_stats")}
    count = _check_variables(task.model(config), task.example_inputs(config), kept, f"save_run({str(path)!r})")
    if labels and len(labels) != count:
        raise UserError(f"save_run: {len(labels)} labels for {count} classes: give a name for each.")
    code = collect_code(config, list_origins())
    names = json.dumps(list(labels) or [str(i) for i in range(count)]).encode()
    folder.mkdir(parents=True)
    checkpoints = Checkpoints(folder, keep_last=1, keep_best=0, score=lambda step: None)
    state = State(jnp.zeros((), jnp.int32), **jax.tree.map(jnp.asarray, kept), opt_state={}, ema=None)
    checkpoints.save(
        state, {"config": config_to_json(config), "sums": {}, "log": b""}, {"labels.json": names, **code.to_assets()}
    )
    checkpoints.close()
    record_code(config, code, write=True)
    for name, content in {**code.to_assets(), CONFIG: config_to_json(config).encode()}.items():
        (folder / name).write_bytes(content)
    return folder


def _check_variables(model: nn.Module, inputs: tuple, variables: Mapping[str, Any], where: str) -> int:
    """Raises UserError unless the variables are a network's; returns the number of its classes."""
    zeros = [jnp.zeros(each.shape, each.dtype) for each in inputs]
    logits, wanted = jax.eval_shape(lambda key: model.init_with_output(key, *zeros), jax.random.key(0))
    right = {
        path: leaf.shape for path, leaf in tree.flatten_by_path(wanted).items() if path.startswith(("params", "batch_stats"))
    }
    found = {path: np.shape(leaf) for path, leaf in tree.flatten_by_path(variables).items()}
    for name in sorted(right.keys() | found.keys()):
        if right.get(name) != found.get(name):
            raise UserError(
                f"{where}: {name} is {found.get(name, 'missing')} in the variables, and {right.get(name, 'not there')} in the "
                f"network for images {inputs[0].shape[1:]}: give the variables of this network, and images of its size."
            )
    return logits.shape[-1]
