"""Writes the manifest of a JobSet: one training on TPU slices or on GPU nodes of Kubernetes.

docs/gke_jobset.yaml is the same in YAML for one slice of v5e, with comments; the API is
https://jobset.sigs.k8s.io/docs/reference/jobset.v1alpha2.
"""

from __future__ import annotations  # for Python 3.9

import dataclasses
import math
import re
from collections.abc import Sequence
from typing import Any

from attention_jax.errors import UserError

# Common name -> GKE's label of the accelerator, and the machine type with its chips filled in:
# https://cloud.google.com/kubernetes-engine/docs/concepts/plan-tpus and tpu-ironwood, read in November 2026.
TPUS = {
    "v4": ("tpu-v4-podslice", "ct4p-hightpu-{}t"),
    "v5e": ("tpu-v5-lite-podslice", "ct5lp-hightpu-{}t"),
    "v5p": ("tpu-v5p-slice", "ct5p-hightpu-{}t"),
    "v6e": ("tpu-v6e-slice", "ct6e-standard-{}t"),
    "tpu7x": ("tpu7x", "tpu7x-standard-{}t"),
}
_FLAT = {1: "1x1", 4: "2x2", 8: "2x4", 16: "4x4", 32: "4x8", 64: "8x8", 128: "8x16", 256: "16x16"}  # machines of v5e and v6e
CACHE = "/data-cache"  # mount point of --data-cache
STOPPED = 75  # exit code of a run that was told to stop: with 0 the job would count as done
_PORT = 8482


@dataclasses.dataclass(frozen=True)
class Pool:
    """The machines that a JobSet asks for.

    Attributes:
        selector: labels of the nodes.
        hosts: machines of one slice, or all GPU nodes.
        resource, count: the devices that a pod asks for.
        slices: 1 for GPU nodes.
    """

    selector: dict[str, str]
    hosts: int
    resource: str
    count: int
    slices: int = 1


def tpu_pool(kind: str, slices: int = 1) -> Pool:
    """Returns the machines of TPU slices such as "v5e:4x4", "v6e-16" or "tpu7x:2x2x2"."""
    match = re.fullmatch(r"(v4|v5e|v5p|v6e|tpu7x)(?:-(\d+)|:(\d+(?:x\d+){1,2}))", kind)
    topology = match and (match[3] or (_FLAT.get(int(match[2])) if match[1] in ("v5e", "v6e") else None))
    if not match or not topology:
        raise UserError(f"--type={kind}: give a family of {', '.join(TPUS)} with its topology, such as v5e:4x4 or tpu7x:2x2x2.")
    flat, chips = match[1] in ("v5e", "v6e"), math.prod(int(side) for side in topology.split("x"))
    if (topology.count("x") == 1) != flat or ((chips > 8 or not flat) and chips % 4):
        raise UserError(f"--type={kind}: {match[1]} has no such topology.")
    count = chips if flat and chips <= 8 else 4  # v5e and v6e also come as one machine of 1, 4 or 8 chips
    label = {"cloud.google.com/gke-tpu-accelerator": TPUS[match[1]][0], "cloud.google.com/gke-tpu-topology": topology}
    return Pool(label, chips // count, "google.com/tpu", count, slices)


def gpu_pool(gpus: int, nodes: int, kind: str | None) -> Pool:
    """Returns `nodes` machines with `gpus` cards each."""
    return Pool({"cloud.google.com/gke-accelerator": kind} if kind else {}, nodes, "nvidia.com/gpu", gpus)


def make_manifest(
    pool: Pool,
    command: Sequence[str],
    *,
    name: str,
    image: str,
    namespace: str | None = None,
    service_account: str | None = None,
    max_restarts: int = 3,
    spot: bool = False,
    data_cache: str | None = None,
) -> dict[str, Any]:
    """Returns the JobSet that runs `./launch.sh COMMAND` on a pool of machines.

    Args:
        data_cache: size of a volume of each pod at `CACHE`, "200Gi" on its disk or "memory:100Gi".
    """
    tpu = pool.resource == "google.com/tpu"
    memory, size = (data_cache or "").startswith("memory:"), (data_cache or "").rpartition(":")[2]
    volumes = {} if tpu else {"shm": ("/dev/shm", {"medium": "Memory"})}  # NCCL's processes of a host meet there
    if data_cache:
        volumes["data-cache"] = (CACHE, {**({"medium": "Memory"} if memory else {}), "sizeLimit": size})
    container = {
        "name": "train",
        "image": image,
        "workingDir": "/attention_jax",
        "command": ["./launch.sh", *command],
        "env": _environment(pool, name, tpu),
        "resources": {"limits": {pool.resource: pool.count}},
    }
    pod: dict[str, Any] = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": 120,  # to save after SIGTERM
        "nodeSelector": {**pool.selector, **({"cloud.google.com/gke-spot": "true"} if spot else {})},
        "containers": [container],
    }
    if service_account:
        pod["serviceAccountName"] = service_account
    if volumes:
        container["volumeMounts"] = [{"name": volume, "mountPath": path} for volume, (path, _) in volumes.items()]
        pod["volumes"] = [{"name": volume, "emptyDir": kind} for volume, (_, kind) in volumes.items()]
    fail = {"action": "FailJob"}
    rules = [
        {**fail, "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
        {**fail, "onExitCodes": {"containerName": "train", "operator": "In", "values": [STOPPED]}},
    ]
    job = {
        "parallelism": pool.hosts,
        "completions": pool.hosts,
        "completionMode": "Indexed",
        "backoffLimit": 0,  # one pod alone cannot join the others again
        "podFailurePolicy": {"rules": rules},
        "template": {"spec": pod},
    }
    again = {"name": "taken", "action": "RestartJobSetAndIgnoreMaxRestarts", "onJobFailureReasons": ["PodFailurePolicy"]}
    metadata: dict[str, Any] = {"name": name, **({"namespace": namespace} if namespace else {})}
    if tpu:  # all hosts of a job out of one slice
        metadata["annotations"] = {"alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"}
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": metadata,
        "spec": {
            "network": {"enableDNSHostnames": True},
            "failurePolicy": {"maxRestarts": max_restarts, "rules": [again]},
            "replicatedJobs": [{"name": "workers", "replicas": pool.slices, "template": {"spec": job}}],
        },
    }


def _environment(pool: Pool, name: str, tpu: bool) -> list[dict[str, Any]]:
    """Returns the variables by which the processes find each other."""
    values = {"AJ_START_SECONDS": "1800", "AJ_STOPPED_CODE": str(STOPPED)}
    if tpu:  # the hosts' names come from GKE
        values = {"AJ_COORDINATOR": "auto", **values, "JAX_PLATFORMS": "tpu,cpu"}
        return [{"name": key, "value": value} for key, value in values.items()]
    joined = {"AJ_COORDINATOR": f"{name}-workers-0-0.{name}:{_PORT}", "AJ_PROCESSES": str(pool.hosts)}
    index = {"fieldRef": {"fieldPath": "metadata.annotations['batch.kubernetes.io/job-completion-index']"}}
    entries = [{"name": key, "value": value} for key, value in {**joined, **values, "JAX_PLATFORMS": "cuda,cpu"}.items()]
    return [*entries, {"name": "AJ_PROCESS", "valueFrom": index}]
