"""The command `score`: how probable given translations are, line by line, and the order that this gives an n-best list."""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence

from attention_jax.cli.line_files import check_new_file, open_lines, open_output, read_lines, take_parts
from attention_jax.cli.translate import CHUNKS, open_translator
from attention_jax.errors import UserError
from attention_jax.tasks.batch_limits import BatchLimits
from attention_jax.tasks.translator import Translator

_Candidate = tuple[int, float, str]  # number of the source line, score, text


def score_file(
    workdir: str,
    weights: str | None,
    average: int,
    trust_code: bool,
    source: str,
    target: str | None,
    nbest: str | None,
    output: str | None,
    per_token: bool,
    alpha: float | None,
    weight: float | None,
    limits: BatchLimits,
    overrides: Mapping[str, str],
) -> None:
    """Scores a file of translations, or reranks an n-best list.

    Args:
        workdir, weights, average, trust_code: see `load_run`.
        source, target: paths of files whose lines belong together.
        nbest: path of a list that `translate --nbest` has written, in place of `target`.
        output: path of a new file; None for standard output.
        per_token: True also writes the tokens and the log probability of each.
        alpha: exponent of the length penalty; None for the config's, 0 for no penalty.
        weight: weight of the new score in the sum with the list's own; None for the new score alone.
        limits: largest batch.
        overrides: {field of the config: value} as the command line has them.

    Raises:
        UserError: no translation run, files that cannot be read or do not fit together, an output that exists.
    """
    if (target is None) == (nbest is None):
        raise UserError("score: give --target=FILE, or --nbest=FILE to rerank a list of translate --nbest.")
    if nbest is None and weight is not None:
        raise UserError(f"score: --weight={weight} is for --nbest, whose scores it weighs: leave it out.")
    if nbest is not None and per_token:
        raise UserError("score: --per-token is for --target; a reranked list has the columns of the list: leave it out.")
    place = check_new_file("--output", output)
    with open_lines("--source", source) as first, open_lines("--nbest" if nbest else "--target", nbest or target) as second:
        _, translator = open_translator("score", workdir, weights, average, trust_code, overrides, limits)
        lines, others = read_lines(first, source), read_lines(second, str(nbest or target))
        with open_output(place) as write:
            if nbest is None:
                for line in _score_lines(translator, _pair_lines(lines, others, source, str(target)), per_token, alpha):
                    write(line + "\n")
            else:
                candidates = _read_candidates(others, nbest)
                for number, score, text in _rerank(translator, lines, candidates, nbest, source, alpha, weight):
                    write(f"{number}\t{score:.6f}\t{text}\n")


def _pair_lines(lines: Iterable[str], others: Iterable[str], source: str, target: str) -> Iterator[tuple[str, str]]:
    for number, (line, other) in enumerate(itertools.zip_longest(lines, others), 1):
        if line is None or other is None:
            longer, shorter = (target, source) if line is None else (source, target)
            raise UserError(f"{longer} has a line {number} and {shorter} has not: give a target for each source.")
        yield line, other


def _score_lines(
    translator: Translator, pairs: Iterable[tuple[str, str]], per_token: bool, alpha: float | None
) -> Iterator[str]:
    for part in take_parts(pairs, CHUNKS):
        sources, targets = zip(*part)
        for found in translator.score(sources, targets, alpha=alpha):
            cells = [f"{found.score:.6f}", f"{found.log_prob:.6f}"]
            cells += [" ".join(found.tokens), " ".join(f"{value:.6f}" for value in found.log_probs)] if per_token else []
            yield "\t".join(cells)


def _read_candidates(lines: Iterable[str], name: str) -> Iterator[list[_Candidate]]:
    """Yields the candidates of each source line."""

    def parse(place: int, line: str) -> _Candidate:
        number, score, text = [*line.split("\t", 2), "", ""][:3] if line.count("\t") > 1 else ("", "", "")
        try:
            return int(number), float(score), text
        except ValueError as error:
            raise UserError(
                f"{name}:{place} is {line[:60]!r}: give line number<TAB>score<TAB>text, as translate --nbest writes."
            ) from error

    parsed = (parse(place, line) for place, line in enumerate(lines, 1))
    for _, group in itertools.groupby(parsed, key=lambda candidate: candidate[0]):
        yield list(group)


def _rerank(
    translator: Translator,
    lines: Iterable[str],
    groups: Iterable[list[_Candidate]],
    name: str,
    source: str,
    alpha: float | None,
    weight: float | None,
) -> Iterator[_Candidate]:
    """Yields the candidates of each source line by their new scores, best first."""
    numbered, share = enumerate(lines, 1), 1.0 if weight is None else weight

    def find_source(number: int) -> str:
        for place, line in numbered:
            if place == number:
                return line
        raise UserError(f"{name} has candidates for line {number}, which {source} has not, or not in this order.")

    for part in take_parts(((find_source(group[0][0]), group) for group in groups), CHUNKS):
        sources = [line for line, group in part for _ in group]
        found = iter(translator.score(sources, [text for _, group in part for _, _, text in group], alpha=alpha))
        for _, group in part:
            new = [(number, share * next(found).score + (1 - share) * score, text) for number, score, text in group]
            yield from _best_first(new)


def _best_first(candidates: Sequence[_Candidate]) -> list[_Candidate]:
    return sorted(candidates, key=lambda candidate: -candidate[1])
