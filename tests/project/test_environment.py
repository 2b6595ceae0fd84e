"""docs/environment.md lists the environment variables that the code reads or sets, and no others."""

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
OURS = re.compile(r"\b(?:AJ|ATTENTION_JAX)_[A-Z]+(?:_[A-Z]+)*\b")
SHELL = re.compile(r"\$\{\{?([A-Z][A-Z_]+)(?=[:+-])|\b(SLURM_[A-Z_]+)\b|\bexport ([A-Z_]+)=")
ENVIRONMENT = re.compile(r"(os\.)?environ|env|os")  # what the code calls a mapping of variables; `os` has getenv


def texts() -> dict[str, str]:
    """{path: content} of the tracked code; tests count only with our own names."""
    command = ["git", "ls-files", "attention_jax", "configs", "experiments", "tests", "docs", ".github", "launch.sh"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    kinds = (".py", ".sh", ".ipynb", ".yaml", ".yml")
    here = (path for path in listed if path.endswith(kinds) and path != "tests/project/test_environment.py")
    return {path: (ROOT / path).read_text(encoding="utf-8") for path in here if (ROOT / path).exists()}


def constants(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value


def python_variables(text: str) -> Iterator[str]:
    """Names with which a module indexes, asks or fills `os.environ` or a mapping `env`."""

    def is_environment(node: ast.AST) -> bool:
        return bool(ENVIRONMENT.fullmatch(ast.unparse(node)))

    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Subscript) and is_environment(node.value):
            yield from constants(node.slice)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and is_environment(node.func.value):
            if node.func.attr in ("get", "setdefault", "pop", "getenv") and node.args:
                yield from constants(node.args[0])
        elif isinstance(node, ast.Compare) and is_environment(node.comparators[0]):
            yield from constants(node.left)
        elif isinstance(node, ast.AugAssign) and is_environment(node.target) and isinstance(node.value, ast.Dict):
            yield from (name for key in node.value.keys if key for name in constants(key))
        elif isinstance(node, ast.Dict) and any(key is None and is_environment(v) for key, v in zip(node.keys, node.values)):
            yield from (name for key in node.keys if key for name in constants(key))


def used() -> dict[str, set[str]]:
    """{variable: files} of all that is read or set."""
    found: dict[str, set[str]] = {}
    for path, text in texts().items():
        names = set(OURS.findall(text))
        if not path.startswith("tests/"):
            if path.endswith(".py"):
                names |= set(python_variables(text))
            if path.endswith((".sh", "launch/slurm.py")):
                names |= {name for groups in SHELL.findall(text) for name in groups if name}
        for name in names:
            found.setdefault(name, set()).add(path)
    return found


def documented() -> list[str]:
    """Variables in the first column of the page's table."""
    rows = re.findall(r"^\| (`[A-Z][^|]*) \|", (ROOT / "docs/environment.md").read_text(encoding="utf-8"), re.MULTILINE)
    return [name for row in rows for name in re.findall(r"`([A-Z0-9_]+)\*?`", row)]


def test_every_variable_is_on_the_page():
    missing = {name: sorted(files) for name, files in used().items() if name not in documented()}
    assert not missing, f"add to docs/environment.md: {missing}"


def test_the_page_has_no_variable_that_nothing_uses_and_none_twice():
    everything = "\n".join(texts().values())
    unused = [name for name in documented() if not re.search(rf"\b{name}", everything)]
    assert not unused, f"remove from docs/environment.md: {unused}"
    assert len(set(documented())) == len(documented()) > 30
