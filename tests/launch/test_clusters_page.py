"""docs/clusters.md: every command in it exists, as far as that can be known without running it."""

import re
import shlex
import shutil
import subprocess
import tomllib
from collections.abc import Sequence

import pytest

from attention_jax.launch import gke, local, slurm, tpu
from tests.conftest import ROOT
from tests.helpers.pages import check_library_command, read_blocks, read_inline_code

FILE = ROOT / "docs" / "clusters.md"
PAGE = FILE.read_text()
FENCED = [line for block in read_blocks(FILE) for line in block.text.splitlines()]
TOOLS = ("gcloud", "kubectl", "git", "docker", "ssh-add", "scancel")

# Examples for the words that the page leaves to the reader.
EXAMPLES = {"NAME": "pod", "ZONE": "us-west4-a", "FILE": "configs/quickstart.py", "P": "2", "i": "0", "HOST:PORT": "n1:61441"}
TRAIN = ["--config=configs/quickstart.py", "--workdir=/shared/x"]


def commands(program: str) -> list[list[str]]:
    """The words of each command of a program, without the variables before it."""
    found = []
    for line in [*FENCED, *read_inline_code(FILE)]:
        words = shlex.split(line, comments=True)
        while words and re.fullmatch(r"AJ_\w+=\S+", words[0]):
            words = words[1:]
        if words and words[0] == program and len(words) > 1:
            found.append(words[1:])
    return found


def completed(words: Sequence[str]) -> list[str]:
    """The words with examples filled in; "…" after `train` becomes the options of a training."""
    full: list[str] = []
    for word in words:
        name, equals, value = word.partition("=")
        if word == "…":
            full += TRAIN if full[-1] == "train" else []
        elif equals and value in EXAMPLES:
            full.append(f"{name}={EXAMPLES[value]}")
        else:
            full.append(EXAMPLES.get(word, word))
    return full


def test_commands_of_launch_sh(monkeypatch, capsys):
    monkeypatch.setattr(slurm, "_read_labels", lambda command: ["a row"])
    listed = re.findall(r"^  ([a-z]+)\b", subprocess.run([ROOT / "launch.sh"], capture_output=True, text=True).stdout, re.M)
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    seen = set()
    for words in commands("./launch.sh"):
        command, *rest = completed(words)
        assert command in listed, words
        seen.add(command)
        after = rest[rest.index("--") + 1 :] if "--" in rest else []
        if after:
            check_library_command(after)
        if command == "setup":
            assert set(rest) <= extras.keys()
        elif command == "tpu":
            commit = ["--commit=HEAD"] if after else []
            assert tpu.main([*rest[:2], "--dry-run", *commit, *rest[2:]]) == 0
        elif command == "slurm":
            assert slurm.main(["--dry-run", *rest]) == 0
        elif command == "gke":
            assert gke.main(["--dry-run", *rest]) == 0 if after else (ROOT / rest[0]).exists()
        elif command == "local":
            assert local._parse(rest)[1] == after
        else:
            check_library_command([command, *rest])
    assert seen == {"train", "evaluate", "preflight", "prepare", "setup", "local", "slurm", "tpu", "gke", "config"}
    assert "queued-resources create pod" in capsys.readouterr().out


GCLOUD = commands("gcloud")


def test_other_programs_are_known():
    begun = {shlex.split(line, comments=True)[0] for line in FENCED}
    assert begun <= {"./launch.sh", *TOOLS}
    assert len(GCLOUD) == 7


@pytest.mark.slow
@pytest.mark.parametrize("words", GCLOUD, ids=lambda words: "-".join(words[:4]))
def test_gcloud_knows_the_options(words):
    if not shutil.which("gcloud"):
        pytest.skip("gcloud, whose help has the options, is not installed here")
    groups = [word for word in words if re.fullmatch(r"[a-z][a-z-]*", word)]
    for end in range(len(groups), 1, -1):  # the last words may be arguments
        printed = subprocess.run(["gcloud", *groups[:end], "--help"], capture_output=True, text=True, check=False)
        if printed.returncode == 0:
            break
    known = set(re.findall(r"--[a-z-]+", re.sub(r"\x1b\[[0-9;]*m|.\x08", "", printed.stdout)))
    assert {word.split("=")[0] for word in words if word.startswith("--")} <= known


def test_messages_that_it_quotes_are_those_of_the_code():
    """Sentences and states in the first column of the last table."""
    source = "".join(path.read_text() for path in (ROOT / "attention_jax").rglob("*.py"))
    for words in ("ended first, with exit code", "another run is going on this slice", "queues again and goes on from there"):
        assert words in PAGE and words in source
    for words in ("it is lost", "has vanished: its host was restarted", "trying again in", "cannot be read from here"):
        assert words in PAGE and words in source
    for words in ("asking for it anew", "did not start within", "did not reach process 0", "workers answered; gcloud says"):
        assert words in PAGE and words in source
    for name in set(re.findall(r"AJ_[A-Z_]+", PAGE)):
        assert f'"{name}"' in source, name
