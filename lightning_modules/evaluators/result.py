"""``Evaluation``: what evaluators hand to whoever reports. Plain data, no torch, so a report needs no framework.

Figures are data, not drawings: the report draws them in its own style, in light and dark, and nothing an evaluator
returns can carry markup or a request to the outside into the page.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array, issparse


@dataclass(frozen=True, slots=True)
class Mistake:
    """One wrongly classified image.

    Attributes:
        picture: ``[H, W, 3]`` or ``[H, W, 1]`` uint8 pixels as the network saw them, before normalization.
        true: name of the labelled class.
        predicted: name of the class with the highest score.
        confidence: softmax probability of ``predicted``, in [0, 1].
        index: position in the data set that was evaluated.
    """

    picture: npt.NDArray[np.uint8]
    true: str
    predicted: str
    confidence: float
    index: int


@dataclass(frozen=True, slots=True)
class Table:
    """A table of text and numbers; ``rows`` are as long as ``columns``. The first column names the row."""

    columns: list[str]
    rows: list[list[str | float | int | None]]

    def __post_init__(self) -> None:
        for position, row in enumerate(self.rows):
            if len(row) != len(self.columns):
                raise ValueError(f"row {position} has {len(row)} cells, the table {len(self.columns)} columns")


@dataclass(frozen=True, slots=True)
class Curve:
    """Lines over a shared axis: a reliability diagram, accuracy over severity, recall over k.

    Attributes:
        x: positions, ascending.
        lines: values at ``x`` by name; None or NaN where there is none.
        x_label: what ``x`` is.
        percent: the values are fractions, shown as percentages.
    """

    x: list[float]
    lines: dict[str, list[float | None]]
    x_label: str = ""
    percent: bool = False

    def __post_init__(self) -> None:
        for name, values in self.lines.items():
            if len(values) != len(self.x):
                raise ValueError(f"line {name!r} has {len(values)} values for {len(self.x)} positions")


@dataclass(frozen=True, slots=True)
class RankedImage:
    """One image of the gallery as a query found it.

    Attributes:
        picture: ``[H, W, 3]`` or ``[H, W, 1]`` uint8 pixels as the network saw them, before normalization.
        label: name of its class.
        correct: it counts as a hit for the query; None where nobody knows.
        score: what the gallery is ordered by, a similarity or a distance.
        index: position in the data set that was evaluated.

    Raises:
        ValueError: the picture is of another type or shape, the score no finite number, the index negative.
    """

    picture: npt.NDArray[np.uint8]
    label: str
    correct: bool | None
    score: float
    index: int

    def __post_init__(self) -> None:
        _check_image("ranked image", self.picture, self.score, self.index)


@dataclass(frozen=True, slots=True)
class RankedQuery:
    """A query and the images it found.

    Attributes:
        picture: ``[H, W, 3]`` or ``[H, W, 1]`` uint8 pixels as the network saw them, before normalization.
        label: name of its class.
        index: position in the data set that was evaluated.
        score: what queries are ordered by, such as the average precision of this one.
        neighbours: the nearest first.
        score_name: what ``score`` is, in a word or two.

    Raises:
        ValueError: as for ``RankedImage``, or a neighbour is none.
    """

    picture: npt.NDArray[np.uint8]
    label: str
    index: int
    score: float
    neighbours: list[RankedImage]
    score_name: str = "score"

    def __post_init__(self) -> None:
        _check_image("query", self.picture, self.score, self.index)
        _check_items("neighbours of a query", self.neighbours, RankedImage)


@dataclass(frozen=True, slots=True)
class Scatter:
    """Points in the plane by class: a map of an embedding in two dimensions.

    Attributes:
        x: N positions, finite.
        y: N positions, finite.
        group: class of each point, as a position in ``names``.
        names: names of the classes.
        x_label: what ``x`` is; may be empty.
        y_label: what ``y`` is; may be empty.
        note: how the map was made and what may not be read from it, in a sentence.

    Raises:
        ValueError: lengths differ, a position is not finite, or a class has no name.
    """

    x: list[float]
    y: list[float]
    group: list[int]
    names: list[str]
    x_label: str = ""
    y_label: str = ""
    note: str = ""

    def __post_init__(self) -> None:
        lengths = (len(self.x), len(self.y), len(self.group))
        if len(set(lengths)) > 1:
            raise ValueError(f"x, y and group hold {lengths[0]}, {lengths[1]} and {lengths[2]} values; "
                             "they must hold one for each point")  # fmt: skip
        for name, values in (("x", self.x), ("y", self.y)):
            bad = next((i for i, value in enumerate(values) if not math.isfinite(value)), None)
            if bad is not None:
                raise ValueError(f"{name} of point {bad} is {values[bad]}; leave out points that are not finite")
        for i, group in enumerate(self.group):
            if isinstance(group, bool) or not isinstance(group, int | np.integer) or not 0 <= group < len(self.names):
                raise ValueError(f"the group of point {i} is {group!r}; it must be a whole number from 0 to "
                                 f"{len(self.names) - 1}, as there are {len(self.names)} names")  # fmt: skip


@dataclass(frozen=True, slots=True)
class CaptionedPicture:
    """One picture of a row.

    Attributes:
        picture: ``[H, W, 3]`` or ``[H, W, 1]`` uint8 pixels.
        caption: what it shows, in a few words.

    Raises:
        ValueError: the picture is of another type or shape.
    """

    picture: npt.NDArray[np.uint8]
    caption: str

    def __post_init__(self) -> None:
        _check_picture("captioned picture", self.picture)


@dataclass(frozen=True, slots=True)
class PictureRow:
    """Pictures that belong side by side: an image, what was made of it, and the difference.

    Attributes:
        pictures: from left to right.
        index: position of the image in the data set that was evaluated.
        note: what they have in common, in a few words; may be empty.

    Raises:
        ValueError: a picture is none, or the index negative.
    """

    pictures: list[CaptionedPicture]
    index: int
    note: str = ""

    def __post_init__(self) -> None:
        _check_items("pictures of a row", self.pictures, CaptionedPicture)
        _check_index("row of pictures", self.index)


@dataclass(slots=True)
class Evaluation:
    """Result of one evaluation of one network on one data set. Every field may stay empty.

    Attributes:
        metrics: scalars by name; accuracies and other shares are fractions in [0, 1].
        tables: further tables by title.
        figures: further line charts by title.
        confusion: ``[C, C]`` counts, rows are true classes, columns predicted ones. An array or lists become
            sparse: with many classes nearly all counts are zero.
        classes: C names in the order of the labels; needed with ``confusion``.
        mistakes: the most confident ones first.
        queries: queries with what they found, by title ("Worst queries").
        maps: maps of the embedding by title.
        pictures: rows of pictures by title ("Attacked images").

    Raises:
        ValueError: ``confusion`` is not square, has a negative count, or does not fit ``classes``; ``queries``,
            ``maps`` or ``pictures`` holds something else.

    Example:
        >>> evaluation = Evaluation(metrics={"accuracy": 0.75}, confusion=[[2, 0], [1, 1]], classes=["cat", "dog"])
        >>> int(evaluation.confusion.trace())
        3
    """

    metrics: dict[str, float] = field(default_factory=dict)
    tables: dict[str, Table] = field(default_factory=dict)
    figures: dict[str, Curve] = field(default_factory=dict)
    confusion: csr_array | None = None
    classes: list[str] = field(default_factory=list)
    mistakes: list[Mistake] = field(default_factory=list)
    queries: dict[str, list[RankedQuery]] = field(default_factory=dict)
    maps: dict[str, Scatter] = field(default_factory=dict)
    pictures: dict[str, list[PictureRow]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for title, queries in self.queries.items():
            _check_items(f"queries under {title!r}", queries, RankedQuery)
        _check_items("maps", list(self.maps.values()), Scatter)
        for title, rows in self.pictures.items():
            _check_items(f"pictures under {title!r}", rows, PictureRow)
        if self.confusion is not None:
            self._check_confusion()

    def _check_confusion(self) -> None:
        given: Any = self.confusion if issparse(self.confusion) else np.asarray(self.confusion)
        shape = given.shape
        if len(shape) != 2 or shape[0] != shape[1]:
            raise ValueError(f"confusion has shape {list(shape)}; it must be [C, C] with C = {len(self.classes)}")
        if shape[0] != len(self.classes):
            raise ValueError(f"confusion is for {shape[0]} classes, but {len(self.classes)} names were given")
        self.confusion = csr_array(given, dtype=np.int64)
        if (self.confusion.data < 0).any():
            raise ValueError("confusion holds a negative count; it must hold numbers of images")


def _check_image(what: str, picture: npt.NDArray[np.uint8], score: float, index: int) -> None:
    _check_picture(what, picture)
    if not math.isfinite(score):
        raise ValueError(f"the score of a {what} is {score}; it must be a finite number")
    _check_index(what, index)


def _check_picture(what: str, picture: npt.NDArray[np.uint8]) -> None:
    pixels = np.asarray(picture)
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] not in (1, 3) or not pixels.size:
        shape = f"{pixels.dtype} {list(pixels.shape)}"
        raise ValueError(f"the picture of a {what} is {shape}; it must be uint8 [H, W, 3] or [H, W, 1]")


def _check_index(what: str, index: int) -> None:
    if index < 0:
        raise ValueError(f"the index of a {what} is {index}; it must be a position in the data set, from 0")


def _check_items(what: str, items: object, kind: type) -> None:
    if not isinstance(items, list | tuple):
        raise ValueError(f"{what} must be a list of {kind.__name__}, not a {type(items).__name__}")
    others = [type(item).__name__ for item in items if not isinstance(item, kind)]
    if others:
        raise ValueError(f"{what} hold a {others[0]}; they must hold {kind.__name__} only")
