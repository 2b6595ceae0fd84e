"""Table files: a title, rows and scales as plain data, read and checked."""

import dataclasses
import fnmatch
import re
import types
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from attention_jax.config.config import apply_pieces, load_config, override
from attention_jax.config.plugins import load_file, load_object
from attention_jax.errors import UserError, suggest_name


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of a table.

    Attributes:
        label: its name, unique in the table.
        pieces: recipe pieces put on the base one after another: functions ConfigDict -> ConfigDict or names in `recipes`.
        overrides: {dotted config field: value}, put on last.
        against: label of another row that this one is compared with, besides the row before it.
        published: {column: cell} from the paper, shown in columns of their own.
        network: the paper's network, {"name": ..., field: value} as `create_model` takes it, where a smaller one is trained:
            its parameters and multiply-adds at the table's `network_shape` are shown beside those of the trained one.
    """

    label: str
    pieces: tuple[str | Callable[[ConfigDict], ConfigDict], ...] = ()
    overrides: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    against: str | None = None
    published: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    network: Mapping[str, Any] | None = None

    @property
    def slug(self) -> str:
        """The name of its folder: "residual + BAM" is residual-bam."""
        return re.sub(r"[^a-z0-9]+", "-", self.label.lower()).strip("-")


@dataclasses.dataclass(frozen=True)
class ComputedRow:
    """One line of a table that a function computes; nothing is trained for it.

    Attributes:
        label: its name, unique in the table.
        function: (**`arguments` of the scale) -> {column: number or text, name of an array for pictures: array}, or where one
            is: "dotted.path:function". It is called whenever the table is made.
        published: {column: cell} from the paper, shown before the computed column of that name.
    """

    label: str
    function: str | Callable[..., Mapping[str, Any]]
    published: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Scale:
    """How large an edition of the table is.

    Attributes:
        seeds: of each row.
        overrides: {dotted field: value}, put on the base before a row's pieces.
        base: config file in place of the table's; in the table file its path is relative to that file's folder.
        arguments: {name: value}, of the functions of computed rows.
    """

    seeds: int = 1
    overrides: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    base: str | Path | None = None
    arguments: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Table:
    """What a table file says.

    Attributes:
        path: the file, as it was given.
        title: one line.
        source: the papers and data it comes from.
        scales: {name: Scale}; the first is the default.
        base: config file that every row starts from; in the table file its path is relative to that file's folder.
        rows: in the order they are shown; a row is compared with the one before it.
        computed: rows that are computed instead of trained, shown above the others in a table of their own.
        notes: shown under the table.
        network_shape: of the input of the rows' `network`, batch of one first; a pair of shapes for source and target tokens.
        measures: {name: function (Program, Run) -> {name: number or array}, or where one is: "dotted.path:function"}. Each is
            called once for every finished run and kept in its workdir; numbers become columns, arrays are for pictures.
        pictures: {name: function {label: [a run's measures, ...]} -> Figure, or where one is}, written beside the table;
            a computed row comes as {label: [what its function gave]}.
        attention_of: label of the row whose attention is pictured.
        next_commands: (why, command) pairs printed at the end; `{workdir}` in a command is the table's workdir.
    """

    path: Path
    title: str
    source: str
    scales: Mapping[str, Scale]
    base: Path | None = None
    rows: tuple[Row, ...] = ()
    computed: tuple[ComputedRow, ...] = ()
    notes: str = ""
    network_shape: tuple[int, ...] | tuple[tuple[int, ...], ...] = (1, 224, 224, 3)
    measures: Mapping[str, str | Callable[..., Any]] = dataclasses.field(default_factory=dict)
    pictures: Mapping[str, str | Callable[..., Any]] = dataclasses.field(default_factory=dict)
    attention_of: str | None = None
    next_commands: tuple[tuple[str, str], ...] = ()

    def scale(self, name: str | None) -> str:
        """The name of a scale, by default the first. Raises UserError for an unknown one."""
        if name is not None and name not in self.scales:
            raise UserError(f"--scale={name}: {self.path} has {', '.join(self.scales)}{suggest_name(name, self.scales)}.")
        return name or next(iter(self.scales))

    def edition(self, scale: str) -> str:
        """What files and the workdir of a scale are called: the file's stem, for scales after the first with their name."""
        return self.path.stem if scale == next(iter(self.scales)) else f"{self.path.stem}-{scale}"

    def select(self, patterns: Sequence[str] | None) -> set[str]:
        """Labels of the rows that any of the labels or shell-style patterns names; None names all."""
        labels = [row.label for row in (*self.computed, *self.rows)]
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
        """What the rows of a scale start from."""
        return load_config(str(self.scales[scale].base or self.base))

    def config(self, row: Row, scale: str) -> ConfigDict:
        """Base, the scale's overrides, the row's pieces, the row's overrides. Raises UserError that names the row."""
        try:
            config = override(self.base_config(scale), self.scales[scale].overrides)
            return override(apply_pieces(config, row.pieces), row.overrides)
        except UserError as error:
            raise UserError(f"{self.path}: row {row.label!r} at scale {scale!r}: {error}") from error


def load_table(path: str | Path) -> Table:
    """The checked content of a table file.

    Raises:
        UserError: the file is missing or does not run, or a name, key, label or value in it is not right.
    """
    path = Path(path)
    given = {name: value for name, value in vars(load_file(path)).items() if _is_data(name, value)}
    known = {field.name: field for field in dataclasses.fields(Table) if field.name != "path"}
    for name in given:
        if name not in known:
            raise UserError(
                f"{path}: a table file has no {name!r}{suggest_name(name, known)}: it has {', '.join(known)}; "
                "start a name of your own with an underscore."
            )
    for name, field in known.items():
        if name not in given and _is_required(field):
            raise UserError(
                f"{path}: {name!r} is missing: a table file gives title, source, scales, and base with rows, or computed rows."
            )
    for name in ("title", "source", "base", "notes"):
        _expect(path, name, given.get(name, ""), str, "a text")

    rows, computed = (
        tuple(_make(path, f"{name}[{i}]", kind, row) for i, row in enumerate(_listed(path, name, given.get(name, ()))))
        for name, kind in (("rows", Row), ("computed", ComputedRow))
    )
    _expect(path, "scales", given["scales"], dict, "a dict of name: {'seeds': ..., 'overrides': {...}}")
    scales = {name: _make(path, f"scales[{name!r}]", Scale, scale) for name, scale in given["scales"].items()}
    for name in ("measures", "pictures"):
        _expect(path, name, given.get(name, {}), dict, "a dict of name: function")
    table = Table(
        **{
            **given,
            "path": path,
            "base": path.parent / given["base"] if "base" in given else None,
            "rows": rows,
            "computed": computed,
            "scales": scales,
            "next_commands": tuple(_listed(path, "next_commands", given.get("next_commands", ()))),
        }
    )
    _check(table)
    return table


def _is_data(name: str, value: Any) -> bool:
    """Whether a module-level name is one of the table's: helpers, imports and constants in capitals are the file's own."""
    return not (name.startswith("_") or name.isupper() or callable(value) or isinstance(value, types.ModuleType))


def _is_required(field: dataclasses.Field) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _expect(path: Path, where: str, value: Any, kind: type | tuple[type, ...], words: str) -> None:
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is int):
        raise UserError(f"{path}: {where}={value!r} is not right: give {words}.")


def _listed(path: Path, where: str, value: Any) -> Sequence[Any]:
    _expect(path, where, value, (list, tuple), "a list")
    return value


def _make(path: Path, where: str, kind: type, values: Any) -> Any:
    """A Row, ComputedRow or Scale from its dict."""
    keys = {field.name: field for field in dataclasses.fields(kind)}
    _expect(path, where, values, dict, f"a dict with {', '.join(keys)}")
    where = f"row {values['label']!r}" if "label" in values else where
    for key in values:
        if key not in keys:
            raise UserError(f"{path}: {where} has no {key!r}{suggest_name(key, keys)}: it has {', '.join(keys)}.")
    for key, field in keys.items():
        if key not in values and _is_required(field):
            raise UserError(f"{path}: {where} has no {key!r}, which must be given.")
    if kind is not Scale:
        _expect(path, f"{where}: label", values["label"], str, "a text")
        _expect(path, f"{where}: published", values.get("published", {}), dict, "a dict of column: cell")
    if kind is ComputedRow:
        return ComputedRow(**values)
    if kind is Row:
        pieces = values.get("pieces", ())
        _expect(path, f"{where}: pieces", pieces, (list, tuple), "a tuple of recipe pieces; of one, (piece,) with a comma")
        values = {**values, "pieces": tuple(pieces)}
        if values.get("network") is not None:
            network = values["network"]
            _expect(path, f"{where}: network", network, dict, "a dict with the name of a model and its fields")
            _expect(path, f"{where}: network", network.get("name"), str, "{'name': as list_models() lists it, field: value}")
    else:
        seeds = values.get("seeds", 1)
        _expect(path, f"{where}: seeds", seeds, int, "a whole number from 1")
        if seeds < 1:
            raise UserError(f"{path}: {where}: seeds={seeds} is not right: give a whole number from 1.")
        _expect(path, f"{where}: arguments", values.get("arguments", {}), dict, "a dict of what computed rows' functions take")
        _expect(path, f"{where}: base", values.get("base"), (str, type(None)), "the path of a config file")
        values = {**values, "base": path.parent / values["base"] if values.get("base") else None}
    _expect(path, f"{where}: overrides", values.get("overrides", {}), dict, "a dict of dotted config fields")
    return kind(**values)


def _check(table: Table) -> None:
    """What holds between the parts of a table."""
    labels = [row.label for row in table.rows]
    if not (labels or table.computed) or not table.scales:
        raise UserError(f"{table.path}: give at least one row and one scale.")
    if labels and table.base is None:
        raise UserError(f"{table.path}: 'base' is missing: give the config file that every row starts from.")
    known = set(labels)
    for row in table.computed:
        if not row.label or "," in row.label or row.label in known:
            raise UserError(
                f"{table.path}: the label {row.label!r} of a computed row is not right: give one that is new, without a comma."
            )
        known.add(row.label)
        if not callable(load_object(row.function, {}, f"{table.path}: row {row.label!r}: function")):
            raise UserError(f"{table.path}: row {row.label!r}: function={row.function!r} is not right: give a function.")
    slugs: dict[str, str] = {}
    for row in table.rows:
        if not row.slug or "," in row.label:
            raise UserError(f"{table.path}: the label {row.label!r} is not right: give letters or digits, without a comma.")
        if row.slug in slugs:
            raise UserError(
                f"{table.path}: the labels {slugs[row.slug]!r} and {row.label!r} share the folder {row.slug!r}: "
                "a label is given once and differs in letters or digits."
            )
        slugs[row.slug] = row.label
    for where, label in [
        *((f"row {row.label!r}: against", row.against) for row in table.rows),
        ("attention_of", table.attention_of),
    ]:
        if label is not None and label not in labels:
            raise UserError(
                f"{table.path}: {where}={label!r} is no row{suggest_name(str(label), labels)}: give a label of this table."
            )
    for row in table.rows:
        if row.against == row.label:
            raise UserError(f"{table.path}: row {row.label!r} is compared with itself: give another label as against.")
    for kind in ("measures", "pictures"):
        for name, function in getattr(table, kind).items():
            if not (isinstance(name, str) and re.fullmatch(r"[a-z0-9_]+", name)):
                raise UserError(f"{table.path}: {kind} has {name!r}: give a name of small letters, digits and _.")
            if not callable(load_object(function, {}, f"{table.path}: {kind}")):
                raise UserError(f"{table.path}: {kind}[{name!r}]={function!r} is not right: give a function.")
    for pair in table.next_commands:
        if not (isinstance(pair, (tuple, list)) and len(pair) == 2 and all(isinstance(text, str) for text in pair)):
            raise UserError(f"{table.path}: next_commands has {pair!r}: give pairs (why, command).")
