"""Data sets that are files of one's own: folders of images, and `.npz` archives."""

import hashlib
import io
import os
from pathlib import Path
from typing import Any

import numpy as np

from attention_jax import far
from attention_jax.data.arrays import ArraySource
from attention_jax.data.decode import BrokenImage
from attention_jax.errors import UserError, suggestion

EXTENSIONS = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")
HELD_OUT = ("train", "test")  # splits of a folder that has none of its own


class FolderSource:
    """Image files, read when they are asked for.

    Args:
        root: the folder that `files` are relative to.
        files: paths.
        labels: integers [N] from 0.
        label_names: a name for each class.
    """

    channels = 3  # grey files among coloured ones are the rule

    def __init__(self, root: Path, files: list[str], labels: list[int], label_names: list[str]):
        self._root, self._files, self._labels = root, files, np.asarray(labels, np.int32)
        self.label_names = tuple(label_names)
        self.num_classes = len(label_names)

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"image": self._read(index), "label": self._labels[index]}

    def name(self, index: int) -> str:
        """The path of one example."""
        return str(self._root / self._files[index])

    def _read(self, index: int) -> bytes:
        try:
            return (self._root / self._files[index]).read_bytes()
        except OSError as error:
            raise BrokenImage(error.strerror or type(error).__name__) from error


def folder(split: str, path: str, holdout: float = 0.0) -> FolderSource:
    """One folder a class, images in it at any depth, in `path/split`; classes are numbered in the order of their names.

    The numbers are those of `path/train` where that exists, so that they mean the same in every split. Hidden files and
    files of other kinds are passed over.

    Args:
        split: a folder in `path`; with `holdout`, "train" or "test".
        path: of the data set.
        holdout: where `path` has no folders for splits: the share of its images that makes up "test". A hash of its
            name decides for each image, so that it stays where it is when others are added.
    """
    if not 0 <= holdout < 1:
        raise UserError(f"data.args.holdout={holdout}: give a share from 0 up to, but not including, 1.")
    if far.is_far(path):
        raise UserError(
            f"data.args.path={path}: a folder of images must be on a mounted file system; at an address give an .npz archive "
            "or a set of TensorFlow Datasets."
        )
    root = Path(path).expanduser().absolute()
    if not root.is_dir():
        raise UserError(f"data.args.path={path}: there is no such folder.")
    if holdout and split not in HELD_OUT:
        raise UserError(f"data split {split!r}: with data.args.holdout the splits are 'train' and 'test'.")
    here = root if holdout else root / split
    if not here.is_dir():
        folders = _folders(root)
        raise UserError(
            f"data split {split!r}: {root} has no folder of that name{suggestion(split, folders)}; give one of "
            f"{', '.join(folders[:5]) or 'its sub-folders'}, or data.args.holdout where the classes are in {root} itself."
        )
    names = _folders(here)
    known = _folders(root / "train") if not holdout and (root / "train").is_dir() else names
    if not names:
        raise UserError(f"data.source=folder: {here} has no folders: put the images of each class into a folder of its own.")
    strangers = sorted(set(names) - set(known))
    if strangers:
        raise UserError(f"data.source=folder: class {strangers[0]!r} of {here} is not in {root / 'train'}, which names them.")
    files, labels = [], []
    for name in names:
        found = _images(here / name)
        if not found:
            raise UserError(f"data.source=folder: class {here / name} has no image file ({', '.join(EXTENSIONS)}).")
        found = [f"{name}/{file}" for file in found]
        kept = [file for file in found if not holdout or _is_held_out(file, holdout) == (split == "test")]
        files += kept
        labels += [known.index(name)] * len(kept)
    return FolderSource(here, files, labels, known)


def _folders(path: Path) -> list[str]:
    return sorted(entry.name for entry in os.scandir(path) if entry.is_dir() and not entry.name.startswith("."))


def _images(path: Path) -> list[str]:
    """Paths of the image files at any depth, relative to `path` and sorted."""
    found = []
    for where, folders, files in os.walk(path, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        inside = os.path.relpath(where, path)
        for name in files:
            if name.lower().endswith(EXTENSIONS) and not name.startswith("."):
                found.append(name if inside == "." else f"{inside}/{name}")
    return sorted(found)


def _is_held_out(file: str, share: float) -> bool:
    return int.from_bytes(hashlib.sha256(file.encode()).digest()[:8], "big") < share * 2**64


def npz(split: str, path: str, images: str = "x_{split}", labels: str = "y_{split}") -> ArraySource:
    """Arrays of an `.npz` archive: images uint8 [N, H, W, C] or [N, H, W], labels integers [N] or [N, 1].

    Args:
        split: stands in for `{split}` in the names.
        path: of the archive, or its address (gs://…).
        images, labels: names of the arrays; by default x_train, y_train, x_test, … as Keras has them.
    """
    file = io.BytesIO(far.read(path, f"data.args.path={path}")) if far.is_far(path) else Path(path).expanduser()
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
                raise UserError(
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
    return ArraySource(pixels, classes)
