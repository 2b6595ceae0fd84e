"""Counts and invariants of the recurrent translation models."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import attention_jax as aj
from attention_jax import tree
from attention_jax.models.rnnsearch import RNNSearch
from attention_jax.models.seq2seq import Seq2Seq
from attention_jax.nn.recurrent import LSTM, Stack
from attention_jax.search import SearchOptions, beam_search
from tests.helpers.blocks import close, drawn, numbers, quick

pytestmark = pytest.mark.usefixtures("quickly")

TOKENS = (jax.ShapeDtypeStruct((1, 8), jnp.int32), jax.ShapeDtypeStruct((1, 6), jnp.int32))
VOCABULARY = 11
FIELDS = dict(vocab_size=VOCABULARY, layers=2, features=8, embedding_size=6)
GRU_FIELDS = dict(vocab_size=VOCABULARY, features=8, embedding_size=6, alignment_size=5, readout_size=4)
KINDS = {
    "lstm": FIELDS,
    "dot": dict(FIELDS, attention="dot", layers=1, reverse_source=False, use_bias=False, forget_bias=1.0),
    "general, feeding": dict(FIELDS, attention="general", input_feeding=True),
    "concat": dict(FIELDS, attention="concat", alignment_size=5),
    "bahdanau": dict(FIELDS, attention="bahdanau", layers=1),
    "bahdanau, feeding": dict(FIELDS, attention="bahdanau", input_feeding=True, alignment_size=5),
    "gru": GRU_FIELDS,
}
ATTENDING = [kind for kind in KINDS if kind != "lstm"]


def made(kind: str, **fields: Any) -> tuple[nn.Module, dict[str, Any]]:
    """A tiny network whose numbers are large enough for every part to matter."""
    model = (RNNSearch if kind == "gru" else Seq2Seq)(**{**KINDS[kind], **fields})
    shapes = jax.eval_shape(model.init, jax.random.key(0), *TOKENS)["params"]
    random = np.random.default_rng(5)
    return model, {"params": jax.tree.map(lambda leaf: random.normal(0, 0.6, leaf.shape).astype(np.float32), shapes)}


def tokens(seed: int, batch: int, length: int) -> np.ndarray:
    """Without padding."""
    return np.random.default_rng(seed).integers(3, VOCABULARY, (batch, length)).astype(np.int32)


# Without biases as the papers' shapes give them, and with one set of them in gates and softmax.
COUNTS = [
    ("lstm_seq2seq", dict(source_vocab_size=160_000, use_bias=False), 384_000_000),
    ("lstm_seq2seq", dict(source_vocab_size=160_000), 384_112_000),
    ("lstm_seq2seq_attention", dict(attention="none", use_bias=False), 214_000_000),
    ("lstm_seq2seq_attention", dict(attention="dot", use_bias=False), 216_000_000),
    ("lstm_seq2seq_attention", dict(use_bias=False), 217_000_000),
    ("lstm_seq2seq_attention", dict(use_bias=False, input_feeding=True), 221_000_000),
    ("lstm_seq2seq_attention", dict(attention="concat", use_bias=False), 216_000_000 + 2_001_000),
    ("lstm_seq2seq_attention", dict(attention="bahdanau", use_bias=False), 216_000_000 + 2_001_000 + 4_000_000),
    ("gru_seq2seq_bahdanau", dict(use_bias=False), 80_401_000),
    ("gru_seq2seq_bahdanau", {}, 80_401_000 + 3 * 3000 + 1000 + 1000 + 30_000),
]


@pytest.mark.parametrize(("name", "fields", "expected"), COUNTS)
def test_counts(name: str, fields: dict[str, Any], expected: int) -> None:
    shapes = jax.eval_shape(aj.create_model(name, **fields).init, jax.random.key(0), *TOKENS)["params"]
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == expected


def test_summary_is_the_closed_form() -> None:
    """Multiply-adds of S source and T target tokens: the scans' bodies count once for every step."""
    s, t, e, h, v = 8, 6, 6, 8, VOCABULARY
    first, above = 4 * h * (e + h), 4 * h * (h + h)
    for attention, feeding in (("none", False), ("general", False), ("concat", True), ("bahdanau", False)):
        model = Seq2Seq(**{**FIELDS, "attention": attention, "input_feeding": feeding})
        table = {name: macs for name, (_, macs) in aj.summary(model, TOKENS).modules.items() if macs}
        expected = {"encoder": s * (first + above), "decoder": t * (first + above), "output": t * h * v}
        context = t * s * h
        if attention != "none":
            expected["combine"] = t * 2 * h * h
            queries = t * h * h + t * s * h if attention in ("concat", "bahdanau") else t * s * h
            expected["cross_attention"] = s * h * h + queries + context
        if feeding or attention == "bahdanau":
            expected["feed"] = t * h * 4 * h
        assert table == expected
    n, a, m = 8, 5, 6
    table = {name: macs for name, (_, macs) in aj.summary(RNNSearch(**GRU_FIELDS), TOKENS).modules.items() if macs}
    assert table == {
        "encoder": 2 * s * 3 * n * (m + n),
        "first_state": n * n,
        "cross_attention": s * 2 * n * a + t * n * a + t * s * a + t * s * 2 * n,
        "decoder": t * 3 * n * (m + n),
        "feed": t * 2 * n * 3 * n,
        "readout": t * (n + m + 2 * n) * 8,
        "output": t * 4 * v,
    }


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_cache_is_the_full_forward(kind: str) -> None:
    """Token by token, with sentences of different lengths, gives the logits of the full forward pass."""
    model, variables = made(kind)
    source, target = tokens(1, 2, 5), tokens(2, 2, 6)
    source[1, 3:] = 0

    @quick
    def begin(variables: Any) -> tuple[jax.Array, Any]:
        memory = model.apply(variables, source, method="encode")
        cache = model.apply(variables, memory, source, 7, method="init_cache")
        return model.apply(variables, source, target), cache

    full, cache = begin(variables)
    assert full.shape == (2, 6, VOCABULARY) and full.dtype == jnp.float32
    assert {leaf.shape[0] for leaf in jax.tree.leaves(cache)} == {2}
    step = quick(lambda variables, token, cache: model.apply(variables, token, cache, method="decode_step"))
    for t in range(6):
        logits, new = step(variables, target[:, t], cache)
        assert jax.tree.map(jnp.shape, new) == jax.tree.map(jnp.shape, cache)
        close(logits, full[:, t], 1e-5)
        cache = new


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_padding_changes_nothing(kind: str) -> None:
    """A sentence beside a longer one has the logits that it has alone, and gives the same gradients."""
    model, variables = made(kind)
    source, target = tokens(1, 1, 5), tokens(2, 1, 4)
    batch = [
        np.concatenate([np.pad(short, ((0, 0), (0, 2))), long])
        for short, long in ((source, tokens(3, 1, 7)), (target, tokens(4, 1, 6)))
    ]

    @quick
    def run(variables: Any, source: jax.Array, target: jax.Array) -> tuple[jax.Array, Any]:
        def loss(variables: Any) -> tuple[jax.Array, jax.Array]:
            logits = model.apply(variables, source, target)[:1, :4]
            return jnp.square(logits).sum(), logits

        return jax.grad(loss, has_aux=True)(variables)

    close(run(variables, *batch), run(variables, source, target), 3e-5)  # an AMD EPYC rounds small gradients to 1.5e-5


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_no_gradient_from_the_future(kind: str) -> None:
    """The logits at a place depend on the target's tokens up to it, and on all of them."""
    model, variables = made(kind)
    source, target = tokens(1, 1, 5), np.arange(3, 9, dtype=np.int32)[None]

    def sizes(table: jax.Array) -> jax.Array:
        params = {**variables["params"], "target_embedding": {"embedding": table}}
        return (model.apply({"params": params}, source, target)[0] * np.linspace(-1, 2, VOCABULARY)).sum(-1)

    jacobian = quick(jax.jacrev(sizes))(variables["params"]["target_embedding"]["embedding"])  # [T, V, D]
    seen = np.abs(jacobian).max(2)[:, 3:9] > 1e-7
    np.testing.assert_array_equal(seen, np.tril(np.ones((6, 6), bool)))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["lstm", "general, feeding", "gru"])
def test_a_sentence_alone_translates_as_in_a_batch(kind: str) -> None:
    """Beam search through the cache."""
    model, variables = made(kind)
    source = tokens(6, 4, 7)
    for i, length in enumerate((7, 4, 1, 5)):
        source[i, length:] = 0
    limits, options = np.array([8, 6, 3, 8]), SearchOptions(beam=3, n_best=2, min_length=6)

    @quick
    def translate(variables: Any, source: jax.Array, limits: jax.Array) -> tuple[jax.Array, jax.Array]:
        def step(token: jax.Array, cache: Any) -> tuple[jax.Array, Any]:
            return model.apply(variables, token, cache, method="decode_step")

        memory = model.apply(variables, source, method="encode")
        return beam_search(step, model.apply(variables, memory, source, 8, method="init_cache"), limits, 8, options)

    found, scores = translate(variables, source, limits)
    assert len(np.unique(scores)) == scores.size  # every source has sentences of its own
    for i in range(4):
        alone, score = translate(variables, source[i : i + 1], limits[i : i + 1])
        np.testing.assert_array_equal(alone[0], found[i])
        close(score[0], scores[i], 1e-5)


@pytest.mark.parametrize("attention", ["none", "dot"])
def test_the_source_is_reversed_among_its_real_tokens(attention: str) -> None:
    source = np.array([[3, 4, 5, 6, 0, 0], [7, 8, 0, 0, 0, 0]], np.int32)
    turned = np.array([[6, 5, 4, 3, 0, 0], [8, 7, 0, 0, 0, 0]], np.int32)
    model, variables = made("lstm", attention=attention)
    assert model.reverse_source
    forward = Seq2Seq(**{**FIELDS, "attention": attention, "reverse_source": False})
    ours, theirs = (
        quick(lambda v, x, m=m: m.apply(v, x, method="encode"))(variables, x) for m, x in ((model, source), (forward, turned))
    )
    close(ours["states"], theirs["states"], 1e-6)
    if attention != "none":  # in the order of the source, whichever way it was read
        for i, length in enumerate((4, 2)):
            close(ours["annotations"][i, :length], theirs["annotations"][i, :length][::-1], 1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ATTENDING)
def test_maps(kind: str) -> None:
    """Attention weights are recorded as one head, in the order of the source, without weight at padding."""
    model, variables = made(kind)
    source, target = tokens(1, 2, 5), tokens(2, 2, 6)
    source[1, 3:] = 0
    maps = aj.attention_maps(model, variables, source, target)
    assert list(maps) == ["cross_attention/weights"]
    weights = np.asarray(maps["cross_attention/weights"])
    assert weights.shape == (2, 1, 6, 5)
    assert (weights[1, ..., 3:] == 0).all()
    close(weights.sum(-1), np.ones((2, 1, 6)), 1e-5)
    assert np.ptp(weights[0, 0], axis=0).max() > 1e-3  # each token has its own query

    @quick
    def first(variables: Any) -> jax.Array:
        cache = model.apply(variables, model.apply(variables, source, method="encode"), source, 6, method="init_cache")
        _, sown = model.apply(variables, target[:, 0], cache, method="decode_step", mutable=["attention"])
        return sown["attention"]["cross_attention"]["weights"][0]

    close(first(variables), weights[:, :, :1], 1e-5)


@pytest.mark.slow
def test_which_state_is_the_query() -> None:
    """Bahdanau's state before the step has not seen the step's word, Luong's has."""
    source, target = tokens(1, 1, 5), np.arange(3, 9, dtype=np.int32)[None]
    changed = np.where(np.arange(6) == 2, 9, target)
    for kind, first in (("dot", 2), ("general, feeding", 2), ("concat", 2), ("bahdanau", 3), ("gru", 3)):
        model, variables = made(kind)
        a, b = (aj.attention_maps(model, variables, source, words)["cross_attention/weights"] for words in (target, changed))
        differs = np.abs(np.asarray(a - b))[0, 0].max(-1) > 1e-6
        np.testing.assert_array_equal(differs, np.arange(6) >= first, err_msg=kind)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["lstm", "concat", "general, feeding", "gru"])
def test_dropout_acts_in_training_alone(kind: str) -> None:
    source, target = tokens(1, 2, 5), tokens(2, 2, 6)
    model, variables = made(kind, dropout=0.5)
    train = quick(lambda variables, key: model.apply(variables, source, target, train=True, rngs={"dropout": key}))
    a, b, c = (train(variables, jax.random.key(i)) for i in (0, 1, 0))
    assert np.abs(np.asarray(a - b)).max() > 1e-3
    close(a, c, 0)
    without, _ = made(kind, dropout=0.0)
    close(*(quick(m.apply)(variables, source, target) for m in (model, without)), 0)


@pytest.mark.parametrize("kind", ["lstm", "general, feeding", "gru"])
def test_dropout_acts_on_what_the_softmax_sees(kind: str) -> None:
    """Where embeddings are zero and there is no second layer, only there."""
    source, target = tokens(1, 2, 5), tokens(2, 2, 6)
    model, variables = made(kind, dropout=0.5, **({} if kind == "gru" else dict(layers=1)))
    variables = tree.map_with_path(lambda path, leaf: 0 * leaf if path.endswith("embedding") else leaf, variables)
    train = quick(lambda variables, key: model.apply(variables, source, target, train=True, rngs={"dropout": key}))
    a, b = (train(variables, jax.random.key(i)) for i in (0, 1))
    assert (np.abs(np.asarray(a - b)).max(-1) > 1e-4).mean() > 0.5


def test_dropout_between_layers() -> None:
    """It acts below the last layer alone, and is the same step by step."""
    x, rngs = numbers("x", 5, 3, 4), {"dropout": jax.random.key(1)}
    for layers in (1, 3):
        stack = Stack(functools.partial(LSTM, features=8), 4, layers, dropout=0.5)
        variables = drawn(stack, x)
        (trained, last), (plain, _) = (stack.apply(variables, x, train=train, rngs=rngs) for train in (True, False))
        assert bool(np.abs(np.asarray(trained - plain)).max() > 1e-3) == (layers > 1)

        def stepped(stack: Stack, x: jax.Array) -> tuple[jax.Array, Any]:
            scales, advance, outputs = stack.dropout_scales(5, 3, True), stack.recurrence(), []
            states = [layer.zeros(3) for layer in stack.forward]
            for t in range(5):
                states = advance(stack.project(x[t]), states, [scale[t] for scale in scales])
                outputs.append(states[-1][0])
            return jnp.stack(outputs), states

        close(stack.apply(variables, x, method=stepped, rngs=rngs), (trained, last), 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["lstm", "general, feeding", "gru"])
def test_bfloat16_keeps_parameters_and_logits_in_float32(kind: str) -> None:
    source, target = tokens(1, 2, 5), tokens(2, 2, 6)
    exact, variables = made(kind)
    rounded, _ = made(kind, dtype="bfloat16")
    shapes = jax.eval_shape(rounded.init, jax.random.key(0), *TOKENS)["params"]
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype("float32")}

    def run(model: nn.Module) -> tuple[Any, jax.Array]:
        def loss(variables: Any) -> tuple[jax.Array, jax.Array]:
            logits = model.apply(variables, source, target)
            return jnp.square(logits).sum(), logits

        gradients, logits = quick(jax.grad(loss, has_aux=True))(variables)
        return jnp.concatenate([jnp.ravel(leaf) for leaf in jax.tree.leaves(gradients)]), logits

    (g, y), (of_rounded, logits) = run(exact), run(rounded)
    assert logits.dtype == of_rounded.dtype == jnp.float32
    for a, b in ((y, logits), (g, of_rounded)):
        assert 1e-5 < np.linalg.norm(a - b) / np.linalg.norm(a) < 5e-2


@pytest.mark.slow
def test_initial_values() -> None:
    """Uniform in ±0.08 (Sutskever et al., Section 3.4), with attention ±0.1 (Luong et al., Section 4.1), at 1000 features;
    Bahdanau et al.'s Section B.1."""
    assert aj.create_model("lstm_seq2seq").init_range() == 0.08
    assert aj.create_model("lstm_seq2seq_attention").init_range() == 0.1
    assert aj.create_model("lstm_seq2seq", features=250).init_range() == pytest.approx(0.16)
    source, target = tokens(1, 1, 3), tokens(2, 1, 3)
    model = aj.create_model("lstm_seq2seq", vocab_size=300, features=32, layers=1, attention="concat", init_scale=0.08)
    params = quick(model.init)(jax.random.key(0), source, target)["params"]
    for path, leaf in tree.flatten_by_path(params).items():
        assert 0.06 < np.abs(leaf).max() <= 0.08, path
    model = RNNSearch(vocab_size=300, features=32, embedding_size=20, alignment_size=24, readout_size=16)
    params = tree.flatten_by_path(quick(model.init)(jax.random.key(0), source, target)["params"])
    for path, leaf in params.items():
        if path.endswith("bias") or "vector" in path:
            assert not np.any(leaf), path
        elif "hidden" in path:
            for square in np.split(np.asarray(leaf), 3, axis=1):
                close(square @ square.T, np.eye(32), 1e-5)
        else:
            assert np.std(leaf) == pytest.approx(0.001 if "cross_attention" in path else 0.01, rel=0.15), path


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(attention="luong"), "model.attention: 'luong' is not one of 'none', 'bahdanau', 'dot', 'general', 'concat'"),
        (dict(input_feeding=True), "model.input_feeding feeds the output of attention"),
        (dict(vocab_size=0), "model.vocab_size=0 leaves no word"),
        (dict(source_vocab_size=1), "model.source_vocab_size=1 leaves no word"),
    ],
)
def test_mistakes(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(aj.UserError, match=message):
        jax.eval_shape(Seq2Seq(**{**FIELDS, **fields}).init, jax.random.key(0), *TOKENS)


def test_names_in_the_tree() -> None:
    """The layout that checkpoints and sharding rules rely on."""
    _, variables = made("bahdanau, feeding", layers=1)
    assert set(tree.flatten_by_path(variables["params"])) == {
        "source_embedding/embedding",
        "target_embedding/embedding",
        *(f"{side}/forward_0/{leaf}" for side in ("encoder", "decoder") for leaf in ("input/kernel", "input/bias")),
        *(f"{side}/forward_0/hidden/kernel" for side in ("encoder", "decoder")),
        *(f"cross_attention/{name}/kernel" for name in ("query", "key", "vector")),
        "feed/kernel",
        "combine/kernel",
        "output/kernel",
        "output/bias",
    }
    _, variables = made("gru")
    assert {path.rpartition("/")[0] for path in tree.flatten_by_path(variables["params"])} == {
        "source_embedding",
        "target_embedding",
        *(f"encoder/{way}_0/{name}" for way in ("forward", "backward") for name in ("input", "hidden")),
        *(f"decoder/{name}" for name in ("input", "hidden")),
        *(f"cross_attention/{name}" for name in ("query", "key", "vector")),
        *("first_state", "feed", "readout", "output"),
    }
