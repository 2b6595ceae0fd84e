"""The verb plot: learning curves of runs from their logs."""

from collections.abc import Sequence
from pathlib import Path

from attention_jax.analysis import plots
from attention_jax.analysis.plots import PICTURES
from attention_jax.errors import UserError, one_sentence
from attention_jax.tasks import get_task
from attention_jax.train import metrics
from attention_jax.train.workdir import read_config


def draw(workdirs: Sequence[str], output: str) -> None:
    """Writes a picture of evaluation score and training loss by epoch, a line a run.

    Args:
        workdirs: folders of runs, each as "DIR" or "LABEL=DIR"; runs of one label are its seeds.
        output: a file that is not there yet.

    Raises:
        UserError: a folder holds no run or nothing to draw, or the file cannot be written or is there already.
    """
    target = Path(output)
    if target.suffix not in PICTURES:
        raise UserError(f"--output={output}: give a name that ends in {', '.join(PICTURES)}.")
    if target.exists():
        raise UserError(f"--output={output} is there already: give another name, or remove it.")
    runs, names = {}, {}
    for given in workdirs:
        label, _, folder = given.rpartition("=")
        path = Path(folder).expanduser()
        config = read_config(path)
        if config is None:
            raise UserError(f"{folder} is no run's folder: give one that train has made.")
        runs.setdefault(label or path.resolve().name, []).append(list(metrics.read_log(path / metrics.METRICS)))
        names[get_task(config.task).headline(config)] = None
    figure = plots.learning_curves(runs, metric=" or ".join(names).replace("_", " "))
    try:
        figure.savefig(target)
    except OSError as error:
        raise UserError(f"--output={output} cannot be written ({one_sentence(error)}).") from error
