"""EfficientNet on ImageNet (Tan & Le 2019, arXiv 1905.11946, and tensorflow/tpu, models/official/efficientnet).

Launch:    ./launch.sh train --config=configs/imagenet_efficientnet.py --workdir=runs/b0 --config.data.args.data_dir=DIR
           DIR holds ImageNet, see attention_jax.config.defaults.imagenet; at gs://, add --config.data.cache_dir=/dev/shm/data
Variants:  configs/imagenet_efficientnet.py:tf_efficientnet_b1, ... tf_efficientnet_b7
Hardware:  TPU v5e-64; fewer with config.accumulation, which cuts a batch into parts.
Expected:  76.8 / 78.8 / 79.8 / 81.0 / 82.6 / 83.2 % top-1 of B0 to B5 (published: their README, "standard preprocessing"; the
           paper's and B6's and B7's are with AutoAugment, which is not here). Status: not run here.

RMSProp is TensorFlow's; the rate falls by 3 % every 2.4 epochs from the first on, those of the warm-up counted.
"""

from functools import partial

from ml_collections import ConfigDict

from attention_jax import recipes
from attention_jax.config import apply_pieces, defaults

# network: (pixels, dropout), the coefficients of scaling
SIZES = {f"tf_efficientnet_b{i}": sizes for i, sizes in enumerate(((224, 0.2), (240, 0.2), (260, 0.3), (300, 0.3)))}
SIZES |= {f"tf_efficientnet_b{i}": sizes for i, sizes in enumerate(((380, 0.4), (456, 0.4), (528, 0.5), (600, 0.5)), 4)}


def get_config(model: str = "tf_efficientnet_b0") -> ConfigDict:
    """350 epochs of 4,096 images, RMSProp at 0.016 for 256 of them after 5 epochs of warm-up."""
    size, dropout = SIZES[model]
    config = defaults.imagenet(size, eval_resize=size + 32)
    config.model.name = model
    config.update(batch_size=4096, total_epochs=350.0)
    config.optimizer.weight_decay = 1e-5
    config.schedule.learning_rate = 0.016 * 4096 / 256
    falls = tuple(2.4 * i / 350 for i in range(1, 146))
    rate = (partial(recipes.step_lr, boundaries=falls, factor=0.97), recipes.warmup)
    regularisation = (recipes.label_smoothing, partial(recipes.dropout, rate=dropout), recipes.no_decay_on_norm)
    drop_path = partial(recipes.stochastic_depth, rate=0.2, by=None)
    return apply_pieces(config, (recipes.rmsprop, *rate, *regularisation, drop_path, recipes.ema))
