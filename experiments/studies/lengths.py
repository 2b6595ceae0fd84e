"""Translation by the length of the source, and beyond the lengths of training."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from attention_jax.analysis import plots
from attention_jax.config import override
from attention_jax.data.text.tokenizer import load_tokenizer
from attention_jax.load import Run
from attention_jax.tasks import translation
from attention_jax.tasks.resolve import resolve_config
from attention_jax.tasks.text_scores import name_bleu, score_texts
from attention_jax.tasks.translation import read_texts
from attention_jax.train.evaluate import evaluate_model
from attention_jax.train.program import Program
from attention_jax.train.workdir import EVALUATION


def split_lengths(lengths: np.ndarray, number: int) -> list[tuple[int, int]]:
    """[N] -> at most `number` ranges (shortest, longest) of tokens that hold about equally many pairs each."""
    edges = np.unique(np.quantile(lengths, np.linspace(0, 1, number + 1), method="inverted_cdf").astype(int))
    starts = [int(edges[0]), *(int(edge) + 1 for edge in edges[1:-1])]
    return list(zip(starts, map(int, edges[1:]), strict=True)) if len(edges) > 1 else [(int(edges[0]),) * 2]


def measure_by_length(program: Program, run: Run, number: int = 4) -> dict[str, Any]:
    """Measures, for a table, the last evaluation split by the tokens of the source, its end symbol included.

    Columns: what "correct" means, in percent, in each of `number` ranges of lengths. For the figure: the ranges, the shares
    of texts (or tokens) and of next tokens that are right, and BLEU where there are translations.
    """
    config, tokenizer = run.config, load_tokenizer(run.assets)
    with np.load(run.path.parent.parent / EVALUATION) as saved:
        outputs = {name: saved[name] for name in saved.files}
    pairs = translation.source(config, config.data.eval_split)
    lengths = np.array([len(tokenizer.encode(pairs[i][0])) + 1 for i in range(len(pairs))])
    ranges = split_lengths(lengths, number)
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
        hypotheses, references = read_texts(config, outputs)
        tokenize = config.evaluation.bleu
        scores = [score_texts([hypotheses[i] for i in rows], [references[i] for i in rows], tokenize)[0] for rows in members]
        found["BLEU of a range"] = np.array([score[name_bleu(tokenize)] for score in scores])
    return found


def measure_elsewhere(program: Program, run: Run, changes: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """Measures, for a table, the same weights and tokenizer on other data: {their name: {dotted config field: value}}.

    Columns for each: what "correct" means, in percent, and the share of next tokens that are right after the right ones.
    """
    correct, next_tokens = {}, {}
    for name, fields in changes.items():
        resolved = resolve_config(override(run.config, fields))
        config = resolved.config
        program.task.adopt(config, run.assets)
        _, outputs = evaluate_model(dataclasses.replace(program, resolved=resolved), run.variables, config)
        correct[f"{program.task.correct_means(config)} %, {name}"] = 100 * float(np.mean(outputs["correct"]))
        next_tokens[f"next tokens right %, {name}"] = 100 * float(outputs["right"].sum() / outputs["tokens"].sum())
    return correct | next_tokens


def plot_by_length(measured: Mapping[str, Sequence[Mapping[str, np.ndarray]]]) -> "plots.Figure":
    """Plots curves over the length of the source, a line for each row of the table, mean over seeds."""
    first = next(iter(measured.values()))[0]
    names = [name for name, value in first.items() if value.ndim == 1 and name not in ("ranges", "pairs")]
    figure = plots.make_figure(3.6 * len(names) + 0.4, 3.8)
    for axes, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        for i, (label, seeds) in enumerate(measured.items()):
            middle = np.mean(seeds[0]["ranges"], 1)
            axes.plot(middle, np.mean([seed[name] for seed in seeds], 0), marker="o", label=label, **plots.choose_style(i))
        axes.set_title(name, fontsize=10)
        axes.set_xlabel("tokens of the source, middle of a range")
        axes.set_ylim(0, 102)
        plots.style_axes(axes)
    plots.add_legend(figure)
    return figure
