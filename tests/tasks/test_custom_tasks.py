"""A task of the user's own: regression on samples of a function, whose headline metric is an error."""

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import attention_jax as aj
from attention_jax.cli import main as cli
from attention_jax.config import load_config, override
from attention_jax.config.defaults import make_defaults
from attention_jax.tables.runner import run_table
from attention_jax.tasks.base import complete_task
from attention_jax.train.loop import train_model
from attention_jax.train.metrics import METRICS, read_log
from attention_jax.train.restore import list_steps

TASK = '''
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from attention_jax.config.accepted import Field


class Samples:
    """(x, 1) and sin 6x, at `number` places from 0 to 1."""

    def __init__(self, number, first):
        self.x = (np.arange(number, dtype=np.float32) + first) / number

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        return {"x": np.array([self.x[i], 1], np.float32), "y": np.sin(6 * self.x[i])}


class Net(nn.Module):
    width: int = 16

    @nn.compact
    def __call__(self, x):
        return nn.Dense(1)(nn.relu(nn.Dense(self.width)(x)))[:, 0]


class Regression:
    fields = {"loss": {"power": Field.integer(2, "", "of the error")}}

    def source(self, config, split):
        return Samples(256, 0) if split == "train" else Samples(50, 0.5)

    def example_inputs(self, config):
        return (jax.ShapeDtypeStruct((1, 2), "float32"),)

    def loss(self, config, model, variables, batch, rng, train):
        loss = jnp.abs(model.apply(variables, batch["x"]) - batch["y"]) ** config.loss.power
        return {"loss": (loss * batch["weight"]).sum(), "weight": batch["weight"].sum()}, {}

    def outputs(self, config, model, variables, batch):
        return {"error": jnp.abs(model.apply(variables, batch["x"]) - batch["y"]), "weight": batch["weight"]}

    def headline(self, config):
        return "error"

    def lower_is_better(self, config):
        return True


class Judged(Regression):
    """With what a table compares rows by."""

    def outputs(self, config, model, variables, batch):
        made = super().outputs(config, model, variables, batch)
        return {**made, "correct": made["error"] < 0.5}


class Summarised(Regression):
    """Metrics of its own, which do not add "correct" either."""

    def metrics(self, config, outputs):
        return {"error": float(outputs["error"].mean())}, outputs


task = Regression()
'''
CONFIG = """
from attention_jax.config.defaults import make_defaults


def get_config():
    config = make_defaults("{task}")
    config.update(batch_size=32, total_steps=24)
    config.model.name = "{file}:Net"
    config.data.source = "sine"
    config.schedule.update(name="constant", learning_rate=0.05)
    config.evaluation.update(every_steps=4, batch_size=32)
    config.checkpoint.update(every_steps=4, keep_last=1)
    config.logging.update(every_steps=4, tensorboard=False)
    return config
"""


pytestmark = pytest.mark.usefixtures("quickly")


@pytest.fixture
def write_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """Writes a config of one of the tasks above into the working directory of a user."""
    file = f"task_{tmp_path.name}.py"  # a file is loaded once per process
    (tmp_path / file).write_text(TASK)
    monkeypatch.chdir(tmp_path)

    def write(name: str = "task") -> str:
        (tmp_path / f"config_{name}.py").write_text(CONFIG.format(task=f"{file}:{name}", file=file))
        return f"config_{name}.py"

    return write


def curve(workdir: str) -> dict[int, float]:
    return {line["step"]: line["headline"] for line in read_log(Path(workdir)) if "headline" in line}


def test_trains_resumes_evaluates_and_opens(write_config: Callable, capsys: pytest.CaptureFixture) -> None:
    config = load_config(write_config())
    assert config.loss.power == 2

    def interrupt(step: int) -> None:
        if step == 14:
            signal.raise_signal(signal.SIGINT)

    result = train_model(config, "resumed", progress=interrupt)
    assert result.stopped and result.step == 15
    train_model(config, "resumed")
    train_model(config, "run")
    logs, runs = ([make(path) for path in ("resumed", "run")] for make in (lambda p: Path(p, METRICS).read_text(), aj.load_run))
    assert logs[0] == logs[1]
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, runs[0].variables, runs[1].variables)))

    errors = curve("run")
    best = min(errors, key=errors.__getitem__)
    assert list(errors) == [4, 8, 12, 16, 20, 24] and best not in (max(errors, key=errors.__getitem__), 24)
    assert list_steps(Path("run")) == [best, 24], "the newest, and the one with the smallest error"

    capsys.readouterr()
    assert cli.main(["evaluate", "--workdir=run"]) == 0
    assert f'"error": {errors[24]}' in capsys.readouterr().out
    x = np.array([[0.25, 1], [0.5, 1]], np.float32)
    np.testing.assert_array_equal(runs[1].predict(x), runs[1].model.apply(runs[1].variables, x))
    assert cli.main(["train", "--config=config_task.py", "--workdir=run"]) == 0, "nothing is left to do"


def test_fields_of_its_own(write_config: Callable) -> None:
    config = load_config(write_config())
    assert override(config, {"loss.power": 1}).loss.power == 1
    with pytest.raises(aj.UserError, match=r"config.loss.power=0 is not right: give a whole number"):
        override(config, {"loss.power": 0})
    with pytest.raises(aj.UserError, match=r"unknown config field 'loss.powr' .did you mean 'loss.power'"):
        override(config, {"loss.powr": 1})
    with pytest.raises(aj.UserError, match=r"unknown config field 'loss.power'"):
        override(make_defaults("classification"), {"loss.power": 1})


def _write_table(base: str, rows: list[dict[str, Any]]) -> None:
    Path("table.py").write_text(
        f"title, source, base = 'mine', 'own', {base!r}\nrows = {rows}\n"
        "scales = {'few': {'overrides': {'total_steps': 4, 'evaluation.every_steps': 4, 'checkpoint.every_steps': 4}}}\n"
    )


def test_a_table_reads_whether_examples_are_right(write_config: Callable) -> None:
    _write_table(write_config("Judged"), [{"label": "squares"}, {"label": "absolute", "overrides": {"loss.power": 1}}])
    assert run_table("table.py", output="written") == 0
    correct = np.load("runs/table/absolute/0/evaluation.npz")["correct"]
    text = (Path("written") / "table.md").read_text()
    assert f"| {100 * correct.mean():.2f} |" in text and "| accuracy % |" in text


@pytest.mark.parametrize(("name", "trains"), [("task", False), ("Summarised", True)])
def test_a_table_says_what_it_cannot_compare(
    write_config: Callable, capsys: pytest.CaptureFixture, name: str, trains: bool
) -> None:
    """Before training where the outputs show it; else after the first training, which is not done again."""
    _write_table(write_config(name), [{"label": "mine"}])
    for _ in range(2):
        assert run_table("table.py") == 1
        said = capsys.readouterr().out
        assert f":{name}' gives the outputs error" in said and "a table compares rows by 'correct'" in said
        assert "delete this folder" not in said
        timing = Path("runs/table/mine/0/timing.jsonl")
        assert timing.exists() == trains
    if trains:
        assert timing.read_text().count("first step dispatched") == 1


def test_missing_functions_are_named_at_once() -> None:
    class Half:
        def loss(self) -> None: ...

        def headline(self) -> None: ...

    for own in (Half, Half()):
        with pytest.raises(aj.UserError, match=r"task 'mine.py:task' has no source, example_inputs, outputs: give these"):
            complete_task("mine.py:task", own)
    for name in ("loader", "resolve", "batch_shapes"):
        setattr(Half, name, lambda self: None)
    with pytest.raises(aj.UserError, match=r"has no example_inputs, outputs: give these"):
        complete_task("mine.py:task", Half())


def test_a_task_has_what_is_shared_and_what_it_says_itself() -> None:
    class Own:
        source = example_inputs = loss = outputs = lambda self, config: None

        def headline(self, config: Any) -> str:
            return "error"

        def metrics(self, config: Any, outputs: Any) -> Any:
            return {"error": 1.0}, outputs

    task = complete_task("mine.py:task", Own)
    config: Any = None
    assert task.correct_means(config) == "accuracy" and not task.lower_is_better(config) and task.assets(config) == {}
    assert task.metrics(config, {"weight": np.ones(2)})[0] == {"error": 1.0}
    batch = {"x": jnp.ones(2)}
    assert task.mix(config, batch, jax.random.key(0)) is batch
