"""Times one training step of ours beside plain Flax and PyTorch, and compiles it for a TPU that need not be there.

    ./launch.sh python experiments/benchmarks/train_step.py --peer_python=PATH
    ./launch.sh python experiments/benchmarks/train_step.py --tpu

A step is the forward pass in training mode, the backward pass and an SGD update with momentum, in float32 on one batch of
random numbers. Each program has its own process; they take steps in turn, so that whatever else the machine does disturbs all
of them alike. PyTorch, also under `torch.compile`, runs under --peer_python, in its fast layout, channels last: torchvision's
networks, and timm's of the families that are no ResNets. Plain Flax is `nn.Conv`, `nn.BatchNorm` and `nn.max_pool` as they come
(`train_step_nets.py` has both, `plain_flax.py` ConvNeXt and Swin; ViT and EfficientNet are not written there).
"""

import argparse
import importlib.metadata
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from page import render_page, say_range


class Case(NamedTuple):
    """A network and its input."""

    name: str  # of `attention_jax.list_models()`
    overrides: dict[str, Any]
    side: int
    channels: int
    batch: int
    classes: int


CASES = {
    "resnet50": Case("resnet50", {}, 224, 3, 8, 1000),
    "resnext50_32x4d": Case("resnext50_32x4d", {}, 224, 3, 8, 1000),
    "bam_resnet50": Case("bam_resnet50", {}, 224, 3, 8, 1000),
    "resnet20": Case("resnet20", {}, 32, 3, 128, 10),
    "resnet32_half": Case("resnet32", {"widths": (8, 16, 32)}, 8, 1, 64, 10),  # the quickstart's
    "convnext_tiny": Case("convnext_tiny", {}, 224, 3, 8, 1000),
    "swin_tiny": Case("swin_tiny_patch4_window7_224", {}, 224, 3, 8, 1000),
    "efficientnet_b0": Case("efficientnet_b0", {}, 224, 3, 8, 1000),
    "vit_tiny": Case("vit_tiny_patch16_224", {}, 224, 3, 8, 1000),
}
OF_TIMM = ("convnext_tiny", "swin_tiny", "efficientnet_b0", "vit_tiny")
NOT_IN_FLAX = ("efficientnet_b0", "vit_tiny")
WHOS = {
    "ours": "ours",
    "xla": "ours without kernels",  # AJ_KERNELS=xla
    "flax": "plain Flax",
    "torch": "PyTorch",
    "compiled": "PyTorch, compiled",  # torch.compile
}
OF_TORCH = ("torch", "compiled")


def flax_net(case: Case, dtype: str) -> Any:
    """The network in plain Flax."""
    import plain_flax
    import train_step_nets

    others = {"convnext_tiny": plain_flax.ConvNeXt, "swin_tiny_patch4_window7_224": plain_flax.Swin}
    if case.name in others:
        return others[case.name](case.classes, dtype)
    return train_step_nets.flax_net(case.name, case.overrides, case.classes, dtype)


def jax_step(who: str, case: Case, batch: int, dtype: str = "float32") -> tuple[Callable, tuple, tuple]:
    """The step `(state, images, labels) -> state`, what makes its state, shapes of its data; `dtype` is of activations."""
    import jax
    import jax.numpy as jnp
    import optax

    if who != "flax":
        import attention_jax as aj

        model = aj.create_model(case.name, num_classes=case.classes, dtype=dtype, **case.overrides)
    else:
        model = flax_net(case, dtype)
    optimizer = optax.sgd(0.01, momentum=0.9)
    images = jax.ShapeDtypeStruct((batch, case.side, case.side, case.channels), jnp.float32)
    labels = jax.ShapeDtypeStruct((batch,), jnp.int32)

    def init() -> tuple:
        variables = model.init(jax.random.key(0), jnp.zeros((1, *images.shape[1:])), train=True)
        return variables["params"], variables.get("batch_stats", {}), optimizer.init(variables["params"])

    def step(state: tuple, images: jax.Array, labels: jax.Array) -> tuple:
        params, batch_stats, momentum = state

        def loss(params: Any) -> tuple:
            variables = {"params": params, "batch_stats": batch_stats}
            logits, changed = model.apply(variables, images, train=True, mutable=["batch_stats"])
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), changed.get("batch_stats", {})

        gradients, batch_stats_ = jax.grad(loss, has_aux=True)(params)
        updates, momentum = optimizer.update(gradients, momentum)
        return optax.apply_updates(params, updates), batch_stats_, momentum

    return jax.jit(step, donate_argnums=0), init, (images, labels)


def jax_worker(who: str, case: Case) -> tuple[Callable[[], None], int]:
    """What takes one step whenever it is called, and the number of parameters."""
    import jax
    import numpy as np

    step, init, (images, labels) = jax_step(who, case, case.batch)
    state = jax.jit(init)()
    rng = np.random.default_rng(0)
    images = jax.device_put(rng.standard_normal(images.shape, np.float32))
    labels = jax.device_put(rng.integers(0, case.classes, labels.shape))

    def take() -> None:
        nonlocal state
        state = jax.block_until_ready(step(state, images, labels))

    return take, sum(leaf.size for leaf in jax.tree.leaves(state[0]))


def torch_worker(who: str, case: Case) -> tuple[Callable[[], None], int]:
    """As `jax_worker`."""
    import torch
    import train_step_nets

    torch.manual_seed(0)
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    if case.name in (CASES[name].name for name in OF_TIMM):
        import timm

        model = timm.create_model(case.name, num_classes=case.classes)
    else:
        model = train_step_nets.torch_net(case.name, case.overrides, case.classes)
    model = model.to(memory_format=torch.channels_last).train()
    net = torch.compile(model) if who == "compiled" else model
    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)
    images = torch.randn(case.batch, case.channels, case.side, case.side).to(memory_format=torch.channels_last)
    labels = torch.randint(0, case.classes, (case.batch,))

    def take() -> None:
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(net(images), labels).backward()
        optimizer.step()

    return take, sum(parameter.numel() for parameter in model.parameters())


def work(who: str, case: Case) -> None:
    """One process: prints when it is ready, then seconds (wall, CPU) for every line that comes in."""
    take, parameters = torch_worker(who, case) if who in OF_TORCH else jax_worker(who, case)
    for _ in range(2):
        take()
    packages = ("torch", "torchvision", "timm") if who in OF_TORCH else ("jax", "flax")
    print(json.dumps([parameters, {name: importlib.metadata.version(name) for name in packages}]), flush=True)
    for _ in sys.stdin:
        wall, cpu = time.perf_counter(), time.process_time()
        take()
        print(json.dumps([time.perf_counter() - wall, time.process_time() - cpu]), flush=True)


def start(who: str, case: str, python: str) -> subprocess.Popen:
    command = [python, __file__, f"--worker={who}", f"--cases={case}"]
    env = {**os.environ, "AJ_KERNELS": "xla"} if who == "xla" else None
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env)


def answer(process: subprocess.Popen) -> Any:
    line = process.stdout.readline()
    if not line:
        raise SystemExit(f"{' '.join(process.args)} ended without a result.")
    return json.loads(line)


def race(case: str, whos: dict[str, str], rounds: int) -> tuple[dict[str, list[list[float]]], dict[str, str]]:
    """Seconds (wall, CPU) of every step, by who took it, and the versions of what ran."""
    processes, versions, parameters = {}, {}, {}
    for who, python in whos.items():
        processes[who] = start(who, case, python)
        parameters[who], used = answer(processes[who])
        versions |= used
    if len(set(parameters.values())) > 1:
        raise SystemExit(f"{case}: not the same network, these are the numbers of parameters: {parameters}.")
    times = {who: [] for who in whos}
    for _ in range(rounds):
        for who, process in processes.items():
            print("go", file=process.stdin, flush=True)
            times[who].append(answer(process))
    for process in processes.values():
        process.stdin.close()
        process.wait()
    return times, versions


def has_torch(python: str) -> bool:
    return subprocess.run([python, "-c", "import torch, torchvision, timm"], capture_output=True).returncode == 0


def timing_page(names: list[str], whos: list[str], peer_python: str, rounds: int, command: str) -> str:
    """Takes the steps and returns the page."""
    pythons = {who: peer_python if who in OF_TORCH else sys.executable for who in whos}
    asked = [who for who in OF_TORCH if who in whos]
    missing = dict.fromkeys(asked, "not installed") if asked and not has_torch(peer_python) else {}
    pythons = {who: python for who, python in pythons.items() if who not in missing}
    others = ("torch", "compiled", "flax", "xla")
    lines = [
        " | ".join(["| network, input", *WHOS.values(), *(f"ours / {WHOS[who]}" for who in others)]) + " |",
        "|---" * (1 + len(WHOS) + len(others)) + "|",
    ]
    versions: dict[str, str] = {}
    ratios_to: dict[str, list[float]] = {who: [] for who in others}
    for name in names:
        case = CASES[name]
        running = {who: python for who, python in pythons.items() if who != "flax" or name not in NOT_IN_FLAX}
        times, seen = race(name, running, rounds)
        versions |= seen
        wall, cpu = ({who: [1000 * pair[i] for pair in steps] for who, steps in times.items()} for i in (0, 1))
        print(name, {who: [round(t) for t in steps] for who, steps in wall.items()}, flush=True)

        def cell(who: str, wall: dict = wall, cpu: dict = cpu) -> str:
            if who not in wall:
                return missing.get(who, "not run")
            return f"{min(wall[who]):,.0f} ({statistics.median(wall[who]):,.0f}); {min(cpu[who]):,.0f}"

        def ratio(who: str, wall: dict = wall, cpu: dict = cpu) -> str:
            both = who in wall and "ours" in wall
            return "; ".join(f"{min(t['ours']) / min(t[who]):.2f}" for t in (wall, cpu)) if both else "–"

        cells, ratios = [cell(who) for who in WHOS], [ratio(who) for who in others]
        for who, found in ratios_to.items():
            found += [min(wall["ours"]) / min(wall[who])] if {"ours", who} <= wall.keys() else []
        shape = f"{case.batch} × {case.side} × {case.side} × {case.channels}"
        lines.append(" | ".join([f"| `{name}`, {shape}", *cells, *ratios]) + " |")
    threads = len(os.sched_getaffinity(0))
    software = ", ".join(f"{name} {version}" for name, version in versions.items())
    found = ", ".join(
        f"{say_range(ratios)} times as long as one of {WHOS[who]} ({len(ratios)} networks)"
        for who, ratios in ratios_to.items()
        if ratios
    )
    return render_page(
        "A training step beside PyTorch and plain Flax",
        f"On {threads} CPU threads, a step of ours takes {found}." if found else "Nothing was compared with ours.",
        "\n".join(lines),
        f"`{command}` (needs a quiet machine, PyTorch and timm). Milliseconds a step: the minimum (median) of {rounds} "
        "steps, taken in turn; then the minimum of CPU "
        "time, which other programs on the machine disturb less. Ratios: of both minima.",
        f"{threads} threads, {cpu_name()}, load {os.getloadavg()[0]:.1f}, {software}.",
    )


def cpu_name() -> str:
    """The processor's name, generation and vector instructions."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    said = {}
    for line in lines:
        key, _, value = line.partition(":")
        said.setdefault(key.strip(), value.strip())
    name = said.get("model name", platform.machine())
    # A virtual machine's processor often has a name without a number: family and model tell its generation.
    which = [f"{key.split()[-1]} {said[key]}" for key in ("cpu family", "model") if key in said]
    flags = sorted({"avx2", "avx512f", "amx_tile"} & set(said.get("flags", "").split()))
    return f"{name} ({', '.join(which + flags)})"


def tpu_page(names: list[str], topology: str, batch: int, dtype: str, command: str) -> str:
    """Compiles the step for one chip and returns the page: FLOPs, bytes and custom calls."""
    import jax

    from attention_jax.preflight.chips import find_slice
    from attention_jax.preflight.measure import describe_devices

    sharding = jax.sharding.SingleDeviceSharding(describe_devices(find_slice(topology))[0])
    lines = [
        "| network | batch | | GFLOPs | GB read and written | MB of temporaries | MB in all | custom calls |",
        "|---|---|---|---|---|---|---|---|",
    ]
    costs: dict[tuple[str, str], dict[str, float]] = {}
    for name in names:
        for who in ("ours",) if name in NOT_IN_FLAX else ("ours", "flax"):
            step, init, batch_shapes = jax_step(who, CASES[name], batch, dtype)
            shapes = jax.tree.map(
                lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=sharding), (jax.eval_shape(init), *batch_shapes)
            )
            compiled = step.lower(*shapes).compile()
            cost, memory = compiled.cost_analysis(), compiled.memory_analysis()
            costs[name, who] = cost
            temporary = memory.temp_size_in_bytes
            results = memory.output_size_in_bytes - memory.alias_size_in_bytes  # what overwrites the state takes no more
            needed = memory.argument_size_in_bytes + temporary + results + memory.generated_code_size_in_bytes
            calls = Counter(re.findall(r'custom_call_target="([^"]+)"', compiled.as_text()))
            numbers = [f"{cost['flops'] / 1e9:,.1f}", f"{cost['bytes accessed'] / 1e9:,.3f}"]
            numbers += [f"{size / 1e6:,.0f}" for size in (temporary, needed)]
            numbers.append(", ".join(f"{count} {target}" for target, count in calls.items()) or "none")
            lines.append(" | ".join([f"| `{name}`", str(batch), {"flax": "plain Flax"}.get(who, who), *numbers]) + " |")
            print(lines[-1], flush=True)
    software = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("jax", "libtpu"))
    both = [name for name, who in costs if who == "flax"]
    flops, moved = (
        say_range([costs[name, "ours"][key] / costs[name, "flax"][key] for name in both], 3)
        for key in ("flops", "bytes accessed")
    )
    return render_page(
        "A training step compiled for TPU beside plain Flax",
        f"On TPU a step of ours needs {flops} times the FLOPs of plain Flax's and moves {moved} times the bytes "
        f"({len(both)} networks). These steps were compiled, not run.",
        "\n".join(lines),
        f"`{command}` (needs the TPU compiler). One step compiled for a chip of {topology}, {dtype}; numbers are XLA's cost "
        "analysis. Custom calls that "
        "are not this library's are XLA's own.",
        f"{software}.",
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", default=",".join(CASES), help="comma-separated names")
    parser.add_argument("--who", default=",".join(WHOS), help="plain Flax takes a minute and more for a step of ResNeXt-50")
    parser.add_argument("--rounds", type=int, default=10, help="steps that each takes")
    parser.add_argument("--peer_python", default=sys.executable, help="a Python with torch, torchvision and timm")
    parser.add_argument("--tpu", nargs="?", const="v5e:2x2", help="compile for one chip of this topology instead of timing")
    parser.add_argument("--tpu_batch", type=int, default=64)
    parser.add_argument("--tpu_dtype", default="float32", choices=("float32", "bfloat16"), help="of activations and products")
    parser.add_argument("--output", type=Path, help="a Markdown file for the table")
    parser.add_argument("--worker", choices=WHOS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    names = args.cases.split(",")
    if unknown := set(names) - set(CASES):
        parser.error(f"--cases: {', '.join(sorted(unknown))} is not one of {', '.join(CASES)}.")
    whos = args.who.split(",")
    if unknown := set(whos) - set(WHOS):
        parser.error(f"--who: {', '.join(sorted(unknown))} is not one of {', '.join(WHOS)}.")
    if args.worker:
        return work(args.worker, CASES[names[0]])
    command = " ".join(["python", *(arg for arg in sys.argv if not arg.startswith("--peer_python"))])
    page = (
        tpu_page(names, args.tpu, args.tpu_batch, args.tpu_dtype, command)
        if args.tpu
        else timing_page(names, whos, args.peer_python, args.rounds, f"{command} --peer_python=PATH")
    )
    print(page)
    if args.output:
        args.output.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
