"""BAM on ImageNet as its authors' code trains it (Park et al. 2018, arXiv 1807.06514; Jongchan/attention-module).

Launch:    ./launch.sh train --config=configs/imagenet_bam.py --workdir=runs/bam --config.data.args.data_dir=DIR
           DIR holds ImageNet, see attention_jax.config.defaults.imagenet; at gs://, add --config.data.cache_dir=/dev/shm/data
Variants:  configs/imagenet_bam.py:resnet50 without it, :bam_resnet50 with the paper's module (branches added),
           :cbam_resnet50, which their code trains for 100 epochs: --config.total_epochs=100
           --config.schedule.boundaries="(0.3,0.6,0.9)"
Hardware:  TPU v5e-4 in bfloat16 (--config.precision=bfloat16), or any accelerators that hold 256 images together.
Expected:  23.14 % top-1 error of ResNet-50 with the released module (published: Jongchan/attention-module, README; the
           same weights give 23.68 % in osmr/imgclsmob), 24.56 % without one (published, paper). Status: not run here.

As there: momentum without Nesterov, decay of every parameter, bilinear interpolation, and 64 examples that share statistics
(256 on 4 GPUs).
"""

from ml_collections import ConfigDict

from attention_jax import recipes
from attention_jax.config import apply_pieces, defaults


def get_config(model: str = "bam_resnet50.code") -> ConfigDict:
    """90 epochs of 256 images, rate 0.1 divided by 10 at epochs 30 and 60."""
    config = defaults.imagenet()
    config.model.name = model
    config.update(batch_size=256, total_epochs=90.0)
    config.batch_norm.granularity = 64
    config.data.interpolation = "bilinear"
    config.optimizer.update(momentum=0.9, weight_decay=1e-4)
    config.schedule.learning_rate = 0.1
    return apply_pieces(config, (recipes.step_lr,))
