"""Draws damage to files, values for config fields, and odd images, texts and table files; all with hypothesis."""

import io
import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st
from PIL import Image

from experiments.reliability.damage import find_newest

# Files


def flip(file: Path, rng: random.Random) -> None:
    data = bytearray(file.read_bytes())
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    file.write_bytes(data)


def cut(file: Path, rng: random.Random) -> None:
    data = file.read_bytes()
    file.write_bytes(data[: rng.randrange(1, len(data))])


def empty(file: Path, rng: random.Random) -> None:
    file.write_bytes(b"")


def delete(file: Path, rng: random.Random) -> None:
    shutil.rmtree(file) if file.is_dir() else file.unlink()


def put_folder(file: Path, rng: random.Random) -> None:
    delete(file, rng)
    file.mkdir()


def put_bytes(file: Path, rng: random.Random) -> None:
    """Bytes that are no UTF-8."""
    data, at = file.read_bytes(), rng.randrange(file.stat().st_size)
    file.write_bytes(data[:at] + b"\xff\xfe\x00" + data[at:])


def exchange(file: Path, rng: random.Random) -> None:
    """Exchanges a file with another one beside it, a folder with another folder, and a checkpoint's file with another's."""
    same = [p for p in sorted(file.parent.iterdir()) if p != file and p.is_dir() == file.is_dir() and p.name != ".lock"]
    step = next((p for p in file.parents if p.parent.name == "checkpoints"), None)
    if step:
        steps = (p for p in sorted(step.parent.iterdir()) if p.name.isdigit() and p != step)
        same = [path for path in (other / file.relative_to(step) for other in steps) if path.exists()]
    if not same:
        return delete(file, rng)
    other, aside = rng.choice(same), file.with_name("aside")
    file.rename(aside)
    other.rename(file)
    aside.rename(other)


def _retype(value: Any, rng: random.Random) -> Any:
    return rng.choice([other for other in (None, True, -1, 0.5, "text", [], {}) if type(other) is not type(value)])


def change_type(file: Path, rng: random.Random) -> None:
    """One value of a JSON file, or of a line of it, gets another type; or all of it."""
    lines = file.read_text().splitlines(keepends=True) if file.suffix == ".jsonl" else [file.read_text()]
    at = rng.randrange(len(lines))
    content = json.loads(lines[at])
    place = content
    while isinstance(place, (dict, list)) and place and rng.random() < 0.8:
        key = rng.choice(list(place) if isinstance(place, dict) else range(len(place)))
        if not isinstance(place[key], (dict, list)) or rng.random() < 0.3:
            place[key] = _retype(place[key], rng)
            break
        place = place[key]
    else:
        content = _retype(content, rng)
    lines[at] = json.dumps(content) + "\n" * (file.suffix == ".jsonl")
    file.write_text("".join(lines))


def drop_line(file: Path, rng: random.Random) -> None:
    lines = file.read_bytes().splitlines(keepends=True)
    del lines[rng.randrange(len(lines))]
    file.write_bytes(b"".join(lines))


def double_line(file: Path, rng: random.Random) -> None:
    lines = file.read_bytes().splitlines(keepends=True)
    lines.insert(rng.randrange(len(lines)), rng.choice(lines))
    file.write_bytes(b"".join(lines))


def _leave(file: Path) -> None:
    file.write_text("it failed\n")


Damage = Callable[[Path, random.Random], None]
_ANY: dict[str, Damage] = {
    "a bit flips": flip,
    "cut short": cut,
    "emptied": empty,
    "deleted": delete,
    "a folder in its place": put_folder,
    "bytes that are no text": put_bytes,
    "exchanged with another file": exchange,
}
_JSON: dict[str, Damage] = {**_ANY, "a value of another type": change_type}
_LINES: dict[str, Damage] = {**_JSON, "a line is lost": drop_line, "a line is there twice": double_line}
FILES: dict[str, dict[str, Damage]] = {
    "config.json": _JSON,
    "code.json": _JSON,
    "data.json": _JSON,
    "metrics.jsonl": _LINES,
    "timing.jsonl": _LINES,
    "evaluation.npz": _ANY,
    "failure.txt": {"left over": lambda file, rng: _leave(file), "a folder in its place": put_folder},
    "newest description": _ANY,
    "newest arrays": _ANY,
    "newest checkpoint": {name: _ANY[name] for name in ("deleted", "exchanged with another file")},
}


def find_file(workdir: Path, name: str, rng: random.Random) -> Path:
    """Returns the path of one of `FILES`, of arrays one at random."""
    if not name.startswith("newest"):
        return workdir / name
    newest = find_newest(workdir)
    if name == "newest checkpoint":
        return newest
    part = newest / ("about" if name == "newest description" else "state")
    return rng.choice(sorted(path for path in part.rglob("*") if path.is_file() and path.stat().st_size))


# Values of fields

_WORDS = st.text(st.characters(blacklist_categories=("Cs",), blacklist_characters="\0"), min_size=1, max_size=8)
VALUES: dict[str, st.SearchStrategy[str]] = {
    "None": st.just("None"),
    "an empty text": st.just(""),
    "0": st.just("0"),
    "a negative number": st.sampled_from(["-1", "-0.5", "-7"]),
    "a fraction": st.floats(0.001, 3).map(str),
    "no number": st.sampled_from(["nan", "inf", "-inf"]),
    "a very large number": st.sampled_from(["1e999", "99999999999999999999", str(2**31)]),
    "a text": _WORDS.map(lambda text: f"x{text}"),
    "a letter of another script": st.sampled_from(["잔차", "é", "٣", "１２"]),
    "a tuple": st.lists(st.integers(-2, 9), max_size=4).map(lambda numbers: str(tuple(numbers))),
    "a nested tuple": st.sampled_from(["((1,),)", "(('a', 1), 2)", "((None,), ())"]),
    "a dict": st.sampled_from(["{}", "{'a': 1}", "{1: 2}"]),
    "brackets left open": st.sampled_from(["(1,", "[", "{'a':", "'"]),
    "True": st.sampled_from(["True", "False"]),
}


def misspell(name: str, rng: random.Random) -> str:
    """Returns a name with a letter changed, lost or doubled, or a part too many."""
    at = rng.randrange(len(name))
    return rng.choice([name[:at] + "q" + name[at + 1 :], name[:at] + name[at + 1 :], name[: at + 1] + name[at:], f"{name}.x"])


# Images


def _encode(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def _photo(rng: random.Random, mode: str = "L", side: int = 8) -> Image.Image:
    return Image.fromarray(np.random.default_rng(rng.randrange(2**32)).integers(0, 256, (side, side), np.uint8)).convert(mode)


def write_image(file: Path, rng: random.Random) -> None:
    file.write_bytes(_encode(_photo(rng)))


def is_image(file: Path) -> bool:
    """True if Pillow decodes a file of less than a million pixels."""
    try:
        with Image.open(file) as image:
            if image.size[0] * image.size[1] > 10**6:
                return False
            image.load()
        return True
    except (OSError, SyntaxError, ValueError):
        return False


def _rotated(rng: random.Random) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = rng.randrange(2, 9)
    return _encode(_photo(rng), "JPEG", exif=exif)


def _damaged(damage: Damage) -> Callable[[Path, random.Random], None]:
    def write(file: Path, rng: random.Random) -> None:
        file.write_bytes(_encode(_photo(rng, side=16)))
        damage(file, rng)

    return write


def _bytes(make: Callable[[random.Random], bytes]) -> Callable[[Path, random.Random], None]:
    return lambda file, rng: file.write_bytes(make(rng)) and None


def _large_header(rng: random.Random) -> bytes:
    """A PNG of a few bytes that says it has four thousand million pixels."""
    data = bytearray(_encode(_photo(rng)))
    data[16:24] = (65535).to_bytes(4, "big") * 2
    return bytes(data)


def _loop(file: Path, rng: random.Random) -> None:
    os.symlink(file.parent, file.with_name("loop"), target_is_directory=True)


IMAGES: dict[str, Callable[[Path, random.Random], None]] = {
    **{f"{name}, in an image": _damaged(damage) for name, damage in _ANY.items() if damage is not exchange},
    "text in place of an image": _bytes(lambda rng: b"<html>404</html>"),
    "a header of 4e9 pixels": _bytes(_large_header),
    "one pixel": _bytes(lambda rng: _encode(_photo(rng, side=1))),
    "16-bit grey": _bytes(lambda rng: _encode(Image.fromarray(np.full((8, 8), rng.randrange(65536), np.uint16)))),
    "a palette": _bytes(lambda rng: _encode(_photo(rng, "P"))),
    "an alpha channel": _bytes(lambda rng: _encode(_photo(rng, "RGBA"))),
    "CMYK": _bytes(lambda rng: _encode(_photo(rng, "CMYK"), "JPEG")),
    "an animation": _bytes(lambda rng: _encode(_photo(rng), "GIF", save_all=True, append_images=[_photo(rng)])),
    "turned by EXIF": _bytes(_rotated),
    "a link loop": _loop,
}

# Texts of the source of a pair

_LINE = st.text(st.sampled_from("abcdefgh "), min_size=1, max_size=9)
TEXTS: dict[str, st.SearchStrategy[bytes]] = {
    name: st.lists(_LINE, min_size=3, max_size=12).map(lambda lines, change=change: change([line.encode() for line in lines]))
    for name, change in {
        "as it should be": lambda lines: b"\n".join(lines) + b"\n",
        "no UTF-8": lambda lines: b"\n".join([*lines, b"a\xff\xfeb", *lines]) + b"\n",
        "UTF-16": lambda lines: b"\n".join(lines).decode().encode("utf-16"),
        "a byte order mark": lambda lines: b"\xef\xbb\xbf" + b"\n".join(lines) + b"\n",
        "ends of CR LF": lambda lines: b"\r\n".join(lines) + b"\r\n",
        "ends of CR alone": lambda lines: b"\r".join(lines) + b"\r",
        "no end at the end": lambda lines: b"\n".join(lines),
        "blank lines": lambda lines: b"\n\n \n".join(lines) + b"\n",
        "zero bytes": lambda lines: b"\0\n".join(lines) + b"\0\n",
        "a very long line": lambda lines: b"\n".join([*lines, b"a b " * 5000]) + b"\n",
        "symbols of the vocabulary": lambda lines: b"</s> <s> <pad> <unk>\n".join([b"", *lines]) + b"\n",
        "other ends of lines of Unicode": lambda lines: "\u2028".join(x.decode() for x in lines).encode() + b"\x0b\x0c\x85"[:2],
        "nothing": lambda lines: b"",
    }.items()
}

# Table files: the text after a change

TABLE = """title = "A table"
source = "nobody"
base = "base.py"
rows = [{"label": "a", "overrides": {"model.gate": "my_gate.py:Gate"}}, {"label": "b", "pieces": ("ema",)}]
scales = {"tiny": {"seeds": 1, "overrides": {}}}
"""
_OTHERS = ("None", "3", "'text'", "[]", "{}", "()", "[1]", "{'a': 1}", "[{}]", "lambda x: x", "True", "float('nan')")


def _replace(old: str) -> Callable[[random.Random], str]:
    return lambda rng: TABLE.replace(old, rng.choice(_OTHERS), 1)


def _misspelled(rng: random.Random) -> str:
    name = rng.choice(
        ["title", "source", "base", "rows", "scales", "label", "overrides", "pieces", "seeds", "model.gate", "ema"]
    )
    return TABLE.replace(name, misspell(name, rng).replace(".x", "x"), 1)


TABLES: dict[str, Callable[[random.Random], str]] = {
    "as it should be": lambda rng: TABLE,
    "another title": _replace('"A table"'),
    "another base": _replace('"base.py"'),
    "another row": _replace('{"label": "b", "pieces": ("ema",)}'),
    "another label": _replace('"b"'),
    "other pieces": _replace('("ema",)'),
    "other overrides": _replace('{"model.gate": "my_gate.py:Gate"}'),
    "another scale": _replace('{"seeds": 1, "overrides": {}}'),
    "other scales": _replace('{"tiny": {"seeds": 1, "overrides": {}}}'),
    "other seeds": _replace("1,"),
    "one label twice": lambda rng: TABLE.replace('"b"', rng.choice(['"a"', '"A"', '"a "'])),
    "a misspelled name": _misspelled,
    "a line is lost": lambda rng: "\n".join(rng.sample(TABLE.splitlines(), 4)),
    "cut short": lambda rng: TABLE[: rng.randrange(1, len(TABLE))],
    "nothing": lambda rng: "",
    "bytes that are no text": lambda rng: TABLE + "\0",
}
