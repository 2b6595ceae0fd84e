"""What the launchers check before anything is requested: config, table, and the files that they name."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from attention_jax.cli.parser import make_parser, parsers
from attention_jax.errors import UserError
from attention_jax.launch import gke, shared, slurm, tpu
from tests.conftest import ROOT

CONFIG = "--config=configs/quickstart.py"
WHERE = ["pod", "--zone=us-central1-a"]
LEFT_OUT = "Nothing was requested; --no-check leaves this check out."


@pytest.fixture
def calls(tmp_path, monkeypatch):
    """The programs that would ask for machines, as calls in a file: `calls()` returns their names."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("gcloud", "sbatch", "kubectl"):
        (folder / name).write_text(f'#!/bin/sh\necho {name} "$@" >> {tmp_path}/calls\necho 77\n')
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setenv("ATTENTION_JAX_PYTHON", sys.executable)
    monkeypatch.chdir(tmp_path)
    return lambda: (tmp_path / "calls").read_text().split() if (tmp_path / "calls").exists() else []


@pytest.fixture
def child(tmp_path, monkeypatch):
    """`child(code, stdout, stderr)` puts a program in place of launch.sh that ends so; `child()` has its words."""

    def answer(code: int | None = None, stdout: str = "", stderr: str = "") -> list[str]:
        if code is None:
            return json.loads((tmp_path / "words").read_text())
        program = f"#!{sys.executable}\nimport json, sys\njson.dump(sys.argv[1:], open({str(tmp_path / 'words')!r}, 'w'))\n"
        program += f"sys.stdout.write({stdout!r}); sys.stderr.write({stderr!r}); sys.exit({code} * (sys.argv[1] != 'setup'))\n"
        (tmp_path / "launch.sh").write_text(program)
        (tmp_path / "launch.sh").chmod(0o755)
        monkeypatch.setattr(shared, "LAUNCH", tmp_path / "launch.sh")
        return []

    return answer


@pytest.mark.parametrize("action", ["create", "run"])
def test_a_misspelled_field_asks_for_no_slice(calls, action):
    command = ["train", CONFIG, "--workdir=gs://bucket/x", "--config.optimizer.nane=sgd"]
    with pytest.raises(UserError) as caught:
        tpu.main([action, *WHERE, "--type=v5e-16", "--commit=HEAD", "--", *command])
    text = "unknown config field 'optimizer.nane' (did you mean 'optimizer.name'?)"
    assert str(caught.value).startswith("at commit ") and text in str(caught.value) and LEFT_OUT in str(caught.value)
    assert not calls()


def test_a_misspelled_field_submits_no_job(calls):
    with pytest.raises(UserError, match="unknown config field 'optimizer.nane'"):
        slurm.main(["--", "train", f"--config={ROOT}/configs/quickstart.py", "--workdir=x", "--config.optimizer.nane=sgd"])
    assert not calls() and not Path("runs").exists()


@pytest.mark.slow
def test_what_a_config_names_is_listed_and_checked(calls, capsys):
    """On the machine of the job: the network, gate, optimizer and data, with all that they import."""
    Path("parts.py").write_text("from nearby import G\n")
    Path("nearby.py").write_text("import flax.linen as nn\nclass G(nn.Module):\n    pass\n")
    Path("mine").mkdir()
    command = ["train", f"--config={ROOT}/configs/quickstart.py", "--workdir=x", "--config.model.gate=parts.py:G"]
    data = ["--config.data.source=folder", "--config.data.args.path=mine"]
    assert slurm.main(["--", *command, *data]) == 0
    assert calls()[0] == "sbatch" and capsys.readouterr().out.startswith("job 77 is submitted")
    words = shared.list_check([*command, *data])
    printed = subprocess.run([shared.LAUNCH, *words], capture_output=True, text=True, check=True).stdout.splitlines()
    here = [f"code\t{Path(name).resolve()}" for name in ("parts.py", "nearby.py")]
    assert {*here, f"code\t{ROOT}/configs/quickstart.py", "data.args.path\tmine"} == {*printed}
    for changed, message in (
        ("--config.data.args.path=missing", "data.args.path: .*/missing does not exist"),
        ("--config.optimizer.name=parts.py:Optimiser", "optimizer.name 'parts.py:Optimiser': parts.py has no 'Optimiser'"),
    ):
        with pytest.raises(UserError, match=message):
            slurm.main(["--", *command, *data, changed])


@pytest.mark.slow
def test_a_table_is_checked_by_its_dry_run(calls, capsys):
    Path("table.py").write_text(
        f"title, source, base, scales = 't', 's', '{ROOT}/configs/quickstart.py', {{'x': {{}}}}\n"
        "_lion = {'optimizer.name': 'optax.lionn', 'optimizer.weight_decay': 0.0}\n"
        "_wide = {'model.gate': 'se', 'model.gate_args.reduction': 99}\n"
        "rows = [{'label': 'good'}, {'label': 'bad', 'overrides': _lion}, {'label': 'wide', 'overrides': _wide}]\n"
    )
    with pytest.raises(UserError, match=r"table.py would fail, as said above. Nothing was requested"):
        slurm.main(["--", "table", "table.py", "--workdir=x"])
    said = capsys.readouterr().err
    assert "would fail (optimizer 'optax.lionn': optax has no 'lionn'" in said and not calls()
    assert "would fail (config.model.gate_args.reduction=99 is more than the 8 channels of stage1_gate" in said
    assert slurm.main(["--", "table", "table.py", "--rows=good", "--workdir=x"]) == 0


def test_the_files_of_a_commit_must_be_in_it(child, monkeypatch, capsys):
    command = ["train", "--config", "configs/quickstart.py", "--workdir=gs://b/x", "--config.seed", "1", "--saved-code"]

    def check(line: str) -> None:
        child(0, f"{line}\n")
        shared.check_inputs(command, shared.find_commit("HEAD", command))

    monkeypatch.setenv("ATTENTION_JAX_PYTHON", sys.executable)
    check("data.args.path\tdocs")
    assert child() == ["config", "configs/quickstart.py", "--config.seed", "1", "--check", "--files"]
    with pytest.raises(UserError, match="/elsewhere/gate.py is outside of the checkout and is not sent: commit it there"):
        check("code\t/elsewhere/gate.py")
    with pytest.raises(UserError, match="data.args.path: data is not in the commit, whose files are sent"):
        check("data.args.path\tdata")
    capsys.readouterr()
    check("data.args.path\t/mnt/data")
    assert "data.args.path=/mnt/data: not checked: it must be there on every worker" in capsys.readouterr().err
    child(0)
    shared.check_inputs(["table", "configs/quickstart.py", "--workdir=gs://b/x"], shared.find_commit("HEAD", ["table"]))
    assert child()[2:5] == ["--workdir=gs://b/x", "--dry-run", "--files"] and child()[-1].startswith("--output=/")
    command = ["compare", "--gate=configs/quickstart.py:get_config", "--workdir=gs://b/x"]
    shared.check_inputs(command, shared.find_commit("HEAD", command))
    assert child()[:4] == [*command, "--dry-run"] and child()[-1].startswith("--output=/")
    assert shared.find_commit("HEAD", ["table", "all"]) and shared.list_check(["table", "all"]) == ["table", "all", "--dry-run"]
    with pytest.raises(UserError, match=r"^nowhere/gate.py is not in commit"):
        shared.find_commit("HEAD", ["compare", "--gate=nowhere/gate.py:Mine"])
    for other in (["evaluate", "--workdir=x"], ["prepare", "cifar10"]):
        assert shared.list_check(other) == []
    with pytest.raises(UserError, match="required: --workdir"):
        shared.list_check(["train", CONFIG])


def test_files_on_a_disk_of_this_machine_are_no_job_s(child, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("ATTENTION_JAX_PYTHON", sys.executable)
    monkeypatch.setattr(shared, "_is_shared", lambda path: path.name != "local")
    (tmp_path / "local").touch()
    command = ["train", CONFIG, "--workdir=x"]
    child(0, f"code\t{tmp_path}/local\n")
    with pytest.raises(UserError, match="/local is on a disk of this machine, and not on the file system of the checkout"):
        shared.check_inputs(command)
    child(0, f"data.args.path\t{tmp_path}/local\n")
    shared.check_inputs(command)
    assert "it must be there on every node" in capsys.readouterr().err
    child(1, "row: would fail\n", "Traceback\n")
    with pytest.raises(UserError, match="would fail, as said above"):
        shared.check_inputs(command)
    assert capsys.readouterr().err == "row: would fail\nTraceback\n"


def test_a_kind_of_file_system_that_machines_share(monkeypatch, tmp_path):
    assert shared._is_shared(ROOT / "configs")
    other = Path("/proc/version")
    assert other.stat().st_dev != ROOT.stat().st_dev and not shared._is_shared(other)
    monkeypatch.setattr(shared, "SHARED", ("nfs", "proc"))
    assert shared._is_shared(other)


def test_an_environment_that_is_not_made_yet(monkeypatch, tmp_path):
    monkeypatch.delenv("ATTENTION_JAX_PYTHON", raising=False)
    monkeypatch.setattr(shared, "ROOT", tmp_path)
    made: list[list] = []
    monkeypatch.setattr(shared, "run_program", made.append)
    with pytest.raises(UserError, match=r"make it with ./launch.sh setup, or leave the check out with --no-check"):
        shared.check_inputs(["train", CONFIG, "--workdir=x"])
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    for answer in ("", "n"):
        monkeypatch.setattr("builtins.input", lambda text, answer=answer: answer)
        if answer:
            with pytest.raises(UserError, match="nothing was requested"):
                shared.require_environment()
        else:
            shared.require_environment()
    assert made == [[shared.LAUNCH, "setup"]]


def test_options_of_train_are_those_of_the_command():
    make_parser()
    known = {option for action in parsers["train"]._actions for option in action.option_strings} - {"-h", "--help"}
    flags = [option for option in sorted(known) if option not in ("--config", "--workdir")]
    assert shared.list_check(["train", "--config=c.py", "--workdir=w", *flags]) == ["config", "c.py", "--check", "--files"]


@pytest.mark.slow
def test_a_manifest_is_checked_before_it_is_applied(calls, tmp_path):
    text = (ROOT / "docs" / "gke_jobset.yaml").read_text()
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    with pytest.raises(UserError, match="mine.yaml still has SERVICE_ACCOUNT, IMAGE, BUCKET, RUN: put your own names there"):
        gke.main([str(file), "--commit=HEAD"])
    for name in ("SERVICE_ACCOUNT", "IMAGE", "BUCKET", "RUN"):
        text = text.replace(name, "mine")
    file.write_text(text.replace("--config.data.args.data_dir=", "--config.data.flpi="))
    with pytest.raises(UserError, match="unknown config field 'data.flpi'"):
        gke.main([str(file), "--commit=HEAD"])
    assert not calls()
    file.write_text(text)
    asked = ["gcloud", "storage", "ls", "gs://mine/data"]  # the address of the data, before anything is applied
    assert gke.main([str(file), "--commit=HEAD"]) == 0 and calls() == [*asked, "kubectl", "apply", "-f", str(file)]
