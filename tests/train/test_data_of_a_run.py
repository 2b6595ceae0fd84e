"""Data are part of a run: classes count by name, other data are refused or said, moved ones are the same."""

import json
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import attention_jax as aj
from attention_jax.cli import main as cli
from attention_jax.data.fingerprint import DATA
from attention_jax.errors import UserError
from attention_jax.tables.measures import measure_errors
from attention_jax.tasks import classification
from attention_jax.tasks.base import Task
from attention_jax.train import restore
from attention_jax.train.loop import train_model
from attention_jax.train.program import build_program
from attention_jax.train.report import describe_run
from tests.helpers.small import small_config

pytestmark = pytest.mark.usefixtures("quickly")
COLOURS = {"ant": (190, 20, 20), "bee": (20, 190, 20), "cat": (20, 20, 190)}


def picture(colour: tuple[int, ...], seed: int) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 60, (8, 8, 3)) + np.array(colour)
    return Image.fromarray(pixels.astype(np.uint8))


def make_folder(root: Path) -> Path:
    """root/{train,test}/{ant,bee,cat} with 8 pictures each."""
    for number, split in enumerate(("train", "test")):
        for name, colour in COLOURS.items():
            (root / split / name).mkdir(parents=True)
            for i in range(8):
                picture(colour, 10 * number + i).save(root / split / name / f"{i}.png")
    return root


def config_of(path: Path, steps: int = 24, **fields):
    own = {"data__source": "folder", "data__args": {"path": str(path)}, "data__mean": (0.4,) * 3, "data__std": (0.3,) * 3}
    own |= {"model__stage_sizes": (1,), "model__widths": (8,), "batch_size": 8, "total_steps": steps, "ema__decay": 0.0}
    own |= {"evaluation__batch_size": 8, "evaluation__every_steps": 12, "checkpoint__every_steps": 12}
    return small_config(**{**own, **fields})


def stop_at_step_12(step: int) -> None:
    if step == 12:
        os.kill(os.getpid(), signal.SIGTERM)


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> tuple[Path, Path]:
    """(data, workdir) of a finished run."""
    data = make_folder(tmp_path_factory.mktemp("data") / "photos")
    run = tmp_path_factory.mktemp("run")
    train_model(config_of(data), run)
    return data, run


@pytest.fixture
def data(trained, tmp_path) -> Path:
    """A copy of its data."""
    return shutil.copytree(trained[0], tmp_path / "photos")


@pytest.fixture
def run(trained, tmp_path) -> Path:
    """A copy of the run."""
    return shutil.copytree(trained[1], tmp_path / "run")


def evaluate(run: Path, capsys, *options: str) -> tuple[dict, str]:
    """(scores, what it says on standard error)."""
    assert cli.main(["evaluate", f"--workdir={run}", *options]) == 0
    out = capsys.readouterr()
    return json.loads(out.out.splitlines()[-1]), out.err


def outputs_of(run: Path) -> dict[str, np.ndarray]:
    with np.load(run / "evaluation.npz") as saved:
        return dict(saved)


def test_a_run_and_its_checkpoints_have_fingerprints_of_both_splits(trained):
    found = json.loads((trained[1] / DATA).read_text())
    assert found.keys() == {"train", "test"} and found["train"]["classes"] == ["ant", "bee", "cat"]
    assert aj.load_run(trained[1]).assets[DATA] == (trained[1] / DATA).read_bytes()


def test_data_that_moved_are_the_same(run, data, capsys):
    scores, said = evaluate(run, capsys, f"--config.data.args.path={data}")
    assert scores["accuracy"] == outputs_of(run)["correct"].mean() > 0.9 and "this is" not in said
    assert train_model(config_of(data), run).step == 24


@pytest.mark.parametrize("gone", ["ant", "cat"])
def test_a_subset_is_evaluated_with_the_right_classes_and_said(run, data, capsys, gone, caplog):
    shutil.rmtree(data / "train")
    shutil.rmtree(data / "test" / gone)
    with caplog.at_level("INFO", "attention_jax"):
        scores, said = evaluate(run, capsys, f"--config.data.args.path={data}")
    keep = np.repeat([name != gone for name in COLOURS], 8)  # of the complete split, in its order
    assert scores["accuracy"] == outputs_of(run)["correct"][keep].mean()
    assert scores["loss"] == pytest.approx(outputs_of(run)["loss"][keep].mean(), rel=1e-5)
    assert f"is a subset: it has no example of 1 of the network's 3 classes: {gone}." in caplog.text
    assert "data: this is another set than the run's, as you asked: split 'test' has other length and classes" in said


OWN = """
from attention_jax.data import ArraySource
from attention_jax.data.images.decoding import decode_image
from attention_jax.data.images.sources import open_folder
import numpy as np

def make(split, path, names, order):
    source = open_folder(split, path)
    images = np.stack([decode_image(source[i]["image"]) for i in range(len(source))])
    labels = np.array([order.index(int(source[i]["label"])) for i in range(len(source))])
    return ArraySource(images, labels, label_names=names)
"""


def test_classes_in_another_order_are_matched_and_those_without_names_are_numbers(trained, tmp_path, caplog):
    (tmp_path / "own.py").write_text(OWN)
    known = json.dumps(["ant", "bee", "cat"]).encode()

    def labels(names, known=known, order=(2, 0, 1)):
        args = {"path": str(trained[0]), "names": names, "order": order}
        config = config_of(trained[0], data__source=f"{tmp_path}/own.py:make", data__args=args)
        config.data.image_shape, config.model.num_classes = (8, 8, 3), len(json.loads(known))
        loader = classification.evaluation_loader(config, (0, 1), {"labels.json": known})
        return [int(label) for batch in loader.evaluation() for label in batch["label"]]

    right = [0] * 8 + [1] * 8 + [2] * 8
    assert labels(("cat", "ant", "bee")) == right and not caplog.messages
    with caplog.at_level("INFO", "attention_jax"):
        assert labels(()) == [1] * 8 + [2] * 8 + [0] * 8 and not caplog.messages
        assert labels(("ant", "ant", "bee"), b'["ant", "ant", "bee"]') == [1] * 8 + [2] * 8 + [0] * 8 and not caplog.messages
        assert labels((), b'["a", "b", "c", "d"]') and "has 3 classes and the network" in caplog.text
        assert labels(("cat", "ant", "bee"), b'["0", "1", "2"]') and "they are matched by number" in caplog.messages[-1]
    with pytest.raises(UserError, match=r"classes that the network does not know: 'katze' .*, 'ants' \(did you mean 'ant'\?\)"):
        labels(("katze", "ants", "bee"))


def test_unknown_classes_are_an_error_that_lists_them(run, data, capsys):
    for split in ("train", "test"):
        (data / split / "cat").rename(data / split / "zcat")
    assert cli.main(["evaluate", f"--workdir={run}", f"--config.data.args.path={data}"]) == 2
    said = capsys.readouterr().err
    assert "split 'test' has classes that the network does not know: 'zcat' (did you mean 'cat'?): rename or remove" in said


@pytest.mark.parametrize("split", ["train", "test"])
def test_other_pictures_of_the_same_names_are_refused_at_a_resume(run, data, split, capsys):
    picture(COLOURS["bee"], 99).save(data / split / "bee" / "3.png")
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file() and path.name != "timing.jsonl"}
    with pytest.raises(UserError, match=rf"not those that this run began with \(split '{split}' has other contents\)"):
        train_model(config_of(data), run)
    assert before == {path: path.read_bytes() for path in before}
    _, said = evaluate(run, capsys)  # its own path has the data as they were
    assert "this is" not in said


def test_an_evaluation_of_data_that_changed_is_said(trained, run, capsys):
    file = trained[0] / "test" / "bee" / "3.png"
    kept = file.read_bytes()
    try:
        picture(COLOURS["bee"], 99).save(file)
        _, said = evaluate(run, capsys)
    finally:
        file.write_bytes(kept)
    assert "data: this is not the data that this run was trained with: split 'test' has other contents." in said


def test_an_archive_with_other_pixels_is_refused(tmp_path):
    rng = np.random.default_rng(0)
    pixels, labels = rng.integers(0, 256, (24, 8, 8, 3), np.uint8), np.arange(24) % 3

    def train(pixels, progress=lambda step: None):
        np.savez(tmp_path / "set.npz", x_train=pixels, y_train=labels, x_test=pixels, y_test=labels)
        return train_model(config_of(tmp_path / "set.npz", data__source="npz"), tmp_path / "run", progress=progress)

    assert train(pixels, stop_at_step_12).stopped
    other = pixels.copy()
    other[5, 0, 0, 0] ^= 1
    with pytest.raises(UserError, match="split 'train' has other contents; split 'test' has other contents"):
        train(other)
    assert train(pixels).step == 24


def test_a_workdir_without_results_takes_the_new_data(tmp_path):
    data = make_folder(tmp_path / "photos")

    def stop(step):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_model(config_of(data, 12), tmp_path / "run", progress=stop)
    first = (tmp_path / "run" / DATA).read_bytes()
    picture(COLOURS["bee"], 99).save(data / "train" / "bee" / "3.png")
    assert restore.list_steps(tmp_path / "run") == []
    assert train_model(config_of(data, 12), tmp_path / "run").step == 12
    assert (tmp_path / "run" / DATA).read_bytes() != first


def test_an_older_run_without_fingerprint_goes_on(tmp_path, monkeypatch, capsys):
    data = make_folder(tmp_path / "photos")

    with monkeypatch.context() as patch:
        patch.setattr("attention_jax.train.loop.identify_data", lambda *_: {})
        assert train_model(config_of(data), tmp_path / "run", progress=stop_at_step_12).stopped
    picture(COLOURS["bee"], 99).save(data / "train" / "bee" / "3.png")
    assert train_model(config_of(data), tmp_path / "run").step == 24
    assert not (tmp_path / "run" / DATA).exists() and DATA not in aj.load_run(tmp_path / "run").assets
    assert "this is" not in evaluate(tmp_path / "run", capsys)[1]


def test_what_validates_a_run_is_carved_out_of_its_training_split(run, data, capsys, tmp_path):
    _, said = evaluate(run, capsys, "--config.data.eval_split=validation")
    text = (
        "this run was trained on these examples: they are carved out of split 'train', and its data.eval_split='test' left none"
    )
    assert text in said
    for at in ("train", "test"):  # it was trained on other data
        shutil.rmtree(data / at / "cat")
        shutil.copytree(data / at / "bee", data / at / "cat")
    options = ["--config.data.eval_split=validation", f"--config.data.args.path={data}"]
    assert "was trained on these" not in evaluate(run, capsys, *options)[1]


def test_a_run_knows_the_examples_that_are_carved(trained, tmp_path, capsys, monkeypatch):
    config, run = config_of(trained[0], data__eval_split="validation"), tmp_path / "run"
    program = build_program(config)
    assert train_model(config, run, program).step == 24
    found = json.loads((run / DATA).read_text())
    assert (found["train"]["length"], found["validation"]["length"]) == (21, 3)
    assert len(outputs_of(run)["correct"]) == 3
    scores, said = evaluate(run, capsys)
    assert scores["accuracy"] == outputs_of(run)["correct"].mean() and "data: this" not in said
    evaluate(run, capsys, "--config.data.eval_split=test")
    # Its training error is that of the examples that it was trained on.
    read = []
    monkeypatch.setattr(
        "attention_jax.tables.measures.evaluate_model", lambda *_, loader: read.append(loader) or ({"accuracy": 1}, {})
    )
    measure_errors(program, aj.load_run(run))
    assert len(read[0].source) == 21
    with pytest.raises(UserError, match="another config"):
        train_model(config_of(trained[0]), run)


def test_a_run_says_that_its_best_checkpoint_is_chosen_on_the_test(trained):
    def said(**fields):
        return describe_run(build_program(config_of(trained[0], **fields)), {})

    assert (
        "checkpoint.keep_best=1 chooses on split 'test', where only the last may be judged: choose with data.eval_split="
        in said()
    )
    assert "keep_best" not in said(data__eval_split="validation") + said(evaluation__every_steps=24)


def test_a_task_without_source_has_no_fingerprint():
    assert Task.fingerprint(type("Own", (), {"source": lambda *_: None})(), None, "train") == {}
