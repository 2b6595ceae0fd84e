"""Processes, the mesh of devices, and the split of a batch over it; `sharding.py` splits the state.

The mesh has three axes. A batch is split over `data` and `fsdp`, the state over `fsdp`, and the heads, hidden layers and
vocabulary of a network over `model`. Each of several TPU slices has consecutive places along `data`: `fsdp` and `model` stay
inside a slice, and only sums of gradients cross the slower network between slices. `parallel.mode` decides how the step is
written: "jit" is the global view, in which XLA inserts the collectives; "pmap" gives each replica a program through
`shard_map`, so that a replica normalises with its own batch statistics, as `jax.pmap` code always did.
"""

import functools
import itertools
import os
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils, multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from attention_jax.distributed.cluster import ProcessInfo, detect_tpu_slice, read_launcher_environment
from attention_jax.distributed.rendezvous import wait_for_processes
from attention_jax.errors import UserError, one_sentence

AXES = DATA, FSDP, MODEL = "data", "fsdp", "model"
ROWS = (DATA, FSDP)  # the axes that split a batch
BatchShare = tuple[int | tuple[int, ...], int]  # (index of a process's part, or of its parts; number of parts)


def join_processes() -> None:
    """Joins the other processes of a run; does nothing if no launcher has set AJ_COORDINATOR.

    A launcher sets AJ_COORDINATOR, AJ_PROCESSES and AJ_PROCESS, or AJ_COORDINATOR=auto alone: then a TPU slice names its
    hosts, and JAX finds the processes anywhere else. AJ_HOSTS, a comma-separated name for each process, lets an error name the
    processes that did not start within AJ_START_SECONDS.

    Raises:
        UserError: the platform in JAX_PLATFORMS is missing, or the other processes do not answer.
    """
    coordinator = os.environ.get("AJ_COORDINATOR")
    if coordinator and not jax.distributed.is_initialized():
        process = detect_tpu_slice() if coordinator == "auto" else read_launcher_environment()
        # The hosts of slices start minutes apart: one may still make its environment. Slurm starts all together.
        usual = "1800" if coordinator == "auto" and "SLURM_JOB_ID" not in os.environ else "120"
        _join(process, int(os.environ.get("AJ_START_SECONDS", usual)))
    try:
        jax.devices()
    except RuntimeError as error:
        wanted = os.environ.get("JAX_PLATFORMS", "")
        extra = {"tpu": "tpu", "cuda": "cuda", "gpu": "cuda"}.get(wanted.split(",")[0])
        advice = f"install it with pip install 'attention_jax[{extra}]'" if extra else "unset JAX_PLATFORMS or correct it"
        raise UserError(f"JAX_PLATFORMS={wanted}: JAX finds no such devices here: {advice}.") from error


def _join(process: ProcessInfo | None, seconds: int) -> None:
    """Waits up to `seconds` for the other processes; if `process` is None, JAX detects them."""
    options: dict[str, Any] = {}
    if process:
        wait_for_processes(process, seconds)
        # Under Slurm, JAX would otherwise give each process the one card that has its number on the node.
        options = {"coordinator_address": process.coordinator, "cluster_detection_method": "deactivate"}
        options |= {"num_processes": process.count, "process_id": process.index}
        os.environ["AJ_PROCESS"] = str(process.index)  # the command line reads it when it ends
    try:
        jax.distributed.initialize(**options, initialization_timeout=seconds)
    except Exception as error:
        name = f"process {process.index} of {process.count}" if process else "this process"
        raise UserError(
            f"{name} could not join {process.coordinator if process else 'the others'} ({one_sentence(error)}): "
            "check that every process was started."
        ) from error


def make_mesh(
    data: int = -1, fsdp: int = 1, model: int = 1, devices: Sequence[jax.Device] | None = None, slices: int = 0
) -> Mesh:
    """Returns a mesh of data x fsdp x model devices.

    Args:
        data: number of parts; -1 takes all devices that the other two axes leave. A single process may use only some devices.
        devices: devices of the mesh; None takes those of all processes.
        slices: TPU slices that `data` spans; 0 takes the number that the devices give. Devices of another platform are split
            into that many consecutive parts.

    Raises:
        UserError: the sizes do not fit the devices or the slices.
    """
    devices = list(devices or jax.devices())
    on_tpu = devices[0].platform == "tpu"
    here, given = len(devices), f"parallel.data={data}, fsdp={fsdp}, model={model}"
    there = len({getattr(device, "slice_index", 0) for device in devices}) if on_tpu else 1
    if slices and on_tpu and slices != there:
        raise UserError(f"parallel.slices={slices}: these {here} devices are {_slices(there)}; 0 takes that number.")
    slices = slices or there
    if (data == -1 or slices > 1) and here % (slices * fsdp * model):
        those = f"the {here} devices that are here" + (f", {slices} slices, each by itself" if slices > 1 else "")
        raise UserError(f"{given}: fsdp x model = {fsdp * model} does not divide {those}.")
    data = here // (fsdp * model) if data == -1 else data
    wanted = data * fsdp * model
    if wanted > here:
        raise UserError(f"{given} takes {wanted} devices: only {here} devices are here; data=-1 takes the rest.")
    if wanted < here and (slices > 1 or len({device.process_index for device in devices}) > 1):
        several = "several slices" if slices > 1 else "several processes"
        raise UserError(f"{given} takes {wanted} devices: with {several} all {here} take part; give data=-1.")
    shape, devices = (data, fsdp, model), devices[:wanted]
    if on_tpu and slices > 1:
        within, between = (data // slices, fsdp, model), (slices, 1, 1)
        ordered = mesh_utils.create_hybrid_device_mesh(within, between, devices, allow_split_physical_axes=True)
    elif on_tpu:  # neighbours in the mesh are neighbours in the slice
        ordered = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    else:
        ordered = np.array(sorted(devices, key=lambda device: (device.process_index, device.id))).reshape(shape)
    return Mesh(ordered, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def make_config_mesh(config: ConfigDict, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Returns the mesh of `config.parallel` over these devices, or over those of all processes."""
    sizes = config.parallel
    return make_mesh(sizes.data, sizes.fsdp, sizes.model, devices, sizes.slices)


def _slices(number: int) -> str:
    return f"{number} TPU slice{'s' * (number > 1)}"


def is_main_process() -> bool:
    """True in the process that writes logs and files."""
    return jax.process_index() == 0


def make_batch_sharding(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of an array whose first axis is split over `data` and `fsdp`."""
    return NamedSharding(mesh, PartitionSpec(ROWS))


def count_replicas(mesh: Mesh) -> int:
    """Returns the number of parts into which a batch is split."""
    return mesh.shape[DATA] * mesh.shape[FSDP]


def find_batch_share(mesh: Mesh) -> BatchShare:
    """Returns the rows of a global batch that this process loads, for `task.loader`.

    Processes whose devices differ only along `model` load the same rows.
    """
    processes = np.array([device.process_index for device in mesh.devices.flat]).reshape(count_replicas(mesh), -1)
    return divide_batch_rows(jax.process_index(), processes)


def divide_batch_rows(process: int, processes: np.ndarray) -> BatchShare:
    """Returns the share of `process`, given the process of each device [parts of a batch, devices of a part]."""
    parts = np.flatnonzero((processes == process).any(axis=1))
    count, first = len(processes), int(parts[0])
    if count % len(parts) == 0 and first % len(parts) == 0 and parts[-1] - first == len(parts) - 1:
        return first // len(parts), count // len(parts)
    return tuple(map(int, parts)), count  # neighbours in a TPU slice may belong to different hosts


def check_batch_size(name: str, batch_size: int, mesh: Mesh, parts: int = 1) -> None:
    """Raises UserError unless `batch_size` divides evenly over the devices, and each device's share into `parts`."""
    divisor = count_replicas(mesh) * parts
    if batch_size % divisor:
        nearest = max(divisor, round(batch_size / divisor) * divisor)
        micro = f" times {parts} micro-batches" if parts > 1 else ""
        by = f"{count_replicas(mesh)} {'devices' if mesh.shape[MODEL] == 1 else 'groups of devices'}"
        raise UserError(f"{name}={batch_size} cannot be divided by {by}{micro}: {nearest} could.")


def check_parallel_mode(mode: str, mesh: Mesh) -> None:
    """Raises UserError for mode "pmap" on a mesh that splits more than the batch."""
    if mode == "pmap" and mesh.shape[FSDP] * mesh.shape[MODEL] > 1:
        raise UserError(
            f"parallel.mode='pmap' is one program a replica, so that parallel.fsdp={mesh.shape[FSDP]} and "
            f"model={mesh.shape[MODEL]} cannot divide the state: give 1 for both, or parallel.mode='jit'."
        )


def resolve_batch_norm_group(config: ConfigDict, mesh: Mesh) -> int | None:
    """Returns the number of examples that share batch statistics, as `BatchNorm.group_size`; None for all that the model sees.

    `batch_norm.granularity` alone decides: "all" is the (micro-)batch, "per_replica" one device's part of it, a number that
    many consecutive examples, and "stored" is 0, no example. In mode "pmap" the model sees one replica's part, and "all" is a
    contradiction.
    """
    granularity, per_replica_view = config.batch_norm.granularity, config.parallel.mode == "pmap"
    part = config.batch_size // config.accumulation // count_replicas(mesh)
    if granularity == "all":
        if per_replica_view and count_replicas(mesh) > 1:
            raise UserError(
                "batch_norm.granularity='all' contradicts parallel.mode='pmap', in which a replica normalises alone: "
                "give 'per_replica' or a number of examples, or parallel.mode='jit'."
            )
        return None
    if granularity == "stored":
        return 0
    if granularity == "per_replica":
        return None if per_replica_view else part
    if part % granularity:
        raise UserError(
            f"batch_norm.granularity={granularity} does not divide the {part} examples that a device has in a (micro-)batch."
        )
    return granularity


def prefetch_batches(
    batches: Iterable[Mapping[str, np.ndarray]], mesh: Mesh, ahead: int = 2
) -> Generator[dict[str, jax.Array], None, None]:
    """Yields global batches made from the rows that each process has loaded; `ahead` of them are already being copied."""
    sharding = make_batch_sharding(mesh)
    copies = (
        {name: jax.make_array_from_process_local_data(sharding, rows) for name, rows in batch.items()} for batch in batches
    )
    queue = list(itertools.islice(copies, ahead))
    while queue:
        yield queue.pop(0)
        queue.extend(itertools.islice(copies, 1))


def map_over_replicas(step: Callable[..., Any], mesh: Mesh) -> Callable[..., Any]:
    """Returns `step(state, batch, seed)` as one program per replica; the step itself reduces over the axis `data`."""
    everywhere, rows = PartitionSpec(), PartitionSpec(DATA)
    return jax.shard_map(step, mesh=mesh, in_specs=(everywhere, rows, everywhere), out_specs=everywhere, check_vma=False)


_sync_points = itertools.count(1)


def agree_to_stop(signal_here: bool) -> bool:
    """Collective: call it equally often in every process. If any process got a signal, all return True at the same later call.

    With several processes JAX's preemption service receives the signals; `signal_here` counts in a single process only.
    """
    if jax.process_count() == 1:
        return signal_here
    return multihost_utils.reached_preemption_sync_point(next(_sync_points))


@functools.cache
def count_threads() -> int:
    """Returns the number of processor cores this process may use; another number gives other bits on CPU."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
