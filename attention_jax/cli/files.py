"""Loads everything that a config names, and lists the files behind it for a launcher, whose jobs must find the same ones."""

import sys
import sysconfig
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from attention_jax.config.config import flatten_config
from attention_jax.config.fields import OPTIMIZERS, SCHEDULES
from attention_jax.config.plugins import load_object
from attention_jax.data.images import sources
from attention_jax.data.splits import NAMES, VALIDATION
from attention_jax.data.text import pairs
from attention_jax.data.text.vocabularies import list_vocabulary_files
from attention_jax.models.gate import GATES
from attention_jax.models.registry import check_model
from attention_jax.storage import is_remote
from attention_jax.tasks import TASKS, get_task


def load_named(config: ConfigDict) -> None:
    """Loads what a config names: task, network, gate, data source, optimizer, schedule. Raises UserError for a mistake."""
    get_task(config.task)
    check_model(config.model.to_dict())
    known: dict[str, Mapping[str, Any]] = {
        "model.gate": GATES,
        "data.source": (sources if config.task == "classification" else pairs).SOURCES,
        "optimizer.name": dict.fromkeys(OPTIMIZERS),
        "schedule.name": dict.fromkeys(SCHEDULES),
    }
    flat = flatten_config(config)
    for field, builtin in known.items():
        if isinstance(flat.get(field), str) and (config.task in TASKS or field != "data.source"):
            load_object(flat[field], builtin, field)


def print_files(file: str, *configs: ConfigDict) -> None:
    """Prints "code<TAB>path" for each Python file of the user's, and "field<TAB>path or URI" for data.

    Args:
        file: the config file or table file.

    Raises UserError as `load_named` does.
    """
    named = dict.fromkeys([f"code\t{Path(file).resolve()}"] if file.endswith(".json") else [])
    for config in configs:
        load_named(config)
        # Arguments of the built-in sources that are files or folders, and those of a user's source with the same names.
        arguments = ("source", "target") if config.data.source == "files" else ("path", "data_dir")
        values = {f"data.args.{name}": config.data.args.get(name) for name in arguments}
        for name in ("tokenizer", "source_tokenizer"):
            if (its := config.data.get(name)) not in (None, "sentencepiece", "words"):
                values[f"data.{name}"] = list_vocabulary_files(its)
        train, judge = config.data.train_split, config.data.eval_split
        splits = (train, *(NAMES if judge == VALIDATION else [judge]))
        for field, value in values.items():
            places = (value,) if isinstance(value, str) else value or ()
            for place, split in ((place, split) for place in places for split in splits):
                if is_remote(place):
                    if split == train:
                        named[f"{field}\t{place.replace('{split}', split)}"] = None
                    continue
                path = Path(place.replace("{split}", split)).expanduser()
                if split == train or judge != VALIDATION or path.exists():
                    named[f"{field}\t{path}"] = None
    library = Path(sysconfig.get_path("stdlib")).resolve()
    for name, module in [*sys.modules.items()]:
        path = Path(getattr(module, "__file__", None) or "").resolve()
        installed = library in path.parents or {"site-packages", "dist-packages"} & {*path.parts}
        if path.suffix == ".py" and not installed and name.partition(".")[0] not in ("attention_jax", "__main__"):
            named[f"code\t{path}"] = None
    print(*named, sep="\n")
