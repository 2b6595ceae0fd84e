"""Encoded images -> pixels, with Pillow.

Colours: grey and palette images become what is asked for, 16-bit grey keeps its upper 8 bits, CMYK is read as Adobe
writes it (inverted), transparency is dropped. The EXIF orientation is not applied: torchvision, timm and TFDS do not
apply it either, and the published accuracies were measured that way. Of an animation the first frame counts.
"""

import contextlib
import io
from collections.abc import Iterator

import numpy as np
from PIL import Image

from attention_jax.errors import one_sentence

MODES = {1: "L", 3: "RGB"}  # channels -> Pillow's name


class BrokenImage(Exception):
    """An image that cannot be decoded; the text is the reason."""


@contextlib.contextmanager
def broken_if_it_fails() -> Iterator[None]:
    """Turns whatever Pillow raises on damaged bytes into BrokenImage."""
    try:
        yield
    except (BrokenImage, MemoryError):
        raise
    except Image.UnidentifiedImageError as error:
        raise BrokenImage("not an image of a known format") from error
    # Decoders raise OSError, SyntaxError, ValueError, struct.error, zlib.error, DecompressionBombError, … by format.
    except Exception as error:
        raise BrokenImage(one_sentence(error)) from error


def open_image(data: bytes | np.ndarray) -> Image.Image:
    """The image with its size and mode known; encoded bytes are decoded when the pixels are first asked for."""
    if isinstance(data, np.ndarray):
        return Image.fromarray(data[..., 0] if data.shape[-1] == 1 else data)
    if not data:
        raise BrokenImage("an empty file")
    return Image.open(io.BytesIO(data))


def to_channels(image: Image.Image, channels: int) -> Image.Image:
    """The image as 8-bit grey (1 channel) or RGB (3)."""
    mode = MODES[channels]
    if image.mode == mode:
        return image
    if image.mode.startswith("I;16"):  # `convert` would clip at 255
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    elif image.mode in ("I", "F"):
        raise BrokenImage(f"pixels of {image.mode!r} (32 bits) have no agreed range")
    elif image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # what Pillow asks for in a warning
    return image.convert(mode)


def to_array(image: Image.Image) -> np.ndarray:
    """uint8 [H, W, C] of a grey or RGB image."""
    pixels = np.asarray(image)
    return pixels[..., None] if pixels.ndim == 2 else pixels


def decode(data: bytes | np.ndarray, channels: int = 3) -> np.ndarray:
    """Encoded bytes -> uint8 [H, W, channels]; an array is returned as it is. Raises BrokenImage.

    JPEG data that are damaged without being cut short decode to something, as with every libjpeg.
    """
    if isinstance(data, np.ndarray):
        return data
    with broken_if_it_fails():
        return to_array(to_channels(open_image(data), channels))
