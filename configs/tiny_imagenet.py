"""ResNet-50 with and without BAM on Tiny ImageNet: 200 classes of ImageNet with 500 images of 64x64 pixels each.

Launch:    ./launch.sh train --config=configs/tiny_imagenet.py --workdir=runs/tiny --config.data.args.path=DIR/tiny-imagenet-200
           DIR holds the unpacked tiny-imagenet-200.zip of Stanford's CS231n. Its validation images lie in one folder; in
           DIR/tiny-imagenet-200, this puts them into one a class:
           while read file class _; do mkdir -p val/$class && mv val/images/$file val/$class/; done < val/val_annotations.txt
Variants:  configs/tiny_imagenet.py:resnet50 without BAM, :bam_resnet50.code with the released module; any ResNet.
Hardware:  one accelerator.
Expected:  no published number is known to us for these networks: BAM's paper has CIFAR-100 and ImageNet. Status: not run.

The recipe is that of configs/cifar100.py for 100 epochs in place of 300, with 8 pixels of padding. The test images have no
labels, so the validation images are evaluated; select on a part of "train" (data.train_split) if a number is to be compared.
"""

from ml_collections import ConfigDict

from attention_jax.config import defaults, override


def get_config(model: str = "bam_resnet50") -> ConfigDict:
    """100 epochs of 128 images; the stem is one 3x3 convolution of stride 1, so that stage 1 has maps of 64x64."""
    config = override(defaults.cifar10(), {"total_epochs": 100.0})
    config.model.update(name=model, stem="cifar", num_classes=200)
    config.data.update(source="folder", args={"path": None}, eval_split="val", crop_padding=8, threads=8)
    config.data.update(mean=(0.480, 0.448, 0.398), std=(0.277, 0.269, 0.282))
    config.data.update(image_shape=(64, 64, 3), num_examples=100_000)
    config.optimizer.weight_decay = 5e-4
    return config
