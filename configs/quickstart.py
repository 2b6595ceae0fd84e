"""ResNet-32 at half width on the UCI digits, the network behind the first table.

Launch:    ./launch.sh train --config=configs/quickstart.py --workdir=runs/digits
Hardware:  two CPU cores, less than a minute.
Expected:  see experiments/results/quickstart.md (row "residual").
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """He et al.'s CIFAR recipe, shortened, with every field that the library reads."""
    config = ConfigDict()
    config.version = 3  # of the config's fields
    config.task = "classification"  # what to train: tasks are listed in attention_jax/tasks
    config.seed = 0  # of initialisation, data order and augmentation
    config.batch_size = 32  # examples, over all devices
    config.accumulation = 1  # micro-batches that make up a batch
    config.total_epochs = 22.0  # or total_steps, total_examples; every duration takes any of these units
    config.precision = "float32"  # "float32" | "bfloat16": of activations and products; weights and statistics are float32

    config.model = ConfigDict()  # open: any field of the network may be set
    config.model.name = "resnet32"  # as attention_jax.list_models() lists them
    config.model.widths = (8, 16, 32)  # half of the paper's

    config.batch_norm = ConfigDict()
    config.batch_norm.granularity = "all"  # "all" | "per_replica" | a number of examples that share statistics

    config.data = ConfigDict()
    config.data.source = "digits"  # a built-in name, a dotted path, or path/to/file.py:make
    config.data.args = ConfigDict()  # open: keyword arguments of the source
    config.data.train_split = "train"  # as the source spells its splits
    config.data.eval_split = "test"  # every example is evaluated
    config.data.crop = "pad"  # "pad" | "random_resized" | "none": how training crops
    config.data.crop_padding = 1  # pixels a side before a random crop, 0 for none; of "pad"
    config.data.crop_scale = (0.08, 1.0)  # share of the image's area, of "random_resized"
    config.data.crop_ratio = (3 / 4, 4 / 3)  # width / height, of "random_resized"
    config.data.flip = False  # digits are not symmetric
    config.data.randaugment_layers = 0  # N, operations an image; 0 for none
    config.data.randaugment_magnitude = 9  # M, 0 to 10 in AutoAugment's scale, and beyond
    config.data.randaugment_std = 0.0  # of M, drawn anew for each operation; 0.5 in timm's
    config.data.randaugment_ops = "paper"  # "paper" | "tf1" | "timm": which operations
    config.data.interpolation = "bilinear"  # "bilinear" | "bicubic", antialiased, of every resize
    config.data.eval_resize = None  # shorter side in pixels before the centre crop; None takes images as they are
    config.data.on_broken = "skip"  # "skip" | "stop" at an image that cannot be decoded
    config.data.mean = (0.3,)  # a channel, in units of the full range
    config.data.std = (0.38,)  # likewise
    config.data.image_shape = None  # (height, width, channels); None takes the data's
    config.data.num_examples = None  # of the training split; None takes the data's
    config.data.threads = 2  # that load batches ahead of the step

    config.optimizer = ConfigDict()
    config.optimizer.name = "sgd"  # "sgd" | "rmsprop" | "adamw"; each reads the fields below that name it
    config.optimizer.momentum = 0.9  # of sgd, rmsprop: share of the old velocity kept
    config.optimizer.nesterov = True  # of sgd
    config.optimizer.rate_in_velocity = False  # of sgd: v = m·v + lr·g as in Keras and Caffe; False: w = w - lr·v
    config.optimizer.rmsprop = "tensorflow"  # of rmsprop: "tensorflow" | "keras" | "torch", see optim/optimizers.py
    config.optimizer.b1 = 0.9  # of adamw: share of the old first moment kept
    config.optimizer.b2 = 0.999  # of adamw, rmsprop (0.9 there): share of the old second moment kept
    config.optimizer.eps = 1e-8  # of adamw, rmsprop (1e-3 there): keeps the divisor from 0
    config.optimizer.clip_norm = 0.0  # largest norm of the batch's gradient before decay joins it; 0 for no limit
    config.optimizer.weight_decay = 5e-4  # factor before the weights; 0 for none
    config.optimizer.decay = "l2"  # of sgd, rmsprop: "l2" | "decoupled" (w = w - lr·decay·w); adamw is always decoupled
    config.optimizer.decay_rules = (("(bias|scale)$", False), (".*", True))  # (path regex, decay it); first match wins

    config.schedule = ConfigDict()
    config.schedule.name = "step"  # "constant" | "step" | "cosine" | "linear" | "noam"
    config.schedule.learning_rate = 0.05  # peak, for the global batch; of "noam" the factor before its formula
    config.schedule.warmup_epochs = 1.0  # linear
    config.schedule.warmup_start = 0.0  # rate from which the warm-up rises
    config.schedule.final_share = 0.0  # of "cosine", "linear": what of the peak is left at the end
    config.schedule.boundaries = (0.5, 0.75)  # of "step", as shares of the run
    config.schedule.factor = 0.1  # of "step", at each boundary
    config.schedule.d_model = 512  # of "noam"

    config.loss = ConfigDict()
    config.loss.label_smoothing = 0.0  # share of the target taken from the true class
    config.loss.smoothing_over = "uniform"  # "uniform" | "others": given to all K classes, or to the K-1 others

    config.mix = ConfigDict()  # of a batch, before it is divided; in mode "pmap" of each replica's part
    config.mix.mixup_alpha = 0.0  # lambda is Beta(alpha, alpha); 0 for no mixup
    config.mix.cutmix_alpha = 0.0  # likewise; 0 for no CutMix
    config.mix.probability = 1.0  # of mixing a batch
    config.mix.switch_probability = 0.5  # of CutMix where both are on

    config.ema = ConfigDict()
    config.ema.decay = 0.0  # of weights and batch statistics a step; 0 for no average
    config.ema.warmup = True  # decay at step t is at most (1+t)/(10+t)

    config.evaluation = ConfigDict()
    config.evaluation.every_epochs = 2.0  # and at the end
    config.evaluation.batch_size = 200  # examples, over all devices

    config.checkpoint = ConfigDict()
    config.checkpoint.every_epochs = 11.0  # and at the end
    config.checkpoint.keep_last = 1  # newest checkpoints kept
    config.checkpoint.keep_best = 1  # by the headline metric, accuracy

    config.logging = ConfigDict()
    config.logging.every_steps = 37  # a line of training metrics
    config.logging.tensorboard = True  # mirror the log as TensorBoard events

    config.parallel = ConfigDict()
    config.parallel.mode = "jit"  # "jit" | "pmap": one program over all devices, or one a replica
    config.parallel.data = -1  # devices that only divide the batch, -1 for all that the other two leave
    config.parallel.fsdp = 1  # devices that divide the batch and also parameters, optimizer state and averages
    config.parallel.model = 1  # devices that divide a Transformer's heads, hidden layers and vocabulary
    config.parallel.rules = ()  # (path regex, sharding) before the network's own, see attention_jax/distributed/sharding.py

    config.profile = ConfigDict()
    config.profile.first_step = 0  # a trace of num_steps steps goes to profile/ in the workdir
    config.profile.num_steps = 0
    return config
