"""Segmentation of the digit among pieces of others, with a small ResNet and one linear layer on its maps.

Launch:    ./launch.sh train --config=configs/segmentation.py --workdir=runs/segmentation
Hardware:  two CPU cores, less than a minute.
Expected:  experiments/results/dense.md (row "ResNet")
"""

from ml_collections import ConfigDict

from attention_jax.config import defaults


def get_config() -> ConfigDict:
    """A stage of 8, 16 and 32 filters each, and maps of strides 1, 2 and 4."""
    config = defaults.make_defaults("experiments.studies.dense.SegmentationTask")
    config.batch_size = 32
    config.total_steps = 1500
    config.model.update(
        name="experiments.studies.dense.LinearSegmenter",
        backbone="resnet20",
        fields={"stage_sizes": (1, 1, 1), "widths": (8, 16, 32), "shortcut": "B"},
    )
    config.data.update(
        source="cluttered digits", args={"canvas": (16, 16), "number": (4800, 2000), "pieces": 2, "piece": 3}, on_broken="stop"
    )
    config.optimizer.update(name="adamw", weight_decay=0.01)
    config.schedule.update(name="cosine", learning_rate=3e-3, warmup_steps=150)
    config.evaluation.update(every_steps=1350, batch_size=200)
    config.checkpoint.update(every_steps=1500, keep_last=1)
    config.logging.update(every_steps=150, tensorboard=False)
    return config
