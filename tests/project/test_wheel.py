"""The wheel works without the checkout."""

import email
import importlib.metadata
import os
import platform
import zipfile

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from attention_jax import __version__


def test_holds_the_package_and_nothing_else(wheel, root):
    assert wheel.name == f"attention_jax-{__version__}-py3-none-any.whl"
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names} == {"attention_jax", f"attention_jax-{__version__}.dist-info"}
    data = ("digits.npz", "digits_test_indices.txt", "cldr_en_ko.tsv.xz", "everyday_en_ko.tsv")
    assert {f"attention_jax/data/{name}" for name in data} | {"attention_jax/py.typed"} <= set(names)
    assert any(name.endswith("/licenses/LICENSE") for name in names)
    for data in ("cldr_en_ko", "digits"):
        assert any(name.endswith(f"/licenses/attention_jax/data/{data}.LICENSE.txt") for name in names)
    ours = {str(path.relative_to(root)) for path in (root / "attention_jax").rglob("*.py")}
    assert ours <= set(names)


def test_installs_beside_what_is_here_and_changes_no_version(wheel):
    with zipfile.ZipFile(wheel) as archive:
        about = email.message_from_bytes(archive.read(f"attention_jax-{__version__}.dist-info/METADATA"))
    assert SpecifierSet(about["Requires-Python"]).contains(platform.python_version())
    here = 0
    for requirement in map(Requirement, about.get_all("Requires-Dist")):
        if not requirement.marker or any(requirement.marker.evaluate({"extra": e}) for e in ("text", "plot", "fast-images")):
            version = importlib.metadata.version(requirement.name)
            assert requirement.specifier.contains(version), f"{requirement}, but {version} is here"
            here += 1
    assert here >= 16


def test_runs_elsewhere(elsewhere, run_cli):
    folder, env = elsewhere
    done = run_cli("summary", "resnet20", "--image-size=32", cwd=folder, env=env)
    assert done.returncode == 0, done.stderr
    assert "269,722" in done.stdout, "parameters of the network"


def test_brings_the_digits(elsewhere, run_python):
    folder, env = elsewhere
    program = """
import attention_jax
from attention_jax.data.images.sources import open_source
print(attention_jax.__file__)
print(*[len(open_source("digits", split, {})) for split in ("train", "test")])
"""
    done = run_python("-c", program, cwd=folder, env=env)
    where, sizes = done.stdout.splitlines()
    assert where.startswith(env["PYTHONPATH"] + os.sep), "this is not the wheel's package"
    train, test = map(int, sizes.split())
    assert train + test == 1797


@pytest.mark.slow
def test_a_table_file_of_a_checkout_imports_its_studies(elsewhere, run_cli, root):
    folder, env = elsewhere
    done = run_cli("table", root / "experiments/complexity.py", "--dry-run", cwd=folder, env=env)
    assert done.returncode == 0, done.stderr
    assert "restricted self-attention: would be computed: lengths=(64, 128" in done.stdout


@pytest.mark.slow
def test_compares_blocks_of_files_and_of_packages(elsewhere, run_python):
    """In an empty folder, with a block in a file of another folder, and one of a package that is installed."""
    folder, env = elsewhere
    block = (
        "import flax.linen as nn\n\n\nclass {}(nn.Module):\n    def __call__(self, x):\n        {}return x * nn.sigmoid(x)\n"
    )
    for place, name, more in (
        ("blocks", "InAFile", 'self.sow("attention", "m", x)\n        '),
        ("site/package", "Installed", ""),
    ):
        (folder / place).mkdir(parents=True)
        (folder / place / "theirs.py").write_text(block.format(name, more))
    (folder / "site" / "package" / "__init__.py").write_text("")
    (folder / "empty").mkdir()
    site = {**env, "PYTHONPATH": os.pathsep.join([env["PYTHONPATH"], str(folder / "site")])}
    words = ["--gate=../blocks/theirs.py:InAFile", "--gate=package.theirs:Installed", "--rows=none,InAFile,Installed"]
    pages = []
    for _ in range(2):  # the second call trains nothing and gives the same page
        done = run_python("-m", "attention_jax", "compare", *words, "--scale=smoke", cwd=folder / "empty", env=site)
        assert done.returncode == 0, done.stderr
        (path,) = (folder / "empty" / "runs").glob("*/compare-*-smoke.html")
        pages.append(path.read_text())
    text = path.with_suffix(".md").read_text()
    title, verdict, *_ = text.split("\n\n")
    assert title == "# InAFile and Installed beside none, controls and published blocks: cued_digits"
    assert verdict.startswith("InAFile: not judged against the network without it (none) (one seed: ")
    assert "Installed: not judged" in verdict and pages[0] == pages[1]
    assert "python -m attention_jax compare --gate=../blocks/theirs.py:InAFile" in text and "--scale=long" in text
    assert path.with_name(f"{path.stem}_maps.png").exists() and not [
        name for name in os.listdir(folder / "empty") if name != "runs"
    ]
    assert "a training step" in text and 'src="compare' not in pages[0]
