"""Two digits far apart and between them a cue that says which of them to read: a task for gates and attention.

Launch:    ./launch.sh train --config=configs/cued_digits.py --config.model.gate=eca --workdir=runs/cued
Hardware:  two CPU cores, less than a minute.
Expected:  experiments/results/cued_colour-short.md
"""

from ml_collections import ConfigDict

from attention_jax.config import defaults


def get_config() -> ConfigDict:
    """One basic block in each of two stages of 16 and 32 filters, as small as still reads digits."""
    config = defaults.classification()
    config.batch_size = 100
    config.total_steps = 500
    config.model.update(name="resnet20", stage_sizes=(1, 1), widths=(16, 32))
    config.data.update(
        source="cued_digits", args={"key": "colour", "canvas": (10, 32)}, mean=(0.13, 0.13, 0.11), std=(0.27, 0.27, 0.24)
    )
    config.optimizer.update(name="adamw", weight_decay=0.01)
    config.schedule.update(name="cosine", learning_rate=3e-3, warmup_steps=50)
    config.evaluation.update(every_steps=50, batch_size=200)
    config.checkpoint.update(every_steps=500, keep_last=1)
    config.logging.update(every_steps=50, tensorboard=False)
    return config
