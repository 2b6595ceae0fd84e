"""python -m attention_jax prepare for sentence pairs: small files behind file:// URLs replace the public ones."""

import dataclasses
import gzip
import hashlib
import http.server
import io
import json
import tarfile
import threading

import pytest

from attention_jax.cli import main as cli
from attention_jax.data.download import text_sets
from attention_jax.data.download.text_sets import align_pages
from attention_jax.data.text.pairs import read_files, read_tsv

CAPTIONS = {"train.en": "a dog .\na man .\n", "train.de": "ein Hund .\nein Mann .\n"}


def prepare(capsys, *arguments: object) -> tuple[int, str]:
    code = cli.main(["prepare", *map(str, arguments)])
    out, err = capsys.readouterr()
    assert "Traceback" not in err and (code == 2) == ("error: " in err)
    return code, out + err


def serve(monkeypatch, folder, name: str, contents: dict[str, bytes], sums: dict[str, str] | None = None):
    """A set whose files are those of a folder; returns the folder."""
    folder.mkdir()
    for file, content in contents.items():
        (folder / file).write_bytes(content)
    urls = {file: (folder / file).as_uri() for file in contents}
    own = text_sets.SETS[name]
    written = own.written if name != "multi30k" else list(CAPTIONS)
    monkeypatch.setitem(text_sets.SETS, name, dataclasses.replace(own, urls=urls, written=written))
    known = folder.with_name("sums")
    known.write_text("".join(f"{found}  {name}/{file}\n" for file, found in (sums or {}).items()))
    monkeypatch.setattr(text_sets, "SUMS", known)
    return folder


@pytest.fixture
def captions(monkeypatch, tmp_path):
    contents = {f"{name}.gz": gzip.compress(text.encode()) for name, text in CAPTIONS.items()}
    sums = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
    return serve(monkeypatch, tmp_path / "site", "multi30k", contents, sums)


def test_fetched_checked_and_read(capsys, captions, tmp_path):
    code, said = prepare(capsys, "multi30k", f"--data_dir={tmp_path}/data")
    assert code == 0 and f"{tmp_path}/data is ready: train with --config.data.source=files" in said and "{split}.de'" in said
    pairs = read_files("train", f"{tmp_path}/data/{{split}}.en", f"{tmp_path}/data/{{split}}.de")
    assert pairs == [("a dog .", "ein Hund ."), ("a man .", "ein Mann .")]
    about = (tmp_path / "data" / "ABOUT.txt").read_text()
    assert "not commercial" in about and about.count("(verified)") == 2 and (captions / "train.en.gz").as_uri() in about
    assert sorted(path.name for path in (tmp_path / "data" / "downloads").iterdir()) == ["train.de.gz", "train.en.gz"]
    code, said = prepare(capsys, "multi30k", f"--data_dir={tmp_path}/data")
    assert code == 2 and "data/train.en exists already: remove it to prepare multi30k again" in said


def test_files_at_hand_in_place_of_the_network(capsys, captions, tmp_path):
    mine = captions.rename(tmp_path / "mine")  # nothing is at the URLs any more
    code, said = prepare(capsys, "multi30k", f"--data_dir={tmp_path}/data")
    name = f"put it as train.en.gz into {tmp_path}/data/downloads/manual, or give its folder as --manual_dir=DIR."
    assert code == 2 and "site/train.en.gz cannot be fetched (" in said and name in said and said.count("error: ") == 1
    assert not list((tmp_path / "data" / "downloads").iterdir()), "no half a download"
    assert prepare(capsys, "multi30k", f"--data_dir={tmp_path}/data", f"--manual_dir={mine}")[0] == 0
    assert (tmp_path / "data" / "train.de").read_text() == CAPTIONS["train.de"]
    code, said = prepare(capsys, "multi30k", f"--data_dir={tmp_path}/other", "--manual_dir=nowhere")
    assert code == 2 and said == "error: --manual_dir=nowhere: there is no such folder.\n"


def test_another_file_of_the_same_name(capsys, captions, tmp_path):
    (captions / "train.de.gz").write_bytes(gzip.compress(b"something else\n"))
    code, said = prepare(capsys, "multi30k", f"--data_dir={tmp_path}/data")
    assert code == 2 and "data/downloads/train.de.gz has sha256 " in said and "replace it with the file from file://" in said
    assert not (tmp_path / "data" / "train.en").exists()


class Half(http.server.BaseHTTPRequestHandler):
    """A server that goes away in the middle of a file."""

    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", "100")
        self.end_headers()
        self.wfile.write(b"x" * 40)

    def log_message(self, *arguments):
        pass


def test_half_a_download(capsys, tmp_path, monkeypatch):
    with http.server.HTTPServer(("127.0.0.1", 0), Half) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/kor.txt"
        made = dataclasses.replace(text_sets.SETS["tatoeba_ko_en"], urls={"kor.txt": url})
        monkeypatch.setitem(text_sets.SETS, "tatoeba_ko_en", made)
        code, said = prepare(capsys, "tatoeba_ko_en", f"--data_dir={tmp_path}/data")
        server.shutdown()
    assert code == 2 and f"{url} cannot be fetched (40 of 100 bytes came): fetch it by hand" in said
    assert not list((tmp_path / "data" / "downloads").iterdir())


def test_half_an_archive(capsys, captions, tmp_path):
    (captions / "train.de.gz").write_bytes((captions / "train.de.gz").read_bytes()[:30])
    text_sets.SUMS.write_text("")
    code, said = prepare(capsys, "multi30k", f"--data_dir={tmp_path}/data")
    assert code == 2 and f"multi30k could not be prepared in {tmp_path}/data (" in said


def test_tatoeba_splits_by_line_and_says_what_it_cannot_know(capsys, caplog, tmp_path, monkeypatch):
    lines = [f"e{i}\tk{i}\tby {i}\u2028\n".encode() for i in range(1, 60)]
    splits = json.loads(text_sets.SPLITS.read_text())["tatoeba_ko_en"]
    dev = {i for i in splits["dev"] if i < 60}
    assert dev and not dev & set(splits["test"])
    sums = {"dev.tsv": hashlib.sha256(b"".join(lines[i - 1] for i in sorted(dev))).hexdigest(), "test.tsv": "0"}
    serve(monkeypatch, tmp_path / "site", "tatoeba_ko_en", {"kor.txt": b"".join(lines)}, sums)
    code, _ = prepare(capsys, "tatoeba_ko_en", f"--data_dir={tmp_path}/data")
    said = caplog.text
    digest = hashlib.sha256(b"".join(lines)).hexdigest()
    assert code == 0 and f"kor.txt has sha256 {digest}; the right one is unknown" in said
    assert "test.tsv is not the one that this repository's results were made with" in said and "dev.tsv is not" not in said
    about = (tmp_path / "data" / "ABOUT.txt").read_text()
    assert (
        f"sha256 {digest} (unknown, not verified)" in about and "\ndev.tsv is the one" in about and "Attribution 2.0" in about
    )
    assert (tmp_path / "data" / "dev.tsv").read_bytes() == b"".join(lines[i - 1] for i in sorted(dev))
    read = [pair for split in ("train", "dev", "test") for pair in read_tsv(split, f"{tmp_path}/data/{{split}}.tsv")]
    assert sorted(read) == sorted((f"e{i}", f"k{i}") for i in range(1, 60))


ENGLISH = """\
# tool

> Does things.
> See also: `other`.
> More information: <https://example.org>.

- Make a thing:

`tool {{path/to/file}}`

- Make another:

`tool {{path/to/other}}`

- Only in English:

`tool --new`

- Quit:

`tool {{[-q|--quit]}} {{now}}`
"""
KOREAN = """\
# tool

> 일을 합니다.
> 관련 항목: `other`.
> 더 많은 정보: <https://example.org>.

- 끝내기:

`tool {{[-q|--quit]}} {{지금}}`

- 하나 만들기:

`tool {{경로/대상/파일}}`

- 다른 것 만들기:

`tool {{경로/대상/다른_파일}}`
"""
PAIRS = [
    ("Does things.", "일을 합니다."),
    ("See also: `other`.", "관련 항목: `other`."),
    ("Make a thing", "하나 만들기"),
    ("Make another", "다른 것 만들기"),
    ("Quit", "끝내기"),
]


def test_pages_are_aligned_by_their_examples():
    assert list(align_pages(ENGLISH, KOREAN)) == PAIRS
    longer = KOREAN.replace("> 관련 항목: `other`.\n", "")  # sentences of which one page has more are not guessed at
    assert list(align_pages(ENGLISH, longer)) == PAIRS[2:]


def test_tldr_keeps_a_pair_once_and_splits_by_command(capsys, tmp_path, monkeypatch):
    name = json.loads(text_sets.SPLITS.read_text())["tldr_ko_en"]["dev"][0]
    pages = {"common/tool": "Make", "linux/tool-add": "Add", f"osx/{name}": "Quit", f"windows/{name}-x": "Make"}
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for page, does in pages.items():
            korean = f"{does} {page.split('/')[0]}"
            for folder, text in (("pages", f"> {does}\n- Common:\n`x`\n"), ("pages.ko", f"> {korean}\n- 공통:\n`x`\n")):
                member = tarfile.TarInfo(f"tldr-1/{folder}/{page}.md")
                member.size = len(text.encode())
                archive.addfile(member, io.BytesIO(text.encode()))
    (archive_name,) = text_sets.SETS["tldr_ko_en"].urls
    serve(monkeypatch, tmp_path / "site", "tldr_ko_en", {archive_name: packed.getvalue()})
    code, said = prepare(capsys, "tldr_ko_en", f"--data_dir={tmp_path}/data")
    assert code == 0 and "is ready: train with --config.data.source=tsv" in said
    read = {split: (tmp_path / "data" / f"{split}.tsv").read_text().splitlines() for split in ("train", "dev", "test")}
    assert read == {
        # "Common" is first met in dev's page of osx, and windows has another "Make", whose English is in train.
        "train": ["Add\tAdd linux\tlinux/tool-add.md", "Make\tMake common\tcommon/tool.md"],
        "dev": [f"Quit\tQuit osx\tosx/{name}.md", f"Common\t공통\tosx/{name}.md"],
        "test": [],
    }


def test_what_the_help_names_is_there(capsys):
    with pytest.raises(SystemExit):
        cli.main(["prepare", "--help"])
    said = capsys.readouterr().out
    assert all(name in said for name in text_sets.SETS)
