"""Sets of sentence pairs by public address: fetched once, or taken from files at hand, checked, and written as plain text.

What is written is read by `data.source=files` ({split}.en beside {split}.de) or `tsv` ({split}.tsv).
"""

import dataclasses
import gzip
import hashlib
import http.client
import json
import logging
import re
import shutil
import tarfile
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from attention_jax.errors import UserError, one_sentence

logger = logging.getLogger(__name__)

# Lines of kor.txt, from 1, and beginnings of tldr's page names, that make up dev and test; the others are for training.
SPLITS = Path(__file__).parent / "text_splits.json"
SUMS = Path(__file__).parent / "text_sums.txt"
ABOUT = "ABOUT.txt"
Pair = tuple[str, str, str]  # English, Korean, where from


@dataclasses.dataclass(frozen=True)
class TextSet:
    """A set of sentence pairs.

    Attributes:
        addresses: {name: address} of the public files that it is made from.
        make: from {name: path} of those to {name: content} of what is written.
        written: names of what is written.
        about: source, licence and attribution.
        source: options of a config that reads it; DIR stands for the folder.
    """

    addresses: Mapping[str, str]
    make: Callable[[Mapping[str, Path]], dict[str, bytes]]
    written: Sequence[str]
    about: str
    source: str


def find_checksum(name: str, file: str) -> str | None:
    """The sha256 of a file of a set that is known, of a public one or one that is written; None for others."""
    lines = (line.split() for line in SUMS.read_text(encoding="utf-8").splitlines() if not line.startswith("#"))
    return {path: found for found, path in lines}.get(f"{name}/{file}")


def prepare_text_set(name: str, data_dir: str, manual_dir: str | None = None) -> Path:
    """Writes a set of `SETS` into `data_dir` and returns that folder.

    Args:
        name: of the set.
        data_dir: made when missing; what is fetched stays in its folder "downloads".
        manual_dir: a folder with files fetched by hand, by default downloads/manual in `data_dir`; a file that is there is
            not fetched. Checksums hold for both.

    Raises:
        UserError: the set is there already, a file cannot be fetched, a checksum is another.
    """
    made, folder = SETS[name], Path(data_dir).expanduser().absolute()
    manual = Path(manual_dir).expanduser().absolute() if manual_dir else folder / "downloads" / "manual"
    if manual_dir and not manual.is_dir():
        raise UserError(f"--manual_dir={manual_dir}: there is no such folder.")
    for there in (*made.written, ABOUT):
        if (folder / there).exists():
            raise UserError(f"{folder / there} is there already: remove it to prepare {name} again, or give another folder.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        paths = {file: _path(file, address, folder / "downloads", manual) for file, address in made.addresses.items()}
        sums = {file: _checked(path, find_checksum(name, file), made.addresses[file]) for file, path in paths.items()}
        contents = made.make(paths)
        for other, content in contents.items():
            _write(folder / other, content)
        _write(folder / ABOUT, _about(name, made, sums, contents).encode())
    except (OSError, EOFError, tarfile.TarError) as error:
        raise UserError(f"{name} could not be prepared in {folder} ({one_sentence(error)}).") from error
    return folder


def _path(name: str, address: str, downloads: Path, manual: Path) -> Path:
    """The path of a file at hand, fetched before or fetched now."""
    for folder in (manual, downloads):
        if (folder / name).is_file():
            return folder / name
    downloads.mkdir(exist_ok=True)
    partial = downloads / f"{name}.partial"
    logger.info("fetching %s", address)
    try:
        with urllib.request.urlopen(address, timeout=60) as answer, partial.open("wb") as target:
            shutil.copyfileobj(answer, target)
            promised = answer.headers.get("Content-Length")
        if promised and partial.stat().st_size != int(promised):
            raise OSError(f"{partial.stat().st_size} of {promised} bytes came")
    except (OSError, http.client.HTTPException, ValueError) as error:
        partial.unlink(missing_ok=True)
        raise UserError(
            f"{address} cannot be fetched ({one_sentence(error)}): fetch it by hand, and put it as {name} into {manual}, or "
            "give its folder as --manual_dir=DIR."
        ) from error
    return partial.rename(downloads / name)


def _checked(path: Path, known: str | None, address: str) -> str:
    """The sha256 of a file. Raises UserError when it is known and another."""
    with path.open("rb") as opened:
        found = hashlib.file_digest(opened, "sha256").hexdigest()
    if known is None:
        logger.warning("%s has sha256 %s; the right one is unknown, so it is not verified.", path, found)
    elif found != known:
        raise UserError(
            f"{path} has sha256 {found}, not {known}: it is not the file of {address}; remove it, or put that one in its place."
        )
    return found


def _about(name: str, made: TextSet, sums: Mapping[str, str], contents: Mapping[str, bytes]) -> str:
    """What lies beside the files: where they come from, who made them, whether they are the known ones."""
    lines = [f"{name}, written by python -m attention_jax prepare {name}", "", made.about, ""]
    for file, address in made.addresses.items():
        verified = "verified" if find_checksum(name, file) else "unknown, not verified"
        lines += [f"from {address}", f"  sha256 {sums[file]} ({verified})"]
    for file, content in contents.items():
        known = None if file in made.addresses else find_checksum(name, file)
        same = hashlib.sha256(content).hexdigest() == known
        if known and not same:
            logger.warning("%s is not the one that this repository's results were made with.", file)
        if known:
            lines.append(f"{file} is {'' if same else 'not '}the one that this repository's results were made with.")
    return "\n".join(lines) + "\n"


def _write(path: Path, content: bytes) -> None:
    partial = path.with_name(f"{path.name}.partial")
    partial.write_bytes(content)
    partial.rename(path)


# Multi30k


def _unpacked(paths: Mapping[str, Path]) -> dict[str, bytes]:
    """Each file as it is, `.gz` unpacked."""
    contents = {name: path.read_bytes() for name, path in paths.items()}
    return {
        name.removesuffix(".gz"): gzip.decompress(content) if name.endswith(".gz") else content
        for name, content in contents.items()
    }


def _aligned(address: str, ending: str, splits: str, about: str) -> TextSet:
    """English and German files, line by line."""
    names = [f"{split}.{side}" for split in splits.split() for side in ("en", "de")]
    source = "--config.data.source=files --config.data.args.source='DIR/{split}.en' --config.data.args.target='DIR/{split}.de'"
    return TextSet({f"{name}{ending}": f"{address}/{name}{ending}" for name in names}, _unpacked, names, about, source)


# Tatoeba


def _tatoeba(paths: Mapping[str, Path]) -> dict[str, bytes]:
    """Lines of English, Korean and attribution, by line number; an English sentence is in one split alone."""
    split_of = {number: split for split, numbers in _split("tatoeba_ko_en").items() for number in numbers}
    parts: dict[str, list[bytes]] = {f"{split}.tsv": [] for split in ("train", "dev", "test")}
    for number, line in enumerate(paths["kor.txt"].read_bytes().split(b"\n")[:-1], 1):
        parts[f"{split_of.get(number, 'train')}.tsv"].append(line + b"\n")
    return {name: b"".join(lines) for name, lines in parts.items()}


def _split(name: str) -> dict[str, list]:
    return json.loads(SPLITS.read_text(encoding="utf-8"))[name]


# tldr-pages

# The order in which platforms are read: of pairs that occur more than once the first is kept.
PLATFORMS = (
    *("cisco-ios", "sunos", "dos", "osx", "linux", "common"),
    *("netbsd", "freebsd", "android", "windows", "openbsd"),
)


def read_page(text: str) -> tuple[list[str], dict[tuple[str, int], str]]:
    """(sentences that describe a command, {(example, how many like it came before): what it does}).

    Placeholders {{...}} of examples are emptied, since they are translated too. The line with the address of more
    information is left out, and the colon after what an example does.
    """
    sentences, examples, does, counts = [], {}, None, Counter()
    for line in text.splitlines():
        line = line.strip()
        if line.startswith("> ") and not re.match(r"> (More information|더 많은 정보)", line):
            sentences.append(line[2:].strip())
        elif line.startswith("- "):
            does = line[2:].strip().removesuffix(":").rstrip()
        elif line.startswith("`") and does:
            example = re.sub(r"\{\{.*?\}\}", "{{}}", line)
            examples[example, counts[example]] = does
            counts[example] += 1
            does = None
    return sentences, examples


def align_pages(english: str, korean: str) -> Iterator[tuple[str, str]]:
    """Pairs of two pages about a command: sentences where both have as many, and what the same example does."""
    (one, examples), (other, examples_there) = read_page(english), read_page(korean)
    if len(one) == len(other):
        yield from zip(one, other)
    for example, does in examples.items():
        if example in examples_there:
            yield does, examples_there[example]


def _tldr(paths: Mapping[str, Path]) -> dict[str, bytes]:
    """Pages that both languages have, platform by platform; a pair is kept once, and dev and test have no English of train."""
    (path,) = paths.values()
    pages: dict[str, dict[str, str]] = {"pages": {}, "pages.ko": {}}
    with tarfile.open(path, "r:gz") as archive:
        for member in archive:
            parts = member.name.split("/")  # tldr-COMMIT/pages/linux/apt.md
            if member.isfile() and len(parts) == 4 and parts[1] in pages and parts[3].endswith(".md"):
                pages[parts[1]]["/".join(parts[2:])] = archive.extractfile(member).read().decode()
    pairs: dict[tuple[str, str], str] = {}
    for platform in PLATFORMS:
        for page in sorted(page for page in pages["pages.ko"] if page.startswith(f"{platform}/") and page in pages["pages"]):
            for pair in align_pages(pages["pages"][page], pages["pages.ko"][page]):
                pairs.setdefault(pair, page)
    split_of = {name: split for split, names in _split("tldr_ko_en").items() for name in names}
    splits: dict[str, list[Pair]] = {"train": [], "dev": [], "test": []}
    for (one, other), page in pairs.items():
        name = page.split("/")[1].removesuffix(".md").split("-")[0]  # git-add goes where git goes
        splits[split_of.get(name, "train")].append((one, other, page))
    seen = {one for one, _, _ in splits["train"]}
    return {
        f"{split}.tsv": "".join("\t".join(row) + "\n" for row in rows if split == "train" or row[0] not in seen).encode()
        for split, rows in splits.items()
    }


_MULTI30K = """\
Multi30k, task 1 (Elliott et al. 2016, Multi30K: Multilingual English-German Image Descriptions; Elliott et al. 2017).
Its captions are derived from Flickr30K, for research and education that is not commercial; see the README of
https://github.com/multi30k/dataset."""
_GITHUB = "https://raw.githubusercontent.com"
_TSV = "--config.data.source=tsv --config.data.args.path='DIR/{split}.tsv'"
_TLDR = "08e345f42639f67d99282813247ac670dc6e87cb"

SETS = {
    "multi30k": _aligned(
        f"{_GITHUB}/multi30k/dataset/a3d2e0d26b56f3846f66a952536ffed4e401d05a/data/task1/raw",
        ".gz",
        "train val test_2016_flickr test_2017_flickr test_2017_mscoco test_2018_flickr",
        _MULTI30K,
    ),
    "multi30k_bpe": _aligned(
        f"{_GITHUB}/LividWo/Revisit-MMT/dc368d0af8d60270b8f4aaa2f3ac58771c551da3/data/multi30k-en-de",
        "",
        "train valid test.2016 test.2017 test.coco",
        f"{_MULTI30K}\nLower-cased and in byte pairs by Wu et al. 2021 (arXiv 2105.14462), whose repository states no licence.",
    ),
    "tatoeba_ko_en": TextSet(
        addresses={
            "kor.txt": f"{_GITHUB}/r0cd7b/nlp_with_rnns_and_attention/875d03899a2c217633fa28e8917a8b26382c5269/kor-eng/kor.txt"
        },
        make=_tatoeba,
        written=("train.tsv", "dev.tsv", "test.tsv"),
        about="Sentences of https://tatoeba.org as https://www.manythings.org/anki had them on 2023-02-20, English to Korean.\n"
        "Creative Commons Attribution 2.0 France; the third column is the attribution of each pair: keep it.",
        source=_TSV,
    ),
    "tldr_ko_en": TextSet(
        addresses={f"tldr-{_TLDR}.tar.gz": f"https://codeload.github.com/tldr-pages/tldr/tar.gz/{_TLDR}"},
        make=_tldr,
        written=("train.tsv", "dev.tsv", "test.tsv"),
        about="Descriptions of commands and of examples from https://github.com/tldr-pages/tldr, English to Korean.\n"
        "Copyright 2014-present the tldr-pages team and contributors, Creative Commons Attribution 4.0 International.\n"
        "Changed: cut into pairs, aligned by example; the third column is the page.",
        source=_TSV,
    ),
}
