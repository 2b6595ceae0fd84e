"""What our Transformer, PyTorch's and Hugging Face's share when they are compared; see `parity`."""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from tests.helpers import parity

TINY = dict(vocab_size=13, layers=2, features=8, hidden=12, heads=2, dropout=0.0)


@dataclasses.dataclass(frozen=True)
class Case:
    """One tiny `Transformer`, its batch, and the steps that are taken on it.

    Attributes:
        fields: of `Transformer`; the defaults of this file are in `network`.
        seed: of the numbers; chosen so that float32 falls on the same side of every kink and every gradient of Adam's
            first step has a sure sign (`python -m tests.peers.freeze` refuses the others).
        warmup_steps: of the Noam rate.
        label_smoothing: of the loss.
    """

    fields: Mapping[str, Any]
    seed: int = 0
    warmup_steps: int = 4
    label_smoothing: float = 0.1

    @property
    def network(self) -> dict[str, Any]:
        """Every field of `Transformer` that the case sets."""
        return {**TINY, **self.fields}

    def batch(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Source [3, 6], target input and target output [3, 5]; two sources and two targets end in padding (0)."""
        source, target = tokens(self.seed, "source", (6, 4, 3)), tokens(self.seed, "target", (5, 5, 2))
        shifted = np.concatenate([np.ones((3, 1), np.int32), target[:, :-1]], 1)
        return source, shifted, target


CASES = {
    # torch.nn.Transformer as it comes: biases everywhere and a last norm.
    "transformer_post": Case(dict(attention_bias=True, final_norm=True, norm_eps=1e-5)),
    "transformer_pre": Case(dict(norm="pre", attention_bias=True, norm_eps=0.02, activation="gelu"), seed=2),
    "transformer_paper": Case(dict(), seed=4),
}
# The paper's Adam (Section 5.3).
ADAM = dict(b1=0.9, b2=0.98, eps=1e-9)


def tokens(seed: int, name: str, lengths: tuple[int, ...], low: int = 3, high: int = 13, pad: int = 0) -> np.ndarray:
    """[B, longest] int32 of words in range(low, high), padded."""
    random = parity._random(seed, name)
    rows = np.full((len(lengths), max(lengths)), pad, np.int32)
    for row, length in zip(rows, lengths):
        row[:length] = random.randint(low, high, length)
    return rows


def has_gradient(path: str) -> bool:
    """Not so the biases of keys, which shift all products of a query alike: theirs is rounding."""
    return not path.endswith("attention/key/bias")


# --- Marian -----------------------------------------------------------------------------------------------------------------

_CONFIG = dict(
    vocab_size=24,
    max_position_embeddings=32,
    encoder_layers=2,
    decoder_layers=2,
    encoder_ffn_dim=12,
    decoder_ffn_dim=12,
    encoder_attention_heads=2,
    decoder_attention_heads=2,
    d_model=8,
    pad_token_id=23,
    decoder_start_token_id=23,
    eos_token_id=0,
    dropout=0.0,
)
MARIANS = {
    "marian_shared": dict(**_CONFIG, activation_function="swish", scale_embedding=True, share_encoder_decoder_embeddings=True),
    "marian_separate": dict(
        **_CONFIG, activation_function="relu", scale_embedding=False, share_encoder_decoder_embeddings=False
    ),
}
MARIAN_LENGTHS = (9, 7, 5, 3, 8, 2)
NEW_TOKENS = 12

# Options of `generate`; the first is what it does when only the beam is given, the second what opus-mt's files say.
GENERATIONS = {
    "defaults": dict(num_beams=4, num_return_sequences=4),
    "published": dict(num_beams=4, num_return_sequences=4, forced_eos_token_id=0, renormalize_logits=True),
    "settled": dict(num_beams=4, num_return_sequences=2, length_penalty=0.6, early_stopping="never"),
    "full": dict(num_beams=4, num_return_sequences=3, length_penalty=2.0, early_stopping=True, min_length=4),
    "greedy": dict(num_beams=1),
}


def marian_weights(config: Mapping[str, Any], seed: int = 0) -> dict[str, np.ndarray]:
    """The state dict of `MarianMTModel` without position tables, tied weights once."""
    d, hidden, vocabulary = config["d_model"], config["encoder_ffn_dim"], config["vocab_size"]
    shapes: dict[str, tuple[int, ...]] = {"final_logits_bias": (1, vocabulary)}
    if config["share_encoder_decoder_embeddings"]:
        shapes["model.shared.weight"] = (vocabulary, d)
    else:
        shapes |= {f"model.{side}.embed_tokens.weight": (vocabulary, d) for side in ("encoder", "decoder")}
    for side in ("encoder", "decoder"):
        for i in range(config[f"{side}_layers"]):
            layer = f"model.{side}.layers.{i}"
            for kind in ("self_attn", "encoder_attn")[: 1 + (side == "decoder")]:
                for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
                    shapes |= {f"{layer}.{kind}.{name}.weight": (d, d), f"{layer}.{kind}.{name}.bias": (d,)}
            for name in ("self_attn", "encoder_attn", "final"):
                if name != "encoder_attn" or side == "decoder":
                    shapes |= {f"{layer}.{name}_layer_norm.{leaf}": (d,) for leaf in ("weight", "bias")}
            shapes |= {f"{layer}.fc1.weight": (hidden, d), f"{layer}.fc1.bias": (hidden,)}
            shapes |= {f"{layer}.fc2.weight": (d, hidden), f"{layer}.fc2.bias": (d,)}
    return {name: _drawn(seed, name, shape) for name, shape in shapes.items()}


def _drawn(seed: int, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """As `parity.draw`, which knows the kind of a weight by our names."""
    rows = "scale" if "norm" in name else "embedding"  # rows of unit length, as a [outputs, inputs] weight has them
    value = parity.draw(seed, f"{name}/{'bias' if name.endswith('bias') else rows}", shape)
    # Heavier layers, or every sentence would repeat its first word; a likelier end symbol, or none would end.
    if re.search(r"(_proj|fc\d)\.weight", name):
        value = np.float32(1.5) * value
    if name == "final_logits_bias":
        value[0, 0] += np.float32(3)
    return value


def marian_batch(config: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Source [6, 9] and target [6, 7] tokens, the target's first the start symbol, sources padded."""
    pad = config["pad_token_id"]
    source = tokens(0, "marian source", MARIAN_LENGTHS, low=1, high=pad, pad=pad)
    target = tokens(0, "marian target", (7,) * len(source), low=1, high=pad)
    target[:, 0] = config["decoder_start_token_id"]
    return source, target
