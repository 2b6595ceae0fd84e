"""Our recurrent layers and networks against what PyTorch computed for the same numbers (tests/fixtures).

`tests/peers` holds the PyTorch side and compares with it live.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from attention_jax import tree
from attention_jax.models.rnnsearch import RNNSearch
from attention_jax.models.seq2seq import Seq2Seq
from attention_jax.nn.recurrent import LSTM, Stack
from tests.helpers import parity
from tests.helpers import parity_recurrent as shared
from tests.helpers.blocks import quick


def _drawn(shapes: Any, seed: int) -> dict[str, Any]:
    return tree.map_with_path(lambda path, leaf: shared.draw(seed, path, leaf.shape), dict(shapes))


def _compressed(gradients: dict[str, Any]) -> dict[str, np.ndarray]:
    return {path: parity.compress(path, value) for path, value in jax.device_get(gradients).items()}


def our_stack(stack: shared.Stack) -> parity.Results:
    """What `torch_recurrent.run_stack` gives."""
    layer = functools.partial(LSTM, features=stack.features, forget_bias=stack.forget_bias)
    model = Stack(layer, stack.inputs, stack.layers, stack.bidirectional)
    mask = np.arange(max(stack.lengths))[:, None] < np.array(stack.lengths)
    given = {name: stack.numbers(name) for name in ("inputs", "h", "c")}
    params = _drawn(jax.eval_shape(model.init, jax.random.key(0), given["inputs"])["params"], 0)

    @quick
    def everything(params: Any, given: Any) -> tuple:
        def loss(params: Any, given: Any) -> tuple[jax.Array, Any]:
            states = list(zip(given["h"], given["c"], strict=True))
            y, states = model.apply({"params": params}, given["inputs"], mask, states)
            h, c = (jnp.stack(part) for part in zip(*states, strict=True))
            outputs = {"outputs": jnp.where(mask[..., None], y, 0.0), "h": h, "c": c}
            return sum((outputs[name] * stack.numbers(f"of_{name}")).sum() for name in outputs), outputs

        return jax.grad(loss, (0, 1), has_aux=True)(params, given)

    (of_params, of_given), outputs = everything(params, given)
    return {"outputs": jax.device_get(outputs), "gradients": _compressed({**tree.flatten_by_path(of_params), **of_given})}


def ours(case: shared.Case) -> parity.Results:
    """What `torch_recurrent.run` gives."""
    model = (RNNSearch if case.gru else Seq2Seq)(**case.network)
    source, target = case.batch()
    params = _drawn(jax.eval_shape(model.init, jax.random.key(0), source, target)["params"], case.seed)

    @quick
    def everything(params: Any) -> tuple:
        def loss(params: Any) -> tuple[jax.Array, jax.Array]:
            logits, real = model.apply({"params": params}, source, target[:, :-1]), target[:, 1:] > 0
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, target[:, 1:])
            return losses.sum(where=real), jnp.where(real[..., None], logits, 0.0)

        return jax.grad(loss, has_aux=True)(params)

    gradients, logits = everything(params)
    return {"logits": {"": jax.device_get(logits)}, "gradients": _compressed(tree.flatten_by_path(gradients))}


@pytest.mark.parametrize("name", shared.STACKS)
def test_layers_equal_frozen_pytorch(name: str) -> None:
    """Outputs, last states, and gradients of parameters, inputs and first states, with sequences of different lengths."""
    parity.check(our_stack(shared.STACKS[name]), parity.load(name))


@pytest.mark.slow
@pytest.mark.parametrize("name", shared.MODELS)
def test_network_equals_frozen_pytorch(name: str) -> None:
    """Logits and every gradient, with padding in source and target."""
    parity.check(ours(shared.MODELS[name]), parity.load(name))
