"""Fine-tunes ImageNet weights on a folder of images: ConvNeXt's recipe (Liu et al. 2022, arXiv 2201.03545, Table 6).

Launch:    ./launch.sh train --config=configs/finetune_folder.py --config.init_from=FILE --workdir=runs/tuned
           FILE is timm's, torchvision's or the authors' convnext_tiny; with --config.data.args.path=DIR, where DIR/train and
           DIR/val have a folder a class.
Variants:  configs/finetune_folder.py:convnext_small, configs/finetune_folder.py:resnet50, ... (any of timm's names).
Hardware:  accelerators that hold 512 images together; config.accumulation cuts a batch into parts that one holds.
Expected:  no published number for a folder of yours. Status: not run.

As in the table: 30 epochs of 512 images, AdamW at 5e-5 without warm-up, decay 1e-8, layer-wise rates 0.7, RandAugment (9, 0.5),
erasing, smoothing, no mixup, 0.001 times the classifier's initial weights. Stochastic depth is 0 as there for a
convnext_tiny from ImageNet-22K, whose layer-wise rates are 0.8. Other networks than ConvNeXt have one rate for all layers.
"""

from functools import partial

from ml_collections import ConfigDict

from attention_jax import preprocessing, recipes
from attention_jax.config import apply_pieces, defaults


def get_config(model: str = "convnext_tiny") -> ConfigDict:
    """The preprocessing is that of timm's weights; of torchvision's --config.data.interpolation=bilinear and its resize."""
    config = defaults.classification()
    config.model.name = model
    config.update(batch_size=512, total_epochs=30.0)
    config.data.update(source="folder", args={"path": "DIR"}, eval_split="val", crop="random_resized", flip=True, threads=16)
    config.data.update(preprocessing(model).to_fields(), randaugment_ops="timm", randaugment_std=0.5)
    config.optimizer.decay_rules = (("(bias|scale|positions|token)$", False), (".*", True))
    config.schedule.learning_rate = 5e-5
    images = (partial(recipes.randaugment, magnitude=9), recipes.random_erasing, recipes.label_smoothing)
    pieces = [partial(recipes.adamw, weight_decay=1e-8), *images]
    if model.startswith("convnext_"):
        config.model.head_init_scale = 0.001
        pieces.append(partial(recipes.layerwise_lr_decay, factor=0.7))
    return apply_pieces(config, tuple(pieces))
