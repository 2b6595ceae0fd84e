"""docs/clusters.md: every command in it exists, as far as that can be known without running it."""

import re
import shlex
import shutil
import subprocess
import tomllib
from collections.abc import Sequence

import pytest

from attention_jax.cli import main as cli
from attention_jax.config import load_config
from attention_jax.launch import local, slurm, tpu
from attention_jax.preflight.chips import find_slice
from tests.conftest import ROOT

PAGE = (ROOT / "docs" / "clusters.md").read_text()
FENCED = re.findall(r"^```\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
LINES = [line for block in FENCED for line in block.splitlines()] + re.findall(
    r"`([^`\n]+)`", re.sub(r"```.*?```", "", PAGE, flags=re.S)
)
TOOLS = ("gcloud", "kubectl", "git", "docker", "ssh-add", "scancel")

# What the text leaves out or to the reader, by the word that it then stands for.
STAND_FOR = {"NAME": "pod", "ZONE": "us-west4-a", "FILE": "configs/quickstart.py", "P": "2", "i": "0", "HOST:PORT": "n1:61441"}
TRAIN = ["--config=configs/quickstart.py", "--workdir=/shared/x"]


def commands(program: str) -> list[list[str]]:
    """The words of each command of a program, without what is set before it."""
    found = []
    for line in LINES:
        words = shlex.split(line, comments=True)
        while words and re.fullmatch(r"AJ_\w+=\S+", words[0]):
            words = words[1:]
        if words and words[0] == program and len(words) > 1:
            found.append(words[1:])
    return found


def completed(words: Sequence[str]) -> list[str]:
    """With names in place of the words that stand for them, and of "…" the options of a training or of a slice."""
    full: list[str] = []
    for word in words:
        name, equals, value = word.partition("=")
        if word == "…":
            full += TRAIN if full[-1] == "train" else []
        elif equals and value in STAND_FOR:
            full.append(f"{name}={STAND_FOR[value]}")
        else:
            full.append(STAND_FOR.get(word, word))
    return full


def check_library_command(words: Sequence[str]) -> None:
    """A verb of the library, with fields that its config has."""
    arguments, overrides = cli._split_overrides(list(words))
    options = cli._parser().parse_args(arguments)
    for file in (getattr(options, "config", None), getattr(options, "file", None)):
        assert file is None or (ROOT / file).exists(), file
    if getattr(options, "config", None):
        cli._apply_overrides(load_config(str(ROOT / options.config)), overrides)
    if hasattr(options, "topology"):
        find_slice(options.topology)


def test_commands_of_launch_sh(monkeypatch, capsys):
    monkeypatch.setattr(slurm, "_read_labels", lambda command: ["a row"])
    listed = re.findall(r"^  ([a-z]+)\b", subprocess.run([ROOT / "launch.sh"], capture_output=True, text=True).stdout, re.M)
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    seen = set()
    for words in commands("./launch.sh"):
        verb, *rest = completed(words)
        assert verb in listed, words
        seen.add(verb)
        after = rest[rest.index("--") + 1 :] if "--" in rest else []
        if after:
            check_library_command(after)
        if verb == "setup":
            assert set(rest) <= extras.keys()
        elif verb == "tpu":
            commit = ["--commit=HEAD"] if after else []
            assert tpu.main([*rest[:2], "--dry-run", *commit, *rest[2:]]) == 0
        elif verb == "slurm":
            assert slurm.main(["--dry-run", *rest]) == 0
        elif verb == "local":
            assert local._parse(rest)[1] == after
        else:
            check_library_command([verb, *rest])
    assert seen == {"train", "evaluate", "preflight", "prepare", "setup", "local", "slurm", "tpu"}
    assert "queued-resources create pod" in capsys.readouterr().out


GCLOUD = commands("gcloud")


def test_other_programs_are_those_that_one_would_have():
    begun = {words[0] for words in (shlex.split(line, comments=True) for block in FENCED for line in block.splitlines())}
    assert begun <= {"./launch.sh", *TOOLS}
    assert len(GCLOUD) == 7


@pytest.mark.parametrize("words", GCLOUD, ids=lambda words: "-".join(words[:4]))
def test_gcloud_knows_the_options(words):
    if not shutil.which("gcloud"):
        pytest.skip("gcloud is not installed here, whose help the options are compared with")
    verbs = [word for word in words if re.fullmatch(r"[a-z][a-z-]*", word)]
    for end in range(len(verbs), 1, -1):  # the last words may be arguments
        asked = subprocess.run(["gcloud", *verbs[:end], "--help"], capture_output=True, text=True, check=False)
        if asked.returncode == 0:
            break
    known = set(re.findall(r"--[a-z-]+", re.sub(r"\x1b\[[0-9;]*m|.\x08", "", asked.stdout)))
    assert {word.split("=")[0] for word in words if word.startswith("--")} <= known


def test_what_it_quotes_is_what_is_said():
    """Sentences and states in the first column of what one may see."""
    source = "".join(path.read_text() for path in (ROOT / "attention_jax").rglob("*.py"))
    for words in ("ended first, with exit code", "another run is going on this slice", "queues again and goes on from there"):
        assert words in PAGE and words in source
    for words in ("asking for it anew", "did not start within", "did not reach process 0", "workers answered; gcloud says"):
        assert words in PAGE and words in source
    for name in set(re.findall(r"AJ_[A-Z_]+", PAGE)):
        assert f'"{name}"' in source, name


def test_links_are_there():
    targets = [target for target in re.findall(r"\]\(([^)#]+)\)", PAGE) if "://" not in target]
    assert targets and all((ROOT / "docs" / target).exists() for target in targets)
    assert not re.search(r"/(home|root|Users|tmp|work)/", PAGE)
