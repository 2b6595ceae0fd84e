"""Counts and invariants of the Transformer."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import attention_jax as aj
from attention_jax import tree
from attention_jax.kernels.attention import fused_attention
from attention_jax.kernels.matmul import dot_general, score_rows
from attention_jax.models.transformer import Transformer
from attention_jax.nn.multihead import attend_heads, causal_mask
from attention_jax.nn.position import sinusoids
from attention_jax.search import SearchOptions, beam_search, cache_lengths
from tests.helpers.blocks import close, drawn, numbers, quick

pytestmark = pytest.mark.usefixtures("quickly")

TOKENS = (jax.ShapeDtypeStruct((1, 8), jnp.int32), jax.ShapeDtypeStruct((1, 8), jnp.int32))
TINY = dict(vocab_size=11, layers=2, features=8, hidden=16, heads=2, max_length=12)
# Vaswani et al. 2017, Table 3, with 37,000 tokens: N(4d² + 2·d·f + f + 5d) + N(8d² + 2·d·f + f + 7d) + V·d.
TABLE_3 = {
    "base": ({}, 63_045_632),
    "A, 1 head": (dict(heads=1), 63_045_632),
    "A, 32 heads": (dict(heads=32), 63_045_632),
    "B, d_k 16": (dict(key_size=16), 55_967_744),
    "B, d_k 32": (dict(key_size=32), 58_327_040),
    "C, 2 layers": (dict(layers=2), 33_644_544),
    "C, 8 layers": (dict(layers=8), 77_746_176),
    "C, d 256": (dict(features=256, key_size=32, value_size=32), 26_816_512),
    "C, d 1024": (dict(features=1024, key_size=128, value_size=128), 163_815_424),
    "C, d_ff 1024": (dict(hidden=1024), 50_450_432),
    "C, d_ff 4096": (dict(hidden=4096), 88_236_032),
}


def params(model: Any) -> int:
    shapes = jax.eval_shape(model.init, jax.random.key(0), *TOKENS)
    return sum(leaf.size for leaf in jax.tree.leaves(shapes["params"]))


@pytest.mark.slow
@pytest.mark.parametrize("row", TABLE_3)
def test_table_3(row: str) -> None:
    fields, expected = TABLE_3[row]
    assert params(aj.create_model("transformer_base", **fields)) == expected


@pytest.mark.slow
def test_other_counts() -> None:
    base = params(aj.create_model("transformer_base"))
    assert params(aj.create_model("transformer_big")) == 214_171_648
    assert params(aj.create_model("transformer_base", vocab_size=32_768)) == 60_878_848
    assert params(aj.create_model("transformer_base", norm="pre")) == base + 4 * 512
    assert params(aj.create_model("transformer_base", positions="learned", max_length=100)) == base + 2 * 100 * 512
    assert params(aj.create_model("transformer_base", norm="none")) == base - 30 * 2 * 512
    assert params(aj.create_model("transformer_base", embeddings="target")) == base + 37_000 * 512
    assert params(aj.create_model("transformer_base", embeddings="separate")) == base + 2 * 37_000 * 512


def test_summary_names_what_multiplies() -> None:
    """Multiply-adds of n tokens a side: projections and feed-forward layers, the two products over pairs, the logits."""
    table = aj.summary(aj.create_model("transformer_base", vocab_size=1000), TOKENS)
    n, d, hidden = 8, 512, 2048
    pairs = 2 * n * n * d
    assert table.modules["encoder_0"] == (3_150_336, n * (4 * d * d + 2 * d * hidden) + pairs)
    assert table.modules["decoder_0"] == (4_199_936, n * (8 * d * d + 2 * d * hidden) + 2 * pairs)
    assert table.modules["logits"] == (0, n * d * 1000)


def made(**fields: Any) -> tuple[Transformer, dict[str, Any]]:
    """A tiny network, none of whose parameters is at a value that hides a mistake."""
    model = Transformer(**{**TINY, **fields})
    return model, drawn(model, tokens(1, 2, 5), tokens(2, 2, 6))


def tokens(seed: int, batch: int, length: int) -> np.ndarray:
    """Without padding."""
    return np.random.default_rng(seed).integers(3, 11, (batch, length)).astype(np.int32)


VARIANTS = [
    {},
    dict(norm="pre"),
    dict(norm="none"),
    dict(positions="learned"),
    dict(positions="sinusoidal_concatenated"),
    dict(key_size=3, value_size=5),
    dict(embeddings="separate", scaled_attention=False),
]


@pytest.mark.slow
@pytest.mark.parametrize("fields", [{}, dict(norm="pre", positions="learned"), dict(key_size=3, value_size=5)])
def test_no_gradient_from_the_future(fields: dict[str, Any]) -> None:
    """The logits at a place depend on the target's tokens up to it and on all of the source's."""
    model, variables = made(**fields)
    source, target = tokens(1, 1, 5), tokens(2, 1, 6)
    table = variables["params"]["target_embedding"]["embedding"]
    rows = jnp.eye(11)

    def logits(one_hot: jax.Array) -> jax.Array:  # tokens as a continuous input
        changed = {**variables["params"]}
        changed["target_embedding"] = {"embedding": jnp.concatenate([one_hot @ table, table])}
        ids = jnp.arange(6)[None]
        wide = Transformer(**{**TINY, **fields, "vocab_size": 17, "embeddings": "separate"})
        for name in ("source_embedding", "output_embedding"):
            changed[name] = {"embedding": jnp.concatenate([jnp.zeros((6, 8)), table])}
        return wide.apply({"params": changed}, source + 6, ids + 0)[0]

    jacobian = quick(jax.jacrev(logits))(rows[target[0]])  # [T, V, T', V]
    seen = np.abs(jacobian).max((1, 3)) > 1e-9
    np.testing.assert_array_equal(seen, np.tril(np.ones((6, 6), bool)))


def test_without_the_mask_a_place_sees_what_comes_after_it() -> None:
    """And still no padding."""
    model, variables = made(causal=False)
    source, target = tokens(1, 1, 5), tokens(2, 1, 6)
    changed = target.copy()
    changed[0, 5] = target[0, 5] % 8 + 3
    apply = quick(model.apply)
    before, after = apply(variables, source, target), apply(variables, source, changed)
    assert (np.abs(before - after).max(-1) > 1e-6).all()
    close(apply(variables, source, np.pad(target, ((0, 0), (0, 3))))[:, :6], before, 1e-5)
    masked = quick(Transformer(**TINY).apply)
    close(masked(variables, source, target)[:, :5], masked(variables, source, changed)[:, :5], 1e-6)


@pytest.mark.parametrize("norm", ["post", "pre", "none"])
def test_without_residual_connections_a_silent_layer_silences_all(norm: str) -> None:
    for residual in (True, False):
        model, variables = made(norm=norm, residual=residual, final_norm=False)
        flat = {path: 0 * leaf if "mlp/output" in path else leaf for path, leaf in tree.flatten_by_path(variables).items()}
        silent = jax.tree.unflatten(jax.tree.structure(variables), [flat[path] for path in tree.flatten_by_path(variables)])
        logits = quick(model.apply)(silent, tokens(1, 1, 5), tokens(2, 1, 6))
        assert (np.ptp(np.asarray(logits), axis=1).max() > 1e-4) == residual, "every place has the same logits"


@pytest.mark.slow
@pytest.mark.parametrize("fields", VARIANTS)
def test_padding_changes_nothing(fields: dict[str, Any]) -> None:
    model, variables = made(**fields)
    source, target = tokens(1, 2, 5), tokens(2, 2, 6)
    padded = [np.pad(x, ((0, 0), (0, 3))) for x in (source, target)]
    apply = quick(model.apply)
    close(apply(variables, *padded)[:, :6], apply(variables, source, target), 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("fields", VARIANTS)
def test_cache_is_the_full_forward(fields: dict[str, Any]) -> None:
    """Token by token, with sentences at different places, gives the logits of the full forward pass."""
    model, variables = made(**fields)
    source, target = tokens(1, 2, 5), tokens(2, 2, 6)
    source[1, 3:] = 0
    full = quick(model.apply)(variables, source, target)
    memory = model.apply(variables, source, method="encode")
    cache = model.apply(variables, memory, source, 7, method="init_cache")
    step = quick(lambda variables, token, cache: model.apply(variables, token, cache, method="decode_step"))
    for t in range(6):
        logits, cache = step(variables, target[:, t], cache)
        close(logits, full[:, t], 1e-5)


@pytest.mark.slow
def test_a_beam_finds_by_cache_what_it_finds_by_complete_prefixes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hypotheses share the rows of their cache, whichever they go on from; sentences have limits of their own; it may grow."""
    model, variables = made(key_size=3, value_size=5, embeddings="separate")
    variables = jax.tree.map(lambda leaf: 4 * leaf, variables)
    source, length = tokens(5, 6, 5), 6
    source[1, 3:] = 0
    options, limits = SearchOptions(beam=3, n_best=3, bos=1, eos=2), jnp.array([6, 4, 6, 6, 3, 6])
    apply = functools.partial(model.apply, variables)

    def from_the_start(token: jax.Array, cache: dict) -> tuple[jax.Array, dict]:
        rows, place = jnp.arange(len(token)), cache["place"]
        prefix = cache["prefix"].at[rows, place].set(token)
        logits = apply(cache["source"], prefix)[rows, place]
        return logits, {**cache, "prefix": prefix, "place": place + 1}

    full = {"source": source, "prefix": jnp.zeros((6, length), jnp.int32), "place": jnp.zeros(6, jnp.int32)}
    cache = apply(apply(source, method="encode"), source, length, options.beam, method="init_cache")
    step = functools.partial(apply, method="decode_step")
    (found, scores), (expected, values) = (
        quick(lambda cache, step=step: beam_search(step, cache, limits, length, options))(cache)
        for step, cache in ((step, cache), (from_the_start, full))
    )
    np.testing.assert_array_equal(found, expected)
    close(scores, values, 1e-5)
    assert len(np.unique(np.asarray(found).reshape(-1, length), axis=0)) > 10

    monkeypatch.setattr("attention_jax.search._FIRST_CACHE_LENGTH", 2)
    assert cache_lengths(6) == (2, 4, 6) and cache_lengths(2) == (2,) and cache_lengths(5) == (2, 4, 5)
    small = apply(apply(source, method="encode"), source, 2, options.beam, method="init_cache")
    grow = functools.partial(apply, method="grow_cache")
    growing = quick(lambda cache: beam_search(step, cache, limits, length, options, grow))(small)
    np.testing.assert_array_equal(growing[0], found)
    close(growing[1], scores, 1e-6)
    with pytest.raises(ValueError, match="another beam than 1"):
        step(jnp.zeros(6, jnp.int32), cache)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_products_have_the_gradients_of_plain_ones(dtype: str) -> None:
    """Whichever of the two sides is the narrower."""
    for inside, outside in ((4, 5), (5, 4)):
        x, kernel = (jnp.asarray(numbers(*a), dtype) for a in (("x", 2, 3, inside), ("kernel", inside, outside)))
        of_y = numbers("y", 2, 3, outside)
        wide = functools.partial(jnp.matmul, preferred_element_type=jnp.float32)
        pairs = [
            (lambda x, kernel: dot_general(x, kernel, (((2,), (0,)), ((), ()))), jnp.matmul),
            (lambda x, kernel: score_rows(x, kernel.T), wide),
        ]
        for pair in pairs:
            (y, ours), (expected, plain) = (jax.vjp(product, x, kernel) for product in pair)
            assert y.dtype == expected.dtype
            close(y, expected)
            close(ours(of_y.astype(y.dtype)), plain(of_y.astype(y.dtype)))


@pytest.mark.parametrize("masked", ["past", "padding", "nothing"])
@pytest.mark.parametrize("biased", [False, True])
def test_fused_attention_has_the_gradients_of_the_plain_one(masked: str, biased: bool) -> None:
    q, k, v = numbers("q", 2, 4, 3, 5), numbers("k", 2, 6, 3, 5), numbers("v", 2, 6, 3, 5)
    arrays = (q, k, v, numbers("bias", 1, 3, 4, 6)) if biased else (q, k, v)
    masks = {"past": np.tri(4, 6, dtype=bool)[None, None], "padding": np.arange(6) < np.array([6, 3])[:, None, None, None]}
    mask = masks.get(masked)

    def summed(attend: Any) -> Any:
        loss = lambda *arrays: (attend(*arrays) * numbers("y", 2, 4, 3, 5)).sum()  # noqa: E731
        return quick(jax.value_and_grad(loss, range(len(arrays))))(*arrays)

    fused = summed(lambda q, k, v, bias=None: fused_attention(q, k, v, mask, 0.3, bias))
    close(fused, summed(lambda q, k, v, bias=None: attend_heads(q, k, v, mask, 0.3, bias_1HTS=bias)[0]), 1e-5)


@pytest.mark.slow
def test_fused_attention_is_the_plain_one_and_maps_are_seen() -> None:
    """Maps of every layer and head, whose rows sum to one and are zero where a mask hides; recording changes no logit."""
    model, variables = made()
    source, target = tokens(1, 2, 5), tokens(2, 2, 6)
    source[1, 3:] = 0
    fused = quick(model.apply)(variables, source, target)
    plain = quick(Transformer(**TINY, fused_attention=False).apply)(variables, source, target)
    recorded, _ = quick(functools.partial(model.apply, mutable=["attention"]))(variables, source, target)
    close(fused, plain, 1e-5)
    close(fused, recorded, 1e-5)
    maps = aj.attention_maps(model, variables, (source, target))
    close(aj.attention_maps(model, variables, source, target), maps, 0)
    there, past = source[:, None, None] > 0, np.tril(np.ones((1, 1, 6, 6), bool))
    shapes_and_seen = {
        "encoder_{}/self_attention/weights": ((2, 2, 5, 5), there),
        "decoder_{}/self_attention/weights": ((2, 2, 6, 6), past),
        "decoder_{}/cross_attention/weights": ((2, 2, 6, 5), there),
    }
    assert maps.keys() == {name.format(i) for name in shapes_and_seen for i in range(2)}
    for name, (shape, seen) in shapes_and_seen.items():
        for i in range(2):
            weights = np.asarray(maps[name.format(i)])
            assert weights.shape == shape, name
            np.testing.assert_array_equal(weights > 0, np.broadcast_to(seen, shape), err_msg=name)
            close(weights.sum(-1), np.ones(shape[:-1]), 1e-5)
            assert np.abs(weights[:, 0] - weights[:, 1]).max() > 1e-3, "the heads are different"


def test_products_are_divided_by_the_root_of_the_key_size() -> None:
    """Without the division, queries that are smaller by it give the same."""
    source, target = tokens(1, 2, 5), tokens(2, 2, 6)
    model, variables = made(key_size=9, value_size=4)
    smaller = tree.map_with_path(lambda path, leaf: leaf / 3 if "query" in path else leaf, variables["params"])
    unscaled = Transformer(**TINY, key_size=9, value_size=4, scaled_attention=False)
    close(unscaled.apply({"params": smaller}, source, target), model.apply(variables, source, target), 1e-5)
    assert np.abs(np.asarray(unscaled.apply(variables, source, target) - model.apply(variables, source, target))).max() > 1e-3


@pytest.mark.slow
def test_scanned_and_rematerialised_layers_are_the_same() -> None:
    """Logits and gradients, with every dropout."""
    source, target = tokens(1, 2, 5), tokens(2, 2, 6)
    source[1, 3:] = 0
    fields = dict(dropout=0.2, attention_dropout=0.1, relu_dropout=0.1)
    _, variables = made(**fields)

    def gradients(params: Any, **how: bool) -> tuple:
        def loss(params: Any) -> tuple[jax.Array, jax.Array]:
            key = {"dropout": jax.random.key(3)}
            logits = Transformer(**{**TINY, **fields}, **how).apply({"params": params}, source, target, train=True, rngs=key)
            return jnp.square(logits).mean(), logits

        return jax.grad(loss, has_aux=True)(params)

    plain = quick(gradients)(variables["params"])
    for how in (dict(remat=True), dict(scan_layers=True), dict(scan_layers=True, remat=True)):
        close(quick(functools.partial(gradients, **how))(variables["params"]), plain, 1e-5)


def test_scanned_layers_keep_the_tree_and_the_counts_and_shorten_the_program() -> None:
    plain, scanned = (Transformer(**{**TINY, "layers": 4}, scan_layers=scan) for scan in (False, True))
    shapes = [jax.eval_shape(model.init, jax.random.key(0), *TOKENS) for model in (plain, scanned)]
    assert tree.flatten_by_path(shapes[0]) == tree.flatten_by_path(shapes[1])
    assert aj.summary(plain, TOKENS) == aj.summary(scanned, TOKENS)
    programs = [jax.jit(model.apply).lower(shapes[0], *TOKENS).as_text() for model in (plain, scanned)]
    assert len(programs[1]) < 0.6 * len(programs[0])
    params = {"params": shapes[1]["params"]}
    maps = jax.eval_shape(lambda variables: aj.attention_maps(scanned, variables, (np.ones((1, 8), int),) * 2), params)
    assert {"encoder_3/self_attention/weights", "decoder_3/cross_attention/weights"} <= maps.keys()


@pytest.mark.slow
def test_every_dropout_acts_in_training_alone() -> None:
    source, target = tokens(1, 2, 5), tokens(2, 2, 6)
    for field in ("dropout", "attention_dropout", "relu_dropout"):
        off = dict(dropout=0.0, attention_dropout=0.0, relu_dropout=0.0)
        model, variables = made(**{**off, field: 0.5})
        a, b = (model.apply(variables, source, target, train=True, rngs={"dropout": jax.random.key(i)}) for i in (0, 1))
        assert np.abs(np.asarray(a - b)).max() > 1e-3, field
        close(model.apply(variables, source, target), Transformer(**{**TINY, **off}).apply(variables, source, target), 0)


@pytest.mark.slow
def test_bfloat16_keeps_parameters_and_logits_in_float32() -> None:
    source, target = tokens(1, 2, 5), tokens(2, 2, 6)
    model, variables = made(dtype="bfloat16")
    exact = Transformer(**TINY).apply(variables, source, target)
    rounded = model.apply(variables, source, target)
    assert rounded.dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    off = np.abs(np.asarray(exact - rounded)).max() / np.abs(exact).max()
    assert 1e-5 < off < 5e-2


def test_sinusoids() -> None:
    """PE(p, 2i) = sin(p / 10000^(2i/d)) of the paper; tensor2tensor's has exponents i / (d/2 - 1) and no interleaving."""
    places = np.arange(50)
    table = np.asarray(sinusoids(places, 16))
    for i in range(8):
        angle = places / 10000 ** (2 * i / 16)
        np.testing.assert_allclose(table[:, 2 * i], np.sin(angle), atol=3e-6)
        np.testing.assert_allclose(table[:, 2 * i + 1], np.cos(angle), atol=3e-6)
    table = np.asarray(sinusoids(places, 16, "concatenated"))
    for i in range(8):
        angle = places / 10000 ** (i / 7)
        np.testing.assert_allclose(table[:, i], np.sin(angle), atol=3e-6)
        np.testing.assert_allclose(table[:, 8 + i], np.cos(angle), atol=3e-6)


def test_positions_make_order_count() -> None:
    """Without positions and masks the encoder does not see order; with them it does."""
    source = tokens(1, 1, 5)
    order = np.array([3, 1, 4, 0, 2])
    for kind, blind in (("none", True), ("sinusoidal", False), ("learned", False)):
        model, variables = made(positions=kind)
        a = np.asarray(model.apply(variables, source, method="encode"))[:, order]
        b = np.asarray(model.apply(variables, source[:, order], method="encode"))
        assert bool(np.abs(a - b).max() < 1e-4) == blind, kind


def test_masked_keys_have_no_weight() -> None:
    np.testing.assert_array_equal(causal_mask(3)[0, 0], [[1, 0, 0], [1, 1, 0], [1, 1, 1]])
    q, k, v = numbers("q", 1, 4, 1, 3), numbers("k", 1, 4, 1, 3), numbers("v", 1, 4, 1, 2)
    _, weights = attend_heads(q, k, v, causal_mask(4))
    assert (np.asarray(weights[0, 0] > 0) == causal_mask(4)[0, 0]).all()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(norm="both"), "model.norm: 'both' is not one of 'post', 'pre', 'none'"),
        (dict(positions="rotary"), "model.positions"),
        (dict(embeddings="tied"), "model.embeddings"),
        (dict(heads=3), "model.heads=3 does not divide model.features=8"),
        (dict(positions="learned", max_length=5), "a sequence of 6 tokens is longer than the 5 positions"),
        (dict(features=7, heads=1), "features=7 must be an even number"),
    ],
)
def test_mistakes(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(aj.UserError, match=message):
        made(**fields)


def test_names_in_the_tree() -> None:
    """The layout that checkpoints and sharding rules rely on."""
    _, variables = made(layers=1)
    names = {path.rpartition("/")[0] for path in tree.flatten_by_path(variables["params"])}
    attention = ("key", "output", "query", "value")
    assert names == {
        *(f"encoder_0/self_attention/{name}" for name in attention),
        *(f"decoder_0/{kind}/{name}" for kind in ("self_attention", "cross_attention") for name in attention),
        *(f"{side}_0/mlp/{name}" for side in ("encoder", "decoder") for name in ("hidden", "output")),
        *(f"{side}_0/{kind}_sum/layer_norm" for side in ("encoder", "decoder") for kind in ("self_attention", "mlp")),
        "decoder_0/cross_attention_sum/layer_norm",
        "target_embedding",
    }
