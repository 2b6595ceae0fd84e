"""Makes tests/fixtures/tiny_run, a trained run that every later version must open:  python -m tests.helpers.make_tiny_run

It was made once and stays as it is; a change of the code that cannot open it breaks everybody's checkpoints. Beside it lie
the logits that it gave when it was made.
"""

import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np

import attention_jax as aj
from attention_jax.data import embedded
from attention_jax.train.loop import train_model
from tests.helpers.small import small_config

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures"
RUN, LOGITS = FIXTURES / "tiny_run", FIXTURES / "tiny_run_logits.npz"
KEPT = ("config.json", "metrics.jsonl", "evaluation.npz", "checkpoints")


def make() -> None:
    """Two blocks with BAM between them, ten epochs of the digits: half a minute."""
    config = small_config(
        model__widths=(6, 12),
        model__gate="bam",
        model__gate_args={"reduction": 2},
        total_steps=370,
        ema__decay=0.98,
        evaluation__every_steps=37,
        checkpoint__every_steps=370,
        checkpoint__keep_last=1,
        logging__every_steps=37,
    )
    with tempfile.TemporaryDirectory() as folder:
        train_model(config, folder)
        for marker in Path(folder).rglob("commit_success.txt"):
            marker.write_text("Checkpoint commit was successful\n")  # Orbax adds the path on the machine that wrote it
        RUN.mkdir()
        for name in KEPT:
            source = Path(folder) / name
            (shutil.copytree if source.is_dir() else shutil.copyfile)(source, RUN / name)

    images = embedded.read_digits("test")[0][:8]
    logits = {}
    for weights in ("params", "ema"):
        run = aj.load_run(RUN, weights)
        logits[weights] = np.asarray(run.model.apply(run.variables, run.preprocess(images)))
    np.savez(LOGITS, **logits)


if __name__ == "__main__":
    if RUN.exists():
        sys.exit(f"{RUN} exists already; it is not made anew")
    make()
