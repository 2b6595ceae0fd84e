"""A small Transformer from Korean to English, on conversation (Tatoeba) and descriptions of commands (tldr-pages).

Launch:    ./launch.sh train --config=configs/korean_english.py --workdir=runs/korean
           korean/ holds {train,dev,test}.tsv of both sets, English and Korean in the first two columns:
           ./launch.sh prepare tatoeba_ko_en --data_dir=korean/tatoeba, and tldr_ko_en --data_dir=korean/tldr.
Then:      ./launch.sh evaluate --workdir=runs/korean --average=5 --config.data.eval_split=test --config.search.beam=4
Hardware:  one accelerator, or a CPU core for hours.
Expected:  nothing is published on these splits. Status: 23.5 BLEU (13a), chrF 47.1 here after 2,000 updates, 21 minutes on
           one CPU core, with --config.total_steps=2000 --config.schedule.warmup_steps=1000.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """4 + 4 layers of 128 features, Adam with the inverse square root of the step, peak 0.0035 at step 2,000."""
    config = ConfigDict()
    config.version = 3  # of the config's fields
    config.task = "translation"  # what to train: tasks are listed in attention_jax/tasks
    config.seed = 0  # of initialisation, data order and dropout
    config.batch_size = 4096  # tokens a side, padding counted, over all devices: pairs times the length of their bucket
    config.accumulation = 1  # micro-batches that make up a batch
    config.total_steps = 8000  # or total_epochs, total_examples; every duration takes any of these units
    config.precision = "float32"  # "float32" | "bfloat16": of activations and products; weights and statistics are float32

    config.model = ConfigDict()  # open: any field of the network may be set
    config.model.name = "transformer_base"  # as attention_jax.list_models() lists them
    config.model.vocab_size = None  # None takes the tokenizer's
    config.model.layers = 4
    config.model.features = 128
    config.model.hidden = 256
    config.model.heads = 4
    config.model.dropout = 0.3
    config.model.norm = "pre"  # "post" | "pre" | "none"

    config.data = ConfigDict()
    config.data.source = "tsv"  # a built-in name, a dotted path, or path/to/file.py:make
    config.data.args = ConfigDict(
        {"path": ("korean/tatoeba/{split}.tsv", "korean/tldr/{split}.tsv"), "columns": (1, 0)}  # of source and target, from 0
    )
    config.data.train_split = "train"
    config.data.eval_split = "dev"  # every pair is evaluated
    config.data.tokenizer = (
        "sentencepiece"  # "sentencepiece" | "words" | a file: sentencepiece's .model, a checkpoint's words.json
    )
    config.data.tokenizer_options = ConfigDict()  # of sentencepiece's trainer
    config.data.vocab_size = 8000  # tokens of source and target together; None for every word
    config.data.joiner = ""  # of "words": the end of a word that goes on in the next one; "" for none
    config.data.max_length = 96  # tokens of a side, end symbol included
    config.data.too_long = "drop"  # "drop" | "truncate" training pairs that are longer
    config.data.bucket_lengths = 8  # lengths of the batches in tokens, or how many to choose; each is compiled once
    config.data.rows_multiple = 8  # pairs of a batch are a multiple of it, for devices and micro-batches to share
    config.data.on_broken = "stop"  # "skip" | "stop" at a line that is empty or not UTF-8
    config.data.num_examples = None  # training pairs that are not dropped; None takes the data's
    config.data.num_batches = None  # batches in an epoch; None takes the data's
    config.data.threads = 2  # that make batches ahead of the step

    config.optimizer = ConfigDict()
    config.optimizer.name = "adamw"  # "sgd" | "rmsprop" | "adamw"; each reads the fields below that name it
    config.optimizer.momentum = 0.9  # of sgd, rmsprop: share of the old velocity kept
    config.optimizer.nesterov = False  # of sgd
    config.optimizer.rate_in_velocity = False  # of sgd: v = m·v + lr·g as in Keras and Caffe; False: w = w - lr·v
    config.optimizer.rmsprop = "tensorflow"  # of rmsprop: "tensorflow" | "keras" | "torch", see optim/optimizers.py
    config.optimizer.b1 = 0.9  # of adamw: share of the old first moment kept
    config.optimizer.b2 = 0.98  # of adamw, rmsprop: share of the old second moment kept
    config.optimizer.eps = 1e-8  # of adamw, rmsprop: keeps the divisor from 0
    config.optimizer.clip_norm = 0.0  # largest norm of the batch's gradient before decay joins it; 0 for no limit
    config.optimizer.weight_decay = 0.0  # factor before the weights; 0 for none
    config.optimizer.decay = "decoupled"  # of sgd, rmsprop: "l2" | "decoupled"; adamw is always decoupled
    config.optimizer.decay_rules = ((".*", True),)  # (path regex, decay it); first match wins

    config.schedule = ConfigDict()
    config.schedule.name = "noam"  # "constant" | "step" | "cosine" | "linear" | "noam"
    config.schedule.learning_rate = 1.77  # of "noam" the factor before its formula: 0.0035 · sqrt(128 · 2000)
    config.schedule.warmup_steps = 2000  # linear
    config.schedule.warmup_start = 0.0  # rate from which the warm-up rises
    config.schedule.final_share = 0.0  # of "cosine", "linear": what of the peak is left at the end
    config.schedule.boundaries = ()  # of "step", as shares of the run
    config.schedule.factor = 0.1  # of "step", at each boundary
    config.schedule.d_model = 128  # of "noam"

    config.loss = ConfigDict()
    config.loss.label_smoothing = 0.1  # share of the target taken from the true token
    config.loss.smoothing_over = "uniform"  # "uniform" | "others": given to all V tokens, or to the V-1 others

    config.ema = ConfigDict()
    config.ema.decay = 0.0  # of weights a step; 0 for no average
    config.ema.warmup = True  # decay at step t is at most (1+t)/(10+t)

    config.search = ConfigDict()  # how evaluation and the command translate search
    config.search.beam = 1  # hypotheses kept open; 1 is greedy search
    config.search.alpha = 0.6  # of the length penalty
    config.search.penalty = "gnmt"  # "gnmt" | "length": ((5 + length) / 6)^alpha, or length^alpha
    config.search.min_length = 0  # tokens before the end symbol may come
    config.search.max_extra = 50  # tokens that a translation may have more than its source
    config.search.max_length = None  # the most tokens whatever the source; None for max_extra more than it

    config.evaluation = ConfigDict()
    config.evaluation.every_steps = 400  # and at the end
    config.evaluation.batch_size = 8192  # tokens a side, over all devices
    config.evaluation.translate = False  # also translate, and score BLEU, chrF and exact matches
    config.evaluation.bleu = "13a"  # sacrebleu's tokenization: "13a" | "intl" | "char" | …; "none" for text that is tokenised
    config.evaluation.headline = "token_accuracy"  # "token_accuracy" | "bleu" | "chrf" | "exact_match": chooses the best

    config.checkpoint = ConfigDict()
    config.checkpoint.every_steps = 200  # and at the end
    config.checkpoint.keep_last = 5  # newest checkpoints kept
    config.checkpoint.keep_best = 1  # by the headline metric

    config.logging = ConfigDict()
    config.logging.every_steps = 50  # a line of training metrics
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
