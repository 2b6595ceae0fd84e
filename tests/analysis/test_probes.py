"""Probes on features that are known, against plain definitions, and on a network."""

import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import attention_jax as aj
from attention_jax.analysis import probes
from attention_jax.cli import main as cli
from attention_jax.errors import UserError

pytestmark = pytest.mark.usefixtures("quickly")


class TwoHeads(nn.Module):
    """The classifier's name counts, and not that it comes last."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        means = x.mean((1, 2))
        return nn.Dense(5, name="head")(means) + nn.Dense(5, name="other")(means[:, :2])


def draw(number, seed, spread=0.6):
    """Features [N, 5] around a centre for each of three classes, and labels [N]."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(3, size=number)
    return (np.eye(3, 5)[labels] + spread * rng.standard_normal((number, 5))).astype(np.float32), labels


def test_neighbours_vote_with_their_cosine():
    train, labels = draw(60, 0)
    test, _ = draw(30, 1)
    found = probes.classify_by_neighbours(train, labels, test, 7, 0.07)
    for vector, one in zip(test, found, strict=True):
        cosines = train @ vector / np.linalg.norm(train, axis=1) / np.linalg.norm(vector)
        votes = np.zeros(3)
        for i in np.argsort(-cosines)[:7]:
            votes[labels[i]] += np.exp(cosines[i] / 0.07)
        assert votes.argmax() == one
    assert np.array_equal(probes.classify_by_neighbours(train, labels, train, 1), labels)
    # More neighbours than there are: all vote.
    assert len(probes.classify_by_neighbours(train[:5], labels[:5], test, 20)) == 30


def test_the_linear_probe_is_at_the_minimum():
    train, labels = draw(90, 2)
    weights = probes.fit_linear_probe(train, labels, 0.1)

    def loss(weights):
        logits = train @ weights[:-1] + weights[-1]
        logs = logits - np.log(np.exp(logits).sum(1, keepdims=True))
        return -logs[np.arange(90), labels].mean() + 0.05 * (weights[:-1] ** 2).sum()

    assert weights.shape == (6, 3)
    for step in np.random.default_rng(0).standard_normal((20, 6, 3)):
        assert loss(weights) < min(loss(weights + 0.01 * step), loss(weights - 0.01 * step))
    found, l2 = probes.classify_linearly(train, labels, draw(500, 3)[0])
    assert (found == draw(500, 3)[1]).mean() > 0.7 and 1e-6 <= l2 <= 10


def test_features_are_what_the_classifier_reads():
    images, key = jnp.asarray(np.random.default_rng(0).standard_normal((2, 8, 8, 3), np.float32)), jax.random.key(0)
    model = aj.create_model("resnet20", num_classes=3, stage_sizes=(1,), widths=(4,))
    variables = jax.jit(model.init)(key, images)
    compute = jax.jit(lambda x: (probes.compute_features(model, variables, x), model.apply(variables, x)))
    (features, logits), head = compute(images), variables["params"]["head"]
    assert features.shape == (2, 4)
    np.testing.assert_allclose(features @ head["kernel"] + head["bias"], logits, atol=1e-5)

    def trace(model):
        return jax.eval_shape(lambda x: probes.compute_features(model, model.init(key, x), x), images)

    distilled = {"image_size": 8, "patch_size": 4, "layers": 1, "width": 8, "heads": 2}
    assert trace(aj.create_model("deit_tiny_distilled_patch16_224", **distilled)).shape == (2, 8)
    assert trace(TwoHeads()).shape == (2, 3)
    with pytest.raises(UserError, match=r"ResNet has no flax.linen.Dense at its end"):
        trace(aj.create_model("resnet20", features=True, stage_sizes=(1, 1), widths=(4, 8)))


def test_the_command(root, capsys):
    """A run that has learnt ten epochs of the digits: both probes know most of them."""
    assert cli.main(["probe", f"--workdir={root / 'tests' / 'fixtures' / 'tiny_run'}", "--neighbours=10"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["k-NN probe %"] > 80 and said["linear probe %"] > 80 and said["weights"] == "ema"


def test_options_that_are_wrong_are_refused(capsys):
    with pytest.raises(SystemExit):
        cli.main(["probe", "--workdir=nowhere", "--temperature=0"])
    assert "give a number above 0" in capsys.readouterr().err
