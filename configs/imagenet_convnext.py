"""ConvNeXt on ImageNet-1K from scratch (Liu et al. 2022, arXiv 2201.03545, Table 5, and the released code).

Launch:    ./launch.sh train --config=configs/imagenet_convnext.py --workdir=runs/convnext --config.data.args.data_dir=DIR
           DIR holds ImageNet, see attention_jax.config.defaults.imagenet; at gs://, add --config.data.cache_dir=/dev/shm/data
Variants:  configs/imagenet_convnext.py:convnext_base, convnext_isotropic_small, ... (a key of `DROP_PATH`)
Hardware:  TPU v5e-64 in bfloat16 (--config.precision=bfloat16); fewer with config.accumulation.
Expected:  82.1 / 83.1 / 83.8 / 84.3 % top-1 of T, S, B, L at 224 (published, Table 1), 79.7 / 82.0 / 82.6 % of the isotropic S,
           B, L (Table 2; the README has 78.7 for S). Status: not run here.
"""

from functools import partial

from ml_collections import ConfigDict

from attention_jax import recipes
from attention_jax.config import apply_pieces, defaults

DROP_PATH = {"convnext_tiny": 0.1, "convnext_small": 0.4, "convnext_base": 0.5, "convnext_large": 0.5}
DROP_PATH |= {"convnext_isotropic_small": 0.1, "convnext_isotropic_base": 0.2, "convnext_isotropic_large": 0.5}


def get_config(model: str = "convnext_tiny") -> ConfigDict:
    """300 epochs of 4,096 images, AdamW at 4e-3 after 20 epochs of warm-up (50 for the isotropic), then a cosine to 1e-6."""
    config = defaults.imagenet()
    config.model.name = model
    config.update(batch_size=4096, total_epochs=300.0)
    config.schedule.learning_rate = 4e-3
    config.data.update(randaugment_ops="timm", randaugment_std=0.5)
    warmup = partial(recipes.warmup, epochs=50.0 if "isotropic" in model else 20.0)
    training = (recipes.adamw, recipes.no_decay_on_norm_and_bias, partial(recipes.cosine_lr, final_share=1e-6 / 4e-3), warmup)
    images = (partial(recipes.randaugment, magnitude=9), recipes.mixup_or_cutmix, recipes.random_erasing)
    drop_path = partial(recipes.stochastic_depth, rate=DROP_PATH[model], by=None)
    return apply_pieces(config, (*training, *images, recipes.label_smoothing, drop_path, recipes.constant_ema))
