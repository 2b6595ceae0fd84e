"""The configs that fine-tune, from a file in another library's names to a run that opens."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import attention_jax as aj
from attention_jax.cli import main as cli
from attention_jax.interop.layout import name_tensors
from attention_jax.interop.layouts_convnext import LAYOUTS as CONVNEXT
from attention_jax.interop.layouts_resnet import AKAMASTER
from tests.helpers.photos import write_photos

pytestmark = pytest.mark.usefixtures("quickly")

SHORT = ["--config.total_steps=2", "--config.schedule.warmup_steps=0", "--config.logging.tensorboard=False"]
RESNET = {"stage_sizes": (1, 1, 1), "widths": (4, 8, 16)}
TINY_CONVNEXT = {"stage_sizes": (1, 1, 1, 1), "widths": (4, 4, 4, 8)}


def write_weights(file, layout, name, **fields):
    """A file of random weights for 7 classes in a layout's names."""
    model = aj.create_model(name, num_classes=7, **fields, **layout.fields)
    variables = jax.jit(model.init)(jax.random.key(5), jnp.zeros((1, 32, 32, 3)))
    np.savez(file, **name_tensors(layout, model, {k: variables[k] for k in ("params", "batch_stats") if k in variables}))
    return file


def train(config, workdir, fields, *options):
    network = [f"--config.model.{name}={value}" for name, value in fields.items()]
    return cli.main(["train", f"--config=configs/{config}", f"--workdir={workdir}", *network, *SHORT, *options])


def read_origin(workdir):
    return json.loads(aj.load_run(workdir).assets["init.json"])


def test_digits(root, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(root)
    file = write_weights(tmp_path / "resnet20.npz", AKAMASTER, "resnet20", **RESNET)
    options = (
        f"--config.init_from={file}",
        "--config.model.num_classes=10",
        "--config.data.image_shape=(8, 8, 3)",
        "--config.data.eval_resize=8",
    )
    assert train("finetune_digits.py", tmp_path / "run", RESNET, *options) == 0
    said = capsys.readouterr().out
    assert "done after step 2" in said and "granularity stored" in said
    file.unlink()
    run = aj.load_run(tmp_path / "run")
    assert read_origin(tmp_path / "run")["new"] == ["params/head/bias", "params/head/kernel"]
    assert run.predict([np.zeros((8, 8, 3), np.uint8)]).probabilities.shape == (1, 10)
    # The same command has nothing left to do, and does not look for the file; evaluate does not either.
    assert train("finetune_digits.py", tmp_path / "run", RESNET, *options) == 0
    assert "no step was left to take" in capsys.readouterr().out
    assert cli.main(["evaluate", f"--workdir={tmp_path / 'run'}"]) == 0
    assert json.loads(capsys.readouterr().out)["accuracy"] == run.metrics[-1]["eval/accuracy"]


@pytest.mark.slow
def test_a_folder(root, tmp_path, monkeypatch):
    monkeypatch.chdir(root)
    file = write_weights(
        tmp_path / "convnext_tiny.npz", next(one for one in CONVNEXT if one.name == "timm"), "convnext_tiny", **TINY_CONVNEXT
    )
    data = f"--config.data.args.path={write_photos(tmp_path / 'photos')}"
    small = "--config.batch_size=6", "--config.data.image_shape=(32, 32, 3)", "--config.data.eval_resize=36"
    assert train("finetune_folder.py", tmp_path / "run", TINY_CONVNEXT, f"--config.init_from={file}", data, *small) == 0
    origin = read_origin(tmp_path / "run")
    assert origin["layout"] == "timm" and origin["new"] == ["params/head/bias", "params/head/kernel"]
    assert aj.load_run(tmp_path / "run").labels == ["ant", "bee", "cat"]
