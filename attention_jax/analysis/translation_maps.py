"""Attention in a translation, layer by layer and head by head: its weights, and plots with the tokens on both axes."""

import dataclasses
import functools
import re
import textwrap
import unicodedata
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np

from attention_jax.analysis import plots
from attention_jax.analysis.attention_maps import attention_maps
from attention_jax.data.text.tokenizer import BOS, EOS
from attention_jax.errors import UserError, require_package
from attention_jax.load import Run
from attention_jax.tasks.alignments import CROSS
from attention_jax.tasks.translation import shift_right
from attention_jax.tasks.translator import Translation, Translator

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Kind of attention -> module paths in all networks, the layer's number in brackets.
_MODULES = {
    "cross": CROSS,
    "encoder": re.compile(r"encoder_(\d+)/self_attention/weights"),
    "decoder": re.compile(r"decoder_(\d+)/self_attention/weights"),
}


@dataclasses.dataclass(frozen=True)
class TranslationMaps:
    """Attention weights of one sentence and its translation, S source and T target tokens.

    `maps` are {"cross/0": [heads, T, S], "encoder/0": [heads, S, S], "decoder/0": [heads, T, T], …} float32, by kind and layer;
    a row sums to 1. Row t of "cross" and "decoder" shows where the decoder attends when it writes target token t. A kind that
    the network does not have is missing.
    """

    maps: dict[str, np.ndarray]
    source: list[str]  # the sentence's tokens, end symbol included
    target: list[str]  # tokens that the decoder writes
    seen: list[str]  # tokens that the decoder reads: the start symbol, and the target without its last
    text: str  # the translation

    def __getitem__(self, name: str) -> np.ndarray:
        return self.maps[name]

    def layers(self, kind: str) -> list[np.ndarray]:
        """Lists the maps of one kind, first layer first. Raises UserError if there are none."""
        names = sorted((name for name in self.maps if name.startswith(f"{kind}/")), key=lambda name: int(name.split("/")[1]))
        if not names:
            known = sorted({name.split("/")[0] for name in self.maps})
            raise UserError(f"this network has no {kind} attention, only {', '.join(known) or 'none at all'}.")
        return [self.maps[name] for name in names]

    def tokens(self, kind: str) -> tuple[list[str], list[str]]:
        """Returns the tokens of the rows (queries) and of the columns (keys) of a kind."""
        rows = self.source if kind == "encoder" else self.target
        return rows, self.seen if kind == "decoder" else self.source


def compute_translation_maps(
    run: Run | Translator, sentence: str, translation: str | Translation | None = None, **changes: Any
) -> TranslationMaps:
    """Computes a trained network's attention weights while it writes a translation. Raises UserError for an empty sentence.

    Args:
        translation: a result of the translator, or any text; None for the network's own translation.
        **changes: changes to the config's `search`, e.g. `beam=5`.
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
        source=translator.tokenizers.source.pieces(source[0].tolist()),
        target=tokenizer.pieces(ids),
        seen=tokenizer.pieces([BOS, *ids[:-1]]),
        text=text,
    )


_TITLES = {
    "cross": "cross-attention: a row writes a token and looks at the source",
    "encoder": "encoder: each token of the source looks at all of them",
    "decoder": "decoder: a row writes a token and looks at those before it",
}

_HANGUL = "HANGUL SYLLABLE "


def romanize_korean(text: str) -> str:
    """Writes Korean syllables in Latin letters, as their names in Unicode spell them; all other text stays."""
    names = (unicodedata.name(character, "") for character in text)
    return "".join(
        name.removeprefix(_HANGUL).lower() if name.startswith(_HANGUL) else character for character, name in zip(text, names)
    )


@functools.cache
def _letters(path: str) -> frozenset[int]:
    """Returns the characters that a font file can draw."""
    from matplotlib.ft2font import FT2Font

    try:
        return frozenset(FT2Font(path).get_charmap())
    except (RuntimeError, OSError):  # a font of a kind that matplotlib cannot open
        return frozenset()


@functools.cache
def _fonts(characters: frozenset[str]) -> tuple[list[str], frozenset[str]]:
    """Returns font families that together draw the characters, matplotlib's own first, and the characters that none draws."""
    require_package("matplotlib", "plot", "drawing a figure")
    from matplotlib import font_manager

    own = font_manager.findfont("DejaVu Sans")
    families, missing = ["DejaVu Sans"], {ord(c) for c in characters} - _letters(own)
    # matplotlib's "Last Resort" draws a box for everything.
    upright = [font for font in font_manager.fontManager.ttflist if font.style == "normal" and "Last Resort" not in font.name]
    for font in sorted(
        upright, key=lambda font: (abs(int(font.weight) - 400) if str(font.weight).isdigit() else 999, font.name)
    ):
        if not missing:
            break
        if have := missing & _letters(font.fname):
            families.append(font.name)
            missing -= have
    return families, frozenset(map(chr, missing))


def choose_fonts(texts: Iterable[str]) -> tuple[list[str], list[str]]:
    """Returns the texts, with Korean in Latin letters if no installed font has Hangul, and font families that draw them."""
    texts = list(texts)
    families, missing = _fonts(frozenset("".join(texts)))
    if any(unicodedata.name(character, "").startswith(_HANGUL) for character in missing):
        texts = [romanize_korean(text) for text in texts]
        families, _ = _fonts(frozenset("".join(texts)))
    return texts, families


def label_axes(axes: "Axes", rows: Sequence[str], columns: Sequence[str], size: float = 8) -> None:
    """Writes tokens on the axes of a map: `rows` from top to bottom, `columns` from left to right; no labels if empty."""
    for tokens, axis in ((rows, axes.yaxis), (columns, axes.xaxis)):
        texts, families = choose_fonts(tokens)
        axis.set_ticks(range(len(texts)), texts, fontfamily=families, fontsize=size)
        axis.set_tick_params(length=0, pad=2)
    axes.xaxis.tick_top()
    axes.tick_params(axis="x", rotation=90)
    axes.spines[:].set_visible(False)


def plot_attention_grid(maps: TranslationMaps, kind: str = "cross") -> "Figure":
    """Plots every head (a column) of every layer (a row) of one kind of attention, with the tokens on both axes.

    White is 0 and the darkest colour is 1 in every panel. If no installed font has Korean letters,
    Korean tokens are written in Latin ones. The kinds are "cross", from the target to the source, and the self-attention
    of "encoder" and "decoder". Raises UserError if the network has no attention of this kind.
    """
    layers = maps.layers(kind)
    rows, columns = maps.tokens(kind)
    heads = len(layers[0])
    letters = max(len(text) for text in choose_fonts([*rows, *columns])[0])
    width, height = (float(np.clip(0.17 * len(tokens), 1.2, 4.0)) for tokens in (columns, rows))  # inches
    margin = 0.3 + 0.075 * letters
    figure = plots.make_figure(heads * (width + 0.15) + margin + 0.5, len(layers) * (height + 0.3) + margin + 0.8)
    size = float(np.clip(72 * 0.8 * min(width / len(columns), height / len(rows)), 3, 9))
    panels = figure.subplots(len(layers), heads, squeeze=False)
    for i, layer in enumerate(layers):
        for j, axes in enumerate(panels[i]):
            axes.imshow(layer[j], cmap="Blues", vmin=0, vmax=1, aspect="auto")
            label_axes(axes, rows if j == 0 else (), columns if i == 0 else (), size)
            if i == len(layers) - 1:
                axes.set_xlabel(f"head {j + 1}", fontsize=9)
        panels[i][0].set_ylabel(f"layer {i + 1}", fontsize=9)
    figure.suptitle(textwrap.fill(_TITLES[kind], int(12 * figure.get_figwidth())), fontsize=9)
    return figure
