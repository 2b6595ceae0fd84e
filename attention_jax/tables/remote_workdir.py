"""A table's workdir in a bucket."""

import shutil
from pathlib import Path

from attention_jax.config.code import CODE
from attention_jax.data.fingerprint import DATA
from attention_jax.distributed.mesh import is_main_process
from attention_jax.storage import RemoteFolder
from attention_jax.train import metrics, remote_runs, restore, workdir
from attention_jax.train.workdir import CONFIG, EVALUATION


class RemoteWorkdir:
    """A table's workdir at an fsspec URI, which must be readable and, in the main process, writable.

    The local `folder` mirrors it. Each run is trained at its own URI, as a single run is. Before and after training, only the
    files that people and the table read are fetched.
    """

    def __init__(self, uri: str):
        workdir.refuse_checkpoints_at(uri)
        self._remote = RemoteFolder(uri, write=is_main_process())
        self.workdir = self._remote.uri
        self.folder = workdir.get_staging_folder(uri) / "table"

    def uri(self, path: Path) -> str:
        """Returns the URI of a path in the local folder."""
        return f"{self.workdir}/{path.relative_to(self.folder)}"

    def pull(self, run: Path) -> None:
        """Fetches the newest checkpoint of a run, its log and the small files beside it."""
        inside = str(run.relative_to(self.folder))
        there = RemoteFolder(self.uri(run))
        if (found := restore.list_checkpoints(there))[-1:] != restore.list_checkpoints(run)[-1:]:
            shutil.rmtree(run / restore.FOLDER, ignore_errors=True)
            remote_runs.download_checkpoints(there, run, [name for _, name in found])
        names = {n for n in there.names("") if n in (CONFIG, CODE, DATA, metrics.TIMING) or n.endswith((".txt", ".npz"))}
        for path in run.glob("*.*"):
            if path.suffix in (".txt", ".npz") and path.name not in names and path.name != EVALUATION:
                path.unlink()
        for name in names:
            run.mkdir(parents=True, exist_ok=True)
            (run / name).write_bytes(self._remote.read(f"{inside}/{name}") or b"")

    def push(self, path: Path) -> None:
        """Uploads a file; removes it at the URI if the local file is gone."""
        name = str(path.relative_to(self.folder))
        if path.exists():
            self._remote.write(name, path.read_bytes())
        else:
            self._remote.remove(name)
