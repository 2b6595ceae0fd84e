"""Notebooks run from beginning to end, and what is committed of them is the result of such a run."""

import io
import json
import os
import shutil
import warnings
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import attention_jax as aj
from attention_jax.train.loop import train_model
from tests.conftest import child_environment
from tests.helpers import small_text
from tests.helpers.small import ROOT, small_config

NOTEBOOKS = sorted((ROOT / "experiments" / "notebooks").glob("*.ipynb"))
each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=[path.stem for path in NOTEBOOKS])

# What the output of a notebook must say when nothing but the repository is there, and how many pictures it shows.
EXPECTED = {
    "attention_in_vision": (
        [
            "the same, (32,): largest difference",
            "(32,) + (4, 11, 1) -> (4, 11, 32)",
            "T =  0.05: weights [0. 1. 0.], answer 10.000",
            "the same, (4, 11, 4, 11): largest difference",
            "after: the digit that is meant has",
        ],
        6,
    ),
    "compare_blocks": (
        [
            "my_gate.py:MyGate  25,730,968 parameters, 4,089,356,288 multiply-adds",
            "MyGate: not judged against the network without it (none) (one seed",
            "row                accuracy %  Δ to none   params       MACs",
            "MyGate ",
        ],
        2,
    ),
    "load_and_look": (
        [
            "Looking at the tiny run of tests/fixtures",
            "step 370, weights 'ema', logged accuracy 0.9199",
            "of 599 test images right: 0.9",
            "stage1_gate/map        (100, 8, 8, 6)",
            "only averaged weights:",
            "Preprocessing(source='timm', train_size=224, test_size=288",
            "50 parameters more than resnet20's 269,434",
        ],
        3,
    ),
    "residual": (
        [
            "the same, (16, 16): largest difference",
            "the same, (6, 6, 256): largest difference",
            "32 ×  4d: 70,144 weights, 220 M multiply-adds at 56×56; published",
            "rates by stage: 0.04, 0.06, 0.08, 0.10",
            "baseline               25,557,032  4,089,184,256    78.82",
            "downsampling_norm      28,583,656  4,455,531,264        –",
        ],
        9,
    ),
    "translate": (
        [
            "There is no run of configs/translate_quickstart.py: a small network is trained here",
            "I am a student -> 나는 학생입니다",
            "the same, (6, 64): largest difference",
            "padding changes nothing",
            "<s> ▁나는 <pad> <pad>",
        ],
        4,
    ),
}


def outputs(notebook: dict) -> list[dict]:
    return [output for cell in notebook["cells"] for output in cell.get("outputs", [])]


def printed(notebook: dict) -> str:
    return "".join("".join(output["text"]) for output in outputs(notebook) if output["output_type"] == "stream")


def pictures(notebook: dict) -> int:
    return sum("image/png" in output.get("data", {}) for output in outputs(notebook))


def test_every_notebook_is_known_here():
    assert {path.stem for path in NOTEBOOKS} == set(EXPECTED)


@pytest.mark.slow
@each_notebook
def test_notebook_runs(path: Path, tmp_path, monkeypatch):
    import nbformat
    from nbclient import NotebookClient

    folder = tmp_path / "experiments" / "notebooks"
    folder.mkdir(parents=True)
    for name in ("configs", "tests"):
        (tmp_path / name).symlink_to(ROOT / name)
    for name in ("ATTENTION_JAX_RUNS", "ATTENTION_JAX_TRANSLATION", "ATTENTION_JAX_COMPARE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in child_environment().items():
        monkeypatch.setenv(name, value)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the kernel's own machinery
        notebook = nbformat.read(shutil.copy(path, folder), as_version=4)
        for cell in notebook.cells:
            if cell.cell_type == "code":
                cell.outputs, cell.execution_count = [], None
        NotebookClient(notebook, timeout=240, kernel_name="python3", resources={"metadata": {"path": str(folder)}}).execute()
    assert not any(output["output_type"] == "error" for output in outputs(notebook))
    assert not any(output.get("name") == "stderr" for output in outputs(notebook)), printed(notebook)
    lines, count = EXPECTED[path.stem]
    for line in lines:
        assert line in printed(notebook)
    assert pictures(notebook) == count
    assert not list(folder.glob("*.png")) and os.listdir(folder) == [path.name], "a notebook leaves nothing behind"


@each_notebook
def test_what_is_committed_was_run_and_names_no_machine(path: Path):
    text = path.read_text()
    assert path.stat().st_size < 300_000
    assert not any(word in text for word in ("/tmp/", "/home/", "/root/", "/Users/", "/work"))
    notebook = json.loads(text)
    counts = [cell["execution_count"] for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert counts == list(range(1, len(counts) + 1)), "run all cells from the top before saving"
    assert not any(output["output_type"] == "error" or output.get("name") == "stderr" for output in outputs(notebook))
    assert pictures(notebook) == EXPECTED[path.stem][1]


def execute_cells(name: str) -> tuple[str, list]:
    """What the cells of a notebook print and display, run in this process."""
    import matplotlib
    import matplotlib.pyplot as plt

    matplotlib.use("agg")
    cells = [cell for cell in json.loads(Path(f"{name}.ipynb").read_text())["cells"] if cell["cell_type"] == "code"]
    shown: list = []
    namespace = {"__name__": "__main__", "display": shown.append}
    with redirect_stdout(io.StringIO()) as output:
        for cell in cells:
            exec("".join(line for line in cell["source"] if not line.startswith("%")), namespace)
    plt.close("all")
    return output.getvalue(), shown


NET = """
import flax.linen as nn

class Net(nn.Module):
    num_classes: int = 10

    @nn.compact
    def __call__(self, images, train=False):
        return nn.Dense(self.num_classes)(nn.relu(nn.Conv(4, (3, 3))(images)).mean((1, 2)))
"""


def photos_config(folder: Path):
    """A folder of pictures of several sizes, which are resized and cropped, one that is none, and a block with a gate."""
    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        for number, name in enumerate(("ant", "bee")):
            (folder / split / name).mkdir(parents=True)
            for i in range(8):
                pixels = rng.integers(0, 80, (10 + i, 12, 3)) + 100 * np.eye(3)[number]
                Image.fromarray(pixels.astype(np.uint8)).save(folder / split / name / f"{i}.png")
    data = {"source": "folder", "args": {"path": str(folder)}, "crop": "random_resized", "eval_resize": 9}
    data |= {"image_shape": (8, 8, 3), "mean": (0.4,) * 3, "std": (0.3,) * 3, "on_broken": "skip"}
    (folder / "test" / "bee" / "broken.png").write_bytes(b"no picture")
    fields = {"model__gate": "se", "model__gate_at": "block", "model__stage_sizes": (1,), "model__widths": (4,)}
    fields |= {"batch_size": 8, "evaluation__batch_size": 8, **{f"data__{name}": value for name, value in data.items()}}
    return small_config(**fields, total_steps=12)


@pytest.mark.slow
@pytest.mark.usefixtures("quickly")
@pytest.mark.parametrize(
    ("kind", "words", "figures"),
    [
        ("folder", ("of 16 test images right", "stage1_block1/gate/scale (16, 4)", "only averaged weights:"), 2),
        ("file", ("my_net.py:Net'", "of 599 test images right", "has no attention module"), 1),
        ("sentences", ("of 40 test sentences right", " -> ", "parameters"), 1),
    ],
)
def test_load_and_look_opens_any_run(kind, words, figures, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_net.py").write_text(NET)
    (tmp_path / "pairs").mkdir()
    config = {
        "folder": lambda: photos_config(tmp_path / "photos"),
        "file": lambda: small_config(model={"name": "my_net.py:Net", "num_classes": 10}, ema__decay=0.0, total_steps=12),
        "sentences": lambda: small_text.small_config(small_text.write_pairs(tmp_path / "pairs")),
    }[kind]()
    if kind == "sentences":
        small_text.untrained_run(config, tmp_path / "run")
    else:
        train_model(config, tmp_path / "run")
    monkeypatch.setenv("ATTENTION_JAX_RUNS", str(tmp_path / "run"))
    monkeypatch.chdir(ROOT / "experiments" / "notebooks")
    text, shown = execute_cells("load_and_look")
    assert "Looking at a run of yours." in text and all(word in text for word in words), text
    assert len(shown) == figures
    run = aj.load_run(tmp_path / "run")
    examples, answers = run.read_examples()
    logged = [line["eval/accuracy"] for line in run.metrics if "eval/accuracy" in line]
    if kind != "sentences":  # the accuracy of evaluation, from the examples as they are
        other = run if kind == "file" else aj.load_run(tmp_path / "run", weights="params")
        assert (other.predict(examples).classes == answers).mean() == pytest.approx(logged[-1])
