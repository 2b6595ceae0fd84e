"""A table's remote workdir: a local folder stands for it, and each run is fetched before and after training.

Runs are trained at their own URIs, as single runs are; only what people and the table read is copied here.
"""

import shutil
from pathlib import Path

from attention_jax.distributed.mesh import is_main_process
from attention_jax.storage import RemoteFolder
from attention_jax.train import remote_checkpoints, restore
from attention_jax.train.metrics import TIMING
from attention_jax.train.restore import FOLDER
from attention_jax.train.workdir import CONFIG, EVALUATION, get_staging_folder


class RemoteWorkdir:
    """A table's workdir at an fsspec URI, which must answer and, in the main process, be writable.

    Attributes:
        workdir: its URI.
        folder: stands for it in this process.
    """

    def __init__(self, uri: str):
        self._remote = RemoteFolder(uri, write=is_main_process())
        self.workdir = self._remote.uri
        self.folder = get_staging_folder(uri) / "table"

    def uri(self, path: Path) -> str:
        """Returns the URI that a path in the local folder stands for."""
        return f"{self.workdir}/{path.relative_to(self.folder)}"

    def pull(self, run: Path) -> None:
        """Fetches the newest checkpoint of a run, its log and the small files beside it."""
        inside = str(run.relative_to(self.folder))
        there = RemoteFolder(self.uri(run))
        if remote_checkpoints.list_remote_steps(there)[-1:] != restore.list_steps(run)[-1:]:
            shutil.rmtree(run / FOLDER, ignore_errors=True)
            remote_checkpoints.download_checkpoints(there, run)
        names = {name for name in self._remote.names(inside) if name in (CONFIG, TIMING) or name.endswith((".txt", ".npz"))}
        for path in run.glob("*.*"):
            if path.suffix in (".txt", ".npz") and path.name not in names and path.name != EVALUATION:
                path.unlink()
        for name in names:
            run.mkdir(parents=True, exist_ok=True)
            (run / name).write_bytes(self._remote.read(f"{inside}/{name}") or b"")

    def push(self, path: Path) -> None:
        """Uploads a file, or removes it there when it is not here any more."""
        name = str(path.relative_to(self.folder))
        if path.exists():
            self._remote.write(name, path.read_bytes())
        else:
            self._remote.remove(name)
