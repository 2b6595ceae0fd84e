"""Encoded images, crops at the JPEG's own scale, and the distribution of random boxes."""

import functools
import io
import math

import numpy as np
import pytest
from PIL import Image

from attention_jax.data.images import crop
from attention_jax.data.images.crop import Box, crop_and_resize, draw_box, resize_and_centre_crop
from attention_jax.data.images.decoding import BrokenImage, decode_image, read_orientation, turn_upright
from attention_jax.preflight.measure import make_photo

PILLOW = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


@functools.cache
def photo(index: int = 0, width: int = 640, height: int = 427) -> Image.Image:
    return Image.fromarray(make_photo(width, height, index))


def encoded(image: Image.Image, kind: str = "JPEG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def as_read(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data)).convert("RGB")


def distance(a, b) -> np.ndarray:
    return np.abs(np.asarray(a, int) - np.asarray(b, int))


def crop_random_box(data: bytes, rng: np.random.Generator, size: tuple[int, int], **options) -> np.ndarray:
    """Torchvision's RandomResizedCrop."""
    return crop_and_resize(data, functools.partial(draw_box, rng=rng, **options), size)


# Decoding


def test_jpeg_and_png_are_what_pillow_reads():
    data = encoded(photo())
    assert (decode_image(data) == np.asarray(as_read(data))).all()
    assert (decode_image(encoded(photo(), "PNG")) == np.asarray(photo())).all()
    assert decode_image(data).shape == (427, 640, 3) and decode_image(data).dtype == np.uint8
    pixels = np.zeros((4, 4, 3), np.uint8)
    assert decode_image(pixels) is pixels


def test_grey_files_among_coloured_ones():
    grey = photo().convert("L")
    for data in (encoded(grey, "PNG"), encoded(grey.convert("LA"), "PNG")):
        assert (decode_image(data) == np.asarray(grey)[..., None]).all() and decode_image(data).shape[-1] == 3
    assert (decode_image(encoded(grey, "PNG"), channels=1) == np.asarray(grey)[..., None]).all()
    assert (decode_image(encoded(photo(), "PNG"), channels=1)[..., 0] == np.asarray(grey)).all()


COLOURS = {"red": (200, 30, 40), "white": (255, 255, 255), "black": (0, 0, 0), "blue": (20, 60, 220)}


@pytest.mark.parametrize("colour", COLOURS.values(), ids=COLOURS)
def test_cmyk_jpeg_as_adobe_writes_it(colour):
    plain = Image.new("RGB", (16, 16), colour)
    data = encoded(plain.convert("CMYK"), quality=95)
    assert b"Adobe" in data and Image.open(io.BytesIO(data)).mode == "CMYK"
    assert distance(decode_image(data), plain).max() <= 4
    assert distance(crop_random_box(data, np.random.default_rng(0), (8, 8)), np.broadcast_to(colour, (8, 8, 3))).max() <= 4


def test_palette_with_and_without_transparency(recwarn):
    quantized = photo(0, 64, 43).quantize(16)
    for options in ({}, {"transparency": 3}, {"transparency": bytes(range(0, 160, 10))}):
        data = encoded(quantized, "PNG", **options)
        assert Image.open(io.BytesIO(data)).mode == "P"
        assert (decode_image(data) == np.asarray(quantized.convert("RGB"))).all()
    assert not list(recwarn)


def test_transparency_is_dropped_not_blended():
    see_through = photo(0, 64, 43).copy()
    see_through.putalpha(7)
    assert (decode_image(encoded(see_through, "PNG")) == np.asarray(photo(0, 64, 43))).all()


def test_sixteen_bits_keep_the_upper_eight():
    levels = (np.arange(256, dtype=np.uint16) * 257).reshape(16, 16)
    for kind in ("PNG", "TIFF"):
        pixels = decode_image(encoded(Image.fromarray(levels), kind))
        assert (pixels == np.arange(256).reshape(16, 16, 1)).all(), kind
    with pytest.raises(BrokenImage, match="32 bits"):
        decode_image(encoded(Image.fromarray(levels.astype(np.float32)), "TIFF"))


@pytest.mark.parametrize("maxval", [65535, 1000])
def test_sixteen_bit_pgm_is_decoded_like_sixteen_bit_png(maxval):
    levels = np.arange(256).reshape(16, 16)
    stored = levels * 257 * maxval // 65535
    data = b"P5 16 16 %d\n" % maxval + stored.astype(">u2").tobytes()
    pixels = decode_image(data, channels=1)
    assert np.abs(pixels[..., 0].astype(int) - levels).max() <= (0 if maxval == 65535 else 1)
    assert (resize_and_centre_crop(data, 16, (16, 16), 1) == pixels).all()
    assert (crop_and_resize(data, lambda h, w: Box(0, 0, 16, 16), (16, 16), 1) == pixels).all()


@pytest.mark.parametrize("orientation", [1, 2, 3, 6, 8, 99])
def test_an_image_is_turned_as_its_exif_orientation_says(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(photo(0, 64, 43), "PNG", exif=exif)
    turns = {2: lambda x: x[:, ::-1], 3: lambda x: x[::-1, ::-1], 6: lambda x: np.rot90(x, -1), 8: np.rot90}
    upright = turn_upright(data)
    assert read_orientation(data) == (orientation if orientation in turns else 1)
    if orientation in turns:
        assert (upright == turns[orientation](np.asarray(photo(0, 64, 43)))).all()
        assert turn_upright(data, channels=1).shape == (*upright.shape[:2], 1)
    else:
        assert upright is data
    assert read_orientation(b"no image") == read_orientation(np.zeros((2, 2, 3), np.uint8)) == 1


def test_exif_orientation_is_not_applied():
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(photo(), exif=exif)
    assert Image.open(io.BytesIO(data)).getexif()[0x0112] == 6
    assert (decode_image(data) == decode_image(encoded(photo()))).all()


JPEG = encoded(photo(0, 200, 133))
PNG = encoded(photo(0, 200, 133), "PNG")
BROKEN = {
    "empty": (b"", "an empty file"),
    "text": (b"<html>404</html>", "not an image of a known format"),
    "header alone": (JPEG[:300], "."),
    "cut JPEG": (JPEG[: len(JPEG) // 2], "truncated"),
    "cut PNG": (PNG[: len(PNG) // 2], "."),
    "flipped PNG": (PNG[:2000] + bytes(50) + PNG[2050:], "."),
}


@pytest.mark.parametrize(("data", "reason"), BROKEN.values(), ids=BROKEN)
def test_broken_bytes_have_a_reason(data, reason):
    rng = np.random.default_rng(0)
    readers = (decode_image, lambda d: crop_random_box(d, rng, (32, 32)), lambda d: resize_and_centre_crop(d, 40, (32, 32)))
    for read in readers:
        with pytest.raises(BrokenImage, match=reason) as caught:
            read(data)
        assert "\n" not in str(caught.value) and str(caught.value)


def test_bytes_that_can_be_spared_are():
    fine = JPEG[:-2] + b"junk" + JPEG[-2:]  # libjpeg warns of it, Pillow reads on
    assert (decode_image(fine) == decode_image(JPEG)).all()
    crops = [crop_random_box(data, np.random.default_rng(3), (32, 32)) for data in (fine, JPEG)]
    assert (crops[0] == crops[1]).all()


# Crops


@pytest.fixture(params=["fast", "Pillow"])
def way(request, monkeypatch):
    """With and without the packages that make it fast."""
    if request.param == "fast":
        pytest.importorskip("simplejpeg")
        pytest.importorskip("cykooz_resizer")
    else:
        monkeypatch.setattr(crop, "_module", lambda name: None)
    return request.param


@pytest.mark.parametrize("interpolation", PILLOW)
@pytest.mark.parametrize("box", [Box(40, 30, 300, 350), Box(0, 0, 427, 640), Box(200, 101, 60, 47)])
def test_a_crop_is_pillows_crop_and_resize(way, box, interpolation):
    data = encoded(photo())
    top, left, h, w = box
    part = as_read(data).crop((left, top, left + w, top + h))
    size = (224, 250)
    if way == "fast":  # it makes the vertical pass first, which shows where bicubic overshoots 0 or 255
        part = part.resize((w, size[0]), PILLOW[interpolation])
    expected = part.resize(size[::-1], PILLOW[interpolation])
    got = crop_and_resize(data, lambda height, width: box, size, 3, interpolation)
    assert got.shape == (224, 250, 3) and got.dtype == np.uint8
    assert distance(got, expected).max() <= (2 if way == "fast" else 0) and distance(got, expected).mean() < 0.2
    assert (crop_and_resize(np.asarray(as_read(data)), lambda *_: box, size, 3, interpolation) == got).all()


@pytest.mark.parametrize(("side", "scale"), [(199, 1), (200, 2), (399, 2), (400, 4), (800, 8), (1000, 8)])
def test_jpegs_decode_at_the_smallest_scale_that_serves(way, monkeypatch, side, scale):
    seen = []
    resize = crop._resize
    monkeypatch.setattr(
        crop, "_resize", lambda pixels, box, *rest: seen.append((pixels.shape, box)) or resize(pixels, box, *rest)
    )
    data = encoded(photo(0, 1281, 1003))
    crop_and_resize(data, lambda h, w: Box(3, 37, side, side), (100, 100))
    (shape, box), _ = seen[0], seen.clear()
    assert box.height == box.width == side / scale >= 100 or scale == 1
    assert max(shape) <= side / scale + 2
    # What is no JPEG has one scale only.
    crop_and_resize(encoded(photo(0, 1281, 1003), "BMP"), lambda h, w: Box(3, 37, side, side), (100, 100))
    assert seen[0][0] == (side, side, 3)


@pytest.mark.parametrize("channels", [3, 1])
@pytest.mark.parametrize("number", range(4))
def test_a_crop_of_a_smaller_scale_shows_the_same_place(way, number, channels):
    rng = np.random.default_rng(number)
    original = photo(number % 2, 1001, 667).convert({1: "L", 3: "RGB"}[channels])
    data = encoded(original, quality=95)
    height, width = rng.integers(260, 667), rng.integers(260, 1000)
    box = Box(int(rng.integers(667 - height)), int(rng.integers(1001 - width)), int(height), int(width))

    def reference(moved: int = 0) -> np.ndarray:
        left, top = box.left + moved, box.top + moved
        part = original.crop((left, top, left + box.width, top + box.height))
        return np.asarray(part.resize((64, 64), PILLOW["bilinear"])).reshape(64, 64, channels)

    got = crop_and_resize(data, lambda h, w: box, (64, 64), channels)
    assert distance(got, reference()).mean() < 2.5
    # A place four pixels off in the photograph is farther off in the result.
    assert distance(got, reference()).mean() < 0.75 * min(distance(got, reference(moved)).mean() for moved in (-4, 4))


def test_both_ways_agree(monkeypatch):
    pytest.importorskip("simplejpeg")
    data = [encoded(photo(i % 2, 700, 500), quality=90) for i in range(2)]
    data += [encoded(photo().convert("L")), encoded(photo(), subsampling=0), encoded(photo(), progressive=True)]
    fast = [crop_random_box(item, np.random.default_rng(i), (90, 90)) for i in range(8) for item in data]
    module = crop._module
    monkeypatch.setattr(crop, "_module", lambda name: None if name == "simplejpeg" else module(name))
    slow = [crop_random_box(item, np.random.default_rng(i), (90, 90)) for i in range(8) for item in data]
    assert all((a == b).all() for a, b in zip(fast, slow)), "to the bit"


SHORT = {  # how it is encoded, whether lines below a crop are left out
    "4:4:4": ({"subsampling": "4:4:4"}, True),
    "4:2:2": ({"subsampling": "4:2:2"}, True),
    "4:2:0": ({"subsampling": "4:2:0"}, True),
    "grey": ({}, True),
    "with restarts": ({"restart_marker_rows": 2}, False),
    "progressive": ({"progressive": True}, False),
}


@pytest.mark.parametrize("kind", SHORT)
@pytest.mark.parametrize("size", [(20, 20), (41, 41), (120, 120)])  # at a quarter, half and all of the resolution
def test_lines_below_a_crop_are_left_out_and_change_nothing(monkeypatch, kind, size):
    jpeg = pytest.importorskip("simplejpeg")
    options, shorter = SHORT[kind]
    original = photo(0, 400, 300).convert("L") if kind == "grey" else photo(0, 400, 300)
    data = encoded(original, quality=93, **options)
    lines = []
    decoder = jpeg.decode_jpeg
    monkeypatch.setattr(jpeg, "decode_jpeg", lambda given, *rest, **kw: lines.append(given) or decoder(given, *rest, **kw))
    channels = 1 if kind == "grey" else 3
    for bottom in range(120, 150):
        box = Box(bottom - 90, 30, 90, 90)
        fast = crop._fast_part(data, lambda height, width, box=box: box, size, channels)
        assert len(lines[-1]) == len(data) and (lines[-1] != data) == (kind != "progressive")
        if kind == "with restarts":
            assert fast is None
            continue
        part = crop._part(data, lambda height, width, box=box: box, size, channels)
        assert (fast[0] == part[0]).all() and fast[1] == part[1]
        assert jpeg.decode_jpeg_header(bytes(lines[-1]))[0] <= (bottom + 20 if shorter else 300)


@pytest.mark.parametrize("damage", [lambda data: data[:-900], lambda data: data[:-2], lambda data: data[:9000]])
def test_a_jpeg_cut_short_is_as_broken_as_without_leaving_lines_out(monkeypatch, damage):
    pytest.importorskip("simplejpeg")
    data = damage(encoded(photo(0, 400, 300), quality=93))
    texts = []
    for leave_out in (True, False):
        monkeypatch.setattr(crop, "_shortened", crop._shortened if leave_out else lambda *_: None)
        with pytest.raises(BrokenImage) as caught:
            crop_and_resize(data, lambda *_: Box(5, 5, 100, 100), (90, 90))
        texts.append(str(caught.value))
    assert texts[0] == texts[1]


# Random boxes


def boxes(height: int, width: int, count: int, **options) -> np.ndarray:
    rng = np.random.default_rng(0)
    return np.array([draw_box(height, width, rng, **options) for _ in range(count)])


@pytest.mark.parametrize(("height", "width"), [(375, 500), (500, 333), (20, 17), (1, 1), (1000, 10)])
def test_boxes_lie_inside(height, width):
    top, left, h, w = boxes(height, width, 500).T
    assert (top >= 0).all() and (left >= 0).all() and (h >= 1).all() and (w >= 1).all()
    assert (top + h <= height).all() and (left + w <= width).all()


def test_area_is_uniform_and_ratio_log_uniform():
    # Small boxes always fit, so that no try is thrown away.
    top, left, h, w = boxes(1000, 1000, 4000, scale=(0.1, 0.3)).T
    area, log_ratio = h * w / 1e6, np.log(w / h)
    for values, low, high in ((area, 0.1, 0.3), (log_ratio, math.log(3 / 4), math.log(4 / 3))):
        ranks = np.sort((values - low) / (high - low))
        assert ranks[0] > -0.01 and ranks[-1] < 1.01
        # Kolmogorov-Smirnov: 1.95 / sqrt(n) is passed by one uniform sample in a thousand.
        assert np.abs(ranks - np.arange(4000) / 4000).max() < 1.95 / math.sqrt(4000)
    assert abs(np.corrcoef(area, log_ratio)[0, 1]) < 0.06
    for begin, extent in ((top, h), (left, w)):
        ranks = np.sort((begin + 0.5) / (1000 - extent + 1))
        assert np.abs(ranks - np.arange(4000) / 4000).max() < 1.95 / math.sqrt(4000)


def test_every_place_is_equally_likely():
    top, left, h, w = boxes(6, 6, 3200, scale=(0.25, 0.25), ratio=(1, 1)).T
    assert (h == 3).all() and (w == 3).all()
    counts = np.bincount((4 * top + left).astype(int), minlength=16)
    assert len(counts) == 16 and counts.min() > 140 and counts.max() < 260  # 200 expected, standard deviation 14


def test_what_does_not_fit_is_drawn_again():
    # In a wide image high boxes do not fit: large areas come with wide shapes.
    _, _, h, w = boxes(300, 450, 3000, scale=(0.08, 1)).T
    area = h * w / (300 * 450)
    assert area.mean() < 0.53  # 0.54 were nothing thrown away
    assert (w / h)[area > 0.8].min() > 1.1


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [
        (100, 1000, Box(0, 433, 100, 133)),  # too wide: ratio 4/3, in the middle
        (1000, 90, Box(440, 0, 120, 90)),  # too high: ratio 3/4
        (90, 100, Box(0, 0, 90, 100)),
    ],
)
def test_after_ten_tries_the_middle(height, width, expected):
    class Stubborn:
        tries = 0

        def uniform(self, low, high):
            self.tries += 1
            return 40.0 if high <= 1 and low > 0 else 0.0  # an area that never fits

    rng = Stubborn()
    assert draw_box(height, width, rng) == expected and rng.tries == 20


def test_boxes_are_torchvisions():
    transforms = pytest.importorskip("torchvision.transforms")
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    image = torch.empty(3, 375, 500)
    theirs = np.array([transforms.RandomResizedCrop.get_params(image, (0.08, 1.0), (3 / 4, 4 / 3)) for _ in range(4000)])
    ours = boxes(375, 500, 4000)
    for column in range(4):
        both = np.sort(np.concatenate([ours[:, column], theirs[:, column]]))
        gap = np.searchsorted(np.sort(ours[:, column]), both, "right") - np.searchsorted(
            np.sort(theirs[:, column]), both, "right"
        )
        assert np.abs(gap).max() / 4000 < 1.95 * math.sqrt(2 / 4000)


def test_random_resized_crop_takes_scale_and_ratio():
    data = encoded(photo())
    resized = crop_random_box(data, np.random.default_rng(0), (64, 96), scale=(1.0, 1.0), ratio=(1.49, 1.5))
    expected = as_read(data).resize((96, 64), PILLOW["bilinear"])
    assert distance(resized, expected).mean() < 3
    crops = {crop_random_box(data, np.random.default_rng(i), (16, 16)).tobytes() for i in range(20)}
    assert len(crops) == 20
    again = crop_random_box(data, np.random.default_rng(5), (16, 16)).tobytes()
    assert again in crops and again == crop_random_box(data, np.random.default_rng(5), (16, 16)).tobytes()


# Evaluation


@pytest.mark.parametrize("interpolation", PILLOW)
@pytest.mark.parametrize(("width", "height"), [(500, 375), (333, 500), (256, 256), (100, 131)])
def test_evaluation_is_resize_and_centre_crop(width, height, interpolation):
    original = photo(1, width, height)
    if width < height:
        resized = original.resize((256, int(256 * height / width)), PILLOW[interpolation])
    else:
        resized = original.resize((int(256 * width / height), 256), PILLOW[interpolation])
    left, top = round((resized.width - 192) / 2), round((resized.height - 224) / 2)
    expected = np.asarray(resized.crop((left, top, left + 192, top + 224)))
    got = resize_and_centre_crop(encoded(original, "PNG"), 256, (224, 192), 3, interpolation)
    assert got.shape == (224, 192, 3) and distance(got, expected).max() <= 1 and distance(got, expected).mean() < 0.01
    assert (resize_and_centre_crop(np.asarray(original), 256, (224, 192), 3, interpolation) == got).all()


def test_evaluation_of_the_complete_image_is_the_image():
    original = np.asarray(photo(0, 50, 50))
    assert (resize_and_centre_crop(original, 50, (50, 50)) == original).all()
