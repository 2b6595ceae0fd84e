"""Keeps tokens and tokenizers in `data.cache_dir`, under the hash of everything that they are made from."""

import hashlib
import json
import logging
import os
import shutil
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from attention_jax.data.fingerprint import compute_fingerprint
from attention_jax.data.text.batches import TokenPairs
from attention_jax.errors import UserError, one_sentence
from attention_jax.storage import is_remote

logger = logging.getLogger(__name__)
VERSION, ABOUT = 1, "about.json"
_TYPES = {"tokens": np.int32, "starts": np.int64, "kept": np.int64}  # arrays of `TokenPairs`
Files = Mapping[str, Any]  # {name: content, anything with bytes}


def identify_pairs(pairs: Any) -> dict[str, Any]:
    """Returns the fingerprint of sentence pairs; of pairs in memory also the hash of all texts, not of a sample alone."""
    found = compute_fingerprint(pairs)
    if "fingerprint" not in found and isinstance(getattr(pairs, "base", pairs), list):
        texts = hashlib.sha256()
        for i in range(len(pairs)):
            texts.update("\t".join((*pairs[i], "")).encode(errors="surrogatepass"))
        found["texts"] = texts.hexdigest()
    return found


def keep_files(
    cache_dir: str, kind: str, made_of: Mapping[str, Any], make: Callable[[], tuple[Files, dict[str, Any]]]
) -> tuple[Path, dict[str, Any]]:
    """Returns a folder with files that were made of the same before, and notes about them; calls `make` if there are none.

    Files whose checksums are wrong are made anew, with a warning. Processes may call this at the same time.

    Args:
        cache_dir: folder of this host.
        kind: first word of the folder's name.
        made_of: everything that decides the files, as JSON.
        make: function that returns files and notes.

    Raises:
        UserError: the folder cannot be written to.
    """
    if is_remote(cache_dir):
        raise UserError(f"data.cache_dir={cache_dir}: tokens are kept in a folder of this host: give one.")
    text = json.dumps({"version": VERSION, **made_of}, sort_keys=True)
    folder = Path(cache_dir).expanduser().absolute() / f"{kind}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"
    if folder.exists():
        try:
            about = json.loads((folder / ABOUT).read_bytes())
            for name, checksum in about["sha256"].items():
                with (folder / name).open("rb") as file:
                    if hashlib.file_digest(file, "sha256").hexdigest() != checksum:
                        raise ValueError(f"{name} has another checksum")
            return folder, dict(about["notes"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            logger.warning("data: %s is damaged (%s) and is made anew.", folder, one_sentence(error))
    files, notes = make()
    partial = folder.with_name(f"{folder.name}.partial-{uuid.uuid4().hex[:8]}")
    try:
        partial.mkdir(parents=True)
        for name, content in files.items():
            (partial / name).write_bytes(content)
        checksums = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
        (partial / ABOUT).write_text(json.dumps({"made_of": json.loads(text), "notes": notes, "sha256": checksums}, indent=1))
        if folder.exists():  # damaged, or another process was faster: the same either way
            shutil.rmtree(folder, ignore_errors=True)
        os.replace(partial, folder)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        if not (folder / ABOUT).exists():  # no other process has put it there meanwhile
            reason = error.strerror or one_sentence(error)
            raise UserError(f"data.cache_dir={cache_dir}: {reason}: make room, or give another folder.") from error
    return folder, notes


def keep_tokens(
    cache_dir: str, made_of: Mapping[str, Any], make: Callable[[], tuple[TokenPairs, dict[str, int]]]
) -> tuple[TokenPairs, dict[str, int]]:
    """Returns the pairs as `make` does, memory-mapped from files that `keep_files` keeps."""

    def make_files() -> tuple[Files, dict[str, int]]:
        tokens, counts = make()
        return {name: np.ascontiguousarray(getattr(tokens, name)).data for name in _TYPES}, counts

    folder, counts = keep_files(cache_dir, "tokens", made_of, make_files)
    arrays = {
        name: np.memmap(folder / name, kind, "r") if (folder / name).stat().st_size else np.zeros(0, kind)
        for name, kind in _TYPES.items()
    }
    return TokenPairs(**arrays), counts
