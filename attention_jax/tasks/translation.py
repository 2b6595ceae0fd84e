"""The translation task: data, network, loss and scores of sentence pairs."""

import hashlib
import json
import logging
import math
import os
import unicodedata
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from attention_jax.data.splits import VALIDATION, open_split
from attention_jax.data.text.batches import (
    DUPLICATE,
    LONG,
    UNEVEN,
    BucketPlan,
    TokenLoader,
    TokenPairs,
    choose_buckets,
    count_rows,
    encode_pairs,
    warn_of_unknown,
)
from attention_jax.data.text.pairs import Pairs, open_pairs
from attention_jax.data.text.token_store import ABOUT, identify_pairs, keep_files, keep_tokens
from attention_jax.data.text.tokenizer import (
    BOS,
    PAD,
    TOKENIZERS,
    Tokenizer,
    Tokenizers,
    load_tokenizer,
    load_tokenizers,
    train_tokenizer,
)
from attention_jax.data.text.vocabularies import read_tokenizer
from attention_jax.distributed.mesh import BatchShare, check_batch_size
from attention_jax.errors import UserError
from attention_jax.optim.losses import right_tokens, token_cross_entropy
from attention_jax.tasks import text_scores, translator
from attention_jax.tasks.translator import Translator

logger = logging.getLogger(__name__)
_tokenizers: dict[str, Tokenizers] = {}  # `_key` -> tokenizers; a loaded checkpoint brings its own
_encoded: dict[tuple, TokenPairs] = {}  # the four splits used last


def _key(config: ConfigDict) -> str:
    """Returns the fields from which a tokenizer is made."""
    fields = ("source", "args", "train_split", "tokenizer", "source_tokenizer", "tokenizer_options", "vocab_size", "joiner")
    data = config.data.to_dict()
    chosen: dict[str, Any] = {name: data[name] for name in (*fields, "on_broken")}
    return json.dumps(chosen | {"validation": data["eval_split"] == VALIDATION}, sort_keys=True)  # validation may be carved


def source(config: ConfigDict, split: str) -> Pairs:
    """Returns one split of the config's sentence pairs."""
    data = config.data
    return open_split(data, split, lambda name: open_pairs(data.source, name, data.args.to_dict(), data.on_broken))


def get_tokenizers(config: ConfigDict) -> Tokenizers:
    """Returns the tokenizers of a config's source and target, one object if both have the same vocabulary and rules.

    Each is read from its file, or trained once per process on the training split: on both sides of it, unless
    `data.source_tokenizer` gives the source its own.
    """
    key, data = _key(config), config.data
    if key not in _tokenizers:
        if data.source_tokenizer is not None:
            found = _make_tokenizer(config, "source_tokenizer", "source"), _make_tokenizer(config, "tokenizer", "target")
        else:
            target = _make_tokenizer(config, "tokenizer")
            source = _make_tokenizer(config, "tokenizer", "source") if data.tokenizer.endswith(".json") else target
            found = (target if source.assets() == target.assets() else source), target
        _tokenizers[key] = Tokenizers(*found)
    return _tokenizers[key]


def _make_tokenizer(config: ConfigDict, field: str, side: str = "") -> Tokenizer:
    """Returns the tokenizer that a field of `data` names, for one side, or for both."""
    data, kind = config.data, config.data[field]
    if kind not in TOKENIZERS:
        return read_tokenizer(kind, side or "target", data.joiner, f"data.{field}")
    pairs = source(config, data.train_split)
    part = {"source": slice(0, 1), "target": slice(1, 2)}.get(side, slice(0, 2))
    lines = (sentence for i in range(len(pairs)) for sentence in pairs[i][part])
    settings = data.vocab_size, data.joiner, data.tokenizer_options.to_dict() if kind == "sentencepiece" else {}
    if not (cache_dir := _get_cache_dir(config)):
        return train_tokenizer(kind, lines, *settings)

    def make() -> tuple[dict[str, bytes], dict[str, int]]:
        return train_tokenizer(kind, lines, *settings).assets(), {}

    made_of = {"settings": (kind, *settings, *([side] if side else [])), "data": identify_pairs(pairs)}
    folder, _ = keep_files(cache_dir, "tokenizer", made_of, make)
    return load_tokenizer({path.name: path.read_bytes() for path in folder.iterdir() if path.name != ABOUT})


def _get_cache_dir(config: ConfigDict) -> str | None:
    return config.data.cache_dir or os.environ.get("AJ_CACHE_DIR")


def adopt(config: ConfigDict, assets: Mapping[str, bytes]) -> None:
    """Uses the tokenizers of a checkpoint for its config from now on, so that no training data are needed."""
    _tokenizers[_key(config)] = load_tokenizers(assets)


def assets(config: ConfigDict) -> dict[str, bytes]:
    """Returns the tokenizers' files."""
    return get_tokenizers(config).assets()


def _tokens(config: ConfigDict, split: str, too_long: str, training: bool = False) -> TokenPairs:
    data, tokenizers, max_length = config.data, get_tokenizers(config), config.data.max_length
    max_ratio, drop_duplicates = (data.max_ratio, data.drop_duplicates) if training else (0.0, False)
    settings = split, too_long, max_length, max_ratio, drop_duplicates
    key = _key(config), settings, tokenizers
    if key in _encoded:
        return _encoded.setdefault(key, _encoded.pop(key))  # now the newest
    pairs = source(config, split)

    def make() -> tuple[TokenPairs, dict[str, int]]:
        return TokenPairs.of(encode_pairs(pairs, tokenizers, drop_duplicates), max_length, too_long, max_ratio)

    if cache_dir := _get_cache_dir(config):
        words = {name: hashlib.sha256(content).hexdigest() for name, content in tokenizers.assets().items()}
        made_of = {"settings": settings, "data": identify_pairs(pairs), "tokenizer": words}
        tokens, counts = keep_tokens(cache_dir, made_of, make)
    else:
        tokens, counts = make()
    for reason, count in counts.items():
        if count:
            done = "cut" if reason == LONG and too_long == "truncate" else "left out"
            means = {
                LONG: f"have more than {max_length} tokens a side",
                UNEVEN: f"have a side of more than {max_ratio:g} times the other's tokens",
                DUPLICATE: "have come before",
            }
            logger.warning("data: %d of %d pairs of split %r %s and are %s.", count, len(pairs), split, means[reason], done)
    warn_of_unknown(pairs, tokens, split)
    for oldest in list(_encoded)[:-3]:
        del _encoded[oldest]
    return _encoded.setdefault(key, tokens)


def prepare_tokens(config: ConfigDict) -> list[str]:
    """Keeps tokenizer and tokens of both splits in `data.cache_dir`; returns a sentence about each.

    Raises UserError without that folder.
    """
    if not (cache_dir := _get_cache_dir(config)):
        raise UserError("prepare --config keeps tokens in a folder: give it as --config.data.cache_dir=DIR.")
    data, said = config.data, []
    for split, too_long, training in ((data.train_split, data.too_long, True), (data.eval_split, "truncate", False)):
        tokens = _tokens(config, split, too_long, training)
        said.append(f"{cache_dir}: split {split!r} has {len(tokens):,} pairs, {len(tokens.tokens):,} tokens.")
    return said


def unresolved(config: ConfigDict) -> list[str]:
    """Returns the fields that `resolve` reads from the data, including `bucket_lengths` if it is a number of buckets."""
    data = config.data
    missing = {
        "model.vocab_size": config.model.get("vocab_size") is None,
        "model.source_vocab_size": data.source_tokenizer is not None and config.model.get("source_vocab_size") is None,
        "data.bucket_lengths": data.bucket_lengths is None or isinstance(data.bucket_lengths, int),
        "data.num_examples": data.num_examples is None,
        "data.num_batches": data.num_batches is None,
    }
    return [name for name, is_missing in missing.items() if is_missing]


def resolve(config: ConfigDict) -> ConfigDict:
    """Returns the config with the vocabularies' sizes, buckets and numbers of `data` from the training data if not given.

    A config with all of them is resolved without its data, so that its step can be compiled elsewhere.
    """
    config = config.copy_and_resolve_references()
    data = config.data
    with config.unlocked(), config.ignore_type():
        if config.model.get("vocab_size") is None:
            config.model.vocab_size = get_tokenizers(config).target.vocab_size
        if data.source_tokenizer is not None and config.model.get("source_vocab_size") is None:
            config.model.source_vocab_size = get_tokenizers(config).source.vocab_size
        if isinstance(data.bucket_lengths, int) or None in (data.num_examples, data.num_batches):
            tokens = _tokens(config, data.train_split, data.too_long, training=True)
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
    """Returns the batches in an epoch of a resolved config."""
    return config.data.num_batches


def examples_per_step(config: ConfigDict) -> float:
    """Returns the mean number of sentence pairs in a batch."""
    return config.data.num_examples / config.data.num_batches


def describe(config: ConfigDict) -> dict[str, str]:
    """Returns the vocabulary, and the shapes for which the step is compiled."""
    buckets = config.data.bucket_lengths
    shapes = ", ".join("{} x {}".format(*batch["source"].shape) for batch in batch_shapes(config))
    data, size, source_size = config.data, config.model.vocab_size, config.model.get("source_vocab_size")
    vocabulary = f"{size:,} tokens ({data.tokenizer})"
    if data.source_tokenizer is not None:
        vocabulary = f"{source_size:,} source tokens ({data.source_tokenizer}), {size:,} target tokens ({data.tokenizer})"
    return {
        "vocabulary": vocabulary,
        "batches": f"{config.data.num_examples:,} pairs in {len(buckets)} compiled shapes, pairs x tokens a side: {shapes}",
    }


def headline(config: ConfigDict) -> str:
    """Returns the metric that chooses the best checkpoint. Raises UserError if evaluation does not compute it."""
    name = config.evaluation.headline
    if name != "token_accuracy" and not config.evaluation.translate:
        raise UserError(
            f"config.evaluation.headline={name!r} needs translations: set evaluation.translate=True, or the headline to "
            "'token_accuracy'."
        )
    return text_scores.name_bleu(config.evaluation.bleu) if name == "bleu" else name


def correct_means(config: ConfigDict) -> str:
    """Returns the name of the mean of "correct": exact match of texts if they are translated, else accuracy of tokens."""
    return "exact match" if config.evaluation.translate else "token accuracy"


def example_inputs(config: ConfigDict) -> tuple[jax.ShapeDtypeStruct, ...]:
    """[1, length] int32, [1, length] int32: shapes of source and target in the longest bucket."""
    return (jax.ShapeDtypeStruct((1, config.data.bucket_lengths[-1]), jnp.int32),) * 2


def batch_shapes(config: ConfigDict) -> list[dict[str, jax.ShapeDtypeStruct]]:
    """Returns the shapes of a training batch of each bucket, the shortest first."""
    shapes = []
    for length in config.data.bucket_lengths:
        b = count_rows(length, config.batch_size, config.data.rows_multiple)
        side = jax.ShapeDtypeStruct((b, length), jnp.int32)
        weight, index = jax.ShapeDtypeStruct((b,), jnp.float32), jax.ShapeDtypeStruct((b,), jnp.int32)
        shapes.append({"source": side, "target": side, "weight": weight, "index": index})
    return shapes


def loader(config: ConfigDict, split: str, process: BatchShare, training: bool) -> TokenLoader:
    """Returns the loader of one split; evaluation cuts too long pairs, leaves out none, and may have a longer bucket."""
    data, words = config.data, get_tokenizers(config)
    sizes = {"vocab_size": (words.target, f"data.tokenizer={data.tokenizer}")}
    if data.source_tokenizer is not None:
        sizes["source_vocab_size"] = words.source, f"data.source_tokenizer={data.source_tokenizer}"
    for field, (its, name) in sizes.items():
        if its.vocab_size > config.model[field]:
            raise UserError(
                f"model.{field}={config.model[field]} is fewer than the {its.vocab_size} tokens of {name}: give None to take "
                "the tokenizer's."
            )
    if config.evaluation.translate:  # fails before hours of training, not at their end
        text_scores.check_bleu(config.evaluation.bleu)
    if training:
        tokens = _tokens(config, split, data.too_long, training=True)
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


def evaluation_loader(config: ConfigDict, process: BatchShare, assets: Mapping[str, bytes]) -> TokenLoader:
    """Returns the loader of the evaluation split, and warns of references that the tokenizer cannot write."""
    split, words = config.data.eval_split, get_tokenizers(config).target
    pairs = source(config, split)
    both = [(words.join(text), words.decode(words.encode(text))) for text in (pairs[i][1] for i in range(len(pairs)))]
    if lost := [(text, written) for text, written in both if text != written]:
        forms = sum(unicodedata.normalize("NFKC", text) == unicodedata.normalize("NFKC", written) for text, written in lost)
        logger.warning(
            "data: %d of %d references of split %r (%.1f %%), %d of them for their Unicode normal form alone, contain what the "
            "tokenizer cannot write, for example %.80r, which it writes as %.80r: no translation can equal them.",
            *(len(lost), len(both), split, 100 * len(lost) / len(both), forms, *lost[0]),
        )
    return loader(config, split, process, training=False)


def shift_right(target: jax.Array) -> jax.Array:
    """[B, T] -> [B, T], the decoder's input: the start symbol and all tokens but the last."""
    return jnp.pad(target[:, :-1], ((0, 0), (1, 0)), constant_values=BOS)


def _apply(model: nn.Module, variables: dict, batch: Mapping[str, jax.Array], **options: Any) -> tuple[jax.Array, jax.Array]:
    """Logits [B, T, vocab_size], and weights [B, T] that are 0 at padding."""
    logits: Any = model.apply(variables, batch["source"], shift_right(batch["target"]), **options)
    return logits, (batch["target"] != PAD).astype(jnp.float32)


def loss(
    config: ConfigDict, model: nn.Module, variables: dict, batch: Mapping[str, jax.Array], rng: jax.Array, train: bool
) -> tuple[dict[str, jax.Array], dict]:
    """Returns sums over all target tokens, EOS included, of loss (nats) and right answers; the weight is their number."""
    target = batch["target"]
    logits, weight = _apply(model, variables, batch, train=train, rngs={"dropout": rng})
    per_token = token_cross_entropy(logits, target, config.loss.label_smoothing, config.loss.smoothing_over)
    right = right_tokens(logits, target)
    return {"loss": (per_token * weight).sum(), "accuracy": (right * weight).sum(), "weight": weight.sum()}, {}


def outputs(config: ConfigDict, model: nn.Module, variables: dict, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """Returns, per pair, unsmoothed loss (nats), right answers and number of its target tokens, its index and weight.

    With `evaluation.translate` also "hypothesis" [B, maximum length], the translation, and its "score", as a search has it.
    """
    target = batch["target"]
    logits, weight = _apply(model, variables, batch, train=False)
    found = {
        "loss": (token_cross_entropy(logits, target) * weight).sum(1),
        "right": (right_tokens(logits, target) * weight).sum(1),
        "tokens": weight.sum(1),
        "weight": batch["weight"],
        "index": batch["index"],
    }
    if config.evaluation.translate:
        options = translator.TranslationOptions.from_config(config)
        tokens, scores = translator.translate_tokens(model, variables, batch["source"], options)
        # One width for all buckets; a bucket may be longer than the longest sentence.
        width = options.max_length(config.data.max_length)
        best = tokens[:, 0, :width]
        found["score"] = scores[:, 0]
        found["hypothesis"] = jnp.pad(best, ((0, 0), (0, width - best.shape[1])))
    return found


def read_texts(config: ConfigDict, outputs: Mapping[str, np.ndarray]) -> tuple[list[str], list[str]]:
    """Returns the translations of an evaluation's outputs and their references."""
    pairs, words = source(config, config.data.eval_split), get_tokenizers(config).target
    hypotheses = [words.decode(row) for row in outputs["hypothesis"].tolist()]
    return hypotheses, [words.join(pairs[i][1]) for i in range(len(pairs))]


def metrics(config: ConfigDict, outputs: dict[str, np.ndarray]) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Returns loss (nats per target token), perplexity, accuracy of the next token, and scores of texts if translated.

    The scores are BLEU and chrF (0 to 100, see `text_scores.score_texts`) with signatures, and the share of exact matches,
    with the parts of words joined on both sides. The output "correct" marks texts that match; without texts it is the
    share of right tokens. The outputs have "translation" and "reference" as texts, too.
    """
    total, right, tokens = (outputs[name].astype(np.float64).sum() for name in ("loss", "right", "tokens"))
    loss = float(total / tokens)
    scores: dict[str, Any] = {"loss": loss, "perplexity": math.exp(min(loss, 700.0)), "token_accuracy": float(right / tokens)}
    correct = outputs["right"] / outputs["tokens"]
    if config.evaluation.translate:
        hypotheses, references = read_texts(config, outputs)
        found, correct = text_scores.score_texts(hypotheses, references, config.evaluation.bleu)
        scores.update(found)
        if config.evaluation.split_compounds:
            scores["bleu_compounds_split"] = text_scores.score_split_compounds(hypotheses, references)
        outputs = outputs | {"translation": np.array(hypotheses), "reference": np.array(references)}
    return scores, {**outputs, "correct": correct}


def predictor(config: ConfigDict, assets: Mapping[str, bytes], model: nn.Module, variables: dict[str, Any]) -> Translator:
    """Returns the translator of a loaded run."""
    return Translator(config, load_tokenizers(assets), model, variables)
