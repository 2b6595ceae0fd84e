"""Compiles a config's train step for a slice and takes down what the compiled program says."""

import contextlib
import dataclasses
import importlib.metadata
import os
import re
import sys
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict

from attention_jax.errors import UserError, one_sentence, require_package
from attention_jax.preflight.chips import Slice
from attention_jax.preflight.hlo import Program as Text

# Kinds of arguments: fields of the state, and the batch.
KINDS = {
    "params": "parameters",
    "opt_state": "optimizer",
    "ema": "EMA",
    "batch_stats": "batch statistics",
    "step": "step",
    "batch": "batch",
}


@dataclasses.dataclass
class Measured:
    """Numbers of one compiled step; bytes and operations are those of one device, a step."""

    versions: dict[str, str]
    devices: int
    mesh: dict[str, int]
    network: str
    precision: str
    parameters: int
    shape: str  # of the batch
    shapes: int  # how many batch shapes the config compiles a step for
    examples: float  # in a batch of the config, on average
    unit: str  # what an example is
    steps: int  # of the whole schedule
    steps_per_epoch: int
    accumulation: int
    state: dict[str, int]  # bytes by kind, of the elements
    laid_out: dict[str, int]  # likewise as XLA lays them out, the filling of tiles counted
    arguments: int
    temporaries: int
    results: int  # that no argument makes room for
    code: int
    donated: tuple[int, int]  # arrays of the state that are overwritten in place, of how many
    model_operations: float  # 2 x 3 x multiply-adds of the forward pass, over all devices, padding counted
    operations: float  # of the step's convolutions and products, over all devices, padding not counted
    xla_operations: float  # XLA's own count, one device, a loop's body once
    traffic: int  # bytes to and from the chip's main memory
    xla_bytes: float  # XLA's own count, memory on the chip included, a loop's body once
    collectives: dict[str, tuple[int, int, float]]  # kind: (how many, bytes, bytes sent)
    largest: list[tuple[str, str, int]]  # (kind, for what, bytes)
    seconds: dict[str, float]  # to trace and lower, to compile
    too_large: tuple[float, float] | None = None  # bytes needed and there, when the compiler refused

    @property
    def needed(self) -> float:
        """Bytes of memory that a device needs."""
        if self.too_large:
            return self.too_large[0]
        return self.arguments + self.temporaries + self.results + self.code


def described(slice_: Slice) -> list[Any]:
    """The devices of a slice that need not be there. Raises UserError when the package libtpu is not."""
    require_package("libtpu", "tpu", "compiling for a TPU")
    # Without these libtpu asks the metadata server of a machine that has a TPU, and holds a lock against other processes.
    os.environ |= {"TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("TPU_MIN_LOG_LEVEL", "3")
    from jax.experimental import topologies

    with _silent():
        try:
            found = topologies.get_topology_desc(platform="tpu", topology_name=slice_.topology, **slice_.options)
        except Exception as error:
            version = importlib.metadata.version("libtpu")
            raise UserError(f"libtpu {version} does not describe {slice_.topology} ({one_sentence(error)}).") from error
    if len(found.devices) != slice_.devices:
        raise UserError(
            f"libtpu describes {slice_.topology} with {len(found.devices)} devices; {slice_.devices} were expected."
        )
    return list(found.devices)


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Keeps what the library prints about a TPU that it does not find off the terminal."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def measure(config: ConfigDict, devices: list[Any]) -> Measured:
    """What the step of a checked config takes on these devices, of a slice or of this machine.

    Data that are not here need not be when the config states what it would read off them.
    """
    return measure_program(_build(config, devices), devices)[0]


def measure_program(program: Any, devices: list[Any], which: int = -1) -> tuple[Measured, Any]:
    """The same of a built program, and its compiled step, None when the compiler finds that it does not fit.

    Args:
        program: of `attention_jax.train.program.build_program`.
        devices: those of its mesh.
        which: of the batch shapes, the longest last.
    """
    import jax

    from attention_jax import tree
    from attention_jax.models.summary import multiply_adds, summary

    config = program.config
    batches = batches_of(program)
    state, batch = program.abstract_state, batches[which]
    seed = jax.ShapeDtypeStruct((), "uint32")
    begin = time.perf_counter()
    traced = program.train_step.trace(state, batch, seed)
    lowered = traced.lower()
    seconds = {"trace": time.perf_counter() - begin}
    shapes = [(path, leaf) for path, leaf in tree.flatten_by_path({**vars(state), "batch": batch}).items()]
    by_kind: Counter[str] = Counter()
    for path, leaf in shapes:
        by_kind[path.split("/")[0]] += _bytes_of_device(leaf)
    forward = summary(program.model, program.task.example_inputs(config))
    rows, *_ = first = max((x.shape for x in batch.values()), key=len)
    # Networks for translation are counted at the longest bucket; a batch of another one has other products.
    macs = forward.macs if len(batches) == 1 or which in (-1, len(batches) - 1) else _macs(program, batch)
    found = Measured(
        versions={name: importlib.metadata.version(name) for name in ("jax", "jaxlib", *_libtpu(devices))},
        devices=program.mesh.size,
        mesh=dict(program.mesh.shape),
        network=config.model.name,
        precision=config.precision,
        parameters=forward.params,
        shape=" x ".join(map(str, first)),
        shapes=len(batches),
        examples=program.task.examples_per_step(config),
        unit="images" if config.task == "classification" else "sentence pairs",
        steps=program.durations.total,
        steps_per_epoch=program.durations.steps_per_epoch,
        accumulation=config.accumulation,
        state={kind: by_kind[kind] for kind in KINDS if by_kind[kind]},
        laid_out={},
        arguments=sum(by_kind.values()),
        temporaries=0,
        results=0,
        code=0,
        donated=(0, len(jax.tree.leaves(state))),
        model_operations=6.0 * macs * rows,
        operations=2.0 * sum(multiply_adds(_live(traced.jaxpr.jaxpr), padding=False).values()),
        xla_operations=0,
        traffic=0,
        xla_bytes=0,
        collectives={},
        largest=[],
        seconds=seconds,
    )
    begin = time.perf_counter()
    try:
        with _silent():
            compiled = lowered.compile()
    except Exception as error:
        found.too_large = _too_large(error)
        return found, None
    seconds["compile"] = time.perf_counter() - begin
    parts = {**{field.name: getattr(state, field.name) for field in dataclasses.fields(state)}, "batch": batch}
    leaves = [(kind, x.sharding.shard_shape(x.shape)) for kind, part in parts.items() for x in jax.tree.leaves(part)]
    _take_down(found, compiled, Text(compiled.as_text()), leaves)
    return found, compiled


def _build(config: ConfigDict, devices: list[Any]) -> Any:
    from attention_jax.distributed.mesh import make_mesh
    from attention_jax.train.program import build_program

    sizes = config.parallel
    return build_program(config, make_mesh(sizes.data, sizes.fsdp, sizes.model, devices))


def batches_of(program: Any) -> list[dict[str, Any]]:
    """Shapes and shardings of its training batches, of each shape for which the step is compiled."""
    import jax

    from attention_jax.distributed.mesh import make_batch_sharding

    rows = make_batch_sharding(program.mesh)
    shapes = program.task.batch_shapes(program.config)
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=rows), shapes)


def _live(jaxpr: Any) -> Any:
    """A traced program without what nothing uses, which the compiler leaves out: a gradient's own forward pass."""
    from jax.interpreters.partial_eval import dce_jaxpr

    return dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))[0]


def _libtpu(devices: list[Any]) -> tuple[str, ...]:
    return ("libtpu",) if devices[0].platform == "tpu" else ()


def _macs(program: Any, batch: dict[str, Any]) -> int:
    """Multiply-adds of one example of a batch of sentences."""
    import jax

    from attention_jax.models.summary import summary

    inputs = tuple(jax.ShapeDtypeStruct((1, *batch[side].shape[1:]), batch[side].dtype) for side in ("source", "target"))
    return summary(program.model, inputs).macs


def _bytes_of_device(leaf: Any) -> int:
    """Of an array's part on one device."""
    size = leaf.dtype.itemsize
    for side in leaf.sharding.shard_shape(leaf.shape):
        size *= side
    return size


def _too_large(error: Exception) -> tuple[float, float]:
    """(needed, there) in bytes out of the compiler's message. Raises the error when it says something else."""
    units = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
    size = r"([\d.]+)([KMGT]?)"
    forms = (rf"Used {size} of {size} hbm", rf"memory required for HLO temporaries \({size}\) exceeds available HBM \({size}\)")
    found = next(filter(None, (re.search(form, str(error)) for form in forms)), None)
    if not found:
        raise error
    return float(found[1]) * units[found[2]], float(found[3]) * units[found[4]]


def _laid_out(text: Text, leaves: list[tuple[str, tuple[int, ...]]]) -> dict[str, int]:
    """Bytes of the arguments by kind; `leaves` are kind and shape on one device of all that the step was given, in order."""
    sizes: Counter[str] = Counter()
    parameters = text.parameters()
    if len(parameters) == 1 and len(parameters[0].arrays) > 1:
        # More than 2,000 arguments go to a TPU as one tuple, without names and without those that the step does not use.
        left = iter(leaves)
        for array in parameters[0].arrays:
            kind = next((kind for kind, shape in left if shape == array.dims), "")
            sizes[kind] += array.padded
    else:
        for argument in parameters:
            field = re.match(r"(?:state\.(\w+)|batch)", argument.scope)
            if field:
                sizes[field[1] or "batch"] += sum(array.padded for array in argument.arrays)
    return {kind: sizes[kind] for kind in KINDS if sizes[kind]}


def _take_down(found: Measured, compiled: Any, text: Text, leaves: list[tuple[str, tuple[int, ...]]]) -> None:
    """Completes the numbers from a compiled program."""
    memory, cost = compiled.memory_analysis(), compiled.cost_analysis()
    found.arguments, found.temporaries = memory.argument_size_in_bytes, memory.temp_size_in_bytes
    found.results = memory.output_size_in_bytes - memory.alias_size_in_bytes
    found.code = memory.generated_code_size_in_bytes
    found.donated = (text.aliased(), found.donated[1])
    found.xla_operations, found.xla_bytes = cost.get("flops", 0.0), cost.get("bytes accessed", 0.0)
    found.traffic = text.traffic()
    found.laid_out = _laid_out(text, leaves)
    largest: Counter[tuple[str, str]] = Counter()
    for one in text.collectives():
        if one.group > 1:
            count, size, sent = found.collectives.get(one.kind, (0, 0, 0.0))
            found.collectives[one.kind] = (count + one.times, size + one.bytes, sent + one.sent)
            for purpose, size in one.arrays:
                largest[one.kind, purpose] += one.times * size
    found.largest = [(kind, purpose, size) for (kind, purpose), size in largest.most_common(5)]
