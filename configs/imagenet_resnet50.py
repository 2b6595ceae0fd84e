"""ResNet-50 on ImageNet, the recipe of fb.resnet.torch that most later papers start from.

Launch:    ./launch.sh train --config=configs/imagenet_resnet50.py --workdir=runs/resnet50 --config.data.args.data_dir=DIR
           DIR holds ImageNet as ArrayRecord: python -m attention_jax prepare imagenet2012 --data_dir=DIR
Folders:   --config.data.source=folder --config.data.args="{'path': 'DIR'}" --config.data.eval_split=val
           for DIR/train and DIR/val with a folder a class, as torchvision has them.
Variants:  configs/imagenet_resnet50.py:resnext50_32x4d, configs/imagenet_resnet50.py:bam_resnet50, …
Hardware:  accelerators that hold 256 images together; config.accumulation cuts a batch into parts that one holds.
Expected:  24.01 % top-1 error, single centre crop (published: facebookarchive/fb.resnet.torch, README). Status: not run.

Like fb.resnet.torch: stride in the 3x3 ("v1.5"), SGD with Nesterov momentum, weight decay on every parameter, area 8 to
100 %, bicubic, evaluation at 256 and centre 224. Not like it: no colour jitter and no PCA lighting, which are not here.
"""

from ml_collections import ConfigDict


def get_config(model: str = "resnet50") -> ConfigDict:
    """90 epochs of 256 images, learning rate 0.1 divided by 10 at epochs 30 and 60."""
    config = ConfigDict()
    config.version = 2  # of the config's fields
    config.task = "classification"  # what to train: tasks are listed in attention_jax/tasks
    config.seed = 0  # of initialisation, data order and augmentation
    config.batch_size = 256  # examples, over all devices
    config.accumulation = 1  # micro-batches that make up a batch
    config.total_epochs = 90.0  # or total_steps, total_examples; so for every duration

    config.model = ConfigDict()  # open: any field of the network may be set
    config.model.name = model  # as attention_jax.list_models() lists them
    config.model.num_classes = 1000  # K; None takes the data's

    config.batch_norm = ConfigDict()
    config.batch_norm.granularity = "per_replica"  # "all" | "per_replica" | a number of examples; theirs: a GPU's share

    config.data = ConfigDict()
    config.data.source = "tfds"  # a built-in name, a dotted path, or path/to/file.py:make
    config.data.args = ConfigDict({"name": "imagenet2012", "data_dir": None})  # None is ~/tensorflow_datasets
    config.data.train_split = "train"  # as TFDS spells it
    config.data.eval_split = "validation"  # every example of it is evaluated
    config.data.crop = "random_resized"  # "pad" | "random_resized" | "none": how training crops
    config.data.crop_padding = 0  # pixels a side before a random crop, 0 for none; of "pad"
    config.data.crop_scale = (0.08, 1.0)  # share of the image's area, of "random_resized"
    config.data.crop_ratio = (3 / 4, 4 / 3)  # width / height, of "random_resized"
    config.data.flip = True  # left-right, with probability 1/2
    config.data.randaugment_layers = 0  # N, operations an image; 0 for none
    config.data.randaugment_magnitude = 9  # M, 0 to 10 in AutoAugment's scale, and beyond
    config.data.randaugment_std = 0.0  # of M, drawn anew for each operation; 0.5 in timm's
    config.data.randaugment_ops = "paper"  # "paper" | "tf1" | "timm": which operations
    config.data.interpolation = "bicubic"  # "bilinear" | "bicubic", antialiased, of every resize
    config.data.eval_resize = 256  # shorter side in pixels before the centre crop; None takes images as they are
    config.data.on_broken = "skip"  # "skip" | "stop": what an image does that cannot be decoded
    config.data.mean = (0.485, 0.456, 0.406)  # a channel, in units of the full range
    config.data.std = (0.229, 0.224, 0.225)  # likewise
    config.data.image_shape = (224, 224, 3)  # (height, width, channels); None takes the data's
    config.data.num_examples = 1_281_167  # of the training split; None takes the data's
    config.data.threads = 16  # that load batches ahead of the step

    config.optimizer = ConfigDict()
    config.optimizer.name = "sgd"  # "sgd" | "adamw"
    config.optimizer.momentum = 0.9  # share of the old velocity kept; first-moment decay of adamw
    config.optimizer.nesterov = True  # of sgd
    config.optimizer.weight_decay = 1e-4  # L2 for sgd, decoupled for adamw
    config.optimizer.decay_rules = ((".*", True),)  # (path regex, decay it); first match wins

    config.schedule = ConfigDict()
    config.schedule.name = "step"  # "constant" | "step" | "cosine"
    config.schedule.learning_rate = 0.1  # peak, for the whole batch
    config.schedule.warmup_steps = 0  # linear, from 0
    config.schedule.boundaries = (1 / 3, 2 / 3)  # of "step", as shares of the run
    config.schedule.factor = 0.1  # of "step", at each boundary

    config.loss = ConfigDict()
    config.loss.label_smoothing = 0.0  # share spread evenly over all classes

    config.ema = ConfigDict()
    config.ema.decay = 0.0  # of weights and batch statistics a step; 0 for no average
    config.ema.warmup = True  # decay at step t is at most (1+t)/(10+t)

    config.evaluation = ConfigDict()
    config.evaluation.every_epochs = 1.0  # and at the end
    config.evaluation.batch_size = 256  # examples, over all devices

    config.checkpoint = ConfigDict()
    config.checkpoint.every_epochs = 1.0  # and at the end
    config.checkpoint.keep_last = 2  # newest checkpoints kept
    config.checkpoint.keep_best = 1  # by the headline metric, accuracy

    config.logging = ConfigDict()
    config.logging.every_steps = 100  # a line of training metrics
    config.logging.tensorboard = True  # mirror the log as TensorBoard events

    config.parallel = ConfigDict()
    config.parallel.mode = "jit"  # "jit" | "pmap": one program over all devices, or one a replica
    config.parallel.data = -1  # devices on the data axis, -1 for all

    config.profile = ConfigDict()
    config.profile.first_step = 0  # a trace of num_steps steps goes to profile/ in the workdir
    config.profile.num_steps = 0
    return config
