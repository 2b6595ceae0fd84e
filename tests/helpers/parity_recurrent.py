"""What our recurrent layers and networks and PyTorch's share when they are compared; see `parity`."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from tests.helpers import parity

VOCABULARY, SOURCE_VOCABULARY = 11, 13
LSTM = dict(vocab_size=VOCABULARY, source_vocab_size=SOURCE_VOCABULARY, layers=2, features=4, embedding_size=3)
GRU = dict(vocab_size=VOCABULARY, source_vocab_size=SOURCE_VOCABULARY, features=4, embedding_size=3, alignment_size=5)


@dataclasses.dataclass(frozen=True)
class Stack:
    """Layers over padded sequences of features; the first of `lengths` is the longest, as torch packs them."""

    layers: int
    bidirectional: bool = False
    forget_bias: float = 0.0
    inputs: int = 3
    features: int = 4
    lengths: tuple[int, ...] = (6, 4, 1)

    @property
    def directions(self) -> tuple[str, ...]:
        """Names of the layers that read either way."""
        return ("forward", "backward") if self.bidirectional else ("forward",)

    def numbers(self, name: str) -> np.ndarray:
        """[T, B, D] inputs, [layers · directions, B, H] first states, or what outputs and states are multiplied with."""
        t, b, h, n = max(self.lengths), len(self.lengths), self.features, len(self.directions)
        shapes = {"inputs": (t, b, self.inputs), "of_outputs": (t, b, n * h)}
        return parity._random(0, name).standard_normal(shapes.get(name, (self.layers * n, b, h))).astype(np.float32)


STACKS = {
    "lstm_layers": Stack(3),
    "lstm_bidirectional": Stack(2, bidirectional=True, forget_bias=0.7),
}


@dataclasses.dataclass(frozen=True)
class Case:
    """One tiny translation network: `Seq2Seq` with these fields, or with `gru` a `RNNSearch`.

    The seed is chosen so that every weight matters (`python -m tests.peers.freeze` refuses the others).
    """

    fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    gru: bool = False
    seed: int = 0

    @property
    def network(self) -> dict[str, Any]:
        """Every field that the case sets."""
        return {**(GRU | dict(readout_size=4) if self.gru else LSTM), **self.fields}

    def sentences(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Source and target tokens of each pair, without padding; a target's first token is the start symbol."""
        random = parity._random(self.seed, "sentences")
        pairs = [
            (random.randint(3, SOURCE_VOCABULARY, s), random.randint(3, VOCABULARY, t)) for s, t in ((6, 4), (3, 6), (4, 2))
        ]
        return [(source, np.concatenate([[1], target])) for source, target in pairs]

    def batch(self) -> tuple[np.ndarray, np.ndarray]:
        """The same, padded: [B, S] and [B, T + 1] int32."""
        sides = zip(*self.sentences(), strict=True)
        return tuple(
            np.stack([np.pad(row, (0, max(map(len, rows)) - len(row))) for row in rows]).astype(np.int32) for rows in sides
        )


MODELS = {
    "seq2seq_lstm": Case(dict(forget_bias=1.0)),
    "seq2seq_forward": Case(dict(reverse_source=False, use_bias=False, attention="dot")),
    "seq2seq_dot": Case(dict(attention="dot", input_feeding=True)),
    "seq2seq_general": Case(dict(attention="general"), seed=2),
    "seq2seq_concat": Case(dict(attention="concat", alignment_size=5, input_feeding=True), seed=3),
    "seq2seq_bahdanau": Case(dict(attention="bahdanau", alignment_size=5), seed=1),
    "seq2seq_gru": Case(gru=True),
}


def draw(seed: int, path: str, shape: tuple[int, ...]) -> np.ndarray:
    """As `parity.draw`; embeddings are of unit size, and a kernel is large enough for gates to leave their middle."""
    if path.endswith("embedding"):
        return parity._random(seed, path).standard_normal(shape).astype(np.float32)
    value = parity.draw(seed, path, shape)
    return value * np.float32(1.5) if path.endswith("kernel") else value
