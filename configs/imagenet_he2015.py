"""ResNets as He et al. 2015 trained them on ImageNet (arXiv 1512.03385, Section 3.4).

Launch:    ./launch.sh train --config=configs/imagenet_he2015.py --workdir=runs/he2015 --config.data.args.data_dir=DIR
           DIR holds ImageNet, see attention_jax.config.defaults.imagenet; at gs://, add --config.data.cache_dir=/dev/shm/data
Variants:  configs/imagenet_he2015.py:resnet34, resnet101, resnet152; plain: --config.model.residual=False
Hardware:  TPU v5e-8 in bfloat16 (--config.precision=bfloat16), or any accelerators that hold 256 images together.
Expected:  24.7 % top-1 error of ResNet-50 in a single crop, 22.9 % in ten (published: KaimingHe/deep-residual-networks,
           README); 27.88 % and 25.03 % of 18 and 34 layers, option A, ten crops (Table 2). Status: not run here.

As there: stride in the first 1x1, Caffe's momentum, decay of every parameter, 224 pixels out of a shorter side of 256 to 480,
shifted colours. Not as there: the rate falls at one and two thirds of the 600,000 steps, as "when the error plateaus" is not
a number, and a mean and a deviation for each channel stand for the mean of each pixel.
"""

from ml_collections import ConfigDict

from attention_jax import recipes
from attention_jax.config import apply_pieces, defaults


def get_config(model: str = "resnet50") -> ConfigDict:
    """600,000 steps of 256 images, rate 0.1 divided by 10 twice."""
    config = defaults.imagenet()
    config.model.update(name=model, stride_at="1x1", shortcut="A" if model in ("resnet18", "resnet34") else "B")
    config.update(batch_size=256, total_steps=600_000)
    config.data.crop = "random_scaled"
    config.optimizer.update(momentum=0.9, rate_in_velocity=True, weight_decay=1e-4)
    config.schedule.learning_rate = 0.1
    return apply_pieces(config, (recipes.step_lr, recipes.lighting))
