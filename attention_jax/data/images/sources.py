"""Sources of images: random access to examples by index.

A source has `len(source)`, `source[i] -> {"image": uint8 [H, W, C] or encoded bytes, "label": int}` and `num_classes`.
Optional: `label_names`, `name(i)` (for messages), `fingerprint()`, a text that changes when the examples do
(`data/fingerprint.py`), `readers`, threads that should read at once (default 1), and `channels` of encoded images (default 3).
A data set of your own is a function `make(split, **args)` that returns one, named `path/to/file.py:make`.
"""

import functools
import hashlib
import inspect
import io
import logging
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from attention_jax import storage
from attention_jax.config.plugins import load_object
from attention_jax.data import embedded
from attention_jax.data.array_records import READERS, StagedRecords
from attention_jax.data.images.cued import ClutteredDigits, CuedDigits
from attention_jax.data.images.decoding import BrokenImage, raise_broken_image
from attention_jax.data.prepared import find_image_and_label, open_builder, open_staged, stage_records
from attention_jax.data.staging import open_staged_folder
from attention_jax.errors import NoSplit, UserError, one_sentence, suggest_name

_report_once = functools.cache(logging.getLogger(__name__).info)  # a run opens its data several times
_warn_once = functools.cache(logging.getLogger(__name__).warning)


class Source(Protocol):
    """Gives random access to examples."""

    num_classes: int

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, Any]: ...


EXTENSIONS = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")


class ArraySource:
    """Images uint8 [N, H, W, C] and labels [N] from 0 in memory; `num_classes` is the largest label + 1 if not given."""

    def __init__(self, images: np.ndarray, labels: np.ndarray, num_classes: int | None = None, label_names: Sequence[str] = ()):
        if images.dtype != np.uint8 or images.ndim != 4:
            raise UserError(f"ArraySource: images are {images.dtype} {images.shape}; give uint8 of shape [N, H, W, C].")
        if len(images) != len(labels):
            raise UserError(f"ArraySource: {len(images)} images but {len(labels)} labels; give one label an image.")
        self.images, self.labels = images, np.asarray(labels, np.int32)
        self.num_classes = num_classes or (int(self.labels.max()) + 1 if len(labels) else 0)
        wrong = np.flatnonzero((self.labels < 0) | (self.labels >= self.num_classes))
        if len(wrong):
            raise UserError(
                f"ArraySource: label {self.labels[wrong[0]]} of example {wrong[0]} ({len(wrong)} such) is not from 0 to "
                f"{self.num_classes - 1}: leave such examples out, or number the classes from 0."
            )
        self.label_names = tuple(label_names)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"image": self.images[index], "label": self.labels[index]}


class _Digits(ArraySource):
    def fingerprint(self) -> str:
        return embedded.DIGITS_VERSION


def open_digits(split: str, channels: int = 1) -> ArraySource:
    """Returns the UCI digits (1,797 images of 8x8 pixels, 10 classes) of split "train" or "test".

    Three equal `channels` serve code that needs colour images, such as RandAugment's operation on colour.
    """
    images, labels = embedded.read_digits(split)
    return _Digits(images.repeat(channels, -1), labels, num_classes=10, label_names=[str(i) for i in range(10)])


class FolderSource:
    """Reads image `files` of a tree when they are indexed; each has a label, an index into `label_names`."""

    channels = 3  # grey files among coloured ones are common

    def __init__(self, tree: "_LocalTree | _RemoteTree", files: list[str], labels: list[int], label_names: list[str]):
        self._tree, self._files, self.labels = tree, files, np.asarray(labels, np.int32)
        self.label_names, self.num_classes = tuple(label_names), len(label_names)
        self.readers = READERS if isinstance(tree, _RemoteTree) else 1

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"image": self._tree.read(self._files[index]), "label": self.labels[index]}

    def name(self, index: int) -> str:
        """Returns the path of one example."""
        return f"{self._tree.root}/{self._files[index]}"


def open_folder(split: str, path: str, holdout: float = 0.0, cache_dir: str | None = None) -> FolderSource:
    """Opens a folder with one folder a class, and images at any depth in it; classes are numbered in the order of their names.

    The numbers are those of `path/train` if it exists, so that they mean the same in every split. Hidden files are left
    out, and files of other kinds too, with a message that counts them.

    Args:
        split: a folder in `path`; with `holdout`, "train" or "test".
        path: folder of the data set, or its URI (gs://…), which is listed completely at first.
        holdout: share of the images that makes up "test", if `path` has no folders for splits. A hash of its
            name decides for each image, so it stays in its split when others are added.
        cache_dir: keeps each file of a remote folder when it has been read once.
    """
    if not 0 <= holdout < 1:
        raise UserError(f"data.args.holdout={holdout}: give a share from 0 up to, but not including, 1.")
    if holdout and split not in ("train", "test"):
        raise NoSplit(f"data split {split!r}: with data.args.holdout the splits are 'train' and 'test'.")
    tree = _RemoteTree(path, cache_dir) if storage.is_remote(path) else _LocalTree(path)
    folders = tree.folders("")
    if folders is None:
        raise UserError(f"data.args.path={path}: there is no such folder.")
    inside = "" if holdout else f"{split}/"
    here = f"{tree.root}/{inside}".rstrip("/")
    names = folders if holdout else tree.folders(split)
    if names is None:
        raise NoSplit(
            f"data split {split!r}: {tree.root} has no folder of that name{suggest_name(split, folders)}; give one of "
            f"{', '.join(folders[:5]) or 'its sub-folders'}, or data.args.holdout where the classes are in {tree.root} itself."
        )
    if not names:
        raise UserError(f"data.source=folder: {here} has no folders: put the images of each class into a folder of its own.")
    of_train = None if holdout else tree.folders("train")
    known = names if of_train is None else of_train
    if unknown := sorted(set(names) - set(known)):
        raise UserError(f"data.source=folder: class {unknown[0]!r} of {here} is not in {tree.root}/train, which names them.")
    files, labels, others = [], [], Counter[str]()
    for name in names:
        found = []
        for file in tree.files(f"{inside}{name}"):
            ending = os.path.splitext(file)[1].lower()
            if ending in EXTENSIONS:
                found.append(f"{name}/{file}")
            else:
                others[ending or "without an ending"] += 1
        if not found:
            raise UserError(f"data.source=folder: class {here}/{name} has no image file ({', '.join(EXTENSIONS)}).")
        kept = [file for file in found if not holdout or _is_held_out(file, holdout) == (split == "test")]
        files += [f"{inside}{file}" for file in kept]
        labels += [known.index(name)] * len(kept)
    if others:
        kinds = ", ".join(f"{count} {kind}" for kind, count in others.most_common(8))
        _report_once(f"data.source=folder: files in {here} that are none of {', '.join(EXTENSIONS)} are passed over: {kinds}.")
    return FolderSource(tree, files, labels, known)


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name in ("__MACOSX", "@eaDir")  # made by macOS's archives and Synology's indexer


def _leads_up(folder: str, here: str) -> bool:
    """True if a folder is a link to `here`, or to one that holds it."""
    return f"{os.path.realpath(here)}/".startswith(f"{os.path.realpath(folder)}/")


class _LocalTree:
    """The folders and files beneath a folder on this disk, without the hidden ones."""

    def __init__(self, path: str):
        self.root = str(Path(path).expanduser().absolute())

    def folders(self, inside: str) -> list[str] | None:
        """Returns the names of the folders directly in the folder `inside`, or None if there is no such folder."""
        here = os.path.join(self.root, inside)
        if not os.path.isdir(here):
            return None
        entries = (entry for entry in os.scandir(here) if entry.is_dir() and not _is_hidden(entry.name))
        return sorted(entry.name for entry in entries if not (entry.is_symlink() and _leads_up(entry.path, here)))

    def files(self, inside: str) -> list[str]:
        """Returns the files at any depth, relative to the folder `inside` and sorted; of a folder linked into itself once."""
        found, seen, top = [], set[str](), os.path.join(self.root, inside)
        for folder, folders, files in os.walk(top, followlinks=True):
            real = os.path.realpath(folder)
            if real in seen or (folder != top and _leads_up(folder, top)):
                _report_once(f"data.source=folder: {folder} leads to {real}, which is read already: it is passed over.")
                folders.clear()
                continue
            seen.add(real)
            folders[:] = sorted(name for name in folders if not _is_hidden(name))
            below = os.path.relpath(folder, top)
            found += [name if below == "." else f"{below}/{name}" for name in files if not _is_hidden(name)]
        return sorted(found)

    def read(self, file: str) -> bytes:
        """Returns the content of a file. Raises BrokenImage."""
        try:
            return Path(self.root, file).read_bytes()
        except OSError as error:
            raise BrokenImage(error.strerror or type(error).__name__) from error


class _RemoteTree:
    """The same at a URI, where the names of files give the folders: stores have no empty ones."""

    def __init__(self, uri: str, cache_dir: str | None):
        if cache_dir:
            staged = open_staged_folder(uri, cache_dir)
            staged.check_room(name for name in staged.files if not staged.path(name).exists())
            self.root, names, self._read = staged.uri, list(staged.files), staged.read_small
        else:
            folder = storage.RemoteFolder(uri)
            self.root, names, self._read = folder.uri, folder.find(), folder.read
        self._files = [name for name in names if not any(map(_is_hidden, name.split("/")))]

    def folders(self, inside: str) -> list[str] | None:
        start = f"{inside}/" if inside else ""
        names = {name[len(start) :].partition("/")[:2] for name in self._files if name.startswith(start)}
        return sorted(name for name, slash in names if slash) if names else None

    def files(self, inside: str) -> list[str]:
        start = f"{inside}/"
        return sorted(name[len(start) :] for name in self._files if name.startswith(start))

    def read(self, file: str) -> bytes:
        content = self._read(file)
        if content is None:
            raise BrokenImage("there is no such file any more")
        return content


def _is_held_out(file: str, share: float) -> bool:
    return int.from_bytes(hashlib.sha256(file.encode()).digest()[:8], "big") < share * 2**64


def open_npz(split: str, path: str, images: str = "x_{split}", labels: str = "y_{split}") -> ArraySource:
    """Opens an `.npz` archive of images uint8 [N, H, W, C] or [N, H, W] and labels, integers [N] or [N, 1].

    Args:
        split: replaces `{split}` in the names.
        path: path of the archive, or its URI (gs://…).
        images, labels: names of the arrays; by default x_train, y_train, x_test, … as in Keras.
    """
    remote = storage.is_remote(path)
    file = io.BytesIO(storage.read_remote_file(path, f"data.args.path={path}")) if remote else Path(path).expanduser()
    try:
        archive = np.load(file, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise UserError(f"data.args.path={path}: this cannot be read as an .npz archive ({error}).") from error
    if not isinstance(archive, np.lib.npyio.NpzFile):
        raise UserError(f"data.args.path={path}: this is a single array; give an .npz archive of images and labels.")
    with archive:
        arrays = []
        for argument, pattern in (("images", images), ("labels", labels)):
            name = pattern.replace("{split}", split)
            if name not in archive.files:
                raise NoSplit(
                    f"data.args.{argument}={pattern}: {path} has no array {name!r} for split {split!r}; "
                    f"it has {', '.join(archive.files) or 'none'}."
                )
            try:
                arrays.append(archive[name])
            except ValueError as error:
                raise UserError(f"{path}: array {name!r} cannot be read ({error}).") from error
    pixels, classes = arrays
    pixels = pixels[..., None] if pixels.ndim == 3 else pixels
    classes = classes[:, 0] if classes.ndim == 2 and classes.shape[1] == 1 else classes
    if classes.ndim != 1 or classes.dtype.kind not in "iu":
        raise UserError(f"data.args.labels={labels}: {path} has {classes.dtype} {classes.shape}; give integers of shape [N].")
    try:
        return ArraySource(pixels, classes)
    except UserError as error:
        raise UserError(f"{path}: split {split!r}: {error}") from error


def open_tfds(split: str, name: str, data_dir: str | None = None, cache_dir: str | None = None) -> Source:
    """Opens a classification set of TensorFlow Datasets that was prepared as ArrayRecord, without TensorFlow.

    Args:
        split: as TFDS spells it, e.g. "train[:45000]".
        name: name of the data set, e.g. "cifar10".
        data_dir: the folder that holds it; a URI `gs://…` needs the extra `gcs`.
        cache_dir: folder in which a remote set is staged; with it, data_dir is any URI that fsspec reads.
    """
    import tensorflow_datasets

    try:
        folder = open_staged(name, data_dir, cache_dir)
        builder = open_builder(name, str(folder.root.parent) if folder else data_dir)
        image, label = find_image_and_label(name, builder.info)
        # The crop decodes, at the scale that it needs.
        records = builder.as_data_source(split=split, decoders={image: tensorflow_datasets.decode.SkipDecoding()})
        if folder:
            stage_records(records, folder)
        try:
            _ = records[0]
        except ImportError:  # without TensorFlow, tfds.testing.mock_data has decoded images alone
            records = builder.as_data_source(split=split)
        except RuntimeError as error:
            if isinstance(error, NotImplementedError):
                raise
            # array_record found the record damaged; the loader leaves it out
        return _TfdsSource(records, builder.info.features, image, label, data_dir if storage.is_remote(data_dir) else None)
    except (KeyError, ImportError, ValueError, OSError, AssertionError, NotImplementedError) as error:
        raise UserError(
            f"data.source=tfds: {name!r} split {split!r} cannot be read from {data_dir or '~/tensorflow_datasets'} "
            f"({one_sentence(error)}): prepare it there with python -m attention_jax prepare {name}, or point "
            "data.args.data_dir to the folder that has it."
        ) from error


class _TfdsSource:
    """`uri` is the remote folder that has the records; None for files on this disk."""

    def __init__(self, records: Any, features: Mapping[str, Any], image: str, label: str, uri: str | None):
        self._records, self._image, self._label, self._uri = records, image, label, uri
        self.channels = 1 if features[image].shape[-1] == 1 else 3
        self.num_classes = features[label].num_classes
        self.label_names = tuple(features[label].names)

    def __len__(self) -> int:
        return len(self._records)

    @property
    def readers(self) -> int:
        staged = self._records.data_source
        return staged.readers if isinstance(staged, StagedRecords) else READERS if self._uri else 1

    def __getitem__(self, index: int) -> dict[str, Any]:
        try:
            record = self._read(index)
        except BrokenImage:
            if not self._uri or self.readers == 1:
                raise
            storage.RemoteFolder(self._uri)  # raises where the network failed: only a damaged record may be replaced
            record = self._read(index)
        return {"image": record[self._image], "label": np.int32(record[self._label])}

    def _read(self, index: int) -> Any:
        with raise_broken_image():
            return self._records[index]


SOURCES = {
    "cued_digits": CuedDigits,
    "cluttered_digits": ClutteredDigits,
    "digits": open_digits,
    "folder": open_folder,
    "npz": open_npz,
    "tfds": open_tfds,
}


def open_source(source: str, split: str, args: Mapping[str, Any], cache_dir: str | None = None) -> Source:
    """Opens one split of the source that `data.source` names. Raises UserError if it cannot be read or is empty.

    Args:
        cache_dir: given to a source that has an argument of this name; None takes that of AJ_CACHE_DIR, for all commands.
    """
    make = load_object(source, SOURCES, "data source")
    if wanted := cache_dir or os.environ.get("AJ_CACHE_DIR"):
        if takes := "cache_dir" in inspect.signature(make).parameters:
            args = {"cache_dir": wanted, **args}
        if cache_dir and not (takes and any(map(storage.is_remote, args.values()))):
            why = "the data are not remote" if takes else f"data.source={source} has no argument cache_dir"
            _report_once(f"data.cache_dir={cache_dir} is read by nothing: {why}.")
    elif "cache_dir" in inspect.signature(make).parameters and (uri := next(filter(storage.is_remote, args.values()), "")):
        _warn_once(f"data: each epoch reads {uri} over the network, one request a record: data.cache_dir keeps a copy here.")
    try:
        opened = make(split, **args)
        is_empty = len(opened) == 0
        first: Any = b"" if is_empty else opened[0]["image"]
    except UserError:
        raise
    except BrokenImage:
        return opened  # the loader skips it or stops
    except Exception as error:
        raise UserError(f"data.source={source}: split {split!r} cannot be read ({type(error).__name__}: {error}).") from error
    if is_empty:
        raise UserError(f"data.source={source}: split {split!r} is empty.")
    kind = getattr(first, "dtype", type(first))
    if kind is not bytes and (kind != np.uint8 or first.ndim != 3):
        raise UserError(f"data.source={source}: image 0 is {kind}; give uint8 [H, W, C] or encoded bytes.")
    return opened
