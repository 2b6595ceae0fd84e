"""Prints whether the colours of pictures stay apart for people who see colours differently, and on light and dark pages.

    ./launch.sh python experiments/reliability/colours.py [PICTURE.png ...]

Without pictures, those of README.md are checked. The colours of a picture are those that fill at least 0.03 % of it, 25
units of CIELAB apart. Each deficiency is simulated by the matrices of Machado et al. 2009 (severity 1) in linear RGB. Two
colours that are 10 units apart are told apart at a glance. A closer pair is marked: see whether it must be told apart, which
neighbours on a scale of colours, or colours of different panels, need not be. Exits with 1 if a picture is transparent, so that
a dark page shows through.
"""

import re
import sys
from itertools import combinations
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
SIMULATIONS = {
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}
DISTINCT, APART, SHARE = 25.0, 10.0, 3e-4


def to_linear(rgb: np.ndarray) -> np.ndarray:
    """[N, 3] sRGB from 0 to 255 -> [N, 3] linear from 0 to 1."""
    share = np.asarray(rgb, np.float64) / 255
    return np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)


def to_lab(linear: np.ndarray) -> np.ndarray:
    """[N, 3] linear RGB -> [N, 3] CIELAB with the white of D65."""
    matrix = np.array([[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]])
    xyz = linear @ matrix.T / matrix.sum(1)
    root = np.where(xyz > 216 / 24389, np.cbrt(xyz), (24389 / 27 * xyz + 16) / 116)
    return np.stack([116 * root[:, 1] - 16, 500 * (root[:, 0] - root[:, 1]), 200 * (root[:, 1] - root[:, 2])], 1)


def simulate(rgb: np.ndarray, deficiency: str) -> np.ndarray:
    """[N, 3] sRGB -> [N, 3] linear RGB as people with a deficiency see them."""
    return np.clip(to_linear(rgb) @ np.array(SIMULATIONS[deficiency]).T, 0, 1)


def list_colours(picture: Image.Image) -> np.ndarray:
    """Returns the frequent colours of a picture, [N, 3], the most frequent first, which is the background."""
    pixels = np.asarray(picture.convert("RGB")).reshape(-1, 3).astype(np.uint32)
    packed, counts = np.unique(pixels @ np.array([65536, 256, 1], np.uint32), return_counts=True)
    found = np.stack([packed >> 16, packed >> 8 & 255, packed & 255], 1).astype(np.uint8)
    order = np.argsort(-counts, kind="stable")
    order = order[counts[order] >= SHARE * len(pixels)]
    labs, kept = to_lab(to_linear(found)), list[int]()
    for index in order:
        if all(np.linalg.norm(labs[index] - labs[other]) >= DISTINCT for other in kept):
            kept.append(index)
    return found[kept]


def find_closest(colours: np.ndarray, deficiency: str) -> tuple[float, int, int]:
    """Returns the smallest distance of two colours under a deficiency, and their numbers."""
    labs = to_lab(simulate(colours, deficiency))
    return min((float(np.linalg.norm(labs[i] - labs[j])), i, j) for i, j in combinations(range(len(colours)), 2))


def check_picture(path: Path) -> tuple[list[str], bool]:
    """Returns lines about a picture, and True if it is opaque."""
    with Image.open(path) as picture:
        opaque = picture.convert("RGBA").getchannel("A").getextrema()[0] == 255
        colours = list_colours(picture)
    lines = [f"{path.name}: {len(colours)} colours, {'opaque' if opaque else 'transparent'}"]
    for deficiency in SIMULATIONS if len(colours) > 1 else ():
        distance, *pair = find_closest(colours, deficiency)
        names = " and ".join("#" + bytes(colours[index].tolist()).hex() for index in pair)
        lines.append(f"  {deficiency}: closest {distance:.0f} ({names}){' below 10' if distance < APART else ''}")
    return lines, opaque


def main() -> int:
    """Checks the pictures that are given, and returns the exit code."""
    shown = re.findall(r"!\[[^\]]*\]\(([^)]+\.png)\)", (ROOT / "README.md").read_text(encoding="utf-8"))
    results = [check_picture(path) for path in map(Path, sys.argv[1:] or [str(ROOT / name) for name in shown])]
    print("\n".join(line for lines, _ in results for line in lines))
    return 0 if all(opaque for _, opaque in results) else 1


if __name__ == "__main__":
    sys.exit(main())
