"""A run opens with the code that it was made with: in another folder, after an edit, for another user."""

import hashlib
import json
import logging
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import attention_jax as aj
from attention_jax.cli import main as cli
from attention_jax.config import trust
from attention_jax.data import embedded
from attention_jax.tasks import get_task
from attention_jax.train import loop, restore
from attention_jax.train.program import build_program
from tests.conftest import child_environment, without_root
from tests.helpers.gcs import empty_server
from tests.helpers.own_code import FILES, IMAGES, NAMES, SMALL, options, predict, train, write_files
from tests.helpers.small import CONFIG, small_config


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A folder with `run`, the user's state and the probabilities that it gives; its files are gone."""
    folder = tmp_path_factory.mktemp("made")
    assert train(write_files(folder / "files"), folder / "state", folder / "run") == 0
    shutil.rmtree(folder / "files")
    return folder


@pytest.fixture
def elsewhere(tmp_path, monkeypatch, made) -> Path:
    """The user works in another folder, in which files of the same names do something else."""
    (tmp_path / "cwd").mkdir()
    for name in FILES:
        (tmp_path / "cwd" / name).write_text("open('was_run', 'w')\nraise SystemExit('the wrong file')\n")
    monkeypatch.chdir(tmp_path / "cwd")
    monkeypatch.syspath_prepend(tmp_path / "cwd")
    monkeypatch.setenv("XDG_STATE_HOME", str(made / "state"))
    yield tmp_path / "cwd"
    assert not (tmp_path / "cwd" / "was_run").exists()


@pytest.fixture
def another_user(elsewhere, tmp_path, monkeypatch) -> Path:
    """Another user, who has no trust file."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "nothing"))
    return elsewhere


def test_it_opens_from_any_folder(made, elsewhere):
    run = aj.load_run(made / "run")
    saved = run.config.model.name.partition("/")[0]
    assert [run.config.task, run.config.model.name, run.config.model.gate, run.config.data.source] == [
        f"{saved}/{NAMES[name]}" for name in ("task", "model.name", "model.gate", "data.source")
    ]
    assert type(run.model).__module__ == f"{saved}.my_net" and run.untrusted == ()
    with np.load(made / "run" / "evaluation.npz") as outputs:
        right = run.predict(embedded.read_digits("test")[0]).classes == embedded.read_digits("test")[1]
        assert (outputs["correct"] != right).sum() <= 1
    program = build_program(run.config)
    assert program.config.data.num_examples == 1198 and program.model == run.model
    model, variables = aj.load_checkpoint(made / "run" / "checkpoints" / "2")
    assert model == run.model and set(variables) == {"params", "batch_stats"}


def test_the_commands_use_it_too(made, elsewhere, capsys):
    assert cli.main(["evaluate", f"--workdir={made / 'run'}"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["accuracy"] == aj.load_run(made / "run").metrics[-1]["headline"]


def test_without_trust_everything_but_the_network_can_be_read(made, another_user, capsys):
    run = aj.load_run(made / "run")
    assert run.variables["params"] and run.metrics[-1]["step"] == 4 and run.config.batch_size == 32
    names = ", ".join([*sorted(FILES), "optax.sgd"])
    text = f"{names}, which you have not trained with on this machine: .*trust_code=True"
    for use in (lambda: run.model, lambda: run.predict(IMAGES), lambda: run.labels, lambda: aj.load_checkpoint(made / "run")):
        with pytest.raises(aj.UserError, match=text):
            use()
    for use in (lambda: get_task(run.config.task), lambda: build_program(run.config)):
        with pytest.raises(aj.UserError, match="is not trusted"):
            use()
    assert cli.main(["evaluate", f"--workdir={made / 'run'}"]) == 2 and "--trust-code" in capsys.readouterr().err
    assert cli.main(["evaluate", f"--workdir={made / 'run'}", "--trust-code"]) == 0
    assert not trust.get_trust_file().exists(), "opening a run records nothing"
    with pytest.raises(aj.UserError, match="trust_code=True"):
        _ = aj.load_run(made / "run").model
    assert aj.load_checkpoint(made / "run", trust_code=True)[0] == aj.load_run(made / "run", trust_code=True).model


def test_two_versions_in_one_process(made, tmp_path, elsewhere, monkeypatch):
    files = write_files(tmp_path / "files", my_layers=("nn.relu", "nn.tanh"))
    assert train(files, made / "state", tmp_path / "run") == 0
    here = predict(tmp_path / "run")
    shutil.rmtree(files)
    old, new, again = predict(made / "run"), predict(tmp_path / "run"), predict(made / "run")
    assert (old == again).all() and (new == here).all() and np.abs(old - new).max() > 1e-3


# An edit is a change of the run


def test_comments_and_docstrings_are_no_change(made, tmp_path):
    run = shutil.copytree(made / "run", tmp_path / "run")
    shutil.rmtree(run / "checkpoints" / "4")
    files = write_files(
        tmp_path / "files",
        my_net=("It takes the mean over positions.", "A mean.\n\n    # of all"),
        my_data=("def", "# Now\ndef"),
    )
    assert train(files, tmp_path / "state", run) == 0
    assert same_state(run, made / "run")


def same_state(one: Path, other: Path) -> bool:
    (a, *_), (b, *_) = restore.read_newest(one), restore.read_newest(other)
    return jax.tree.all(jax.tree.map(lambda x, y: (np.asarray(x) == y).all(), a, b))


@pytest.mark.parametrize(
    "damage", [lambda text: b"", lambda text: text[:50], lambda text: text.replace(b"nn.relu", b"nn.reLu")]
)
def test_a_damaged_copy_of_the_code_is_restored_from_the_checkpoint(damage, made, tmp_path, capsys):
    run, files = shutil.copytree(made / "run", tmp_path / "run"), write_files(tmp_path / "files")
    code = (run / "code.json").read_bytes()
    (run / "code.json").write_bytes(damage(code))
    aj.load_run(run, trust_code=True)
    assert train(files, made / "state", run) == 0 and (run / "code.json").read_bytes() == code
    assert damage(code) == ((run / "code.json.damaged").read_bytes() if damage(code) else b"")


def test_a_change_is_refused_with_the_difference(made, tmp_path, capsys):
    run = shutil.copytree(made / "run", tmp_path / "run")
    shutil.rmtree(run / "checkpoints" / "4")
    files = write_files(tmp_path / "files", my_layers=("nn.relu", "nn.tanh"))
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert train(files, made / "state", run) == 2
    error = capsys.readouterr().err
    assert "belongs to other code: give --saved-code to go on with the run's own, or another workdir" in error
    assert "\n--- my_layers.py of the run\n+++ my_layers.py now\n" in error
    assert "\n-        return nn.relu(nn.Conv(self.width, (3, 3))(x))\n+        return nn.tanh(" in error
    assert before == {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}

    assert train(files, tmp_path / "another", run, "--saved-code") == 2
    assert "my_layers.py" in (error := capsys.readouterr().err) and "give --trust-code" in error
    assert train(files, made / "state", run, "--saved-code") == 0
    assert same_state(run, made / "run")
    assert (run / "config.json").read_bytes() == (made / "run" / "config.json").read_bytes()
    assert restore.read_newest(run)[1]["assets"] == restore.read_newest(made / "run")[1]["assets"]
    assert json.loads(restore.read_newest(run)[1]["config"])["model"]["name"] == "my_net.py:MyNet"

    assert train(files, made / "state", tmp_path / "new", "--saved-code") == 2
    assert "has no copy of its code: leave this option out" in capsys.readouterr().err


def test_a_saved_config_goes_on_with_the_saved_code(made, elsewhere, tmp_path, capsys, monkeypatch):
    run = shutil.copytree(made / "run", tmp_path / "run")
    shutil.rmtree(run / "checkpoints" / "4")
    command = ["train", f"--config={run / 'config.json'}", f"--workdir={run}"]
    with monkeypatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(tmp_path / "another"))
        assert cli.main(command) == 2
    assert "my_layers.py" in (error := capsys.readouterr().err) and "give --trust-code" in error
    assert cli.main(command) == 0
    assert same_state(run, made / "run")
    assert restore.read_newest(run)[1]["assets"] == restore.read_newest(made / "run")[1]["assets"]
    (tmp_path / "bad.json").write_text("[1]")
    assert cli.main(["config", str(tmp_path / "bad.json")]) == 2
    assert "bad.json is no saved config" in capsys.readouterr().err


# What a config names is not run


def rewrite(workdir: Path, change) -> Path:
    """Changes the description in a run's checkpoints as someone else could."""
    for path in workdir.glob("checkpoints/*/about/metadata"):
        about = json.loads(json.loads(path.read_text())["text"])
        config = json.loads(about["config"])
        change(config, about["assets"])
        text = json.dumps({**about, "config": json.dumps(config)})
        path.write_text(json.dumps({"text": text, "sha256": hashlib.sha256(text.encode()).hexdigest()}))
    return workdir


@pytest.mark.parametrize(
    "name", ["os.system", "os:system", "my_gate.py:Gate", "my_gate:Gate", "my_gate.Gate", "{cwd}/my_gate.py:Gate"]
)
@pytest.mark.parametrize("field", ["task", "model.name", "model.gate", "data.source", "optimizer.name", "schedule.name"])
def test_names_of_a_config_are_not_imported(tmp_path, another_user, monkeypatch, field, name):
    monkeypatch.setattr(os, "system", lambda *arguments, **options: pytest.fail("it was called"))
    name = name.format(cwd=another_user)

    def change(config, assets):
        section, _, last = field.rpartition(".")
        (config[section] if section else config)[last] = name

    committed = Path(__file__).parent / "fixtures" / "tiny_run"
    run = aj.load_run(rewrite(shutil.copytree(committed, tmp_path / "run"), change))
    assert run.step == 370 and run.variables and run.metrics
    with pytest.raises(aj.UserError, match=f"this run needs {name}, which you have not trained with"):
        _ = run.model

    def use() -> None:
        jax.eval_shape(build_program(run.config).init, 0)
        get_task(run.config.task).loader(run.config, "test", (0, 1), training=False)

    with pytest.raises(aj.UserError, match="trust"):
        use()
    assert "my_gate" not in sys.modules


def test_a_trusted_file_lends_only_what_was_named(made, elsewhere, tmp_path):
    def change(config, assets):
        config["model"]["gate"] = "my_net.py:Layer"

    run = aj.load_run(rewrite(shutil.copytree(made / "run", tmp_path / "run"), change))
    with pytest.raises(aj.UserError, match="not trained with"):
        _ = run.model


def test_a_run_of_before_uses_a_trusted_file_as_it_is(made, tmp_path, elsewhere, caplog, monkeypatch):
    run = rewrite(shutil.copytree(made / "run", tmp_path / "run"), lambda config, assets: assets.pop("code.json"))
    (run / "code.json").unlink()
    with pytest.raises(aj.UserError, match=r"needs .*my_gate\.py:Gate, "):
        _ = aj.load_run(run).model
    files = write_files(tmp_path / "files")
    monkeypatch.chdir(files)
    with caplog.at_level(logging.WARNING):
        assert (predict(run) == predict(made / "run")).all()
    assert "model.name=my_net.py:MyNet: this run has no copy of its code: the file is used as it is now." in caplog.text
    (files / "my_gate.py").write_text(FILES["my_gate.py"].replace("* 2", "* 3"))
    # resuming keeps the code from then on
    shutil.rmtree(run / "checkpoints" / "4")
    caplog.clear()
    assert train(write_files(tmp_path / "again"), made / "state", run) == 0
    assert "has no copy of its code" in caplog.text and (run / "code.json").exists()


# Other kinds of names


def test_a_network_that_a_config_file_registers(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    files = write_files(tmp_path / "files")
    (files / "my_config.py").write_text(
        "import attention_jax as aj\nfrom attention_jax.config import load_config, override\nfrom my_gate import Gate\n"
        "from my_layers import Layer\nimport flax.linen as nn\n\n\n"
        "class Registered(nn.Module):\n    num_classes: int = 10\n\n    @nn.compact\n    def __call__(self, x, train=False):\n"
        "        return nn.Dense(self.num_classes)(Gate()(Layer(3)(x)).mean((1, 2)))\n\n\n"
        "aj.register_model('registered_net', Registered)\n\n\ndef get_config():\n"
        f"    return override(load_config({str(CONFIG)!r}), {{'model.name': 'registered_net'}})\n"
    )
    assert cli.main(options(tmp_path / "run", files / "my_config.py", **{"data.source": "digits"})) == 0
    here = aj.load_run(tmp_path / "run")
    assert here.config.model.name.endswith("/registered_net") and type(here.model).__name__ == "Registered"
    assert set(json.loads(here.assets["code.json"])["folders"][0]["files"]) == {"my_config.py", "my_gate.py", "my_layers.py"}
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "another"))
    with pytest.raises(aj.UserError, match=r"my_config\.py, my_gate\.py, my_layers\.py"):
        _ = aj.load_run(tmp_path / "run").model


def test_a_remote_workdir_keeps_it_too(made, tmp_path, elsewhere):
    server, uri = empty_server(), "gs://bucket/remote"
    assert train(write_files(tmp_path / "files"), made / "state", uri) == 0
    shutil.rmtree(tmp_path / "files")
    assert "bucket/remote/code.json" in server.objects
    assert (predict(uri) == predict(made / "run")).all()
    changed = write_files(tmp_path / "changed", my_gate=("* 2", "* 3"))
    assert train(changed, made / "state", uri) == 2
    assert train(changed, made / "state", uri, "--saved-code") == 0


def test_one_process_alone_writes_the_trust_file(tmp_path, monkeypatch):
    files = write_files(tmp_path / "files")
    monkeypatch.setattr(loop, "is_main_process", lambda: False)
    monkeypatch.setattr(loop, "_Run", lambda *arguments: pytest.fail("far enough") if trust._recorded else None)
    with pytest.raises(pytest.fail.Exception, match="far enough"):
        train(files, tmp_path / "state", tmp_path / "run")
    assert not (tmp_path / "state").exists()


def test_training_leaves_hooks_and_loggers_as_they_were(tmp_path):
    def describe() -> tuple:
        return sys.unraisablehook, [logging.getLogger(name).level for name in ("absl", "asyncio", "")]

    before = describe()
    loop.train_model(small_config(total_steps=1, schedule__warmup_steps=0, schedule__name="constant"), tmp_path / "run")
    assert describe() == before


# Processes of their own

OPEN = """
import logging, os, signal, sys, threading
import jax

def describe():
    loggers = {"": logging.root, **{n: x for n, x in logging.root.manager.loggerDict.items() if isinstance(x, logging.Logger)}}
    facts = {"hooks": (sys.unraisablehook, sys.excepthook, threading.excepthook), "path": list(sys.path), "cwd": os.getcwd(),
             "environment": dict(os.environ), "signals": {s: signal.getsignal(s) for s in signal.valid_signals()}}
    for name, logger in loggers.items():
        facts["logger " + name] = logger.level, list(logger.handlers), list(logger.filters), logger.propagate, logger.disabled
    return facts

before = describe()
import attention_jax as aj
from attention_jax.data import embedded
run = aj.load_run(sys.argv[1])
run.predict(embedded.read_digits("test")[0][:8])
after = describe()
fresh = 0, [], [], True, False  # a logger that nothing was done to
print([name for name in after if after[name] != before.get(name, fresh if name.startswith("logger ") else None)])
"""


@pytest.mark.slow
def test_opening_a_run_changes_nothing_in_the_process(made, elsewhere, run_python):
    done = run_python("-c", OPEN, made / "run", cwd=elsewhere, env={"XDG_STATE_HOME": str(made / "state")})
    assert done.stdout == "[]\n", done.stderr


@pytest.mark.slow
def test_of_two_processes_the_first_writes_the_trust_file_and_both_measure(tmp_path, start_cli):
    files = write_files(tmp_path / "files")
    with socket.create_server(("localhost", 0)) as server:
        port = server.getsockname()[1]
    joined = {"AJ_COORDINATOR": f"127.0.0.1:{port}", "AJ_PROCESSES": "2"}
    fields = {**NAMES, "optimizer.weight_decay": 0.0, **SMALL, "task": "classification"}
    (files / "table.py").write_text(
        f"title = source = 'x'\nbase = {str(CONFIG)!r}\nrows = [{{'label': 'a', 'overrides': {fields!r}}}]\n"
        "scales = {'s': {}}\n"
        "measures = {'errors': 'attention_jax.tables.measures:measure_errors'}\n"
    )
    processes = [
        start_cli(
            "table",
            "table.py",
            f"--workdir={tmp_path / 'run'}",
            env={**joined, "AJ_PROCESS": str(i), "XDG_STATE_HOME": str(tmp_path / f"state{i}")},
            cwd=files,
        )
        for i in range(2)
    ]
    said = [process.communicate(timeout=240)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
    assert (tmp_path / "state0/attention_jax/trusted_code.json").exists() and not (tmp_path / "state1").exists()
    assert (tmp_path / "run/a/0/measure_errors.npz").exists()


@pytest.mark.slow
def test_without_rights_to_the_home_it_trains_and_says_so(tmp_path):
    files = write_files(tmp_path / "files")
    (tmp_path / "home").mkdir(mode=0o500)
    environment = child_environment({"HOME": str(tmp_path / "home"), "XDG_STATE_HOME": None})
    command = [*without_root(), sys.executable, "-m", "attention_jax", *options(tmp_path / "run")]
    done = subprocess.run(command, cwd=files, env=environment, capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 0, done.stderr
    assert "trusted_code.json cannot be written (Permission denied): later, this code needs trust_code=True" in done.stderr
