"""The gcloud commands for a TPU slice, and the names of its types. Nothing here runs a command.

The Cloud TPU API (queued resources, `tpu-vm`) serves TPUs up to v6e. Google offers TPU7x and what follows through Kubernetes
Engine alone: https://cloud.google.com/tpu/docs/tpu7x.
"""

from __future__ import annotations  # for Python 3.9

import dataclasses
import math
import re
from collections.abc import Sequence
from pathlib import Path

from attention_jax.errors import UserError

# Common name -> gcloud's name, the image, and the unit of the number: cores (2 per chip) or chips (1).
# Images: https://cloud.google.com/tpu/docs/runtimes (as of August 2025); all have Ubuntu 22.04.
FAMILIES = {
    "v2": ("v2", "tpu-ubuntu2204-base", 2),
    "v3": ("v3", "tpu-ubuntu2204-base", 2),
    "v4": ("v4", "tpu-ubuntu2204-base", 2),
    "v5e": ("v5litepod", "v2-alpha-tpuv5-lite", 1),
    "v5litepod": ("v5litepod", "v2-alpha-tpuv5-lite", 1),
    "v5p": ("v5p", "v2-alpha-tpuv5", 2),
    "v6e": ("v6e", "v2-alpha-tpuv6e", 1),
}
INCOMING = "attention_jax_incoming"  # folder of the sent files, in a worker's home
_TIMEOUT = "-oConnectTimeout=20"  # seconds, for each of gcloud's ten attempts


def parse_accelerator(name: str) -> tuple[str, str | None]:
    """Returns (gcloud's name, image) of a slice: "v5e-16", "v5litepod-16" and "v5e:4x4" are ("v5litepod-16", …).

    A name of an unknown family comes back unchanged, without an image.
    """
    match = re.fullmatch(r"(\w+)(?:-(\d+)|:(\d+(?:x\d+){1,2}))", name)
    if match is None or match[1] not in FAMILIES:
        return name, None
    family, image, cores = FAMILIES[match[1]]
    count = match[2] or cores * math.prod(int(side) for side in match[3].split("x"))
    return f"{family}-{count}", image


def refuse_newer(kind: str) -> None:
    """Raises UserError for a type that the Cloud TPU API does not serve: TPU7x and newer."""
    if re.match(r"(?i)(?:tpu-?|v)(?:[7-9]|\d\d)|ironwood", kind):
        raise UserError(
            f"--type={kind}: the Cloud TPU API, which this launcher uses, serves v4 to v6e; TPU7x and newer are on Kubernetes "
            "Engine alone: use ./launch.sh gke --type=tpu7x:2x2x1 --image=IMAGE -- train …."
        )


def count_chips(kind: str) -> int:
    """Returns the chips of gcloud's accelerator type: 16 of "v5litepod-16", 4 of "v4-8"; 0 if it is unknown."""
    family, _, count = kind.partition("-")
    cores = {name: cores for name, _, cores in FAMILIES.values()}.get(family, 0)
    return int(count) // cores if cores and count.isdecimal() else 0


@dataclasses.dataclass(frozen=True)
class TpuSlice:
    """A queued resource with one node; both have the same name."""

    name: str
    zone: str
    project: str | None = None
    internal_ip: bool = False

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z]([-a-z0-9]{0,60}[a-z0-9])?", self.name):
            raise UserError(f"'{self.name}' cannot name a slice: give small letters, digits and hyphens, a letter first.")

    def create(self, kind: str, image: str, spot: bool, flags: Sequence[str]) -> list[str]:
        """Queues a request for the machines and returns at once."""
        machine = [f"--node-id={self.name}", f"--accelerator-type={kind}", f"--runtime-version={image}"]
        return self._command("queued-resources", "create", self.name, *machine, *(["--spot"] if spot else []), *flags)

    def describe(self) -> list[str]:
        """Prints the request's state as JSON."""
        return self._command("queued-resources", "describe", self.name, "--format=json")

    def describe_node(self) -> list[str]:
        """Prints the machines' state as JSON."""
        return self._command("tpu-vm", "describe", self.name, "--format=json")

    def delete(self) -> list[str]:
        """Deletes the machines and the request."""
        return self._command("queued-resources", "delete", self.name, "--force")

    def send(self, folder: Path) -> list[str]:
        """Copies a folder into the home of every worker."""
        target = [f"{self.name}:", "--worker=all", f"--scp-flag={_TIMEOUT}"]
        return self._command("tpu-vm", "scp", "--recurse", str(folder), *target, *self._route())

    def remote(self, command: str, worker: str = "all") -> list[str]:
        """Runs a shell command on one worker or on all."""
        target = [f"--worker={worker}", f"--ssh-flag={_TIMEOUT}", *self._route()]
        return self._command("tpu-vm", "ssh", self.name, *target, f"--command={command}")

    def _route(self) -> list[str]:
        return ["--internal-ip"] if self.internal_ip else []

    def _command(self, *words: str) -> list[str]:
        project = [f"--project={self.project}"] if self.project else []
        return ["gcloud", "compute", "tpus", *words, f"--zone={self.zone}", *project, "--quiet"]
