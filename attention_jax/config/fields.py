"""The table of config fields: default, unit, accepted values and meaning, each in one place.

Defaults, checks, suggestions, `./launch.sh config`, the help of commands, shell completion and docs/fields.md come from it.
An `OPEN` section takes any key; the code that reads it checks it (`create_model` checks its fields).
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

from attention_jax.config.accepted import NUMBER, REQUIRED, SEQUENCE, SHARDINGS, Field, is_rules, is_sharding
from attention_jax.config.plugins import load_object

VERSION = 11
OPTIMIZERS = ("sgd", "rmsprop", "adamw")
SCHEDULES = ("constant", "step", "cosine", "linear", "noam")


def _numbers(low: float, high: float = math.inf) -> Callable[[Any], bool]:
    """True for a sequence of numbers between low and high, both excluded."""
    return lambda value: all(isinstance(number, NUMBER) and low < number < high for number in value)


def _range(high: float) -> Callable[[Any], bool]:
    """True for a sequence (a, b) with 0 < a <= b <= high."""
    return lambda value: len(value) == 2 and _numbers(0)(value) and value[0] <= value[1] <= high


def _is_granularity(value: Any) -> bool:
    return value in ("all", "per_replica", "stored") if isinstance(value, str) else value >= 1


def _is_shape(value: Any) -> bool:
    return value is None or (len(value) == 3 and all(isinstance(side, int) and side > 0 for side in value))


def _is_buckets(value: Any) -> bool:
    if isinstance(value, int):
        return value >= 1
    return bool(value) and _numbers(0)(value) and list(value) == sorted(set(value))


# Sections and fields of every task.
COMMON: dict[str, Any] = {
    "version": Field(VERSION, int, f"a whole number from 1 to {VERSION}", "of the fields", lambda v: 1 <= v <= VERSION),
    "task": Field.named(REQUIRED, "what is trained", "classification", "translation"),
    "seed": Field(
        0,
        int,
        "a whole number from 0 to 2**31 - 1",
        "of initialisation, data order, augmentation and dropout",
        lambda value: 0 <= value < 2**31,
    ),
    "init_from": Field(
        None,
        (str, type(None)),
        "a run's workdir, one of its steps, a file of weights, or None",
        "a path or URI; weights to begin with, other than random ones; {seed} is the run's seed",
        lambda value: value is None or value.strip(),
    ),
    "batch_size": Field.integer(REQUIRED, "examples", "examples of a batch, over all devices"),
    "accumulation": Field.integer(1, "micro-batches", "micro-batches that make up a batch"),
    "total": Field.duration(REQUIRED, "epochs", "length of the run"),
    "precision": Field.choice(
        "float32", "of activations and products; weights and statistics are float32", "float32", "bfloat16"
    ),
    "model": Field.open("name, as attention_jax.list_models() lists them, or file.py:Network; and any field of the network"),
    "data": {
        "source": Field.name(REQUIRED, "a built-in name, a dotted path, or path/to/file.py:make"),
        "args": Field.open("keyword arguments of the source"),
        "train_split": Field.name("train", "as the source spells its splits"),
        "eval_split": Field.name("test", "evaluated in full; 'validation' may be a tenth of the training split"),
        "on_broken": Field.choice("skip", "at an example that cannot be read", "skip", "stop"),
        "num_examples": Field.integer_or_none(None, "examples", "for the data's own", "examples that are trained on"),
        "threads": Field.integer(2, "threads", "that make batches ahead of the step"),
        "cache_dir": Field(
            None,
            (str, type(None)),
            "a folder of this host, or None",
            "keeps remote images, and the tokens of texts, from their first use on; None keeps neither",
            lambda value: value is None or value.strip(),
        ),
    },
    "optimizer": {
        "name": Field.named("sgd", "each reads the fields below that name it; one of your own reads args", *OPTIMIZERS),
        "args": Field.open("keyword arguments of an optimizer of your own or of optax"),
        "momentum": Field.share(0.9, "of sgd, rmsprop: share of the old velocity kept"),
        "nesterov": Field.flag(False, "of sgd"),
        "rate_in_velocity": Field.flag(False, "of sgd: v = m·v + lr·g as in Keras and Caffe; False: w = w - lr·v"),
        "rmsprop": Field.choice("tensorflow", "of rmsprop: whose, see optim/optimizers.py", "tensorflow", "keras", "torch"),
        "b1": Field.share(0.9, "of adamw: share of the old first moment kept"),
        "b2": Field.share(0.999, "of adamw, rmsprop (0.9 there): share of the old second moment kept"),
        "eps": Field(
            1e-8,
            NUMBER,
            "a positive number",
            "of adamw, rmsprop (1e-3 there): keeps the divisor from 0",
            lambda value: 0 < value < math.inf,
        ),
        "clip_norm": Field.not_negative(
            0.0, "a norm", "largest norm of the batch's gradient before decay joins it; 0 for no limit"
        ),
        "weight_decay": Field.not_negative(0.0, "a factor", "factor before the weights; 0 for none"),
        "decay": Field.choice(
            "l2", "of sgd, rmsprop; decoupled is w = w - lr·decay·w, and adamw is always that", "l2", "decoupled"
        ),
        "decay_rules": Field.sequence(
            ((".*", True),),
            "a tuple of (path regex, True or False)",
            "which parameters decay; the first match wins",
            lambda rules: is_rules(rules, lambda v: isinstance(v, bool)),
        ),
        "rate_rules": Field.sequence(
            ((".*", 1.0),),
            "a tuple of (path regex, factor of 0 or more)",
            "factors before the rate, decoupled decay included, 0 to freeze; the first match wins",
            lambda rules: is_rules(rules, lambda v: isinstance(v, NUMBER) and 0 <= v < math.inf),
        ),
    },
    "schedule": {
        "name": Field.named("cosine", "of the learning rate after the warm-up", *SCHEDULES),
        "args": Field.open("keyword arguments of a schedule of your own or of optax"),
        "learning_rate": Field.not_negative(
            REQUIRED, "a rate", "peak, for the global batch; of noam the factor before its formula"
        ),
        "warmup": Field.duration(0, "steps", "the rate rises linearly to its peak", low=0),
        "warmup_start": Field.not_negative(0.0, "a rate", "rate from which the warm-up rises"),
        "final_share": Field.probability(0.0, "of cosine, linear: what of the peak is left at the end"),
        "boundaries": Field(
            (), SEQUENCE, "a tuple of shares of the run, between 0 and 1", "of step, as shares of the run", _numbers(0, 1)
        ),
        "factor": Field.not_negative(0.1, "a factor", "of step, at each boundary"),
        "d_model": Field.integer_or_none(None, "channels", "for the network's features", "of noam"),
    },
    "loss": {
        "label_smoothing": Field.share(0.0, "share of the target taken from the true class or token"),
        "smoothing_over": Field.choice(
            "uniform", "given to all classes or tokens, or to the others alone", "uniform", "others"
        ),
    },
    "ema": {
        "decay": Field.share(0.0, "of weights and batch statistics a step; 0 for no average"),
        "warmup": Field.flag(True, "decay at step t is at most (1+t)/(10+t)"),
    },
    "evaluation": {
        "every": Field.duration(1.0, "epochs", "and at the end"),
        "batch_size": Field.integer(256, "examples", "examples of a batch, over all devices"),
        "patience": Field.integer(
            0, "evaluations", "without a better headline metric on the validation split, after which training ends; 0: none", 0
        ),
    },
    "checkpoint": {
        "every": Field.duration(1.0, "epochs", "and at the end"),
        "every_minutes": Field.not_negative(0.0, "minutes", "after a save, at a logging interval's end; 0: never", "minutes"),
        "megabytes_per_second": Field.not_negative(0.0, "MB/s", "a process writes, for the first lines; 0: unknown", "MB/s"),
        "keep_last": Field.integer(2, "checkpoints", "newest checkpoints kept"),
        "keep_best": Field.integer(1, "checkpoints", "best checkpoints kept, by the headline metric"),
    },
    "logging": {
        "every": Field.duration(100, "steps", "a line of training metrics"),
        "tensorboard": Field.flag(True, "mirror the log as TensorBoard events"),
        "trackers": Field.sequence(
            (),
            "a tuple of 'tensorboard', 'wandb', 'trackio'",
            "mirror the log there too; an error there is a warning",
            lambda names: {*names} <= {"tensorboard", "wandb", "trackio"},
        ),
    },
    "parallel": {
        "mode": Field.choice("jit", "one program over all devices, or one a replica", "jit", "pmap"),
        "data": Field(
            -1,
            int,
            "a number of devices, or -1 for all of them that fsdp and model leave",
            "devices that only divide the batch",
            lambda n: n == -1 or n >= 1,
            "devices",
        ),
        "fsdp": Field.integer(1, "devices", "that divide the batch and also parameters, optimizer state and averages"),
        "model": Field.integer(1, "devices", "that divide a Transformer's heads, hidden layers and vocabulary"),
        "slices": Field.integer(0, "slices", "TPU slices that data spans; 0 for those that are there", low=0),
        "rules": Field.sequence(
            (),
            f"a tuple of (path regex, {SHARDINGS})",
            "before the network's own, see attention_jax/distributed/sharding.py",
            lambda rules: is_rules(rules, is_sharding),
        ),
    },
    "profile": {
        "first_step": Field.integer(0, "steps", "a trace of num_steps steps goes to profile/ in the workdir", low=0),
        "num_steps": Field.integer(0, "steps", "length of the trace; 0 for none", low=0),
    },
}

_IMAGES: dict[str, Any] = {
    "batch_norm": {
        "granularity": Field(
            "all",
            (str, int),
            "'all', 'per_replica', or a whole number of examples; with init_from also 'stored'",
            "examples that share statistics; stored: those of init_from, which stay as they are",
            _is_granularity,
            "examples",
        )
    },
    "data": {
        "crop": Field.choice("pad", "how training crops", "pad", "random_resized", "random_scaled", "none"),
        "crop_padding": Field.integer(0, "pixels", "a side before a random crop, 0 for none; of pad", low=0),
        "crop_scale": Field.sequence(
            (0.08, 1.0),
            "(smallest, largest) share of the area, above 0 and up to 1",
            "share of the image's area, of random_resized",
            _range(1),
        ),
        "crop_ratio": Field.sequence(
            (3 / 4, 4 / 3), "(smallest, largest) width / height, above 0", "width / height, of random_resized", _range(math.inf)
        ),
        "crop_shorter": Field.sequence(
            (256, 480),
            "(smallest, largest) number of pixels",
            "of the shorter side before a crop, of random_scaled",
            _range(math.inf),
        ),
        "exif_rotation": Field.flag(False, "turn images as their EXIF orientation says"),
        "flip": Field.flag(False, "left-right, with probability 1/2"),
        "colour_jitter": Field.not_negative(
            0.0, "a strength", "brightness, contrast and saturation by factors from 1 - s to 1 + s; 0 for none"
        ),
        "lighting": Field.not_negative(
            0.0, "a deviation", "of a draw for each principal component of ImageNet's colours, which shifts them; 0 for none"
        ),
        "randaugment_layers": Field.integer(0, "layers", "N, operations an image; 0 for none", low=0),
        "randaugment_magnitude": Field.not_negative(9, "a magnitude", "M, 0 to 10 in AutoAugment's scale, and beyond"),
        "randaugment_std": Field.not_negative(
            0.0, "a deviation of the magnitude", "of M, drawn anew for each operation; 0.5 in timm's"
        ),
        "randaugment_ops": Field.choice("paper", "which operations", "paper", "tf1", "timm"),
        "interpolation": Field.choice("bilinear", "antialiased, of every resize", "bilinear", "bicubic"),
        "eval_resize": Field.integer_or_none(
            None, "pixels", "to take images as they are", "shorter side before the centre crop of evaluation"
        ),
        "mean": Field.sequence(
            REQUIRED,
            "a tuple of numbers, one a channel",
            "subtracted, in units of the full range",
            lambda value: value and _numbers(-math.inf)(value),
        ),
        "std": Field.sequence(
            REQUIRED,
            "a tuple of positive numbers, one a channel",
            "divided by, in units of the full range",
            lambda value: value and _numbers(0)(value),
        ),
        "image_shape": Field(
            None,
            (*SEQUENCE, type(None)),
            "(height, width, channels), or None for the data's own",
            "of a training image",
            _is_shape,
            "pixels",
        ),
    },
    "mix": {
        "mixup_alpha": Field.not_negative(0.0, "a parameter of Beta", "lambda is Beta(alpha, alpha); 0 for no mixup"),
        "cutmix_alpha": Field.not_negative(0.0, "a parameter of Beta", "lambda is Beta(alpha, alpha); 0 for no CutMix"),
        "probability": Field.probability(1.0, "of mixing a batch, or in mode pmap a replica's part of it"),
        "switch_probability": Field.probability(0.5, "of CutMix where both are on"),
        "erasing_probability": Field.probability(0.0, "of noise in a box of an image, before it is mixed"),
    },
    "loss": {
        "function": Field.choice(
            "cross_entropy",
            "of logits and targets; binary is the mean over the classes",
            "cross_entropy",
            "binary_cross_entropy",
        ),
        "target_threshold": Field.share(0.0, "of binary_cross_entropy: targets above it are 1, others 0; 0 leaves them"),
    },
}

_TEXT: dict[str, Any] = {
    "batch_size": Field.integer(REQUIRED, "tokens", "tokens a side of a batch, padding counted, over all devices"),
    "data": {
        "on_broken": dataclasses.replace(COMMON["data"]["on_broken"], default="stop"),
        "tokenizer": Field(
            "sentencepiece",
            str,
            "'sentencepiece', 'words', or the path of a tokenizer's file",
            "trained on the training split, or read from sentencepiece's .model or a checkpoint's words.json",
        ),
        "tokenizer_options": Field.open("of sentencepiece's trainer"),
        "vocab_size": Field.integer_or_none(None, "tokens", "for every word", "of source and target together", low=5),
        "joiner": Field(
            "",
            str,
            "the end of a word that goes on in the next one, or '' for none",
            "of words: the end of a word that goes on in the next one",
        ),
        "max_length": Field.integer(256, "tokens", "of a side, end symbol included", low=2),
        "too_long": Field.choice("drop", "training pairs that are longer", "drop", "truncate"),
        "max_ratio": Field.not_negative(
            0.0,
            "a ratio",
            "tokens of a training pair's longer side by those of its shorter one, above which it is left out; 0: any",
        ),
        "drop_duplicates": Field.flag(False, "leave out a training pair whose two texts have come before"),
        "bucket_lengths": Field(
            8,
            (int, *SEQUENCE),
            "a whole number of buckets, or a tuple of ascending lengths in tokens",
            "lengths of the batches, or how many to choose; each is compiled once",
            _is_buckets,
            "tokens",
        ),
        "rows_multiple": Field.integer(
            8, "rows", "pairs of a batch are a multiple of it, for devices and micro-batches to share"
        ),
        "num_batches": Field.integer_or_none(None, "batches", "for the data's own", "batches in an epoch"),
    },
    "optimizer": {
        name: dataclasses.replace(COMMON["optimizer"][name], default=default)
        for name, default in {"name": "adamw", "b2": 0.98, "decay": "decoupled"}.items()
    },
    "schedule": {
        "name": dataclasses.replace(COMMON["schedule"]["name"], default="noam"),
        "warmup": dataclasses.replace(COMMON["schedule"]["warmup"], default=4000),
    },
    "loss": {"label_smoothing": dataclasses.replace(COMMON["loss"]["label_smoothing"], default=0.1)},
    "search": {
        "beam": Field.integer(1, "hypotheses", "hypotheses kept open; 1 is greedy search"),
        "alpha": Field.not_negative(0.6, "an exponent", "of the length penalty"),
        "penalty": Field.choice("gnmt", "((5 + length) / 6)^alpha, or length^alpha", "gnmt", "length"),
        "expand": Field(
            2, int, "1 or 2", "candidates for each hypothesis kept open", lambda value: value in (1, 2), "candidates"
        ),
        "late_ends": Field.flag(True, "an end symbol counts at any rank of the candidates, or among the `beam` best alone"),
        "stop": Field.choice(
            "settled",
            "a sentence is done when no open hypothesis can be better, none would be if it ended now, or `beam` have ended",
            *("settled", "guess", "full"),
        ),
        "force_end": Field.flag(False, "the last token that a limit allows is the end symbol, at no cost"),
        "renormalise": Field.flag(False, "what may not come is left out before the softmax, and not after it"),
        "min_length": Field.integer(0, "tokens", "tokens before the end symbol may come", low=0),
        "max_extra": Field.integer(50, "tokens", "tokens that a translation may have more than its source", low=0),
        "max_length": Field.integer_or_none(
            None, "tokens", "for max_extra beyond the source", "the most tokens, whatever the source"
        ),
    },
    "evaluation": {
        "batch_size": Field.integer(4096, "tokens", "tokens a side of a batch, over all devices"),
        "translate": Field.flag(False, "also translate, and score BLEU, chrF and exact matches"),
        "bleu": Field.choice(
            "13a",
            "sacrebleu's tokenization; none for text that is tokenised",
            *("13a", "intl", "char", "zh", "ja-mecab", "ko-mecab", "none"),
        ),
        "split_compounds": Field.flag(
            False, "also BLEU of tokens (13a) with words split at hyphens on both sides, as Vaswani et al. 2017 scored German"
        ),
        "headline": Field.choice(
            "token_accuracy", "metric that chooses the best checkpoint", "token_accuracy", "bleu", "chrf", "exact_match"
        ),
    },
    "logging": {"every": dataclasses.replace(COMMON["logging"]["every"], default=50)},
}
OF_TASK: dict[str, dict[str, Any]] = {"classification": _IMAGES, "translation": _TEXT}


def merge_fields(own: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the fields of a task's configs: those that all tasks share, replaced or extended by the task's own."""
    merged = dict(COMMON)
    for name, field in own.items():
        merged[name] = {**COMMON.get(name, {}), **field} if isinstance(field, Mapping) else field
    return merged


def list_fields(section: Mapping[str, Any], prefix: str = "") -> dict[str, Field]:
    """Returns {dotted name: Field} in the table's order; a duration has the name without its unit."""
    found: dict[str, Field] = {}
    for name, field in section.items():
        found.update({prefix + name: field} if isinstance(field, Field) else list_fields(field, f"{prefix}{name}."))
    return found


def get_own_fields(task: str) -> dict[str, Any]:
    """Returns a task's own fields: those of a built-in task, or the attribute `fields` of a user's task."""
    return OF_TASK[task] if task in OF_TASK else getattr(load_object(task, OF_TASK, "task"), "fields", {})
