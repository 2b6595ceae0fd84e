"""Opening what was trained: on this machine, on another, by a later version."""

import json
import pickle
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

import attention_jax as aj
from attention_jax.cli import main as cli
from attention_jax.config import config as configs
from attention_jax.config import fields, versions
from attention_jax.data import embedded
from attention_jax.train import checkpoint, restore
from attention_jax.train.step import State
from tests.helpers.make_tiny_run import FIXTURES, LOGITS, RUN
from tests.helpers.small import as_options

pytestmark = pytest.mark.usefixtures("quickly")

# The committed run: made by an earlier version, on another machine. These tests stay as they are.


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return embedded.read_digits("test")[0][:8]


@pytest.fixture(scope="module")
def run() -> aj.Run:
    return aj.load_run(RUN)


def test_the_committed_run_is_small_and_names_no_machine():
    files = [path for path in (*RUN.rglob("*"), LOGITS) if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 200_000
    for path in files:
        assert not any(word in path.read_bytes() for word in (b"/tmp/", b"/home/", b"/root/", b"/Users/", b"/work")), path
    assert (RUN / "checkpoints" / "370" / "state").is_dir() and FIXTURES in RUN.parents


@pytest.mark.parametrize("where", [".", "checkpoints", "checkpoints/370"])
def test_every_folder_of_a_run_opens_it(where, images):
    model, variables = aj.load_checkpoint(RUN / where)
    again = aj.load_run(str(RUN / where))
    assert again.path == RUN / "checkpoints" / "370" and again.step == 370
    assert model == again.model and type(model).__name__ == "ResNet"
    for tree in (variables, again.variables):
        assert set(tree) == {"params", "batch_stats"}
    assert len(again.metrics) == 20, "the log is found from each of them"


@pytest.mark.parametrize("weights", ["params", "ema"])
def test_logits_are_those_of_the_day_it_was_made(weights, images):
    run = aj.load_run(RUN, weights)
    assert run.weights == weights
    logits = jax.jit(run.model.apply)(run.variables, run.preprocess(images))
    with np.load(LOGITS) as saved:
        np.testing.assert_allclose(logits, saved[weights], rtol=1e-3, atol=1e-4)
        assert np.abs(saved["params"] - saved["ema"]).max() > 0.01, "the two differ, and so would their mix-up"


def test_the_average_is_taken_where_there_is_one(run):
    assert run.weights == "ema"


def test_config_labels_assets_and_metrics(run):
    assert run.config.model.to_dict() == {
        "name": "resnet20",
        "stage_sizes": (1, 1),
        "widths": (6, 12),
        "gate": "bam",
        "gate_args": {"reduction": 2},
        "num_classes": 10,
    }
    configs.complete_config(run.config)
    assert run.labels == [str(i) for i in range(10)] and json.loads(run.assets["labels.json"]) == run.labels
    steps, values = run.curve("eval_ema/accuracy")
    assert steps == list(range(37, 371, 37)) and values[-1] == pytest.approx(551 / 599)
    assert run.metrics[-1]["step"] == 370 and run.metrics[-1]["headline"] == values[-1]
    with pytest.raises(aj.UserError, match=r"'eval/acuracy' was not logged; the log has epoch, eval/accuracy, "):
        run.curve("eval/acuracy")


def test_predict(run, images):
    labels = embedded.read_digits("test")[1][:8]
    many = run.predict(images)
    assert many.probabilities.shape == (8, 10) and np.allclose(many.probabilities.sum(1), 1, atol=1e-5)
    assert (many.classes == many.probabilities.argmax(1)).all() and many.labels == [run.labels[i] for i in many.classes]
    assert (many.classes == labels).sum() >= 7
    one = run.predict(images[3])
    assert one.classes.tolist() == [many.classes[3]]
    np.testing.assert_allclose(one.probabilities[0], many.probabilities[3], atol=1e-5)
    assert run.predict(list(images)).classes.tolist() == many.classes.tolist()
    expected = (images / 255 - 0.3) / 0.38
    np.testing.assert_allclose(run.preprocess(images), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (np.zeros((2, 8, 8, 1), np.float32), r"float32 \(2, 8, 8, 1\); this network takes uint8 of shape \(N, \*\(8, 8, 1\)\)"),
        (np.zeros((2, 8, 8, 3), np.uint8), r"uint8 \(2, 8, 8, 3\); this network takes"),
        (np.zeros((2, 9, 8, 1), np.uint8), "this network takes"),
        (np.zeros((8, 8), np.uint8), "this network takes"),
        (np.zeros((1, 2, 8, 8, 1), np.uint8), "this network takes"),
    ],
)
def test_predict_of_something_else(run, wrong, said):
    with pytest.raises(aj.UserError, match=said):
        run.predict(wrong)


def test_attention_maps(run, images):
    inputs = run.preprocess(images)
    maps = {path: np.asarray(x) for path, x in aj.attention_maps(run.model, run.variables, inputs).items()}
    assert {path: x.shape for path, x in maps.items()} == {
        "stage1_gate/channel": (8, 6),
        "stage1_gate/spatial": (8, 8, 8),
        "stage1_gate/map": (8, 8, 8, 6),
        "stage1_gate/input": (8, 8, 8, 6),
        "stage1_gate/output": (8, 8, 8, 6),
    }
    f, m, f_ = (maps[f"stage1_gate/{name}"] for name in ("input", "map", "output"))
    np.testing.assert_allclose(f_, f * (1 + m), rtol=1e-5, atol=1e-6)
    for name in ("channel", "spatial", "map"):
        x = maps[f"stage1_gate/{name}"]
        assert x.min() > 0 and x.max() < 1 and x.std() > 0
    # M(F) = sigmoid(channel + spatial), the branches before their own sigmoids.
    logit = lambda x: np.log(x / (1 - x))  # noqa: E731
    both = logit(maps["stage1_gate/channel"])[:, None, None, :] + logit(maps["stage1_gate/spatial"])[..., None]
    np.testing.assert_allclose(logit(m), both, rtol=1e-3, atol=1e-3)


def test_evaluate_of_the_committed_run(capsys):
    accuracies = {"ema": 551, "params": 552}
    for weights, right in accuracies.items():
        assert cli.main(["evaluate", f"--workdir={RUN}", f"--weights={weights}"]) == 0
        scores = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert scores["weights"] == weights and scores["step"] == 370
        assert abs(scores["accuracy"] * 599 - right) < 1.5, "an example on the border may fall to the other side elsewhere"


def test_config_of_an_old_version(monkeypatch):
    next_version = fields.VERSION + 1

    def to_next(config):
        plain = config.to_dict()
        plain["model"]["norm_running_var"] = "unbiased"
        return ConfigDict({**plain, "version": next_version})

    monkeypatch.setattr(versions, "VERSION", next_version)
    monkeypatch.setattr(versions, "UPGRADES", {**versions.UPGRADES, next_version - 1: to_next})
    run = aj.load_run(RUN)
    assert run.config.version == next_version and run.model.norm_running_var == "unbiased"


def test_config_of_a_version_to_come(monkeypatch):
    monkeypatch.setattr(versions, "VERSION", 0)
    with pytest.raises(aj.UserError, match="version=1 is not right: this installation reads versions 1 to 0"):
        aj.load_run(RUN)


@pytest.mark.slow
def test_from_elsewhere_by_relative_path_and_home(tmp_path, run_python):
    shutil.copytree(RUN, tmp_path / "home" / "runs" / "x")
    (tmp_path / "cwd").mkdir()
    program = (
        "import attention_jax as aj\n"
        "print(*(aj.load_run(path).step for path in ('../home/runs/x', '~/runs/x', '~/runs/x/checkpoints/370')))"
    )
    done = run_python("-c", program, cwd=tmp_path / "cwd", env={"HOME": str(tmp_path / "home")})
    assert done.stdout.split() == ["370"] * 3, done.stderr


# What goes wrong


def test_nothing_there(tmp_path):
    for path, found in ((tmp_path, "an empty folder"), (tmp_path / "none", "nothing"), (RUN / "config.json", "nothing")):
        with pytest.raises(aj.UserError, match=rf"no checkpoint here \(found: {found}\)"):
            aj.load_run(path)
    with pytest.raises(aj.UserError, match=r"no checkpoint here"):
        aj.load_checkpoint(RUN / "checkpoints" / "999")


def test_weights_that_are_not_there(tmp_path):
    with pytest.raises(aj.UserError, match=r"weights='best': .*370 has ema and params\."):
        aj.load_run(RUN, "best")

    arrays, about, _ = restore.read_newest(RUN)
    state = State(np.int32(370), arrays["params"], arrays["batch_stats"], opt_state={}, ema=None)
    checkpoints = checkpoint.Checkpoints(tmp_path, 1, 1, lambda step: None)
    checkpoints.save(jax.tree.map(jax.numpy.asarray, state), {"config": about["config"], "sums": {}}, about["assets"])
    checkpoints.close()
    run = aj.load_run(tmp_path)
    assert run.weights == "params"
    assert (run.variables["params"]["head"]["bias"] == aj.load_run(RUN, "params").variables["params"]["head"]["bias"]).all()
    with pytest.raises(aj.UserError, match=r"weights='ema': .*370 has params only\."):
        aj.load_run(tmp_path, weights="ema")


def test_a_run_that_is_incomplete(tmp_path):
    broken = shutil.copytree(RUN, tmp_path / "run")
    shutil.rmtree(broken / "checkpoints" / "370" / "state")
    with pytest.raises(aj.UserError, match=r"no checkpoint here is complete \(damaged: 370\)"):
        aj.load_run(broken)


def test_without_its_log(tmp_path):
    alone = shutil.copytree(RUN / "checkpoints" / "370", tmp_path / "some" / "step")
    run = aj.load_run(alone)
    assert run.step == 370 and run.metrics == []
    with pytest.raises(aj.UserError, match="the log has no lines"):
        run.curve("eval/accuracy")


# A run of today


@pytest.fixture(scope="module")
def small_run(tmp_path_factory) -> Path:
    workdir = tmp_path_factory.mktemp("run")
    assert cli.main(["train", *as_options(), f"--workdir={workdir}"]) == 0
    return workdir


@pytest.mark.slow
@pytest.mark.parametrize(("weights", "prefix"), [("ema", "eval_ema"), ("params", "eval"), (None, "eval_ema")])
def test_evaluate_gives_exactly_the_logged_numbers(small_run, capsys, weights, prefix):
    options = [f"--weights={weights}"] if weights else []
    assert cli.main(["evaluate", f"--workdir={small_run}", *options]) == 0
    scores = json.loads(capsys.readouterr().out.splitlines()[-1])
    logged = aj.load_run(small_run).metrics[-1]
    assert scores["step"] == logged["step"] == 36
    assert {name: scores[name] for name in ("accuracy", "loss")} == {n: logged[f"{prefix}/{n}"] for n in ("accuracy", "loss")}


def test_evaluate_of_an_earlier_step(small_run, capsys):
    run = aj.load_run(small_run)
    others = sorted(path for path in (small_run / "checkpoints").iterdir() if path.name != "36")
    assert others, "more than the last checkpoint is kept"
    for folder in others:
        earlier = aj.load_run(folder)
        assert earlier.step == int(folder.name) < 36
        assert earlier.metrics == [line for line in run.metrics if line["step"] <= earlier.step]
    assert cli.main(["evaluate", f"--workdir={others[-1]}"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["step"] == int(others[-1].name)


def test_attention_of_a_network_without_any(small_run, images):
    run = aj.load_run(small_run)
    assert aj.attention_maps(run.model, run.variables, run.preprocess(images)) == {}


def test_predict_agrees_with_the_stored_outputs(small_run):
    run = aj.load_run(small_run)
    images, labels = embedded.read_digits("test")
    right = run.predict(images).classes == labels
    with np.load(small_run / "evaluation.npz") as stored:
        assert stored["step"] == 36 and stored["correct"].shape == (599,)
        assert (stored["correct"] != right).sum() <= 1
    assert abs(right.mean() - run.metrics[-1]["headline"]) < 2 / 599


@pytest.mark.parametrize("below", ["", "/checkpoints/370"])
def test_a_run_that_was_copied_to_a_store_opens_there(below):
    here, there = aj.load_run(f"{RUN}{below}"), aj.load_run(f"file://{RUN.resolve()}{below}")
    assert there.step == here.step and there.config == here.config and there.metrics == here.metrics
    jax.tree.map(np.testing.assert_array_equal, there.variables, here.variables)
    with pytest.raises(aj.UserError, match="no checkpoint here: there is none"):
        aj.load_run(f"file://{RUN.resolve().parent}")


def test_a_run_is_pickled_after_it_has_predicted(run, images):
    before = run.predict(images).probabilities  # compiled, which a pickle has no room for
    again = pickle.loads(pickle.dumps(run))
    assert (again.predict(images).probabilities == before).all() and again.labels == run.labels
