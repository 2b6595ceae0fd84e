"""ResNet-50 on ImageNet, the recipe of fb.resnet.torch that most later papers start from.

Launch:    ./launch.sh train --config=configs/imagenet_resnet50.py --workdir=runs/resnet50 --config.data.args.data_dir=DIR
           DIR holds ImageNet as ArrayRecord: ./launch.sh prepare imagenet2012 --data_dir=DIR
           DIR at gs://: --config.data.cache_dir=/dev/shm/data, 155 GB of each host's memory, see docs/clusters.md
Folders:   --config.data.source=folder --config.data.args="{'path': 'DIR'}" --config.data.eval_split=val
           for DIR/train and DIR/val with a folder a class, as torchvision has them.
Variants:  configs/imagenet_resnet50.py:resnext50_32x4d, configs/imagenet_resnet50.py:bam_resnet50, …
Hardware:  accelerators that hold 256 images together; config.accumulation cuts a batch into parts that one holds.
Expected:  24.01 % top-1 error, single centre crop (published: facebookarchive/fb.resnet.torch, README). Status: not run.

Like fb.resnet.torch: stride in the 3x3 ("v1.5"), SGD with Nesterov momentum, weight decay on every parameter, area 8 to
100 %, bicubic, evaluation at 256 and centre 224. Not like it: neither colour jitter nor lighting, so that tables start from
less; --config.data.colour_jitter=0.4 --config.data.lighting=0.1 adds them.
"""

from ml_collections import ConfigDict

from attention_jax import recipes
from attention_jax.config import apply_pieces, defaults


def get_config(model: str = "resnet50") -> ConfigDict:
    """90 epochs of 256 images, learning rate 0.1 divided by 10 at epochs 30 and 60."""
    config = defaults.imagenet()
    config.model.name = model
    config.update(batch_size=256, total_epochs=90.0)
    config.batch_norm.granularity = "per_replica"  # theirs: a GPU's share
    config.optimizer.weight_decay = 1e-4
    config.schedule.learning_rate = 0.1
    return apply_pieces(config, (recipes.step_lr, recipes.nesterov))
