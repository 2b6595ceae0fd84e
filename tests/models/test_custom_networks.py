"""Networks of the user's own: by file, by dotted path, registered in a config file."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ml_collections import ConfigDict

import attention_jax as aj
from attention_jax.cli import main as cli
from attention_jax.config import load_config, override
from attention_jax.tables.runner import run_table
from attention_jax.train.loop import train_model
from attention_jax.train.program import build_program
from tests.helpers.small import CONFIG, FIELDS

NETWORKS = '''
import flax.linen as nn


class Net(nn.Module):
    """[B, H, W, C] -> [B, K]."""

    num_classes: int
    width: int = 4
    dtype: str = "float32"

    @nn.compact
    def __call__(self, images, train=False):
        x = nn.relu(nn.Conv(self.width, (3, 3), 2, dtype=self.dtype)(images))
        x = nn.BatchNorm(not train, dtype=self.dtype)(x)
        return nn.Dense(self.num_classes)(x.mean((1, 2)).astype("float32"))


class TenClasses(nn.Module):
    """Has no fields, and no other mode for training."""

    @nn.compact
    def __call__(self, images):
        b, h, w, c = images.shape
        return nn.Dense(10)(images.reshape(b, 8 * 8 * 1))


class ElevenClasses(nn.Module):
    @nn.compact
    def __call__(self, images, train=False):
        return nn.Dense(11)(images.mean((1, 2)))


def make(num_classes, **fields):
    return Net(num_classes, **fields)


class NoNetwork:
    pass
'''


pytestmark = pytest.mark.usefixtures("quickly")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory of a user with a file of networks, which Python finds as well."""
    stem = f"networks_{tmp_path.name}"  # a file and a module are loaded once per process
    (tmp_path / f"{stem}.py").write_text(NETWORKS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def config_of(name: str, **fields: Any) -> ConfigDict:
    """A few steps on the digits with a network of the user's."""
    few = {name: value for name, value in FIELDS.items() if not name.startswith("model.")}
    few |= {"total_steps": 4, "evaluation.every_steps": 4, "checkpoint.every_steps": 4, "schedule.warmup_steps": 1}
    return override(load_config(str(CONFIG)), {**few, "model.name": name, **{k.replace("__", "."): fields[k] for k in fields}})


@pytest.mark.parametrize("spelled", ["{}.py:Net", "{}.TenClasses", "{}:make"])
def test_trains_evaluates_and_opens(folder: Path, capsys: pytest.CaptureFixture, spelled: str) -> None:
    name = spelled.format(f"networks_{folder.name}")
    fields = {} if "Ten" in name else {"model__width": 3}
    train_model(config_of(name, **fields), "run")
    assert cli.main(["evaluate", "--workdir=run"]) == 0
    scores = json.loads(capsys.readouterr().out)
    run = aj.load_run("run")
    assert scores["step"] == 4 and scores["accuracy"] == run.curve("eval_ema/accuracy")[1][-1]
    assert run.predict(np.zeros((2, 8, 8, 1), np.uint8)).probabilities.shape == (2, 10)
    if fields:
        assert run.model.width == 3 and run.variables["params"]["Conv_0"]["kernel"].shape == (3, 3, 1, 3)
        assert run.model.num_classes == 10, "the data have said so"


def test_stands_in_rows_of_a_table(folder: Path, capsys: pytest.CaptureFixture) -> None:
    few = {"total_steps": 2, "schedule.warmup_steps": 1, "model.name": f"networks_{folder.name}.py:Net"}
    rows = [{"label": "mine"}, {"label": "no fields", "overrides": {"model.name": f"networks_{folder.name}.py:TenClasses"}}]
    table = f"title, source, base = 'mine', 'own', {str(CONFIG)!r}\nrows = {rows}\nscales = {{'few': {{'overrides': {few}}}}}\n"
    (folder / "table.py").write_text(table)
    assert run_table("table.py", output="written") == 0
    lines = (folder / "written" / "table.md").read_text().splitlines()
    cells = {line.split(" | ")[0].removeprefix("| "): line.split(" | ")[1:3] for line in lines if line.startswith("| ")}
    assert cells["mine"] == ["98", "616"] and cells["no fields"] == ["650", "640"]


def test_a_config_file_registers_a_network(folder: Path) -> None:
    (folder / "mine.py").write_text(
        f"import attention_jax as aj\nfrom networks_{folder.name} import Net\nfrom attention_jax.config import load_config\n"
        f"aj.register_model('narrow_{folder.name}', Net, width=2)\n\ndef get_config():\n"
        f"    config = load_config({str(CONFIG)!r})\n    config.model = dict(name='narrow_{folder.name}')\n    return config\n"
    )
    program = build_program(load_config("mine.py"))
    assert (program.model.width, program.model.num_classes) == (2, 10)
    assert f"narrow_{folder.name}" in aj.list_models()
    assert aj.create_model(f"narrow_{folder.name}", num_classes=3, width=5).width == 5


def test_a_file_that_is_the_first_to_import_the_package_registers_none_of_its_names(folder: Path, run_python: Any) -> None:
    (folder / "mine.py").write_text("import attention_jax as aj\naj.register_model('mine', aj.create_model)\n")
    program = """
from attention_jax.config.plugins import load_file
load_file("mine.py")
from attention_jax.models.registry import list_origins
origins = list_origins()
print(origins["resnet20"], origins["transformer_base"], origins["mine"])
"""
    said = run_python("-c", program, cwd=folder).stdout
    assert said.split() == ["None", "None", str(folder / "mine.py")]


def test_bfloat16_needs_a_field_for_it(folder: Path) -> None:
    config = config_of(f"networks_{folder.name}.py:Net", precision="bfloat16")
    assert build_program(config).model.dtype == "bfloat16"
    config = config_of(f"networks_{folder.name}.py:TenClasses", precision="bfloat16")
    with pytest.raises(aj.UserError, match="has no field dtype: give it one, or 'float32'"):
        build_program(config)


def test_logits_of_another_shape(folder: Path) -> None:
    with pytest.raises(aj.UserError, match=r"gives \(32, 11\): .* into logits \(32, 10\)"):
        train_model(config_of(f"networks_{folder.name}.py:ElevenClasses"), "run")


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("{}.py:Nett", {}, "has no 'Nett' .did you mean 'Net'"),
        ("{}.Nett", {}, "has no 'Nett' .did you mean 'Net'"),
        ("nowhere.py:Net", {}, "there is no such file"),
        ("resnet20.plian", {}, "unknown model 'resnet20.plian' .did you mean 'resnet20.plain'"),
        ("resnet20.", {}, "unknown model 'resnet20.' .did you mean 'resnet20'"),
        ("{}.py:NoNetwork", {}, "made NoNetwork: give a flax.linen.Module or a function that returns one"),
        ("{}.py:Net", {"widht": 3}, "has no field 'widht' .did you mean 'width'"),
        ("{}.py:Net", {}, "these fields do not make a network .*num_classes"),
        ("{}.py:NETWORK", {}, "has no 'NETWORK'"),
    ],
)
def test_mistakes(folder: Path, name: str, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(aj.UserError, match=message) as raised:
        aj.create_model(name.format(f"networks_{folder.name}"), **fields)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "layer", ["BatchNorm", "BatchNorm(use_running_average=False)", "Dropout(0.5)", "Dropout(0.5, deterministic=False)"]
)
def test_a_layer_that_is_not_told_whether_it_trains(folder: Path, layer: str) -> None:
    name = f"untold_{len(layer)}.py"
    layer = layer if "(" in layer else f"{layer}()"
    (folder / name).write_text(f"""import flax.linen as nn

class Untold(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(10)(nn.{layer}(x.mean((1, 2))))
""")
    with pytest.raises(aj.UserError, match=r"untold_\d+.py:Untold' has a layer with a training mode") as caught:
        train_model(config_of(f"{name}:Untold"), "run")
    assert "let its __call__ take train" in str(caught.value)


def test_summary(folder: Path, capsys: pytest.CaptureFixture) -> None:
    start = ("summary", f"networks_{folder.name}.py:TenClasses")
    assert cli.main([*start, "--image-size=8", "--channels=1"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].split() == ["total", "650", "640"]
    assert cli.main(list(start)) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "TenClasses does not run on float32 (1, 224, 224, 3) (TypeError: cannot reshape" in said
    assert said.endswith("give the shape of its input.\n")
