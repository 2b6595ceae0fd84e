"""A small Transformer encoder that recalls the value of a key from a dictionary of eight pairs in a sequence of 66 tokens.

Launch:    ./launch.sh train --config=configs/recall.py --workdir=runs/recall
Hardware:  two CPU cores, about a minute.
Expected:  not run yet
"""

from ml_collections import ConfigDict

from attention_jax.config import defaults


def get_config() -> ConfigDict:
    """Two layers of 32 features."""
    config = defaults.make_defaults("experiments.studies.recall.RecallTask")
    config.batch_size = 64
    config.total_steps = 1500
    config.model.name = "experiments.studies.recall.RecallAttention"
    config.data.update(source="dictionaries", on_broken="stop")
    config.optimizer.update(name="adamw", weight_decay=0.01, clip_norm=1.0)
    config.schedule.update(name="cosine", learning_rate=3e-3, warmup_steps=100)
    config.evaluation.update(every_steps=150, batch_size=500)
    config.checkpoint.update(every_steps=1500, keep_last=1)
    config.logging.update(every_steps=50, tensorboard=False)
    return config
