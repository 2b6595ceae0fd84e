"""Images of too many pixels are broken images, before anything of them is decoded."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from attention_jax.data.images import crop, decoding
from attention_jax.data.images.decoding import BrokenImage, decode_image


def png_of(width: int, height: int) -> bytes:
    """A PNG file of one chunk of data, which says that it is this large."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def test_a_small_file_that_stands_for_a_large_image():
    with pytest.raises(BrokenImage, match=r"8001 x 8000 pixels are more than 64,000,000, see AJ_MOST_PIXELS"):
        decode_image(png_of(8001, 8000))
    with pytest.raises(BrokenImage, match=r"8001 x 8000 pixels"):
        crop.crop_and_resize(png_of(8001, 8000), lambda height, width: crop.Box(0, 0, 8, 8), (8, 8))


@pytest.mark.parametrize("kind", ["jpeg", "png"])
def test_the_limit_is_an_option(kind, monkeypatch):
    file = io.BytesIO()
    Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(file, kind)
    for limit, fits in ((600, True), (599, False)):
        monkeypatch.setattr(decoding, "MOST_PIXELS", limit)
        for read in (decode_image, lambda data: crop.crop_and_resize(data, lambda h, w: crop.Box(0, 0, 8, 8), (4, 4))):
            if fits:
                read(file.getvalue())
            else:
                with pytest.raises(BrokenImage, match=r"30 x 20 pixels are more than 599"):
                    read(file.getvalue())
