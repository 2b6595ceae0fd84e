"""The fields of a config in words: for `./launch.sh config`, the help of commands, and docs/fields.md."""

from collections.abc import Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict

from attention_jax.config.accepted import OPEN, REQUIRED, Field
from attention_jax.config.config import flatten_config, get_fields
from attention_jax.config.fields import COMMON, OF_TASK, list_fields, merge_fields


def describe_config(config: ConfigDict) -> str:
    """Returns a line for each field of a complete config: name, value, meaning; "*" if it is not the default."""
    flat, lines = flatten_config(config), []
    for name, field in get_fields(config).items():
        if field.default is OPEN:
            own = {key: value for key, value in flat.items() if key.startswith(f"{name}.")}
            lines += [("*", f"{key} = {value!r}", "") for key, value in own.items()] or [("", f"{name} = {{}}", field.meaning)]
            continue
        spelled = next(spelled for spelled in field.names(name) if spelled in flat)
        differs = field.default is not REQUIRED and (spelled, flat[spelled]) != (_spell_default(name, field), field.default)
        default = f"; default {_default(name, field)}" if differs else ""
        mark = "*" if differs or field.default is REQUIRED else ""
        lines.append((mark, f"{spelled} = {flat[spelled]!r}", f"{field.meaning}{default}"))
    width = min(46, max(len(setting) for _, setting, _ in lines))
    return "\n".join(f"{mark:1} {setting:{width}}  {'# ' * bool(text)}{text}".rstrip() for mark, setting, text in lines)


def _spell_default(name: str, field: Field) -> str:
    return f"{name}_{field.spelled_in}" if field.spelled_in else name


def _default(name: str, field: Field) -> str:
    if field.default in (REQUIRED, OPEN):
        return "none" if field.default is OPEN else "given by each config"
    spelled = f"{_spell_default(name.rpartition('.')[2], field)}=" if field.spelled_in else ""
    return f"{spelled}{field.default!r}"


def _rows(fields: Mapping[str, Any]) -> Iterator[tuple[str, str, str, str, str]]:
    """Lists (name, default, unit, accepted values, meaning)."""
    for name, field in list_fields(fields).items():
        given = " / ".join(field.names(name)) if field.spelled_in else name
        yield given, _default(name, field), field.unit or "–", field.accepts, field.meaning


def describe_fields() -> str:
    """Returns the fields of all tasks, a line each, for the help of a command."""
    tables = {"all tasks": COMMON, **OF_TASK}
    return "\n\n".join(
        f"fields of {task}:\n" + "\n".join(f"  {name}: {meaning}; {accepts}" for name, *_, accepts, meaning in _rows(fields))
        for task, fields in tables.items()
    )


def render_fields_page() -> str:
    """Returns docs/fields.md."""
    text = [
        "# The fields of a config",
        "",
        "Generated from `attention_jax/config/fields.py` by `./launch.sh config --fields`. A config file gives what has no",
        "default and what makes it what it is; the rest comes from `defaults.classification()` or `defaults.translation()`.",
        "`./launch.sh config FILE` prints all fields of one config and marks what differs from these defaults.",
        "",
        "A config has layers, each over the one before: defaults, file, recipe pieces, a table's row, command line. Another",
        "network, gate, data source, optimizer or schedule in a later layer drops the fields of the one before it, and the log",
        "says which; `num_classes`, `vocab_size` and `dtype` of the network stay. A setting that nothing reads, because",
        "another field selects something that does not, is refused in the layer that sets it; one of an earlier layer rests,",
        "and the first lines of a run say so.",
    ]
    for task, own in OF_TASK.items():
        text += ["", f"## {task.capitalize()}", "", "| Field | Default | Unit | Accepts | Meaning |", "|---|---|---|---|---|"]
        for row in _rows(merge_fields(own)):
            cells = [cell.replace("|", "\\|") for cell in row]
            text.append(f"| `{cells[0]}` | {' | '.join(cells[1:])} |")
    return "\n".join(text) + "\n"


def name_batch_unit(config: ConfigDict) -> str:
    """Returns what `batch_size` counts: examples, or tokens a side of sentence pairs."""
    unit = get_fields(config)["batch_size"].unit
    return f"{unit} a side" if unit == "tokens" else unit
