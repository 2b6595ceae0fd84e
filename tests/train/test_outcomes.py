"""The outcome of an evaluation, example by example."""

import dataclasses
import json

import numpy as np
import pytest
from PIL import Image

import attention_jax as aj
from attention_jax.cli import main as cli
from attention_jax.errors import UserError
from attention_jax.tasks import get_task
from attention_jax.train.evaluate import evaluate_model, save_outputs
from attention_jax.train.outcomes import Evaluation
from attention_jax.train.program import build_program
from tests.helpers.make_tiny_run import RUN
from tests.helpers.small import small_config

pytestmark = pytest.mark.usefixtures("quickly")


def of_images(confidences: list[float], right: list[bool], labels: list[int], first: list[int]) -> Evaluation:
    """Of three classes, with one choice kept."""
    outputs = {
        "label": np.array(labels),
        "correct": np.array(right),
        "top_classes": np.array(first)[:, None],
        "top_probabilities": np.array(confidences, np.float32)[:, None],
    }
    return Evaluation(1, small_config(), {"labels.json": b'["a", "b", "c"]'}, outputs)


def test_the_calibration_error_of_a_case_by_hand():
    """Two bins: (0, 0.5] has 0.5 (wrong) and 0.25 (right); (0.5, 1] has 0.75, 1.0 (right) and 0.75 (wrong)."""
    found = of_images([0.5, 0.25, 0.75, 1.0, 0.75], [False, True, True, True, False], [0, 1, 2, 0, 1], [1, 1, 2, 0, 2])
    calibration = found.measure_calibration(bins=2)
    np.testing.assert_allclose(calibration.confidence, [0.375, 2.5 / 3])
    np.testing.assert_allclose(calibration.accuracy, [0.5, 2 / 3])
    assert calibration.counts.tolist() == [2, 3] and calibration.edges.tolist() == [[0, 0.5], [0.5, 1]]
    assert calibration.error == pytest.approx(2 / 5 * 0.125 + 3 / 5 * (2.5 / 3 - 2 / 3))
    assert found.count_confusions().tolist() == [[1, 1, 0], [0, 1, 1], [0, 0, 1]]
    assert found.measure_classes().tolist() == [0.5, 0.5, 1]
    assert found.find_surest_wrong().tolist() == [4, 0] and found.find_surest_right(2).tolist() == [3, 2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Eleven images in three classes; the fourth image cannot be decoded."""
    root, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for i in range(11):
        path = root / ("train" if i < 4 else "test") / "abc"[i % 3] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).save(path)
    (root / "test" / "a" / "6.png").write_bytes(b"no image")
    return root


def test_an_evaluation_keeps_each_example_in_order_whatever_process_loads_it(folder):
    config = small_config(
        data__source="folder",
        data__args={"path": str(folder)},
        data__image_shape=(8, 8, 3),
        data__mean=(0.4,) * 3,
        data__std=(0.3,) * 3,
        data__num_examples=None,
        model__num_classes=None,
        batch_size=2,
        total_steps=6,
        evaluation__batch_size=4,
    )
    program = build_program(config)
    task, variables = program.task, program.init(np.uint32(0)).variables()
    loader = task.evaluation_loader(program.config, (0, 1), task.assets(program.config))
    scores, outputs = evaluate_model(program, variables, program.config, loader=loader)
    names = [name.decode().removeprefix(f"{folder}/test/") for name in outputs["name"]]
    assert names == ["a/9.png", "b/10.png", "b/4.png", "b/7.png", "c/5.png", "c/8.png"], "neither padding nor the broken one"
    assert outputs["index"].tolist() == [1, 2, 3, 4, 5, 6] and outputs["label"].tolist() == [0, 1, 1, 1, 2, 2]
    assert (np.diff(outputs["top_probabilities"]) <= 0).all()
    np.testing.assert_allclose(outputs["top_probabilities"].sum(1), 1, rtol=1e-5)  # three classes are all kept
    assert ((outputs["top_classes"][:, 0] == outputs["label"]) == outputs["correct"]).all()
    assert scores["accuracy"] == outputs["correct"].mean() and "top5_accuracy" not in scores

    class Shuffled:
        """The rows of a batch as several processes would bring them together in another order."""

        source = loader.source

        def evaluation(self):
            for batch in loader.evaluation():
                yield {name: values[[2, 0, 3, 1]] for name, values in batch.items()}

    _, again = evaluate_model(program, variables, program.config, loader=Shuffled())
    assert outputs.keys() == again.keys()
    for name, values in outputs.items():
        np.testing.assert_allclose(again[name], values, rtol=1e-5) if values.dtype == np.float32 else None
        assert values.dtype == np.float32 or (again[name] == values).all(), name


def test_top_five_of_more_than_ten_classes():
    config = small_config()
    config.model.num_classes = 11
    outputs = {
        "correct": np.array([True, False]),
        "loss": np.ones(2, np.float32),
        "label": np.array([3, 9]),
        "top_classes": np.array([[3, 0, 1, 2, 4], [0, 1, 2, 4, 5]]),
    }
    scores, kept = get_task("classification").metrics(config, outputs)
    assert scores == {"accuracy": 0.5, "loss": 1.0, "top5_accuracy": 0.5} and kept is outputs


def test_evaluate_writes_a_line_an_example(tmp_path, capsys):
    lines_file, arrays = tmp_path / "found.jsonl", tmp_path / "found.npz"
    assert cli.main(["evaluate", f"--workdir={RUN}", f"--predictions={lines_file}"]) == 0
    scores = json.loads(capsys.readouterr().out)
    lines = [json.loads(line) for line in lines_file.read_text().splitlines()]
    assert [line["index"] for line in lines] == list(range(599))
    assert np.mean([line["correct"] for line in lines]) == scores["accuracy"]
    assert all((line["classes"][0] == line["label"]) == line["correct"] and len(line["classes"]) == 5 for line in lines)

    assert cli.main(["evaluate", f"--workdir={RUN}", f"--predictions={arrays}"]) == 0
    run = aj.load_run(RUN)
    evaluation = run.read_evaluation(arrays)
    assert evaluation.lines == lines and evaluation.accuracy == scores["accuracy"] <= evaluation.measure_top()
    assert evaluation.count_confusions().sum() == 599
    with pytest.raises(UserError, match="were not kept when it was made"):
        _ = run.evaluation.measure_calibration()  # of a run made before they were
    assert run.evaluation.accuracy == scores["accuracy"]

    before = lines_file.read_bytes()
    for name, reason in (
        (lines_file, "exists already"),
        (tmp_path / "found.csv", "ends in .jsonl"),
        (tmp_path / "no" / "found.npz", "no folder to be in"),
    ):
        assert cli.main(["evaluate", f"--workdir={RUN}", f"--predictions={name}"]) == 2
        assert reason in capsys.readouterr().err and lines_file.read_bytes() == before


def test_an_evaluation_of_another_step_is_refused(tmp_path):
    run, file = aj.load_run(RUN), tmp_path / "other.npz"
    save_outputs(file, 12, {"correct": np.ones(3)})
    with pytest.raises(UserError, match="no evaluation of step 370"):
        run.read_evaluation(file)
    config = small_config()
    config.task = "other"
    with pytest.raises(UserError, match=r"has no classes: see .lines"):
        _ = dataclasses.replace(of_images([1.0], [True], [0], [0]), config=config).labels
