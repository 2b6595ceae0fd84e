"""Where the bytes of a training step go on a TPU chip, and what forms of the program that should need fewer do.

    ./launch.sh python experiments/benchmarks/programs_tpu.py [--cases='ResNet-50*'] [--variants=shipped,...]

Compiles each case for v5e chips that need not be there, 64 images per chip in bfloat16: the forward pass in training mode, the
backward pass, SGD with momentum. Programs that are in the results stay; the page is written after each. A large network takes
some minutes of a quiet core.
"""

import argparse
import fnmatch
import importlib.metadata
import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parents[1] / "results"
COMMAND = "./launch.sh python experiments/benchmarks/programs_tpu.py"
IMAGES = 64  # per chip
BANDWIDTH = 819e9  # of v5e, bytes per second
CUT = {"stage_sizes": (2,), "widths": (64,)}
CASES = {
    "ResNet-50's stem and two blocks": ("resnet50", CUT),
    "ResNet-50": ("resnet50", {}),
    "BAM-ResNet-50": ("bam_resnet50", {}),
    "ResNeXt-50 32x4d": ("resnext50_32x4d", {}),
}
# name: (chips, what it is)
VARIANTS = {
    "shipped": ("v5e:1x1", "the library's program"),
    "plain Flax": ("v5e:1x1", "`nn.Conv`, `nn.BatchNorm` and `nn.max_pool` as they come"),
    "recomputed": ("v5e:1x1", "a checkpoint policy keeps convolutions alone: norms, their sums and ReLU are computed again"),
    "recomputed, sums kept": ("v5e:1x1", "the same, and the sums of batch norm are kept"),
    "groups in one view": ("v5e:2x2", "four chips, batch norm of each chip's images as groups of one global batch"),
    "replicas apart": ("v5e:2x2", "four chips, each with its own program and batch norm; gradients are summed once"),
}
FULL = ("shipped", "plain Flax")  # of complete networks, which take minutes to compile


def compile_case(net: str, overrides: dict[str, Any], variant: str) -> Any:
    """The compiled step of a variant."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    import optax
    from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

    import attention_jax as aj
    from attention_jax.preflight.chips import find_slice
    from attention_jax.preflight.measure import describe_devices

    devices = describe_devices(find_slice(VARIANTS[variant][0]))
    mesh = Mesh(np.array(devices), ("data",), axis_types=(AxisType.Auto,))
    everywhere, rows = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec("data"))
    groups = {"norm_group_size": IMAGES} if variant == "groups in one view" else {}
    if variant == "plain Flax":
        import train_step_nets

        model = train_step_nets.flax_net(net, overrides, 1000, "bfloat16")
    else:
        model = aj.create_model(net, num_classes=1000, dtype="bfloat16", **overrides, **groups)
    optimizer = optax.sgd(0.01, momentum=0.9)
    kept = ("conv_general_dilated", "dot_general", *(("reduce_sum",) if "kept" in variant else ()))

    def init() -> tuple:
        variables = model.init(jax.random.key(0), jnp.zeros((1, 224, 224, 3)), train=True)
        return variables["params"], variables["batch_stats"], optimizer.init(variables["params"])

    def step(state: tuple, images: jax.Array, labels: jax.Array) -> tuple:
        params, batch_stats, momentum = state

        def loss(params: Any) -> tuple:
            variables = {"params": params, "batch_stats": batch_stats}
            logits, changed = model.apply(variables, images, train=True, mutable=["batch_stats"])
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), changed["batch_stats"]

        if variant.startswith("recomputed"):
            loss = jax.checkpoint(loss, policy=lambda primitive, *_, **__: primitive.name in kept)
        found = jax.grad(loss, has_aux=True)(params)
        gradients, batch_stats_ = jax.lax.pmean(found, "data") if variant == "replicas apart" else found
        updates, momentum = optimizer.update(gradients, momentum)
        return optax.apply_updates(params, updates), batch_stats_, momentum

    if variant == "replicas apart":
        specs = (PartitionSpec(), PartitionSpec("data"), PartitionSpec("data"))
        step = jax.shard_map(step, mesh=mesh, in_specs=specs, out_specs=PartitionSpec(), check_vma=False)
    images = IMAGES * len(devices)
    state = jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=everywhere), jax.eval_shape(init))
    batch = jax.ShapeDtypeStruct((images, 224, 224, 3), jnp.float32, sharding=rows)
    labels = jax.ShapeDtypeStruct((images,), jnp.int32, sharding=rows)
    return jax.jit(step, donate_argnums=0, out_shardings=everywhere).lower(state, batch, labels).compile()


def sort_bytes(text: str) -> dict[str, int]:
    """Bytes to and from main memory by what they are for."""
    from attention_jax.preflight.hlo import HloProgram

    program = HloProgram(text)
    found: Counter[str] = Counter()
    for name, times in program.runs().items():
        here = program.computations[name]
        for instruction in here.values():
            if size := times * program._traffic_of(instruction, here):
                found[_purpose(instruction)] += size
    return dict(found.most_common())


def _purpose(instruction: Any) -> str:
    scope, arrays = instruction.scope, instruction.arrays
    if "start" in instruction.opcode or instruction.opcode in ("copy", "slice"):
        return "copies between memories"
    if "select_and_scatter" in scope or "reduce_window" in scope:
        return "max-pool"
    if "conv" not in scope and "norm" not in scope and "block" not in scope and "_stem" not in scope and "gate" not in scope:
        return "head, loss, optimizer"
    where = "stem: " if "_stem" in scope or "stem_" in scope else ""
    if "transpose(" not in scope:
        return where + "forward pass"
    large = [array for array in arrays if len(array.dims) == 4 and array.dims[1] > 7]
    if any(len(array.dims) == 4 and array.dims[0] <= 7 for array in arrays):
        return where + "gradients of kernels"
    return where + ("gradients of activations" if large else "sums of batch norm's gradient")


def count_float32(text: str) -> int:
    """Bytes of the float32 activations that lie in main memory; the images come in float32 and do not count."""
    from attention_jax.preflight.hlo import HloProgram

    program = HloProgram(text)
    found = (i for name in program.runs() for i in program.computations[name].values() if i.opcode != "parameter")
    arrays = (a for i in found for a in i.arrays if a.dtype == "f32" and len(a.dims) == 4 and a.dims[1] > 7 and a.dims[3] > 3)
    return sum(a.padded for a in arrays if a.in_main_memory)


def describe_program(text: str, temporaries: int) -> dict[str, Any]:
    versions = {name: importlib.metadata.version(name) for name in ("jax", "libtpu")}
    return {"versions": versions, "bytes": sort_bytes(text), "float32": count_float32(text), "temporaries": temporaries}


def write_page(found: dict[str, Any]) -> str:
    table = [
        "| program | GB to and from memory | ms at best | MB of temporaries | float32 activations |",
        "|---|---|---|---|---|",
    ]
    for case in CASES:
        for variant in VARIANTS if "stem" in case else FULL:
            one = found.get(f"{case} | {variant}")
            if not one:
                table.append(f"| {case}, {variant} | not run | | | |")
                continue
            total, temporaries = sum(one["bytes"].values()), one["temporaries"]
            cells = [f"{total / 1e9:.3f}", f"{1e3 * total / BANDWIDTH:.2f}", f"{temporaries / 1e6:,.0f}"]
            table.append(f"| {case}, {variant} | {' | '.join(cells)} | {one['float32'] / 1e6:,.0f} MB |")
    places = [key for key in found if key.endswith("| shipped")]
    purposes = list(dict.fromkeys(name for key in places for name in found[key]["bytes"]))
    bytes_ = ["", "## Where the bytes go", "", f"| MB | {' | '.join(key.partition(' |')[0] for key in places)} |"]
    bytes_ += [f"|---|{'---|' * len(places)}"]
    for purpose in purposes:
        sizes = [found[key]["bytes"].get(purpose, 0) for key in places]
        bytes_.append(f"| {purpose} | {' | '.join(f'{size / 1e6:,.0f}' for size in sizes)} |")
    versions = sorted({json.dumps(one["versions"], sort_keys=True) for one in found.values()})
    software = "; ".join(", ".join(f"{name} {number}" for name, number in json.loads(text).items()) for text in versions)
    forms = [f"- {name}: {VARIANTS[name][1]}" for name in VARIANTS]
    text = [
        "# Programs for a TPU chip",
        "",
        FINDING,
        "",
        *table,
        *bytes_,
        "",
        f"Made by `{COMMAND}`: v5e, {IMAGES} images per chip, bfloat16; bytes out of the text of compiled programs, with the",
        f"filling of tiles, at 819 GB/s. {software}.",
        "",
        *forms,
        "",
        *NOTES.strip().splitlines(),
        "",
    ]
    page = "\n".join(text)
    (RESULTS / "programs_tpu.md").write_text(page, encoding="utf-8")
    return page


FINDING = (
    "Whether another program moves 10 % fewer bytes is not decided: one was compiled. Its text says that XLA already computes "
    "batch norm and ReLU again inside the convolutions that read them, and keeps activations in bfloat16."
)
NOTES = """
What the program's text says about each candidate, for the stem and two blocks:

- **Norm and ReLU computed again.** The forward pass of a block writes the outputs of its convolutions and the sum at its end,
  all bfloat16, and nothing between: a convolution normalises and cuts off at 0 while it reads the output of the one before.
  The backward pass does the same in both gradients of a convolution. The exception is the stem, whose ReLU is written for
  max-pool.
- **float32 without need.** There is none: see the last column. Sums and kernels are float32, and small.
- **Space-to-depth stem.** Three channels are filled up to four and 64 images to 128, so that a batch of images takes 51 MB in
  place of 19. It is written and read once: space-to-depth could save 64 MB of 6,373, 1 %, and less of a complete ResNet-50.
- **Max-pool.** Its gradient (select-and-scatter) reads the 206 MB before it again and writes as much. A gradient from the
  winners' positions would read 26 MB instead: at most 3 % of these bytes, and less of a complete ResNet-50. Not done.
- **Both gradients of a convolution in one kernel** would read its gradient and its norm's input once and not twice, most of the
  line "gradients of kernels". XLA has no such program; it would be a kernel of its own, which nothing here could be timed with.

The library's step lets each replica compute by itself where batch norm is within a replica (the form "replicas apart"), with
the same numbers as groups in one view up to rounding.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", default="*", help="a pattern of cases; '' compiles nothing and writes the page")
    parser.add_argument("--variants", default=",".join(VARIANTS))
    args = parser.parse_args()
    store = RESULTS / "programs_tpu.json"
    found = json.loads(store.read_text("utf-8")) if store.exists() else {}
    for case in fnmatch.filter(CASES, args.cases):
        for variant in args.variants.split(","):
            if f"{case} | {variant}" in found or (variant not in FULL and "stem" not in case):
                continue
            print(f"{case}, {variant}: compiling", flush=True)
            compiled = compile_case(*CASES[case], variant)
            temporaries = compiled.memory_analysis().temp_size_in_bytes
            found[f"{case} | {variant}"] = describe_program(compiled.as_text(), temporaries)
            store.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
            write_page(found)
    print(write_page(found))


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    main()
