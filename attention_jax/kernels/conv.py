"""Convolution that is XLA's own on TPU and GPU, and avoids XLA's slow programs on CPU.

All numbers agree with `jax.lax.conv_general_dilated` up to float32 rounding. Times in the comments are milliseconds on two
cores, batch 8, float32; times called CPU time are measured by `experiments/benchmarks/depthwise.py`.
`experiments/benchmarks/train_step.py` measures training steps.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.xla_metadata import set_xla_metadata

from attention_jax.kernels.native import serve
from attention_jax.kernels.switch import choose_by_platform, kernels_are_on

_LAYOUT = ("NHWC", "HWIO", "NHWC")
_NHWC = jax.lax.ConvDimensionNumbers((0, 3, 1, 2), (3, 2, 0, 1), (0, 3, 1, 2))
# Channels of a dense block that holds several groups: with fewer channels, a product leaves the CPU's vectors empty; with more,
# it multiplies zeros. 32 groups of 4 at 56x56: 20 with 32, 34 with 64, 60 with 128, 109 as XLA's grouped convolution.
_BLOCK = 32


class Geometry(NamedTuple):
    """Describes a convolution, without its two arrays."""

    strides: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...] = (1, 1)
    groups: int = 1
    precision: Any = None

    def output_size(self, x: jax.Array, window: Sequence[int]) -> tuple[int, int]:
        """Returns height and width of the output for a window of that size."""
        sides = zip(x.shape[1:3], self.padding, self.dilation, window, self.strides, strict=True)
        h, w = ((side + sum(pad) - d * (k - 1) - 1) // stride + 1 for side, pad, d, k, stride in sides)
        return h, w


def convolve(
    x: jax.Array, kernel: jax.Array, window_strides: Sequence[int], padding: Sequence[tuple[int, int]], **options: Any
) -> jax.Array:
    """Computes `jax.lax.conv_general_dilated`, on CPU by other programs for float32 [B, H, W, C] and [h, w, C / groups, F]."""
    known = {"lhs_dilation", "rhs_dilation", "dimension_numbers", "feature_group_count", "precision"}
    plain = (
        not kernels_are_on()
        or x.ndim != 4
        or isinstance(padding, str)
        or not (x.dtype == kernel.dtype == jnp.float32)
        or tuple(options.get("lhs_dilation") or (1, 1)) != (1, 1)
        or options.get("dimension_numbers") not in (_NHWC, _LAYOUT)
        or not options.keys() <= known
    )
    if plain:
        return jax.lax.conv_general_dilated(x, kernel, window_strides, padding, **options)
    dilation, groups = tuple(options.get("rhs_dilation") or (1, 1)), options.get("feature_group_count", 1)
    padding = tuple((int(low), int(high)) for low, high in padding)
    return _convolve(x, kernel, Geometry(tuple(window_strides), padding, dilation, groups, options.get("precision")))


def _native(x: jax.Array, kernel: jax.Array, how: Geometry) -> jax.Array:
    options: dict[str, Any] = dict(rhs_dilation=how.dilation, dimension_numbers=_LAYOUT, feature_group_count=how.groups)
    return jax.lax.conv_general_dilated(x, kernel, how.strides, how.padding, precision=how.precision, **options)


def _native_of_input(x: jax.Array, kernel: jax.Array, of_y: jax.Array, how: Geometry) -> jax.Array:
    return jax.vjp(lambda x: _native(x, kernel, how), x)[1](of_y)[0]


def _native_of_kernel(x: jax.Array, kernel: jax.Array, of_y: jax.Array, how: Geometry) -> jax.Array:
    return jax.vjp(lambda kernel: _native(x, kernel, how), kernel)[1](of_y)[0]


def _by_platform(cpu: Callable, native: Callable, *arrays: jax.Array, how: Geometry) -> jax.Array:
    return choose_by_platform(functools.partial(cpu, how=how), functools.partial(native, how=how), *arrays)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _convolve(x: jax.Array, kernel: jax.Array, how: Geometry) -> jax.Array:
    return _by_platform(_forward, _native, x, kernel, how=how)


def _convolve_backward(how: Geometry, saved: tuple, of_y: jax.Array) -> tuple[jax.Array, jax.Array]:
    of_x = _by_platform(_of_input, _native_of_input, *saved, of_y, how=how)
    return of_x, _by_platform(_of_kernel, _native_of_kernel, *saved, of_y, how=how)


_convolve.defvjp(lambda x, kernel, how: (_convolve(x, kernel, how), (x, kernel)), _convolve_backward)


# Everything below runs on CPU only.


def _forward(x: jax.Array, kernel: jax.Array, how: Geometry) -> jax.Array:
    """[B, H, W, C], [h, w, C / groups, F] -> [B, H', W', F]."""
    if how.groups > 1:
        if _is_depthwise(kernel, how):
            return _depthwise(x, kernel, how)
        return _in_blocks(_forward, x, kernel, how)
    if _is_pointwise(kernel, how):
        return jnp.dot(_strided(x, how), kernel[0, 0], precision=how.precision)
    if max(how.output_size(x, kernel.shape[:2])) <= 2:
        return _patches_product(x, kernel, how)
    return _native(x, kernel, how)


def _of_input(x: jax.Array, kernel: jax.Array, of_y: jax.Array, how: Geometry) -> jax.Array:
    """Returns the gradient with respect to the input: [B, H', W', F] -> [B, H, W, C]."""
    if how.groups > 1:
        if _is_depthwise(kernel, how):
            return _depthwise_of_input(x, kernel, of_y, how)
        return _in_blocks(_of_input, x, kernel, how, of_y)
    if _is_pointwise(kernel, how):
        return jax.vjp(lambda x: _strided(x, how), x)[1](jnp.dot(of_y, kernel[0, 0].T, precision=how.precision))[0]
    if max(of_y.shape[1:3]) <= 2:
        return jax.vjp(lambda x: _patches_product(x, kernel, how), x)[1](of_y)[0]
    return _native_of_input(x, kernel, of_y, how)


def _of_kernel(x: jax.Array, kernel: jax.Array, of_y: jax.Array, how: Geometry) -> jax.Array:
    """Returns the gradient with respect to the kernel: [B, H, W, C], [B, H', W', F] -> [h, w, C / groups, F]."""
    if how.groups > 1:
        if _is_depthwise(kernel, how):
            return _depthwise_of_kernel(x, kernel, of_y, how)
        return _in_blocks(_of_kernel, x, kernel, how, of_y)
    if _is_pointwise(kernel, how):
        return _sum_of_products(_strided(x, how), of_y, how)[None, None]
    if max(of_y.shape[1:3]) <= 2:
        return _sum_of_products(_patches(x, kernel, how), of_y, how).reshape(kernel.shape)
    if of_y.size and serve("conv", x, of_y):
        return _sum_blocks(x, of_y, tuple(kernel.shape), how)
    return _native_of_kernel(x, kernel, of_y, how)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _sum_blocks(x: jax.Array, of_y: jax.Array, shape: tuple[int, ...], how: Geometry) -> jax.Array:
    """Returns the kernel's gradient by `conv.cc`, which `experiments/benchmarks/convolution.py` times beside XLA's."""
    call = jax.ffi.ffi_call("aj_kernel_gradient", jax.ShapeDtypeStruct(shape, jnp.float32), vmap_method="sequential")
    (top, _), (left, _) = how.padding
    return call(x, of_y, how=np.array([*how.strides, top, left, *how.dilation], np.int64))


def _sum_blocks_backward(
    shape: tuple[int, ...], how: Geometry, saved: tuple, of_kernel: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x, of_y = saved
    return _of_input(x, of_kernel, of_y, how), _forward(x, of_kernel, how)


_sum_blocks.defvjp(lambda x, of_y, shape, how: (_sum_blocks(x, of_y, shape, how), (x, of_y)), _sum_blocks_backward)


def _is_pointwise(kernel: jax.Array, how: Geometry) -> bool:
    return kernel.shape[:2] == (1, 1) and all(pad == (0, 0) for pad in how.padding)


def _is_depthwise(kernel: jax.Array, how: Geometry) -> bool:
    return kernel.shape[2] == 1 and kernel.shape[3] == how.groups


def _strided(x: jax.Array, how: Geometry) -> jax.Array:
    return x[:, :: how.strides[0], :: how.strides[1]]


def shift_windows(x: jax.Array, window: Sequence[int], how: Geometry, fill: float = 0.0) -> list[jax.Array]:
    """[B, H, W, C] -> h · w arrays [B, H', W', C]: the inputs of all outputs at one position of the window each."""
    rows, columns = (
        [slice(i * d, i * d + stride * (size - 1) + 1, stride) for i in range(k)]
        for k, d, stride, size in zip(window, how.dilation, how.strides, how.output_size(x, window), strict=True)
    )
    x = jnp.pad(x, ((0, 0), *how.padding, (0, 0)), constant_values=fill)
    return [x[:, row, column] for row in rows for column in columns]


def _patches(x: jax.Array, kernel: jax.Array, how: Geometry) -> jax.Array:
    return jnp.concatenate(shift_windows(x, kernel.shape[:2], how), -1)


def _patches_product(x: jax.Array, kernel: jax.Array, how: Geometry) -> jax.Array:
    """Computes a convolution as one product: 3x3, 64 channels, batch 32 on 2x2 takes 0.4 with the gradient, XLA's 2.2."""
    return jnp.dot(_patches(x, kernel, how), kernel.reshape(-1, kernel.shape[-1]), precision=how.precision)


def _sum_of_products(x: jax.Array, y: jax.Array, how: Geometry) -> jax.Array:
    """[..., C], [..., F] -> [C, F], the sum of all outer products."""
    x, y = x.reshape(-1, x.shape[-1]), y.reshape(-1, y.shape[-1])
    rows, channels, features = x.shape[0], x.shape[1], y.shape[1]
    # Where the sum is long and the result small, XLA's product leaves a core idle; parts of the sum are a batched product
    # (64 x 256 over 25,088: 5 against 11; 256 x 64: 6 against 17, with the longer side last).
    parts = math.gcd(rows, 64) if channels * features <= 128 * 128 and rows >= 4096 else 1
    if parts == 1:
        return jnp.dot(x.T, y, precision=how.precision)
    x, y = x.reshape(parts, -1, channels), y.reshape(parts, -1, features)
    if channels > features:
        return jnp.einsum("pri,pro->poi", x, y, precision=how.precision).sum(0).T
    return jnp.einsum("pri,pro->pio", x, y, precision=how.precision).sum(0)


def _keep_apart(function: Callable) -> Callable:
    """Returns a function of arrays and a `Geometry` as a separate computation, into whose loops XLA merges nothing from around.

    Without this, XLA computes the input anew for each of the window's positions, and the output for each of its readers: a
    block
    of ConvNeXt with 384 channels at 14x14 takes 291 of CPU time with its gradients, and 138 with it.
    """

    def apart(*arguments: Any) -> jax.Array:
        with set_xla_metadata(inlineable="false"):
            return jax.jit(function, static_argnums=(len(arguments) - 1,))(*arguments)

    return apart


@_keep_apart
def _depthwise(x: jax.Array, kernel: jax.Array, how: Geometry) -> jax.Array:
    """Convolves with one filter per channel in one elementwise loop: 7x7, 96 channels, 56x56 take 9 of CPU time, XLA's 148."""
    weights = kernel.reshape(-1, kernel.shape[-1])
    return sum(seen * weight for seen, weight in zip(shift_windows(x, kernel.shape[:2], how), weights, strict=True))


def _depthwise_of_input(x: jax.Array, kernel: jax.Array, of_y: jax.Array, how: Geometry) -> jax.Array:
    """Runs the same loop over the output's gradient, dilated by the stride, with the kernel rotated by 180 degrees."""
    pads = [(0, 0, 0)]
    for side, out, k, d, stride, (low, _) in zip(
        x.shape[1:3], of_y.shape[1:3], kernel.shape[:2], how.dilation, how.strides, how.padding, strict=True
    ):
        pads.append((d * (k - 1) - low, side + low - stride * (out - 1) - 1, stride - 1))
    spread = jax.lax.pad(of_y, jnp.zeros((), of_y.dtype), [*pads, (0, 0, 0)])
    return _depthwise(spread, kernel[::-1, ::-1], how._replace(strides=(1, 1), padding=((0, 0), (0, 0))))


@_keep_apart
def _depthwise_of_kernel(x: jax.Array, kernel: jax.Array, of_y: jax.Array, how: Geometry) -> jax.Array:
    """Sums along the rows of the image; one loop handles a row of the window and reads the output's gradient once.

    In milliseconds of CPU time: 7x7 with 96 channels at 56x56 takes 30, in dense blocks of groups 84; 3x3 with 144 at 56x56 15
    against 34, 5x5 with 672 at 14x14 3 against 19. Short sums also round less: 5e-7 of the largest value against
    5e-6 in one sum over everything.
    """
    seen, width, zero = shift_windows(x, kernel.shape[:2], how), kernel.shape[1], jnp.zeros((), x.dtype)
    sums: list[jax.Array] = []
    for i in range(0, len(seen), width):
        products = [one * of_y for one in seen[i : i + width]]
        sums += jax.lax.reduce(products, [zero] * width, lambda a, b: [p + q for p, q in zip(a, b, strict=True)], (2,))
    return jnp.stack([part.sum((0, 1)) for part in sums]).reshape(kernel.shape)


def _in_blocks(product: Callable, x: jax.Array, kernel: jax.Array, how: Geometry, *of_y: jax.Array) -> jax.Array:
    """Applies `product` to blocks of groups, each with a dense kernel that is zero outside the groups."""
    most = max(1, _BLOCK // kernel.shape[2])
    packed = max(p for p in range(1, most + 1) if how.groups % p == 0)
    arrays = (x, _block_diagonal(kernel, how.groups, packed), *of_y)
    blocks = zip(*(jnp.split(array, how.groups // packed, axis=-1) for array in arrays), strict=True)
    joined = jnp.concatenate([product(*block, how._replace(groups=1)) for block in blocks], axis=-1)
    return _diagonal_blocks(joined, how.groups, packed) if product is _of_kernel else joined


def _block_diagonal(kernel: jax.Array, groups: int, packed: int) -> jax.Array:
    """[h, w, c, F] of n groups -> [h, w, packed · c, F] of n / packed groups."""
    h, w, c, features = kernel.shape
    apart = kernel.reshape(h, w, 1, c, groups // packed, packed, features // groups)
    same = jnp.eye(packed, dtype=bool)[:, None, None, :, None]
    return jnp.where(same, apart, 0).reshape(h, w, packed * c, features)


def _diagonal_blocks(wide: jax.Array, groups: int, packed: int) -> jax.Array:
    """The inverse of `_block_diagonal`: [h, w, packed · c, F] -> [h, w, c, F]."""
    h, w, inputs, features = wide.shape
    apart = wide.reshape(h, w, packed, inputs // packed, groups // packed, packed, features // groups)
    blocks = jnp.diagonal(apart, axis1=2, axis2=5)  # [h, w, c, groups / packed, features of a group, packed]
    return jnp.swapaxes(blocks, -1, -2).reshape(h, w, inputs // packed, features)
