"""A network, a layer, a task and more of a user's own, and runs that are made with them."""

from pathlib import Path

import numpy as np
import pytest

import attention_jax as aj
from attention_jax.cli import main as cli
from attention_jax.data import embedded
from attention_jax.tasks import get_task
from tests.helpers.small import CONFIG

FILES = {
    "my_net.py": '''"""A network."""
import flax.linen as nn
from my_layers import Layer


class MyNet(nn.Module):
    """It takes the mean over positions."""

    num_classes: int = 10
    gate: str = ""

    @nn.compact
    def __call__(self, x, train=False):
        from attention_jax.models.gate import load_object

        return nn.Dense(self.num_classes)(load_object(self.gate, {}, "gate")()(Layer(4)(x)).mean((1, 2)))
''',
    "my_layers.py": """import flax.linen as nn


class Layer(nn.Module):
    width: int

    @nn.compact
    def __call__(self, x):
        return nn.relu(nn.Conv(self.width, (3, 3))(x))
""",
    "my_gate.py": "import flax.linen as nn\n\n\nclass Gate(nn.Module):\n    def __call__(self, x):\n        return x * 2\n",
    "my_data.py": """def make(split):
    from attention_jax.data.images.sources import open_digits

    return open_digits(split)
""",
    "my_task.py": """from attention_jax.config.fields import OF_TASK
from attention_jax.tasks import classification


class Task:
    fields = OF_TASK["classification"]

    def __getattr__(self, name):
        return getattr(classification, name)


task = Task()
""",
}
NAMES = {
    "task": "my_task.py:task",
    "model.name": "my_net.py:MyNet",
    "model.gate": "my_gate.py:Gate",
    "data.source": "my_data.py:make",
    "optimizer.name": "optax.sgd",
}
SMALL = {
    "total_steps": 4,
    "batch_size": 32,
    "schedule.warmup_steps": 1,
    "evaluation.every_steps": 2,
    "checkpoint.every_steps": 2,
    "checkpoint.keep_last": 2,
    "logging.every_steps": 1,
    "logging.tensorboard": False,
}
IMAGES = embedded.read_digits("test")[0][:8]


def write_files(folder: Path, **changes: tuple[str, str]) -> Path:
    """Writes the files, in those of `changes` a text replaced."""
    folder.mkdir(parents=True)
    for name, text in FILES.items():
        old, new = changes.get(name[:-3], ("", ""))
        assert old in text
        (folder / name).write_text(text.replace(old, new) if old else text)
    return folder


def options(workdir: Path | str, config: Path = CONFIG, **names: str) -> list[str]:
    fields = {**(names or {**NAMES, "optimizer.weight_decay": 0.0}), **SMALL}
    return [
        "train",
        f"--config={config}",
        f"--workdir={workdir}",
        *(f"--config.{key}={value}" for key, value in fields.items()),
    ]


def train(folder: Path, state: Path, workdir: Path | str, *more: str) -> int:
    """Trains in a folder, whose files nothing in this process has loaded yet, with a trust file of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("XDG_STATE_HOME", str(state))
        get_task.cache_clear()  # by name, and every folder has its own my_task.py
        return cli.main([*options(workdir), *more])


def predict(workdir: Path | str, **arguments: object) -> np.ndarray:
    return aj.load_run(workdir, **arguments).predict(IMAGES).probabilities
