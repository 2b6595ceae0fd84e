"""Vision Transformers on ImageNet-1K from scratch as DeiT (Touvron et al. 2021, arXiv 2012.12877, and the released code).

Launch:    ./launch.sh train --config=configs/imagenet_deit.py --workdir=runs/deit --config.data.args.data_dir=DIR
           DIR holds ImageNet, see attention_jax.config.defaults.imagenet; at gs://, add --config.data.cache_dir=/dev/shm/data
Variants:  configs/imagenet_deit.py:deit_tiny_patch16_224, deit_base_patch16_224, vit_base_patch16_gap_224, ...
Hardware:  TPU v5e-16 in bfloat16 (--config.precision=bfloat16); fewer with config.accumulation.
Expected:  72.2 / 79.9 / 81.8 % top-1 of tiny, small, base (published: facebookresearch/deit, README_deit.md).
           Status: not run here.

Not as there: no repeated augmentation, which has each image three times in a batch and a third of them in an epoch; the
cosine begins after the warm-up, and its rate changes with every step in place of every epoch.
"""

from functools import partial

from ml_collections import ConfigDict

from attention_jax import recipes
from attention_jax.config import apply_pieces, defaults


def get_config(model: str = "deit_small_patch16_224") -> ConfigDict:
    """300 epochs of 1,024 images, AdamW at 5e-4 for 512 of them after 5 epochs of warm-up, then a cosine to 1e-5."""
    config = defaults.imagenet()
    config.model.name = model
    config.update(batch_size=1024, total_epochs=300.0)
    config.schedule.learning_rate = 5e-4 * 1024 / 512
    config.data.update(randaugment_ops="timm", randaugment_std=0.5)
    # timm leaves out positions and tokens too.
    config.optimizer.decay_rules = (("(bias|scale|positions|token)$", False), (".*", True))
    training = (recipes.adamw, partial(recipes.cosine_lr, final_share=0.01), partial(recipes.warmup, epochs=5.0, start=1e-6))
    images = (partial(recipes.randaugment, magnitude=9), recipes.mixup_or_cutmix, recipes.random_erasing)
    drop_path = partial(recipes.stochastic_depth, by=None)
    average = partial(recipes.constant_ema, decay=0.99996)
    return apply_pieces(config, (*training, *images, recipes.label_smoothing, drop_path, average))
