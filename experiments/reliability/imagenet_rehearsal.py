"""Trains configs/imagenet_resnet50.py for one epoch on a stand-in for ImageNet, as a cluster would, and checks what came out.

    ./launch.sh python experiments/reliability/imagenet_rehearsal.py [--size=64] [--workdir=runs/imagenet_rehearsal]

The stand-in has ImageNet's 1,000 classes with 8 images each for training and one for validation: JPEGs of 300 to 500 pixels
a side, which show a pattern of their class under noise. They are written twice, as a folder a class and as ArrayRecord
in the layout of TensorFlow Datasets, and each form is trained on by two processes: the folders with SIGTERM after half of the
steps and the same command again, the records without. Both runs see the same images in the same order, so that they must end
with bitwise the same state. Then one process evaluates both.

`--size` is the side of the network's images in pixels, by default 64, so that two cores need minutes; 224 is the recipe's.
What was made is kept in the workdir; the command goes on where it was stopped.
"""

import argparse
import io
import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from attention_jax import tree  # noqa: E402
from attention_jax.train import restore  # noqa: E402
from experiments.benchmarks.page import render_page  # noqa: E402
from tests.helpers.tiny_set import write_splits  # noqa: E402

CLASSES, EACH, BATCH, SHARDS = 1000, 8, 64, 8
STEPS = CLASSES * EACH // BATCH


def make_images(split: str, each: int) -> Iterator[tuple[int, str, bytes]]:
    """Yields (class, file name, JPEG) in the order of the classes: a class's pattern of 4x4 colours, enlarged, under noise."""
    for label in range(CLASSES):
        pattern = Image.fromarray(np.random.default_rng(label).integers(0, 256, (4, 4, 3), np.uint8))
        for number in range(each):
            rng = np.random.default_rng((label, number, len(split)))
            width, height = map(int, rng.integers(300, 501, 2))
            pixels = np.asarray(pattern.resize((width, height), Image.Resampling.BICUBIC), np.int16)
            noise = rng.integers(-24, 25, (height, width, 1), np.int16)
            image = Image.fromarray(np.clip(pixels + noise, 0, 255).astype(np.uint8))
            image.save(buffer := io.BytesIO(), "JPEG", quality=90)
            yield label, f"{number:05d}.JPEG", buffer.getvalue()


def write_data(folder: Path) -> float:
    """Writes both forms below `folder` unless they are there, and returns the mean size of an image in kB."""
    if not (folder / "done").exists():
        shutil.rmtree(folder, ignore_errors=True)
        splits, size = {}, 0
        for split, form, each in (("train", "train", EACH), ("val", "validation", 1)):
            files = [[] for _ in range(SHARDS)]
            for label, name, content in make_images(split, each):
                path = folder / "folders" / split / f"n{label:08d}" / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
                files[label * SHARDS // CLASSES].append((content, label))
                size += len(content)
            splits[form] = files
        write_splits(folder / "records" / "imagenet2012" / "5.1.0", splits, CLASSES, side=None)
        (folder / "done").write_text(str(size / (CLASSES * (EACH + 1)) / 1e3))
    return float((folder / "done").read_text())


def read_events(workdir: Path, name: str) -> list[dict[str, Any]]:
    """Returns the lines of timing.jsonl of one kind of event."""
    path = workdir / "timing.jsonl"
    lines = map(json.loads, path.read_text().splitlines() if path.exists() else [])
    return [line for line in lines if line["event"] == name]


def train(data: Path, workdir: Path, form: str, size: int, stop: bool) -> None:
    """Trains on two processes to the end of the epoch; with `stop`, through SIGTERM after half of the steps."""
    options = {
        "data.num_examples": CLASSES * EACH,
        "data.image_shape": f"({size}, {size}, 3)",
        "data.eval_resize": size * 256 // 224,
        "batch_size": BATCH,
        "total_epochs": 1.0,
        "schedule.learning_rate": 0.1 * BATCH / 256,
        "evaluation.batch_size": BATCH,
        "logging.every_steps": 5,
        "logging.tensorboard": False,
    }
    if form == "folders":
        options |= {"data.source": "folder", "data.args": f"{{'path': '{data}/folders'}}", "data.eval_split": "val"}
    else:
        options["data.args.data_dir"] = f"{data}/records"
    command = [str(ROOT / "launch.sh"), "local", "--processes=2", "--devices=1", "--", "train", f"--workdir={workdir}"]
    command += [
        f"--config={ROOT}/configs/imagenet_resnet50.py",
        *(f"--config.{name}={value}" for name, value in options.items()),
    ]
    for attempt in range(1 + stop):
        print(f"{form}: {'goes on' if attempt else 'begins'}", flush=True)
        running = subprocess.Popen(command)
        if stop and not attempt:
            while running.poll() is None and not any(line["step"] >= STEPS // 2 for line in read_events(workdir, "training")):
                time.sleep(0.5)
            running.send_signal(signal.SIGTERM)
        if running.wait() and not (stop and not attempt):
            sys.exit(f"{form}: training ended with exit code {running.returncode}")


def evaluate(workdir: Path) -> dict[str, float]:
    """Returns what `evaluate` prints of a run, in one process."""
    command = [str(ROOT / "launch.sh"), "evaluate", f"--workdir={workdir}"]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1])


def compare_states(one: Path, other: Path) -> list[str]:
    """Returns the paths of arrays that two runs' newest checkpoints do not share bitwise."""
    states = [tree.flatten_by_path(restore.read_newest(path)[0]) for path in (one, other)]
    assert states[0].keys() == states[1].keys()
    return [path for path, array in states[0].items() if not np.array_equal(array, states[1][path])]


def describe_run(workdir: Path, form: str) -> tuple[str, float, float]:
    """Returns a row of the page, and examples a second of a host's data and of its step."""
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").open()]
    losses = [line["train/loss"] for line in lines if "train/loss" in line]
    rates, scores = read_events(workdir, "input")[-1], evaluate(workdir)
    logged = [line["eval/accuracy"] for line in lines if "eval/accuracy" in line][-1]
    if abs(scores["accuracy"] - logged) > 1.5 / CLASSES:
        sys.exit(f"{form}: one process evaluates {scores['accuracy']}, two processes {logged}")
    cells = f"{losses[0]:.2f} → {losses[-1]:.2f} | {100 * scores['accuracy']:.1f} | {rates['data']:,.0f} | {rates['step']:,.1f}"
    return f"| {form} | {STEPS} | {cells} |", rates["data"], rates["step"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--workdir", type=Path, default=ROOT / "runs" / "imagenet_rehearsal")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    data, workdir = options.workdir / "data", options.workdir / str(options.size)
    kilobytes = write_data(data)
    forms = {"records": False, "folders": True}
    for form, stop in forms.items():
        if not (workdir / form / "done").exists():
            train(data, workdir / form, form, options.size, stop)
            (workdir / form / "done").touch()
    other = compare_states(*(workdir / form for form in forms))
    rows, data_rates, step_rates = zip(*(describe_run(workdir / form, form) for form in forms), strict=True)
    factor = min(data_rates) / max(step_rates)
    state = f"{len(other)} arrays differ" if other else "Bitwise the same state"
    finding = (
        f"{state} after one epoch of {CLASSES * EACH:,} images "
        "in two processes, from ArrayRecord without a stop and from folders with SIGTERM at half and a second start. "
        f"The data of a process are at least {factor:.1f} times as fast as its step here."
    )
    head = "| form | steps | training loss | top-1 % | data, images/s | step, images/s |\n|---|---:|---:|---:|---:|---:|"
    size = "" if options.size == 64 else f" --size={options.size}"
    page = render_page(
        "A rehearsal of ImageNet: the whole pipeline on a stand-in of 1,000 classes",
        finding,
        "\n".join([head, *rows]),
        f"`./launch.sh python experiments/reliability/imagenet_rehearsal.py{size}`. The stand-in: 8 images "
        f"({kilobytes:.0f} kB each) of a class for training, one for validation; its accuracy says nothing about ImageNet. "
        f"configs/imagenet_resnet50.py with images of {options.size}x{options.size}, {BATCH} a step. Rates: of one of two "
        "processes, which share two cores, in its first minute of training; data: what the loader could give if the step did "
        "not wait.",
        f"jax {jax.__version__}, Python {sys.version.split()[0]}.",
    )
    print(page)
    if options.output:
        options.output.write_text(page, "utf-8")
    sys.exit(bool(other))


if __name__ == "__main__":
    main()
