"""A small Transformer on Multi30k, English to German, on the byte pairs of a published result.

Launch:    ./launch.sh train --config=configs/multi30k.py --workdir=runs/multi30k --config.data.args.source='DIR/{split}.en'
           --config.data.args.target='DIR/{split}.de'
           DIR holds train, valid and test.2016 in lower-cased byte pairs with the joiner "@@", `.gz` or not, as
           ./launch.sh prepare multi30k_bpe --data_dir=DIR fetches them.
Then:      ./launch.sh evaluate --workdir=runs/multi30k --average=10 --config.data.eval_split=test.2016
           --config.search.beam=5
Hardware:  one accelerator, or two CPU cores for hours.
Expected:  41.02 tokenised BLEU on test2016 after 8,000 updates of 8,192 tokens, the last 10 checkpoints averaged, beam 5
           (published with this network and these files: Wu et al. 2021, arXiv 2105.14462). Status: 41.54 here, in 4
           hours and 12 minutes of a CPU core that other programs shared, with --config.checkpoint.every_steps=250 (41.43
           after 5,479 of the updates). 41.19 with half the tokens a batch and layers normalised before the
           sub-layer: 6,089 updates in 72 minutes on one CPU core with --config.model.norm=pre --config.batch_size=4096
           --config.schedule.learning_rate=1.79 --config.schedule.warmup_steps=1000 --config.checkpoint.every_steps=125.
           Normalised after it, with half the tokens and otherwise the same, perplexity on valid was 15.0 after 4,500
           updates, in place of 5.3.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """4 + 4 layers of 128 features, Adam with the inverse square root of the step, peak 0.005 at step 2,000."""
    config = ConfigDict()
    config.version = 3  # of the config's fields
    config.task = "translation"  # what to train: tasks are listed in attention_jax/tasks
    config.seed = 0  # of initialisation, data order and dropout
    config.batch_size = 8192  # tokens a side, padding counted, over all devices: pairs times the length of their bucket
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
    config.model.norm = "post"  # "post" | "pre" | "none"

    config.data = ConfigDict()
    config.data.source = "files"  # a built-in name, a dotted path, or path/to/file.py:make
    config.data.args = ConfigDict({"source": "multi30k/{split}.en.gz", "target": "multi30k/{split}.de.gz"})
    config.data.train_split = "train"
    config.data.eval_split = "valid"  # every pair is evaluated
    config.data.tokenizer = "words"  # "sentencepiece" | "words" | a file: sentencepiece's .model, a checkpoint's words.json
    config.data.tokenizer_options = ConfigDict()  # of sentencepiece's trainer
    config.data.vocab_size = None  # tokens of source and target together; None for every word
    config.data.joiner = "@@"  # of "words": the end of a word that goes on in the next one; "" for none
    config.data.max_length = 256  # tokens of a side, end symbol included
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
    config.schedule.learning_rate = 2.5298  # of "noam" the factor before its formula: 0.005 · sqrt(128 · 2000)
    config.schedule.warmup_steps = 2000  # linear
    config.schedule.warmup_start = 0.0  # rate from which the warm-up rises
    config.schedule.final_share = 0.0  # of "cosine", "linear": what of the peak is left at the end
    config.schedule.boundaries = ()  # of "step", as shares of the run
    config.schedule.factor = 0.1  # of "step", at each boundary
    config.schedule.d_model = 128  # of "noam"

    config.loss = ConfigDict()
    config.loss.label_smoothing = 0.1  # share of the target taken from the true token
    config.loss.smoothing_over = "others"  # "uniform" | "others": given to all V tokens, or to the V-1 others

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
    config.evaluation.bleu = "none"  # sacrebleu's tokenization: "13a" | "intl" | "char" | …; "none" for text that is tokenised
    config.evaluation.headline = "token_accuracy"  # "token_accuracy" | "bleu" | "chrf" | "exact_match": chooses the best

    config.checkpoint = ConfigDict()
    config.checkpoint.every_steps = 200  # and at the end
    config.checkpoint.keep_last = 10  # newest checkpoints kept
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
