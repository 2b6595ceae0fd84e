"""A table's workdir at an address: a local folder stands for it, and each run is brought there before and after training.

Runs are trained at their own addresses, as single runs are; only what people and the table read is copied here.
"""

import shutil
from pathlib import Path

from attention_jax.distributed.mesh import is_main_process
from attention_jax.storage import RemoteFolder
from attention_jax.train import checkpoint, remote_checkpoints
from attention_jax.train.checkpoint import FOLDER
from attention_jax.train.metrics import TIMING
from attention_jax.train.workdir import CONFIG, EVALUATION, get_staging_folder


class Remote:
    """The workdir.

    Args:
        address: as an fsspec address; it is asked for a sign of life, and whether it may be written to.

    Attributes:
        workdir: its address.
        folder: stands for it in this process.
    """

    def __init__(self, address: str):
        self._far = RemoteFolder(address, write=is_main_process())
        self.workdir = self._far.uri
        self.folder = get_staging_folder(address) / "table"

    def address(self, path: Path) -> str:
        """Of what a path in the local folder stands for."""
        return f"{self.workdir}/{path.relative_to(self.folder)}"

    def pull(self, run: Path) -> None:
        """Brings the newest checkpoint of a run here, its log and whatever small files lie beside it."""
        inside = str(run.relative_to(self.folder))
        there = RemoteFolder(self.address(run))
        if remote_checkpoints.list_remote_steps(there)[-1:] != checkpoint.list_steps(run)[-1:]:
            shutil.rmtree(run / FOLDER, ignore_errors=True)
            remote_checkpoints.download_checkpoints(there, run)
        names = {name for name in self._far.names(inside) if name in (CONFIG, TIMING) or name.endswith((".txt", ".npz"))}
        for path in run.glob("*.*"):
            if path.suffix in (".txt", ".npz") and path.name not in names and path.name != EVALUATION:
                path.unlink()
        for name in names:
            run.mkdir(parents=True, exist_ok=True)
            (run / name).write_bytes(self._far.read(f"{inside}/{name}") or b"")

    def push(self, path: Path) -> None:
        """Brings a file there, or takes it away when it is not here any more."""
        name = str(path.relative_to(self.folder))
        if path.exists():
            self._far.write(name, path.read_bytes())
        else:
            self._far.remove(name)
