"""Images made of UCI digits, in which a network must look at the right place.

Each image is a pure function of the split, the index, the arguments and a version. Another version gives other images of the
same digits, so a budget chosen after a look at the test can be judged on images that nobody has seen. The splits use different
digits: two thirds of the training digits for "train", the last third for "validation", and the test digits for "test".
"""

import abc
import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from attention_jax.data.embedded import read_digits
from attention_jax.errors import NoSplit, UserError

_Number = int | Sequence[int] | None
SIDE = 8  # pixels of a digit
_SPLITS = ("train", "validation", "test")
_COLOURS = ((255, 40, 40), (40, 255, 40), (70, 70, 255), (255, 255, 0))  # red, green, blue, yellow
_ARROW = np.array([[0, 0, 1, 0, 0], [0, 1, 0, 0, 0], [1, 1, 1, 1, 1], [0, 1, 0, 0, 0], [0, 0, 1, 0, 0]], np.float32)


@functools.cache
def read_base_digits(split: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns float32 images [N, 8, 8] from 0 to 1, labels [N], and their numbers [N] among all digits of a split."""
    if split not in _SPLITS:
        raise NoSplit(f"data: there is no split {split!r}; these images have {', '.join(_SPLITS)}.")
    images, labels = read_digits("test" if split == "test" else "train")
    numbers = np.arange(len(images))
    held_out = numbers % 3 == 2
    chosen = numbers if split == "test" else numbers[held_out if split == "validation" else ~held_out]
    return images[chosen, ..., 0].astype(np.float32) / 255, labels[chosen], chosen


class MadeOfDigits(abc.ABC):
    """A source that makes each image when it is read; `number` is the number of images, or a pair for training and other
    splits.

    Attributes:
        arguments: the arguments of the constructor.
    """

    num_classes = 10
    label_names = tuple(map(str, range(10)))

    def __init__(self, split: str, number: _Number, canvas: Sequence[int], noise: float, version: int, **arguments: Any):
        if type(version) is not int or version < 1:
            raise UserError(f"data.args: version={version!r}: give a whole number from 1.")
        self.version = version
        self.split, self.canvas, self.noise, self.arguments = split, tuple(canvas), noise, arguments
        self.digits, self.digit_labels, self.numbers = read_base_digits(split)
        number = number[split != "train"] if isinstance(number, Sequence) else number
        self._number = number or {"train": 10_000, "validation": 2_000, "test": 2_000}[split]

    def __len__(self) -> int:
        return self._number

    def __getitem__(self, index: int) -> dict[str, Any]:
        example = self.make(index)
        return {"image": example["image"], "label": example["label"]}

    def fingerprint(self) -> str:
        """Returns the version and the arguments, which determine all examples."""
        given = {"number": len(self), "canvas": self.canvas, "noise": self.noise, **self.arguments}
        return f"{type(self).__name__} {self.version} {sorted(given.items())}"

    def groups(self) -> list[int]:
        """Returns the group of each example."""
        return [self.make(index)["group"] for index in range(len(self))]

    @abc.abstractmethod
    def make(self, index: int) -> dict[str, Any]:
        """Returns an example with its ingredients: "image", "label", "box" and "group"; see the classes below."""

    def start(self, index: int) -> tuple[np.random.Generator, np.ndarray]:
        """Returns the random generator of an example and an empty canvas [H, W, 3]."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        seed = (self.version, _SPLITS.index(self.split), index)
        return np.random.default_rng(seed), np.zeros((*self.canvas, 3), np.float32)

    def finish(self, canvas: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """[H, W, 3] from 0 to 255 -> uint8, with noise."""
        noisy = canvas + self.noise * rng.standard_normal(canvas.shape, np.float32)
        return np.clip(noisy, 0, 255).round().astype(np.uint8)


class CuedDigits(MadeOfDigits):
    """Places digits far apart, and between them a cue that tells which digit is the label.

    An example has "box" (top, left, bottom, right) of that digit, "boxes" of all digits, "cue", the digit's number among them,
    and
    "group", the number of the left digit in the data set: examples that share it are not independent.
    """

    def __init__(
        self,
        split: str,
        key: str = "colour",
        digits: int = 2,
        distance: int | None = None,
        canvas: Sequence[int] = (16, 32),
        clutter: int = 0,
        informative: bool = True,
        noise: float = 12.0,
        number: _Number = None,
        version: int = 1,
    ):
        height, width = canvas
        if key not in ("colour", "arrow") or not 2 <= digits <= (len(_COLOURS) if key == "colour" else 2):
            raise UserError(
                f"data.args: key={key!r}, digits={digits}: give 'colour' with 2 to {len(_COLOURS)} digits, or 'arrow' with 2."
            )
        self.columns = np.linspace(0, width - SIDE, digits).round().astype(int)  # left sides of the digits
        if distance is not None:  # distance between the two outer digits
            self.columns = np.linspace(0, distance + SIDE, digits).round().astype(int) + (width - distance - 2 * SIDE) // 2
        if height < SIDE or self.columns[0] < 0 or np.diff(self.columns).min() < SIDE + (6 if digits == 2 else 0):
            raise UserError(
                f"data.args: canvas={(height, width)}, distance={distance}: too small for {digits} digits and a cue."
            )
        super().__init__(split, number, canvas, noise, version, key=key, digits=digits, distance=distance, clutter=clutter)
        self.arguments["informative"] = informative

    def make(self, index: int, cue: int | None = None) -> dict[str, Any]:
        """Returns an example as the class describes it; with `cue`, the same image with a cue for that digit."""
        rng, canvas = self.start(index)
        count, key = len(self.columns), self.arguments["key"]
        chosen = rng.integers(len(self.digits), size=count)
        colours = rng.permutation(count) if key == "colour" else np.zeros(count, int)
        drawn = int(rng.integers(count))
        cue = drawn if cue is None else cue
        cued = cue if self.arguments["informative"] else int(rng.integers(count))
        tops = rng.integers(self.canvas[0] - SIDE + 1, size=count)
        for _ in range(self.arguments["clutter"]):
            draw_piece(canvas, rng, self.digits, 4)
        boxes = []
        for left, top, which, colour in zip(self.columns, tops, chosen, colours):
            ink = np.array(_COLOURS[colour] if key == "colour" else (255, 255, 255), np.float32)
            canvas[top : top + SIDE, left : left + SIDE] = self.digits[which][..., None] * ink
            boxes.append((int(top), int(left), int(top) + SIDE, int(left) + SIDE))
        self._draw_cue(canvas, int(colours[cued]), cued)
        return {
            "image": self.finish(canvas, rng),
            "label": self.digit_labels[chosen[cue]],
            "box": boxes[cue],
            "boxes": boxes,
            "cue": cue,
            "group": int(self.numbers[chosen[0]]),
        }

    def _draw_cue(self, canvas: np.ndarray, colour: int, place: int) -> None:
        """Draws a framed patch of a colour, or an arrow to the left or right, in the middle."""
        row, column = self.canvas[0] // 2, self.canvas[1] // 2
        if self.arguments["key"] == "arrow":
            arrow = _ARROW if place == 0 else _ARROW[:, ::-1]
            canvas[row - 3 : row + 2, column - 3 : column + 2] = 255 * arrow[..., None]
        else:
            canvas[row - 3 : row + 3, column - 3 : column + 3] = 255
            canvas[row - 2 : row + 2, column - 2 : column + 2] = _COLOURS[colour]


class ClutteredDigits(MadeOfDigits):
    """Places one digit among pieces of others (Mnih et al. 2014, arXiv 1406.6247, Section 4.1: 8x8 of 60x60 pixels, four
    pieces).

    An example has "box" (top, left, bottom, right) of the digit, and "group", its number among all digits. `halves` are the
    halves
    of the canvas, "left" or "right", that hold the digits in training and in the other splits; pieces lie anywhere.
    """

    def __init__(
        self,
        split: str,
        canvas: Sequence[int] = (24, 24),
        pieces: int = 8,
        piece: int = 5,
        noise: float = 12.0,
        number: _Number = None,
        version: int = 1,
        halves: Sequence[str] | None = None,
    ):
        if min(canvas) < SIDE or not 1 <= piece <= SIDE or pieces < 0:
            raise UserError(f"data.args: canvas={tuple(canvas)}, piece={piece}, pieces={pieces}: the digit has {SIDE} pixels.")
        super().__init__(split, number, canvas, noise, version, pieces=pieces, piece=piece)
        self._columns = 0, canvas[1]  # columns between which digits lie
        if halves is not None:
            if len(halves) != 2 or not {*halves} <= {"left", "right"} or canvas[1] < 2 * SIDE:
                raise UserError(
                    f"data.args.halves={halves}: give 'left' or 'right' for training and for the other splits, and a canvas at "
                    f"least {2 * SIDE} pixels wide."
                )
            middle = canvas[1] // 2
            self._columns = (0, middle) if halves[split != "train"] == "left" else (middle, canvas[1])
            self.arguments["halves"] = tuple(halves)

    def make(self, index: int) -> dict[str, Any]:
        """Returns an example as the class describes it."""
        rng, canvas = self.start(index)
        for _ in range(self.arguments["pieces"]):
            draw_piece(canvas, rng, self.digits, self.arguments["piece"])
        which = int(rng.integers(len(self.digits)))
        top = int(rng.integers(self.canvas[0] - SIDE + 1))
        left = int(rng.integers(self._columns[0], self._columns[1] - SIDE + 1))
        place = canvas[top : top + SIDE, left : left + SIDE]
        np.maximum(place, 255 * self.digits[which][..., None], out=place)
        box = (top, left, top + SIDE, left + SIDE)
        return {
            "image": self.finish(canvas, rng),
            "label": self.digit_labels[which],
            "box": box,
            "group": int(self.numbers[which]),
        }


def draw_piece(canvas: np.ndarray, rng: np.random.Generator, digits: np.ndarray, side: int) -> None:
    """Draws a square piece of a random digit at a random place of a canvas [H, W, 3]."""
    digit = digits[rng.integers(len(digits))]
    (a, b), (top, left) = rng.integers(SIDE - side + 1, size=2), (rng.integers(n - side + 1) for n in canvas.shape[:2])
    place = canvas[top : top + side, left : left + side]
    np.maximum(place, 255 * digit[a : a + side, b : b + side, None], out=place)
