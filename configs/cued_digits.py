"""Two digits far apart and between them a cue that says which of them to read: a task for gates and attention.

Launch:    ./launch.sh train --config=configs/cued_digits.py --config.model.gate=eca --workdir=runs/cued
Hardware:  two CPU cores, less than a minute.
Expected:  experiments/results/cued_colour-short.md
"""

from ml_collections import ConfigDict

from attention_jax.config import defaults


def get_config() -> ConfigDict:
    """One basic block in each of two stages of 16 and 32 filters, as small as still reads digits."""
    return defaults.cued_digits()
