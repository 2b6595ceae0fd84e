"""Our Transformer against what PyTorch's and Hugging Face's computed for the same numbers (tests/fixtures).

`tests/peers` holds the other side and compares with it live.
"""

import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from attention_jax import UserError, tree
from attention_jax.interop.marian import convert_generation_options, convert_marian
from attention_jax.models.transformer import Transformer
from attention_jax.optim.losses import cross_entropy
from attention_jax.optim.optimizers import make_optimizer
from attention_jax.optim.schedules import make_schedule
from attention_jax.search import beam_search
from tests.helpers import parity
from tests.helpers import parity_translation as shared
from tests.helpers.blocks import drawn, quick


def ours(case: shared.Case) -> parity.Results:
    """Logits, the summed loss over the target's words, its gradients, and what one step of the paper's Adam changes."""
    model, (source, target_in, target_out) = Transformer(**case.network), case.batch()
    before = drawn(model, source, target_in, seed=case.seed)["params"]
    rate = make_schedule("noam", 1.0, 100, case.warmup_steps, d_model=model.features)
    optimizer = make_optimizer("adamw", rate, 0.0, ((".*", False),), **shared.ADAM)

    @quick
    def everything(params: Any) -> dict[str, Any]:
        def loss(params: Any) -> tuple[jax.Array, jax.Array]:
            logits = model.apply({"params": params}, source, target_in)
            losses = cross_entropy(logits.reshape(-1, model.vocab_size), target_out.reshape(-1), case.label_smoothing)
            return jnp.sum(losses, where=target_out.reshape(-1) > 0), logits

        (value, logits), gradients = jax.value_and_grad(loss, has_aux=True)(params)
        changes, _ = optimizer.update(gradients, optimizer.init(params), params)
        after = optax.apply_updates(params, changes)
        return dict(
            logits={"": logits},
            loss={"": value[None]},
            gradients=tree.flatten_by_path(gradients),
            changes=tree.flatten_by_path(after),
        )

    results = jax.device_get(everything(before))
    results["changes"] = {
        path: np.float64(results["changes"][path]) - value
        for path, value in tree.flatten_by_path(before).items()
        if shared.has_gradient(path)
    }
    for kind in ("gradients", "changes"):
        results[kind] = {path: parity.compress(path, value) for path, value in results[kind].items()}
    return results


class Marian:
    """An imported network, compiled once for all ways of generating."""

    def __init__(self, name: str):
        self.name, self.config = name, shared.MARIANS[name]
        self.model, self.variables = convert_marian(self.config, shared.marian_weights(self.config))
        self.source, self.target = shared.marian_batch(self.config)

    @functools.cached_property
    def logits(self) -> np.ndarray:
        """[6, 7, V]."""
        return np.asarray(quick(self.model.apply)(self.variables, self.source, self.target))

    def generate(self, way: str) -> tuple[np.ndarray, np.ndarray]:
        """Tokens [N, 1 + NEW_TOKENS] with the start symbol, and scores, as `MarianMTModel.generate` returns them."""
        options = convert_generation_options(self.config, shared.GENERATIONS[way])

        @quick
        def run(variables: Any, source: jax.Array) -> tuple[jax.Array, jax.Array]:
            apply = functools.partial(self.model.apply, variables)
            memory = apply(source, method="encode")
            cache = apply(memory, source, shared.NEW_TOKENS, options.beam, method="init_cache")
            step = functools.partial(apply, method="decode_step")
            limits = jnp.full(len(source), shared.NEW_TOKENS)
            return beam_search(step, cache, limits, shared.NEW_TOKENS, options)

        tokens, scores = jax.device_get(run(self.variables, self.source))
        rows = tokens.reshape(-1, shared.NEW_TOKENS)
        start = np.full((len(rows), 1), self.config["decoder_start_token_id"])
        return np.concatenate([start, rows], 1), scores.reshape(-1)

    def check(self, theirs: parity.Results, ways: Any = shared.GENERATIONS) -> None:
        """Asserts that logits, tokens and scores are those of `theirs`."""
        assert parity.difference(self.logits, theirs["logits"][""]) < parity.LOGITS
        for way in ways:
            tokens, scores = self.generate(way)
            np.testing.assert_array_equal(tokens, theirs["tokens"][way].astype(int), err_msg=f"{self.name}, {way}")
            if way in theirs["scores"]:
                assert parity.difference(scores, theirs["scores"][way]) < parity.LOGITS


@pytest.fixture(scope="module")
def marian() -> Iterator[Marian]:
    """The network of published models' form."""
    return Marian("marian_shared")


@pytest.mark.slow
@pytest.mark.parametrize("name", shared.CASES)
def test_transformer_equals_frozen_pytorch(name: str) -> None:
    """Logits, loss, every gradient and one optimizer step, with padding in source and target."""
    parity.check(ours(shared.CASES[name]), parity.load(name))


@pytest.mark.slow
def test_imported_marian_equals_frozen_hugging_face(marian: Marian) -> None:
    """Logits, and beams of four with scores by four rules of length, stopping and end."""
    marian.check(parity.load(marian.name))


def test_imported_marian_with_separate_embeddings(marian: Marian) -> None:
    Marian("marian_separate").check(parity.load("marian_separate"), ways=("published",))


def test_cached_steps_of_the_imported_network_are_the_full_forward(marian: Marian) -> None:
    apply = functools.partial(marian.model.apply, marian.variables)
    memory = apply(marian.source, method="encode")
    cache = apply(memory, marian.source, 8, method="init_cache")
    step = quick(functools.partial(apply, method="decode_step"))
    for t in range(marian.target.shape[1]):
        logits, cache = step(marian.target[:, t], cache)
        assert parity.difference(logits, marian.logits[:, t]) < parity.LOGITS


def test_weights_that_do_not_fit_are_all_named() -> None:
    config = shared.MARIANS["marian_shared"]
    weights = shared.marian_weights(config)
    name = "model.encoder.layers.1.fc1.weight"
    weights["model.encoder.layers.0.fc3.weight"] = weights.pop("model.encoder.layers.0.fc1.weight")
    weights["model.encoder.layers.2.fc1.bias"] = weights["model.encoder.layers.1.fc1.bias"]
    weights["lm_head.weight"] = weights["model.shared.weight"] + 1
    weights[name] = weights[name].T
    with pytest.raises(UserError) as error:
        convert_marian(config, weights)
    said = str(error.value)
    assert "unknown names: model.encoder.layers.0.fc3.weight;" in said
    assert "weights for which this network has no place: model.encoder.layers.2.fc1.bias;" in said
    assert "names of one parameter with different numbers: lm_head.weight for target_embedding/embedding" in said
    assert f"other shapes: {name} (12, 8) where encoder_1/mlp/hidden/kernel is (8, 12)" in said
    assert "parameters that nothing gives: encoder_0/mlp/hidden/kernel, encoder_1/mlp/hidden/kernel." in said


def test_tied_weights_under_all_their_names_and_position_tables_are_accepted(marian: Marian) -> None:
    weights = shared.marian_weights(marian.config)
    for name in ("lm_head", "model.encoder.embed_tokens", "model.decoder.embed_tokens"):
        weights[f"{name}.weight"] = weights["model.shared.weight"]
    weights["model.encoder.embed_positions.weight"] = np.zeros((32, 8))
    _, variables = convert_marian(marian.config, weights)
    jax.tree.map(np.testing.assert_array_equal, variables, marian.variables)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(decoder_layers=3), "encoder_layers=2 and decoder_layers=3: they must be equal"),
        (dict(decoder_vocab_size=30), "vocab_size=24 and decoder_vocab_size=30: they must be equal"),
        (dict(activation_function="mish"), "activation_function='mish', which is not one of 'relu', 'gelu', 'swish', 'silu'"),
        (dict(d_model=None), "has no 'd_model'"),
    ],
)
def test_configs_that_cannot_be_followed(changes: dict[str, Any], message: str) -> None:
    config = {**shared.MARIANS["marian_shared"], **changes}
    config = {name: value for name, value in config.items() if value is not None}
    with pytest.raises(UserError, match=message):
        convert_marian(config, {})
