"""Copies runs from remote workdirs, to open them: at gs://, and those of earlier versions at any URI that fsspec knows.

Earlier versions kept the log in parts `log/<step>-<checksum>.jsonl` that the marker `checkpoints/<step>.json` lists, and the
outputs of the evaluation in the checkpoint. Such a run opens, and no training goes on in it.
"""

import logging
import shutil
from collections.abc import Sequence
from pathlib import Path

from attention_jax.errors import UserError
from attention_jax.storage import RemoteFolder
from attention_jax.train import restore
from attention_jax.train.metrics import METRICS
from attention_jax.train.restore import FOLDER
from attention_jax.train.workdir import EVALUATION, get_staging_folder

log = logging.getLogger(__name__)


def download_run(uri: str, number: int = 1) -> Path:
    """Downloads the newest `number` good checkpoints of a remote workdir and its log, or one step; returns the local folder.

    Raises UserError when there is none.
    """
    workdir, _, name = uri.rstrip("/").partition(f"/{FOLDER}")
    remote, name = RemoteFolder(workdir), name.strip("/")
    local = get_staging_folder(workdir) / "copy"
    shutil.rmtree(local, ignore_errors=True)
    names = [found for step, found in restore.list_checkpoints(remote) if name in ("", found, str(step))]
    got, problems = download_checkpoints(remote, local, names, number)
    if not got:
        problem = f"all are damaged ({', '.join(problems)})" if problems else "there is none"
        raise UserError(f"{uri}: no checkpoint here: {problem}; give a run's workdir or a step's folder.")
    return local / FOLDER / got[0] if name else local


def download_checkpoints(
    remote: RemoteFolder, local: Path, names: Sequence[str], number: int = 1
) -> tuple[list[str], list[str]]:
    """Downloads the last `number` good checkpoints of these names into a local workdir, and the log and outputs of the last.

    Returns the names of those, and of the damaged ones.
    """
    got, problems = list[str](), list[str]()
    for name in reversed(names):
        folder = f"{FOLDER}/{name}"
        for file in (f"{folder}.json", *remote.find(folder)):
            _copy(remote, file, local)
        try:
            _, about = restore.read_checkpoint(local, folder)
        except Exception as error:
            reason = restore.describe_damage(error, f"{remote.uri}/{folder}")
            log.warning("%s/%s is damaged (%s)", remote.uri, folder, reason)
            shutil.rmtree(local / folder, ignore_errors=True)
            problems.append(name)
            continue
        if not got:
            marker = remote.read_json(f"{folder}.json")
            parts = marker.get("log", ()) if isinstance(marker, dict) else ()
            content = b"".join(remote.read(part) or b"" for part, *_ in parts) or remote.read(METRICS)
            (local / METRICS).write_bytes(about["log"] if about["log"] is not None else content or b"")
            for outputs in (EVALUATION, f"{folder}/{EVALUATION}"):
                _copy(remote, outputs, local, EVALUATION)
        got.append(name)
        if len(got) == number:
            break
    return got, problems


def refuse_earlier_layout(remote: RemoteFolder) -> None:
    """Raises UserError if a remote workdir has checkpoints of an earlier version, which are only read."""
    for _, name in reversed(restore.list_checkpoints(remote)):
        marker = remote.read_json(f"{FOLDER}/{name}.json")
        if isinstance(marker, dict) and "files" in marker:
            raise UserError(
                f"workdir={remote.uri} was written by an earlier version, whose remote checkpoints are read only: copy it to a "
                "folder and go on there, or begin another workdir with init_from."
            )


def _copy(remote: RemoteFolder, name: str, local: Path, target: str = "") -> None:
    content = remote.read(name)
    if content is not None:
        path = local / (target or name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
