"""Times depthwise convolutions, their gradients and a block of ConvNeXt on CPU: `kernels/conv.py` against XLA's own programs.

    ./launch.sh python experiments/benchmarks/depthwise.py [--output=FILE]

Float32, batch 8. Milliseconds of CPU time, of all cores together, which other programs on the machine disturb less than the
wall clock: the minimum of 10, the programs of a row in turn. "Dense blocks" packs channels into dense convolutions, as groups
of more than one channel are. "Merged" is the block with depthwise convolutions that XLA may merge with what is around them.
"""

import argparse
import contextlib
import functools
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import jax.numpy as jnp
from page import render_page, say_range
from train_step import cpu_name

from attention_jax.cli.malloc import keep_freed_memory
from attention_jax.kernels import conv
from attention_jax.kernels.switch import use_kernels
from attention_jax.models.convnext import ConvNeXtBlock

REPEATS = 10
_SHAPES = ((7, 96, 56), (7, 384, 14), (3, 144, 56), (5, 672, 14))  # of ConvNeXt-T and EfficientNet-B0


def time_in_turn(
    programs: Mapping[str, tuple[Callable, tuple]], clock: Callable[[], float] = time.process_time
) -> dict[str, float]:
    """Returns the least time in milliseconds of each compiled program, called in turn, by a clock that counts seconds."""
    best = dict.fromkeys(programs, float("inf"))
    for turn in range(REPEATS + 1):  # the first warms up
        for name, (program, arrays) in programs.items():
            start = clock()
            jax.block_until_ready(program(*arrays))
            best[name] = min(best[name], 1000 * (clock() - start)) if turn else best[name]
    return best


def compile_program(function: Callable, *arrays: Any, kernels: str = "auto") -> tuple[Callable, tuple]:
    """Returns the function compiled for the arrays, and these."""
    with use_kernels(kernels):
        return jax.jit(function).lower(*arrays).compile(), arrays


def time_convolution(window: int, channels: int, side: int) -> dict[str, dict[str, float]]:
    """Returns {pass: {program: milliseconds}} of a depthwise convolution of stride 1."""
    pad = (window // 2, window // 2)
    how = conv.Geometry((1, 1), (pad, pad), groups=channels)
    x = jax.random.normal(jax.random.key(0), (8, side, side, channels))
    kernel = jax.random.normal(jax.random.key(1), (window, window, 1, channels))
    passes = {
        "forward": (conv._forward, conv._native, (x, kernel)),
        "gradient of the input": (conv._of_input, conv._native_of_input, (x, kernel, x)),
        "gradient of the kernel": (conv._of_kernel, conv._native_of_kernel, (x, kernel, x)),
    }
    found = {}
    for name, (ours, native, arrays) in passes.items():
        programs = {
            "ours": compile_program(functools.partial(ours, how=how), *arrays),
            "dense blocks": compile_program(functools.partial(_in_blocks, ours, how=how), *arrays),
            "XLA": compile_program(functools.partial(native, how=how), *arrays, kernels="xla"),
        }
        found[name] = time_in_turn(programs)
    return found


def _in_blocks(product: Callable, x: jax.Array, kernel: jax.Array, *of_y: jax.Array, how: conv.Geometry) -> jax.Array:
    return conv._in_blocks(product, x, kernel, how, *of_y)


def time_block(channels: int, side: int) -> dict[str, float]:
    """Returns {program: milliseconds} of a block of ConvNeXt with all its gradients."""
    block = ConvNeXtBlock(1e-6, 0.0, None, jnp.float32, True)
    x = jax.random.normal(jax.random.key(0), (8, side, side, channels))
    variables = block.init(jax.random.key(1), x)

    def gradients(variables: Any, x: jax.Array, of_y: jax.Array) -> Any:
        return jax.grad(lambda variables, x: (block.apply(variables, x) * of_y).sum(), argnums=(0, 1))(variables, x)

    programs = {"ours": compile_program(gradients, variables, x, x)}
    apart, conv.set_xla_metadata = conv.set_xla_metadata, lambda **_: contextlib.nullcontext()
    jax.clear_caches()
    programs["merged"] = compile_program(gradients, variables, x, x)
    conv.set_xla_metadata = apart
    programs["XLA"] = compile_program(gradients, variables, x, x, kernels="xla")
    return time_in_turn(programs)


def main() -> None:
    """Prints the page and writes it to --output."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, help="a Markdown file for the page")
    output = parser.parse_args().output
    keep_freed_memory()
    rows = ["| depthwise convolution | pass | ours | dense blocks | XLA |", "|---|---|---:|---:|---:|"]
    ratios: dict[str, list[float]] = {"dense blocks": [], "XLA": []}
    for window, channels, side in _SHAPES:
        for name, times in time_convolution(window, channels, side).items():
            cells = [f"{window}x{window}, {channels} at {side}x{side}", name, *(f"{t:.1f}" for t in times.values())]
            rows.append(f"| {' | '.join(cells)} |")
            for other, found in ratios.items():
                found.append(times[other] / times["ours"])
    blocks = ["| block of ConvNeXt, with its gradients | ours | merged | XLA |", "|---|---:|---:|---:|"]
    for channels, side in ((96, 56), (384, 14)):
        times = time_block(channels, side)
        blocks.append(f"| {' | '.join([f'{channels} at {side}x{side}', *(f'{t:.0f}' for t in times.values())])} |")
    text = render_page(
        "Depthwise convolutions on CPU",
        f"Depthwise convolutions of this library are {say_range(ratios['XLA'], 1)} times as fast as XLA's own, and "
        f"{say_range(ratios['dense blocks'], 1)} times as fast as dense blocks of channels.",
        "\n".join(rows),
        "`./launch.sh python experiments/benchmarks/depthwise.py` (needs a quiet machine). Float32, batch 8. Milliseconds "
        "of CPU time, of all cores "
        f'together: the minimum of {REPEATS}, the programs of a row in turn. "Dense blocks" packs channels into dense '
        "convolutions, as it is done for groups of more than one channel.",
        f"{os.cpu_count()} threads, {cpu_name()}, jax {jax.__version__}.",
        {
            "A block of ConvNeXt": "\n".join(blocks)
            + '\n\n"Merged": XLA may merge the depthwise convolutions with their neighbours, and then computes the gradient '
            "of LayerNorm for each of the 49 products."
        },
    )
    print(text)
    if output:
        output.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
