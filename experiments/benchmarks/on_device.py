"""Questions to a lent accelerator: does it compute the same, how fast, as fast as predicted, fed fast enough?

    experiments/on_device.sh [--quick] [--minutes=10] [--output=FILE.md]
    experiments/on_device.sh --check FILE.json ...

Five questions, each on its own, so that one that fails does not keep the others from an answer: the loss in bfloat16 beside
float32 on embedded data; what a step takes beside what preflight's program says at the peaks that this device reaches here,
measured in the same minute (a large product, a large copy), and at the published ones of a TPU; fused beside plain
attention; the time to the first step; and whether this machine's cores prepare images as fast as the step takes them.
"""

import argparse
import functools
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

from hardware_report import STATES, check_files, describe_machine  # noqa: E402

CONFIGS = ROOT / "configs"
SMALL_NET = {"model.stage_sizes": (1, 1), "model.widths": (4, 8)}
SMALL_TEXT = {"model.layers": 1, "model.features": 32, "model.hidden": 32, "model.heads": 2}
# What the config would read off ImageNet and WMT is stated; batches are made up.
PAIRS = {
    "model.vocab_size": 37_000,
    "data.bucket_lengths": (64,),
    "data.num_examples": 4_500_000,
    "data.num_batches": 4500,
    "evaluation.batch_size": 8192,
}


class Answer(NamedTuple):
    """A row of the table.

    Attributes:
        measurements: {name: (value, unit)}, for the JSON beside the table.
    """

    question: str
    answer: str
    verdict: str
    measurements: dict[str, tuple[float, str]] = {}  # noqa: RUF012


def config_of(name: str, fields: dict[str, Any]) -> Any:
    """A config of this repository with changes."""
    from attention_jax.config import load_config, override

    return override(load_config(str(CONFIGS / name)), fields)


def losses(quick: bool) -> Iterator[Answer]:
    """Training loss at the end of a short run in either precision, the same batches and first weights."""
    import numpy as np

    from attention_jax.distributed.mesh import find_batch_share, prefetch_batches
    from attention_jax.train.program import build_program

    steps = 6 if quick else 150
    length = {"total_steps": steps, "schedule.warmup_steps": steps // 10}
    for name, small in (("quickstart.py", SMALL_NET), ("translate_quickstart.py", SMALL_TEXT)):
        ends = {}
        for precision in ("float32", "bfloat16"):
            program = build_program(config_of(name, {"precision": precision, **length, **(small if quick else {})}))
            split, share = program.config.data.train_split, find_batch_share(program.mesh)
            loader = program.task.loader(program.config, split, share, training=True)
            state, seen = program.init(0), []
            for batch in prefetch_batches(loader.training(0, steps), program.mesh):
                state, metrics = program.train_step(state, batch, np.uint32(0))
                seen.append(float(metrics["loss"]) / float(metrics["weight"]))
            ends[precision] = statistics.mean(seen[-max(3, steps // 10) :])
        apart = abs(ends["bfloat16"] / ends["float32"] - 1)
        yield Answer(
            f"{name}: loss after {steps} steps, float32 and bfloat16",
            f"{ends['float32']:.4f} and {ends['bfloat16']:.4f}",
            f"{100 * apart:.2f} % apart: {'as it should be' if apart < 0.05 else 'LOOK INTO IT'}",
            {precision: (loss, "loss") for precision, loss in ends.items()},
        )


def timed(run: Callable[[], Any], times: int) -> float:
    """Median seconds of a call, which is waited for; one before them is not counted."""
    import jax

    jax.block_until_ready(run())
    seconds = []
    for _ in range(times):
        begin = time.perf_counter()
        jax.block_until_ready(run())
        seconds.append(time.perf_counter() - begin)
    return statistics.median(seconds)


def peaks(quick: bool) -> tuple[float, float]:
    """Operations a second of a bfloat16 product and bytes a second of a copy, on one device."""
    import jax
    import jax.numpy as jnp

    side, length = (256, 2**20) if quick else (8192, 2**28)
    x, y = jnp.ones((side, side), jnp.bfloat16), jnp.ones(length, jnp.float32)
    product, copy = jax.jit(lambda x: x @ x), jax.jit(lambda y: y + 1)
    return 2 * side**3 / timed(lambda: product(x), 5), 8 * length / timed(lambda: copy(y), 5)


def slice_here() -> Any:
    """The TPU slice that these devices are, or None."""
    import jax

    from attention_jax.preflight.chips import CHIPS, DEVICE_KINDS, ChipSlice

    chip = CHIPS.get(DEVICE_KINDS.get(jax.devices()[0].device_kind, ""))
    if chip is None:
        return None
    shapes = (ChipSlice(chip, tuple(map(int, shape.split("x")))) for shape in chip.shapes)
    return next((found for found in shapes if found.devices == jax.device_count()), None)


def made_up(shapes: dict[str, Any], most: int) -> dict[str, Any]:
    """A batch of random pixels or tokens, each with weight one."""
    import jax
    import numpy as np

    rng, batch = np.random.default_rng(0), {}
    for name, shape in shapes.items():
        if name == "weight":
            values = np.ones(shape.shape, np.float32)
        elif shape.dtype == np.float32:
            values = rng.standard_normal(shape.shape, np.float32)
        else:
            values = rng.integers(3, most, shape.shape, dtype=shape.dtype)
        batch[name] = jax.device_put(values, shape.sharding)
    return batch


def cases(quick: bool, devices: int) -> dict[str, Any]:
    """Configs whose steps are timed."""
    if quick:
        return {"quickstart": config_of("quickstart.py", {**SMALL_NET, "batch_size": 8 * devices})}
    images = {"batch_size": 64 * devices, "evaluation.batch_size": 64 * devices}
    tokens = {**PAIRS, "batch_size": 8192 * devices, "data.rows_multiple": 8 * devices}
    return {
        "ResNet-50, 64 images a device, bfloat16": config_of("imagenet_resnet50.py", {**images, "precision": "bfloat16"}),
        "ResNet-50, 64 images a device, float32": config_of("imagenet_resnet50.py", images),
        "Transformer base, 8192 tokens a device, bfloat16": config_of(
            "wmt14_transformer.py", {**tokens, "precision": "bfloat16"}
        ),
    }


def steps(quick: bool) -> Iterator[Answer]:
    """Times a step beside its bound, the first step, and the input it needs."""
    import jax
    import numpy as np

    from attention_jax.distributed.mesh import count_threads
    from attention_jax.preflight.measure import list_batches, measure_input_rate, measure_program
    from attention_jax.preflight.report import Report
    from attention_jax.train.program import build_program

    devices, here = jax.devices(), slice_here()
    flops, bandwidth = peaks(quick)
    yield Answer(
        "peaks of one device",
        f"{flops / 1e12:.3g} TFLOP/s of products, {bandwidth / 1e9:,.3g} GB/s of copies",
        "",
        {"peak of products": (flops / 1e12, "TFLOP/s"), "peak of copies": (bandwidth / 1e9, "GB/s")},
    )
    for label, config in cases(quick, len(devices)).items():
        begin = time.perf_counter()
        program = build_program(config)
        measured, step = measure_program(program)
        if step is None:
            yield Answer(label, "does not fit", "give a smaller batch")
            continue
        batch = made_up(list_batches(program)[-1], program.config.model.get("num_classes") or 1000)
        state, seed = program.init(0), np.uint32(0)

        def take(step: Any = step, batch: Any = batch, seed: Any = seed) -> Any:
            nonlocal state
            state, metrics = step(state, batch, seed)
            return metrics["loss"]

        jax.block_until_ready(take())
        first = time.perf_counter() - begin
        took = timed(take, 3 if quick else 20)
        seconds = measured.seconds
        yield Answer(
            f"{label}: time to the first step",
            f"{first:.1f} s, of it {seconds['trace']:.1f} tracing, {seconds['compile']:.1f} compiling",
            "",
            {"first step": (first, "s"), "tracing": (seconds["trace"], "s"), "compiling": (seconds["compile"], "s")},
        )
        best = max(measured.operations / measured.devices / flops, measured.traffic / bandwidth)
        yield Answer(
            f"{label}: a step",
            f"{1e3 * took:.3g} ms; {1e3 * best:.3g} at this device's own peaks",
            f"{took / best:.2f} x",
            {
                "step": (1e3 * took, "ms"),
                "at its own peaks": (1e3 * best, "ms"),
                "achieved": (measured.operations / measured.devices / took / 1e12, "TFLOP/s"),
            },
        )
        if here:
            bound = Report(here, measured, None)
            said = f"preflight for {here.topology}: {1e3 * bound.step:.3g} ms at best, bound by {bound.bound}"
            predicted = {"preflight's bound": (1e3 * bound.step, "ms"), "measured to bound": (took / bound.step, "ratio")}
            yield Answer(f"{label}: predicted", said, f"{took / bound.step:.2f} x", predicted)
        rate = measure_input_rate(program.config, 0.5 if quick else 3.0)
        if rate:
            wanted, ready = measured.examples / took / jax.process_count(), rate * count_threads()
            yield Answer(
                f"{label}: input",
                f"the step takes {wanted:,.0f} images a second; {count_threads()} cores prepare {ready:,.0f}",
                "fast enough" if ready > wanted else f"needs {wanted / rate:.0f} cores",
                {"step takes": (wanted, "images/s"), "prepared": (ready, "images/s"), "cores": (count_threads(), "cores")},
            )


def attention(quick: bool) -> Iterator[Answer]:
    """Fused and plain attention with their gradients: the same numbers, and which is faster."""
    import jax
    import jax.numpy as jnp

    from attention_jax.kernels.attention import fused_attention
    from attention_jax.nn.multihead import attend_heads, causal_mask

    for b, t, h, k in [(2, 16, 2, 8)] if quick else [(64, 64, 8, 64), (8, 1024, 16, 64)]:
        dtype = jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16
        q, key, v = (jax.random.normal(jax.random.key(i), (b, t, h, k), dtype) for i in range(3))
        mask = causal_mask(t)
        ways = {
            "fused": lambda q, key, v, mask=mask, k=k: fused_attention(q, key, v, mask, k**-0.5),
            "plain": lambda q, key, v, mask=mask, k=k: attend_heads(q, key, v, mask, k**-0.5)[0],
        }

        if jax.default_backend() == "gpu":  # XLA's own program is what fused_attention chooses there
            ways["cudnn"] = lambda q, key, v, mask=mask, k=k: jax.nn.dot_product_attention(
                q, key, v, mask=mask, scale=k**-0.5, implementation="cudnn"
            )

        def gradient(way: Callable) -> Callable:
            return jax.jit(jax.grad(lambda *x: way(*x).astype(jnp.float32).sum(), (0, 1, 2)))

        plain, took, apart, failed = gradient(ways["plain"])(q, key, v), {}, {}, ""
        for name, way in ways.items():
            run = functools.partial(gradient(way), q, key, v)
            try:
                pairs = zip(run(), plain, strict=True)
                apart[name] = max(float(jnp.abs(a.astype(jnp.float32) - p.astype(jnp.float32)).max()) for a, p in pairs)
                took[name] = 1e3 * timed(run, 3 if quick else 10)
            except Exception as error:
                failed += f"; {name} failed: {type(error).__name__}"
        times = ", ".join(f"{name} {time:.3g} ms" for name, time in took.items())
        fastest = min(took, key=took.__getitem__)
        yield Answer(
            f"attention [{b}, {t}, {h}, {k}], {jnp.dtype(dtype).name}, with gradient",
            f"{times}; gradients at most {max(apart.values()):.2g} apart{failed}",
            f"{fastest} is fastest; fused is {took['plain'] / took['fused']:.2f} x as fast as plain",
            {name: (time, "ms") for name, time in took.items()},
        )


def ask(minutes: float, quick: bool) -> Iterator[Answer]:
    """All questions, until the time is over."""
    end = time.monotonic() + 60 * minutes
    for question in (losses, attention, steps):
        if time.monotonic() > end:
            yield Answer(question.__name__, "not run", "the time was over")
            continue
        try:
            for answer in question(quick):
                yield answer
                if time.monotonic() > end:
                    yield Answer(f"the rest of {question.__name__}", "not run", "the time was over")
                    break
        except Exception as error:
            text = str(error).strip().splitlines() or [""]
            yield Answer(question.__name__, f"failed: {type(error).__name__}: {text[0][:200]}", "LOOK INTO IT")


def main() -> None:
    """Asks, prints each answer as it comes, and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="tiny networks, as a CPU can run them")
    parser.add_argument("--minutes", type=float, default=10.0, help="after which no further question starts")
    parser.add_argument(
        "--output", type=Path, metavar="FILE.md", help="a page with the table; FILE.json beside it has the report"
    )
    parser.add_argument("--check", nargs="+", metavar="FILE.json", help="only check the format of reports")
    options = parser.parse_args()
    if options.check:
        sys.exit(check_files(options.check))
    from page import render_page

    begin = time.monotonic()
    report = describe_machine(options.quick, f"experiments/on_device.sh{' --quick' * options.quick}")
    device, versions = report["device"], report["versions"]
    software = ", ".join(f"{name} {version}" for name, version in versions.items())
    machine = (
        f"{device['count']} x {device['kind']} ({device['platform']}), {device['cores']} cores, load {device['load']:.1f}, "
    )
    machine += f"driver {report['driver']['name']} {report['driver']['version']}, commit {report['commit'][:12]}, {software}."
    lines = ["| question | answer | verdict |", "|---|---|---|"]
    print("\n".join([machine, "", *lines]))
    rows: list[dict[str, Any]] = []
    for answer in ask(options.minutes, options.quick):
        lines.append(f"| {' | '.join(answer[:3])} |")
        print(lines[-1], flush=True)
        state = "failed" if answer.answer.startswith("failed") else "answered" if answer.measurements else "not run"
        values = [{"name": name, "value": float(value), "unit": unit} for name, (value, unit) in answer.measurements.items()]
        question, text, verdict = answer[:3]
        rows.append({"question": question, "answer": text, "verdict": verdict, "state": state, "measurements": values})
    by_state = {state: [row["question"] for row in rows if row["state"] == state] for state in STATES}
    report |= {"seconds": round(time.monotonic() - begin, 1), "questions": rows}
    text = render_page(
        f"One device and what it answers: {device['kind']}",
        f"{len(by_state['answered'])} of {len(rows)} questions are answered"
        + "".join(f"; {state}: {', '.join(by_state[state])}" for state in STATES[1:] if by_state[state])
        + ".",
        "\n".join(lines),
        f"`{report['command']}`, {report['seconds']:.0f} seconds.",
        machine,
    )
    if options.output:
        options.output.write_text(text, encoding="utf-8")
        options.output.with_suffix(".json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        print(f"\n{options.output} and {options.output.with_suffix('.json')}: CONTRIBUTING.md says how to send them")


if __name__ == "__main__":
    main()
