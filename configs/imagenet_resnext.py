"""ResNeXt on ImageNet (Xie et al. 2017, arXiv 1611.05431, Section 4 and the released code).

Launch:    ./launch.sh train --config=configs/imagenet_resnext.py --workdir=runs/resnext --config.data.args.data_dir=DIR
           DIR holds ImageNet, see attention_jax.config.defaults.imagenet; at gs://, add --config.data.cache_dir=/dev/shm/data
Variants:  configs/imagenet_resnext.py:resnext101_32x4d, resnext50_2x40d, ... (list_models("resnext*"))
Hardware:  TPU v5e-8 in bfloat16 (--config.precision=bfloat16), or any accelerators that hold 256 images together.
Expected:  22.2 % top-1 error of ResNeXt-50 (32x4d), 23.9 % of ResNet-50, single crop (published, Table 3).
           Status: not run here.

As in the released code: fb.resnet.torch's augmentation, 100 epochs, and 32 examples that share statistics (256 on 8 GPUs).
"""

from functools import partial

from ml_collections import ConfigDict

from attention_jax import recipes
from attention_jax.config import apply_pieces, defaults


def get_config(model: str = "resnext50_32x4d") -> ConfigDict:
    """100 epochs of 256 images, rate 0.1 divided by 10 at epochs 30, 60 and 90."""
    config = defaults.imagenet()
    config.model.name = model
    config.update(batch_size=256, total_epochs=100.0)
    config.batch_norm.granularity = 32
    config.optimizer.weight_decay = 1e-4  # of every parameter
    config.schedule.learning_rate = 0.1
    step_lr = partial(recipes.step_lr, boundaries=(0.3, 0.6, 0.9))
    return apply_pieces(config, (step_lr, recipes.nesterov, recipes.colour_jitter, recipes.lighting))
