"""Other sets for the evaluation of an image network: folders of classes in common layouts, sets of TFDS, and real labels.

Layouts of a folder: one folder for each class (ImageNet-R; ImageNet-V2, whose folders are the classes' numbers), or folders of
such sets (ImageNet-C: corruption/severity/class).
"""

import json
import logging
import math
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from attention_jax.data.images.sources import EXTENSIONS, Source, open_folder, open_tfds
from attention_jax.data.loader import Loader
from attention_jax.data.splits import Subset
from attention_jax.distributed.mesh import BatchShare
from attention_jax.errors import UserError, suggest_name
from attention_jax.tasks import classification

logger = logging.getLogger(__name__)
_DEEPEST = 4  # folders between a set's root and those of its classes


def list_other_sets(place: str) -> list[str]:
    """Returns the sets of `--on=PLACE`: the folders with classes that are at PLACE or below it, or a name `tfds:…` itself.

    Raises UserError if no folder has classes, with one folder of images for each.
    """
    if place.startswith("tfds:"):
        return [place]
    root = Path(place).expanduser()
    if not root.is_dir():
        raise UserError(
            f"--on={place}: there is no such folder; give one, tfds:NAME:SPLIT, or a file of real labels, NAME.json."
        )
    found, level = [], [root]
    for _ in range(_DEEPEST):
        below = []
        for folder in level:
            folders = _list_folders(folder)
            if any(_has_images(each) for each in folders[:5]):
                found.append(str(folder))
            else:
                below += folders
        level = below
    if not found:
        raise UserError(f"--on={place}: no folder below it has a folder of images ({', '.join(EXTENSIONS)}) for each class.")
    return found


def _list_folders(folder: Path) -> list[Path]:
    return sorted(Path(entry.path) for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith("."))


def _has_images(folder: Path) -> bool:
    return any(entry.name.lower().endswith(EXTENSIONS) for entry in os.scandir(folder))


def match_class_names(names: Sequence[str], known: Sequence[str]) -> list[int]:
    """Returns the network's number of each class of a set, -1 for one that it does not know.

    Names may differ in case, spaces and "_"; a name that two of the network's classes have is not known. Names that are all
    numbers, where the network's are not, number its classes in the order of their names, as ImageNet-V2 does it with WordNet
    ids.
    """
    if all(name.isdecimal() for name in names) and not all(name.isdecimal() for name in known):
        order = _order_classes(known)
        return [order[int(name)] if int(name) < len(order) else -1 for name in names]
    numbers = {_plain(name): i for i, name in enumerate(known)}
    twice = [name for name, count in Counter(map(_plain, known)).items() if count > 1]  # ImageNet has two cranes
    numbers |= dict.fromkeys(twice, -1)
    return [numbers.get(_plain(name), -1) for name in names]


def _order_classes(known: Sequence[str]) -> list[int]:
    """Returns the network's classes in the order of ImageNet's numbers: sorts WordNet ids, and keeps other names' order."""
    is_sorted = all(re.fullmatch(r"n\d{8}", name) for name in known)
    return sorted(range(len(known)), key=known.__getitem__) if is_sorted else list(range(len(known)))


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]+", " ", name).strip().lower()


def open_other_set(
    config: ConfigDict, assets: Mapping[str, bytes], place: str, process: BatchShare
) -> tuple[Loader, dict[str, int]]:
    """Opens a set of `list_other_sets` for a network, with its classes matched by name.

    Returns its loader and the numbers of examples and classes that are evaluated and of those that are left out, because the
    network does not know their class. Batches have "allowed" [B, K], True for the classes that the set has.
    Raises UserError if no class is known.
    """
    known = json.loads(assets["labels.json"])
    source: Any = _open(config, place)
    names = [str(name) for name in getattr(source, "label_names", ())] or [str(i) for i in range(source.num_classes)]
    numbers = np.array(match_class_names(names, known))
    labels = _read_labels(source)
    present = np.unique(labels)
    unknown = [names[i] for i in present if numbers[i] < 0]
    if len(unknown) == len(present):
        raise UserError(
            f"--on={place}: the network knows none of its {len(present)} classes, such as {unknown[0]!r}"
            f"{suggest_name(unknown[0], known)}; it knows {', '.join(map(repr, known[:3]))}, …: rename the folders."
        )
    kept = np.flatnonzero(numbers[labels] >= 0)
    if unknown:
        first = ", ".join(unknown[:10]) + ", …" * (len(unknown) > 10)
        text = "--on=%s: %d of %d classes are not the network's, and their %d of %d examples are left out: %s."
        logger.warning(text, place, len(unknown), len(present), len(labels) - len(kept), len(labels), first)
    allowed = np.zeros(len(known), bool)
    allowed[numbers[present][numbers[present] >= 0]] = True
    transform = classification.make_evaluation_transform(config)
    loader = Loader(
        source=source if len(kept) == len(labels) else Subset(source, kept),
        batch_size=config.evaluation.batch_size,
        seed=config.seed,
        transform=lambda example, rng: {
            "image": transform(example["image"]),
            "label": np.int32(numbers[int(example["label"])]),
            "allowed": allowed,
        },
        collate=lambda batch: {**batch, "image": classification.preprocess(config, batch["image"])},
        threads=config.data.threads,
        process=process,
        on_broken=config.data.on_broken,
    )
    counts = {"examples": len(kept), "classes": int(allowed.sum())}
    return loader, counts | {"left_out_examples": len(labels) - len(kept), "left_out_classes": len(unknown)}


def _open(config: ConfigDict, place: str) -> Source:
    if place.startswith("tfds:"):
        _, name, *split = place.split(":")
        folder = config.data.args.get("data_dir") if config.data.source == "tfds" else None
        return open_tfds(split[0] if split else "test", name, folder)
    folder, name = os.path.split(os.path.abspath(os.path.expanduser(place)))
    return open_folder(name, folder)


def _read_labels(source: Any) -> np.ndarray:
    if hasattr(source, "labels"):
        return np.asarray(source.labels)
    return np.array([int(source[i]["label"]) for i in range(len(source))])


def score_real_labels(
    path: str, assets: Mapping[str, bytes], outputs: Mapping[str, np.ndarray], length: int
) -> dict[str, float | int]:
    """Scores an evaluation by a file of real labels: for each example of the split, a list of all classes that are right.

    That is `real.json` of Beyer et al. 2020 (arXiv 2006.07159): a list of lists of ImageNet's class numbers, in the order of
    the numbers at the end of the files' names, from 1. Examples with no right class are left out.

    Raises UserError for a file that is something else, or of another number of examples than `length`, and for data without
    such names, whose order nobody knows.
    """
    try:
        right = json.loads(Path(path).expanduser().read_text(encoding="utf-8"))
        right = [[int(number) for number in each] for each in right]
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"--on={path}: this is no list of a list of class numbers for each example ({error}).") from error
    if len(right) != length:
        raise UserError(f"--on={path} has {len(right)} lists of classes, and the evaluation split {length} examples.")
    known = json.loads(assets["labels.json"])
    order = _order_classes(known)
    if (most := max((number for each in right for number in each), default=-1)) >= len(order):
        raise UserError(f"--on={path} has the class {most}, and the network only classes from 0 to {len(order) - 1}.")
    numbers = [re.search(r"(\d+)\.[^.]*$", os.fsdecode(name)) for name in outputs.get("name", ())]
    places = [int(match[1]) - 1 for match in numbers if match]
    if len(places) != len(outputs["index"]) or len({*places}) < len(places) or not {*places} <= {*range(length)}:
        raise UserError(
            f"--on={path} has its lists in the order of the images' numbers: the files' names must end in a number from 1 to "
            f"{length}, as ILSVRC2012_val_00000001.JPEG does, and these do not."
        )
    first = outputs["top_classes"][:, 0].tolist()
    pairs = [({order[number] for number in right[place]}, choice) for place, choice in zip(places, first, strict=True)]
    scored = [choice in classes for classes, choice in pairs if classes]
    return {
        "accuracy": float(np.mean(scored)) if scored else math.nan,
        "examples": len(scored),
        "left_out_examples": len(first) - len(scored),
    }
