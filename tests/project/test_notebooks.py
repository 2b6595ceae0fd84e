"""Notebooks run from beginning to end, and what is committed of them is the result of such a run."""

import json
import os
import shutil
import warnings
from pathlib import Path

import pytest

from tests.conftest import child_environment
from tests.helpers.small import ROOT

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
    "load_and_look": (
        [
            "Looking at the tiny run of tests/fixtures",
            "step 370, weights 'ema', logged accuracy 0.9199",
            "of 599 test images right: 0.9",
            "stage1_gate/map        (599, 8, 8, 6)",
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
    for name in ("ATTENTION_JAX_RUNS", "ATTENTION_JAX_TRANSLATION"):
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
