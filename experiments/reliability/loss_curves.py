"""Follows the loss of each family's recipe for 200 steps beside timm's network: equal weights, equal batches.

    nice ./launch.sh python experiments/reliability/loss_curves.py [--steps=200] [--output=experiments/results]

Needs the extra `peers`. Our side is the train step of the config in `configs/`, computed in float64; timm's networks take the
same steps with PyTorch's optimizers (`tests/peers/torch_training.py`) in float64, and once more in float32, which says how far
rounding alone moves a curve. Without augmentation, dropout and stochastic depth, which draw random numbers. It takes five
minutes of a CPU core, most of it compilation.
"""

import argparse
import sys
from pathlib import Path

import jax
import matplotlib.pyplot as plt
import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from experiments.benchmarks.page import render_page  # noqa: E402
from tests.helpers.follow_recipes import compute_in_float64, follow_family  # noqa: E402
from tests.helpers.parity_recipes import FAMILIES, Family, lengthen  # noqa: E402
from tests.peers import torch_recipes  # noqa: E402

NAMES = {
    "resnet_rs": "ResNet-RS",
    "efficientnet": "EfficientNet",
    "convnext": "ConvNeXt",
    "deit": "ViT (DeiT)",
    "swin": "Swin",
}
OPTIMIZERS = {"sgd": "SGD, Nesterov", "rmsprop": "RMSProp (TensorFlow)", "adamw": "AdamW"}


def follow(family: Family) -> dict[str, np.ndarray]:
    """Returns the losses of all steps by who took them."""
    timm, rounded = torch_recipes.follow(family)[0], torch_recipes.follow(family, torch.float32)[0]
    with compute_in_float64():
        ours = follow_family(family)
    return {name: results["loss"][""] for name, results in (("timm", timm), ("timm, float32", rounded), ("ours", ours))}


def differ(a: np.ndarray, b: np.ndarray, steps: int) -> str:
    """Returns the largest relative difference of the first steps."""
    return f"{np.max(np.abs(a[:steps] - b[:steps]) / np.abs(b[:steps])):.0e}"


def make_row(name: str, family: Family, curves: dict[str, np.ndarray]) -> str:
    """Returns a line of the table."""
    training = family.training
    clip = f", clipped at {training.options['clip_norm']:g}" if "clip_norm" in training.options else ""
    cells = [name, f"{OPTIMIZERS[training.optimizer]}{clip}, {training.learning_rate:g}"]
    cells += [f"{curves['timm'][:20].mean():.3f}", f"{curves['timm'][-20:].mean():.3f}", f"{curves['ours'][-20:].mean():.3f}"]
    for side in ("ours", "timm, float32"):
        cells += [differ(curves[side], curves["timm"], steps) for steps in (20, family.steps)]
    return f"| {' | '.join(cells)} |"


def plot(curves: dict[str, dict[str, np.ndarray]], path: Path) -> None:
    """Writes a panel of both losses for each family."""
    figure, axes = plt.subplots(1, len(curves), figsize=(3 * len(curves), 2.6), sharey=True, layout="constrained")
    for axis, (name, losses) in zip(axes, curves.items(), strict=True):
        axis.plot(losses["timm"], color="0.6", linewidth=3, label="timm")
        axis.plot(losses["ours"], color="tab:blue", linewidth=0.8, label="ours")
        axis.set(title=name, xlabel="step")
    axes[0].set_ylabel("loss, nats")
    axes[0].legend(frameon=False)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--output", type=Path, default=ROOT / "experiments" / "results")
    options = parser.parse_args()
    torch.set_num_threads(1)
    plt.switch_backend("agg")
    rows, curves, n = [], {}, options.steps
    for family in (lengthen(family, n) for family in FAMILIES.values()):
        name = NAMES[family.config]
        curves[name] = follow(family)
        rows.append(make_row(name, family, curves[name]))
        print(rows[-1], flush=True)
    versions = f"torch {torch.__version__}, timm {torch_recipes.timm.__version__}, jax {jax.__version__}"
    columns = ["family", "optimizer, peak rate", "timm, first 20", "timm, last 20", "ours, last 20"]
    columns += [f"{side}, {steps}" for side in ("ours", "float32") for steps in (20, n)]
    first, last = ([float(differ(curve["ours"], curve["timm"], steps)) for curve in curves.values()] for steps in (20, n))
    text = render_page(
        f"The loss of {n} steps, ours and timm's",
        f"In the first 20 steps our loss differs from timm's by at most {max(first):.0e} of itself, in all {n} by at most "
        f"{min(last):.0e} to {max(last):.0e}, depending on the family.",
        "\n".join([f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}", *rows, "", "![losses](loss_curves.png)"]),
        f"""`./launch.sh python experiments/reliability/loss_curves.py` (needs timm and PyTorch). Tiny networks of each family
(tests/helpers/parity_recipes.py) take {n} steps of 32 digits, 0 to 4, with noise, at 32x32 pixels, from the same weights and on
the same batches. Recipes are those of configs/imagenet_*.py: optimizer, which parameters decay and how much, clipping, schedule
after a tenth of warm-up, label smoothing 0.1. Augmentation, dropout and stochastic depth are off, and the rate is one for small
batches.

Columns 3 to 5 are mean losses. "ours" is the largest relative difference between our loss and timm's in the first 20 and in all
{n} steps, both computed in float64. "float32" compares timm's own network in float32 with itself in float64: where it is large,
rounding alone leads to another curve, and float32 cannot show agreement.""",
        f"{versions}.",
    )
    (options.output / "loss_curves.md").write_text(text, encoding="utf-8")
    plot(curves, options.output / "loss_curves.png")


if __name__ == "__main__":
    main()
