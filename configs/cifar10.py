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
    config = defaults.cifar10()
    config.model.name = model
    return config
