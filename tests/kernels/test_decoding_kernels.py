"""The kernels for decoding on CPU give what XLA's programs give, and where they cannot be built those do the work."""

import functools
import logging
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import attention_jax as aj
from attention_jax.kernels import decoding, native
from attention_jax.kernels.matmul import dot_general
from attention_jax.kernels.switch import use_kernels
from attention_jax.nn.multihead import attend_rows
from attention_jax.search import SearchOptions
from attention_jax.tasks.translator import TranslationOptions, translate_tokens
from tests.helpers.blocks import close, drawn, numbers, quick

SCALE = 0.7
needs_compiler = pytest.mark.skipif(shutil.which("c++") is None, reason="the kernels are built by a C++ compiler: c++")


@pytest.fixture(autouse=True)
def loaded_anew() -> Iterator[None]:
    native.load.cache_clear()
    yield
    native.load.cache_clear()


def by_xla(*arrays: jax.Array) -> jax.Array:
    return attend_rows(*arrays, SCALE)[0]


def text(function: Callable[..., Any], *arguments: Any) -> str:
    return jax.jit(function).lower(*arguments).as_text()


@needs_compiler
@pytest.mark.parametrize("rows", [1, 2, 7, 8, 11, 32, 64, 131, 256])
def test_product_is_matmul(rows: int) -> None:
    """With sides that no vector and no block divides, and with those that they do."""
    for depth, columns in ((1, 1), (5, 40), (64, 128), (100, 79), (257, 16), (520, 200), (300, 2050)):
        x, kernel = numbers("x", rows, depth), numbers("kernel", depth, columns)
        assert "aj_product" in text(decoding.multiply_rows, x, kernel)
        expected = np.matmul(x, kernel, dtype=np.float64)
        close(jax.jit(decoding.multiply_rows)(x, kernel), expected, 1e-6 * np.abs(expected).max())


MASKS = {
    "everything": lambda b, t, s: np.ones((b, 1, 1, s), bool),
    "padding": lambda b, t, s: np.arange(s) < np.linspace(1, s, b).astype(int)[:, None, None, None],
    "past": lambda b, t, s: np.broadcast_to(np.arange(s) <= s // 2, (b, 1, t, s)),
    "own": lambda b, t, s: (
        np.broadcast_to(np.arange(s) % t == np.arange(t)[:, None], (b, 1, t, s)) & (np.arange(s) < max(t, s // 2))
    ),
    "a query sees nothing": lambda b, t, s: np.broadcast_to(np.arange(t)[:, None] > 0, (b, 1, t, s)) & (np.arange(s) < s // 2),
    "nothing": lambda b, t, s: np.zeros((b, 1, 1, s), bool),
}


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize("masked", MASKS)
def test_attention_is_that_of_xla(masked: str) -> None:
    """Whatever is hidden, a query that sees nothing has the mean and not NaN, and what is behind a mask may be anything."""
    for b, h, t, s, k, v in (
        (3, 2, 1, 16, 8, 8),
        (1, 1, 1, 1, 1, 1),
        (5, 2, 4, 48, 16, 64),
        (40, 8, 2, 20, 3, 5),
        (2, 3, 8, 130, 7, 36),
    ):
        mask = np.ascontiguousarray(MASKS[masked](b, t, s))
        q, keys, values = 3 * numbers("q", b * t, h * k), numbers("k", b, h, k, s), numbers("v", b, h, s, v)
        ours = functools.partial(decoding.attend_cached, scale=SCALE, plain=by_xla)
        assert "aj_attend" in text(ours, q, keys, values, mask)
        close(jax.jit(ours)(q, keys, values, mask), by_xla(q, keys, values, mask), 1e-5)


@needs_compiler
def test_gradients_and_batches_are_those_of_xla() -> None:
    x, kernel = numbers("x", 8, 6), numbers("kernel", 6, 4)

    def product(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return dot_general(x, kernel, (((1,), (0,)), ((), ())))

    assert "aj_product" in text(product, x, kernel)
    ours, plain = (jax.grad(lambda x, w, f=f: (f(x, w) ** 2).sum(), (0, 1))(x, kernel) for f in (product, jnp.matmul))
    close(ours, plain, 1e-5)
    many = np.stack([x, 2 * x]), np.stack([kernel, kernel + 1])
    close(jax.vmap(decoding.multiply_rows)(*many), np.matmul(*many), 1e-5)
    arrays = numbers("q", 4, 6), numbers("k", 2, 2, 3, 5), numbers("v", 2, 2, 5, 4)
    mask = np.arange(5) < np.array([5, 2])[:, None, None, None]

    def by_kernel(*arrays: jax.Array) -> jax.Array:
        return decoding.attend_cached(*arrays, SCALE, by_xla)

    ours, plain = (jax.grad(lambda *a, f=f: (f(*a, mask) ** 2).sum(), (0, 1, 2))(*arrays) for f in (by_kernel, by_xla))
    close(ours, plain, 1e-5)


def test_only_for_few_rows_in_single_precision_on_one_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "load", lambda source: True)
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    monkeypatch.setattr(jax, "default_backend", lambda: "cpu")

    def traced(shape: tuple[int, ...], dtype: str = "float32") -> str:
        x, kernel = (jax.ShapeDtypeStruct(side, dtype) for side in (shape, (shape[-1], 5)))
        return str(jax.make_jaxpr(lambda x, kernel: decoding.multiply_rows(x, kernel))(x, kernel))

    assert "aj_product" in traced((1, 4)) and "aj_product" in traced((256, 4))
    for other in (traced((0, 4)), traced((257, 4)), traced((2, 8, 4)), traced((8, 4), "bfloat16")):
        assert "aj_product" not in other
    for name, value in (("device_count", 2), ("default_backend", "tpu")):
        with monkeypatch.context() as changed:
            changed.setattr(jax, name, lambda value=value: value)
            assert "aj_product" not in traced((8, 4)), name


@pytest.fixture(scope="module")
def translation() -> tuple[Any, dict[str, Any], np.ndarray]:
    """A network and 9 sentences, most of them padded."""
    model = aj.create_model(
        "transformer_base",
        vocab_size=50,
        layers=2,
        features=16,
        hidden=24,
        heads=2,
        attention_bias=True,
        norm="pre",
        embeddings="separate",
    )
    rng = np.random.default_rng(1)
    source = np.where(np.arange(9) < rng.integers(3, 10, (9, 1)), rng.integers(3, 50, (9, 9)), 0).astype(np.int32)
    variables = drawn(model, source[:1], source[:1])
    return model, jax.tree.map(lambda leaf: 2 * leaf, variables), source


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize("beam", [1, 3])
def test_a_search_finds_the_same_with_them(beam: int, translation: tuple) -> None:
    """Over the growth of the cache; and a sentence finds the same in a smaller batch."""
    model, variables, source = translation
    options = TranslationOptions(SearchOptions(beam=beam, n_best=beam), fixed=40)

    def translate() -> Callable[..., Any]:  # traced anew
        return lambda variables, source: translate_tokens(model, variables, source, options)

    traced = text(translate(), variables, source)
    assert "aj_product" in traced and "aj_attend" in traced
    tokens, scores = quick(translate())(variables, source)
    assert len(np.unique(tokens)) > 15 and (tokens[:, 0, 20] > 0).any()
    np.testing.assert_array_equal(quick(translate())(variables, source[:1])[0], tokens[:1])

    with use_kernels("xla"):
        traced = text(translate(), variables, source)
        assert "aj_product" not in traced and "aj_attend" not in traced
        without = quick(translate())(variables, source)
    np.testing.assert_array_equal(without[0], tokens)
    close(without[1], scores, 1e-4)


def test_without_a_compiler_xla_does_the_work(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: Any) -> None:
    """No compiler, one that fails, one that writes no library, no place to write, no home directory: said once."""
    failing, writing_nothing = tmp_path / "failing", tmp_path / "nothing"
    failing.write_text("#!/bin/sh\necho 'no such header' >&2\nexit 1\n")
    writing_nothing.write_text('#!/bin/sh\nfor last; do :; done\necho text > "$last"\n')
    file = tmp_path / "file"
    file.touch()
    x, kernel = numbers("x", 8, 6), numbers("kernel", 6, 4)

    def no_home() -> Path:  # what Path.home does for a user whom the system does not know
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", no_home)
    cases = [
        (tmp_path / "none", tmp_path, "none"),
        (failing, tmp_path, "be built: no such header"),
        (writing_nothing, tmp_path, "too short"),
        ("c++", file, "Not a directory"),
        ("c++", "", "home directory"),
    ]
    for compiler, cache, said in cases:
        for script in (failing, writing_nothing):
            script.chmod(0o755)
        monkeypatch.setenv("CXX", str(compiler))
        monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
        native.load.cache_clear()
        caplog.clear()
        with caplog.at_level(logging.INFO, native.__name__):
            for _ in range(2):
                close(jax.jit(lambda x, kernel: decoding.multiply_rows(x, kernel))(x, kernel), x @ kernel, 1e-6)
        (message,) = (record.getMessage() for record in caplog.records if "goes without" in record.getMessage())
        assert said in message, (said, message)


@pytest.mark.slow
@needs_compiler
def test_built_once_for_a_processor_and_a_source(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    first = native._built("decoding")
    assert first.parent == tmp_path / "attention_jax" / "kernels" and os.listdir(first.parent) == [first.name]

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("built again")

    with monkeypatch.context() as changed:
        changed.setattr(subprocess, "run", never)
        assert native._built("decoding") == first
        processor = native._cpu
        changed.setattr(native, "_cpu", lambda: "another")
        with pytest.raises(AssertionError, match="built again"):
            native._built("decoding")
        changed.setattr(native, "_cpu", processor)
        changed.setattr(Path, "read_bytes", lambda path: b"another")
        with pytest.raises(AssertionError, match="built again"):
            native._built("decoding")
