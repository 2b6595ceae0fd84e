"""A TPU slice as commands of gcloud, and what its types are called. Nothing here runs anything."""

from __future__ import annotations  # for Python 3.9

import dataclasses
import math
import re
from collections.abc import Sequence
from pathlib import Path

from attention_jax.launch.shared import DoorError

# What people write, what gcloud calls it, the image, and what its number counts: a core (two a chip) or a chip.
# Images: https://cloud.google.com/tpu/docs/runtimes (read in the version of August 2025); all have Ubuntu 22.04.
FAMILIES = {
    "v2": ("v2", "tpu-ubuntu2204-base", 2),
    "v3": ("v3", "tpu-ubuntu2204-base", 2),
    "v4": ("v4", "tpu-ubuntu2204-base", 2),
    "v5e": ("v5litepod", "v2-alpha-tpuv5-lite", 1),
    "v5litepod": ("v5litepod", "v2-alpha-tpuv5-lite", 1),
    "v5p": ("v5p", "v2-alpha-tpuv5", 2),
    "v6e": ("v6e", "v2-alpha-tpuv6e", 1),
}
INCOMING = "attention_jax_incoming"  # in a worker's home: what was sent
_PATIENCE = "-oConnectTimeout=20"  # seconds, of one of the ten attempts that gcloud makes


def accelerator(name: str) -> tuple[str, str | None]:
    """(what gcloud calls this type, its image): "v5e-16", "v5litepod-16" and "v5e:4x4" are ("v5litepod-16", …).

    A type of no known family comes back as it is, without an image.
    """
    by_number = re.fullmatch(r"(\w+)-(\d+)", name)
    by_shape = re.fullmatch(r"(\w+):(\d+(?:x\d+){1,2})", name)
    family = FAMILIES.get((by_number or by_shape or [None, ""])[1])
    if family is None:
        return name, None
    called, image, cores = family
    count = by_number[2] if by_number else str(cores * math.prod(map(int, by_shape[2].split("x"))))
    return f"{called}-{count}", image


@dataclasses.dataclass(frozen=True)
class Slice:
    """A queued resource with one node, both of the same name."""

    name: str
    zone: str
    project: str | None = None
    internal_ip: bool = False

    def __post_init__(self):
        if not re.fullmatch(r"[a-z]([-a-z0-9]{0,60}[a-z0-9])?", self.name):
            raise DoorError(f"'{self.name}' is no name of a slice: give small letters, digits and hyphens, a letter first.")

    def create(self, kind: str, image: str, spot: bool, flags: Sequence[str]) -> list[str]:
        """Puts a request into the queue and returns; it is granted when there is room."""
        what = [f"--node-id={self.name}", f"--accelerator-type={kind}", f"--runtime-version={image}"]
        return self._command("queued-resources", "create", self.name, *what, *(["--spot"] if spot else []), *flags)

    def describe(self) -> list[str]:
        """State of the request, as JSON."""
        return self._command("queued-resources", "describe", self.name, "--format=json")

    def describe_node(self) -> list[str]:
        """State of the machines, as JSON."""
        return self._command("tpu-vm", "describe", self.name, "--format=json")

    def delete(self) -> list[str]:
        """The machines and the request."""
        return self._command("queued-resources", "delete", self.name, "--force")

    def send(self, folder: Path) -> list[str]:
        """Copies a folder into the home of every worker."""
        return self._command(
            "tpu-vm", "scp", "--recurse", str(folder), f"{self.name}:", "--worker=all", f"--scp-flag={_PATIENCE}", *self._way()
        )

    def remote(self, command: str, worker: str = "all") -> list[str]:
        """Runs a shell command on one worker or on all."""
        where = [f"--worker={worker}", f"--ssh-flag={_PATIENCE}", *self._way()]
        return self._command("tpu-vm", "ssh", self.name, *where, f"--command={command}")

    def _way(self) -> list[str]:
        return ["--internal-ip"] if self.internal_ip else []

    def _command(self, *words: str) -> list[str]:
        project = [f"--project={self.project}"] if self.project else []
        return ["gcloud", "compute", "tpus", *words, f"--zone={self.zone}", *project, "--quiet"]
