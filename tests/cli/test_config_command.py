"""The commands `config` and `completion`, and fields in the help of the others."""

import re
import shutil
import subprocess

import pytest

from attention_jax.cli.main import main
from attention_jax.config.accepted import REQUIRED
from attention_jax.config.config import get_fields, load_config
from attention_jax.config.describe import describe_config
from attention_jax.config.fields import COMMON, list_fields
from tests.helpers.small import CONFIG, small_config


def test_every_field_has_a_line_and_what_differs_is_marked(capsys):
    assert main(["config", str(CONFIG), "--config.total_steps=7", "--config.model.gate=bam"]) == 0
    lines = capsys.readouterr().out.splitlines()
    fields = get_fields(load_config(str(CONFIG)))
    for name, field in fields.items():
        assert any(re.match(rf"[* ] {re.escape(name)}[ ._]", line) for line in lines), name
        if field.default is REQUIRED:
            assert any(re.match(rf"\* {re.escape(name)}[ _]", line) for line in lines), name
    text = "\n".join(lines)
    assert re.search(r"^\* total_steps = 7 +# length of training$", text, re.MULTILINE) and "total_epochs" not in text
    assert re.search(r"^\* model.gate = 'bam'$", text, re.MULTILINE)
    assert re.search(r"^\* optimizer.nesterov = True +# of sgd: use Nesterov's momentum; default False$", text, re.MULTILINE)
    assert re.search(r"^\* schedule.warmup_epochs = 1.0 +# .*; default warmup_steps=0$", text, re.MULTILINE)
    assert re.search(r"^  seed = 0 +# seed of initialisation", text, re.MULTILINE)


def test_a_duration_that_is_the_default_is_not_marked():
    text = describe_config(small_config(checkpoint__every_epochs=1.0, logging__every_steps=100))
    assert "\n  checkpoint.every_epochs = 1.0 " in text and "\n  logging.every_steps = 100 " in text
    assert "\n* checkpoint.every_steps = 1 " in describe_config(small_config(checkpoint__every_steps=1))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--config.model.widht=(8, 16)"], "model 'resnet32' has no field 'widht' (did you mean 'widths'?)"),
        (["--config.model.name=resnet33"], "unknown model 'resnet33' (did you mean"),
        (["--config.seed=-1"], "config.seed=-1 is not right"),
        (["--config.sed=1"], "unknown config field 'sed' (did you mean 'seed'?)"),
        (["--config.task=missing.py:task"], "missing.py: there is no such file"),
    ],
)
def test_check_says_what_is_wrong_and_nothing_else(arguments, said, capsys):
    assert main(["config", str(CONFIG), "--check", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == "" and said in err and err.count("\n") == 1


def test_check_of_a_right_config_says_nothing(capsys):
    assert main(["config", str(CONFIG), "--check", "--config.model.num_classes=10"]) == 0
    assert capsys.readouterr() == ("", "")
    assert main(["config"]) == 2 and "give a config file" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["train", "evaluate", "preflight", "config"])
def test_help_has_every_field(command, capsys):
    with pytest.raises(SystemExit):
        main([command, "--help"])
    text = capsys.readouterr().out
    for name, field in list_fields(COMMON).items():
        assert f"  {' / '.join(field.names(name))}: {field.meaning}; {field.accepts}\n" in text


def complete(script: str, *words: str) -> list[str]:
    quoted = " ".join(f"'{word}'" for word in words)
    program = (
        f'{script}\nCOMP_WORDS=({quoted}); COMP_CWORD={len(words) - 1}; _attention_jax; printf "%s\\n" "${{COMPREPLY[@]}}"'
    )
    return subprocess.run(["bash", "-c", program], capture_output=True, text=True, check=True).stdout.split()


@pytest.mark.skipif(not shutil.which("bash"), reason="completion is for bash")
def test_completion_in_bash(capsys, tmp_path, monkeypatch):
    assert main(["completion"]) == 0
    script = capsys.readouterr().out
    assert complete(script, "./launch.sh", "tra") == ["train", "translate"]
    assert complete(script, "./launch.sh", "train", "--config.optimizer.nest") == ["--config.optimizer.nesterov="]
    assert complete(script, "./launch.sh", "train", "--config.total_")[:2] == [
        "--config.total_steps=",
        "--config.total_epochs=",
    ]
    assert complete(script, "./launch.sh", "table", "--config.") == []
    assert "--dry-run" in complete(script, "./launch.sh", "table", "--d")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").touch()
    assert complete(script, "./launch.sh", "train", "--config", "=", "mi") == ["mine.py"]
    assert complete(script, "./launch.sh", "train", "--config=mi") == ["--config=mine.py"]
