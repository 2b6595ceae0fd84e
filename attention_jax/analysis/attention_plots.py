"""Pictures of attention in a translation, with the tokens on both axes."""

import functools
import textwrap
import unicodedata
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
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


def romanised(text: str) -> str:
    """Korean syllables in Latin letters, as their names in Unicode spell them; everything else as it is."""
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


def readable(texts: Iterable[str]) -> tuple[list[str], list[str]]:
    """(the texts as the installed fonts can draw them, font families): Korean in Latin letters where no font has Hangul."""
    texts = list(texts)
    families, missing = _fonts(frozenset("".join(texts)))
    if any(unicodedata.name(character, "").startswith(_HANGUL) for character in missing):
        texts = [romanised(text) for text in texts]
        families, _ = _fonts(frozenset("".join(texts)))
    return texts, families


def label_axes(axes: "Axes", rows: Sequence[str], columns: Sequence[str], size: float = 8) -> None:
    """Tokens on the axes of a map: `rows` from top to bottom, `columns` from left to right; empty ones leave an axis bare."""
    for tokens, axis in ((rows, axes.yaxis), (columns, axes.xaxis)):
        shown, families = readable(tokens)
        axis.set_ticks(range(len(shown)), shown, fontfamily=families, fontsize=size)
        axis.set_tick_params(length=0, pad=2)
    axes.xaxis.tick_top()
    axes.tick_params(axis="x", rotation=90)
    axes.spines[:].set_visible(False)


def attention_grid(maps: TranslationMaps, kind: str = "cross") -> "Figure":
    """Every head of every layer of one kind of attention: a row a layer, a column a head, the tokens on both axes.

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
    letters = max(len(text) for text in readable([*rows, *columns])[0])
    width, height = (float(np.clip(0.17 * len(tokens), 1.2, 4.0)) for tokens in (columns, rows))  # inches
    margin = 0.3 + 0.075 * letters
    figure = plots.new_figure(heads * (width + 0.15) + margin + 0.5, len(layers) * (height + 0.3) + margin + 0.8)
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


def save(figure: "Figure", path: Path) -> None:
    """Writes a picture whole or not at all."""
    partial = path.with_name(f"{path.stem}.partial{path.suffix}")
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Glyph .* missing from")  # one for each letter drawn as a box
            figure.savefig(partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
