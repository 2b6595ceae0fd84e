"""Tunes learning rates row by row on the validation split, with the same number of runs for each row.

AlgoPerf (Dahl et al. 2023, arXiv 2306.07179, Section 4) has the same rule of equal budgets.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from attention_jax.data.splits import VALIDATION
from attention_jax.errors import UserError
from attention_jax.tables import results
from attention_jax.tables.cells import align_cells, write_markdown_cells
from attention_jax.tables.results import RowPlan, TableRequest
from attention_jax.tables.runner import make_request
from attention_jax.tables.table import Row

FIRST_SEED = 100  # first seed of the runs that choose; seeds that are judged start at 0
FACTOR = 3.0  # ratio of neighbouring rates


@dataclasses.dataclass(frozen=True)
class Tuning:
    """The runs that choose a rate for each row of a table.

    Attributes:
        of: the request whose rows are tuned.
        request: request for the runs that choose, with one row for each row and factor.
        factors: factors for the rate of a row, 1 first.
    """

    of: TableRequest
    request: TableRequest
    factors: tuple[float, ...]

    @functools.cached_property
    def plans(self) -> list[RowPlan]:
        """The plans of the runs that choose; each access reads the state of the runs again."""
        return results.plan_rows(self.request, count_networks=False)

    def is_done(self) -> bool:
        """Returns True if every run that was selected is done."""
        return all(run.done for plan in self.plans if plan.row.label in self.request.selected for run in plan.runs)

    @functools.cached_property
    def scores(self) -> dict[str, list[float]]:
        """The scores of each row on the validation split, one for each factor; nan if a run is missing."""
        rows = iter(map(results.read_row, self.plans))
        return {
            row.label: [math.nan if (made := next(rows)).correct is None else float(made.correct.mean()) for _ in self.factors]
            for row in self.of.table.rows
        }

    def choose_factor(self, label: str) -> float:
        """Returns the factor with the highest score; among equal scores the first, which is 1 if it is one of them."""
        scores = [-1.0 if math.isnan(score) else score for score in self.scores[label]]
        return self.factors[scores.index(max(scores))]

    def choose_labels(self, tuned: bool) -> dict[str, str]:
        """Returns {label: label of the row of `add_rows` with its tuned rate, or with its own rate if `tuned` is False}."""
        factors = {label: self.choose_factor(label) if tuned else 1.0 for label in self.scores}
        return {label: _name_row(label, factor) for label, factor in factors.items()}

    def add_rows(self) -> TableRequest:
        """Returns the tuned request, with one more row for each row whose best rate is not its own."""
        table, chosen = self.of.table, self.choose_labels(tuned=True)
        further = [
            _scale_rate(row, self.of, self.choose_factor(row.label)) for row in table.rows if chosen[row.label] != row.label
        ]
        return dataclasses.replace(
            self.of,
            table=dataclasses.replace(table, rows=(*table.rows, *further)),
            selected=self.of.selected | {chosen[label] for label in self.of.selected},
        )

    def list_cells(self, mark: str = "{}") -> list[list[str]]:
        """Returns head and rows of the scores as texts; `mark` encloses the chosen ones."""
        order = sorted(range(len(self.factors)), key=self.factors.__getitem__)
        cells = [["row", *(f"rate × {self.factors[i]:.3g}" for i in order)]]
        for label, scores in self.scores.items():
            chosen = self.factors.index(self.choose_factor(label))
            texts = ["not run" if math.isnan(score) else f"{100 * score:.2f}" for score in scores]
            cells.append([label, *(mark.format(texts[i]) if i == chosen else texts[i] for i in order)])
        return cells

    def describe(self) -> str:
        """Returns the paragraph and the table of the choice, in Markdown."""
        text = (
            f"Rates: each row was trained at {len(self.factors)} rates around its own, seed {FIRST_SEED}, and judged on the "
            "validation split; the best one, in bold, was trained anew with the seeds above."
        )
        return f"{text}\n\n{write_markdown_cells(self.list_cells('**{}**'))}"

    def write(
        self, request: TableRequest, plans: Sequence[RowPlan], computed: Sequence[Any], machine: str, with_plots: bool
    ) -> str:
        """Returns the scores as the text to print in place of a table; writes no file."""
        self.__dict__.pop("scores", None)
        return align_cells(self.list_cells())


def plan_tuning(request: TableRequest, tune: str) -> Tuning:
    """Returns the runs that tune a request's rows by `tune`, such as "lr:3". Raises UserError for any other form."""
    found = re.fullmatch(r"lr:(\d+)", tune)
    number = int(found[1]) if found else 0
    if number < 3 or number % 2 == 0:
        raise UserError(f"--tune={tune} is not right: give lr:N with an odd number of rates from 3, such as lr:3.")
    half = number // 2
    factors = tuple(sorted((FACTOR**i for i in range(-half, half + 1)), key=lambda factor: (abs(math.log(factor)), factor)))
    rows = [_scale_rate(row, request, factor) for row in request.table.rows for factor in factors]
    rows = [dataclasses.replace(row, overrides={**row.overrides, "data.eval_split": VALIDATION}) for row in rows]
    table = dataclasses.replace(
        request.table, path=Path("tuning"), title="Learning rates", rows=tuple(rows), also_compared=(), measures={}, pictures={}
    )
    labels = [_name_row(label, factor) for label in request.selected for factor in factors]
    made = make_request(
        table,
        request.scale,
        rows=labels,
        seeds=1,
        workdir=f"{request.workdir}/tuning",
        trust_code=request.trust_code,
        command=request.command,
        first_seed=FIRST_SEED,
    )
    return Tuning(request, made, factors)


def _name_row(label: str, factor: float) -> str:
    return label if factor == 1 else f"{label} (rate × {factor:.3g})"


def _scale_rate(row: Row, request: TableRequest, factor: float) -> Row:
    """Returns the row with its rate multiplied."""
    rate = request.table.config(row, request.scale).schedule.learning_rate * factor
    return dataclasses.replace(
        row,
        label=_name_row(row.label, factor),
        overrides={**row.overrides, **({} if factor == 1 else {"schedule.learning_rate": float(f"{rate:.6g}")})},
    )
