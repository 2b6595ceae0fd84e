"""Processes, mesh, and how a batch and a state lie on the devices.

One mesh axis, `data`: parameters are replicated, a batch is split. `parallel.mode` says how the step is written:
"jit" is the global view, in which XLA inserts the collectives; "pmap" gives each replica its own program through
`shard_map`, so that a replica normalises with its own batch statistics, as `jax.pmap` code always did.
"""

import functools
import os
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from attention_jax.errors import UserError, one_sentence

DATA = "data"


def start() -> None:
    """Joins the other processes when a launcher has set AJ_COORDINATOR, AJ_PROCESSES and AJ_PROCESS; else does nothing.

    AJ_COORDINATOR=auto alone leaves it to JAX to find them, as on a TPU slice, whose hosts know each other.

    Raises UserError when the platform that JAX_PLATFORMS asks for is not there, or the other processes do not answer.
    """
    address = os.environ.get("AJ_COORDINATOR")
    if address and not jax.distributed.is_initialized():
        about: dict[str, Any] = {}
        if address != "auto":
            about = {
                "coordinator_address": address,
                "num_processes": int(os.environ["AJ_PROCESSES"]),
                "process_id": int(os.environ["AJ_PROCESS"]),
                # Under Slurm, JAX would otherwise give each process the one card that has its number on the node.
                "cluster_detection_method": "deactivate",
            }
        try:
            jax.distributed.initialize(**about, initialization_timeout=int(os.environ.get("AJ_START_SECONDS", "120")))
        except Exception as error:
            who = f"process {about['process_id']} of {about['num_processes']}" if about else "this process"
            raise UserError(
                f"{who} could not join {address if about else 'the others'} ({one_sentence(error)}): "
                "check that every process was started."
            ) from error
    try:
        jax.devices()
    except RuntimeError as error:
        wanted = os.environ.get("JAX_PLATFORMS", "")
        extra = {"tpu": "tpu", "cuda": "cuda", "gpu": "cuda"}.get(wanted.split(",")[0])
        mend = f"install it with pip install 'attention_jax[{extra}]'" if extra else "unset JAX_PLATFORMS or correct it"
        raise UserError(f"JAX_PLATFORMS={wanted}: JAX finds no such devices here: {mend}.") from error


def make_mesh(data: int = -1) -> Mesh:
    """A mesh with the axis `data` over all devices, or over the first `data` of them."""
    devices = jax.devices()
    if data > len(devices):
        raise UserError(f"parallel.data={data}: only {len(devices)} devices are here; give -1 for all of them.")
    if 0 < data < len(devices):
        if jax.process_count() > 1:
            raise UserError(f"parallel.data={data}: with several processes all {len(devices)} devices take part; give -1.")
        devices = devices[:data]
    return jax.make_mesh((len(devices),), (DATA,), axis_types=(AxisType.Auto,), devices=devices)


def process() -> tuple[int, int]:
    """(index, count) of this process."""
    return jax.process_index(), jax.process_count()


def is_main() -> bool:
    """Whether this process writes logs and files."""
    return jax.process_index() == 0


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device holds the whole array."""
    return NamedSharding(mesh, PartitionSpec())


def split(mesh: Mesh) -> NamedSharding:
    """The first axis is divided over `data`."""
    return NamedSharding(mesh, PartitionSpec(DATA))


def check_batch(name: str, batch_size: int, mesh: Mesh, parts: int = 1) -> None:
    """Raises UserError unless `batch_size` divides evenly over the devices, and each share into `parts`."""
    replicas = mesh.shape[DATA]
    if batch_size % (replicas * parts):
        step = replicas * parts
        nearest = max(step, round(batch_size / step) * step)
        micro = f" times {parts} micro-batches" if parts > 1 else ""
        raise UserError(f"{name}={batch_size} cannot be divided by {replicas} devices{micro}: {nearest} could.")


def norm_group_size(config: ConfigDict, mesh: Mesh) -> int | None:
    """How many examples share batch statistics, as `BatchNorm.group_size` for the view the model has of a batch.

    `batch_norm.granularity` alone decides: "all" is a whole (micro-)batch, "per_replica" one device's part of it, a
    number that many consecutive examples. In mode "pmap" the model sees one replica's part, and "all" is a contradiction.
    """
    granularity, per_replica_view = config.batch_norm.granularity, config.parallel.mode == "pmap"
    part = config.batch_size // config.accumulation // mesh.shape[DATA]
    if granularity == "all":
        if per_replica_view and mesh.shape[DATA] > 1:
            raise UserError(
                "batch_norm.granularity='all' contradicts parallel.mode='pmap', in which a replica normalises alone: "
                "give 'per_replica' or a number of examples, or parallel.mode='jit'."
            )
        return None
    if granularity == "per_replica":
        return None if per_replica_view else part
    if part % granularity:
        raise UserError(
            f"batch_norm.granularity={granularity} does not divide the {part} examples that a device has in a (micro-)batch."
        )
    return granularity


def to_global(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Global arrays of a batch, each process giving the rows it has loaded."""
    sharding = split(mesh)
    return {name: jax.make_array_from_process_local_data(sharding, value) for name, value in batch.items()}


def prefetch(batches: Iterable[Mapping[str, np.ndarray]], mesh: Mesh, ahead: int = 2) -> Iterator[dict[str, jax.Array]]:
    """Global batches, `ahead` of which are already on their way to the devices."""
    placed = (to_global(batch, mesh) for batch in batches)
    queue = list(islice(placed, ahead))
    while queue:
        yield queue.pop(0)
        queue.extend(islice(placed, 1))


def per_replica(step: Any, mesh: Mesh) -> Any:
    """`step(state, batch, seed)` as one program a replica; the step itself reduces over the axis `data`."""
    everywhere, rows = PartitionSpec(), PartitionSpec(DATA)
    return jax.shard_map(
        step, mesh=mesh, in_specs=(everywhere, rows, everywhere), out_specs=(everywhere, everywhere), check_vma=False
    )


def stop_agreed(step: int, asked_here: bool) -> bool:
    """Whether to save and stop after this step; every process gets the same answer at the same step."""
    if jax.process_count() == 1:
        return asked_here
    return multihost_utils.reached_preemption_sync_point(step)


@functools.cache
def threads() -> int:
    """Processor cores this process may use; another number gives other bits on CPU."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
