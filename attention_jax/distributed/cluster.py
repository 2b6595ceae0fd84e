"""The processes of a run as a launcher or a TPU slice names them, before any of them has met another.

A slice's hosts know each other, and `jax.distributed.initialize` asks them where it is given nothing
(jax/_src/clusters/cloud_tpu_cluster.py: on Google Kubernetes Engine the environment, else the metadata server). It then
waits for the others by itself, and ends by abort without a name when one does not come. So the same is asked here first.
"""

import dataclasses
import os
import urllib.request
from collections.abc import Mapping

PORT = "8482"  # on which JAX's processes meet on a slice, unless JAX_COORDINATOR_PORT says otherwise
_METADATA = "http://{}/computeMetadata/v1/instance/attributes/{}"


@dataclasses.dataclass(frozen=True)
class Place:
    """One process among those of a run.

    Attributes:
        address: "host:port" of process 0.
        index, count: of this process, and how many there are.
        names: of the processes' hosts, in their order; empty where nobody has said them.
    """

    address: str
    index: int
    count: int
    names: tuple[str, ...] = ()


def given(env: Mapping[str, str] = os.environ) -> Place:
    """What a launcher has set: AJ_COORDINATOR, AJ_PROCESSES, AJ_PROCESS and, if it likes, AJ_HOSTS."""
    return Place(env["AJ_COORDINATOR"], int(env["AJ_PROCESS"]), int(env["AJ_PROCESSES"]), _names(env))


def of_slice(env: Mapping[str, str] = os.environ) -> Place | None:
    """What a slice's machine is told about itself; None where nobody tells, or there are several slices.

    AJ_HOSTS goes before the slice's own names, which on Compute Engine are addresses.
    """
    if "MEGASCALE_COORDINATOR_ADDRESS" in env:
        return None
    told = env.get("TPU_PROCESS_ADDRESSES") or env.get("TPU_WORKER_HOSTNAMES")
    index = env.get("TPU_WORKER_ID")
    if not (told and index):
        told, index = _attribute(env, "worker-network-endpoints"), _attribute(env, "agent-worker-number")
        if not (told and index) or "MEGASCALE_COORDINATOR_ADDRESS" in (_attribute(env, "tpu-env") or ""):
            return None
    hosts = tuple(_host(word) for word in told.split(","))
    port = env.get("JAX_COORDINATOR_PORT", PORT)
    return Place(f"{hosts[0]}:{port}", int(index), len(hosts), _names(env) or hosts)


def _names(env: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(filter(None, env.get("AJ_HOSTS", "").split(",")))


def _host(word: str) -> str:
    """Out of "host", "host:port" or the metadata server's older "name:number:address"."""
    parts = word.strip().split(":")
    return parts[2] if len(parts) == 3 else parts[0]


def _attribute(env: Mapping[str, str], name: str) -> str | None:
    """What the metadata server of a machine at Google says; None without one."""
    if "TPU_SKIP_MDS_QUERY" in env:
        return None
    url = _METADATA.format(env.get("GCE_METADATA_IP", "metadata.google.internal"), name)
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers={"Metadata-Flavor": "Google"}), timeout=10) as answer:
            return answer.read().decode()
    except (OSError, ValueError):
        return None
