"""Encoded images -> pixels, with Pillow.

Colours: grey and palette images are converted, 16-bit grey keeps its upper 8 bits, CMYK is read as Adobe writes it
(inverted), transparency is dropped. The EXIF orientation is applied by `turn_upright` alone: torchvision, timm and TFDS do
not apply it, and the published accuracies were measured that way. An animation counts as its first frame.
"""

import contextlib
import io
import os
from collections.abc import Iterator

import numpy as np
from PIL import ExifTags, Image, ImageOps

from attention_jax.errors import UserError, one_sentence

MOST_PIXELS = int(os.environ.get("AJ_MOST_PIXELS") or 64_000_000)  # a small file may claim an image that fills the memory
MODES = {1: "L", 3: "RGB"}  # channels -> Pillow's name


class BrokenImage(Exception):
    """Raised for an image that cannot be decoded; the text is the reason."""


@contextlib.contextmanager
def raise_broken_image() -> Iterator[None]:
    """Turns every error of Pillow on damaged bytes into BrokenImage."""
    try:
        yield
    except (BrokenImage, MemoryError, UserError):
        raise
    except Image.UnidentifiedImageError as error:
        raise BrokenImage("not an image of a known format") from error
    # Decoders raise OSError, SyntaxError, ValueError, struct.error, zlib.error, DecompressionBombError, … by format.
    except Exception as error:
        raise BrokenImage(one_sentence(error)) from error


def open_image(data: bytes | np.ndarray) -> Image.Image:
    """Opens an image, whose size and mode are then known; its pixels are decoded when they are first read."""
    if isinstance(data, np.ndarray):
        return Image.fromarray(data[..., 0] if data.shape[-1] == 1 else data)
    if not data:
        raise BrokenImage("an empty file")
    image = Image.open(io.BytesIO(data))
    check_pixels(*image.size)
    if (image.format, image.mode) == ("PPM", "I"):  # 16-bit PGM, as Pillow reads it
        return Image.fromarray(np.asarray(image).astype(np.uint16))
    return image


def read_orientation(data: bytes | np.ndarray) -> int:
    """Returns the EXIF orientation of an image, from 1 to 8; 1 (upright) if none can be read."""
    try:
        found = open_image(data).getexif().get(ExifTags.Base.Orientation)
        return found if isinstance(found, int) and 1 < found <= 8 else 1
    except Exception:  # Pillow raises many for damaged bytes, which decoding reports later
        return 1


def turn_upright(data: bytes | np.ndarray, channels: int = 3) -> bytes | np.ndarray:
    """Returns the pixels uint8 [H, W, channels] of an image that its EXIF orientation turns; any other image unchanged."""
    if read_orientation(data) == 1:
        return data
    with raise_broken_image():
        return image_to_array(convert_channels(ImageOps.exif_transpose(open_image(data)), channels))


def check_pixels(width: int, height: int) -> None:
    """Raises BrokenImage for an image that is too large to decode."""
    if width * height > MOST_PIXELS:
        raise BrokenImage(f"{width} x {height} pixels are more than {MOST_PIXELS:,}, see AJ_MOST_PIXELS")


def convert_channels(image: Image.Image, channels: int) -> Image.Image:
    """Returns the image as 8-bit grey (1 channel) or RGB (3)."""
    mode = MODES[channels]
    if image.mode == mode:
        return image
    if image.mode.startswith("I;16"):  # `convert` would clip at 255
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    elif image.mode in ("I", "F"):
        raise BrokenImage(f"pixels of {image.mode!r} (32 bits) have no agreed range")
    elif image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # else Pillow warns
    return image.convert(mode)


def image_to_array(image: Image.Image) -> np.ndarray:
    """Returns a grey or RGB image as uint8 [H, W, C]."""
    pixels = np.asarray(image)
    return pixels[..., None] if pixels.ndim == 2 else pixels


def decode_image(data: bytes | np.ndarray, channels: int = 3) -> np.ndarray:
    """Returns encoded bytes as uint8 [H, W, channels], and an array unchanged. Raises BrokenImage.

    JPEG data that are damaged without being cut short decode to wrong pixels, as with every libjpeg.
    """
    if isinstance(data, np.ndarray):
        return data
    with raise_broken_image():
        return image_to_array(convert_channels(open_image(data), channels))
