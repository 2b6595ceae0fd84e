"""Where the time of a translation goes on CPU: XLA's programs by what they do, beside what the machine can.

    ./launch.sh python experiments/benchmarks/translation_profile.py [--beam=1] [--sentences=32] [--output=FILE]

A Transformer of base size with random weights writes 32 tokens for sentences of 32. The profiler says how long every program
of XLA ran; programs run beside each other on several threads, so that the sum is more than the wall time.
"""

import argparse
import collections
import os
import re
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from train_step import cpu_name
from translation import BASE

import attention_jax as aj
from attention_jax.search import SearchOptions
from attention_jax.tasks.translator import TranslationOptions, translate_tokens

TOKENS, ROUNDS = 32, 6
ENCODER, STEPS = "products by weights: encoder, keys and values of the source", "products by weights: steps"
ATTENTION, REST = "attention", "everything else"


class Program(NamedTuple):
    """What a program of XLA belongs to: `weights` are the numbers of a product's right side, 0 for anything else."""

    kind: str
    shape: tuple[int, ...]
    weights: int


def programs(hlo: str) -> dict[str, Program]:
    """The programs of a compiled translation by their names in its text."""
    found = {}
    for name, shape, rest in re.findall(r"^\s*(?:ROOT )?%?([\w.\-]+) = \w+\[([\d,]*)\](.*)$", hlo, re.M):
        shape = tuple(map(int, filter(None, shape.split(","))))
        label = re.search(r'op_name="([^"]*)"', rest)
        label = label[1] if label else ""
        ours = re.search(r'custom_call_target="aj_(\w+)"', rest)  # kernels/decoding.cc
        is_product = ours or label.endswith("dot_general") or re.match(r"\S* dot\(", rest)
        if not is_product:
            found[name] = Program(REST, shape, 0)
        elif (ours and ours[1] == "attend") or len(shape) > 3 or "bht" in label:
            found[name] = Program(ATTENTION, shape, 0)
        else:
            inner = BASE["hidden"] if "mlp/output" in label else BASE["features"]
            kind = ENCODER if re.search(r"\.encode|init_cache", label) else STEPS
            found[name] = Program(kind, shape, inner * shape[-1])
    return found


def traced(call: Callable[[], Any]) -> list[tuple[str, float]]:
    """(name, seconds) of everything that the profiler saw in a call."""
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            jax.block_until_ready(call())
        (path,) = Path(folder).rglob("*.xplane.pb")
        data = jax.profiler.ProfileData.from_file(str(path))
        return [(e.name, e.duration_ns / 1e9) for plane in data.planes for line in plane.lines for e in line.events]


def fastest(call: Callable[[], Any]) -> float:
    """Seconds of the fastest of some calls."""
    times = []
    for _ in range(ROUNDS):
        begin = time.perf_counter()
        jax.block_until_ready(call())
        times.append(time.perf_counter() - begin)
    return min(times)


def machine() -> str:
    """What large products and reading reach here, in one line."""
    a, numbers = jnp.ones((2048, 2048)), jnp.ones(2**28)
    product, total = jax.jit(jnp.matmul), jax.jit(jnp.max)
    flops, reading = 2 * 2048**3 / fastest(lambda: product(a, a)), numbers.nbytes / fastest(lambda: total(numbers))
    return f"A product of 2,048 x 2,048 reaches {flops / 1e9:,.0f} GFLOP/s here, reading 1 GiB {reading / 1e9:,.0f} GB/s."


def report(beam: int, sentences: int) -> str:
    """The tables."""
    model = aj.create_model("transformer_base", attention_bias=True, **BASE)
    source = np.random.default_rng(0).integers(3, BASE["vocab_size"], (sentences, TOKENS)).astype(np.int32)
    variables = jax.jit(model.init)(jax.random.key(0), source[:1], source[:1])
    options = TranslationOptions(SearchOptions(beam=beam, min_length=TOKENS, stop="full"), fixed=TOKENS)
    compiled = jax.jit(lambda v, s: translate_tokens(model, v, s, options)).lower(variables, source).compile()

    def translate() -> Any:
        return compiled(variables, source)

    wall, known = fastest(translate), programs(compiled.as_text())
    runs = [traced(translate) for _ in range(ROUNDS)]
    best = min(runs, key=lambda run: sum(seconds for name, seconds in run if name in known))
    kinds, shapes = collections.Counter(), collections.defaultdict(list)
    for name, seconds in best:
        if name in known and not name.startswith(("while", "cond")):
            program = known[name]
            kinds[program.kind] += seconds
            if program.kind == STEPS:
                shapes[program.shape, program.weights].append(seconds)
    lines = [
        f"{sentences} sentence{'s' * (sentences > 1)}, beam {beam}: {1000 * wall:,.0f} ms at best; below, milliseconds of the "
        f"programs of one run, summed over {len(os.sched_getaffinity(0))} threads. {cpu_name()}, jax {jax.__version__}, "
        f"GLIBC_TUNABLES={os.environ.get('GLIBC_TUNABLES', '')}. {machine()}",
        "",
        "| programs | ms |",
        "|---|---|",
        *(f"| {kind} | {1000 * seconds:,.0f} |" for kind, seconds in kinds.most_common()),
        "",
        "| product in a step | calls | µs each | GFLOP/s | GB/s of weights |",
        "|---|---|---|---|---|",
    ]
    for (shape, weights), times in sorted(shapes.items(), key=lambda item: -sum(item[1])):
        mean, rows = sum(times) / len(times), int(np.prod(shape[:-1]))
        sides = f"{rows} x {weights // shape[-1]} by {weights // shape[-1]} x {shape[-1]}"
        rates = f"{2 * rows * weights / mean / 1e9:,.0f} | {4 * weights / mean / 1e9:,.0f}"
        lines.append(f"| {sides} | {len(times)} | {1e6 * mean:,.0f} | {rates} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--beam", type=int, default=1)
    parser.add_argument("--sentences", type=int, default=32)
    parser.add_argument("--output", type=Path, help="a Markdown file for the tables")
    args = parser.parse_args()
    text = report(args.beam, args.sentences)
    print(text)
    if args.output:
        args.output.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
