"""ResNet-20 on CIFAR-10 as in He et al. 2016 (arXiv 1512.03385, Section 4.2).

Launch:    ./launch.sh train --config=configs/cifar10.py --workdir=runs/cifar10 --config.data.args.data_dir=DIR
           DIR holds CIFAR-10 as TensorFlow Datasets prepares it with file_format="array_record".
Variants:  configs/cifar10.py:resnet56, configs/cifar10.py:bam_resnet20, … (any CIFAR network of list_models()).
Hardware:  one accelerator.
Expected:  8.75 % test error for ResNet-20, 6.97 % for ResNet-56 (Table 6, published). Status: not run.
"""

from ml_collections import ConfigDict

from attention_jax.config import defaults


def get_config(model: str = "resnet20") -> ConfigDict:
    """The paper's recipe: 64,000 steps of 128 images, learning rate divided by 10 at 32,000 and 48,000."""
    config = defaults.classification()
    config.batch_size = 128  # the paper: on two GPUs, so that 64 share statistics; here batch_norm.granularity is "all"
    config.total_steps = 64_000
    config.model.update(name=model, num_classes=10)
    config.data.source = "tfds"
    config.data.args.update(name="cifar10", data_dir=None)  # None is ~/tensorflow_datasets
    config.data.update(crop_padding=4, flip=True)  # the paper's curves hold out 5,000: train_split="train[:45000]"
    config.data.update(mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616))
    config.data.update(image_shape=(32, 32, 3), num_examples=50_000)
    config.optimizer.weight_decay = 1e-4  # on every parameter
    config.schedule.update(name="step", learning_rate=0.1, boundaries=(0.5, 0.75))
    config.evaluation.update(every_epochs=5.0, batch_size=400)
    config.checkpoint.every_epochs = 5.0
    return config
