"""ResNet-32 at half width on the UCI digits, the network behind the first table.

Launch:    ./launch.sh train --config=configs/quickstart.py --workdir=runs/digits
Hardware:  two CPU cores, less than a minute.
Expected:  see experiments/results/shortcuts.md (row "residual").
"""

from ml_collections import ConfigDict

from attention_jax.config import defaults


def get_config() -> ConfigDict:
    """He et al.'s CIFAR recipe, shortened."""
    config = defaults.classification()
    config.batch_size = 32
    config.total_epochs = 22.0
    config.model.update(name="resnet32", widths=(8, 16, 32))  # half of the paper's
    config.data.update(source="digits", crop_padding=1, mean=(0.3,), std=(0.38,))
    config.optimizer.update(nesterov=True, weight_decay=5e-4, decay_rules=(("(bias|scale)$", False), (".*", True)))
    config.schedule.update(name="step", learning_rate=0.05, boundaries=(0.5, 0.75), warmup_epochs=1.0)
    config.evaluation.update(every_epochs=2.0, batch_size=200)
    config.checkpoint.update(every_epochs=11.0, keep_last=1)
    config.logging.every_steps = 37
    return config
