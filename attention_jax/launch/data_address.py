"""Checks that remote data can be read, before anything is requested."""

from __future__ import annotations  # for Python 3.9

import shutil
import sys
from collections.abc import Sequence

from attention_jax.errors import UserError
from attention_jax.launch.gcloud_calls import call_gcloud


def check_addresses(addresses: Sequence[tuple[str, str]]) -> None:
    """Raises UserError for an address of data that cannot be read from here; says which were not checked.

    Args:
        addresses: (field, URI), as `shared.check_inputs` returns them.
    """
    for field, uri in addresses:
        if not uri.startswith("gs://") or not shutil.which("gcloud"):
            print(f"{field}={uri}: not checked: gcloud reads addresses at gs://, where it is installed.", file=sys.stderr)
        elif reason := _ask_gcloud(uri):
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
