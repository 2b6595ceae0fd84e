"""Which files belong to a run, which edits are a change, and what may run."""

import importlib.metadata
import json
import logging
import os
from pathlib import Path

import pytest
from ml_collections import ConfigDict

import attention_jax as aj
from attention_jax.config import code, plugins, trust
from attention_jax.config.code import RunCode, bind_code, collect_code, compare_code, read_code, record_code
from attention_jax.config.plugins import SavedCode
from tests.config.test_plugins import write
from tests.helpers.small import small_config

MODELS = {"resnet20": None, "bam_resnet50.code": None}


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch) -> Path:
    """A folder of files, in which the process works, and a trust file of the test's own."""
    write(tmp_path / "files")
    (tmp_path / "files").mkdir()
    monkeypatch.chdir(tmp_path / "files")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path / "files"


def config_of(**fields: str) -> ConfigDict:
    return small_config(**{"model__name": "resnet20", **fields})


def single(files: dict[str, str], **names: str) -> RunCode:
    return RunCode((SavedCode(names or {"mine.py": "mine.py"}, files),))


def test_a_run_of_built_in_names_has_no_code():
    for name in MODELS:
        found = collect_code(config_of(model__name=name, model__gate="se"), MODELS)
        assert found == RunCode() and found.to_assets() == {}
    assert read_code(None) == RunCode()


def test_files_that_are_imported_belong_to_it(elsewhere):
    write(
        elsewhere,
        net="import json, numpy\nfrom flax import linen\nfrom parts import one\nimport attention_jax",
        **{"parts/__init__": "from .two import *"},
        parts__one="def later():\n    import beside.far as far",
        parts__two="import net",
        parts__unused="",
        unused="",
        json="",
    )
    write(elsewhere.parent, beside__far="x = 1")
    found = collect_code(config_of(model__gate="net.py:Gate", data__source=str(elsewhere / "net.py") + ":make"), MODELS)
    (folder,) = found.folders
    assert set(folder.files) == {"net.py", "parts/__init__.py", "parts/one.py", "parts/two.py", "beside/far.py"}
    assert folder.names == {"net.py": "net.py", str(elsewhere / "net.py"): "net.py"}
    assert read_code(found.to_assets()["code.json"]).to_assets() == found.to_assets()


def test_modules_of_the_path_and_packages(elsewhere, monkeypatch):
    write(elsewhere / "lib", own__nets="from own import other", own__other="")
    write(elsewhere / "loaded", own="", any="")
    plugins.load_file(elsewhere / "loaded" / "any.py")
    monkeypatch.syspath_prepend(elsewhere / "lib")
    found = collect_code(config_of(model__gate="own.nets:Net", optimizer__name="optax.adam"), MODELS)
    (folder,) = found.folders
    assert folder.names == {"own.nets": "own/nets.py"} and set(folder.files) == {"own/nets.py", "own/other.py"}
    assert found.packages == {"optax.adam": f"optax {importlib.metadata.version('optax')}"}


def test_files_of_a_table_are_kept_but_never_compared(elsewhere, monkeypatch):
    write(elsewhere, table="from parts import piece", parts__piece="x = 1", pieces="", net="")
    write(elsewhere / "lib", own__nets="")
    monkeypatch.syspath_prepend(elsewhere / "lib")
    config, others = config_of(model__gate="net.py:Gate"), ["table.py", "pieces.py:one", "own.nets.measure", "optax.adam"]
    found = collect_code(config, MODELS, others)
    assert {name for folder in found.others for name in folder.files} == {
        "table.py", "parts/piece.py", "pieces.py", "own/nets.py"
    }  # fmt: skip
    saved = read_code(found.to_assets()["code.json"])
    assert saved.to_assets() == found.to_assets()
    assert compare_code(saved, collect_code(config, MODELS)) == "" and set(saved.files()) == {"net.py"}


def test_another_version_of_a_package_and_an_import_by_text_are_said(elsewhere, caplog):
    code.warn_of_packages(collect_code(config_of(optimizer__name="optax.adam"), MODELS))
    assert not caplog.records
    code.warn_of_packages(RunCode((), {"optax.adam": "optax 0.1"}))
    now = importlib.metadata.version("optax")
    assert caplog.messages == [f"optax.adam came from optax 0.1 when the run began; now it is optax {now}."]
    caplog.clear()
    write(elsewhere, lazy="import importlib\n\nparts = importlib.import_module('parts')")
    collect_code(config_of(model__gate="lazy.py:Gate"), MODELS)
    assert "lazy.py imports by a text in line 3" in caplog.text


def test_two_files_of_one_name(elsewhere, monkeypatch):
    write(elsewhere, sub__net="import other")
    write(elsewhere / "path", net="x = 1", other="import net")
    monkeypatch.syspath_prepend(elsewhere / "path")
    with pytest.raises(aj.UserError, match=r"sub/net\.py and .*path/net\.py are imported under the same name, net: rename one"):
        collect_code(config_of(model__gate="sub/net.py:Gate"), MODELS)


def test_the_text_that_was_loaded_is_kept(elsewhere):
    path = write(elsewhere, net="x = 1") / "net.py"
    plugins.load_file(path)
    path.write_text("x = 2")
    assert collect_code(config_of(model__gate="net.py:Gate"), MODELS).files() == {"net.py": "x = 1"}


def test_what_is_a_change():
    text = '"""About."""\n\nclass A:\n    """A."""\n    # one\n    x = 1\n\ndef f():\n    """F."""\n'
    same = ["class A:\n  x = 1\ndef f(): 'other'", text + "\n\n# more\n", text.replace("About", "Another\n")]
    saved = single({"mine.py": text, "b.py": "x = ("})
    assert all(compare_code(saved, single({"mine.py": other, "b.py": "x = ("})) == "" for other in same)
    changed = compare_code(saved, single({"mine.py": text.replace("x = 1", "x = 2"), "b.py": "x = ("}))
    assert [line for line in changed.splitlines() if line[0] in "+-"] == [
        "--- mine.py of the run",
        "+++ mine.py now",
        "-    x = 1",
        "+    x = 2",
    ]
    assert "+++ b.py now\n@@ -1 +0,0 @@\n-x = (" in compare_code(saved, single({"mine.py": text}))
    two = RunCode((*saved.folders, SavedCode({"o/mine.py": "mine.py"}, {"mine.py": "y = 1"})))
    assert "mine.py (2) of the run" in compare_code(two, saved)


@pytest.mark.parametrize(
    "content", ["[]", '{"folders": [3], "packages": {}}', '{"folders": [{"names": {"a": "b"}, "files": {}}]}', "{"]
)
def test_a_file_of_another_content(content):
    with pytest.raises(aj.UserError, match=r"code\.json has changed since the run was saved"):
        read_code(content.encode())


# Trust


def test_names_lead_to_the_saved_code_if_it_is_trusted(elsewhere):
    write(elsewhere, net="from shutil import rmtree\nimport helper\nx = helper.x\ndef f(): pass", helper="x = 1")
    config = config_of(model__gate="net.py:x", optimizer__name="optax.adam")
    found = collect_code(config, MODELS)
    for folder in (elsewhere / "net.py", elsewhere / "helper.py"):
        folder.write_text("1 / 0")
    bound, untrusted = bind_code(config, found, MODELS, False)
    assert sorted(untrusted) == ["helper.py", "net.py", "optax.adam"]
    with pytest.raises(aj.UserError, match=r"net\.py: this code came with a run and is not trusted"):
        plugins.load_object(bound.model.gate, {}, "gate")
    with pytest.raises(aj.UserError, match="optax: this code came with a run and is not trusted"):
        plugins.load_object(bound.optimizer.name, {}, "optimizer")

    record_code(config, found, write=True)
    trust._recorded.clear()  # as in another process
    bound, untrusted = bind_code(config, found, MODELS, False)
    assert untrusted == [] and plugins.load_object(bound.model.gate, {}, "gate") == 1
    assert plugins.get_saved_code(bound.model.gate).files == found.files()
    assert bound.optimizer.name == "optax.adam", "an installed package is used as it is"
    assert collect_code(bound, MODELS).to_assets() == found.to_assets(), "and its code goes on with it"

    other = config_of(model__gate="net.py:rmtree")
    assert bind_code(other, found, MODELS, False)[1] == ["helper.py", "net.py"], "of a trusted file, only what was named"
    assert plugins.load_object(bind_code(other, found, MODELS, True)[0].model.gate, {}, "gate").__name__ == "rmtree"


@pytest.mark.parametrize(
    "field", ["task", "model__name", "model__gate", "data__source", "optimizer__name", "schedule__name", "model__of_its_own"]
)
@pytest.mark.parametrize("name", ["os.system", "os:system", "net.py:f", "attention_jax.cli.main:main", "saved.net:f"])
def test_nothing_that_a_config_names_is_imported(elsewhere, field, name):
    write(elsewhere, net="1 / 0", saved__net="1 / 0")
    config = config_of()
    section, _, last = field.rpartition("__")
    with config.unlocked():
        (config[section] if section else config)[last] = name
    bound, untrusted = bind_code(config, RunCode(), MODELS, False)
    if field == "model__of_its_own" and ".py:" not in name:
        return
    assert untrusted == [name] and (bound[section] if section else bound)[last] == f"{plugins.UNTRUSTED}{name}"


def test_a_run_without_code_uses_a_trusted_file(elsewhere, caplog):
    path = write(elsewhere, net="x = 1") / "net.py"
    config = config_of(model__gate="net.py:x")
    assert bind_code(config, RunCode(), MODELS, False)[1] == ["net.py:x"]
    record_code(config, collect_code(config, MODELS), write=True)
    with caplog.at_level(logging.WARNING):
        bound, untrusted = bind_code(config, RunCode(), MODELS, False)
    assert (bound.model.gate, untrusted) == ("net.py:x", []) and "the file is used as it is now" in caplog.text
    path.unlink()
    assert bind_code(config, RunCode(), MODELS, False)[1] == ["net.py:x"]
    assert bind_code(config, RunCode(), MODELS, True)[1] == []


def test_the_trust_file_is_the_user_s_alone(tmp_path, monkeypatch):
    old = os.umask(0)
    try:
        trust.record_trust(["a"], write=True)
    finally:
        os.umask(old)
    path = trust.get_trust_file()
    assert path == tmp_path / "state" / "attention_jax" / "trusted_code.json"
    assert path.stat().st_mode & 0o777 == 0o600 and path.parent.stat().st_mode & 0o777 == 0o700
    trust._recorded.clear()
    trust.record_trust(["b"], write=True)
    assert json.loads(path.read_text()) == ["a", "b"] and len(list(path.parent.iterdir())) == 2, "it and its lock"
    trust._recorded.clear()
    assert trust.are_trusted(["a", "b"]) and not trust.are_trusted(["a", "c"])
    trust.record_trust(["c"], write=False)
    assert json.loads(path.read_text()) == ["a", "b"] and trust.are_trusted(["a", "c"]), "in this process"
    trust._recorded.clear()
    path.chmod(0o602)
    assert not trust.are_trusted(["a"])
    path.chmod(0o600)
    monkeypatch.setattr(os, "geteuid", lambda: path.stat().st_uid + 1)
    assert not trust.are_trusted(["a"])
    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert trust.get_trust_file() == tmp_path / ".local/state/attention_jax/trusted_code.json"


def test_a_trust_file_that_cannot_be_written(tmp_path, caplog):
    (tmp_path / "state").write_text("a file")
    trust.record_trust(["a"], write=True)
    assert "cannot be written" in caplog.text and trust.are_trusted(["a"])
    path = tmp_path / "broken"
    path.write_text("{")
    assert trust._read(path) == set()


def test_fields_that_name_code_are_known(root):
    """Whoever gives `load_object` another field adds it to `_NAMED`."""
    uses = {path for path in (root / "attention_jax").rglob("*.py") if "load_object(" in path.read_text()}
    known = (
        "config/plugins config/config config/code config/fields models/gate models/registry data/images/sources data/text/pairs"
    )
    known += " cli/files interop/recognise"
    known += " optim/optimizers optim/schedules tasks/__init__ tables/measures tables/publish tables/results tables/table"
    known += " tables/bases tables/compare tables/match"  # names of gates and sources alone
    assert {str(path.relative_to(root / "attention_jax"))[:-3] for path in uses} == set(known.split())
    assert code._NAMED == ("task", "model.name", "model.gate", "data.source", "optimizer.name", "schedule.name")
