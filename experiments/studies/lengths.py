"""Translation by the length of what is translated, and beyond the lengths of training."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from attention_jax.analysis import plots
from attention_jax.config import override
from attention_jax.data.text import tokenizer as tokenizers
from attention_jax.data.text.pairs import open_pairs
from attention_jax.load import Run
from attention_jax.tasks.translator import bleu_name, score_texts
from attention_jax.train.evaluate import evaluate_model
from attention_jax.train.program import Program
from attention_jax.train.workdir import EVALUATION

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def bins(lengths: np.ndarray, number: int) -> list[tuple[int, int]]:
    """[N] -> at most so many ranges (shortest, longest) of tokens that hold about equally many pairs each."""
    edges = np.unique(np.quantile(lengths, np.linspace(0, 1, number + 1), method="inverted_cdf").astype(int))
    starts = [int(edges[0]), *(int(edge) + 1 for edge in edges[1:-1])]
    return list(zip(starts, map(int, edges[1:]), strict=True)) if len(edges) > 1 else [(int(edges[0]),) * 2]


def by_length(program: Program, run: Run, number: int = 4) -> dict[str, Any]:
    """A measure of tables: the last evaluation, split by the tokens of the source, its end symbol included.

    Columns: what "correct" means, in percent, in each of `number` ranges of lengths. For the picture: the ranges, the shares
    of texts (or tokens) and of next tokens that are right, and BLEU where there are translations.
    """
    config, words = run.config, tokenizers.from_assets(run.assets)
    with np.load(run.path.parent.parent / EVALUATION) as saved:
        outputs = {name: saved[name] for name in saved.files}
    pairs = open_pairs(config.data.source, config.data.eval_split, config.data.args.to_dict(), config.data.on_broken)
    lengths = np.array([len(words.encode(pairs[i][0])) + 1 for i in range(len(pairs))])
    ranges = bins(lengths, number)
    members = [np.flatnonzero((low <= lengths) & (lengths <= high)) for low, high in ranges]
    metric = program.task.correct_means(config)
    shares = [float(outputs["correct"][rows].mean()) for rows in members]
    found: dict[str, Any] = {
        f"{metric} %, {low} to {high} tokens": 100 * share for (low, high), share in zip(ranges, shares, strict=True)
    }
    found["ranges"], found["pairs"] = np.array(ranges), np.array([len(rows) for rows in members])
    found[f"{metric} %"] = 100 * np.array(shares)
    found["next tokens right %"] = np.array([100 * outputs["right"][i].sum() / outputs["tokens"][i].sum() for i in members])
    if config.evaluation.translate:
        program.task.adopt(config, run.assets)
        both, tokenize = program.task.texts(config, outputs), config.evaluation.bleu
        scores = [score_texts(*([texts[i] for i in rows] for texts in both), tokenize)[0] for rows in members]
        found["BLEU of a range"] = np.array([score[bleu_name(tokenize)] for score in scores])
    return found


def elsewhere(program: Program, run: Run, changes: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """A measure of tables: the same weights and tokenizer on other data.

    Args:
        changes: {what they are called: {dotted config field: value}}.

    Columns of each: what "correct" means, in percent, and the share of next tokens that are right after the right ones.
    """
    whole, next_ones = {}, {}
    for name, fields in changes.items():
        config = program.task.resolve(override(run.config, fields))
        program.task.adopt(config, run.assets)
        _, outputs = evaluate_model(dataclasses.replace(program, config=config), run.variables, config)
        whole[f"{program.task.correct_means(config)} %, {name}"] = 100 * float(np.mean(outputs["correct"]))
        next_ones[f"next tokens right %, {name}"] = 100 * float(outputs["right"].sum() / outputs["tokens"].sum())
    return whole | next_ones


def picture(measured: Mapping[str, Sequence[Mapping[str, np.ndarray]]]) -> "Figure":
    """Curves over the length of the source, a line a row of the table, from what `by_length` measured (mean over seeds)."""
    first = next(iter(measured.values()))[0]
    names = [name for name, value in first.items() if value.ndim == 1 and name not in ("ranges", "pairs")]
    figure = plots.new_figure(3.6 * len(names) + 0.4, 3.8)
    for axes, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        for i, (label, seeds) in enumerate(measured.items()):
            middle = np.mean(seeds[0]["ranges"], 1)
            axes.plot(middle, np.mean([seed[name] for seed in seeds], 0), marker="o", label=label, **plots.look(i))
        axes.set_title(name, fontsize=10)
        axes.set_xlabel("tokens of the source, middle of a range")
        axes.set_ylim(0, 102)
        plots.style(axes)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 4), frameon=False, fontsize=9)
    return figure
