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
    "version": Field(VERSION, int, f"a whole number from 1 to {VERSION}", "version of the fields", lambda v: 0 < v <= VERSION),
    "task": Field.named(REQUIRED, "kind of work that a network is trained for", "classification", "translation"),
    "seed": Field(
        0,
        int,
        "a whole number from 0 to 2**31 - 1",
        "seed of initialisation, data order, augmentation and dropout",
        lambda value: 0 <= value < 2**31,
    ),
    "init_from": Field(
        None,
        (str, type(None)),
        "a run's workdir, one of its steps, a file of weights, or None",
        "path or URI of weights to begin with instead of random ones; {seed} becomes the run's seed",
        lambda value: value is None or value.strip(),
    ),
    "batch_size": Field.integer(REQUIRED, "examples", "examples in a training batch, over all devices"),
    "accumulation": Field.integer(1, "micro-batches", "parts of a batch that are computed one after another, to save memory"),
    "total": Field.duration(REQUIRED, "epochs", "length of training"),
    "precision": Field.choice("float32", "number type of activations and products; weights are float32", "float32", "bfloat16"),
    "model": Field.open("name of the network (attention_jax.list_models() lists them) or file.py:Network, and its fields"),
    "data": {
        "source": Field.name(REQUIRED, "data set: a built-in name, a dotted path, or path/to/file.py:make"),
        "args": Field.open("keyword arguments of the data source"),
        "train_split": Field.name("train", "split to train on, as the source names it"),
        "eval_split": Field.name("test", "split to evaluate in full; 'validation' may be a tenth of the training split"),
        "on_broken": Field.choice("skip", "leave out an example that cannot be read, or stop", "skip", "stop"),
        "num_examples": Field.integer_or_none(None, "examples", "for the data's own", "examples in the training split"),
        "threads": Field.integer(2, "threads", "threads that prepare batches during the steps"),
        "cache_dir": Field(
            None,
            (str, type(None)),
            "a folder of this host, or None",
            "folder that keeps remote images, and the tokens of texts, after their first use; None keeps neither",
            lambda value: value is None or value.strip(),
        ),
    },
    "optimizer": {
        "name": Field.named("sgd", "optimizer; your own reads args, the others the fields that name them", *OPTIMIZERS),
        "args": Field.open("keyword arguments of an optimizer of your own or of optax"),
        "momentum": Field.share(0.9, "of sgd, rmsprop: share of the old velocity that each step keeps"),
        "nesterov": Field.flag(False, "of sgd: use Nesterov's momentum"),
        "rate_in_velocity": Field.flag(False, "of sgd: True is v = m·v + lr·g as in Keras and Caffe, False w = w - lr·v"),
        "rmsprop": Field.choice("tensorflow", "of rmsprop: library whose formula is used", "tensorflow", "keras", "torch"),
        "b1": Field.share(0.9, "of adamw: share of the old first moment that each step keeps"),
        "b2": Field.share(0.999, "of adamw, rmsprop (0.9 there): share of the old second moment that each step keeps"),
        "eps": Field(
            1e-8,
            NUMBER,
            "a positive number",
            "of adamw, rmsprop (1e-3 there): number added to the divisor, so that it is never 0",
            lambda value: 0 < value < math.inf,
        ),
        "clip_norm": Field.not_negative(
            0.0, "a norm", "largest norm of a batch's gradient, weight decay not counted; 0 for no limit"
        ),
        "weight_decay": Field.not_negative(0.0, "a factor", "strength of weight decay; 0 for none"),
        "decay": Field.choice(
            "l2", "of sgd, rmsprop: decay in the gradient, or w = w - lr·decay·w as in adamw", "l2", "decoupled"
        ),
        "decay_rules": Field.sequence(
            ((".*", True),),
            "a tuple of (path regex, True or False)",
            "parameters with weight decay; the first match wins",
            lambda rules: is_rules(rules, lambda v: isinstance(v, bool)),
        ),
        "rate_rules": Field.sequence(
            ((".*", 1.0),),
            "a tuple of (path regex, factor of 0 or more)",
            "factor of each parameter's learning rate and decoupled decay, 0 to freeze; the first match wins",
            lambda rules: is_rules(rules, lambda v: isinstance(v, NUMBER) and 0 <= v < math.inf),
        ),
    },
    "schedule": {
        "name": Field.named("cosine", "course of the learning rate after the warm-up", *SCHEDULES),
        "args": Field.open("keyword arguments of a schedule of your own or of optax"),
        "learning_rate": Field.not_negative(
            REQUIRED, "a rate", "peak of the learning rate, for the global batch; with noam the factor of its formula"
        ),
        "warmup": Field.duration(0, "steps", "time in which the learning rate rises linearly to its peak", low=0),
        "warmup_start": Field.not_negative(0.0, "a rate", "learning rate at which the warm-up starts"),
        "final_share": Field.probability(0.0, "of cosine, linear: share of the peak rate that is left at the end"),
        "boundaries": Field.sequence(
            (),
            "a tuple of shares of the run, between 0 and 1",
            "of step: shares of the run at which the rate falls",
            _numbers(0, 1),
        ),
        "factor": Field.not_negative(0.1, "a factor", "of step: factor of the learning rate at each boundary"),
        "d_model": Field.integer_or_none(None, "channels", "for the network's features", "of noam: width in its formula"),
    },
    "loss": {
        "label_smoothing": Field.share(0.0, "share of the target that the true class or token gives to others"),
        "smoothing_over": Field.choice(
            "uniform", "the smoothed share goes to all classes or tokens, or to all but the true one", "uniform", "others"
        ),
    },
    "ema": {
        "decay": Field.share(0.0, "share of the averaged weights and statistics that each step keeps; 0 for no average"),
        "warmup": Field.flag(True, "limit decay to (1+t)/(10+t) at step t, so that the average moves early on"),
    },
    "evaluation": {
        "every": Field.duration(1.0, "epochs", "time between evaluations; there is one at the end, too"),
        "batch_size": Field.integer(256, "examples", "examples in an evaluation batch, over all devices"),
        "patience": Field.integer(
            0,
            "evaluations",
            "evaluations without a better headline metric on the validation split that end training; 0: none",
            0,
        ),
    },
    "checkpoint": {
        "every": Field.duration(1.0, "epochs", "time between checkpoints; there is one at the end, too"),
        "every_minutes": Field.not_negative(0.0, "minutes", "save also when the last save is this old; 0 for never", "minutes"),
        "megabytes_per_second": Field.not_negative(0.0, "MB/s", "writing speed of a process; 0 for unknown", "MB/s"),
        "keep_last": Field.integer(2, "checkpoints", "newest checkpoints to keep"),
        "keep_best": Field.integer(1, "checkpoints", "best checkpoints to keep, by the headline metric"),
    },
    "logging": {
        "every": Field.duration(100, "steps", "time between log lines of training metrics"),
        "tensorboard": Field.flag(True, "write the log as TensorBoard events too"),
        "trackers": Field.sequence(
            (),
            "a tuple of 'tensorboard', 'wandb', 'trackio'",
            "send the log to these trackers too; an error of theirs is a warning",
            lambda names: {*names} <= {"tensorboard", "wandb", "trackio"},
        ),
    },
    "parallel": {
        "mode": Field.choice("jit", "one program over all devices, or one for each", "jit", "pmap"),
        "data": Field(
            -1,
            int,
            "a number of devices, or -1 for all of them that fsdp and model leave",
            "devices among which only the batch is divided",
            lambda n: n == -1 or n >= 1,
            "devices",
        ),
        "fsdp": Field.integer(1, "devices", "devices that share the batch, parameters, optimizer state and averages"),
        "model": Field.integer(1, "devices", "devices that share a Transformer's heads, hidden layers and vocabulary"),
        "slices": Field.integer(0, "slices", "TPU slices over which the batch is divided; 0 for all found", low=0),
        "rules": Field.sequence(
            (),
            f"a tuple of (path regex, {SHARDINGS})",
            "how parameters are divided, before the network's own rules; the first match wins",
            lambda rules: is_rules(rules, is_sharding),
        ),
    },
    "profile": {
        "first_step": Field.integer(0, "steps", "first step of a profiler trace, written to profile/ in the workdir", low=0),
        "num_steps": Field.integer(0, "steps", "steps that the profiler traces; 0 for no trace", low=0),
    },
}

_IMAGES: dict[str, Any] = {
    "batch_norm": {
        "granularity": Field(
            "all",
            (str, int),
            "'all', 'per_replica', or a whole number of examples; with init_from also 'stored'",
            "examples that share batch statistics; 'stored' keeps those of init_from unchanged",
            _is_granularity,
            "examples",
        )
    },
    "data": {
        "crop": Field.choice("pad", "how training images are cropped", "pad", "random_resized", "random_scaled", "none"),
        "crop_padding": Field.integer(0, "pixels", "of crop pad: pixels added on each side before a random crop", low=0),
        "crop_scale": Field.sequence(
            (0.08, 1.0), "(smallest, largest) share, above 0, up to 1", "of crop random_resized: share of the area", _range(1)
        ),
        "crop_ratio": Field.sequence(
            (3 / 4, 4 / 3), "(smallest, largest) ratio, above 0", "of crop random_resized: width / height", _range(math.inf)
        ),
        "crop_shorter": Field.sequence(
            (256, 480), "(smallest, largest) pixels", "of crop random_scaled: shorter side before the crop", _range(math.inf)
        ),
        "exif_rotation": Field.flag(False, "turn each image upright by its EXIF orientation"),
        "flip": Field.flag(False, "mirror half of the training images left to right, at random"),
        "colour_jitter": Field.not_negative(
            0.0, "a strength", "s of random factors of brightness, contrast, saturation, 1 - s to 1 + s; 0 for none"
        ),
        "lighting": Field.not_negative(
            0.0, "a deviation", "standard deviation of shifts along ImageNet's principal colours; 0 for none"
        ),
        "randaugment_layers": Field.integer(0, "layers", "N of RandAugment: operations for each image; 0 for none", low=0),
        "randaugment_magnitude": Field.not_negative(
            9, "a magnitude", "M of RandAugment, its strength; 10 is AutoAugment's most"
        ),
        "randaugment_std": Field.not_negative(
            0.0, "a deviation of the magnitude", "standard deviation of M, which is drawn for each operation; 0.5 in timm"
        ),
        "randaugment_ops": Field.choice("paper", "set of operations of RandAugment", "paper", "tf1", "timm"),
        "interpolation": Field.choice("bilinear", "filter of every resize, with antialiasing", "bilinear", "bicubic"),
        "eval_resize": Field.integer_or_none(
            None, "pixels", "to take images as they are", "shorter side of an image before the centre crop of evaluation"
        ),
        "mean": Field.sequence(
            REQUIRED,
            "a tuple of numbers, one a channel",
            "subtracted from pixels in 0 to 1",
            lambda value: value and _numbers(-math.inf)(value),
        ),
        "std": Field.sequence(
            REQUIRED,
            "a tuple of positive numbers, one a channel",
            "divisor of pixels in 0 to 1, after the mean is subtracted",
            lambda value: value and _numbers(0)(value),
        ),
        "image_shape": Field(
            None,
            (*SEQUENCE, type(None)),
            "(height, width, channels), or None for the data's own",
            "shape of a training image",
            _is_shape,
            "pixels",
        ),
    },
    "mix": {
        "mixup_alpha": Field.not_negative(0.0, "alpha", "mixup's shares are drawn from Beta(alpha, alpha); 0 for none"),
        "cutmix_alpha": Field.not_negative(0.0, "alpha", "CutMix's shares are drawn from Beta(alpha, alpha); 0 for none"),
        "probability": Field.probability(1.0, "probability that a batch is mixed, in mode pmap a replica's part"),
        "switch_probability": Field.probability(0.5, "probability of CutMix instead of mixup, where both are on"),
        "erasing_probability": Field.probability(0.0, "probability that a box of an image becomes noise, before mixing"),
    },
    "loss": {
        "function": Field.choice(
            "cross_entropy",
            "loss of logits and targets; the binary one is the mean over classes",
            "cross_entropy",
            "binary_cross_entropy",
        ),
        "target_threshold": Field.share(0.0, "of binary_cross_entropy: targets above it become 1, others 0; 0 for no change"),
    },
}

_TEXT: dict[str, Any] = {
    "batch_size": Field.integer(REQUIRED, "tokens", "tokens on each side of a batch, padding included, over all devices"),
    "data": {
        "on_broken": dataclasses.replace(COMMON["data"]["on_broken"], default="stop"),
        "tokenizer": Field(
            "sentencepiece",
            str,
            "'sentencepiece', 'words', or the path of a vocabulary's file",
            "kind trained on the training split, or a file to read, see docs/translation.md",
        ),
        "source_tokenizer": Field(
            None, (str, type(None)), "as data.tokenizer, or None", "the source's own; data.tokenizer is then the target's alone"
        ),
        "tokenizer_options": Field.open("options of sentencepiece's trainer"),
        "vocab_size": Field.integer_or_none(None, "tokens", "for every word", "size of a trained vocabulary", low=5),
        "joiner": Field(
            "",
            str,
            "the end of a word that goes on in the next one, or '' for none",
            "of tokenizer words: mark at the end of a token whose word goes on in the next one, such as '@@'",
        ),
        "max_length": Field.integer(256, "tokens", "longest side of a pair, end symbol included", low=2),
        "too_long": Field.choice("drop", "what happens to longer training pairs", "drop", "truncate"),
        "max_ratio": Field.not_negative(
            0.0,
            "a ratio",
            "largest ratio of tokens, longer to shorter side, of a training pair; others are left out; 0: any",
        ),
        "drop_duplicates": Field.flag(False, "leave out a training pair whose two texts have come before"),
        "bucket_lengths": Field(
            8,
            (int, *SEQUENCE),
            "a whole number of buckets, or a tuple of ascending lengths in tokens",
            "lengths to which batches are padded, or how many to choose; each is compiled once",
            _is_buckets,
            "tokens",
        ),
        "rows_multiple": Field.integer(
            8, "rows", "a batch has a multiple of this many pairs, which devices and micro-batches divide"
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
        "beam": Field.integer(1, "hypotheses", "hypotheses that beam search keeps open; 1 is greedy search"),
        "alpha": Field.not_negative(0.6, "an exponent", "exponent of the length penalty"),
        "penalty": Field.choice("gnmt", "divisor of scores: ((5 + length) / 6)^alpha, or length^alpha", "gnmt", "length"),
        "expand": Field(2, int, "1 or 2", "candidates for each open hypothesis", lambda value: value in (1, 2), "candidates"),
        "late_ends": Field.flag(True, "True: an end symbol counts at any rank of the candidates; False: in the `beam` best"),
        "stop": Field.choice(
            "settled",
            "end of a sentence: no open hypothesis can be better, none would be if it ended now, or `beam` have ended",
            *("settled", "guess", "full"),
        ),
        "force_end": Field.flag(False, "make the end symbol the last token that a limit allows, at no cost"),
        "renormalise": Field.flag(False, "leave forbidden tokens out before the softmax, not after it"),
        "min_length": Field.integer(0, "tokens", "tokens before an end symbol is allowed", low=0),
        "max_extra": Field.integer(50, "tokens", "tokens by which a translation may be longer than its source", low=0),
        "max_length": Field.integer_or_none(
            None, "tokens", "for max_extra beyond the source", "longest translation, whatever the source"
        ),
    },
    "evaluation": {
        "batch_size": Field.integer(4096, "tokens", "tokens on each side of an evaluation batch, over all devices"),
        "translate": Field.flag(False, "translate at each evaluation, too, and score BLEU, chrF and exact matches"),
        "bleu": Field.choice(
            "13a",
            "tokenization for BLEU, as sacrebleu names it; none for tokenised text",
            *("13a", "intl", "char", "zh", "ja-mecab", "ko-mecab", "none"),
        ),
        "split_compounds": Field.flag(
            False, "score BLEU also with words split at hyphens (13a), as Vaswani et al. 2017 scored German"
        ),
        "headline": Field.choice(
            "token_accuracy", "metric by which the best checkpoint is chosen", "token_accuracy", "bleu", "chrf", "exact_match"
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
