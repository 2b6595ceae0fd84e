"""Loads random weights of timm and torchvision into every network that they share with this library, and writes them back.

    nice ./launch.sh python experiments/reliability/every_name.py [--names='resnet*'] [--workdir=runs/every_name]

Needs the extra `peers`. Each of the other library's networks gets noise on all its parameters and statistics and is saved by
PyTorch; `load_pretrained` reads the file without being told its layout, and both compute logits of two images of 64x64 pixels
(of the network's own size where that is fixed). Then our variables go back to the library's names: every tensor must be
bitwise the file's, so that what is exported has the library's own logits, and what is loaded again is ours.
A network that is done is a line in the workdir, and is not done again; the page has all lines.
"""

import argparse
import fnmatch
import json
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import timm
import torch
import torchvision

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import attention_jax as aj  # noqa: E402
from attention_jax.interop.export import express_name  # noqa: E402
from attention_jax.interop.layout import name_tensors  # noqa: E402
from attention_jax.interop.recognise import list_layouts  # noqa: E402
from experiments.benchmarks.page import render_page  # noqa: E402
from tests.helpers import parity  # noqa: E402
from tests.helpers.blocks import quick  # noqa: E402

ACCEPTED = 1e-4  # of the largest logit
_WITHOUT = ("num_batches_tracked", "relative_position_index")  # what follows from sizes, and counters


def list_shared() -> Iterator[tuple[str, str, str]]:
    """Yields (library, our name, its name), the smallest networks of each library first."""
    for library in ("timm", "torchvision"):
        named = [(library, name, theirs) for name in aj.list_models() if (theirs := express_name(library, name))]
        yield from sorted(
            named, key=lambda row: any(word in row[1] for word in ("large", "xlarge", "_b7", "152", "200", "269"))
        )


def make_theirs(library: str, name: str, theirs: str) -> torch.nn.Module:
    """Returns the library's network with noise on every parameter and statistic."""
    if library == "timm":
        net = timm.create_model(theirs)
    else:
        net = torchvision.models.get_model(theirs, weights=None, **({"image_size": 384} if name.endswith("384") else {}))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for key, tensor in net.state_dict().items():
            if tensor.is_floating_point():
                noise = 0.1 * torch.randn(tensor.shape, generator=generator)
                tensor.add_(noise.abs() if key.endswith("running_var") else noise if tensor.ndim < 2 else 0.1 * noise)
    return net.eval()


def check_name(library: str, name: str, theirs: str) -> dict[str, Any]:
    """Returns what was found of one network: tensors, difference of logits as a share of the largest, what is not bitwise."""
    net, model = make_theirs(library, name, theirs), aj.create_model(name)
    fixed = type(model).__name__ in ("VisionTransformer", "SwinTransformer")
    size = (384 if name.endswith("384") else 224) if fixed else 64
    images = parity.images(0, size, size, batch=2)
    with tempfile.TemporaryDirectory() as folder:
        torch.save(net.state_dict(), file := Path(folder) / "net.pth")
        model, variables = aj.load_pretrained(name, file)
        with torch.no_grad():
            right = net(torch.from_numpy(images.transpose(0, 3, 1, 2))).numpy()
        ours = np.asarray(quick(model.apply)(variables, images))
        layout = next(layout for layout in list_layouts(name) if layout.name == library)
        back = name_tensors(layout, model, variables)
        file_has = {key: tensor.numpy() for key, tensor in net.state_dict().items() if not key.endswith(_WITHOUT)}
    other = [key for key in back.keys() | file_has if key not in back or not np.array_equal(back[key], file_has.get(key))]
    return {
        "library": library,
        "name": name,
        "theirs": theirs,
        "family": type(model).__name__,
        "tensors": len(file_has),
        "size": size,
        "difference": float(np.abs(ours - right).max() / np.abs(right).max()),
        "not bitwise": other,
    }


def write_page(lines: list[dict[str, Any]], shared: int, path: Path) -> None:
    """Writes the page: a row for each library and family, and every network."""
    groups = defaultdict(list)
    for line in lines:
        groups[line["library"], line["family"]].append(line)
    bad = [line["name"] for line in lines if not line["difference"] < ACCEPTED or line["not bitwise"]]
    rows = [
        f"| {library} | {family} | {len(found)} | {max(line['difference'] for line in found):.0e} "
        f"| {sum(not line['not bitwise'] for line in found)} |"
        for (library, family), found in groups.items()
    ]
    every = [f"| {line['library']} | `{line['name']}` | {line['tensors']} | {line['difference']:.0e} |" for line in lines]
    versions = (
        f"timm {timm.__version__}, torchvision {torchvision.__version__}, torch {torch.__version__}, jax {jax.__version__}"
    )
    found = (
        f"{len(lines) - len(bad)} of {len(lines)} networks have the library's logits to {ACCEPTED:.0e} of the largest and give "
    )
    found += (
        f"its tensors back bitwise{'; not ' + ', '.join(bad) if bad else ''}. {shared - len(lines)} of {shared} were not run."
    )
    head = ["| library | family | networks | largest difference | bitwise on the way back |", "|---|---|---:|---:|---:|"]
    text = render_page(
        "Every network that timm or torchvision has too: their weights in, and back",
        found,
        "\n".join([*head, *rows]),
        "`./launch.sh python experiments/reliability/every_name.py` (needs timm and PyTorch). Random weights and "
        "statistics are saved by PyTorch "
        "and loaded "
        "by `aj.load_pretrained(name, file)`, which recognises the file's layout. Difference: of the logits of two images, "
        "as a share of the largest.",
        f"{versions}.",
        {"Each network": "\n".join(["| library | network | tensors | difference |", "|---|---|---:|---:|", *every])},
    )
    path.write_text(text, "utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--names", default="*")
    parser.add_argument("--workdir", type=Path, default=ROOT / "runs" / "every_name")
    parser.add_argument("--output", type=Path, default=ROOT / "experiments" / "results")
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.workdir.mkdir(parents=True, exist_ok=True)
    shared = list(list_shared())
    for library, name, theirs in shared:
        done = options.workdir / f"{library}.{name}.json"
        if fnmatch.fnmatchcase(name, options.names) and not done.exists():
            done.write_text(json.dumps(check_name(library, name, theirs)))
            print(done.read_text(), flush=True)
            jax.clear_caches()
    found = [options.workdir / f"{library}.{name}.json" for library, name, _ in shared]
    lines = [json.loads(path.read_text()) for path in found if path.exists()]
    write_page(lines, len(shared), options.output / "every_name.md")


if __name__ == "__main__":
    main()
