"""Downloads public sets of sentence pairs, or takes files fetched by hand, checks them, and writes plain text.

`data.source=files` ({split}.en beside {split}.de) or `tsv` ({split}.tsv) read the result.
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

# Line numbers of kor.txt, from 1, and prefixes of tldr's page names for dev and test; all others are for training.
SPLITS = Path(__file__).parent / "text_splits.json"
SUMS = Path(__file__).parent / "text_sums.txt"
ABOUT = "ABOUT.txt"
_TSV = "--config.data.source=tsv --config.data.args.path='DIR/{split}.tsv'"


@dataclasses.dataclass(frozen=True)
class TextSet:
    """A set of sentence pairs, made from public files."""

    urls: Mapping[str, str]  # {name: URL} of these files
    make: Callable[[Mapping[str, Path]], dict[str, bytes]]  # {name: path} of these files -> {name: content} to write
    about: str  # source, licence and attribution
    written: Sequence[str] = ("train.tsv", "dev.tsv", "test.tsv")  # names of the files to write
    source: str = _TSV  # options of a config that reads it; DIR is replaced by the folder


def prepare_text_set(name: str, folder: Path, manual: Path) -> Path:
    """Writes a set of `SETS` into `folder`, with an account of its origin, and returns `folder`.

    Args:
        folder: made if missing; downloads stay in its folder "downloads".
        manual: folder with files fetched by hand; they are not downloaded.

    Raises UserError if the set exists already, a file is not available, or its checksum is wrong.
    """
    text_set = SETS[name]
    for file in (*text_set.written, ABOUT):
        if (folder / file).exists():
            raise UserError(f"{folder / file} exists already: remove it to prepare {name} again, or give another folder.")
    lines = (line.split() for line in SUMS.read_text(encoding="utf-8").splitlines() if not line.startswith("#"))
    known = {path.removeprefix(f"{name}/"): checksum for checksum, path in lines if path.startswith(f"{name}/")}
    about = [f"{name}, written by python -m attention_jax prepare {name}", "", text_set.about, ""]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        paths = {file: _fetch(file, url, folder / "downloads", manual) for file, url in text_set.urls.items()}
        for file, url in text_set.urls.items():
            verified = "verified" if file in known else "unknown, not verified"
            about += [f"from {url}", f"  sha256 {_check_sum(paths[file], known.get(file), url)} ({verified})"]
        contents = text_set.make(paths)
        for file, content in contents.items():
            if file in known and file not in text_set.urls:
                differs = hashlib.sha256(content).hexdigest() != known[file]
                about.append(f"{file} is {'not ' if differs else ''}the one that this repository's results were made with.")
                if differs:
                    logger.warning("%s", about[-1])
        for file, content in {**contents, ABOUT: "".join(f"{line}\n" for line in about).encode()}.items():
            partial = folder / f"{file}.partial"
            partial.write_bytes(content)
            partial.rename(folder / file)
    except (OSError, EOFError, tarfile.TarError) as error:
        raise UserError(f"{name} could not be prepared in {folder} ({one_sentence(error)}).") from error
    return folder


def _fetch(name: str, url: str, downloads: Path, manual: Path) -> Path:
    """Returns the path of a file: fetched by hand, downloaded before, or downloaded now."""
    for folder in (manual, downloads):
        if (folder / name).is_file():
            return folder / name
    downloads.mkdir(exist_ok=True)
    partial = downloads / f"{name}.partial"
    logger.info("fetching %s", url)
    try:
        with urllib.request.urlopen(url, timeout=60) as answer, partial.open("wb") as target:
            shutil.copyfileobj(answer, target)
            promised = answer.headers.get("Content-Length")
        if promised and partial.stat().st_size != int(promised):
            raise OSError(f"{partial.stat().st_size} of {promised} bytes came")
    except (OSError, http.client.HTTPException, ValueError) as error:
        partial.unlink(missing_ok=True)
        raise UserError(
            f"{url} cannot be fetched ({one_sentence(error)}): fetch it by hand, and put it as {name} into {manual}, or give "
            "its folder as --manual_dir=DIR."
        ) from error
    return partial.rename(downloads / name)


def _check_sum(path: Path, known: str | None, url: str) -> str:
    """Returns the sha256 of a file. Raises UserError if it is not the known one."""
    with path.open("rb") as opened:
        found = hashlib.file_digest(opened, "sha256").hexdigest()
    if known is None:
        logger.warning("%s has sha256 %s; the right one is unknown, so it is not verified.", path, found)
    elif found != known:
        raise UserError(f"{path} has sha256 {found}, not {known}: replace it with the file from {url}.")
    return found


def _unpack(paths: Mapping[str, Path]) -> dict[str, bytes]:
    """Returns each file's content, with `.gz` unpacked."""
    contents = ((name, path.read_bytes()) for name, path in paths.items())
    return {name.removesuffix(".gz"): gzip.decompress(file) if name.endswith(".gz") else file for name, file in contents}


def _multi30k(url: str, ending: str, splits: str, about: str) -> TextSet:
    """Returns English and German files with aligned lines."""
    names = [f"{split}.{side}" for split in splits.split() for side in ("en", "de")]
    source = "--config.data.source=files --config.data.args.source='DIR/{split}.en' --config.data.args.target='DIR/{split}.de'"
    return TextSet({f"{name}{ending}": f"{url}/{name}{ending}" for name in names}, _unpack, about, names, source)


def _tatoeba(paths: Mapping[str, Path]) -> dict[str, bytes]:
    """Returns lines of English, Korean and attribution, by line number; an English sentence is in one split only."""
    split_of = _split_of("tatoeba_ko_en")
    parts: dict[str, list[bytes]] = {f"{split}.tsv": [] for split in ("train", "dev", "test")}
    for number, line in enumerate(paths["kor.txt"].read_bytes().split(b"\n")[:-1], 1):
        parts[f"{split_of.get(number, 'train')}.tsv"].append(line + b"\n")
    return {name: b"".join(lines) for name, lines in parts.items()}


def _split_of(name: str) -> dict:
    """Returns a function of a line number or page name: "dev", "test" or "train"."""
    splits = json.loads(SPLITS.read_text(encoding="utf-8"))[name]
    return {item: split for split, items in splits.items() for item in items}


# Platforms in reading order: among equal pairs, the first is kept.
PLATFORMS = ["cisco-ios", "sunos", "dos", "osx", "linux", "common", "netbsd", "freebsd", "android", "windows", "openbsd"]


def read_page(text: str) -> tuple[list[str], dict[tuple[str, int], str]]:
    """Returns a page of tldr-pages: sentences that describe a command, and {(example, number of equal ones before):
    description}.

    Placeholders {{...}} in examples are emptied, since they are translated too. The line with the URL for more information,
    and the colon after a description, are left out.
    """
    sentences: list[str] = []
    examples: dict[tuple[str, int], str] = {}
    counts: Counter[str] = Counter()
    does = None
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
    """Yields the pairs of two pages about a command: sentences if their numbers agree, and descriptions of equal examples."""
    (one, examples), (other, examples_there) = read_page(english), read_page(korean)
    if len(one) == len(other):
        yield from zip(one, other)
    for example, does in examples.items():
        if example in examples_there:
            yield does, examples_there[example]


def _tldr(paths: Mapping[str, Path]) -> dict[str, bytes]:
    """Returns the pages in both languages, platform by platform; pairs are unique, and splits share no English."""
    (path,) = paths.values()
    pages: dict[str, dict[str, str]] = {"pages": {}, "pages.ko": {}}
    with tarfile.open(path, "r:gz") as archive:
        for member in archive:
            parts = member.name.split("/")  # tldr-COMMIT/pages/linux/apt.md
            is_page = len(parts) == 4 and parts[1] in pages and parts[3].endswith(".md")
            if is_page and (file := archive.extractfile(member)):
                pages[parts[1]]["/".join(parts[2:])] = file.read().decode()
    pairs: dict[tuple[str, str], str] = {}
    for platform in PLATFORMS:
        for page in sorted(page for page in pages["pages.ko"] if page.startswith(f"{platform}/") and page in pages["pages"]):
            for pair in align_pages(pages["pages"][page], pages["pages.ko"][page]):
                pairs.setdefault(pair, page)
    split_of = _split_of("tldr_ko_en")
    splits: dict[str, list[tuple[str, str, str]]] = {"train": [], "dev": [], "test": []}
    for (one, other), page in pairs.items():
        name = page.split("/")[1].removesuffix(".md").split("-")[0]  # git-add goes into the split of git
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
_TLDR = "08e345f42639f67d99282813247ac670dc6e87cb"

SETS = {
    "multi30k": _multi30k(
        f"{_GITHUB}/multi30k/dataset/a3d2e0d26b56f3846f66a952536ffed4e401d05a/data/task1/raw",
        ".gz",
        "train val test_2016_flickr test_2017_flickr test_2017_mscoco test_2018_flickr",
        _MULTI30K,
    ),
    "multi30k_bpe": _multi30k(
        f"{_GITHUB}/LividWo/Revisit-MMT/dc368d0af8d60270b8f4aaa2f3ac58771c551da3/data/multi30k-en-de",
        "",
        "train valid test.2016 test.2017 test.coco",
        f"{_MULTI30K}\nLower-cased and in byte pairs by Wu et al. 2021 (arXiv 2105.14462), whose repository states no licence.",
    ),
    "tatoeba_ko_en": TextSet(
        urls={
            "kor.txt": f"{_GITHUB}/r0cd7b/nlp_with_rnns_and_attention/875d03899a2c217633fa28e8917a8b26382c5269/kor-eng/kor.txt"
        },
        make=_tatoeba,
        about="Sentences of https://tatoeba.org as https://www.manythings.org/anki had them on 2023-02-20, English to Korean.\n"
        "Creative Commons Attribution 2.0 France; the third column is the attribution of each pair: keep it.",
    ),
    "tldr_ko_en": TextSet(
        urls={f"tldr-{_TLDR}.tar.gz": f"https://codeload.github.com/tldr-pages/tldr/tar.gz/{_TLDR}"},
        make=_tldr,
        about="Descriptions of commands and of examples from https://github.com/tldr-pages/tldr, English to Korean.\n"
        "Copyright 2014-present the tldr-pages team and contributors, Creative Commons Attribution 4.0 International.\n"
        "Changed: cut into pairs, aligned by example; the third column is the page.",
    ),
}
