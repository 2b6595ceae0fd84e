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
        tree: where `files` are.
        files: their names in it.
        labels: integers [N] from 0.
        label_names: a name for each class.
    """

    channels = 3  # grey files among coloured ones are the rule

    def __init__(self, tree: "Tree | FarTree", files: list[str], labels: list[int], label_names: list[str]):
        self._tree, self._files, self._labels = tree, files, np.asarray(labels, np.int32)
        self.label_names = tuple(label_names)
        self.num_classes = len(label_names)

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"image": self._tree.read(self._files[index]), "label": self._labels[index]}

    def name(self, index: int) -> str:
        """The path of one example."""
        return f"{self._tree.root}/{self._files[index]}"


def folder(split: str, path: str, holdout: float = 0.0) -> FolderSource:
    """One folder a class, images in it at any depth, in `path/split`; classes are numbered in the order of their names.

    The numbers are those of `path/train` where that exists, so that they mean the same in every split. Hidden files and
    files of other kinds are passed over.

    Args:
        split: a folder in `path`; with `holdout`, "train" or "test".
        path: of the data set, or its address (gs://…), all names beneath which are read at first.
        holdout: where `path` has no folders for splits: the share of its images that makes up "test". A hash of its
            name decides for each image, so that it stays where it is when others are added.
    """
    if not 0 <= holdout < 1:
        raise UserError(f"data.args.holdout={holdout}: give a share from 0 up to, but not including, 1.")
    tree = (FarTree if far.is_far(path) else Tree)(path)
    folders = tree.folders("")
    if folders is None:
        raise UserError(f"data.args.path={path}: there is no such folder.")
    if holdout and split not in HELD_OUT:
        raise UserError(f"data split {split!r}: with data.args.holdout the splits are 'train' and 'test'.")
    inside = "" if holdout else f"{split}/"
    here = f"{tree.root}/{inside}".rstrip("/")
    names = folders if holdout else tree.folders(split)
    if names is None:
        raise UserError(
            f"data split {split!r}: {tree.root} has no folder of that name{suggestion(split, folders)}; give one of "
            f"{', '.join(folders[:5]) or 'its sub-folders'}, or data.args.holdout where the classes are in {tree.root} itself."
        )
    known = tree.folders("train") if not holdout and "train" in folders else names
    if not names:
        raise UserError(f"data.source=folder: {here} has no folders: put the images of each class into a folder of its own.")
    strangers = sorted(set(names) - set(known))
    if strangers:
        raise UserError(f"data.source=folder: class {strangers[0]!r} of {here} is not in {tree.root}/train, which names them.")
    files, labels = [], []
    for name in names:
        found = tree.images(f"{inside}{name}")
        if not found:
            raise UserError(f"data.source=folder: class {here}/{name} has no image file ({', '.join(EXTENSIONS)}).")
        found = [f"{name}/{file}" for file in found]
        kept = [file for file in found if not holdout or _is_held_out(file, holdout) == (split == "test")]
        files += [f"{inside}{file}" for file in kept]
        labels += [known.index(name)] * len(kept)
    return FolderSource(tree, files, labels, known)


class Tree:
    """Folders and image files beneath a folder; hidden ones are passed over."""

    def __init__(self, path: str):
        self.root = str(Path(path).expanduser().absolute())

    def folders(self, inside: str) -> list[str] | None:
        """Names of the folders directly in the folder `inside`; None when it is none."""
        here = os.path.join(self.root, inside)
        if not os.path.isdir(here):
            return None
        return sorted(entry.name for entry in os.scandir(here) if entry.is_dir() and not entry.name.startswith("."))

    def images(self, inside: str) -> list[str]:
        """Image files at any depth, relative to the folder `inside` and sorted."""
        found = []
        for where, folders, files in os.walk(os.path.join(self.root, inside), followlinks=True):
            folders[:] = [name for name in folders if not name.startswith(".")]
            below = os.path.relpath(where, os.path.join(self.root, inside))
            found += [name if below == "." else f"{below}/{name}" for name in files if _is_image(name)]
        return sorted(found)

    def read(self, file: str) -> bytes:
        """Content of a file; raises BrokenImage."""
        try:
            return Path(self.root, file).read_bytes()
        except OSError as error:
            raise BrokenImage(error.strerror or type(error).__name__) from error


class FarTree:
    """The same at an address: folders are what the names of files say, and stores have no empty ones."""

    def __init__(self, address: str):
        self._folder = far.Folder(address)
        self.root = self._folder.address
        self._files = [name for name in self._folder.find() if not any(part.startswith(".") for part in name.split("/"))]

    def folders(self, inside: str) -> list[str] | None:
        start = f"{inside}/" if inside else ""
        names = {name[len(start) :].partition("/")[:2] for name in self._files if name.startswith(start)}
        return sorted(name for name, slash in names if slash) if names else None

    def images(self, inside: str) -> list[str]:
        start = f"{inside}/"
        return sorted(name[len(start) :] for name in self._files if name.startswith(start) and _is_image(name))

    def read(self, file: str) -> bytes:
        content = self._folder.read(file)
        if content is None:
            raise BrokenImage("there is no such file any more")
        return content


def _is_image(name: str) -> bool:
    file = name.rpartition("/")[2]
    return file.lower().endswith(EXTENSIONS) and not file.startswith(".")


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
