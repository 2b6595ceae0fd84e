"""Marian models in the form of Hugging Face's `MarianMTModel`, among them the published opus-mt translation models.

    config = json.load(open("config.json"))
    model, variables = convert_marian(config, safetensors.numpy.load_file("model.safetensors"))
    options = convert_generation_options(config, json.load(open("generation_config.json")))

Tokens keep their numbers. The first target token is `decoder_start_token_id`, which in the published models is padding.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from attention_jax import tree
from attention_jax.errors import UserError
from attention_jax.interop import names
from attention_jax.models.transformer import Transformer
from attention_jax.search import SearchOptions

ACTIVATIONS = {"relu": "relu", "gelu": "gelu", "swish": "swish", "silu": "swish"}
_STOP = {False: "guess", True: "full", "never": "settled"}

_LAYER, _OURS = r"model\.(encoder|decoder)\.layers\.(\d+)", r"\1_\2"
_KINDS = {"self_attn": "self_attention", "encoder_attn": "cross_attention"}
_PROJECTIONS = {"q_proj": "query", "k_proj": "key", "v_proj": "value", "out_proj": "output"}
_TABLE = "target_embedding/embedding"

RULES = (
    *(
        rule
        for theirs, kind in _KINDS.items()
        for projection, ours in _PROJECTIONS.items()
        for rule in names.dense_rules(rf"{_LAYER}\.{theirs}\.{projection}", f"{_OURS}/{kind}/{ours}")
    ),
    *(
        rule
        for theirs, kind in _KINDS.items()
        for rule in names.layer_norm_rules(rf"{_LAYER}\.{theirs}_layer_norm", f"{_OURS}/{kind}_sum/layer_norm")
    ),
    *names.layer_norm_rules(rf"{_LAYER}\.final_layer_norm", f"{_OURS}/mlp_sum/layer_norm"),
    *names.dense_rules(rf"{_LAYER}\.fc1", f"{_OURS}/mlp/hidden"),
    *names.dense_rules(rf"{_LAYER}\.fc2", f"{_OURS}/mlp/output"),
    names.Rule(r"model\.shared\.weight|model\.decoder\.embed_tokens\.weight|lm_head\.weight", _TABLE),
    names.Rule(r"final_logits_bias", "logits_bias", np.ravel),
    names.Rule(r"model\.(encoder|decoder)\.embed_positions\.weight", None),  # the sinusoids as a table
)
_SOURCE_TABLE = r"model\.encoder\.embed_tokens\.weight"


def convert_marian(config: Mapping[str, Any], weights: Mapping[str, Any]) -> tuple[Transformer, dict[str, Any]]:
    """Returns (model, variables) of a `MarianMTModel`, ready for `model.apply(variables, source, target)`.

    Args:
        config: contents of `config.json`.
        weights: its state dict, {name: array}; tied weights once or under each of their names.

    Raises:
        UserError: an unsupported field of the config, or weights that do not fit, all of them named.
    """
    model = Transformer(**_fields(config))
    tokens = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    params = jax.eval_shape(model.init, jax.random.key(0), tokens, tokens)["params"]
    shapes = {path: leaf.shape for path, leaf in tree.flatten_by_path(params).items()}
    source = names.Rule(_SOURCE_TABLE, _TABLE if model.embeddings == "shared" else "source_embedding/embedding")
    weights = {"final_logits_bias": np.zeros(model.vocab_size, np.float32), **weights}  # older files lack it
    return model, {"params": names.convert_weights(weights, (source, *RULES), shapes, "Marian")}


def _fields(config: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of `Transformer`."""

    def read(name: str) -> Any:
        if name not in config:
            raise UserError(f"Marian's config has no {name!r}: give all of config.json.")
        return config[name]

    def read_equal(name: str, other: str) -> int:
        first, second = read(name), config.get(other, read(name)) if name == "vocab_size" else read(other)
        if second not in (None, first):
            raise UserError(f"Marian's config has {name}={first} and {other}={second}: they must be equal.")
        return first

    activation = read("activation_function")
    if activation not in ACTIVATIONS:
        known = ", ".join(map(repr, ACTIVATIONS))
        raise UserError(f"Marian's config has activation_function={activation!r}, which is not one of {known}.")
    return dict(
        vocab_size=read_equal("vocab_size", "decoder_vocab_size"),
        pad=read("pad_token_id"),
        layers=read_equal("encoder_layers", "decoder_layers"),
        features=read("d_model"),
        hidden=read_equal("encoder_ffn_dim", "decoder_ffn_dim"),
        heads=read_equal("encoder_attention_heads", "decoder_attention_heads"),
        norm_eps=1e-5,
        activation=ACTIVATIONS[activation],
        positions="sinusoidal_marian",
        embeddings="shared" if config.get("share_encoder_decoder_embeddings", True) else "target",
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
        min_length=max(0, options.get("min_length", 0) - 1),  # theirs counts the start symbol
        bos=config["decoder_start_token_id"],
        eos=config["eos_token_id"],
        pad=config["pad_token_id"],
    )
