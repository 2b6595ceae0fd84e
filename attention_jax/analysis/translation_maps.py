"""Attention weights in a translation, layer by layer and head by head."""

import dataclasses
import re
from typing import Any

import jax.numpy as jnp
import numpy as np

from attention_jax.analysis.attention_maps import attention_maps
from attention_jax.data.text.tokenizer import BOS, EOS
from attention_jax.errors import UserError
from attention_jax.load import Run
from attention_jax.tasks.translation import shift_right
from attention_jax.tasks.translator import Translation, Translator

# Kind of attention -> module paths in all networks, the layer's number in brackets.
_MODULES = {
    "cross": re.compile(r"(?:decoder_(\d+)/)?cross_attention/weights"),
    "encoder": re.compile(r"encoder_(\d+)/self_attention/weights"),
    "decoder": re.compile(r"decoder_(\d+)/self_attention/weights"),
}


@dataclasses.dataclass(frozen=True)
class TranslationMaps:
    """Attention weights of one sentence and its translation, S source and T target tokens.

    Attributes:
        maps: {"cross/0": [heads, T, S], "encoder/0": [heads, S, S], "decoder/0": [heads, T, T], …} float32, by kind and
            layer; a row sums to 1. Row t of "cross" and "decoder" is what the decoder looks at when it writes target
            token t. A kind that the network does not have is not there.
        source: the sentence's tokens, end symbol included.
        target: tokens that the decoder writes.
        seen: tokens that the decoder reads: the start symbol, and the target without its last.
        text: the translation.
    """

    maps: dict[str, np.ndarray]
    source: list[str]
    target: list[str]
    seen: list[str]
    text: str

    def __getitem__(self, name: str) -> np.ndarray:
        return self.maps[name]

    def layers(self, kind: str) -> list[np.ndarray]:
        """Lists the maps of one kind, first layer first. Raises UserError when there are none."""
        names = sorted((name for name in self.maps if name.startswith(f"{kind}/")), key=lambda name: int(name.split("/")[1]))
        if not names:
            known = sorted({name.split("/")[0] for name in self.maps})
            raise UserError(f"this network has no {kind} attention, only {', '.join(known) or 'none at all'}.")
        return [self.maps[name] for name in names]

    def tokens(self, kind: str) -> tuple[list[str], list[str]]:
        """Returns the tokens of the rows (queries) and of the columns (keys) of a kind."""
        return {
            "cross": (self.target, self.source),
            "encoder": (self.source, self.source),
            "decoder": (self.target, self.seen),
        }[kind]


def compute_translation_maps(
    run: Run | Translator, sentence: str, translation: str | Translation | None = None, **changes: Any
) -> TranslationMaps:
    """Computes a trained network's attention weights while it writes a translation.

    Args:
        run: from `attention_jax.load_run`, or a translator.
        sentence: to translate.
        translation: a result of the translator, or any text; None for what the network finds.
        **changes: to the config's `search`, e.g. `beam=5`.

    Raises:
        UserError: an empty sentence.
    """
    translator = run.predictor if isinstance(run, Run) else run
    tokenizer = translator.tokenizer
    source = translator.preprocess(sentence)
    if source.shape[1] < 2:
        raise UserError("an empty sentence has no attention to show.")
    if translation is None:
        (translation,) = translator.predict(sentence, **changes)
    if isinstance(translation, Translation):
        ids, text = translation.target_ids, translation.text
    else:
        ids, text = [*tokenizer.encode(translation), EOS], translation
    seen = np.asarray(shift_right(jnp.asarray([ids])))
    weights = attention_maps(translator.model, translator.variables, source, seen)
    maps = {}
    for path, array in weights.items():
        for kind, pattern in _MODULES.items():
            if match := pattern.fullmatch(path):
                maps[f"{kind}/{match[1] or 0}"] = np.asarray(array[0], np.float32)
    return TranslationMaps(
        maps=maps,
        source=tokenizer.pieces(source[0].tolist()),
        target=tokenizer.pieces(ids),
        seen=tokenizer.pieces([BOS, *ids[:-1]]),
        text=text,
    )
