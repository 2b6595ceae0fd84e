"""Files, functions and the library stay small."""

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LIBRARY = [path for path in (ROOT / "attention_jax").rglob("*") if path.suffix in (".py", ".cc", ".h")]
STUDIES = [*(ROOT / "experiments" / "studies").glob("*.py")]
FOLDERS = ("attention_jax", "configs", "experiments", "tests")
FILES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*") if path.suffix in (".py", ".cc", ".h"))
LINES_OF_LIBRARY = 31_850  # in the wheel: 1,900 each for weights and comparing blocks, 4,000 for pods, scores and runs
LINES_OF_STUDIES = 2_700
LINES_OF_FILE = 400
LINES_OF_FUNCTION = 80


def lines(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


def test_the_library_is_small():
    assert sum(map(lines, LIBRARY)) < LINES_OF_LIBRARY
    assert sum(map(lines, STUDIES)) < LINES_OF_STUDIES


def test_no_file_is_long():
    long = {str(path.relative_to(ROOT)): lines(path) for path in FILES if lines(path) > LINES_OF_FILE}
    assert not long, f"more than {LINES_OF_FILE} lines: {long}"


def test_no_function_is_long():
    long = {}
    for path in FILES:
        if path.suffix == ".py":
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.FunctionDef) and node.end_lineno - node.lineno + 1 > LINES_OF_FUNCTION:
                    long[f"{path.relative_to(ROOT)}:{node.name}"] = node.end_lineno - node.lineno + 1
    assert not long, f"more than {LINES_OF_FUNCTION} lines: {long}"
