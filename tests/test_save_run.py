"""`aj.save_run`: any weights become a run."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import FrozenDict

import attention_jax as aj
from attention_jax.cli import main as cli
from attention_jax.data import embedded
from attention_jax.errors import UserError
from attention_jax.models.registry import describe_model

pytestmark = pytest.mark.usefixtures("quickly")

DATA = {"image_shape": (8, 8, 1), "mean": (0.3,), "std": (0.38,)}
FIELDS = {"stage_sizes": (1, 1), "widths": (4, 8), "gate": "bam", "gate_at": "stage", "gate_args": FrozenDict(reduction=2)}


@pytest.fixture(scope="module")
def network():
    """A small network with statistics of its own."""
    model = aj.create_model("resnet20", num_classes=10, **FIELDS)
    shapes, rng = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 8, 8, 1))), np.random.default_rng(3)
    kept = {kind: shapes[kind] for kind in ("params", "batch_stats")}
    return model, jax.tree.map(lambda x: 0.2 + 0.1 * rng.random(x.shape, np.float32), kept)


@pytest.fixture(scope="module")
def saved(network, tmp_path_factory):
    return aj.save_run(*network, tmp_path_factory.mktemp("saved") / "run", DATA, labels=[f"digit {i}" for i in range(10)])


def test_it_opens_with_the_same_network_and_weights(network, saved):
    run = aj.load_run(saved)
    assert run.model == network[0] and run.step == 0 and run.metrics == []
    for ours, theirs in zip(jax.tree.leaves(run.variables), jax.tree.leaves(network[1]), strict=True):
        assert np.asarray(ours).tobytes() == np.asarray(theirs).tobytes()
    images = embedded.read_digits("test")[0][:4]
    found = run.predict(images)
    logits = jax.jit(network[0].apply)(network[1], run.preprocess(images))
    assert found.classes.tolist() == np.asarray(logits).argmax(-1).tolist() and found.labels[0].startswith("digit ")


def test_evaluate_takes_it(network, tmp_path, capsys):
    workdir = aj.save_run(*network, tmp_path / "run", DATA)
    assert cli.main(["evaluate", f"--workdir={workdir}", "--config.data.source=digits"]) == 0
    assert 0 <= json.loads(capsys.readouterr().out)["accuracy"] < 0.5


def test_what_is_wrong_is_said(network, saved, tmp_path):
    model, variables = network
    with pytest.raises(UserError, match="it exists: give a new folder"):
        aj.save_run(model, variables, saved, DATA)
    with pytest.raises(UserError, match="it is remote: give a new folder"):
        aj.save_run(model, variables, "memory://somewhere/run", DATA)
    with pytest.raises(UserError, match=r"params/head/bias is \(10,\) in the variables, and \(7,\) in the network"):
        aj.save_run(model.clone(num_classes=7), variables, tmp_path / "a", DATA)
    with pytest.raises(UserError, match=r"batch_stats/\S+ is missing in the variables"):
        aj.save_run(model, {"params": variables["params"]}, tmp_path / "b", DATA)
    with pytest.raises(UserError, match="3 labels for 10 classes"):
        aj.save_run(model, variables, tmp_path / "c", DATA, labels=["a", "b", "c"])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "name", ["resnet50", "resnet20.plain", "bam_resnet50.code", "swin_tiny_patch4_window7_224", "convnext_tiny"]
)
def test_a_network_is_described_by_its_name(name):
    model = aj.create_model(name, num_classes=7)
    described = describe_model(model)
    assert described == {"name": name, "num_classes": 7}
    assert aj.create_model(**described) == model


def test_a_network_is_described_with_its_own_fields():
    model = aj.create_model("resnet20", num_classes=10, **FIELDS)
    described = describe_model(model)
    assert aj.create_model(**described) == model and described["gate_args"] == {"reduction": 2}
    assert described["num_classes"] == 10, "the name's own, which a config would otherwise take from its data"
    with pytest.raises(UserError, match=r"model\.gate=.*no config can hold it"):
        describe_model(model.clone(gate=lambda norm, dtype: None))
