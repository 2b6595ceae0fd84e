"""The classes of data, matched with those of a network."""

import logging
from typing import Any

from ml_collections import ConfigDict

from attention_jax.data.images.sources import ArraySource, FolderSource, Source
from attention_jax.errors import UserError, suggest_name

logger = logging.getLogger(__name__)


def match_classes(config: ConfigDict, split: str, data: Source, known: list[str]) -> list[int]:
    """Returns the network's number of each class of a split, by name if both sides have names; logs the unmatched."""
    where, names = (
        f"data.source={config.data.source}: split {split!r}",
        [str(name) for name in getattr(data, "label_names", ())],
    )
    unnamed = [str(i) for i in range(len(known))]  # the names of classes in training data without any
    nameless = len({*names}) < data.num_classes or len({*known}) < len(known) or (known == unnamed and not {*names} <= {*known})
    if nameless or not known:
        if data.num_classes > (number := config.model.num_classes):
            text = f"{where} has {data.num_classes} classes, more than the network's {number}"
            raise UserError(f"{text}: training never shows the class {number}.")
        if known and names != known and (names or data.num_classes < number):
            text = "%s has %d classes and the network %d, which have no names on both sides: they are matched by number."
            logger.info(text, where, data.num_classes, number)
        return list(range(data.num_classes))
    part: Any = data
    labels = part.labels if isinstance(getattr(data, "base", data), (ArraySource, FolderSource)) else range(data.num_classes)
    numbers, used = {name: i for i, name in enumerate(known)}, {names[i] for i in {*map(int, labels)}}
    if unknown := [f"{name!r}{suggest_name(name, known)}" for name in names if name in used and name not in numbers]:
        raise UserError(f"{where} has classes that the network does not know: {', '.join(unknown)}: rename or remove them.")
    if missing := [name for name in known if name not in used]:
        text = "%s is a subset: it has no example of %d of the network's %d classes: %s."
        logger.info(text, where, len(missing), len(known), ", ".join(missing[:10]) + ", …" * (len(missing) > 10))
    return [numbers.get(name, -1) for name in names]
