"""Damage to a workdir between two calls of the training command."""

import os
import shutil
from pathlib import Path


def find_newest(workdir: Path) -> Path:
    """The folder of the newest checkpoint, `<step>` or, in a store, `<step>-<token>` with a marker beside it."""
    folders = [path for path in (workdir / "checkpoints").iterdir() if path.is_dir()]
    complete = [path for path in folders if path.name.isdigit() or path.with_name(f"{path.name}.json").exists()]
    return max(complete, key=lambda path: int(path.name.partition("-")[0]))


def flip_bit(workdir: Path) -> None:
    file = max((path for path in find_newest(workdir).rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 4
    file.write_bytes(data)


def truncate_arrays(workdir: Path) -> None:
    for file in (find_newest(workdir) / "state").rglob("*"):
        if file.is_file():
            file.write_bytes(file.read_bytes()[:-7])


def remove_description(workdir: Path) -> None:
    shutil.rmtree(find_newest(workdir) / "about")


def damage_two(workdir: Path) -> None:
    flip_bit(workdir)
    before = sorted(int(path.name) for path in (workdir / "checkpoints").iterdir() if path.name.isdigit())[-2]
    shutil.rmtree(workdir / "checkpoints" / str(before) / "about")


def remove_staging_folder(workdir: Path) -> None:
    """As on another machine, which has only the remote files."""
    shutil.rmtree(workdir.parent / "staging")


def cut_log(workdir: Path) -> None:
    """Cuts the log's last line, as a crash of the machine can."""
    with (workdir / "metrics.jsonl").open("a") as log:
        log.write('{"step": 19, "train/lo')


def remove_outputs(workdir: Path) -> None:
    (workdir / "evaluation.npz").unlink()


def damage_compile_cache(workdir: Path) -> None:
    """Truncates a compiled program, as a process does that is killed while it writes."""
    cache = Path(os.environ["JAX_COMPILATION_CACHE_DIR"])
    entry = max(cache.glob("*-cache"), key=lambda path: path.stat().st_mtime)
    entry.write_bytes(entry.read_bytes()[: entry.stat().st_size // 2])
