"""Without an extra the rest works, and what needs it says in one sentence how to get it."""

import pytest

from tests.helpers.photos import write_photos
from tests.helpers.small import as_options

# What is None in sys.modules is not found where it is looked for and cannot be imported.
BLOCKED = """
import sys
sys.modules.update(dict.fromkeys(sys.argv.pop(1).split(",")))
from attention_jax.cli import main as cli
sys.exit(cli.main())
"""


@pytest.mark.slow
def test_images_are_trained_without_any_extra(run_python, tmp_path):
    """Photographs, which Pillow then decodes, crops and resizes."""
    photos = {"source": "folder", "args__path": str(write_photos(tmp_path / "photos")), "eval_split": "val"}
    sizes = {"crop": "random_resized", "eval_resize": 28, "image_shape": (24, 24, 3), "mean": (0.5,) * 3, "std": (0.25,) * 3}
    fields = {f"data__{name}": value for name, value in {**photos, **sizes}.items()}
    fields |= {"batch_size": 4, "evaluation__batch_size": 4, "total_steps": 2, "logging__tensorboard": True}
    fields |= {"evaluation__every_steps": 2, "checkpoint__every_steps": 2, "schedule__warmup_steps": 1}
    missing = "sentencepiece,sacrebleu,matplotlib,simplejpeg,cykooz_resizer"
    quickly = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    done = run_python("-c", BLOCKED, missing, "train", *as_options(**fields), f"--workdir={tmp_path}/run", env=quickly)
    assert done.returncode == 0, done.stderr
    assert "done after step 2" in done.stdout and list(tmp_path.glob("run/tensorboard/events*"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("package", "extra", "command"),
    [
        ("sentencepiece", "text", "train --config=configs/translate_quickstart.py --workdir={}/run"),
        ("sacrebleu", "text", "train --config=configs/translate_quickstart.py --workdir={}/run --config.data.tokenizer=words"),
        ("matplotlib", "plot", "plot tests/fixtures/tiny_run --output={}/curves.png"),
    ],
)
def test_the_extra_is_named_where_it_is_needed(run_python, tmp_path, package, extra, command):
    done = run_python("-c", BLOCKED, package, *command.format(tmp_path).split())
    assert done.returncode == 2 and not list(tmp_path.glob("run/checkpoints/*"))
    *_, said = done.stderr.splitlines()
    assert said.startswith("error: ") and "Traceback" not in done.stderr
    assert said.endswith(f" needs the package {package!r}: install it with pip install 'attention_jax[{extra}]'.")
