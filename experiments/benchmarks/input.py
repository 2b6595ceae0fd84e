"""JPEG -> random-resized crop of 224 pixels, flip, RandAugment: images a second and core, beside timm's.

    python experiments/benchmarks/input.py [--timm-python=PYTHON] [--rounds=5] [--images=400] [--output=FILE]

PYTHON is an interpreter with timm, by default this one; where it has none, the column stays empty. Both pipelines run
in processes of their own, one thread each, taking turns; time is processor time, so that a busy machine blurs it little.
The images are noise with the spectrum of photographs: 500x375 pixels and about as many bytes as ImageNet's (110 kB). The
committed table was measured with two photographs, whose JPEGs had 98 kB. RandAugment is timm's set, two operations of
magnitude 9, each with probability 1/2; without the spread of the magnitude that timm recommends, since it then asks
Pillow 12 and later for an illegal posterize.
"""

import argparse
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from page import render_page, say_range

ROOT = Path(__file__).resolve().parents[2]
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# label: (interpolation of the crop, RandAugment, float32 in the end instead of uint8)
ROWS = {
    "crop, flip": ("bilinear", False, False),
    "crop, flip, RandAugment": ("bilinear", True, False),
    "crop, flip, RandAugment; bicubic": ("bicubic", True, False),
    "crop, flip, RandAugment, normalise": ("bilinear", True, True),
}
BATCH = 50


def make_photos(folder: Path, count: int = 20) -> float:
    """Writes JPEGs and returns their mean size in bytes."""
    sys.path.insert(0, str(ROOT))
    from PIL import Image

    from attention_jax.preflight.measure import make_photo

    for number in range(count):
        Image.fromarray(make_photo(500, 375, number)).save(folder / f"{number:02d}.jpg", quality=96)
    return statistics.mean(path.stat().st_size for path in folder.iterdir())


def ours(interpolation: str, augmented: bool, as_float: bool) -> Callable[[list[bytes], int], object]:
    """A function that turns encoded images into a batch."""
    sys.path.insert(0, str(ROOT))
    import numpy as np

    from attention_jax.config import load_config
    from attention_jax.data.images.randaugment import convert_mean_to_fill, make_randaugment
    from attention_jax.data.loader import make_example_generator
    from attention_jax.tasks import classification

    config = load_config(str(ROOT / "configs" / "imagenet_resnet50.py"))
    config.data.interpolation = interpolation
    crop_and_flip = classification.make_training_transform(config)
    # timm warps with the interpolation of the crop.
    augment = make_randaugment(2, 9, "timm", fill=convert_mean_to_fill(MEAN), resample=interpolation) if augmented else None

    def pixels(data: bytes, rng: np.random.Generator) -> np.ndarray:
        image = crop_and_flip(data, rng)
        return augment(image, rng) if augment else image

    def batch(images: list[bytes], start: int) -> object:
        done = np.stack([pixels(data, make_example_generator(0, 0, start + i)) for i, data in enumerate(images)])
        return classification.preprocess(config, done) if as_float else done

    return batch


def timms(interpolation: str, augmented: bool, as_float: bool) -> Callable[[list[bytes], int], object]:
    """The same with timm."""
    import torch
    from PIL import Image
    from timm.data import create_transform

    torch.set_num_threads(1)
    transform = create_transform(
        224,
        is_training=True,
        interpolation=interpolation,
        color_jitter=None,
        auto_augment="rand-m9-inc1" if augmented else None,
        mean=MEAN,
        std=STD,
        use_prefetcher=not as_float,  # then timm leaves the rest to the accelerator
    )

    def batch(images: list[bytes], start: int) -> object:
        done = [torch.as_tensor(transform(Image.open(io.BytesIO(data)).convert("RGB"))) for data in images]
        return torch.stack(done)

    return batch


def measure(which: str, folder: Path, images: int) -> None:
    """Worker: for each line of input, a row's label, answers with its milliseconds of processor time an image."""
    make = {"ours": ours, "timm": timms}[which]
    photos = [path.read_bytes() for path in sorted(folder.iterdir())]
    chosen = [photos[i % len(photos)] for i in range(images)]
    batches = {label: make(*row) for label, row in ROWS.items()}
    for batch in batches.values():
        batch(chosen[:BATCH], 0)
    print("ready", flush=True)
    for line in sys.stdin:
        batch, begin = batches[line.strip()], time.process_time()
        for start in range(0, images, BATCH):
            batch(chosen[start : start + BATCH], start)
        print(json.dumps((time.process_time() - begin) / images * 1e3), flush=True)


def start(python: str, which: str, folder: Path, images: int) -> subprocess.Popen | None:
    """A worker that is ready, or None when it cannot run."""
    command = [python, __file__, f"--worker={which}", f"--folder={folder}", f"--images={images}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "JAX_PLATFORMS": "cpu"}
    worker = subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    if worker.stdout.readline().strip() == "ready":
        return worker
    print(f"{which}: not measured ({(worker.stderr.read().strip().splitlines() or ['no output'])[-1]}).")
    return None


def main() -> None:
    """Measures and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--timm-python", default=sys.executable)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=400)
    parser.add_argument("--output", type=Path, help="also write the table here")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        measure(options.worker, options.folder, options.images)
        return
    with tempfile.TemporaryDirectory() as name:
        size = make_photos(Path(name))
        pythons = {"ours": sys.executable, "timm": options.timm_python}
        workers = {which: start(python, which, Path(name), options.images) for which, python in pythons.items()}
        workers = {which: worker for which, worker in workers.items() if worker}
        measured: dict[tuple[str, str], list[float]] = {}
        for _ in range(options.rounds):
            for label in ROWS:
                for which, worker in workers.items():
                    print(label, file=worker.stdin, flush=True)
                    measured.setdefault((which, label), []).append(json.loads(worker.stdout.readline()))
        for worker in workers.values():
            worker.communicate()
    lines = ["| pipeline | ours | timm | ratio |", "|---|---|---|---|"]
    ratios = []
    for label in ROWS:
        rates = {which: 1e3 / statistics.median(measured[which, label]) for which in workers}
        cells = [f"{rates[which]:.0f}" if which in rates else "not run" for which in ("ours", "timm")]
        ratio = f"{rates['ours'] / rates['timm']:.2f}" if len(rates) == 2 else "–"
        ratios += [rates["ours"] / rates["timm"]] if len(rates) == 2 else []
        lines.append(f"| {label} | {' | '.join(cells)} | {ratio} |")
    command = "python experiments/benchmarks/input.py --timm-python=PYTHON"
    command += f" --rounds={options.rounds} --images={options.images}"
    text = render_page(
        "Images a second and core, beside timm",
        f"One core prepares {say_range(ratios)} times as many training images a second as timm's pipeline."
        if ratios
        else "Only one of the two pipelines could run, so that nothing is compared.",
        "\n".join(lines),
        f"`{command}` (needs a quiet machine and timm). 500x375 JPEGs of {size / 1e3:.0f} kB; images a second and core by "
        "processor time, median of "
        f"{options.rounds} rounds of {options.images}, the two in turn.",
    )
    print(text)
    if options.output:
        options.output.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
