"""Relations of a middle word to both neighbours, "love" to "I" and to "you", in an encoder's attention and input gradients.

Letters in names: N sentences, S tokens of the source (three words and the end symbol), D features.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from attention_jax.analysis import plots
from attention_jax.analysis.attention_maps import attention_maps
from attention_jax.data.embedded import read_cldr
from attention_jax.data.text.tokenizer import EOS, load_tokenizer
from attention_jax.load import Run
from attention_jax.train.program import Program

SENTENCE = "I love you"
_TABLE = "source_embedding"
_LAYERS = re.compile(r"encoder_\d+/self_attention/")


def list_sentences() -> list[str]:
    """Lists the everyday sentences of three different words, `SENTENCE` first, without the others about love."""
    found = [text for text in read_cldr("train", "everyday")[0] if len({*text.split()}) == len(text.split()) == 3]
    return [SENTENCE, *(text for text in found if not re.search(r"\bloves?\b", text))]


def compute_gradient_shares(
    encode: Callable[[jax.Array, jax.Array], jax.Array], table: jax.Array, tokens_NS: np.ndarray
) -> np.ndarray:
    """Returns [N, S]: how much of the encoder's output at the second token each embedding moves, as shares of their sum.

    By the Frobenius norm of the Jacobian; the tokens of a sentence differ.

    Args:
        encode: ([1, S] tokens, table of embeddings) -> [1, S, D].
    """

    def measure_norms(tokens_S: jax.Array) -> jax.Array:
        def output(rows_SD: jax.Array) -> jax.Array:
            return encode(tokens_S[None], table.at[tokens_S].set(rows_SD))[0, 1]

        jacobian_DSD = jax.jacrev(output)(table[tokens_S])
        return jnp.sqrt((jacobian_DSD**2).sum((0, 2)))

    norms_NS = np.asarray(jax.jit(lambda tokens: jax.lax.map(measure_norms, tokens))(jnp.asarray(tokens_NS)))
    return norms_NS / norms_NS.sum(1, keepdims=True)


def compute_attention_shares(maps: Mapping[str, Any]) -> np.ndarray | None:
    """Returns [N, S]: what the second token's query gives each token, mean over an encoder's layers and heads; None without."""
    layers = [np.asarray(weights)[:, :, 1].mean(1) for path, weights in maps.items() if _LAYERS.match(path)]
    return np.mean(layers, 0) if layers else None


def find_share_as_large(shares_NS: np.ndarray) -> float:
    """Returns the share of the other sentences whose second word is as much related to both neighbours as the first one's.

    By the smaller of both relations. A twentieth or less says that the first sentence is unusual.
    """
    both_N = shares_NS[:, [0, 2]].min(1)
    return float((both_N[1:] >= both_N[0]).mean())


def measure_relations(program: Program, run: Run) -> dict[str, Any]:
    """Measures, for a table, the relations of *love* to *I* and *you*, in percent, those of other middle words, and the shares.

    By input gradients, and by attention where the encoder has it; trained, and before training. For the figure:
    [sentences, tokens] for each.
    """
    tokenizer = load_tokenizer(run.assets)
    tokens_NS = np.array([[*tokenizer.encode(text), EOS] for text in list_sentences()], np.int32)
    untrained = jax.device_get(program.init(run.config.seed)).variables("params")
    found: dict[str, Any] = {}
    for when, variables in (("", run.variables), (", untrained", untrained)):

        def encode(tokens: jax.Array, table: jax.Array, variables: Any = variables) -> jax.Array:
            params = {**variables["params"], _TABLE: {"embedding": table}}
            memory: Any = run.model.apply({**variables, "params": params}, tokens, method="encode")
            return memory["annotations"] if isinstance(memory, dict) else memory

        attention = compute_attention_shares(attention_maps(run.model, variables, tokens_NS, tokens_NS))
        gradients = compute_gradient_shares(encode, jnp.asarray(variables["params"][_TABLE]["embedding"]), tokens_NS)
        for name, shares in {"attention": attention, "gradient": gradients}.items():
            if shares is None:
                continue
            found[f"{name}{when}"] = shares
            if not when:
                for word, place in (("I", 0), ("you", 2)):
                    found[f"{name}: love to {word} %"] = 100 * float(shares[0, place])
                for word, place in (("first", 0), ("third", 2)):
                    found[f"{name}: others to the {word} word %"] = 100 * float(shares[1:, place].mean())
            found[f"{name}: others as much to both %{when}"] = 100 * find_share_as_large(shares)
    return found


def plot_relations(measured: Mapping[str, Sequence[Mapping[str, np.ndarray]]]) -> "plots.Figure":
    """Plots the relation of the middle word to the third over that to the first, a dot a sentence, mean over seeds.

    A panel for each row and kind of relation; "I love you" is marked.
    """
    panels = [
        (f"{label}: {name}", 100 * np.mean([seed[name] for seed in seeds], 0))
        for label, seeds in measured.items()
        for name in ("attention", "gradient")
        if name in seeds[0]
    ]
    top = 1.05 * max(shares[:, [0, 2]].max() for _, shares in panels)
    figure = plots.make_figure(3.7 * len(panels) + 0.4, 4)
    for axes, (title, shares) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels):
        axes.plot(shares[1:, 0], shares[1:, 2], "o", markersize=4, alpha=0.6, label="other sentences", color=plots.COLOURS[0])
        axes.plot(shares[0, 0], shares[0, 2], "D", markersize=8, label=f'"{SENTENCE}"', color=plots.COLOURS[1])
        axes.set_title(title, fontsize=10)
        axes.set(xlabel="% to the first word", xlim=(-1, top), ylim=(-1, top))
        plots.style_axes(axes)
    figure.axes[0].set_ylabel("% to the third word")
    plots.add_legend(figure)
    return figure
