"""What a user names is loaded without a change to the process, with its neighbours, and two versions of it side by side."""

import os
import sys
from pathlib import Path

import pytest

import attention_jax as aj
from attention_jax.config import plugins
from attention_jax.config.plugins import SavedCode, load_file, load_object


def write(folder: Path, **files: str) -> Path:
    """Writes files; `__` in a name without a slash stands for one."""
    for name, text in files.items():
        path = folder / f"{name if '/' in name else name.replace('__', '/')}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


@pytest.fixture
def elsewhere(tmp_path, monkeypatch) -> Path:
    """A folder of files; the process works in another one."""
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    return tmp_path / "files"


def test_neighbours_are_imported_while_a_file_runs_and_later(elsewhere):
    write(
        elsewhere,
        mine="import neighbour\nimport parts.one as one\nfrom parts import two\ndef f():\n    import late\n    return late.y",
        neighbour="import os\nfrom parts.one import x\n",
        parts__one="x = 1",
        parts__two="from . import one\nfrom .one import x\nimport neighbour\nassert neighbour.x == x == one.x",
        late="import parts.one\ny = parts.one.x",
    )
    before = list(sys.path), list(sys.meta_path), os.getcwd(), set(sys.modules)
    module = load_file(elsewhere / "mine.py")
    assert module.f() == module.one.x == module.two.x == 1 and module.neighbour.os is os
    assert before[:3] == (sys.path, sys.meta_path, os.getcwd())
    assert not {"neighbour", "parts", "late"} & set(sys.modules), "their plain names stay free"
    assert load_file(elsewhere / "mine.py") is module, "an object keeps its identity"
    with pytest.raises(ModuleNotFoundError, match="neighbour"):
        import neighbour  # noqa: F401


def test_files_of_experiments_import_what_is_beside_their_folder(elsewhere):
    write(elsewhere, studies__table="from studies.help import x\ntitle = x", studies__help="x = 'found'")
    assert load_file(elsewhere / "studies" / "table.py").title == "found"
    assert load_object("studies.help:x", {}, "measure") == "found", "a table names it by its dotted path"


def test_two_folders_have_neighbours_of_one_name(elsewhere):
    for name in ("a", "b"):
        write(elsewhere / name, mine="import helper\nx = helper.x", helper=f"x = {name!r}")
    assert [load_file(elsewhere / name / "mine.py").x for name in ("a", "b")] == ["a", "b"]


def test_an_installed_module_is_not_hidden(elsewhere):
    write(elsewhere, mine="import json, numpy\nfrom flax import linen", json="1 / 0", numpy="1 / 0", flax="1 / 0")
    assert load_file(elsewhere / "mine.py").json is sys.modules["json"]


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("import nothing_of_this_name", "ModuleNotFoundError: No module named 'nothing_of_this_name'"),
        ("import broken", "ZeroDivisionError"),
        ("from helper import y", "ImportError: cannot import name 'y'"),
        ("x = (", "SyntaxError"),
    ],
)
def test_a_file_that_does_not_run_is_tried_again(elsewhere, text, error):
    path = write(elsewhere, mine=text, broken="1 / 0", helper="x = 1") / "mine.py"
    for _ in range(2):
        with pytest.raises(aj.UserError, match=rf"mine\.py: this file does not run: {error}"):
            load_file(path)


def test_two_saved_versions_of_a_file_do_not_meet(elsewhere, monkeypatch):
    write(elsewhere, mine="import helper", helper="x = 'of the folder'")
    monkeypatch.syspath_prepend(elsewhere)
    text = "import helper\ndef f():\n    import late\n    return late.x + helper.x"
    files = [{"mine.py": text, "late.py": f"x = {i}"} for i in (1, 2)]
    codes = [SavedCode({"mine.py": "mine.py"}, {**each, "helper.py": "x = 10"}) for each in files]
    first, second = (load_object(f"{code.open()}mine.py:f", {}, "model") for code in codes)
    assert (first(), second(), first()) == (11, 12, 11)
    again = SavedCode(codes[0].names, codes[0].files)
    assert load_object(f"{again.open()}mine.py:f", {}, "model") is first, "a run opened twice is loaded once"


@pytest.mark.parametrize("name", ["os:getcwd", "os.getcwd", "mine.py:f", "mine", "saved.py:x"])
def test_untrusted_and_unknown_code_is_not_imported(elsewhere, name):
    write(Path.cwd(), mine="1 / 0", saved="1 / 0")
    with pytest.raises(aj.UserError, match=r"came with a run and is not trusted: .*trust_code=True"):
        load_object(f"{plugins.UNTRUSTED}{name}", {}, "gate")
    with pytest.raises(aj.UserError, match="came with a run and is not trusted"):
        load_object(f"saved-{'0' * 16}/{name}", {}, "gate")
    assert plugins.strip_origin(f"saved-{'0' * 16}/{name}") == name


def test_registered_names_of_two_versions(elsewhere):
    text = "import attention_jax as aj\nfrom flax import linen as nn\naj.register_model('mine.small', nn.Dense, features={})"
    path = write(elsewhere, config=text.format(3)) / "config.py"
    load_file(path)
    codes = [SavedCode({"mine.small": "config.py"}, {"config.py": text.format(n)}) for n in (4, 5)]
    names = ["mine.small", *(f"{code.open()}mine.small" for code in codes)]
    assert [aj.create_model(name).features for name in names] == [3, 4, 5]
    assert aj.list_models("*mine.small") == ["mine.small"]


def test_a_neighbour_comes_before_another_folder_of_the_path(elsewhere, monkeypatch):
    write(elsewhere, mine="import helper, data\nx = helper.x", helper="x = 'beside'")
    write(elsewhere.parent / "path", helper="x = 'on the path'", data="")
    (elsewhere / "data").mkdir()
    monkeypatch.syspath_prepend(elsewhere.parent / "path")
    module = load_file(elsewhere / "mine.py")
    assert module.x == "beside" and module.data.__file__, "a folder without code hides nothing"


def test_a_module_is_one_where_the_path_has_the_same(elsewhere, monkeypatch):
    write(elsewhere, mine="import same_helper")
    write(elsewhere, same_helper="")
    monkeypatch.syspath_prepend(elsewhere)
    assert load_file(elsewhere / "mine.py").same_helper is sys.modules["same_helper"]
