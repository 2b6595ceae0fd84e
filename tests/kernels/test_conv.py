"""Convolution and max-pooling with their own programs on CPU: the numbers are XLA's, and so are other platforms' programs."""

import collections
import re
import shutil
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import attention_jax as aj
from attention_jax.kernels.conv import convolve
from attention_jax.kernels.max_pool import max_pool
from attention_jax.kernels.switch import use_kernels
from attention_jax.nn.conv import Conv
from tests.helpers.blocks import close, numbers, quick

needs_compiler = pytest.mark.skipif(shutil.which("c++") is None, reason="the kernels are built by a C++ compiler: c++")
LAYOUT = ("NHWC", "HWIO", "NHWC")

# (height, width), input channels, filters, kernel side, stride, dilation, groups; padding is dilation·(k-1)/2 a side.
GEOMETRIES = {
    "pointwise": (
        ((7, 9), 5, 6, 1, 1, 1, 1),
        ((7, 8), 5, 6, 1, 2, 1, 1),
        ((7, 8), 5, 6, 1, 3, 2, 1),
    ),
    "long_sums": (
        ((64, 40), 3, 5, 1, 1, 1, 1),
        ((64, 40), 5, 3, 1, 1, 1, 1),
        ((128, 80), 3, 5, 1, 2, 1, 1),
    ),
    "dense": (
        ((7, 9), 3, 4, 3, 1, 1, 1),
        ((8, 7), 3, 4, 3, 2, 1, 1),
        ((9, 9), 3, 4, 3, 1, 4, 1),
        ((9, 8), 3, 4, 7, 2, 1, 1),
    ),
    "many_channels": (
        ((7, 9), 64, 5, 3, 1, 1, 1),
        ((6, 7), 66, 7, 5, 1, 2, 1),
    ),
    "small_maps": (
        ((2, 2), 3, 4, 3, 1, 1, 1),
        ((3, 4), 3, 4, 3, 2, 1, 1),
        ((1, 2), 3, 4, 3, 1, 2, 1),
    ),
    "one_block": (
        ((7, 9), 8, 8, 3, 1, 1, 4),
        ((8, 7), 8, 16, 3, 2, 1, 4),
        ((9, 8), 6, 9, 3, 1, 2, 3),
        ((5, 5), 8, 8, 1, 1, 1, 4),
    ),
    "blocks": (
        ((7, 6), 64, 64, 3, 1, 1, 16),
        ((7, 6), 80, 40, 3, 2, 1, 2),
        ((6, 5), 72, 72, 3, 1, 1, 24),
        ((2, 2), 64, 64, 3, 1, 1, 8),
    ),
    "depthwise": (
        ((7, 9), 20, 20, 3, 1, 1, 20),
        ((8, 7), 6, 6, 3, 2, 1, 6),
        ((9, 8), 6, 6, 3, 3, 2, 6),
        ((9, 8), 6, 6, 7, 1, 1, 6),
        ((5, 6), 4, 12, 3, 2, 1, 4),
    ),
}


by_xla = jax.lax.conv_general_dilated


def arrays(geometry: tuple) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
    """An input, a kernel, and what else the convolution takes."""
    (h, w), channels, features, k, stride, dilation, groups = geometry
    how = dict(
        window_strides=(stride, stride),
        padding=[(dilation * (k - 1) // 2,) * 2] * 2,
        rhs_dilation=(dilation, dilation),
        dimension_numbers=LAYOUT,
        feature_group_count=groups,
    )
    return numbers("x", 2, h, w, channels), numbers("kernel", k, k, channels // groups, features), how


def everything(function: Callable[..., jax.Array], *inputs: np.ndarray) -> tuple:
    """The output, and the gradients of a weighted sum of it."""
    y, pull = jax.vjp(function, *inputs)
    return y, *pull(jnp.asarray(numbers("weights", *y.shape)))


class TestConvolve:
    @pytest.mark.parametrize("kind", GEOMETRIES)
    def test_numbers_are_those_of_xla(self, kind: str) -> None:
        def run(form: Callable) -> Callable:
            return lambda: [
                everything(lambda x, kernel, how=how: form(x, kernel, **how), x, kernel)
                for x, kernel, how in map(arrays, GEOMETRIES[kind])
            ]

        close(quick(run(convolve))(), quick(run(by_xla))(), 1e-5)

    def test_strides_that_differ(self) -> None:
        """A pointwise convolution, a dense one and one of groups, each with another stride down than to the right."""

        def run(form: Callable) -> Callable:
            def all_three() -> list[tuple]:
                results = []
                for k, groups in ((1, 1), (3, 1), (3, 2)):
                    x, kernel = numbers("x", 2, 7, 8, 6), numbers("kernel", k, k, 6 // groups, 4)
                    how = dict(padding=[(k // 2, k // 2)] * 2, dimension_numbers=LAYOUT, feature_group_count=groups)
                    results.append(everything(lambda x, kernel, how=how: form(x, kernel, (2, 3), **how), x, kernel))
                return results

            return all_three

        close(quick(run(convolve))(), quick(run(jax.lax.conv_general_dilated))(), 1e-5)

    @needs_compiler
    def test_the_kernels_gradient_over_many_blocks(self) -> None:
        """Parts of the batch, groups of channels, blocks of images and of rows, of which the last are smaller."""
        for batch, h, w, channels, features, k, stride, dilation in (
            (17, 9, 7, 5, 17, 3, 1, 1),
            (2, 64, 40, 34, 20, 3, 2, 2),
            (3, 70, 41, 33, 40, 3, 1, 1),
            (9, 4, 5, 260, 3, 3, 1, 1),
        ):
            x, kernel = numbers("x", batch, h, w, channels), numbers("kernel", k, k, channels, features)
            how = dict(padding=[(1, 2), (0, 1)], rhs_dilation=(dilation,) * 2, dimension_numbers=LAYOUT)

            def gradient(
                form: Callable, x: Any = x, kernel: Any = kernel, strides: tuple = (stride,) * 2, how: dict = how
            ) -> Any:
                return jax.grad(lambda kernel: (form(x, kernel, strides, **how) ** 2).sum())(kernel)

            assert "aj_kernel_gradient" in str(jax.make_jaxpr(lambda: gradient(convolve))())
            expected = gradient(by_xla)
            close(gradient(convolve), expected, 1e-5)

    def test_padding_of_one_side(self) -> None:
        """As TensorFlow pads: nothing before, one after; a pointwise convolution may be padded too."""

        def run(form: Callable) -> Callable:
            def both() -> list[tuple]:
                results = []
                for k, channels, groups in ((3, 6, 1), (3, 6, 3), (3, 6, 6), (1, 6, 1)):
                    x, kernel = numbers("x", 2, 6, 5, channels), numbers("kernel", k, k, channels // groups, 6)
                    how = dict(padding=[(0, 1), (2, 0)], dimension_numbers=LAYOUT, feature_group_count=groups)
                    results.append(everything(lambda x, kernel, how=how: form(x, kernel, (2, 1), **how), x, kernel))
                return results

            return both

        close(quick(run(convolve))(), quick(run(by_xla))(), 1e-5)

    @pytest.mark.parametrize("platform", ["tpu", "cuda"])
    @pytest.mark.parametrize("kind", GEOMETRIES)
    def test_other_platforms_keep_the_native_program(self, kind: str, platform: str) -> None:
        """The same StableHLO operations as XLA's convolution and its gradients, the grouped convolution among them.

        Each stands in a `case` of one branch, which XLA dissolves.
        """

        def operations(form: Callable, geometry: tuple) -> collections.Counter:
            x, kernel, how = arrays(geometry)
            traced = jax.jit(lambda x, kernel: everything(lambda x, kernel: form(x, kernel, **how), x, kernel)).trace(x, kernel)
            text = traced.lower(lowering_platforms=(platform,)).as_text()
            assert f"feature_group_count = {how['feature_group_count']} : i64" in text
            return collections.Counter(re.findall(r"stablehlo\.(?!return|constant|case)\w+", text))

        ours, native = (operations(form, GEOMETRIES[kind][0]) for form in (convolve, by_xla))
        assert ours == native
        assert ours["stablehlo.convolution"] == 3
        assert ours["stablehlo.dot_general"] == 0

    def test_depthwise_products_are_computations_of_their_own(self) -> None:
        """On CPU: XLA merges nothing from around them into their loops, which would compute it for each of 49 products."""
        x, kernel, how = arrays(GEOMETRIES["depthwise"][3])

        def gradients(x: jax.Array, kernel: jax.Array) -> tuple:
            return jax.grad(lambda x, kernel: (convolve(x, kernel, **how) ** 2).sum(), (0, 1))(x, kernel)

        def count_calls() -> int:
            return jax.jit(gradients).lower(x, kernel).compile().as_text().count(" call(")

        assert count_calls() == 6  # the output and both gradients, and the padding of each
        with use_kernels("xla"):
            assert count_calls() == 0

    @pytest.mark.parametrize("kind", ["one_block", "depthwise"])
    def test_vmap_and_remat(self, kind: str) -> None:
        x, kernel, how = arrays(GEOMETRIES[kind][0])
        stacked = np.stack([x, x[:, ::-1]]), np.stack([kernel, 2 * kernel])

        def gradients(x: jax.Array, kernel: jax.Array) -> tuple:
            return jax.grad(lambda x, kernel: (convolve(x, kernel, **how) ** 2).sum(), (0, 1))(x, kernel)

        def rematerialised(x: jax.Array, kernel: jax.Array) -> tuple:
            return jax.grad(jax.checkpoint(lambda x, kernel: (convolve(x, kernel, **how) ** 2).sum()), (0, 1))(x, kernel)

        one_by_one = quick(lambda: [gradients(*(a[i] for a in stacked)) for i in range(2)])()
        close(quick(jax.vmap(gradients))(*stacked), jax.tree.map(lambda *g: np.stack(g), *one_by_one), 1e-5)
        close(quick(rematerialised)(x, kernel), one_by_one[0], 1e-5)

    def test_other_types_are_left_to_xla(self) -> None:
        x, kernel, how = arrays(GEOMETRIES["one_block"][0])
        half = x.astype(jnp.bfloat16), kernel.astype(jnp.bfloat16)

        def run(form: Callable) -> tuple:
            return quick(lambda *a: everything(lambda *a: form(*a, **how).astype("float32"), *a))(*half)

        got, expected = run(convolve), run(by_xla)
        assert [g.dtype for g in got] == ["float32", "bfloat16", "bfloat16"]
        close(jax.tree.map(lambda a: a.astype("float32"), got), jax.tree.map(lambda a: a.astype("float32"), expected), 0)

    @pytest.mark.parametrize(("channels", "groups"), [(64, 16), (12, 12), (12, 1)])
    def test_products_are_counted_as_the_papers_do(self, channels: int, groups: int) -> None:
        """The zeros that fill a block on CPU are not multiply-adds of the network."""
        conv = Conv(channels, (3, 3), 2, feature_group_count=groups)
        assert aj.summary(conv, (1, 8, 6, channels)).macs == 4 * 3 * channels * 9 * channels // groups


class TestMaxPool:
    # Side, window, stride, padding: the ResNet stem's, even and odd, without overlap, with gaps, with much overlap.
    CASES = (((8, 6), 3, 2, 1), ((7, 9), 3, 2, 1), ((6, 8), 2, 2, 0), ((8, 7), 2, 3, 0), ((7, 6), 5, 1, 2), ((9, 8), 3, 2, 0))

    def run(self, pool: Callable) -> Any:
        def all_cases() -> list[tuple]:
            results = []
            for (h, w), k, stride, pad in self.CASES:
                x = np.maximum(numbers("x", 2, h, w, 3), 0)  # as after a ReLU, where equal numbers are many
                how = dict(strides=(stride, stride), padding=((pad, pad), (pad, pad)))
                results.append(everything(lambda x, k=k, how=how: pool(x, (k, k), **how), x))
            return results

        return quick(all_cases)()

    def test_numbers_are_those_of_xla(self) -> None:
        close(self.run(max_pool), self.run(nn.max_pool), 1e-6)

    def test_the_gradient_goes_to_the_first_of_equal_inputs(self) -> None:
        gradient = quick(jax.grad(lambda x: max_pool(x, (2, 2), (2, 2), ((0, 0), (0, 0))).sum()))(jnp.zeros((1, 4, 4, 1)))
        np.testing.assert_array_equal(gradient[0, :, :, 0], [[1, 0, 1, 0], [0, 0, 0, 0], [1, 0, 1, 0], [0, 0, 0, 0]])

    def test_other_platforms_keep_the_native_program(self) -> None:
        def operations(pool: Callable) -> list[str]:
            how = dict(strides=(2, 2), padding=((1, 1), (1, 1)))
            traced = jax.jit(jax.grad(lambda x: pool(x, (3, 3), **how).sum())).trace(jnp.zeros((1, 8, 8, 2)))
            return sorted(
                re.findall(r"stablehlo\.(?!return|constant|case)\w+", traced.lower(lowering_platforms=("tpu",)).as_text())
            )

        assert "stablehlo.select_and_scatter" in operations(max_pool)
        assert operations(max_pool).count("stablehlo.select") == operations(nn.max_pool).count("stablehlo.select")
