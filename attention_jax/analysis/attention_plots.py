"""Plots of attention in a translation, with the tokens on both axes."""

import functools
import textwrap
import unicodedata
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from attention_jax.analysis import plots
from attention_jax.analysis.translation_maps import TranslationMaps

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_TITLES = {
    "cross": "cross-attention: a row writes a token and looks at the source",
    "encoder": "encoder: each token of the source looks at all of them",
    "decoder": "decoder: a row writes a token and looks at those before it",
}

_HANGUL = "HANGUL SYLLABLE "


def romanize_korean(text: str) -> str:
    """Writes Korean syllables in Latin letters, as their names in Unicode spell them; everything else stays."""
    names = (unicodedata.name(character, "") for character in text)
    return "".join(
        name.removeprefix(_HANGUL).lower() if name.startswith(_HANGUL) else character for character, name in zip(text, names)
    )


@functools.cache
def _letters(path: str) -> frozenset[int]:
    """The characters that a font file can draw."""
    from matplotlib.ft2font import FT2Font

    try:
        return frozenset(FT2Font(path).get_charmap())
    except (RuntimeError, OSError):  # a font of a kind that matplotlib cannot open
        return frozenset()


@functools.cache
def _fonts(characters: frozenset[str]) -> tuple[list[str], frozenset[str]]:
    """Families that together can draw the characters, matplotlib's own first, and the characters that none of them has."""
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
    """Returns the texts, with Korean in Latin letters where no installed font has Hangul, and font families to draw them."""
    texts = list(texts)
    families, missing = _fonts(frozenset("".join(texts)))
    if any(unicodedata.name(character, "").startswith(_HANGUL) for character in missing):
        texts = [romanize_korean(text) for text in texts]
        families, _ = _fonts(frozenset("".join(texts)))
    return texts, families


def label_axes(axes: "Axes", rows: Sequence[str], columns: Sequence[str], size: float = 8) -> None:
    """Writes tokens on the axes of a map: `rows` from top to bottom, `columns` from left to right; none where empty."""
    for tokens, axis in ((rows, axes.yaxis), (columns, axes.xaxis)):
        texts, families = choose_fonts(tokens)
        axis.set_ticks(range(len(texts)), texts, fontfamily=families, fontsize=size)
        axis.set_tick_params(length=0, pad=2)
    axes.xaxis.tick_top()
    axes.tick_params(axis="x", rotation=90)
    axes.spines[:].set_visible(False)


def plot_attention_grid(maps: TranslationMaps, kind: str = "cross") -> "Figure":
    """Plots every head (a column) of every layer (a row) of one kind of attention, with the tokens on both axes.

    Dark is a large weight, white is 0 and the darkest is 1 in every panel. Where no installed font has Korean letters,
    Korean tokens are written in Latin ones.

    Args:
        kind: "cross" (target looks at source), "encoder" or "decoder" (self-attention).

    Raises:
        UserError: the network has no attention of this kind.
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
