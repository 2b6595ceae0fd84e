"""Marian models in the form of Hugging Face's `MarianMTModel`, among them the published opus-mt translation models.

    config = json.load(open("config.json"))
    model, variables = convert_marian(config, safetensors.numpy.load_file("model.safetensors"))
    options = convert_generation_options(config, json.load(open("generation_config.json")))

Tokens keep their numbers. The first target token is `decoder_start_token_id`, which is padding in the published models.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from attention_jax import tree
from attention_jax.errors import UserError
from attention_jax.models.transformer import Transformer
from attention_jax.search import SearchOptions

ACTIVATIONS = {"relu": "relu", "gelu": "gelu", "swish": "swish", "silu": "swish"}
_STOP = {False: "guess", True: "full", "never": "settled"}


class Rule(NamedTuple):
    """A rule for the weights whose complete name matches a pattern; the path is None for weights that follow from others."""

    pattern: str
    path: str | None
    transform: Callable[[np.ndarray], np.ndarray] = np.asarray


def _dense_rules(pattern: str, path: str) -> tuple[Rule, Rule]:
    """Converts a `torch.nn.Linear` weight [out, in] to a Flax kernel [in, out]."""
    return Rule(rf"{pattern}\.weight", f"{path}/kernel", np.transpose), Rule(rf"{pattern}\.bias", f"{path}/bias")


_LAYER, _OURS = r"model\.(encoder|decoder)\.layers\.(\d+)", r"\1_\2"
_KINDS = {"self_attn": "self_attention", "encoder_attn": "cross_attention"}
_PROJECTIONS = {"q_proj": "query", "k_proj": "key", "v_proj": "value", "out_proj": "output"}
_TABLE = "target_embedding/embedding"

RULES = (
    *(
        rule
        for theirs, kind in _KINDS.items()
        for projection, ours in _PROJECTIONS.items()
        for rule in _dense_rules(rf"{_LAYER}\.{theirs}\.{projection}", f"{_OURS}/{kind}/{ours}")
    ),
    *(
        Rule(rf"{_LAYER}\.{theirs}_layer_norm\.{name}", f"{_OURS}/{sublayer}_sum/layer_norm/{parameter}")
        for theirs, sublayer in {**_KINDS, "final": "mlp"}.items()
        for name, parameter in (("weight", "scale"), ("bias", "bias"))
    ),
    *_dense_rules(rf"{_LAYER}\.fc1", f"{_OURS}/mlp/hidden"),
    *_dense_rules(rf"{_LAYER}\.fc2", f"{_OURS}/mlp/output"),
    Rule(r"model\.shared\.weight|model\.decoder\.embed_tokens\.weight|lm_head\.weight", _TABLE),
    Rule(r"final_logits_bias", "logits_bias", np.ravel),
    Rule(r"model\.(encoder|decoder)\.embed_positions\.weight", None),  # the sinusoids as a table
)
_SOURCE_TABLE = r"model\.encoder\.embed_tokens\.weight"


def convert_marian(config: Mapping[str, Any], weights: Mapping[str, Any]) -> tuple[Transformer, dict[str, Any]]:
    """Returns (model, variables) of a `MarianMTModel`, ready for `model.apply(variables, source, target)`.

    Args:
        config: contents of `config.json`.
        weights: the state dict {name: array}; it has tied weights once, or under each of their names.

    Raises:
        UserError: an unsupported field of the config, or weights that do not fit, all of them named.
    """
    model = Transformer(**_fields(config))
    tokens = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    params = jax.eval_shape(model.init, jax.random.key(0), tokens, tokens)["params"]
    shapes = {path: leaf.shape for path, leaf in tree.flatten_by_path(params).items()}
    source = Rule(_SOURCE_TABLE, _TABLE if model.embeddings == "shared" else "source_embedding/embedding")
    weights = {"final_logits_bias": np.zeros(model.vocab_size, np.float32), **weights}  # older files lack it
    return model, {"params": _convert_weights(weights, (source, *RULES), shapes)}


def _convert_weights(weights: Mapping[str, Any], rules: Sequence[Rule], shapes: Mapping[str, tuple[int, ...]]) -> dict:
    """Converts {their name: array} to our parameters, a tree of float32 arrays; the first rule that matches counts.

    Tied weights lead from several names to one path; they must hold the same numbers. Raises UserError with all
    weights that disagree, or lack a rule, a parameter or the right shape, and all `shapes` that were not found.
    """
    found: dict[str, np.ndarray] = {}
    wrong: dict[str, list[str]] = {}
    for name, array in weights.items():
        rule = next((rule for rule in rules if re.fullmatch(rule.pattern, name)), None)
        if rule is None:
            wrong.setdefault("unknown names", []).append(name)
            continue
        if rule.path is None:
            continue
        path = re.sub(rule.pattern, rule.path, name)
        value = np.asarray(rule.transform(np.asarray(array)), np.float32)
        if path not in shapes:
            wrong.setdefault("weights for which this network has no place", []).append(name)
        elif value.shape != shapes[path]:
            wrong.setdefault("other shapes", []).append(f"{name} {value.shape} where {path} is {shapes[path]}")
        elif path in found and not np.array_equal(found[path], value):
            wrong.setdefault("names of one parameter with different numbers", []).append(f"{name} for {path}")
        else:
            found[path] = value
    missing = [path for path in shapes if path not in found]
    if missing:
        wrong["parameters that nothing gives"] = missing
    if wrong:
        problems = "; ".join(f"{what}: {_some(names)}" for what, names in wrong.items())
        raise UserError(f"Marian: the weights do not fit; {problems}.")
    return tree.nest_by_path({path: found[path] for path in shapes})


def _some(names: Sequence[str], most: int = 8) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _fields(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the fields of `Transformer` for this config."""

    def read(name: str) -> Any:
        if name not in config:
            raise UserError(f"Marian's config has no {name!r}: give all of config.json.")
        return config[name]

    def read_equal(name: str, other: str) -> int:
        first, second = read(name), read(other)
        if second not in (None, first):
            raise UserError(f"Marian's config has {name}={first} and {other}={second}: they must be equal.")
        return first

    shared, vocab_size = config.get("share_encoder_decoder_embeddings", True), read("vocab_size")
    target_size = config.get("decoder_vocab_size") or vocab_size
    if shared and target_size != vocab_size:
        raise UserError(
            f"Marian's config has vocab_size={vocab_size} and decoder_vocab_size={target_size}: they must be equal where "
            "share_encoder_decoder_embeddings is true."
        )
    activation = read("activation_function")
    if activation not in ACTIVATIONS:
        known = ", ".join(map(repr, ACTIVATIONS))
        raise UserError(f"Marian's config has activation_function={activation!r}, which is not one of {known}.")
    return dict(
        vocab_size=target_size,
        source_vocab_size=None if target_size == vocab_size else vocab_size,
        pad=read("pad_token_id"),
        layers=read_equal("encoder_layers", "decoder_layers"),
        features=read("d_model"),
        hidden=read_equal("encoder_ffn_dim", "decoder_ffn_dim"),
        heads=read_equal("encoder_attention_heads", "decoder_attention_heads"),
        norm_eps=1e-5,
        activation=ACTIVATIONS[activation],
        positions="sinusoidal_marian",
        embeddings="shared" if shared else "target",
        scaled_embeddings=read("scale_embedding"),
        output_bias=True,
        attention_bias=True,
        dropout=config.get("dropout", 0.1),
        attention_dropout=config.get("attention_dropout", 0.0),
        relu_dropout=config.get("activation_dropout", 0.0),
    )


def convert_generation_options(config: Mapping[str, Any], options: Mapping[str, Any]) -> SearchOptions:
    """Returns the search that gives the results of `MarianMTModel.generate` with these options; padding is never written.

    Args:
        config: contents of `config.json`.
        options: with the names and defaults of `generate` and `generation_config.json`: num_beams, num_return_sequences,
            length_penalty, early_stopping, min_length, renormalize_logits, forced_eos_token_id. Their max_length counts the
            start symbol, unlike that of `beam_search`.
    """
    return SearchOptions(
        beam=options.get("num_beams", 1),
        n_best=options.get("num_return_sequences", 1),
        alpha=options.get("length_penalty", 1.0),
        penalty="length",
        late_ends=False,
        stop=_STOP[options.get("early_stopping", False)],
        force_end=options.get("forced_eos_token_id") is not None,
        renormalise=options.get("renormalize_logits", False),
        min_length=max(0, options.get("min_length", 0) - 1),  # theirs includes the start symbol
        bos=config["decoder_start_token_id"],
        eos=config["eos_token_id"],
        pad=config["pad_token_id"],
    )
