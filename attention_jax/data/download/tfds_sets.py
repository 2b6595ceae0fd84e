"""Prepares sets of TensorFlow Datasets as ArrayRecord, which training reads without TensorFlow; text_sets.py has others."""

import shutil
from pathlib import Path
from typing import Any

from attention_jax.data.download import text_sets
from attention_jax.errors import UserError, one_sentence, require_package

# Files that registered people download by hand, and their site. TFDS requests them too, but only after it has imported
# TensorFlow,
# and it accepts half of ImageNet.
_SITE = "https://image-net.org/challenges/LSVRC/2012/2012-downloads.php"
BY_HAND = {"imagenet2012": (("ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"), _SITE)}


def prepare_dataset(name: str, data_dir: str, manual_dir: str | None = None) -> Path:
    """Prepares a data set in `data_dir` and returns the folder that holds it.

    Args:
        name: as TFDS spells it, e.g. "cifar10", "cifar10:3.0.2", "imagenet_resized/64x64", or one of `text_sets.SETS`.
        data_dir: the config's `data.args.data_dir`; downloads go to its folder "downloads".
        manual_dir: folder with files fetched by hand, by default downloads/manual in `data_dir`. A file that TFDS would
            download is read from here if it has its name; TFDS's checksums hold for both.

    Raises UserError if TensorFlow or a file is missing, the set exists, the disk is too small or a checksum is wrong.
    """
    root = Path(data_dir).expanduser().absolute()
    manual = Path(manual_dir).expanduser().absolute() if manual_dir else root / "downloads" / "manual"
    if manual_dir and not manual.is_dir():
        raise UserError(f"--manual_dir={manual_dir}: there is no such folder.")
    if name in text_sets.SETS:
        return text_sets.prepare_text_set(name, root, manual)
    files, site = BY_HAND.get(name.split(":")[0], ((), ""))
    missing = [file for file in files if not (manual / file).is_file()]
    if missing:
        raise UserError(
            f"{name} must be fetched by hand: put {' and '.join(missing)} from {site} into {manual}, "
            "or give their folder as --manual_dir=DIR."
        )
    require_package("tensorflow", "prepare", f"preparing {name}")
    return _prepare(name, root, manual)


def describe_usage(name: str, data_dir: str) -> str:
    """Returns the options of a config that reads a prepared set."""
    if name in text_sets.SETS:
        return text_sets.SETS[name].source.replace("DIR", data_dir)
    return f"--config.data.source=tfds --config.data.args.data_dir={data_dir}"


def _prepare(name: str, root: Path, manual: Path) -> Path:
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder(name, data_dir=str(root), file_format="array_record")
    except tfds.core.DatasetNotFoundError as error:
        raise UserError(f"TensorFlow Datasets has no {name!r} ({one_sentence(error)}).") from error
    except (ValueError, RuntimeError, AssertionError) as error:
        raise UserError(f"{name!r} is no data set that can be prepared ({one_sentence(error)}).") from error
    folder = Path(builder.data_dir)
    if folder.exists():
        raise UserError(f"{folder} exists already: train with data.args.data_dir={root}, or remove it to prepare it again.")
    instructions = builder.MANUAL_DOWNLOAD_INSTRUCTIONS
    if instructions and not (manual.is_dir() and any(manual.iterdir())):
        text = " ".join(instructions.split()).rstrip(".")
        raise UserError(f"{name} must be fetched by hand, into {manual} or a folder given as --manual_dir=DIR: {text}.")
    _check_space(name, builder, root, manual)
    options = tfds.download.DownloadConfig(
        manual_dir=str(manual) if manual.is_dir() else None,
        force_checksums_validation=not instructions,  # there are no checksums for files fetched by hand
        try_download_gcs=False,  # the copy there is not ArrayRecord
    )
    try:
        builder.download_and_prepare(download_config=options)
    except MemoryError:
        raise
    except Exception as error:  # network, checksum, archive, disk: TFDS has no common class for them
        reason = one_sentence(error, 400).rstrip(":.")
        raise UserError(f"{name} could not be prepared in {root} ({reason}).") from error
    return folder


def _check_space(name: str, builder: Any, root: Path, manual: Path) -> None:
    """Raises UserError if the disk has less room than the set certainly needs; it may need more."""
    urls = builder.url_infos.values()
    download = sum(url.size for url in urls if not (manual / (url.filename or name)).is_file())
    # If TFDS does not know the size of a set, its records take at least as much as the files fetched by hand.
    by_hand = [manual / file for file in BY_HAND.get(builder.name, ((), ""))[0]]
    records = int(builder.info.dataset_size or 0) or sum(file.stat().st_size for file in by_hand)
    there = next(folder for folder in (root, *root.parents) if folder.exists())
    free = shutil.disk_usage(there).free
    if download + records > free:
        raise UserError(
            f"{name} takes at least {(download + records) / 1e9:.1f} GB and the disk of {root} has {free / 1e9:.1f} GB free: "
            "give a --data_dir on a larger one."
        )
