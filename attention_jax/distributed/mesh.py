"""Processes, mesh, and how a batch lies on the devices; `placement.py` says how a state does.

The mesh has three axes. A batch is split over `data` and `fsdp`; over `fsdp` the state is as well, and over `model` the
heads, hidden layers and vocabulary of one network. `parallel.mode` says how the step is written: "jit" is the global view,
in which XLA inserts the collectives; "pmap" gives each replica its own program through `shard_map`, so that a replica
normalises with its own batch statistics, as `jax.pmap` code always did.
"""

import functools
import itertools
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils, multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from attention_jax.distributed import cluster as hosts
from attention_jax.distributed import rendezvous as rollcall
from attention_jax.errors import UserError, one_sentence

AXES = DATA, FSDP, MODEL = "data", "fsdp", "model"
ROWS = (DATA, FSDP)  # the axes over which a batch is divided


def start() -> None:
    """Joins the other processes when a launcher has set AJ_COORDINATOR, AJ_PROCESSES and AJ_PROCESS; else does nothing.

    AJ_COORDINATOR=auto alone asks the TPU slice, whose hosts know each other, and else leaves it to JAX to find them. AJ_HOSTS,
    a name for each process, divided by commas, lets a message name who has not come within AJ_START_SECONDS.

    Raises UserError when the platform that JAX_PLATFORMS asks for is not there, or the other processes do not answer.
    """
    address = os.environ.get("AJ_COORDINATOR")
    if address and not jax.distributed.is_initialized():
        _join(hosts.of_slice() if address == "auto" else hosts.given(), int(os.environ.get("AJ_START_SECONDS", "120")))
    try:
        jax.devices()
    except RuntimeError as error:
        wanted = os.environ.get("JAX_PLATFORMS", "")
        extra = {"tpu": "tpu", "cuda": "cuda", "gpu": "cuda"}.get(wanted.split(",")[0])
        mend = f"install it with pip install 'attention_jax[{extra}]'" if extra else "unset JAX_PLATFORMS or correct it"
        raise UserError(f"JAX_PLATFORMS={wanted}: JAX finds no such devices here: {mend}.") from error


def _join(place: hosts.Place | None, seconds: int) -> None:
    """Waits so long for the other processes; None leaves it to JAX who they are."""
    about: dict[str, Any] = {}
    if place:
        rollcall.call(place.address, place.index, place.count, seconds, place.names)
        # Under Slurm, JAX would otherwise give each process the one card that has its number on the node.
        about = {"coordinator_address": place.address, "cluster_detection_method": "deactivate"}
        about |= {"num_processes": place.count, "process_id": place.index}
        os.environ["AJ_PROCESS"] = str(place.index)  # a slice has told it; the command line asks when it ends
    try:
        jax.distributed.initialize(**about, initialization_timeout=seconds)
    except Exception as error:
        who = f"process {place.index} of {place.count}" if place else "this process"
        raise UserError(
            f"{who} could not join {place.address if place else 'the others'} ({one_sentence(error)}): "
            "check that every process was started."
        ) from error


def make_mesh(data: int = -1, fsdp: int = 1, model: int = 1, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh of data x fsdp x model devices.

    Args:
        data: -1 takes all devices that the other two leave. One process may take fewer than there are.
        fsdp, model: sizes of these axes.
        devices: None takes those of all processes.

    Raises:
        UserError: the sizes do not fit the devices, or the devices are several TPU slices.
    """
    devices = list(devices or jax.devices())
    here, asked = len(devices), f"parallel.data={data}, fsdp={fsdp}, model={model}"
    slices = {getattr(device, "slice_index", 0) for device in devices if device.platform == "tpu"}
    if len(slices) > 1:
        raise UserError(f"these {here} devices are {len(slices)} TPU slices, which is not supported yet: start on one slice.")
    if data == -1:
        if here % (fsdp * model):
            raise UserError(f"{asked}: fsdp x model = {fsdp * model} does not divide the {here} devices that are here.")
        data = here // (fsdp * model)
    wanted = data * fsdp * model
    if wanted > here:
        raise UserError(f"{asked} takes {wanted} devices: only {here} devices are here; data=-1 takes what is left of them.")
    if wanted < here and len({device.process_index for device in devices}) > 1:
        raise UserError(f"{asked} takes {wanted} devices: with several processes all {here} take part; give data=-1.")
    shape, devices = (data, fsdp, model), devices[:wanted]
    if devices[0].platform == "tpu":  # neighbours in the mesh are neighbours in the slice
        ordered = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    else:
        ordered = np.array(sorted(devices, key=lambda device: (device.process_index, device.id))).reshape(shape)
    return Mesh(ordered, AXES, axis_types=(AxisType.Auto,) * len(AXES))


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
    """The first axis is divided over `data` and `fsdp`."""
    return NamedSharding(mesh, PartitionSpec(ROWS))


def replicas(mesh: Mesh) -> int:
    """Parts into which a batch is divided."""
    return mesh.shape[DATA] * mesh.shape[FSDP]


Share = tuple[int | tuple[int, ...], int]


def share(mesh: Mesh) -> Share:
    """Which part of a batch this process loads and of how many, or which parts; what `task.loader` takes.

    Processes whose devices differ along `model` alone have the same share.
    """
    processes = np.array([device.process_index for device in mesh.devices.flat]).reshape(replicas(mesh), -1)
    return share_of(jax.process_index(), processes)


def share_of(process: int, processes: np.ndarray) -> Share:
    """The share of `process`, given which process has each device of a mesh [parts of a batch, devices of a part]."""
    parts = np.flatnonzero((processes == process).any(axis=1))
    count, first = len(processes), int(parts[0])
    if count % len(parts) == 0 and first % len(parts) == 0 and parts[-1] - first == len(parts) - 1:
        return first // len(parts), count // len(parts)
    return tuple(map(int, parts)), count  # neighbours in a TPU slice are not always of one host


def check_batch(name: str, batch_size: int, mesh: Mesh, parts: int = 1) -> None:
    """Raises UserError unless `batch_size` divides evenly over the devices, and each share into `parts`."""
    step = replicas(mesh) * parts
    if batch_size % step:
        nearest = max(step, round(batch_size / step) * step)
        micro = f" times {parts} micro-batches" if parts > 1 else ""
        by = f"{replicas(mesh)} {'devices' if mesh.shape[MODEL] == 1 else 'groups of devices'}"
        raise UserError(f"{name}={batch_size} cannot be divided by {by}{micro}: {nearest} could.")


def check_mode(mode: str, mesh: Mesh) -> None:
    """Raises UserError for mode "pmap" on a mesh that divides more than the batch."""
    if mode == "pmap" and mesh.shape[FSDP] * mesh.shape[MODEL] > 1:
        raise UserError(
            f"parallel.mode='pmap' is one program a replica, so that parallel.fsdp={mesh.shape[FSDP]} and "
            f"model={mesh.shape[MODEL]} cannot divide the state: give 1 for both, or parallel.mode='jit'."
        )


def norm_group_size(config: ConfigDict, mesh: Mesh) -> int | None:
    """How many examples share batch statistics, as `BatchNorm.group_size` for the view the model has of a batch.

    `batch_norm.granularity` alone decides: "all" is a whole (micro-)batch, "per_replica" one device's part of it, a
    number that many consecutive examples. In mode "pmap" the model sees one replica's part, and "all" is a contradiction.
    """
    granularity, per_replica_view = config.batch_norm.granularity, config.parallel.mode == "pmap"
    part = config.batch_size // config.accumulation // replicas(mesh)
    if granularity == "all":
        if per_replica_view and replicas(mesh) > 1:
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


_times_asked = itertools.count(1)


def stop_agreed(asked_here: bool) -> bool:
    """Whether to save and stop now, asked after a step and before a batch of an evaluation.

    Every process asks equally often, and all get the same answer each time. With several processes it is JAX's preemption
    service that hears a signal, in any of them, and has all stop the next time that none of them has asked yet.
    """
    if jax.process_count() == 1:
        return asked_here
    return multihost_utils.reached_preemption_sync_point(next(_times_asked))


@functools.cache
def threads() -> int:
    """Processor cores this process may use; another number gives other bits on CPU."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
