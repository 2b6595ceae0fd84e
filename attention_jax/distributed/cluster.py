"""Detects the processes of a run from a launcher's variables or a TPU slice, before the processes connect.

The hosts of a slice know each other, and `jax.distributed.initialize` without arguments reads their names
(jax/_src/clusters/cloud_tpu_cluster.py: on Google Kubernetes Engine from the environment, else from the metadata server).
If a host does not start, it aborts without naming the host. So this module reads the same names first.
"""

import dataclasses
import os
import urllib.request
from collections.abc import Mapping

PORT = "8482"  # port of JAX's processes on a slice, unless JAX_COORDINATOR_PORT is set
_METADATA = "http://{}/computeMetadata/v1/instance/attributes/{}"


@dataclasses.dataclass(frozen=True)
class ProcessInfo:
    """One process among those of a run.

    Attributes:
        coordinator: "host:port" of process 0.
        index, count: number of this process, and of all processes.
        names: hosts of all processes, in order; empty if they are unknown.
    """

    coordinator: str
    index: int
    count: int
    names: tuple[str, ...] = ()


def read_launcher_environment(env: Mapping[str, str] = os.environ) -> ProcessInfo:
    """Reads the variables of a launcher: AJ_COORDINATOR, AJ_PROCESSES, AJ_PROCESS and, optionally, AJ_HOSTS."""
    return ProcessInfo(env["AJ_COORDINATOR"], int(env["AJ_PROCESS"]), int(env["AJ_PROCESSES"]), _names(env))


def detect_tpu_slice(env: Mapping[str, str] = os.environ) -> ProcessInfo | None:
    """Reads this host's number and its slice's hosts; None outside a slice, or with several slices.

    AJ_HOSTS replaces the slice's own names, which on Compute Engine are IP addresses.
    """
    if "MEGASCALE_COORDINATOR_ADDRESS" in env:
        return None
    endpoints = env.get("TPU_PROCESS_ADDRESSES") or env.get("TPU_WORKER_HOSTNAMES")
    index = env.get("TPU_WORKER_ID")
    if not (endpoints and index):
        endpoints, index = _attribute(env, "worker-network-endpoints"), _attribute(env, "agent-worker-number")
        if not (endpoints and index) or "MEGASCALE_COORDINATOR_ADDRESS" in (_attribute(env, "tpu-env") or ""):
            return None
    # "host", "host:port" or the metadata server's older "name:number:address"
    parts = (endpoint.strip().split(":") for endpoint in endpoints.split(","))
    hosts = tuple(part[2] if len(part) == 3 else part[0] for part in parts)
    port = env.get("JAX_COORDINATOR_PORT", PORT)
    return ProcessInfo(f"{hosts[0]}:{port}", int(index), len(hosts), _names(env) or hosts)


def _names(env: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(filter(None, env.get("AJ_HOSTS", "").split(",")))


def _attribute(env: Mapping[str, str], name: str) -> str | None:
    """Reads an attribute from Google's metadata server; None without one."""
    if "TPU_SKIP_MDS_QUERY" in env:
        return None
    url = _METADATA.format(env.get("GCE_METADATA_IP", "metadata.google.internal"), name)
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers={"Metadata-Flavor": "Google"}), timeout=10) as answer:
            return answer.read().decode()
    except (OSError, ValueError):
        return None
