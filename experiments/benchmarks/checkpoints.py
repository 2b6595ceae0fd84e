"""Measures saves: seconds that training is blocked, seconds in all, extra memory, bytes of each process, objects.

    ./launch.sh python experiments/benchmarks/checkpoints.py [--megabytes=419] [--latency=0.0] [--saves=3] [--no-seconds]
                                                             [--output=FILE]

A state of parameters and two moments, divided over two processes as `parallel.fsdp=2` does, is saved several times while a step
runs again and again: once to a folder and once to gs://, on a server of ours that has its objects in a folder, in a process of
its own (tests/helpers/gcs_server.py). Blocked: from the call of `save` to its return, checksums among them. Extra memory: the
largest resident memory of a process during the saves after the first, less that before the save. The first save also imports
and connects; it is shown apart. Figures of before the change, with the transport that was replaced, are copied: no command
here measures them.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from experiments.benchmarks.page import render_page  # noqa: E402

BEFORE = [  # copied: one process, 419 MB
    (
        "gs://, own transport (before the change)",
        "3.9",
        "17.4",
        "3.0",
        "all by process 0",
        "1 for the arrays",
    ),
    ("folder, Orbax (before the change)", "0.4", "4.8", "0.07", "–", "–"),
]


def read_memory() -> int:
    """Resident bytes of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def save_as_process(options: argparse.Namespace) -> None:
    """One of two processes: saves and prints a line of JSON for each save."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    from jax.experimental import multihost_utils

    from attention_jax import storage
    from attention_jax.distributed.mesh import join_processes, make_mesh
    from attention_jax.train.checkpoint import Checkpoints
    from attention_jax.train.save_times import count_written_bytes
    from attention_jax.train.step import State

    storage.SECONDS = 600.0  # a busy machine takes long to import gcsfs
    join_processes()
    mesh = make_mesh(1, jax.device_count(), 1)
    rows = int(options.megabytes * 1e6 / 3 / 4 / 8 / 1024) // 2 * 2
    divided = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("fsdp"))
    replicated = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())

    @jax.jit
    def make(seed):
        keys = jax.random.split(jax.random.key(seed), 24)
        arrays = [jax.lax.with_sharding_constraint(jax.random.normal(key, (rows, 1024)), divided) for key in keys]
        scale = jax.lax.with_sharding_constraint(jnp.ones((64,)), replicated)
        kinds = [{f"layer{i}": arrays[8 * kind + i] for i in range(8)} for kind in range(3)]
        return {**kinds[0], "scale": scale}, kinds[1:]

    # Each element by itself, so that the processes need not compute together.
    step = jax.jit(lambda state: jax.tree.map(lambda x: x * 0.999, state), donate_argnums=0)

    def count(number):
        return jax.make_array_from_callback((), replicated, lambda index: np.int32(number))

    arrays = make(0)
    state = State(count(0), arrays[0], {}, arrays[1], None)
    held = sum(shard.data.nbytes for leaf in jax.tree.leaves(state) for shard in leaf.addressable_shards)
    remote = storage.RemoteFolder(options.place) if options.place.startswith("gs://") else None
    workdir = Path(options.scratch) / f"staging{jax.process_index()}" if remote else Path(options.place)
    workdir.mkdir(parents=True, exist_ok=True)
    checkpoints = Checkpoints(workdir, 1, 0, lambda step: None, remote)
    for number in range(options.saves):
        arrays = step(arrays)
        jax.block_until_ready(arrays)
        state = State(count(number), arrays[0], {}, arrays[1], None)
        multihost_utils.sync_global_devices(f"before save {number}")
        peak, stop, before = [0], threading.Event(), read_memory()

        def watch(peak=peak, stop=stop, before=before):
            while not stop.wait(0.005):
                peak[0] = max(peak[0], read_memory() - before)

        watcher = threading.Thread(target=watch)
        watcher.start()
        begin = time.perf_counter()
        checkpoints.save(state, {"config": "{}", "sums": {}, "log": b""}, {})
        blocked = time.perf_counter() - begin
        del state
        while checkpoints.saver.is_saving():
            arrays = step(arrays)
            jax.block_until_ready(arrays)
            checkpoints.check()
        checkpoints.wait()
        seconds = time.perf_counter() - begin
        stop.set()
        watcher.join()
        line = {"process": jax.process_index(), "save": number, "blocked": blocked, "seconds": seconds, "extra": peak[0]}
        line |= {"held": held, "own": count_written_bytes(arrays)}
        print("RESULT " + json.dumps(line), flush=True)
    checkpoints.close()


def start(options: argparse.Namespace, place: str, scratch: Path, env: list[dict[str, str]]) -> list[dict]:
    """Two processes on this machine; returns their lines."""
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    words = [f"--megabytes={options.megabytes}", f"--saves={options.saves}", f"--place={place}", f"--scratch={scratch}"]
    joined = {"AJ_COORDINATOR": f"127.0.0.1:{port}", "AJ_PROCESSES": "2", "JAX_PLATFORMS": "cpu", "AJ_START_SECONDS": "600"}
    children = [
        subprocess.Popen(
            [sys.executable, __file__, *words],
            env={**os.environ, **joined, "AJ_PROCESS": str(i), **env[i]},
            stdout=subprocess.PIPE,
            text=True,
        )
        for i in range(2)
    ]
    texts = [child.communicate()[0] for child in children]
    if any(child.returncode for child in children):
        raise SystemExit("a process failed:\n" + "\n".join(texts))
    return [json.loads(line[7:]) for text in texts for line in text.splitlines() if line.startswith("RESULT ")]


def summarise(name: str, lines: list[dict], written: list[int] | None, objects: int) -> tuple[str, ...]:
    """A row of the table, of the saves after the first."""
    later = [line for line in lines if line["save"]]
    extra = max(line["extra"] / line["held"] for line in later)
    own = lines[0]["own"]
    share = "–" if written is None else " and ".join(f"{each / own:.3f}" for each in written)
    blocked, seconds = (f"{max(line[key] for line in later):.2f}" for key in ("blocked", "seconds"))
    return name, blocked, seconds, f"{extra:.2f}", share, str(objects)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--megabytes", type=float, default=419.0, help="of the state, over both processes")
    parser.add_argument("--latency", type=float, default=0.0, help="seconds before each answer of the server")
    parser.add_argument("--saves", type=int, default=3)
    parser.add_argument("--no-seconds", action="store_true", help="leave the seconds out, on a busy machine")
    parser.add_argument("--output", type=Path, help="the page; by default it is only printed")
    parser.add_argument("--place", help=argparse.SUPPRESS)
    parser.add_argument("--scratch", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.place:
        return save_as_process(options)
    rows = list(BEFORE)
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        lines = start(options, str(scratch / "run"), scratch, [{}, {}])
        files = sum(path.is_file() for path in (scratch / "run" / "checkpoints").rglob("*"))
        rows.append(summarise("folder, each process its part", lines, None, files))
        words = [f"--latency={options.latency}", f"--folder={scratch / 'bucket'}"]
        server = subprocess.Popen(
            [sys.executable, str(ROOT / "tests/helpers/gcs_server.py"), *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            url = server.stdout.readline().strip()
            names = {"STORAGE_EMULATOR_HOST": url, "TENSORSTORE_GCS_HTTP_URL": url, "GOOGLE_CLOUD_PROJECT": "project"}
            env = [{**names, "GOOGLE_AUTH_TOKEN_FOR_TESTING": f"process {i}"} for i in range(2)]
            lines = start(options, "gs://bucket/run", scratch, env)
            server.stdin.write("\n")
            server.stdin.flush()
            counts = json.loads(server.stdout.readline())
        finally:
            server.terminate()
            server.wait()
        written = [counts["received"].get(f"process {i}", 0) // options.saves for i in range(2)]
        rows.append(summarise("gs://, each process its part", lines, written, counts["objects"]))
    first = f"{max(line['blocked'] for line in lines if not line['save']):.2f}"
    if options.no_seconds:
        rows = [*BEFORE, *((row[0], "not run", "not run", *row[3:]) for row in rows[len(BEFORE) :])]
        first = "not run"
    head = ("where", "blocked, s", "in all, s", "extra memory / state of a process", "bytes / part of a process", "objects")
    table = "\n".join(f"| {' | '.join(row)} |" for row in (head, ("---", *["---:"] * 5), *rows))
    text = render_page(
        "Saving a checkpoint",
        f"At gs:// a save of {options.megabytes:g} MB by two processes takes {rows[-1][3]} x the memory of a process's state, "
        f"and each process writes its own part. Training waits, in seconds: {rows[-1][1]}.",
        table,
        "`./launch.sh python experiments/benchmarks/checkpoints.py --output=experiments/results/checkpoints.md`: two processes "
        f"with one CPU device each, {options.latency * 1000:g} ms before an answer, the largest of the saves after the first "
        f"of {options.saves}; the first, with imports, blocked for (seconds) {first}. The program says what a column is. Rows "
        "of before the change are copied, and had one process.",
    )
    print(text)
    if options.output:
        options.output.write_text(text)


if __name__ == "__main__":
    main()
