"""Records a second from a store with latency, without and with `data.cache_dir`, and what a host of a pod needs.

    python experiments/benchmarks/data_speed.py [--latency-ms=30] [--megabytes-per-second=125] [--records=8000]
        [--cache-dir=/dev/shm] [--output=experiments/results/data_speed.md]

The store is experiments/benchmarks/slow_store.py in a process of its own. Records have 110 kB, as ImageNet's JPEGs have on
average, and are not decoded: two cores could not decode as many as are read.
"""

import argparse
import contextlib
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
SIZE, SHARDS, SECONDS = 110_000, 16, 10.0  # bytes of a record, files, seconds of reading
IMAGENET = 154.6e9  # bytes: ILSVRC2012_img_train.tar has 147.9 GB and ILSVRC2012_img_val.tar 6.7 GB
# Hosts: (name, row of preflight.json and slice or published images a second, cores, memory in GB, where these are from)
HOSTS = [
    ("v5e, 4 chips", ("ResNet-50 @ v5e-16", "v5e-16"), 112, 192, "ct5lp-hightpu-4t, docs.cloud.google.com/tpu/docs/v5e"),
    ("v6e, 4 chips", ("ResNet-50 @ v6e-16", "v6e-16"), 180, 720, "ct6e-standard-4t, docs.cloud.google.com/tpu/docs/v6e"),
    ("8 GPUs, DGX A100", 16_621, 256, 2048, "ResNet-50, mixed precision: NVIDIA/DeepLearningExamples, PyTorch, README"),
]


@contextlib.contextmanager
def run_store(folder: Path, latency: float, bandwidth: float) -> Iterator[str]:
    """Yields the address of a store of a folder, which the libraries here then take for Google's."""
    command = [sys.executable, str(Path(__file__).with_name("slow_store.py")), str(folder)]
    command += [f"--latency-ms={latency}", f"--megabytes-per-second={bandwidth}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        address = f"http://127.0.0.1:{process.stdout.readline().strip()}"
        os.environ |= {"STORAGE_EMULATOR_HOST": address, "CLOUD_STORAGE_EMULATOR_ENDPOINT": address}
        try:
            yield address
        finally:
            process.terminate()


def read(source: Any, threads: int, seconds: float = SECONDS) -> float:
    """Returns records a second at random places."""
    end = time.perf_counter() + seconds

    def count(seed: int) -> int:
        places, number = random.Random(seed), 0
        while time.perf_counter() < end:
            source[places.randrange(len(source))]
            number += 1
        return number

    begin = time.perf_counter()
    with ThreadPoolExecutor(threads) as pool:
        total = sum(pool.map(count, range(threads)))
    return total / (time.perf_counter() - begin)


def measure(folder: Path, cache: Path, address: str, bandwidth: float) -> dict[str, Any]:
    """Returns rates, requests and bytes by name."""
    from attention_jax.data import staging
    from attention_jax.data.images.sources import open_source

    def counted(name: str, rate: float) -> float:
        found = json.load(urllib.request.urlopen(f"{address}/counts"))
        results[f"{name}: bytes a request"] = found["bytes"] / max(found["requests"], 1)
        return rate

    results: dict[str, Any] = {}
    args = {"name": "tiny", "data_dir": "gs://bucket"}
    files = sorted(folder.rglob("*.array_record-*"))
    size = sum(path.stat().st_size for path in files)
    source = open_source("tfds", "train", args)
    counted("", 0)
    results["before"] = counted("before", read(source._records.data_source, 16))

    stage = staging.StagedFolder._stage
    staging.StagedFolder._stage = lambda self, names: None  # type: ignore[method-assign]
    source = open_source("tfds", "train", args, str(cache / "single"))
    counted("", 0)
    results["one by one"] = counted("one by one", read(source._records.data_source, source.readers))
    staging.StagedFolder._stage = stage  # type: ignore[method-assign]
    shutil.rmtree(cache / "single")

    def share(name: str, copy: Callable[[str], object]) -> None:
        shutil.rmtree(cache / "copy", ignore_errors=True)
        begin = time.perf_counter()
        copy(str(cache / "copy"))
        results[name] = size / (time.perf_counter() - begin) / bandwidth / 1e6

    uris = [f"gs://bucket/{path.relative_to(folder)}" for path in files]
    share("fsspec get", lambda target: get(uris, target))
    for name in ("simplecache", "filecache"):
        share(f"fsspec {name}", lambda target, name=name: open_local(name, uris, target))
    share("cache_dir", lambda target: wait(staging, target, len(files)))
    staging.open_staged_folder.cache_clear()
    source = open_source("tfds", "train", args, str(cache / "copy"))
    records = source._records.data_source
    read(records, 16, 2.0)  # opens the files
    results["after"] = read(records, 16)
    results["parsed"] = read(source, 16)
    return results


def get(uris: list[str], target: str) -> None:
    """Copies files with fsspec."""
    import gcsfs

    gcsfs.GCSFileSystem(skip_instance_cache=True).get(uris, [f"{target}/{number}" for number in range(len(uris))])


def open_local(name: str, uris: list[str], target: str) -> None:
    """Copies files through one of fsspec's caches."""
    import fsspec

    fsspec.open_local([f"{name}::{uri}" for uri in uris], **{name: {"cache_storage": target}})


def wait(staging: Any, target: str, number: int) -> None:
    """Stages files and waits for them."""
    folder = staging.StagedFolder("gs://bucket/tiny", target)
    names = [name for name in folder.files if ".array_record" in name]
    assert len(names) == number
    folder.stage(names)
    while not all(map(folder.is_here, names)):
        time.sleep(0.01)


def count_needs() -> list[str]:
    """Rows of the table of what a host needs."""
    from attention_jax.config import load_config
    from attention_jax.preflight.chips import find_slice
    from attention_jax.preflight.measure import StepCost, measure_input_rate
    from attention_jax.preflight.report import Report

    rows = json.loads((ROOT / "experiments" / "results" / "preflight.json").read_text())
    decoded = measure_input_rate(load_config(str(ROOT / "configs" / "imagenet_resnet50.py")), 5.0)
    lines = [
        f"A core of this machine decodes and crops {decoded:,.0f} JPEGs of 500 x 375 pixels a second ({1e3 / decoded:.2f} ms "
        "each; bicubic, flip). A record has 110 kB.",
        "",
        "| host | ResNet-50 needs, records/s | Gbit/s if nothing is kept | cores to decode | cores it has | "
        "memory, GB (ImageNet: 155) | figures of the host |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, need, cores, memory, origin in HOSTS:
        if isinstance(need, tuple):
            row, topology = rows[need[0]], find_slice(need[1])
            rate = Report(topology, StepCost(**row["measured"]), None).rate / topology.hosts
            source = f"at best, [preflight](preflight.md); {origin} (published)"
        else:
            rate, source = need, f"{origin} (published)"
        bits = rate * SIZE * 8 / 1e9
        lines.append(f"| {name} | {rate:,.0f} | {bits:.1f} | {rate / decoded:.0f} | {cores} | {memory:,} | {source} |")
    return lines


def describe(found: dict[str, Any], options: argparse.Namespace, needs: list[str], load: float) -> str:
    """Formats the page."""
    ways = {
        "fsspec get": "`get` of fsspec, all files at once",
        "fsspec simplecache": "`simplecache::` of fsspec",
        "fsspec filecache": "`filecache::` of fsspec",
        "cache_dir": "`data.cache_dir`: 16 files at once, checksum compared and recorded",
    }
    reached = found["after"] >= 5000, found["cache_dir"] >= 0.9
    command = f"python experiments/benchmarks/data_speed.py --records={options.records} --latency-ms={options.latency_ms:g}"
    lines = [
        "# Data at a pod's speed",
        "",
        f"`{command} --megabytes-per-second={options.megabytes_per_second:g}`",
        "",
        f"{options.records:,} records of 110 kB in {SHARDS} files, in a store on this machine that answers after "
        f"{options.latency_ms:g} ms and sends {options.megabytes_per_second:g} MB a second; read at random places, "
        f"not decoded, on {len(os.sched_getaffinity(0))} cores that the store shares (load {load:.0f} before).",
        "",
        "Wanted: 5,000 records a second after staging "
        f"({'reached' if reached[0] else 'not reached'}), 90 % of the link while staging "
        f"({'reached' if reached[1] else 'not reached'}).",
        "",
        "| how | records/s | bytes sent a request |",
        "|---|---|---|",
        f"| array_record at gs://, 16 threads: one open-ended request a record | {found['before']:,.0f} | "
        f"{found['before: bytes a request']:,.0f} |",
        f"| `data.cache_dir`, file not there yet: the same, 64 threads | {found['one by one']:,.0f} | "
        f"{found['one by one: bytes a request']:,.0f} |",
        f"| `data.cache_dir`, staged, 16 threads | {found['after']:,.0f} | none |",
        f"| the same, each record taken apart into image and label | {found['parsed']:,.0f} | none |",
        "",
        "| copying all files | share of the link |",
        "|---|---|",
        *(f"| {text} | {found[name]:.0%} |" for name, text in ways.items()),
        "",
        "fsspec's caches know neither the room on the disk nor other processes, and keep a damaged copy. So fsspec",
        "moves the bytes, and `attention_jax/data/staging.py` keeps account of them. gcsfuse needs",
        "FUSE, which this machine does not have: not run.",
        "",
        "## What a host needs",
        "",
        *needs,
        "",
        f"Staging moves ImageNet's {IMAGENET / 1e9:.0f} GB once to each host: "
        f"{IMAGENET * 8 / 10e9 / 60:.1f} minutes at 10 Gbit/s. Later epochs read no network; without it each moves them again.",
    ]
    return "\n".join([*lines, ""])


def main() -> None:
    """Measures, prints and writes the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--latency-ms", type=float, default=30.0)
    parser.add_argument("--megabytes-per-second", type=float, default=125.0)
    parser.add_argument("--records", type=int, default=8000)
    parser.add_argument("--cache-dir", type=Path, help="default a temporary folder")
    parser.add_argument("--output", type=Path, help="write the page here")
    options = parser.parse_args()
    os.environ |= {"GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false", "JAX_PLATFORMS": "cpu"}  # else gcsfs waits a minute
    from tests.helpers.tiny_set import write_set

    load = os.getloadavg()[0]

    with tempfile.TemporaryDirectory() as data, tempfile.TemporaryDirectory(dir=options.cache_dir) as cache:
        each = options.records // SHARDS
        write_set(Path(data), [[random.randbytes(SIZE) for _ in range(each)] for _ in range(SHARDS)])
        with run_store(Path(data), options.latency_ms, options.megabytes_per_second) as address:
            found = measure(Path(data), Path(cache), address, options.megabytes_per_second)
    page = describe(found, options, count_needs(), load)
    print(page)
    if options.output:
        options.output.write_text(page)


if __name__ == "__main__":
    main()
