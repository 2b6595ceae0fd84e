"""Checks that remote data can be read, before anything is requested."""

from __future__ import annotations  # for Python 3.9

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence

from attention_jax.errors import UserError
from attention_jax.launch import shared
from attention_jax.launch.gcloud_calls import call_gcloud

# Exit code 0: it is there; 1: it is not, or cannot be read; 3: nothing here can tell.
_PROBE = """
import sys
try:
    import fsspec
    fs, path = fsspec.url_to_fs(sys.argv[1])
except ImportError:
    sys.exit(3)
try:
    found = fs.exists(path)
except Exception as error:
    sys.exit(f"{type(error).__name__}: {error}")
sys.exit(None if found else "there is nothing")
"""
_SECONDS = 90  # without a network or rights, the libraries beneath try for minutes


def check_addresses(addresses: Sequence[tuple[str, str]]) -> None:
    """Raises UserError for an address of data that cannot be read from here; says which were not checked.

    Args:
        addresses: (field, URI), as `shared.check_inputs` returns them.
    """
    for field, uri in addresses:
        reason = _ask_gcloud(uri) if uri.startswith("gs://") and shutil.which("gcloud") else _ask_storage(uri)
        if reason is None:
            print(f"{field}={uri}: not checked: neither gcloud nor the library for it is installed here.", file=sys.stderr)
        elif reason:
            raise UserError(
                f"{field}={uri} cannot be read from here ({reason}): give the address of prepared data, or leave the check out "
                "with --no-check if only the workers may read it. Nothing was requested."
            )


def _ask_gcloud(uri: str) -> str:
    """Returns what is wrong with an address, "" if nothing is."""
    try:
        return "" if call_gcloud(["gcloud", "storage", "ls", uri]) is not None else "there is nothing"
    except UserError as error:
        return str(error).rstrip(".")


def _ask_storage(uri: str) -> str | None:
    """Returns what is wrong with an address, "" if nothing is, None if nothing here can tell."""
    words = [str(shared.LAUNCH), "python", "-c", _PROBE, uri]
    env = {**os.environ, "JAX_PLATFORMS": "cpu"}
    try:
        done = subprocess.run(words, capture_output=True, text=True, check=False, env=env, timeout=_SECONDS)
    except subprocess.TimeoutExpired:
        return f"no answer within {_SECONDS} s"
    if done.returncode == 3:
        return None
    return (done.stderr.strip().splitlines() or ["it failed"])[-1].rstrip(".") if done.returncode else ""
