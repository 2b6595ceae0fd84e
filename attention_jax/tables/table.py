"""Table files: a title, rows and scales as plain data, read and checked."""

import dataclasses
import fnmatch
import itertools
import re
import types
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from attention_jax.config.config import apply_pieces, load_config, override
from attention_jax.config.plugins import load_file, load_object
from attention_jax.errors import UserError, suggest_name


@dataclasses.dataclass(frozen=True)
class Row:
    """A trained row of a table.

    Attributes:
        label: the row's name, unique in the table.
        pieces: recipe pieces applied to the base one after another: functions ConfigDict -> ConfigDict or names in `recipes`.
        overrides: {dotted config field: value}, applied last.
        against: label of another row that this one is compared with, besides the row before it.
        published: {column: cell} from the paper, shown in columns of their own.
        network: the paper's network, {"name": ..., field: value} for `create_model`, if a smaller one is trained: its
            parameters and multiply-adds at the table's `network_shape` get columns of their own.
        kind: kind of the addition, such as "architecture": sets the colour in the chart; if rows are compared with the row
            before, adjacent rows of one kind have a subtotal.
    """

    label: str
    pieces: tuple[str | Callable[[ConfigDict], ConfigDict], ...] = ()
    overrides: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    against: str | None = None
    published: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    network: Mapping[str, Any] | None = None
    kind: str = ""

    @property
    def slug(self) -> str:
        """The name of the row's folder: "residual + BAM" becomes residual-bam; letters of any script stay."""
        return re.sub(r"[\W_]+", "-", unicodedata.normalize("NFC", self.label.lower())).strip("-")


@dataclasses.dataclass(frozen=True)
class ComputedRow:
    """A row of a table that a function computes, without training.

    Attributes:
        label: the row's name, unique in the table.
        function: (**`arguments` of the scale) -> {column: number or text, name of an array for `pictures`: array}, or
            "dotted.path:function". It is called whenever the table is made.
        published: {column: cell} from the paper, shown before the computed column of that name.
    """

    label: str
    function: str | Callable[..., Mapping[str, Any]]
    published: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Scale:
    """The size of an edition of the table.

    Attributes:
        seeds: number of seeds per row.
        overrides: {dotted field: value}, applied to the base before a row's pieces.
        row_overrides: {dotted field: value}, applied to every row together with its own: the size of the rows' networks, if
            rows name other networks than the base.
        base: config file in place of the table's; in the table file its path is relative to that file's folder.
        arguments: {name: value} for the functions of computed rows.
        rows: labels of the trained rows in this scale; empty for all rows.
        after: the scale whose runs, in `runs`, the runs of this scale start from; `table all` runs it first.
    """

    seeds: int = 1
    overrides: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    row_overrides: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    base: str | Path | None = None
    arguments: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    rows: Sequence[str] = ()
    after: str = ""


@dataclasses.dataclass(frozen=True)
class PublishedFinding:
    """A finding of a paper about two rows: `row` is better than `over`, or worse for `sign` -1.

    Attributes:
        text: the finding in the paper's words, with its source.
    """

    text: str
    row: str
    over: str
    sign: int = 1


@dataclasses.dataclass(frozen=True)
class Table:
    """The content of a table file.

    Attributes:
        path: the file, as it was given.
        title: one line.
        source: papers and data.
        scales: {name: Scale}; the first is the default.
        base: config file that every row starts from, in the table file relative to its folder; or a function () -> config.
        rows: trained rows, in the order of the table; a row is compared with the one before it.
        computed: rows that are computed instead of trained, written above the others as a table of their own.
        notes: text under the table.
        network_shape: input shape of the rows' `network`, batch of one first; a pair of shapes for source and target tokens.
        measures: {name: function (Program, Run) -> {name: number or array}, or "dotted.path:function"}. Each is called once
            for every finished run and kept in its workdir; numbers become columns, arrays are for `pictures`.
        pictures: {name: function {label: [a run's measures, ...]} -> Figure, or "dotted.path:function"}, written beside the
            table; a computed row comes as {label: [its function's result]}.
        compare_to: "previous" compares each row with the one before it, "baseline" with the first; None only with `against`.
        also_compared: further (row, other row) pairs of labels that are judged.
        findings: published findings, each judged by two rows of the table.
        published_order: {column of `published`: 1 if higher is better, -1 if lower}; its order is compared with ours.
        selected_on: the split on which rows, rates or budgets were chosen; comparisons on it are not judged.
        attention_of: label of the row whose attention maps are plotted.
        next_commands: (why, command) pairs printed at the end; `{workdir}` in a command is the table's workdir.
    """

    path: Path
    title: str
    source: str
    scales: Mapping[str, Scale]
    base: Path | Callable[[], ConfigDict] | None = None
    rows: tuple[Row, ...] = ()
    computed: tuple[ComputedRow, ...] = ()
    notes: str = ""
    network_shape: tuple[int, ...] | tuple[tuple[int, ...], ...] = (1, 224, 224, 3)
    measures: Mapping[str, str | Callable[..., Any]] = dataclasses.field(default_factory=dict)
    pictures: Mapping[str, str | Callable[..., Any]] = dataclasses.field(default_factory=dict)
    compare_to: str | None = "previous"
    also_compared: tuple[tuple[str, str], ...] = ()
    findings: tuple[PublishedFinding, ...] = ()
    published_order: Mapping[str, int] = dataclasses.field(default_factory=dict)
    selected_on: str = ""
    attention_of: str | None = None
    next_commands: tuple[tuple[str, str], ...] = ()

    def scale(self, name: str | None) -> str:
        """Returns the name of a scale, by default the first. Raises UserError for an unknown one."""
        if name is not None and name not in self.scales:
            raise UserError(f"--scale={name}: {self.path} has {', '.join(self.scales)}{suggest_name(name, self.scales)}.")
        return name or next(iter(self.scales))

    def keep_rows(self, scale: str) -> "Table":
        """Returns the table with only the trained rows of a scale."""
        kept = self.scales[scale].rows
        return dataclasses.replace(self, rows=tuple(row for row in self.rows if not kept or row.label in kept))

    def edition(self, scale: str) -> str:
        """Returns the stem of a scale's files and workdir: the table file's, then the scale unless it is the first."""
        return self.path.stem if scale == next(iter(self.scales)) else f"{self.path.stem}-{scale}"

    def list_compared(self, rows: Sequence[Row]) -> dict[str, str | None]:
        """Returns {label of a row: label of the row with which `compare_to` compares it}."""
        labels = [row.label for row in rows]
        others: dict[str | None, list[str | None]] = {
            "previous": [None, *labels[:-1]],
            "baseline": [None, *labels[:1] * (len(labels) - 1)],
        }
        return dict(zip(labels, others.get(self.compare_to, [None] * len(labels))))

    def list_subtotals(self) -> list[tuple[str, tuple[str, str], tuple[str, str]]]:
        """Returns, for each run of adjacent rows of one kind: the kind, (last row, row before the kind), (last row, first row).

        The list is empty unless rows are compared with the row before.
        """
        found = []
        pairs = itertools.pairwise(self.rows if self.compare_to == "previous" else ())
        for kind, adjacent in itertools.groupby(pairs, key=lambda pair: pair[1].kind):
            (before, last), *others = adjacent
            last = others[-1][1] if others else last
            found += [(kind, (last.label, before.label), (last.label, self.rows[0].label))] if kind else []
        return found

    def list_code(self, row: Row, scale: str) -> list[str]:
        """Returns this file, and the user's files and dotted names that it uses for a row."""
        functions = *row.pieces, *self.measures.values(), *self.pictures.values()
        files = (self.path, self.base, self.scales[scale].base)
        named = [str(file) for file in files if file and str(file).endswith(".py")]
        return [*named, *(name for name in functions if isinstance(name, str) and "." in name)]

    def select(self, patterns: Sequence[str] | None) -> set[str]:
        """Returns the labels of the rows that any of the labels or shell-style patterns matches; None matches all."""
        labels = [row.label for row in self.computed] + [row.label for row in self.rows]
        if patterns is None:
            return set(labels)
        chosen = set()
        for pattern in (pattern.strip() for pattern in patterns):
            found = [label for label in labels if label == pattern or fnmatch.fnmatchcase(label, pattern)]
            if not found:
                known = ", ".join(map(repr, labels))
                raise UserError(
                    f"--rows: no row is called {pattern!r}{suggest_name(pattern, labels)}: {self.path} has {known}."
                )
            chosen.update(found)
        return chosen

    def base_config(self, scale: str) -> ConfigDict:
        """Loads the config from which the rows of a scale start."""
        base = self.scales[scale].base or self.base
        return base() if callable(base) else load_config(str(base))

    def config(self, row: Row, scale: str) -> ConfigDict:
        """Applies the scale's overrides, the row's pieces and overrides to the base. Raises UserError that names the row."""
        try:
            size = self.scales[scale]
            config = override(self.base_config(scale), size.overrides)
            return override(apply_pieces(config, row.pieces), {**row.overrides, **size.row_overrides})
        except UserError as error:
            raise UserError(f"{self.path}: row {row.label!r} at scale {scale!r}: {error}") from error


_LIST, _TEXT, _FUNCTIONS = ((list, tuple), "a list"), (str, "a text"), (dict, "a dict of name: function")
_NONE = type(None)
# Name in a table file, a row or a scale -> its type, and the words for the accepted values.
_ACCEPTED: dict[str, tuple[type | tuple[type, ...], str]] = {
    **{"title": _TEXT, "source": _TEXT, "notes": _TEXT, "label": _TEXT, "kind": _TEXT},
    **{"rows": _LIST, "computed": _LIST, "next_commands": _LIST, "measures": _FUNCTIONS, "pictures": _FUNCTIONS},
    "base": ((str, _NONE), "the path of a config file"),
    "compare_to": ((str, _NONE), "'previous', 'baseline' or None"),
    "findings": _LIST,
    "also_compared": (_LIST[0], "a list of pairs of labels"),
    "published_order": (dict, "a dict of column: 1 or -1"),
    "selected_on": _TEXT,
    "text": _TEXT,
    "row": _TEXT,
    "over": _TEXT,
    "sign": (int, "1 or -1"),
    "scales": (dict, "a dict of name: {'seeds': ..., 'overrides': {...}}"),
    "published": (dict, "a dict of column: cell"),
    "pieces": ((list, tuple), "a tuple of recipe pieces, such as (piece,)"),
    "network": ((dict, _NONE), "a dict with the name of a model and its fields"),
    "overrides": (dict, "a dict of dotted config fields"),
    "row_overrides": (dict, "a dict of dotted config fields"),
    "seeds": (int, "a whole number from 1"),
    "arguments": (dict, "a dict of what computed rows' functions take"),
}


def load_table(path: str | Path) -> Table:
    """Loads and checks a table file. Raises UserError if it does not run, or a name, key, label or value is wrong."""
    path = Path(path)
    given = {name: value for name, value in vars(load_file(path)).items() if _is_data(name, value)}
    _check_values(path, "", Table, given)
    rows, computed = (
        tuple(_make(path, f"{name}[{i}]", kind, row) for i, row in enumerate(given.get(name, ())))
        for name, kind in (("rows", Row), ("computed", ComputedRow))
    )
    changed = {
        "base": path.parent / given["base"] if given.get("base") else None,
        "rows": rows,
        "computed": computed,
        "scales": {name: _make(path, f"scales[{name!r}]", Scale, scale) for name, scale in given["scales"].items()},
        "findings": tuple(
            _make(path, f"findings[{i}]", PublishedFinding, finding) for i, finding in enumerate(given.get("findings", ()))
        ),
        "next_commands": tuple(given.get("next_commands", ())),
        "also_compared": tuple(map(tuple, given.get("also_compared", ()))),
    }
    table = Table(path=path, **{**given, **changed})
    check_labels(table)
    _check_functions(table)
    return table


def _is_data(name: str, value: Any) -> bool:
    """True if a module-level name belongs to the table; helpers, imports and constants in capitals do not."""
    return not (name.startswith("_") or name.isupper() or callable(value) or isinstance(value, types.ModuleType))


def _check_values(path: Path, where: str, kind: type, given: Mapping[str, Any]) -> None:
    """Checks names and types of the values of a table, a row or a scale; `where` is empty for the table."""
    fields = {field.name: field for field in dataclasses.fields(kind) if field.name != "path"}
    owner = where or "a table file"
    for name in given:
        if name not in fields:
            own = "" if where else "; start a name of your own with an underscore"
            raise UserError(f"{path}: {owner} has no {name!r}{suggest_name(name, fields)}: it has {', '.join(fields)}{own}.")
    for name, field in fields.items():
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if name not in given and required:
            raise UserError(f"{path}: {owner} has no {name!r}, which must be given.")
    for name in (name for name in given if name in _ACCEPTED):
        value: Any = given[name]
        accepted, words = _ACCEPTED[name]
        wrong = type(value) is not int or value < 1 if name == "seeds" else not isinstance(value, accepted)
        if wrong or (name == "network" and value is not None and not isinstance(value.get("name"), str)):
            raise UserError(f"{path}: {where}{': ' if where else ''}{name}={value!r} is not right: give {words}.")


def _make(path: Path, where: str, kind: type, values: Any) -> Any:
    """Makes a Row, ComputedRow or Scale from its dict."""
    if not isinstance(values, dict):
        names = ", ".join(field.name for field in dataclasses.fields(kind))
        raise UserError(f"{path}: {where}={values!r} is not right: give a dict with {names}.")
    _check_values(path, f"row {values['label']!r}" if "label" in values else where, kind, values)
    if kind is Row:
        values = {**values, "pieces": tuple(values.get("pieces", ()))}
    if kind is Scale:
        values = {**values, "base": path.parent / values["base"] if values.get("base") else None}
    return kind(**values)


def check_labels(table: Table) -> None:
    """Raises UserError unless labels differ and references to other rows exist."""
    labels = [row.label for row in table.rows]
    if not (labels or table.computed) or not table.scales:
        raise UserError(f"{table.path}: give at least one row and one scale.")
    if labels and table.base is None:
        raise UserError(f"{table.path}: 'base' is missing: give the config file that every row starts from.")
    known = set(labels)
    for label in (row.label for row in table.computed):
        if not label or "," in label or label in known:
            raise UserError(
                f"{table.path}: the label {label!r} of a computed row is not right: give one that is new, without a comma."
            )
        known.add(label)
    slugs: dict[str, str] = {}
    for row in table.rows:
        if not row.slug or "," in row.label or len(row.slug.encode()) > 200:  # a folder's name has at most 255 bytes
            text = "give letters or digits, at most 200 bytes of them, without a comma"
            raise UserError(f"{table.path}: the label {row.label[:50]!r} is not right: {text}.")
        if row.slug in slugs:
            raise UserError(
                f"{table.path}: the labels {slugs[row.slug]!r} and {row.label!r} share the folder {row.slug!r}: "
                "a label is given once and differs in letters or digits."
            )
        slugs[row.slug] = row.label
        if row.against == row.label:
            raise UserError(f"{table.path}: row {row.label!r} is compared with itself: give another label as against.")
    others = [(f"row {row.label!r}: against", row.against) for row in table.rows]
    others += [("findings", label) for finding in table.findings for label in (finding.row, finding.over)]
    others += [("also_compared", label) for pair in table.also_compared for label in pair]
    others += [(f"scales[{name!r}]: rows", label) for name, scale in table.scales.items() for label in scale.rows]
    if table.compare_to not in ("previous", "baseline", None):
        raise UserError(f"{table.path}: compare_to={table.compare_to!r} is not right: give 'previous', 'baseline' or None.")
    for where, other in [*others, ("attention_of", table.attention_of)]:
        if other is not None and other not in labels:
            raise UserError(
                f"{table.path}: {where}={other!r} is no row{suggest_name(str(other), labels)}: give a label of this table."
            )


def _check_functions(table: Table) -> None:
    """Checks that the functions exist, and the pairs of `next_commands`."""
    functions = [(f"row {row.label!r}: function", row.function) for row in table.computed]
    for kind in ("measures", "pictures"):
        for name, function in getattr(table, kind).items():
            if not (isinstance(name, str) and re.fullmatch(r"[a-z0-9_]+", name)):
                raise UserError(f"{table.path}: {kind} has {name!r}: give a name of small letters, digits and _.")
            functions.append((f"{kind}[{name!r}]", function))
    for where, function in functions:
        if not callable(load_object(function, {}, f"{table.path}: {where}")):
            raise UserError(f"{table.path}: {where}={function!r} is not right: give a function.")
    for pair in table.next_commands:
        if not (isinstance(pair, (tuple, list)) and len(pair) == 2 and all(isinstance(text, str) for text in pair)):
            raise UserError(f"{table.path}: next_commands has {pair!r}: give pairs (why, command).")
