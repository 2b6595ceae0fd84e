"""Times this checkout against another one: an image step, a Transformer step, decoding and input, in turn.

    ./launch.sh python experiments/benchmarks/two_checkouts.py --before=DIR [--pairs=12]
                                                               [--cases=cnn,transformer,decoding,greedy,beam,input]
                                                               [--output=FILE]

A process for each checkout and case stays alive; the two take turns, first one and then the other, in an order drawn anew
for each pair. The ratio after / before of each pair gives a median and a 95 % interval by bootstrap over pairs. Both use this
environment's packages, so that only the code of the two differs. Data are drawn; the decoding case trains a run of one step
with the older checkout, which both then open. Memory is what the compiled search plans, and the most that the process ever
had (its resident set), after the same number of turns.
"""

import argparse
import importlib.metadata
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from page import render_page

ROOT = Path(__file__).resolve().parents[2]
CASES = {
    "cnn": "ResNet-50, 8 images of 224 x 224, training step",
    "transformer": "Transformer base, 32 pairs of 32 tokens, vocabulary 8,000, training step",
    "decoding": "greedy search, 32 sentences, at least 24 tokens, small Transformer",
    "greedy": "greedy search, Transformer base, 32 sentences of 32 tokens, 64 new tokens each, vocabulary 8,000",
    "beam": "the same with a beam of 4",
    "input": "32 JPEG of 500 x 375: crop to 224, flip, RandAugment",
}


def build_program(config):  # both names, since the older checkout may have either
    from attention_jax.train import program

    return getattr(program, "build_program", None) or program.build, config


def training_step(name: str, changes: dict) -> Callable[[], None]:
    """One training step of a config on drawn data."""
    import jax
    import numpy as np

    from attention_jax.config import load_config, override

    build, config = build_program(override(load_config(str(ROOT / "configs" / name)), changes))
    program = build(config)
    generator = np.random.default_rng(0)

    def drawn(shape):
        if np.issubdtype(shape.dtype, np.integer):
            return generator.integers(0, 10, shape.shape).astype(shape.dtype)
        return np.ones(shape.shape, shape.dtype)

    batch = jax.device_put(jax.tree.map(drawn, program.task.batch_shapes(program.config)[-1]))
    state = program.init(0)

    def step() -> None:
        nonlocal state
        state, metrics = program.train_step(state, batch, np.uint32(0))
        jax.block_until_ready(metrics)

    return step


def decoding(folder: Path) -> Callable[[], None]:
    """Greedy translations of 32 sentences."""
    import attention_jax as aj

    run = aj.load_run(folder / "run")
    sentences = [f"{number} kilograms and {number + 1} meters" for number in range(32)]
    return lambda: run.predict(sentences, beam=1, min_length=24)  # an untrained network may end at once


def base_search(beam: int) -> Callable[[], None]:
    """A search of a Transformer base with drawn weights, which may not end before its last token."""
    import jax
    import numpy as np

    import attention_jax as aj
    from attention_jax.search import SearchOptions
    from attention_jax.tasks.translator import TranslationOptions, translate_tokens

    model = aj.create_model("transformer_base", vocab_size=8000)
    source = np.random.default_rng(0).integers(4, 8000, (32, 32)).astype(np.int32)
    variables = jax.jit(model.init)(jax.random.key(0), source, source)
    options = TranslationOptions(SearchOptions(beam=beam, min_length=64), fixed=64)
    program = jax.jit(lambda variables, source: translate_tokens(model, variables, source, options))
    compiled = program.lower(variables, source).compile()

    def search() -> None:
        tokens, _ = jax.block_until_ready(compiled(variables, source))
        assert tokens.shape[-1] == 64

    search.planned = compiled.memory_analysis().temp_size_in_bytes
    return search


def images(folder: Path) -> Callable[[], None]:
    """One training batch of 32 images, made in this thread."""
    from attention_jax.config import load_config, override
    from attention_jax.tasks import classification

    changes = {
        "data.source": "folder",
        "data.args.path": str(folder / "pictures"),
        "data.train_split": "train",
        "data.eval_split": "test",
        "data.num_examples": None,
        "batch_size": 32,
        "evaluation.batch_size": 32,
        "data.randaugment_layers": 2,
        "data.randaugment_magnitude": 10,
        "model.num_classes": 2,
    }
    config = load_config(str(ROOT / "configs" / "imagenet_resnet50.py"))
    with config.unlocked():
        config.data.args = {}
    config = classification.resolve(override(config, changes))
    loader = classification.loader(config, "train", (0, 1), training=True)
    return lambda: loader.training_batch(0)


def prepare(before: Path, folder: Path, cases: list[str]) -> None:
    """The files that the cases read."""
    if "input" in cases:
        import numpy as np
        from PIL import Image

        generator = np.random.default_rng(0)
        for split in ("train", "test"):
            for name in ("a", "b"):
                (folder / "pictures" / split / name).mkdir(parents=True)
                for number in range(16):
                    coarse = Image.fromarray(generator.integers(0, 255, (12, 16, 3), np.uint8))
                    coarse.resize((500, 375), Image.BICUBIC).save(
                        folder / "pictures" / split / name / f"{number}.jpg", quality=90
                    )
    if "decoding" in cases:
        command = [sys.executable, "-m", "attention_jax", "train", f"--config={before}/configs/translate_quickstart.py"]
        changes = ["--config.total_steps=1", "--config.schedule.warmup_steps=0", "--config.logging.tensorboard=False"]
        environment = {**os.environ, "PYTHONPATH": str(before)}
        subprocess.run([*command, *changes, f"--workdir={folder}/run"], env=environment, check=True, stdout=subprocess.DEVNULL)


def work(case: str, folder: Path) -> None:
    """A worker: does the case once for each line it reads, and answers with the seconds."""
    text = {
        "model.vocab_size": 8000,
        "data.bucket_lengths": (32,),
        "data.num_examples": 90_000,
        "data.num_batches": 500,
        "batch_size": 1024,
        "precision": "float32",
    }
    once = {
        "cnn": lambda: training_step(
            "imagenet_resnet50.py", {"batch_size": 8, "precision": "float32", "evaluation.batch_size": 8}
        ),
        "transformer": lambda: training_step("wmt14_transformer.py", text),
        "decoding": lambda: decoding(folder),
        "greedy": lambda: base_search(1),
        "beam": lambda: base_search(4),
        "input": lambda: images(folder),
    }[case]()
    once()
    once()
    print("ready", flush=True)
    for _ in sys.stdin:
        begin = time.perf_counter()
        once()
        print(time.perf_counter() - begin, flush=True)
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps([getattr(once, "planned", 0), most]), flush=True)


def compare(case: str, before: Path, folder: Path, pairs: int) -> dict:
    """Seconds of both, and the ratio after / before with its interval."""
    command = [sys.executable, __file__, f"--worker={case}", f"--folder={folder}"]
    workers = [
        subprocess.Popen(
            command,
            env={**os.environ, "PYTHONPATH": str(at)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=folder,
        )
        for at in (before, ROOT)
    ]
    seconds: tuple[list[float], list[float]] = ([], [])
    for worker in workers:
        while (line := worker.stdout.readline()) != "ready\n":
            if not line:
                sys.exit(f"{case}: a worker ended before it was ready.")
    for _ in range(pairs):
        for who in random.sample((0, 1), 2):
            workers[who].stdin.write("\n")
            workers[who].stdin.flush()
            seconds[who].append(float(workers[who].stdout.readline()))
    memory = []
    for worker in workers:
        worker.stdin.close()
        memory.append(json.loads(worker.stdout.read()))
        worker.wait()
    ratios = [after / first for first, after in zip(*seconds, strict=True)]
    means = sorted(median(random.choices(ratios, k=pairs)) for _ in range(10_000))
    return {
        "before": median(seconds[0]),
        "after": median(seconds[1]),
        "ratio": median(ratios),
        "low": means[250],
        "high": means[9749],
        "pairs": pairs,
        "planned": [planned for planned, _ in memory],
        "most": [most for _, most in memory],
    }


def median(values: list[float]) -> float:
    values = sorted(values)
    half = len(values) // 2
    return values[half] if len(values) % 2 else (values[half - 1] + values[half]) / 2


def main() -> None:
    parser = argparse.ArgumentParser(description="Two checkouts of this project, in turn.")
    parser.add_argument("--before", type=Path, metavar="DIR", help="the other checkout")
    parser.add_argument("--pairs", type=int, default=12)
    parser.add_argument("--cases", default=",".join(CASES))
    parser.add_argument("--output", type=Path, metavar="FILE", help="a Markdown table, besides the terminal")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        return work(options.worker, options.folder)
    before, cases = options.before.resolve(), options.cases.split(",")
    columns = ("case", "before ms", "after ms", "after / before, median [95 %]", "pairs", "planned MB", "most MB")
    rows = [f"| {' | '.join(columns)} |", f"| --- |{' ---: |' * (len(columns) - 1)}"]
    kept: dict[str, dict] = {}
    with tempfile.TemporaryDirectory() as folder:
        prepare(before, Path(folder), cases)
        for case in cases:
            found = compare(case, before, Path(folder), options.pairs)
            print(case, json.dumps(found), flush=True)
            kept[CASES[case]] = found
            interval = f"{found['ratio']:.3f} [{found['low']:.3f}, {found['high']:.3f}]"
            times = f"{1e3 * found['before']:.0f} | {1e3 * found['after']:.0f} | {interval} | {found['pairs']}"
            memory = [" → ".join(f"{size / 1e6:.0f}" for size in found[name]) for name in ("planned", "most")]
            rows.append(f"| {CASES[case]} | {times} | {memory[0] if any(found['planned']) else '–'} | {memory[1]} |")
    slower = [name for name, case in kept.items() if case["low"] > 1]
    faster = [name for name, case in kept.items() if case["high"] < 1]
    found = [f"slower: {', '.join(slower)}"] * bool(slower) + [f"faster: {', '.join(faster)}"] * bool(faster)
    text = render_page(
        "Two checkouts in turn",
        f"After the change these cases are {'; '.join(found)}."
        if found
        else "No case became slower or faster: all intervals hold 1.",
        "\n".join(rows),
        f"`./launch.sh python experiments/benchmarks/two_checkouts.py --before=DIR --pairs={options.pairs}` (needs a quiet "
        "machine and another checkout). Both checkouts "
        "work in turn; median of the ratios with its 95 % interval from a bootstrap over pairs. Memory before → after: "
        "temporary memory that the compiled search plans, and the most that the process had.",
        f"{len(os.sched_getaffinity(0))} threads, jax {importlib.metadata.version('jax')}.",
    )
    print(text)
    if options.output:
        options.output.write_text(text)


if __name__ == "__main__":
    main()
