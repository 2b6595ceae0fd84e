"""ResNet-50 with and without BAM on CIFAR-100, as in BAM's ablations (Park et al. 2018, arXiv 1807.06514, Section 5.1).

Launch:    ./launch.sh train --config=configs/cifar100.py --workdir=runs/cifar100 --config.data.args.data_dir=DIR
           DIR holds CIFAR-100: ./launch.sh prepare cifar100 --data_dir=DIR
Variants:  configs/cifar100.py:resnet50 without BAM, :bam_resnet50.code with the released module; ResNets of 18 to 152 layers.
Hardware:  one accelerator.
Expected:  20.00 % test error with BAM and 21.49 % without (published, Park et al. 2018; quoted from other texts, as the paper
           was not at hand). Status: not run.

The stem is one 3x3 convolution of stride 1 without pooling, as in the released code; the published 24.07 million parameters
are those of this network. The authors released no training program for CIFAR-100. 300 epochs, momentum 0.9, decay 5e-4 and
rate 0.1, divided by 10 at half and at three quarters, are quoted from memory, and their batch size is not known to us.
"""

from ml_collections import ConfigDict

from attention_jax.config import defaults, override


def get_config(model: str = "bam_resnet50") -> ConfigDict:
    """300 epochs of 128 images, padded by 4 pixels, cropped and flipped; the rate falls at half and at three quarters."""
    config = override(defaults.cifar10(), {"total_epochs": 300.0})
    config.model.update(name=model, stem="cifar", num_classes=100)
    config.data.args.name = "cifar100"
    config.data.update(mean=(0.5071, 0.4865, 0.4409), std=(0.2673, 0.2564, 0.2762))
    config.optimizer.weight_decay = 5e-4
    config.evaluation.every_epochs = config.checkpoint.every_epochs = 10.0
    return config
