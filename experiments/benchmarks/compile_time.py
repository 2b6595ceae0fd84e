"""How long a Transformer's training step takes to compile, unrolled and with `scan_layers`, and what the loop costs.

    python experiments/benchmarks/compile_time.py [--model=transformer_big] [--layers=6,24] [--output=FILE]
    python experiments/benchmarks/compile_time.py --first_step [--configs=quickstart,translate_quickstart] [--output=FILE]

The step is loss, gradients and Adam in float32 with dropout, on 16 sentences of 32 tokens a side. It is only compiled, from
shapes and without the compilation cache; nothing is computed. Processor time beside the clock's says how much of it was
waiting on a busy machine. Temporary memory is XLA's plan for the step, without parameters and optimizer state: what
`scan_layers` stacks, and the gradients of it, appear there.

With --first_step it is the time from the start of training to its first step, as the command `train` prints it, in a process of
its own and with the compilation cache first empty and then filled.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
os.environ.pop("JAX_COMPILATION_CACHE_DIR", None)
BATCH = (16, 32)
WAYS = {
    "unrolled": dict(),
    "`scan_layers`": dict(scan_layers=True),
    "`remat`": dict(remat=True),
    "`scan_layers`, `remat`": dict(scan_layers=True, remat=True),
}


def lowered(model: Any) -> tuple[Any, int]:
    """The step, not yet compiled, and the bytes of the parameters."""
    import jax
    import jax.numpy as jnp
    import optax

    tokens = jax.ShapeDtypeStruct(BATCH, jnp.int32)
    params = jax.eval_shape(model.init, jax.random.key(0), tokens, tokens)["params"]
    optimizer = optax.adam(1e-4, 0.9, 0.98, 1e-9)
    state = params, jax.eval_shape(optimizer.init, params)

    def step(state: tuple, source: jax.Array, target: jax.Array, key: jax.Array) -> tuple:
        params, moments = state

        def loss(params: Any) -> jax.Array:
            logits = model.apply({"params": params}, source, target, train=True, rngs={"dropout": key})
            return optax.softmax_cross_entropy_with_integer_labels(logits, target).mean()

        changes, moments = optimizer.update(jax.grad(loss)(params), moments)
        return optax.apply_updates(params, changes), moments

    key = jax.eval_shape(lambda: jax.random.key(0))
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(params))
    return jax.jit(step, donate_argnums=0).lower(state, tokens, tokens, key), size


def measure(name: str, layers: int, way: dict[str, bool]) -> list[str]:
    """Cells of one row."""
    import attention_jax as aj

    model = aj.create_model(name, layers=layers, **way)
    start = time.perf_counter(), time.process_time()
    program, size = lowered(model)
    traced = time.perf_counter(), time.process_time()
    compiled = program.compile()
    done = time.perf_counter(), time.process_time()
    temporary = compiled.memory_analysis().temp_size_in_bytes
    return [
        f"{len(program.as_text().splitlines()):,}",
        f"{traced[0] - start[0]:.1f} ({traced[1] - start[1]:.1f})",
        f"{done[0] - traced[0]:.1f} ({done[1] - traced[1]:.1f})",
        f"{size / 2**20:,.0f}",
        f"{temporary / 2**20:,.0f}",
    ]


def first_step(config: str, folder: str, call: str) -> dict[str, float]:
    """The event of the first step in the timing of a run of one step; `folder` keeps the compilation cache."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_COMPILATION_CACHE_DIR": f"{folder}/xla"}
    environment |= {"JAX_PLATFORMS": "cpu", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.3"}
    workdir = f"{folder}/{call}"
    command = [sys.executable, "-m", "attention_jax", "train", f"--config={ROOT}/configs/{config}.py", f"--workdir={workdir}"]
    command += ["--config.total_steps=1", "--config.schedule.warmup_steps=0"]
    subprocess.run(command, env=environment, check=True, capture_output=True)
    events = map(json.loads, Path(workdir, "timing.jsonl").read_text(encoding="utf-8").splitlines())
    return next(event for event in events if event["event"] == "first step dispatched")


def first_steps(configs: list[str]) -> list[str]:
    """Lines of a table."""
    lines = ["| config | compilation cache | s to the first step | of it to trace and compile the step |", "|---|---|---|---|"]
    for config in configs:
        with tempfile.TemporaryDirectory() as folder:
            for cache in ("empty", "filled"):
                event = first_step(config, folder, cache)
                lines.append(f"| `{config}` | {cache} | {event['since_call']:.1f} | {event['seconds']:.1f} |")
                print(lines[-1], flush=True)
    return lines


def main() -> None:
    """Prints the table."""
    import jax
    from page import render_page, say_range
    from train_step import cpu_name

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="transformer_big")
    parser.add_argument("--layers", default="6,24", help="of encoder and decoder each")
    parser.add_argument("--ways", default="0,1,2,3", help=f"which of {', '.join(WAYS)}, counted from 0")
    parser.add_argument("--first_step", action="store_true", help="time to the first step of training instead")
    parser.add_argument("--configs", default="quickstart,translate_quickstart", help="of configs/, for --first_step")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    command = " ".join(["python experiments/benchmarks/compile_time.py", *(a for a in sys.argv[1:] if "--output" not in a)])
    machine = f"{os.cpu_count()} threads, {cpu_name()}, load {os.getloadavg()[0]:.1f}, jax {jax.__version__}."
    if arguments.first_step:
        table = first_steps(arguments.configs.split(","))
        numbers = {
            cache: [float(row.split(" | ")[2]) for row in table if f"| {cache} |" in row] for cache in ("empty", "filled")
        }
        text = render_page(
            "Time to the first step",
            f"Training takes its first step {say_range(numbers['empty'], 1)} s after the command with an empty compilation "
            f"cache, and {say_range(numbers['filled'], 1)} s with a filled one.",
            "\n".join(table),
            f"`{command}` (needs a quiet machine). Seconds by the clock. If the load is above the number of threads, the "
            "machine was shared, and "
            "the rows compare only with each other.",
            machine,
        )
        write_page(text, arguments.output)
        return

    measure("transformer_base", 1, {})  # what the first compilation of a process costs on top
    lines = [
        "| layers | | lines of the program | trace | compile | parameters | temporary memory |",
        "|---|---|---|---|---|---|---|",
    ]
    compiling: dict[tuple[str, int], float] = {}
    for layers in map(int, arguments.layers.split(",")):
        for number in map(int, arguments.ways.split(",")):
            label, way = list(WAYS.items())[number]
            cells = [f"{layers} + {layers}", label, *measure(arguments.model, layers, way)]
            lines.append(f"| {' | '.join(cells)} |")
            compiling[label, layers] = float(cells[4].split()[0])
            print(lines[-1], flush=True)
    deepest = max(layers for _, layers in compiling)
    times = ", ".join(f"{label} {seconds:.1f} s" for (label, layers), seconds in compiling.items() if layers == deepest)
    text = render_page(
        "Compile time of a training step",
        f"Compiling a training step of {deepest} + {deepest} layers takes: {times}.",
        "\n".join(lines),
        f"`{command}` (needs a quiet machine). `{arguments.model}`; seconds (seconds of processor time) and MiB. Temporary "
        "memory is XLA's plan for "
        "the step, without parameters and optimizer state.",
        machine,
    )
    write_page(text, arguments.output)


def write_page(text: str, output: Path | None) -> None:
    """Prints a page and writes it to a file, if there is one."""
    print(text)
    if output:
        output.write_text(text)


if __name__ == "__main__":
    main()
