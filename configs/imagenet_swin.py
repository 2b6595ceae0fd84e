"""Swin Transformers on ImageNet-1K from scratch (Liu et al. 2021, arXiv 2103.14030, and the released code).

Launch:    ./launch.sh train --config=configs/imagenet_swin.py --workdir=runs/swin --config.data.args.data_dir=DIR
           DIR holds ImageNet, see attention_jax.config.defaults.imagenet; at gs://, add --config.data.cache_dir=/dev/shm/data
Variants:  configs/imagenet_swin.py:swin_small_patch4_window7_224, swin_base_patch4_window7_224
Hardware:  TPU v5e-16 in bfloat16 (--config.precision=bfloat16); fewer with config.accumulation.
Expected:  81.3 / 83.0 / 83.5 % top-1 of T, S, B (published, paper; the README has 81.2 and 83.2 for T and S).
           Status: not run here.

The cosine begins after the warm-up, as their recent settings have it.
"""

from functools import partial

from ml_collections import ConfigDict

from attention_jax import recipes
from attention_jax.config import apply_pieces, defaults

DROP_PATH = {f"swin_{size}_patch4_window7_224": rate for size, rate in (("tiny", 0.2), ("small", 0.3), ("base", 0.5))}


def get_config(model: str = "swin_tiny_patch4_window7_224") -> ConfigDict:
    """300 epochs of 1,024 images, AdamW at 5e-4 for 512 of them after 20 epochs of warm-up, clipped at 5, then a cosine."""
    config = defaults.imagenet()
    config.model.name = model
    config.update(batch_size=1024, total_epochs=300.0)
    config.schedule.learning_rate = 5e-4 * 1024 / 512
    config.data.update(randaugment_ops="timm", randaugment_std=0.5)
    training = (recipes.adamw, recipes.no_decay_on_norm_and_bias, partial(recipes.clip_gradients, norm=5.0))
    rate = (partial(recipes.cosine_lr, final_share=0.01), partial(recipes.warmup, epochs=20.0, start=5e-7 * 1024 / 512))
    images = (partial(recipes.randaugment, magnitude=9), recipes.mixup_or_cutmix, recipes.random_erasing)
    drop_path = partial(recipes.stochastic_depth, rate=DROP_PATH[model], by=None)
    return apply_pieces(config, (*training, *rate, *images, recipes.label_smoothing, drop_path))
