"""Translation of sentences."""

import dataclasses
import functools
import hashlib
import json
import logging
import math
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from attention_jax.data.text.batches import BucketPlan, TokenLoader, TokenPairs, choose_buckets, count_rows
from attention_jax.data.text.pairs import Pairs, open_pairs
from attention_jax.data.text.tokenizer import BOS, PAD, TOKENIZERS, Tokenizer, load_tokenizer, read_tokenizer, train_tokenizer
from attention_jax.distributed.mesh import BatchShare, check_batch_size
from attention_jax.errors import UserError
from attention_jax.models import create_model
from attention_jax.optim.losses import right_tokens, token_cross_entropy
from attention_jax.tasks import translator
from attention_jax.tasks.translator import Translator

logger = logging.getLogger(__name__)
_tokenizers: dict[str, Tokenizer] = {}  # by what they are made from; a loaded checkpoint brings its own


def _key(config: ConfigDict) -> str:
    """Names what a tokenizer is made from."""
    fields = ("source", "args", "train_split", "tokenizer", "tokenizer_options", "vocab_size", "joiner", "on_broken")
    data = config.data.to_dict()
    return hashlib.sha256(json.dumps({name: data[name] for name in fields}, sort_keys=True).encode()).hexdigest()


def _pairs(config: ConfigDict, split: str) -> Pairs:
    return open_pairs(config.data.source, split, config.data.args.to_dict(), config.data.on_broken)


def get_tokenizer(config: ConfigDict) -> Tokenizer:
    """The tokenizer of a config: of its file, or trained on both sides of the training split, once a process."""
    key, data = _key(config), config.data
    if key not in _tokenizers:
        if data.tokenizer in TOKENIZERS:
            pairs = _pairs(config, data.train_split)
            lines = (sentence for i in range(len(pairs)) for sentence in pairs[i])
            options = data.tokenizer_options.to_dict()
            _tokenizers[key] = train_tokenizer(data.tokenizer, lines, data.vocab_size, data.joiner, options)
        else:
            _tokenizers[key] = read_tokenizer(data.tokenizer)
    return _tokenizers[key]


def adopt(config: ConfigDict, assets: Mapping[str, bytes]) -> None:
    """The tokenizer that a checkpoint carries serves its config from now on; the training data need not be there."""
    _tokenizers[_key(config)] = load_tokenizer(assets)


def assets(config: ConfigDict) -> dict[str, bytes]:
    """The tokenizer's files."""
    return get_tokenizer(config).assets()


@dataclasses.dataclass(frozen=True)
class _Wanted:
    """The tokens of a split, by all that decides them; the config beside it says where to read."""

    key: str
    split: str
    too_long: str
    max_length: int
    tokenizer: Tokenizer
    config: ConfigDict = dataclasses.field(compare=False)


@functools.lru_cache(maxsize=4)
def _tokens_of(wanted: _Wanted) -> TokenPairs:
    pairs, encode = _pairs(wanted.config, wanted.split), wanted.tokenizer.encode
    sides = (tuple(map(encode, pairs[i])) for i in range(len(pairs)))
    tokens, long = TokenPairs.of(sides, wanted.max_length, wanted.too_long)
    if long:
        done = "left out" if wanted.too_long == "drop" else "cut"
        text = "data: %d of %d pairs of split %r have more than %d tokens a side and are %s."
        logger.warning(text, long, len(pairs), wanted.split, wanted.max_length, done)
    return tokens


def _tokens(config: ConfigDict, split: str, too_long: str) -> TokenPairs:
    return _tokens_of(_Wanted(_key(config), split, too_long, config.data.max_length, get_tokenizer(config), config))


def unresolved(config: ConfigDict) -> list[str]:
    """What `resolve` has to read off the data; a number of buckets is no list of their lengths."""
    buckets = None if isinstance(config.data.bucket_lengths, int) else config.data.bucket_lengths
    stated = {
        "model.vocab_size": config.model.get("vocab_size"),
        "data.bucket_lengths": buckets,
        "data.num_examples": config.data.num_examples,
        "data.num_batches": config.data.num_batches,
    }
    return [name for name, value in stated.items() if value is None]


def resolve(config: ConfigDict) -> ConfigDict:
    """`model.vocab_size`, and the buckets and numbers of `data`, read off the training data where they are not given.

    A config that states all of them is resolved without its data, so that its step can be compiled where they are not.
    """
    config = config.copy_and_resolve_references()
    data = config.data
    with config.unlocked(), config.ignore_type():
        if config.model.get("vocab_size") is None:
            config.model.vocab_size = get_tokenizer(config).vocab_size
        if isinstance(data.bucket_lengths, int) or None in (data.num_examples, data.num_batches):
            tokens = _tokens(config, data.train_split, data.too_long)
            if isinstance(data.bucket_lengths, int):
                data.bucket_lengths = choose_buckets(tokens.lengths, data.bucket_lengths)
            data.num_examples = len(tokens)
            data.num_batches = _plan(config, tokens, config.batch_size, data.bucket_lengths).steps_per_epoch
    return config


def _plan(config: ConfigDict, tokens: TokenPairs, batch_tokens: int, buckets: tuple[int, ...]) -> BucketPlan:
    return BucketPlan(tokens.lengths, tuple(buckets), batch_tokens, config.data.rows_multiple, config.seed)


def check_batches(config: ConfigDict, mesh: Mesh) -> None:
    """Raises UserError unless the rows of every batch divide evenly over devices and micro-batches."""
    check_batch_size("data.rows_multiple", config.data.rows_multiple, mesh, config.accumulation)


def steps_per_epoch(config: ConfigDict) -> int:
    """Batches in an epoch of a resolved config."""
    return config.data.num_batches


def examples_per_step(config: ConfigDict) -> float:
    """Sentence pairs in a batch, on average."""
    return config.data.num_examples / config.data.num_batches


def describe(config: ConfigDict) -> dict[str, str]:
    """Vocabulary, and the shapes for which the step is compiled."""
    buckets = config.data.bucket_lengths
    shapes = ", ".join("{} x {}".format(*batch["source"].shape) for batch in batch_shapes(config))
    return {
        "vocabulary": f"{config.model.vocab_size:,} tokens ({config.data.tokenizer})",
        "batches": f"{config.data.num_examples:,} pairs in {len(buckets)} compiled shapes, pairs x tokens a side: {shapes}",
    }


def headline(config: ConfigDict) -> str:
    """The metric by which the best checkpoint is chosen. Raises UserError when evaluation does not make it."""
    name = config.evaluation.headline
    if name != "token_accuracy" and not config.evaluation.translate:
        raise UserError(
            f"config.evaluation.headline={name!r} needs translations: set evaluation.translate=True, or the headline to "
            "'token_accuracy'."
        )
    return translator.name_bleu(config.evaluation.bleu) if name == "bleu" else name


def correct_means(config: ConfigDict) -> str:
    """What the mean of "correct" is called: texts are compared where they are translated, tokens where they are not."""
    return "exact match" if config.evaluation.translate else "token accuracy"


def model(config: ConfigDict, norm_group_size: int | None = None) -> nn.Module:
    """The network of a resolved config; its field `dtype` is set when it computes in bfloat16."""
    fields = config.model.to_dict()
    if config.precision == "bfloat16":
        fields["dtype"] = "bfloat16"
    return create_model(fields.pop("name"), **fields)


def example_inputs(config: ConfigDict) -> tuple[jax.ShapeDtypeStruct, ...]:
    """Source and target of the longest bucket, [1, length] int32."""
    return (jax.ShapeDtypeStruct((1, config.data.bucket_lengths[-1]), jnp.int32),) * 2


def batch_shapes(config: ConfigDict) -> list[dict[str, jax.ShapeDtypeStruct]]:
    """A training batch of each bucket, the shortest first."""
    shapes = []
    for length in config.data.bucket_lengths:
        b = count_rows(length, config.batch_size, config.data.rows_multiple)
        sides = dict.fromkeys(("source", "target"), jax.ShapeDtypeStruct((b, length), jnp.int32))
        one_each = {"weight": jax.ShapeDtypeStruct((b,), jnp.float32), "index": jax.ShapeDtypeStruct((b,), jnp.int32)}
        shapes.append({**sides, **one_each})
    return shapes


def loader(config: ConfigDict, split: str, process: BatchShare, training: bool) -> TokenLoader:
    """The loader of one split. In evaluation too long pairs are cut, never left out, and longer buckets join."""
    data = config.data
    if training:
        tokens = _tokens(config, split, data.too_long)
        plan = _plan(config, tokens, config.batch_size, data.bucket_lengths)
        if (len(tokens), plan.steps_per_epoch) != (data.num_examples, data.num_batches):
            raise UserError(
                f"data.num_examples={data.num_examples} and data.num_batches={data.num_batches}, but split {split!r} of "
                f"data.source={data.source} has {len(tokens)} pairs in {plan.steps_per_epoch} batches: give None to take the "
                "data's."
            )
    else:
        tokens = _tokens(config, split, "truncate")
        buckets = translator.extend_buckets(data.bucket_lengths, int(tokens.lengths.max()))
        plan = _plan(config, tokens, config.evaluation.batch_size, buckets)
    if any(plan.rows(bucket) % process[1] for bucket in range(len(plan.buckets))):
        raise UserError(
            f"data.rows_multiple={data.rows_multiple} cannot be divided by {process[1]} processes: give a multiple."
        )
    return TokenLoader(tokens, plan, data.threads, process)


def mix(config: ConfigDict, batch: Mapping[str, jax.Array], rng: jax.Array) -> Mapping[str, jax.Array]:
    """The batch itself."""
    return batch


def shift_right(target: jax.Array) -> jax.Array:
    """[B, T] -> [B, T]: the start symbol and all tokens but the last, which the decoder sees."""
    return jnp.pad(target[:, :-1], ((0, 0), (1, 0)), constant_values=BOS)


def loss(
    config: ConfigDict, model: nn.Module, variables: dict, batch: Mapping[str, jax.Array], rng: jax.Array, train: bool
) -> tuple[dict[str, jax.Array], dict]:
    """Sums over all target tokens, end symbols included, of loss (nats) and right answers; their number is the weight."""
    source, target = batch["source"], batch["target"]
    logits = model.apply(variables, source, shift_right(target), train=train, rngs={"dropout": rng})
    weight = (target != PAD).astype(jnp.float32)
    per_token = token_cross_entropy(logits, target, config.loss.label_smoothing, config.loss.smoothing_over)
    right = right_tokens(logits, target)
    return {"loss": (per_token * weight).sum(), "accuracy": (right * weight).sum(), "weight": weight.sum()}, {}


def outputs(config: ConfigDict, model: nn.Module, variables: dict, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """Per pair: unsmoothed loss (nats), right answers and number of its target tokens, its index and weight.

    With `evaluation.translate` also "hypothesis", the translation that `search` finds, [B, longest that is possible].
    """
    source, target = batch["source"], batch["target"]
    logits = model.apply(variables, source, shift_right(target), train=False)
    weight = (target != PAD).astype(jnp.float32)
    found = {
        "loss": (token_cross_entropy(logits, target) * weight).sum(1),
        "right": (right_tokens(logits, target) * weight).sum(1),
        "tokens": weight.sum(1),
        "weight": batch["weight"],
        "index": batch["index"],
    }
    if config.evaluation.translate:
        options = translator.TranslationOptions.from_config(config)
        tokens, _ = translator.translate_tokens(model, variables, source, options)
        # One width for all buckets. One that is longer than the longest sentence has nothing beyond it.
        width = options.max_length(config.data.max_length)
        best = tokens[:, 0, :width]
        found["hypothesis"] = jnp.pad(best, ((0, 0), (0, width - best.shape[1])))
    return found


def read_texts(config: ConfigDict, outputs: Mapping[str, np.ndarray]) -> tuple[list[str], list[str]]:
    """Translations and references of an evaluation that translated, pair by pair."""
    pairs, words = _pairs(config, config.data.eval_split), get_tokenizer(config)
    hypotheses = [words.decode(row) for row in outputs["hypothesis"].tolist()]
    return hypotheses, [words.join(pairs[i][1]) for i in range(len(pairs))]


def metrics(config: ConfigDict, outputs: dict[str, np.ndarray]) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Loss (nats a target token), perplexity, accuracy of the next token, and with `evaluation.translate` those of texts.

    Translations are compared with the references of the data, both joined where words are in pieces: BLEU ("bleu_tokenised"
    where `evaluation.bleu` says that they are tokens already) and chrF of sacrebleu (0 to 100) with their signatures, and
    the share that is exactly equal. Of the outputs "correct" says which are, or without translation which share of a pair's
    tokens was right.
    """
    tokens = outputs["tokens"].astype(np.float64).sum()
    loss = float(outputs["loss"].astype(np.float64).sum() / tokens)
    scores: dict[str, Any] = {
        "loss": loss,
        "perplexity": math.exp(min(loss, 700.0)),
        "token_accuracy": float(outputs["right"].astype(np.float64).sum() / tokens),
    }
    correct = outputs["right"] / outputs["tokens"]
    if config.evaluation.translate:
        found, correct = translator.score_texts(*read_texts(config, outputs), config.evaluation.bleu)
        scores.update(found)
    return scores, {**outputs, "correct": correct}


def predictor(config: ConfigDict, assets: Mapping[str, bytes], model: nn.Module, variables: dict[str, Any]) -> Translator:
    """The translator of a loaded run."""
    return Translator(config, load_tokenizer(assets), model, variables)
