"""A linear probe that reads source word i out of the context vector of an LSTM, by i and by the length of the source.

Letters in names: N sentences, F numbers of a context vector, L words of a sentence, W different words.
"""

import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from attention_jax.analysis import plots
from attention_jax.data.text.pairs import Pair
from attention_jax.data.text.tokenizer import EOS, Tokenizer, load_tokenizer
from attention_jax.errors import UserError
from attention_jax.load import Run
from attention_jax.train.program import Program

ENGLISH = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
KOREAN = ("영", "일", "이", "삼", "사", "오", "육", "칠", "팔", "구")
_SPLITS = {"test": (0,), "validation": (1,), "train": range(2, 10)}  # the last digit of a sequence's checksum


def draw_digits(split: str, length: int, size: int) -> np.ndarray:
    """Draws `size` sequences [size, length] of digits, evenly; a sequence is in one split only, by its checksum."""
    if split not in _SPLITS:
        raise UserError(f"data: there is no split {split!r}; the digits have {', '.join(_SPLITS)}.")
    rng, found = np.random.default_rng([*split.encode(), length]), np.zeros((0, length), np.uint8)
    while len(found) < size:
        drawn = rng.integers(10, size=(10 * size, length), dtype=np.uint8)
        found = np.concatenate([found, drawn[[zlib.crc32(row.tobytes()) % 10 in _SPLITS[split] for row in drawn]]])
    return found[:size]


def open_digit_words(split: str, lengths: tuple[int, int] = (4, 16), size: int = 0) -> list[Pair]:
    """Returns digits in English words and the same in Korean, equally many of each length from the first to the second.

    Args:
        size: number of pairs of a length; 0 for 2,000 to train and 100 in the other splits.
    """
    size = size or (2_000 if split == "train" else 100)
    rows = [row for length in range(lengths[0], lengths[1] + 1) for row in draw_digits(split, length, size)]
    return [(_write(row, ENGLISH), _write(row, KOREAN)) for row in rows]


def _write(digits: np.ndarray, words: Sequence[str]) -> str:
    return " ".join(words[digit] for digit in digits)


def read_words(train_NF: np.ndarray, words_NL: np.ndarray, vectors_NF: np.ndarray, ridge: float = 1e-3) -> np.ndarray:
    """[N, F] vectors of the sentences [N, L], [M, F] other vectors -> [M, L], the words that a linear map reads at each place.

    Least squares to words as one-hot vectors of the standardised numbers, with a small penalty; the largest output counts.
    """
    number, classes = len(train_NF), int(words_NL.max()) + 1
    mean, scale = train_NF.mean(0), train_NF.std(0) + 1e-6
    x, y = (np.c_[(vectors - mean) / scale, np.ones(len(vectors))] for vectors in (train_NF, vectors_NF))
    wanted = np.eye(classes)[words_NL].reshape(number, -1)
    weights = np.linalg.solve(x.T @ x + ridge * number * np.eye(x.shape[1]), x.T @ wanted)
    return (y @ weights).reshape(len(y), -1, classes).argmax(-1)


def _write_tokens(tokenizer: Tokenizer, digits: np.ndarray) -> np.ndarray:
    """[N, L] digits -> [N, L + 1] tokens of the source."""
    return np.array([[*tokenizer.encode(_write(row, ENGLISH)), EOS] for row in digits], np.int32)


def measure_context(
    program: Program, run: Run, lengths: Sequence[int] = (4, 8, 12, 16), train: int = 4000, test: int = 1000
) -> dict[str, Any]:
    """Measures, for a table, the share of source words, in percent, that a linear probe reads out of the context vector.

    A probe for every length and place, fitted to `train` sentences of the training split and judged on `test` of the
    evaluation split. Columns by length, mean over places: of the trained network, of the network before training, and of
    the most frequent word. For the figure: the same by place, [lengths, longest], nan beyond the end.
    """
    tokenizer = load_tokenizer(run.assets)

    @jax.jit
    def encode(variables: Mapping[str, Any], source: jax.Array) -> jax.Array:
        memory: Any = run.model.apply(variables, source, method="encode")
        return jnp.concatenate([part for state in memory["states"] for part in state], -1)

    untrained = jax.device_get(program.init(run.config.seed)).variables("params")
    names = ("trained", "untrained", "most frequent word")
    shares = {name: np.full((len(lengths), max(lengths)), np.nan) for name in names}
    for row, length in enumerate(lengths):
        known, judged = (draw_digits(*each) for each in (("train", length, train), (run.config.data.eval_split, length, test)))
        read = {"most frequent word": np.array([np.bincount(place).argmax() for place in known.T])[None]}
        for name, variables in (("trained", run.variables), ("untrained", untrained)):
            vectors = np.asarray(encode(variables, _write_tokens(tokenizer, np.concatenate([known, judged]))), np.float64)
            read[name] = read_words(vectors[:train], known, vectors[train:])
        for name, words in read.items():
            shares[name][row, :length] = 100 * (words == judged).mean(0)
    found: dict[str, Any] = {
        f"words read %, {length} words, {name}": float(np.nanmean(shares[name][row]))
        for name in names
        for row, length in enumerate(lengths)
    }
    return {**found, **shares, "lengths": np.array(lengths)}


def plot_context(measured: Mapping[str, Sequence[Mapping[str, np.ndarray]]]) -> "plots.Figure":
    """Plots the share of words read over their place: a panel for each row of the table, a line for each length of sentences.

    Mean over seeds; dashed before training.
    """
    figure = plots.make_figure(4.4 * len(measured) + 0.6, 4)
    for axes, (label, seeds) in zip(figure.subplots(1, len(measured), squeeze=False, sharey=True)[0], measured.items()):
        places = np.arange(1, 1 + seeds[0]["trained"].shape[1])
        for i, length in enumerate(seeds[0]["lengths"]):
            for name, dashes in (("trained", "-"), ("untrained", "--")):
                shares = np.mean([seed[name][i] for seed in seeds], 0)
                style = {"label": f"{length} words", "marker": "o", "markersize": 3.5} if name == "trained" else {}
                axes.plot(places, shares, dashes, color=plots.COLOURS[i % len(plots.COLOURS)], **style)
        axes.plot(places, seeds[0]["most frequent word"][-1], color="#555555", linewidth=0.8, label="most frequent word")
        axes.set_title(label, fontsize=10)
        axes.set(xlabel="place of the word in the source; dashed: before training", ylim=(0, 102))
        plots.style_axes(axes)
    figure.axes[0].set_ylabel("words read %")
    plots.add_legend(figure)
    return figure
