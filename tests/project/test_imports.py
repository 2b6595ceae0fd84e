"""Imports point down, and what is heavy loads when it is used."""

import ast
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "attention_jax"

# Part -> the other parts that it may import. A part that is not listed may not be there.
GROUND = {"errors", "tree", "config", "recipes", "storage"}
BUILDING = GROUND | {"kernels", "nn", "models", "data", "optim", "distributed", "search"}
TRAINING = BUILDING | {"tasks", "train", "interop"}
ALLOWED = {
    "errors": set(),
    "recipes": {"errors"},
    "tree": {"errors"},
    "config": {"errors", "tree", "recipes"},
    "storage": {"errors"},
    "launch": {"errors"},
    "kernels": GROUND,
    "nn": GROUND | {"kernels"},
    "models": GROUND | {"kernels", "nn"},
    "data": GROUND,
    "optim": GROUND | {"kernels"},
    "distributed": GROUND,
    "search": GROUND,
    "tasks": BUILDING,
    "train": BUILDING | {"tasks", "interop"},
    "load": TRAINING,
    "analysis": TRAINING | {"load"},
    "interop": BUILDING,
    "preflight": TRAINING | {"load"},
    "tables": TRAINING | {"load", "analysis", "preflight"},
    "cli": TRAINING | {"load", "analysis", "interop", "preflight", "tables"},
    "__init__": {"errors", "models", "data", "load", "analysis", "interop", "tables"},  # all of them lazily
    "__main__": {"cli"},
}
# Modules of a part that lies above it.
ABOVE = {f"interop/{name}.py": TRAINING | {"load"} for name in ("export", "model_card", "marian_run", "pretrained")}
THIRD_PARTY_OF_GROUND = {"recipes.py": {"ml_collections"}, "errors.py": set(), "config/plugins.py": set()}


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of every import in a file, at its top or inside functions."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import"
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def part(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


FILES = sorted(PACKAGE.rglob("*.py"))


def test_every_part_has_its_place():
    assert {part(path) for path in FILES} <= ALLOWED.keys()


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_down(path):
    here = part(path)
    allowed = ABOVE.get(str(path.relative_to(PACKAGE)), ALLOWED[here])
    for line, name in imports(path):
        root, *below = name.split(".")
        where = f"{path.relative_to(ROOT)}:{line}: {name}"
        assert root not in ("configs", "experiments", "tests"), f"{where}: not part of the library"
        assert not name.startswith("absl.flags"), f"{where}: flags belong to programs"
        if root == "attention_jax" and below and below[0] not in (here, "__version__"):
            assert below[0] in allowed, f"{where}: {here} may import {sorted(allowed)}"


@pytest.mark.parametrize(("name", "allowed"), THIRD_PARTY_OF_GROUND.items())
def test_ground_floor_is_light(name, allowed):
    roots = {module.split(".")[0] for _, module in imports(PACKAGE / name)}
    assert roots - set(sys.stdlib_module_names) - {"attention_jax"} <= allowed


STANDALONE = [PACKAGE / "__init__.py", PACKAGE / "errors.py", *sorted((PACKAGE / "launch").glob("*.py"))]


def test_launchers_need_the_standard_library_alone():
    """Also the two modules that a launcher loads beside its own."""
    for path in STANDALONE:
        roots = {name.split(".")[0] for _, name in imports(path)}
        assert roots <= set(sys.stdlib_module_names) | {"attention_jax"}, path
    worker = {name.split(".")[0] for _, name in imports(PACKAGE / "launch" / "worker.py")}
    assert "attention_jax" not in worker, "worker.py is sent alone"


def test_launchers_run_on_python_3_9(run_python):
    """Syntax and annotations that Python 3.9 reads, as ruff knows them."""
    options = ("check", "--isolated", "--no-cache", "--select=FA102", "--target-version=py39")
    done = run_python("-m", "ruff", *options, *STANDALONE)
    assert done.returncode == 0, done.stdout + done.stderr


SLOW = ["grain", "matplotlib", "orbax", "tensorboardX", "tensorflow", "tensorflow_datasets", "torch"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "unwanted"),
    [
        ("attention_jax", [*SLOW, "jax", "flax", "optax", "numpy"]),
        ("attention_jax.cli.main", [*SLOW, "jax", "flax", "optax"]),
        ("attention_jax.launch.local", [*SLOW, "jax", "flax", "optax"]),
        ("attention_jax.recipes", [*SLOW, "jax", "flax", "optax"]),
        ("attention_jax.config", SLOW),
        ("attention_jax.models", [*SLOW, "optax"]),
    ],
)
def test_heavy_packages_load_when_they_are_used(run_python, module, unwanted):
    done = run_python("-c", f"import {module}, json, sys; print(json.dumps(sorted(sys.modules)))")
    assert done.returncode == 0, done.stderr
    assert not set(unwanted) & {name.split(".")[0] for name in json.loads(done.stdout)}


@pytest.mark.slow
def test_public_names_are_found(run_python):
    done = run_python("-c", "import attention_jax as aj; print([name for name in aj.__all__ if not hasattr(aj, name)])")
    assert done.stdout == "[]\n", done.stderr
