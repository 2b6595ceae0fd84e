"""The README does what it says: its commands and samples run, in order, in an empty folder beside the checkout.

Fenced blocks: `bash` is a list of commands, `python file=NAME` is a file, `python` is run, `text` is neither.
"""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import attention_jax as aj
from attention_jax.cli import main as cli
from attention_jax.tables.table import load_table
from tests.conftest import child_environment
from tests.helpers.small import FIELDS, ROOT

README = (ROOT / "README.md").read_text()
RESULTS = ROOT / "experiments" / "results" / "quickstart.md"
BLOCKS = re.findall(r"^```(\w+)(?: file=(\S+))?\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)

# Their files are read and run by test_experiments.py.
IMAGE_TABLES = (
    *("residual", "bam", "visual_attention", "receptive_field"),
    *("resnext_cardinality", "resnet_rs", "randaugment"),
)

# What a command is given besides, by how it begins, so that it takes seconds. What is left out runs as it is written.
REDUCED = {
    "quickstart": ["--scale=smoke", "--seeds=1", "--rows=residual + BAM", "--workdir=runs/quickstart"],
    "table experiments/quickstart.py": ["--scale=smoke", "--workdir=runs/quickstart", "--dry-run"],
    "table my_table.py": ["--scale=smoke", "--dry-run"],
    **{f"table experiments/{name}.py": ["--scale=smoke", "--dry-run"] for name in IMAGE_TABLES},
    "train --config=configs/quickstart.py": [f"--config.{name}={value}" for name, value in FIELDS.items()],
    "train --config=configs/translate_quickstart.py": [
        *("--config.model.layers=1", "--config.model.features=16", "--config.model.hidden=16", "--config.total_steps=6"),
        *("--config.schedule.warmup_steps=2", "--config.evaluation.translate=False", "--config.search.max_extra=2"),
        "--config.evaluation.headline=token_accuracy",
    ],
}
NOT_RUN = {"test": "this is it"}
IN_A_PROCESS_OF_ITS_OWN = ("quickstart",)  # the others call the same library in this process, which saves its start


def test_blocks_are_of_known_kinds():
    assert README.count("```") == 2 * len(BLOCKS)
    assert {kind for kind, _, _ in BLOCKS} == {"bash", "python", "text"}
    assert sum(bool(name) for _, name, _ in BLOCKS) == 5


def test_samples_are_short():
    for _, name, text in BLOCKS:
        assert not name or len(text.splitlines()) <= 30
        assert all(len(line) <= 160 for line in text.splitlines())


def test_everything_in_it_runs(tmp_path, monkeypatch):
    for name in ("launch.sh", "configs", "experiments"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    _pictures(tmp_path / "pictures")
    namespace: dict = {}
    done = []
    for kind, name, text in BLOCKS:
        if name:
            (tmp_path / name).write_text(text)
        elif kind == "python":
            exec(compile(text, "README.md", "exec"), namespace)
        elif kind == "bash":
            for line in text.splitlines():
                done.append(_run(line))
    assert (
        done.count("train") == 4
        and done.count("translate") == 2
        and done.count("table") == 3 + len(IMAGE_TABLES)
        and {"quickstart", "test", "evaluate"} <= set(done)
    )

    assert len(namespace["prediction"].labels) == 599
    assert namespace["maps"]["stage1_gate/map"].ndim == 4 and len(namespace["steps"]) == 2
    for run in ("quickstart/residual-bam/0", "mine", "softmax", "pictures"):
        assert list((tmp_path / "runs" / run / "checkpoints").glob("[0-9]*")), run
    assert len((tmp_path / "translated.txt").read_text().splitlines()) == 3 and (tmp_path / "attention.png").stat().st_size
    assert len(namespace["best"].texts) == 3
    assert aj.load_run("runs/pictures").labels == list("abcdefghij")
    table = load_table("my_table.py")
    config = table.config(table.rows[2], "quick")
    assert config.optimizer.weight_decay == 0 and config.model.gate == "my_gate.py:SpatialSoftmax"


def _run(line: str) -> str:
    """Runs one command of the README, made smaller; returns its verb."""
    program, verb, *arguments = shlex.split(line)
    assert program == "./launch.sh"
    if verb in NOT_RUN:
        return verb
    command = f"{verb} {shlex.join(arguments)}"
    for beginning, more in REDUCED.items():
        if command.startswith(beginning):
            arguments += more
    if verb in IN_A_PROCESS_OF_ITS_OWN:
        env = child_environment({"ATTENTION_JAX_PYTHON": sys.executable})
        call = subprocess.run([program, verb, *arguments], env=env, capture_output=True, text=True, check=False)
        assert call.returncode == 0, f"{line}\n{call.stdout}\n{call.stderr}"
    else:
        assert cli.main([verb, *arguments]) == 0, line
    return verb


def _pictures(folder: Path) -> None:
    from PIL import Image

    rng = np.random.default_rng(0)
    for split, count in (("train", 4), ("test", 1)):
        for level, name in enumerate("abcdefghij"):
            (folder / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = (24 * level + rng.integers(0, 30, (12, 10, 3))).astype(np.uint8)
                Image.fromarray(pixels).save(folder / split / name / f"{i}.png")


def test_links_and_pictures_are_there():
    targets = re.findall(r"\]\(([^)#]+)\)", README)
    missing = [target for target in targets if "://" not in target and not (ROOT / target).exists()]
    if not RESULTS.exists():
        missing = [target for target in missing if not target.startswith("experiments/results/")]
    assert not missing


def test_table_is_that_of_the_results():
    if not RESULTS.exists():
        pytest.skip("the quickstart's results are not in the repository yet")
    shown = re.search(r"<!-- quickstart table -->\n(.*?)\n<!-- end -->", README, re.DOTALL).group(1).strip()
    made = "\n".join(line for line in RESULTS.read_text().splitlines() if line.startswith("|"))
    assert shown == made, "copy the table of experiments/results/quickstart.md between the markers"


def test_every_command_of_the_text_exists():
    """Also those in running text: `./launch.sh VERB`."""
    listed = subprocess.run([ROOT / "launch.sh"], capture_output=True, text=True, check=True, env={**os.environ}).stdout
    for verb in re.findall(r"\./launch\.sh ([a-z]+)", README):
        assert re.search(rf"^  {verb}\b", listed, re.MULTILINE), verb


def test_map_shows_what_is_there():
    text = next(text for kind, name, text in BLOCKS if kind == "text" and not name)
    for name in re.findall(r"[\w/]+(?:\.py|\.sh|/)(?=\s)", text):
        assert any((folder / name).exists() for folder in (ROOT, ROOT / "attention_jax", ROOT / "experiments")), name
    parts = {p.name for p in (ROOT / "attention_jax").iterdir() if p.is_dir() and not p.name.startswith("__")}
    assert all(f"{part}/" in text for part in parts), "every part of the package has its line"


def test_speaks_of_the_project_alone():
    assert not re.search(r"/(home|root|Users|tmp|work)/", README)
