"""What a training command says: the bar, and what an extension changes."""

import json
import math
import shutil

from attention_jax.cli import main as cli
from attention_jax.config import override
from attention_jax.config.config import config_from_json
from attention_jax.train import report
from attention_jax.train.program import build_program
from tests.helpers.make_tiny_run import RUN
from tests.helpers.small import CONFIG


class Bar:
    def __init__(self):
        self.n, self.newest = 0, {}

    def update(self, number):
        self.n += number

    def set_postfix(self, newest, refresh):
        self.newest = dict(newest)


def test_the_bar_has_the_newest_of_the_log():
    shown = report.ProgressBar(bar := Bar())
    shown(3)
    shown.show_line({"step": 3, "train/loss": 0.123456, "train/accuracy": 0.5, "train/grad_norm": 1.0})
    shown.show_line({"event": "training", "examples_per_second": 1234.5})
    shown(5)
    shown.show_line({"step": 5, "train/loss": 0.1})
    assert bar.n == 5 and bar.newest == {"loss": "0.1", "accuracy": "0.5", "examples/s": "1,234"}


def test_an_extension_says_the_rates_before_and_after(tmp_path, capsys):
    """370 steps with a warm-up of 5 and a cosine, which would have ended, go on to twice as many."""
    shutil.copytree(RUN, tmp_path / "run")
    config = config_from_json((RUN / "config.json").read_text())
    longer = build_program(override(config, {"total_steps": 740}))
    said = report.describe_extension(longer, str(tmp_path / "run"))
    rate = 0.025 * (1 + math.cos(math.pi * 365 / 735))  # 365 steps of 735 after the warm-up
    assert said.startswith(
        "extension: total_steps 370 -> 740, 370 -> 740 steps. The learning rate of step 371, the next, was 0"
    )
    assert f"will be {rate:.4g};" in said and " at step 370 and will be " in said and " at step 740." in said
    assert report.describe_extension(build_program(config), str(tmp_path / "run")) == ""
    assert report.describe_extension(longer, str(tmp_path / "none")) == ""
    for given, reason in (("40", "give the unit and the new total"), ("seed=1", "give the unit and the new total")):
        assert cli.main(["train", f"--config={CONFIG}", f"--workdir={tmp_path / 'run'}", f"--extend={given}"]) == 2
        assert reason in capsys.readouterr().err
    assert cli.main(["train", f"--config={CONFIG}", f"--workdir={tmp_path / 'run'}", "--config.total_epochs=40"]) == 2
    assert "another config" in capsys.readouterr().err
    assert json.loads((tmp_path / "run" / "config.json").read_text())["total_steps"] == 370
