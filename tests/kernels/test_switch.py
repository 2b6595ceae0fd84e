"""The switch of kernels: programs of both kinds in one process, the same numbers, and forward mode without kernels."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import attention_jax as aj
from attention_jax.errors import UserError
from attention_jax.kernels.switch import kernels_are_on, use_kernels
from attention_jax.models.resnet import ResNet
from attention_jax.optim.losses import cross_entropy, token_cross_entropy
from attention_jax.search import SearchOptions
from attention_jax.tasks.translator import TranslationOptions, translate_tokens
from tests.helpers.blocks import TINY, close, drawn, numbers, quick

WORDS = dict(vocab_size=11, features=8)
ONE = dict(TINY, widths=(4,), stage_sizes=(1,), gate_stages=(1,))
GROUPED = dict(num_classes=3, block="bottleneck", widths=(8,), stage_sizes=(1,), cardinality=4, width_per_group=16)
NETWORKS = {
    "bam": ResNet(**ONE, gate="bam", gate_args=dict(reduction=2)),
    "grouped": ResNet(**GROUPED),
    "self_attention": ResNet(**ONE, gate="self_attention", gate_args=dict(reduction=2, value_reduction=2)),
    "transformer": aj.create_model("transformer_base", **WORDS, layers=1, hidden=12, heads=2),
    "lstm": aj.create_model("lstm_seq2seq_attention", **WORDS, layers=1, reverse_source=False),
    "rnnsearch": aj.create_model("gru_seq2seq_bahdanau", **WORDS, embedding_size=6, alignment_size=5, readout_size=4),
}
TRANSLATION = ("transformer", "lstm", "rnnsearch")
# What no program has without kernels: own derivatives, calls of built code, barriers, branches by platform.
OWN = ("custom_vjp", "custom_lin", "ffi_call", "optimization_barrier", "platform_index")


@functools.cache
def prepared(name: str) -> tuple:
    """A loss of the parameters, the parameters, and two directions."""
    model, rng = NETWORKS[name], np.random.default_rng(0)
    if name in TRANSLATION:
        padded = np.arange(5) < np.array([[5], [3], [2]])
        inputs = np.where(padded, rng.integers(3, 11, (2, 3, 5)), 0).astype(np.int32)
    else:
        inputs = numbers("images", 1, 2, 16, 16, 3)
    variables = drawn(model, *inputs)
    rest = {kind: leaves for kind, leaves in variables.items() if kind != "params"}

    def loss(params: Any) -> jax.Array:
        logits, _ = model.apply({**rest, "params": params}, *inputs, train=True, mutable=["batch_stats"], rngs={"dropout": KEY})
        if name in TRANSLATION:
            return token_cross_entropy(logits, inputs[1], 0.1).sum()
        return cross_entropy(logits, jnp.asarray([2, 0])).sum()

    directions = [drawn(model, *inputs, seed=seed)["params"] for seed in (1, 2)]
    return loss, variables["params"], directions


KEY = jax.random.key(0)


def flat(tree: Any) -> np.ndarray:
    """All numbers of a tree."""
    return np.asarray(ravel_pytree(tree)[0])


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_without_kernels_derivatives_are_those_of_jax(name: str) -> None:
    """Values and gradients agree with the kernels', and forward mode and forward over reverse do what they should."""
    loss, params, (d, e) = prepared(name)

    def push(params: Any, direction: Any) -> tuple:
        slope = jax.jvp(loss, (params,), (direction,))[1]
        (value, gradient), (_, curved) = jax.jvp(jax.value_and_grad(loss), (params,), (direction,))
        return value, gradient, slope, curved

    pushed = quick(push)
    with pytest.raises(TypeError, match="custom_vjp function"):
        pushed.lower(params, d)
    with_kernels = map(flat, quick(jax.value_and_grad(loss))(params))
    with use_kernels("xla"):
        text = str(jax.make_jaxpr(push)(params, d)) + str(jax.make_jaxpr(loss)(params))
        assert not [word for word in OWN if word in text]
        value, gradient, slope, curved = pushed(params, d)
        *_, curved_along_e = pushed(params, e)
    close((flat(value), flat(gradient)), tuple(with_kernels), 1e-5)
    assert float(slope) == pytest.approx(flat(gradient) @ flat(d), rel=1e-4, abs=1e-5 * float(value))
    assert flat(curved) @ flat(e) == pytest.approx(flat(curved_along_e) @ flat(d), rel=1e-3)  # the Hessian is symmetric


@pytest.mark.slow
@pytest.mark.parametrize("rematerialised", [False, True])
@pytest.mark.parametrize("name", ["grouped", "transformer"])
def test_each_program_is_of_its_platform_and_its_switch(name: str, rematerialised: bool) -> None:
    """In one process, whatever was traced before: neither JAX's caches nor those of `jax.checkpoint` mix the two kinds."""
    loss, params, _ = prepared(name)
    step = jax.jit(jax.grad(jax.checkpoint(loss) if rematerialised else loss))

    def text(platform: str) -> str:
        return step.trace(params).lower(lowering_platforms=(platform,)).as_text()

    def found(text: str) -> dict[str, bool]:
        """The operations that tell the forms of convolution, pooling, matrix product and attention from each other."""
        words = dict(
            grouped="feature_group_count = 4 ", pooled="select_and_scatter", barrier="optimization_barrier", case=".case"
        )
        return {kind: word in text for kind, word in words.items()}

    images = name == "grouped"
    texts = {platform: text(platform) for platform in ("cpu", "tpu", "cuda")}
    with use_kernels("xla"):
        plain = {platform: text(platform) for platform in ("cpu", "tpu")}
    # `jax.checkpoint` puts barriers of its own into a program.
    assert found(texts["cpu"]) == dict(grouped=False, pooled=False, barrier=not images or rematerialised, case=True)
    for platform in ("tpu", "cuda"):
        assert found(texts[platform]) == dict(grouped=images, pooled=images, barrier=rematerialised, case=True)
    for platform in ("cpu", "tpu"):
        assert found(plain[platform]) == dict(grouped=images, pooled=images, barrier=rematerialised, case=False)
    assert {platform: text(platform) for platform in ("cpu", "tpu")} == {kind: texts[kind] for kind in ("cpu", "tpu")}


@pytest.mark.slow
@pytest.mark.parametrize("name", TRANSLATION)
def test_decoding_finds_the_same_without_kernels(name: str) -> None:
    model, source = NETWORKS[name], np.asarray([[5, 4, 7, 3], [6, 8, 0, 0]], np.int32)
    variables = jax.tree.map(lambda leaf: 2 * leaf, drawn(model, source, source))
    options = TranslationOptions(SearchOptions(beam=2, n_best=2), fixed=6)
    search = quick(lambda variables, source: translate_tokens(model, variables, source, options))
    tokens, scores = search(variables, source)
    with use_kernels("xla"):
        plain_tokens, plain_scores = search(variables, source)
        text = str(search.trace(variables, source).jaxpr)
        assert not [word for word in OWN if word in text]
    np.testing.assert_array_equal(tokens, plain_tokens)
    close(scores, plain_scores, 1e-4)


def test_a_choice_lasts_as_long_as_its_block() -> None:
    with use_kernels("xla"):
        assert not kernels_are_on()
        with use_kernels("auto"):
            assert kernels_are_on()
        assert not kernels_are_on()
    assert kernels_are_on()
    with pytest.raises(UserError, match=r"^use_kernels: 'fast' is not one of 'auto', 'xla'\.$"):
        use_kernels("fast")


@pytest.mark.slow
def test_the_environment_sets_the_default(run_cli: Any, run_python: Any) -> None:
    program = "import jax; from attention_jax.nn.conv import Conv; from tests.helpers.blocks import numbers\n"
    program += "conv, x = Conv(2, (3, 3)), numbers('x', 1, 4, 4, 2); v = conv.init(jax.random.key(0), x)\n"
    program += "print(jax.jvp(lambda x: conv.apply(v, x), (x,), (x,))[1].shape)"
    done = run_python("-c", program, env={"AJ_KERNELS": "xla"})
    assert done.stdout == "(1, 4, 4, 2)\n", done.stderr
    wrong = run_cli("summary", "resnet20", env={"AJ_KERNELS": "fast"})
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert wrong.stderr == "error: AJ_KERNELS: 'fast' is not one of 'auto', 'xla'.\n"
