"""Compiles a config's training step for a slice and reads the compiled program's numbers."""

import contextlib
import dataclasses
import importlib.metadata
import io
import math
import os
import re
import sys
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax.interpreters.partial_eval import dce_jaxpr
from ml_collections import ConfigDict

from attention_jax.data.images.decoding import MODES
from attention_jax.distributed.mesh import make_batch_sharding, make_config_mesh
from attention_jax.errors import UserError, one_sentence, require_package
from attention_jax.models.summary import count_multiply_adds
from attention_jax.preflight.chips import ChipSlice
from attention_jax.preflight.hlo import HloProgram
from attention_jax.tasks import classification
from attention_jax.tasks.resolve import ResolvedConfig, resolve_config
from attention_jax.train.program import Program, build_program, count_model_operations

# Kinds of arguments: fields of the state, and the batch.
KINDS = {
    "params": "parameters",
    "opt_state": "optimizer",
    "ema": "EMA",
    "batch_stats": "batch statistics",
    "step": "step",
    "batch": "batch",
}


@dataclasses.dataclass(frozen=True)
class StepCost:
    """Numbers of one compiled step; bytes and operations count one device and one step."""

    versions: dict[str, str]
    devices: int
    mesh: dict[str, int]
    network: str
    precision: str
    parameters: int
    shape: str  # shape of the batch
    shapes: int  # number of batch shapes for which the config compiles a step
    examples: float  # mean number of examples in a batch of the config
    unit: str  # name of an example
    steps: int  # steps of the complete schedule
    steps_per_epoch: int
    accumulation: int
    state: dict[str, int]  # bytes of the elements, by kind
    arguments: int
    model_operations: float  # 2 x 3 x multiply-adds of the forward pass, over all devices, including padding
    operations: float  # operations in the step's convolutions and products, over all devices, without padding
    seconds: dict[str, float]  # seconds to trace and lower, and to compile
    donated: tuple[int, int]  # arrays of the state that are overwritten in place, all arrays of the state
    # The fields from here on are zero and empty if the compiler refused.
    laid_out: dict[str, int] = dataclasses.field(default_factory=dict)  # as `state`, including the filling of tiles
    temporaries: int = 0
    results: int = 0  # bytes of results that reuse no argument's memory
    code: int = 0
    xla_operations: float = 0.0  # XLA's own count for one device, with a loop's body counted once
    traffic: int = 0  # bytes to and from the chip's main memory
    xla_bytes: float = 0.0  # XLA's own count, including memory on the chip, with a loop's body counted once
    collectives: dict[str, tuple[int, int, float]] = dataclasses.field(default_factory=dict)  # kind: (number, bytes, sent)
    largest: list[tuple[str, str, int]] = dataclasses.field(default_factory=list)  # (kind, layer, bytes)
    too_large: tuple[float, float] | None = None  # bytes needed and available, if the compiler refused

    @property
    def needed(self) -> float:
        """Bytes of memory that a device needs."""
        return self.too_large[0] if self.too_large else self.arguments + self.temporaries + self.results + self.code

    @property
    def held(self) -> dict[str, int]:
        """Bytes of the arguments by kind, in XLA's layout if that is known."""
        return self.laid_out or self.state


def describe_devices(slice_: ChipSlice) -> list[Any]:
    """Returns the devices of a slice that need not exist. Raises UserError if the package libtpu is missing."""
    require_package("libtpu", "tpu", "compiling for a TPU")
    # Without these, libtpu asks the metadata server for a TPU, and holds a lock against other processes.
    os.environ |= {"TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("TPU_MIN_LOG_LEVEL", "3")
    from jax.experimental import topologies

    with _silent():
        try:
            found = topologies.get_topology_desc(platform="tpu", topology_name=slice_.shape, **slice_.options)
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
    """Keeps the messages of a library that finds no TPU off the terminal."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def measure_step(config: ConfigDict | ResolvedConfig, devices: list[Any]) -> StepCost:
    """Compiles the step of a config for the devices of a slice or of this machine, and returns its numbers.

    The data may be absent if the config states the facts that it would read from them.
    """
    resolved = resolve_config(config)
    return measure_program(build_program(resolved, make_config_mesh(resolved.config, devices)))[0]


def measure_program(program: Program) -> tuple[StepCost, Any]:
    """Compiles the longest batch's step; returns its numbers and the step, or None if the compiler finds it too large."""
    config, state, batches = program.config, program.abstract_state, list_batches(program)
    batch = batches[-1]
    begin = time.perf_counter()
    traced = program.train_step.trace(state, batch, jax.ShapeDtypeStruct((), "uint32"))
    lowered = traced.lower()
    seconds = {"trace": time.perf_counter() - begin}
    parts = {**{field.name: getattr(state, field.name) for field in dataclasses.fields(state)}, "batch": batch}
    leaves = [(kind, x) for kind, part in parts.items() for x in jax.tree.leaves(part)]
    by_kind: Counter[str] = Counter()
    for kind, leaf in leaves:
        by_kind[kind] += leaf.dtype.itemsize * math.prod(leaf.sharding.shard_shape(leaf.shape))
    first = max((x.shape for x in batch.values()), key=len)
    libtpu = ("libtpu",) if program.mesh.devices.flat[0].platform == "tpu" else ()
    cost = StepCost(
        versions={name: importlib.metadata.version(name) for name in ("jax", "jaxlib", *libtpu)},
        devices=program.mesh.size,
        mesh=dict(program.mesh.shape),
        network=config.model.name,
        precision=config.precision,
        parameters=sum(x.size for x in jax.tree.leaves(state.params)),
        shape=" x ".join(map(str, first)),
        shapes=len(batches),
        examples=program.task.examples_per_step(config),
        unit="images" if config.task == "classification" else "sentence pairs",
        steps=program.durations.total,
        steps_per_epoch=program.durations.steps_per_epoch,
        accumulation=config.accumulation,
        state={kind: by_kind[kind] for kind in KINDS if by_kind[kind]},
        arguments=sum(by_kind.values()),
        model_operations=count_model_operations(program),
        operations=2.0 * sum(count_multiply_adds(_live(traced.jaxpr.jaxpr), padding=False).values()),
        seconds=seconds,
        donated=(0, len(jax.tree.leaves(state))),
    )
    begin = time.perf_counter()
    try:
        with _silent():
            compiled = lowered.compile()
    except Exception as error:
        return dataclasses.replace(cost, too_large=_too_large(error)), None
    seconds["compile"] = time.perf_counter() - begin
    shapes = [(kind, x.sharding.shard_shape(x.shape)) for kind, x in leaves]
    return dataclasses.replace(cost, **_compiled_numbers(compiled, shapes, cost.donated[1])), compiled


def list_batches(program: Program) -> list[dict[str, Any]]:
    """Lists shapes and shardings of the training batches, one for each shape that a step is compiled for."""
    rows = make_batch_sharding(program.mesh)
    shapes = program.task.batch_shapes(program.config)
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=rows), shapes)


def _live(jaxpr: Any) -> Any:
    """Returns a traced program without unused parts, which the compiler leaves out, such as a gradient's own forward pass."""
    return dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))[0]


def _too_large(error: Exception) -> tuple[float, float]:
    """Returns (needed, available) bytes from the compiler's message. Raises the error if the message is another one."""
    units = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
    size = r"([\d.]+)([KMGT]?)"
    forms = (rf"Used {size} of {size} hbm", rf"memory required for HLO temporaries \({size}\) exceeds available HBM \({size}\)")
    found = next(filter(None, (re.search(form, str(error)) for form in forms)), None)
    if not found:
        raise error
    return float(found[1]) * units[found[2]], float(found[3]) * units[found[4]]


def _laid_out(text: HloProgram, leaves: list[tuple[str, tuple[int, ...]]]) -> dict[str, int]:
    """Returns the bytes of the arguments by kind; `leaves` are the kind and shape on one device of all arguments, in order."""
    sizes: Counter[str] = Counter()
    parameters = text.parameters()
    if len(parameters) == 1 and len(parameters[0].arrays) > 1:
        # More than 2,000 arguments go to a TPU as one tuple, without names, and without arguments that the step does not use.
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


def _compiled_numbers(compiled: Any, leaves: list[tuple[str, tuple[int, ...]]], arrays: int) -> dict[str, Any]:
    """Returns fields of `StepCost` from a compiled program; `leaves` as in `_laid_out`, `arrays` are those of the state."""
    memory, cost, text = compiled.memory_analysis(), compiled.cost_analysis(), HloProgram(compiled.as_text())
    collectives: dict[str, tuple[int, int, float]] = {}
    largest: Counter[tuple[str, str]] = Counter()
    for one in text.collectives():
        if one.group > 1:
            count, size, sent = collectives.get(one.kind, (0, 0, 0.0))
            collectives[one.kind] = (count + one.times, size + one.bytes, sent + one.sent)
            for purpose, size in one.arrays:
                largest[one.kind, purpose] += one.times * size
    return {
        "arguments": memory.argument_size_in_bytes,
        "temporaries": memory.temp_size_in_bytes,
        "results": memory.output_size_in_bytes - memory.alias_size_in_bytes,
        "code": memory.generated_code_size_in_bytes,
        "donated": (text.aliased(), arrays),
        "xla_operations": cost.get("flops", 0.0),
        "xla_bytes": cost.get("bytes accessed", 0.0),
        "traffic": text.traffic(),
        "laid_out": _laid_out(text, leaves),
        "collectives": collectives,
        "largest": [(kind, purpose, size) for (kind, purpose), size in largest.most_common(5)],
    }


def measure_input_rate(config: ConfigDict, seconds: float = 1.5) -> float | None:
    """Returns the images that the config's training transform handles per second of processor time; None for another task.

    A config that crops or resizes gets a JPEG of 500 x 375 pixels, as ImageNet's are on average; any other an array.
    """
    if config.task != "classification":
        return None
    pixels, example = classification.make_training_transform(config), _example(config)
    rng = np.random.default_rng(0)
    pixels(example, rng)
    count, begin = 0, time.process_time()
    while time.process_time() - begin < seconds:
        for _ in range(8):
            pixels(example, rng)
        count += 8
    return count / (time.process_time() - begin)


def make_photo(width: int, height: int, seed: int = 0) -> np.ndarray:
    """[height, width, 3] uint8: noise with the spectrum of photographs, which takes libjpeg as long as a photograph.

    Amplitudes fall as frequency**-1.4: 500 x 375 pixels make 94 to 112 kB at quality 95, as ImageNet's do.
    """
    rng = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width))
    frequency[0, 0] = np.inf  # no mean
    spectrum = np.fft.rfft2(rng.standard_normal((4, height, width))) / frequency**1.4
    light, *colours = np.fft.irfft2(spectrum, (height, width))
    pixels = light[..., None] + 0.3 * np.stack(colours, -1)  # colours change less than brightness
    return np.clip(128 + 60 * pixels / pixels.std(), 0, 255).astype(np.uint8)


def _example(config: ConfigDict) -> Any:
    if not (config.data.crop.startswith("random") or config.data.eval_resize):
        return np.random.default_rng(0).integers(0, 256, config.data.image_shape, np.uint8)
    from PIL import Image

    photo, buffer = Image.fromarray(make_photo(500, 375)), io.BytesIO()
    photo.convert(MODES[config.data.image_shape[-1]]).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()
