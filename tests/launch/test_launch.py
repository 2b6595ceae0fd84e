"""launch.sh, with substitutes for Python, pip and uv that only write down how they were called."""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

TOOLS = """
bash basename cat chmod cksum dirname env find flock grep head mkdir mv paste readlink rm sed sleep sort tr
"""

# In place of an interpreter: answers the version check, makes an environment that holds a copy of itself, and writes
# every other call into $CALLS.
PYTHON = """#!/usr/bin/env bash
minor=12
if [[ "$1" == -c && "$2" =~ "(3, "([0-9]+) ]]; then exit $((minor < BASH_REMATCH[1])); fi
if [[ "$1" == --version ]]; then exit 0; fi
echo "${0##*/} $*" >> "$CALLS"
case "$1 $2" in
  "-m venv") mkdir -p "$3/bin" && cat "$0" > "$3/bin/python" && chmod +x "$3/bin/python" ;;
  "-m pip") sleep "${INSTALL_SECONDS:-0}"; exit "${INSTALL_EXIT:-0}" ;;
esac
"""
UV = """#!/usr/bin/env bash
echo "uv $*" >> "$CALLS"
case "$1" in
  venv)
    made="${@: -1}/bin/python"
    mkdir -p "${made%/*}" && cat "${0%/*}/python3.12" > "$made" && chmod +x "$made"
    ;;
esac
"""


class Checkout:
    """A copy of what launch.sh needs, in a folder with a space in its name, on a machine of substitutes."""

    def __init__(self, root: Path, folder: Path):
        self.path, self.bin, self.calls_file = folder / "a checkout", folder / "bin", folder / "calls"
        (self.path / ".ci").mkdir(parents=True)
        for name in ("launch.sh", "pyproject.toml", ".ci/constraints-py311.txt", ".ci/constraints-newest.txt"):
            shutil.copy(root / name, self.path / name)
        self.bin.mkdir()
        for tool in TOOLS.split():
            if found := shutil.which(tool):
                (self.bin / tool).symlink_to(found)
        self.program("python3.13", "#!/usr/bin/env bash\necho 'no such version is installed' >&2\nexit 127\n")
        self.program("python3.12", PYTHON)
        self.cwd = folder / "elsewhere"
        self.cwd.mkdir()
        self.env = {"PATH": str(self.bin), "HOME": str(folder), "CALLS": str(self.calls_file)}

    def program(self, name: str, text: str, folder: Path | None = None) -> None:
        path = (folder or self.bin) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)

    def start(self, *arguments: str, **env: str) -> subprocess.Popen:
        return subprocess.Popen(
            [str(self.path / "launch.sh"), *arguments],
            cwd=self.cwd,
            env={**self.env, **env},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def launch(self, *arguments: str, **env: str) -> tuple[int, str]:
        """(exit code, standard error)"""
        process = self.start(*arguments, **env)
        _, stderr = process.communicate(timeout=30)
        return process.returncode, stderr

    def calls(self) -> list[str]:
        """How the substitutes were called since the last time."""
        if not self.calls_file.exists():
            return []
        lines = self.calls_file.read_text().splitlines()
        self.calls_file.unlink()
        return lines


@pytest.fixture
def checkout(root, tmp_path) -> Checkout:
    return Checkout(root, tmp_path)


PIP = "python -m pip install --quiet --disable-pip-version-check --no-input -c .ci/constraints-newest.txt -e"
INSTALL = f"{PIP} .[fast-images,plot,text]"
TEST = ["python -m ruff check .", "python -m ruff format --check .", "python -m mypy"]
PYTEST = "python -m pytest -n auto --maxprocesses=4 --dist loadfile --no-loadscope-reorder"


def test_lists_its_commands(root):
    commands = "quickstart train evaluate translate table summary preflight prepare local tpu slurm notebook test setup"
    for arguments in ([], ["help"], ["--help"]):
        done = subprocess.run([root / "launch.sh", *arguments], capture_output=True, text=True, check=True)
        for command in commands.split():
            assert f"\n  {command}" in done.stdout


def test_unknown_command(root):
    done = subprocess.run([root / "launch.sh", "trian"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: launch.sh has no command 'trian': give one of quickstart, train,")
    assert done.stderr.count("\n") == 1


def test_first_start_installs_and_the_second_does_not(checkout):
    code, stderr = checkout.launch("train", "--config=my configs/x.py", "--workdir=runs/x")
    train = "python -m attention_jax train --config=my configs/x.py --workdir=runs/x"
    assert (code, checkout.calls()) == (0, [f"python3.12 -m venv {checkout.path}/.venv", INSTALL, train]), stderr

    code, stderr = checkout.launch("quickstart", "--workdir=runs/q")
    table = f"python -m attention_jax table {checkout.path}/experiments/quickstart.py --workdir=runs/q"
    assert (code, stderr, checkout.calls()) == (0, "", [table])

    code, stderr = checkout.launch("quickstart", "translation", "--workdir=runs/q")
    table = table.replace("quickstart.py", "quickstart_translation.py")
    assert (code, stderr, checkout.calls()) == (0, "", [table])


def test_with_uv(checkout):
    checkout.program("uv", UV)
    code, stderr = checkout.launch("setup", "gcs")
    venv = f"{checkout.path}/.venv"
    assert code == 0, stderr
    assert checkout.calls() == [
        f"uv venv --quiet --allow-existing --python {checkout.bin}/python3.12 {venv}",
        f"uv pip install --quiet --python {venv}/bin/python -c .ci/constraints-newest.txt -e .[fast-images,gcs,plot,text]",
    ]
    assert checkout.launch("setup") == (0, "")
    assert checkout.calls() == []


def test_extras_accumulate(checkout):
    checkout.launch("setup")
    checkout.calls()
    checkout.launch("setup", ATTENTION_JAX_EXTRAS="gcs, cuda")
    assert checkout.calls() == [f"{PIP} .[cuda,fast-images,gcs,plot,text]"]
    checkout.launch("test", "-k", "name")
    assert checkout.calls() == [f"{PIP} .[cuda,dev,fast-images,gcs,plot,text]", *TEST, f"{PYTEST} -m not peers -k name"]
    checkout.launch("test", "--peers", "-k", "name")
    assert checkout.calls() == [f"{PIP} .[cuda,dev,fast-images,gcs,peers,plot,text]", *TEST, f"{PYTEST} -k name"]
    checkout.launch("test", "--fast", "--peers")
    assert checkout.calls() == [*TEST, f"{PYTEST} -m not slow"]
    assert checkout.launch("setup", "gcs", "dev") == (0, "")
    assert checkout.calls() == []


def test_docs_are_built_or_served(checkout):
    assert checkout.launch("docs")[0] == 0
    assert checkout.calls() == [
        f"python3.12 -m venv {checkout.path}/.venv",
        f"{PIP} .[docs,fast-images,plot,text]",
        "python -m mkdocs build",
    ]
    assert checkout.launch("docs", "--serve", "-a", "localhost:8001") == (0, "")
    assert checkout.calls() == ["python -m mkdocs serve -a localhost:8001"]


def test_unknown_extra(checkout):
    code, stderr = checkout.launch("setup", "cdua")
    assert code == 2
    assert stderr.startswith(
        "error: there is no extra 'cdua': give some of text plot fast-images tpu cuda wandb trackio gcs prepare "
    )
    assert checkout.calls() == []


@pytest.mark.parametrize("name", ["pyproject.toml", ".ci/constraints-py311.txt", ".ci/constraints-newest.txt"])
def test_installs_again_when_the_requirements_change(checkout, name):
    checkout.launch("setup")
    checkout.calls()
    with (checkout.path / name).open("a") as file:
        file.write("# changed\n")
    checkout.launch("setup")
    assert checkout.calls() == [INSTALL]


def test_the_newest_python_has_an_environment_of_its_own(checkout):
    (checkout.bin / "python3.12").unlink()
    checkout.program("python3.11", PYTHON.replace("minor=12", "minor=11"))
    checkout.launch("setup")
    assert checkout.calls() == [f"python3.11 -m venv {checkout.path}/.venv", INSTALL.replace("newest", "py311")]
    code, stderr = checkout.launch("test", "--newest")
    assert code == 3 and stderr.startswith("error: --newest: no Python newer than 3.11 was found in PATH or among pyenv's")
    assert stderr.count("\n") == 1 and checkout.calls() == [] and not (checkout.path / ".venv-newest").exists()

    versions = Path(checkout.env["HOME"]) / ".pyenv/versions"
    for minor in (12, 14):
        checkout.program("python", PYTHON.replace("minor=12", f"minor={minor}"), versions / f"3.{minor}.1/bin")
    code, stderr = checkout.launch("test", "--newest", "-x")
    made = [f"python -m venv {checkout.path}/.venv-newest", f"{PIP} .[dev,fast-images,plot,text]"]
    assert (code, checkout.calls()) == (0, [*made, *TEST[:2], f"{PYTEST} -m not peers and not slow -x"]), stderr
    assert "minor=14" in (checkout.path / ".venv-newest/bin/python").read_text()
    for again in (["test", "--newest"], ["summary", "resnet20"]):  # neither environment is made again for the other
        assert checkout.launch(*again)[0] == 0 and not any("venv" in call or "pip" in call for call in checkout.calls())


def test_a_moved_checkout_is_made_anew(checkout):
    checkout.launch("setup")
    checkout.calls()
    checkout.path = checkout.path.rename(checkout.path.with_name("another place"))
    checkout.launch("setup")
    assert checkout.calls() == [f"python3.12 -m venv {checkout.path}/.venv", INSTALL]


def test_failed_installation_is_redone(checkout):
    code, stderr = checkout.launch("summary", "resnet20", INSTALL_EXIT="1")
    assert code == 2
    assert "error: the installation into" in stderr
    assert "python -m attention_jax summary resnet20" not in checkout.calls()
    code, _ = checkout.launch("summary", "resnet20")
    assert code == 0
    assert checkout.calls()[-2:] == [INSTALL, "python -m attention_jax summary resnet20"]


def wait_for(condition: Callable[[], object], what: str, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"waited in vain until {what}"
        time.sleep(0.05)


def calls_contain(checkout: Checkout, text: str) -> Callable[[], bool]:
    return lambda: checkout.calls_file.exists() and text in checkout.calls_file.read_text()


def test_killed_installation_is_redone(checkout):
    process = checkout.start("setup", INSTALL_SECONDS="20")
    wait_for(calls_contain(checkout, "-m pip"), "pip was called")
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    checkout.calls()
    left_over = checkout.path / ".venv" / "half a package"
    left_over.write_text("")
    code, stderr = checkout.launch("setup")
    assert (code, checkout.calls()) == (0, [f"python3.12 -m venv {checkout.path}/.venv", INSTALL]), stderr
    assert not left_over.exists()


@pytest.mark.skipif(shutil.which("flock") is None, reason="this system has no flock")
def test_two_launches_at_once_install_once(checkout):
    first = checkout.start("setup", INSTALL_SECONDS="1")
    wait_for(calls_contain(checkout, "-m pip"), "pip was called")
    code, stderr = checkout.launch("summary", "resnet20")
    first.communicate()
    assert (code, first.returncode) == (0, 0)
    assert "waiting for another launch.sh" in stderr
    assert [call for call in checkout.calls() if "pip" in call] == [INSTALL]


def test_an_environment_of_another_maker_is_left_alone(checkout):
    theirs = checkout.path / ".venv" / "bin" / "python"
    theirs.parent.mkdir(parents=True)
    theirs.write_text(PYTHON)
    theirs.chmod(0o755)
    code, stderr = checkout.launch("summary", "resnet20")
    assert code == 2
    assert "was not made by launch.sh" in stderr
    assert theirs.read_text() == PYTHON

    code, _ = checkout.launch("summary", "resnet20", ATTENTION_JAX_PYTHON=str(theirs))
    assert (code, checkout.calls()) == (0, ["python -m attention_jax summary resnet20"])


def test_no_python(checkout):
    (checkout.bin / "python3.12").unlink()
    code, stderr = checkout.launch("summary", "resnet20")
    assert code == 2
    assert stderr.startswith("error: Python 3.11 or newer")
    code, stderr = checkout.launch("summary", "resnet20", ATTENTION_JAX_PYTHON="/nowhere/python")
    assert code == 2
    assert stderr == "error: ATTENTION_JAX_PYTHON=/nowhere/python: this is no program that can be run.\n"


def test_compiled_programs_are_kept(checkout):
    printed = 'echo "$JAX_COMPILATION_CACHE_DIR"'
    own = checkout.bin / "python-that-tells"
    checkout.program(own.name, f"#!/usr/bin/env bash\n{printed}\n")
    for given, expected in (
        ({}, f"{checkout.env['HOME']}/.cache/attention_jax/xla\n"),
        ({"XDG_CACHE_HOME": f"{checkout.cwd}/x"}, f"{checkout.cwd}/x/attention_jax/xla\n"),
        ({"JAX_COMPILATION_CACHE_DIR": "/mine"}, "/mine\n"),
        ({"XDG_CACHE_HOME": "/dev/null"}, "\n"),  # cannot be made: none, and no complaint
        ({"HOME": ""}, "\n"),  # no folder that others could prepare
    ):
        process = checkout.start("summary", ATTENTION_JAX_PYTHON=str(own), **given)
        assert process.communicate() == (expected, "")
