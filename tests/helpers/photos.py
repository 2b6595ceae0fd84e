"""A folder of photographs."""

import io
from pathlib import Path

import numpy as np
from PIL import Image

_SHAPES = [(60, 45, "RGB"), (40, 70, "L"), (150, 120, "CMYK"), (31, 32, "RGB")]


def jpeg(seed: int, width: int, height: int, mode: str = "RGB") -> bytes:
    """An encoded image whose colour depends on its seed."""
    pixels = np.random.default_rng(seed).integers(0, 60, (height, width, 3)) + np.array([seed * 37 % 190, seed * 91 % 190, 90])
    buffer = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).convert(mode).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def write_photos(root: Path) -> Path:
    """root/{train,val}/{ant,bee,cat}, with 12 and 6 photographs of many sizes."""
    for split, count in (("train", 4), ("val", 2)):
        for label, name in enumerate(("cat", "ant", "bee")):
            for number in range(count):
                file = root / split / name / (f"deep/{number}.JPEG" if number == 1 else f"{number}.jpg")
                file.parent.mkdir(parents=True, exist_ok=True)
                width, height, mode = _SHAPES[number]
                file.write_bytes(jpeg(label * 10 + number, width, height, mode))
    (root / "train" / "ant" / ".hidden.jpg").write_bytes(b"")
    (root / "train" / "ant" / "notes.txt").write_text("no image")
    (root / "train" / ".cache").mkdir()
    return root
