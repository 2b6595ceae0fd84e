"""The Transformer base model on WMT'14, English to German (Vaswani et al. 2017, arXiv 1706.03762, Sections 5 and 6).

Launch:    ./launch.sh train --config=configs/wmt14_transformer.py --workdir=runs/wmt14 --config.data.args.data_dir=DIR
           DIR holds wmt14_translate/de-en as ./launch.sh prepare makes it.
Variants:  configs/wmt14_transformer.py:transformer_big, with the rate and dropout of the paper's big model.
Hardware:  eight accelerators; the paper: 100,000 steps in 12 hours on 8 P100, big 300,000 in 3.5 days.
Expected:  27.3 BLEU on newstest2014, big 28.4, tokenised and with compounds split (Table 2, published), with the last 5
           checkpoints averaged (big: 20), beam 4, alpha 0.6. Status: not run.
"""

from ml_collections import ConfigDict


def get_config(model: str = "transformer_base") -> ConfigDict:
    """Batches of 25,000 tokens a side, Adam with the inverse square root of the step after 4,000 steps of warm-up."""
    big = model == "transformer_big"
    config = ConfigDict()
    config.version = 3  # of the config's fields
    config.task = "translation"  # what to train: tasks are listed in attention_jax/tasks
    config.seed = 0  # of initialisation, data order and dropout
    config.batch_size = 25_000  # tokens a side, padding counted, over all devices: pairs times the length of their bucket
    config.accumulation = 1  # micro-batches that make up a batch
    config.total_steps = 300_000 if big else 100_000  # or total_epochs, total_examples; every duration takes any of these units
    config.precision = "float32"  # "float32" | "bfloat16": of activations and products; weights and statistics are float32

    config.model = ConfigDict()  # open: any field of the network may be set
    config.model.name = model  # as attention_jax.list_models() lists them
    config.model.vocab_size = None  # None takes the tokenizer's

    config.data = ConfigDict()
    config.data.source = "tfds"  # a built-in name, a dotted path, or path/to/file.py:make
    config.data.args = ConfigDict({"name": "wmt14_translate/de-en", "source": "en", "target": "de", "data_dir": None})
    config.data.train_split = "train"
    config.data.eval_split = "validation"  # newstest2013; every pair is evaluated
    config.data.tokenizer = (
        "sentencepiece"  # "sentencepiece" | "words" | a file: sentencepiece's .model, a checkpoint's words.json
    )
    config.data.tokenizer_options = ConfigDict(  # of sentencepiece's trainer
        {"model_type": "bpe", "input_sentence_size": 2_000_000, "shuffle_input_sentence": False}
    )
    config.data.vocab_size = 37_000  # tokens of source and target together; None for every word
    config.data.joiner = ""  # of "words": the end of a word that goes on in the next one; "" for none
    config.data.max_length = 256  # tokens of a side, end symbol included
    config.data.too_long = "drop"  # "drop" | "truncate" training pairs that are longer
    config.data.bucket_lengths = 12  # lengths of the batches in tokens, or how many to choose; each is compiled once
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
    config.optimizer.eps = 1e-9  # of adamw, rmsprop: keeps the divisor from 0
    config.optimizer.clip_norm = 0.0  # largest norm of the batch's gradient before decay joins it; 0 for no limit
    config.optimizer.weight_decay = 0.0  # factor before the weights; 0 for none
    config.optimizer.decay = "decoupled"  # of sgd, rmsprop: "l2" | "decoupled"; adamw is always decoupled
    config.optimizer.decay_rules = ((".*", True),)  # (path regex, decay it); first match wins

    config.schedule = ConfigDict()
    config.schedule.name = "noam"  # "constant" | "step" | "cosine" | "linear" | "noam"
    config.schedule.learning_rate = 1.0  # of "noam" the factor before its formula
    config.schedule.warmup_steps = 4000  # linear
    config.schedule.warmup_start = 0.0  # rate from which the warm-up rises
    config.schedule.final_share = 0.0  # of "cosine", "linear": what of the peak is left at the end
    config.schedule.boundaries = ()  # of "step", as shares of the run
    config.schedule.factor = 0.1  # of "step", at each boundary
    config.schedule.d_model = 1024 if big else 512  # of "noam"

    config.loss = ConfigDict()
    config.loss.label_smoothing = 0.1  # share of the target taken from the true token
    config.loss.smoothing_over = "uniform"  # "uniform" | "others": given to all V tokens, or to the V-1 others

    config.ema = ConfigDict()
    config.ema.decay = 0.0  # of weights a step; 0 for no average
    config.ema.warmup = True  # decay at step t is at most (1+t)/(10+t)

    config.search = ConfigDict()  # how evaluation and the command translate search
    config.search.beam = 4  # hypotheses kept open; 1 is greedy search
    config.search.alpha = 0.6  # of the length penalty
    config.search.penalty = "gnmt"  # "gnmt" | "length": ((5 + length) / 6)^alpha, or length^alpha
    config.search.min_length = 0  # tokens before the end symbol may come
    config.search.max_extra = 50  # tokens that a translation may have more than its source
    config.search.max_length = None  # the most tokens whatever the source; None for max_extra more than it

    config.evaluation = ConfigDict()
    config.evaluation.every_steps = 5000  # and at the end
    config.evaluation.batch_size = 25_000  # tokens a side, over all devices
    config.evaluation.translate = False  # also translate, and score BLEU, chrF and exact matches
    config.evaluation.bleu = "13a"  # sacrebleu's tokenization: "13a" | "intl" | "char" | …; "none" for text that is tokenised
    config.evaluation.headline = "token_accuracy"  # "token_accuracy" | "bleu" | "chrf" | "exact_match": chooses the best

    config.checkpoint = ConfigDict()
    config.checkpoint.every_steps = 1500  # and at the end
    config.checkpoint.keep_last = 20 if big else 5  # newest checkpoints kept
    config.checkpoint.keep_best = 1  # by the headline metric

    config.logging = ConfigDict()
    config.logging.every_steps = 100  # a line of training metrics
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
