"""Times dense convolutions of ResNets and their gradients on CPU, and `kernels/conv.cc` beside XLA's gradient of the kernel.

    ./launch.sh python experiments/benchmarks/convolution.py [--output=FILE]

Float32. Milliseconds by the wall clock: the minimum of 10, the programs of a row in turn.
"""

import argparse
import functools
import os
import time
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import jax.numpy as jnp
from depthwise import REPEATS, compile_program, time_in_turn
from page import render_page, say_range
from train_step import cpu_name

from attention_jax.cli.malloc import keep_freed_memory
from attention_jax.kernels import conv, native

# Batch, side, channels, features, window and stride: ResNet-20's three stages, ResNet-50's four and its stem.
_SHAPES = (
    (128, 32, 16, 16, 3, 1), (128, 16, 32, 32, 3, 1), (128, 8, 64, 64, 3, 1), (8, 56, 64, 64, 3, 1),
    (8, 28, 128, 128, 3, 1), (8, 14, 256, 256, 3, 1), (8, 7, 512, 512, 3, 1), (8, 224, 3, 64, 7, 2),
)  # fmt: skip


def time_convolution(
    batch: int, side: int, channels: int, features: int, window: int, stride: int
) -> tuple[float, dict[str, float]]:
    """Returns 10^9 floating-point operations of a pass, and {program: milliseconds}."""
    how = conv.Geometry((stride, stride), ((window // 2, window // 2),) * 2)
    x, kernel, of_y = (
        jax.random.normal(jax.random.key(i), shape)
        for i, shape in enumerate(
            ((batch, side, side, channels), (window, window, channels, features), (batch, *[-(-side // stride)] * 2, features))
        )
    )
    passes = {"forward": (conv._native, (x, kernel)), "input": (conv._native_of_input, (x, kernel, of_y))}
    passes |= {"ours": (conv._of_kernel, (x, kernel, of_y)), "XLA": (conv._native_of_kernel, (x, kernel, of_y))}
    programs = {name: compile_program(functools.partial(run, how=how), *arrays) for name, (run, arrays) in passes.items()}
    return 2e-9 * window**2 * channels * of_y.size, time_in_turn(programs, time.perf_counter)


def main() -> None:
    """Prints the page and writes it to --output."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, help="a Markdown file for the page")
    output = parser.parse_args().output
    if not native.load("conv"):
        raise SystemExit("attention_jax/kernels/conv.cc could not be built on this machine: there is nothing to compare.")
    keep_freed_memory()
    rows = [
        "| convolution | GFLOP | forward | gradient of the input | gradient of the kernel, ours | XLA's | XLA's / ours |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    ratios, rates = [], []
    for shape in _SHAPES:
        work, times = time_convolution(*shape)
        batch, side, channels, features, window, stride = shape
        ratios.append(times["XLA"] / times["ours"])
        rates.append(1000 * work / times["ours"])
        name = f"{window}x{window}, stride {stride}, {channels} to {features} at {side}x{side}, batch {batch}"
        rows.append(f"| {name} | {work:.1f} | {' | '.join(f'{t:.1f}' for t in times.values())} | {ratios[-1]:.1f} |")
    square = jnp.ones((2048, 2048))
    product = (
        2e-6 * 2048**3 / time_in_turn({"product": compile_program(jnp.matmul, square, square)}, time.perf_counter)["product"]
    )
    text = render_page(
        "Dense convolutions on CPU",
        f"The gradient of a dense convolution's kernel is {say_range(ratios, 1)} times as fast as XLA's. It is computed at "
        f"{min(rates):.0f} to {max(rates):.0f} GFLOP/s; a large matrix product of XLA's has {product:.0f} here.",
        "\n".join(rows),
        "`./launch.sh python experiments/benchmarks/convolution.py` (needs a quiet machine). Float32, milliseconds by the wall "
        f"clock: the minimum of {REPEATS}, the programs of a row in turn. Forward pass and gradient of the input are XLA's "
        "own.",
        f"{os.cpu_count()} threads, {cpu_name()}, load {os.getloadavg()[0]:.1f}, jax {jax.__version__}.",
    )
    print(text)
    if output:
        output.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
