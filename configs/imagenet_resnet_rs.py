"""ResNet-RS on ImageNet (Bello et al. 2021, arXiv 2103.07579, Section 6 and Table 8).

Launch:    ./launch.sh train --config=configs/imagenet_resnet_rs.py --workdir=runs/rs50 --config.data.args.data_dir=DIR
           DIR holds ImageNet, see attention_jax.config.defaults.imagenet; at gs://, add --config.data.cache_dir=/dev/shm/data
Variants:  configs/imagenet_resnet_rs.py:resnetrs152@224, ... (a key of `TABLE_8`: network and pixels)
Hardware:  TPU v5e-64; fewer with config.accumulation, which cuts a batch into parts.
Expected:  78.8 % top-1 of ResNet-RS-50 at 160, 83.4 % of 200 at 256, 84.4 % of 420 at 320 (published: tensorflow/tpu,
           resnet_rs/README.md). Status: not run here.

The paper's cosine; their released TensorFlow 1 code has steps in its place. There running statistics are the last batch's
and their average is evaluated; here they have momentum 0.9 below the average.
"""

from functools import partial

from ml_collections import ConfigDict

from attention_jax import recipes
from attention_jax.config import apply_pieces, defaults

# network@pixels: (magnitude of RandAugment, stochastic depth, dropout)
TABLE_8 = {f"resnetrs{name}": (10, 0.0, 0.25) for name in ("50@160", "101@160")}
TABLE_8 |= {f"resnetrs{name}": (15, 0.0, 0.25) for name in ("101@192", "152@192", "152@224", "152@256")}
TABLE_8 |= {f"resnetrs{name}": (15, 0.1, 0.25) for name in ("200@256", "270@256", "350@256")}
TABLE_8 |= {f"resnetrs{name}": (15, 0.1, 0.4) for name in ("350@320", "420@320")}


def get_config(model: str = "resnetrs50@160") -> ConfigDict:
    """350 epochs of 4,096 images, rate 0.1 for 256 of them, after 5 epochs of warm-up down a cosine."""
    magnitude, drop_path, dropout = TABLE_8[model]
    name, size = model.split("@")
    config = defaults.imagenet(int(size), eval_resize=round(int(size) / 0.875))
    config.model.name = name
    config.update(batch_size=4096, total_epochs=350.0)
    config.data.randaugment_ops = "tf1"
    config.schedule.learning_rate = 0.1 * 4096 / 256
    training = (recipes.nesterov, recipes.cosine_lr, recipes.warmup, recipes.ema, recipes.bf16)
    images = (recipes.label_smoothing, partial(recipes.randaugment, magnitude=magnitude))
    weights = (partial(recipes.dropout, rate=dropout), recipes.decrease_weight_decay, recipes.no_decay_on_norm)
    depth = (partial(recipes.stochastic_depth, rate=drop_path),) if drop_path else ()
    return apply_pieces(config, (*training, *images, *weights, *depth))
