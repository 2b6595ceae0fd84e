"""Fine-tunes a CIFAR ResNet-20, such as one of akamaster's, on the UCI digits enlarged to its 32 pixels.

Launch:    ./launch.sh train --config=configs/finetune_digits.py --config.init_from=FILE --workdir=runs/tuned
           FILE is a run's workdir, or weights of a ResNet-20 (option A) in any layout of docs/weights.md.
Folders:   --config.data.source=folder --config.data.args="{'path': 'DIR'}" --config.model.num_classes=None
           for DIR/train and DIR/test with a folder a class.
Hardware:  two CPU cores; how long it takes was not measured.
Expected:  no published number. Status: not run with published weights.
"""

from ml_collections import ConfigDict

from attention_jax import preprocessing
from attention_jax.config import defaults


def get_config() -> ConfigDict:
    """5 epochs of 32 images with AdamW: a tenth of the usual rate below the classifier, and the statistics of the source."""
    config = defaults.classification()
    config.batch_size = 32
    config.total_epochs = 5.0
    config.model.update(name="resnet20", shortcut="A-centred")  # option A as akamaster's networks have it
    config.data.update(source="digits", args={"channels": 3}, crop="random_resized", crop_scale=(0.5, 1.0))
    config.data.update(preprocessing("resnet20").to_fields())
    config.optimizer.update(name="adamw", weight_decay=0.01, rate_rules=(("^head/", 1.0), (".*", 0.1)))
    config.schedule.update(learning_rate=3e-3, warmup_epochs=0.5)
    config.batch_norm.granularity = "stored"
    config.evaluation.batch_size = 200
    config.logging.every_steps = 10
    return config
