"""A dictionary as a sequence, "a 5 … b 10 … a ?", and four networks of about equal size that must say the key's value.

Letters in names: B examples, N tokens, D features. The distance is the number of tokens between a value and the question.
"""

import functools
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from attention_jax.analysis import plots
from attention_jax.errors import UserError
from attention_jax.load import Run
from attention_jax.nn.position import Positions
from attention_jax.nn.recurrent import LSTM, Stack
from attention_jax.optim.losses import cross_entropy
from attention_jax.tasks.base import Task
from attention_jax.train.program import Program
from attention_jax.train.workdir import EVALUATION
from experiments.studies.sequence_layers import FullSelfAttention, RestrictedSelfAttention

_VERSION = 1
_SPLITS = ("train", "validation", "test")
_EDGES = (4, 8, 16, 32, 64)
FILLER, QUESTION = 0, 1  # tokens; after them come the keys, then the values


class Dictionaries:
    """A source of sequences: pairs of key and value with filler between them, then one of the keys and "?".

    A sequence is a function of the split, its index, the arguments and a version. Each range of distances from an edge to
    the next has equally many pairs, and each pair is asked for equally often, so that their places do not betray the answer.

    Args:
        edges: limits of the ranges of distances, even and increasing; the last one is excluded.
        pairs: number of them in each range.
        keys, values: number of different ones; the keys of a sequence differ, its values need not.
        size: number of sequences; 0 for 200,000 to train and 4,000 in the other splits.
    """

    def __init__(
        self, split: str, edges: Sequence[int] = _EDGES, pairs: int = 2, keys: int = 16, values: int = 16, size: int = 0
    ):
        if split not in _SPLITS:
            raise UserError(f"data: there is no split {split!r}; the dictionaries have {', '.join(_SPLITS)}.")
        # A pair takes two tokens; the last one before the question has distance 0.
        self.ranges = [(low // 2, high // 2) for low, high in itertools.pairwise(edges)]
        count = pairs * len(self.ranges)
        if any(edge % 2 for edge in edges) or min((high - low for low, high in self.ranges), default=0) < pairs:
            raise UserError(f"data.args.edges={edges}: give even numbers that increase by at least {2 * pairs}.")
        if not 0 < count <= keys:
            raise UserError(f"data.args.keys={keys}: give at least the {count} keys of a sequence.")
        self.split, self.edges, self.pairs, self.keys, self.values = split, tuple(edges), pairs, keys, values
        self.vocab_size, self.length = 2 + keys + values, edges[-1] + 2
        self._size = size or (200_000 if split == "train" else 4_000)

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Returns "tokens" [N], the "answer", which is a token too, and its "distance"."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        rng = np.random.default_rng((_VERSION, _SPLITS.index(self.split), index))
        places = np.concatenate([low + rng.permutation(high - low)[: self.pairs] for low, high in self.ranges])
        keys = 2 + rng.permutation(self.keys)[: len(places)]
        values = 2 + self.keys + rng.integers(self.values, size=len(places))
        chosen = rng.integers(len(places))
        tokens = np.full(self.length, FILLER, np.int32)
        tokens[-2:] = keys[chosen], QUESTION
        at = self.length - 4 - 2 * places
        tokens[at], tokens[at + 1] = keys, values
        return {"tokens": tokens, "answer": np.int32(values[chosen]), "distance": np.int32(2 * places[chosen])}

    def fingerprint(self) -> str:
        """Returns the version and the arguments."""
        return f"dictionaries {_VERSION} {self.edges} {self.pairs} {self.keys} {self.values} {len(self)}"


class RecallTask(Task):
    """The task of the table `recall`; a network is [B, N] tokens -> [B, vocab_size] logits of the answer."""

    def source(self, config: ConfigDict, split: str) -> Dictionaries:
        """Returns the sequences of a split."""
        return Dictionaries(split, **config.data.args.to_dict())

    def resolve(self, config: ConfigDict) -> ConfigDict:
        """Returns a copy with the number of examples and of tokens."""
        config = super().resolve(config)
        with config.unlocked():
            config.model.vocab_size = self.source(config, config.data.train_split).vocab_size
        return config

    def example_inputs(self, config: ConfigDict) -> tuple[jax.ShapeDtypeStruct, ...]:
        """Returns the shape of a sequence."""
        return (jax.ShapeDtypeStruct((1, self.source(config, config.data.train_split).length), jnp.int32),)

    def loss(
        self, config: ConfigDict, model: nn.Module, variables: dict, batch: Mapping[str, Any], rng: jax.Array, train: bool
    ) -> tuple[dict[str, jax.Array], Mapping[str, Any]]:
        """Returns sums over the batch of the weighted loss (nats) and of the weights."""
        scores, weight = self.outputs(config, model, variables, batch), batch["weight"]
        return {"loss": (scores["loss"] * weight).sum(), "weight": weight.sum()}, {}

    def outputs(self, config: ConfigDict, model: nn.Module, variables: dict, batch: Mapping[str, Any]) -> dict[str, jax.Array]:
        """Returns per example the loss (nats), True if the answer is right, the distance and the weight."""
        logits: Any = model.apply(variables, batch["tokens"])
        correct = logits.argmax(-1) == batch["answer"]
        loss, kept = cross_entropy(logits, batch["answer"]), {name: batch[name] for name in ("distance", "weight")}
        return {"loss": loss, "correct": correct, **kept}

    def metrics(self, config: ConfigDict, outputs: dict[str, np.ndarray]) -> tuple[dict[str, float], dict[str, np.ndarray]]:
        """Returns the share of right answers and the mean loss in nats, and the outputs as they are."""
        return {"accuracy": float(outputs["correct"].mean()), "loss": float(outputs["loss"].mean(dtype=np.float64))}, outputs

    def headline(self, config: ConfigDict) -> str:
        """Returns the name of the share of right answers."""
        return "accuracy"


class _Network(nn.Module):
    """Embeddings, layers, and an answer read off the last token: [B, N] -> [B, vocab_size].

    A half of the features is the token's, the other half that of the token before it, as in "a 5": no network needs a layer
    to put a pair together.
    """

    vocab_size: int
    features: int = 32
    layers: int = 2

    @nn.compact
    def __call__(self, tokens_BN: jax.Array) -> jax.Array:
        unit = nn.initializers.normal(1.0)  # as large as the sinusoids (Vaswani et al. 2017, Section 3.4)
        own_BND = nn.Embed(self.vocab_size, self.features // 2, embedding_init=unit, name="embedding")(tokens_BN)
        before_BND = jnp.pad(own_BND, ((0, 0), (1, 0), (0, 0)))[:, :-1]
        x_BND = self._pass_layers(jnp.concatenate([own_BND, before_BND], -1))
        return nn.Dense(self.vocab_size, name="head")(nn.LayerNorm(name="norm")(x_BND[:, -1]))

    def _pass_layers(self, x_BND: jax.Array) -> jax.Array:
        raise NotImplementedError


class RecallLSTM(_Network):
    """A stack of forward LSTMs."""

    def _pass_layers(self, x_BND: jax.Array) -> jax.Array:
        layer = functools.partial(LSTM, features=self.features, forget_bias=1.0)
        y_NBD, _ = Stack(layer, self.features, self.layers, name="lstm")(x_BND.swapaxes(0, 1))
        return y_NBD.swapaxes(0, 1)


class RecallConvolution(_Network):
    """Causal convolutions over two tokens at distances 1, 2, 4, …, two a layer: L layers see 4^L tokens (WaveNet, 2016)."""

    layers: int = 4

    def _pass_layers(self, x_BND: jax.Array) -> jax.Array:
        for distance in (2**i for i in range(2 * self.layers)):
            conv = nn.Conv(self.features, (2,), kernel_dilation=distance, padding=[(distance, 0)], name=f"conv_{distance}")
            x_BND += nn.relu(conv(nn.LayerNorm(name=f"norm_{distance}")(x_BND)))
        return x_BND


class RecallAttention(_Network):
    """The encoder of a Transformer, normalised before each part.

    Attributes:
        heads: number of heads in each layer.
        window: tokens that a position sees in a layer, itself in their middle; None for all.
    """

    heads: int = 2
    window: int | None = None

    def _pass_layers(self, x_BND: jax.Array) -> jax.Array:
        x_BND += Positions("sinusoidal", self.features)(jnp.arange(x_BND.shape[1]))
        sizes = self.heads, self.features, self.features // self.heads, self.features // self.heads
        for i in range(self.layers):
            layer = FullSelfAttention(*sizes) if self.window is None else RestrictedSelfAttention(*sizes, window=self.window)
            x_BND += layer(nn.LayerNorm(name=f"attention_norm_{i}")(x_BND))
            hidden = nn.relu(nn.Dense(2 * self.features, name=f"hidden_{i}")(nn.LayerNorm(name=f"norm_{i}")(x_BND)))
            x_BND += nn.Dense(self.features, name=f"output_{i}")(hidden)
        return x_BND


def measure_recall(program: Program, run: Run) -> dict[str, Any]:
    """Measures, for a table, accuracy in percent in each range of distances; for the figure also the ranges and chance."""
    with np.load(run.path.parent.parent / EVALUATION) as saved:
        correct, distance = saved["correct"], saved["distance"]
    source = program.task.source(run.config, run.config.data.eval_split)
    ranges = list(itertools.pairwise(source.edges))
    shares = [100 * correct[(low <= distance) & (distance < high)].mean() for low, high in ranges]
    found = {f"accuracy %, {low} to {high - 1} tokens": share for (low, high), share in zip(ranges, shares)}
    return {**found, "ranges": np.array(ranges), "by distance": np.array(shares), "chance": np.array([100 / source.values])}


def plot_recall(measured: Mapping[str, Sequence[Mapping[str, np.ndarray]]]) -> "plots.Figure":
    """Plots accuracy over the distance, for each row the mean of its seeds as a line and each seed as dots."""
    figure = plots.make_figure(7, 4)
    axes = figure.add_subplot()
    for i, (label, seeds) in enumerate(measured.items()):
        style, shares = plots.choose_style(i), np.stack([seed["by distance"] for seed in seeds])
        axes.plot(shares.mean(0), label=label, **style)
        axes.plot(shares.T, "o", markersize=3.5, alpha=0.6, color=style["color"])
    axes.axhline(float(seeds[0]["chance"][0]), color="#555555", linewidth=0.8, label="chance")
    ranges = [f"{low} to {high - 1}" for low, high in seeds[0]["ranges"]]
    axes.set_xticks(range(len(ranges)), ranges)
    axes.set(xlabel="tokens between the value and the question", ylabel="accuracy %", ylim=(0, 102))
    plots.style_axes(axes)
    plots.add_legend(figure)
    return figure
