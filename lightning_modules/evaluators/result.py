"""``Evaluation``: what evaluators hand to whoever reports. Plain data, no torch, so a report needs no framework.

Figures are data, not drawings: the report draws them in its own style, in light and dark, and nothing an evaluator
returns can carry markup or a request to the outside into the page.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt


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


@dataclass(slots=True)
class Evaluation:
    """Result of one evaluation of one network on one data set. Every field may stay empty.

    Attributes:
        metrics: scalars by name; accuracies and other shares are fractions in [0, 1].
        tables: further tables by title.
        figures: further line charts by title.
        confusion: ``[C, C]`` counts, rows are true classes, columns predicted ones.
        classes: C names in the order of the labels; needed with ``confusion``.
        mistakes: the most confident ones first.

    Raises:
        ValueError: ``confusion`` is not square, has a negative count, or does not fit ``classes``.

    Example:
        >>> evaluation = Evaluation(metrics={"accuracy": 0.75}, confusion=[[2, 0], [1, 1]], classes=["cat", "dog"])
        >>> int(evaluation.confusion.trace())
        3
    """

    metrics: dict[str, float] = field(default_factory=dict)
    tables: dict[str, Table] = field(default_factory=dict)
    figures: dict[str, Curve] = field(default_factory=dict)
    confusion: npt.NDArray[np.int64] | None = None
    classes: list[str] = field(default_factory=list)
    mistakes: list[Mistake] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.confusion is None:
            return
        self.confusion = np.asarray(self.confusion, dtype=np.int64)
        shape = self.confusion.shape
        if len(shape) != 2 or shape[0] != shape[1]:
            raise ValueError(f"confusion has shape {list(shape)}; it must be [C, C] with C = {len(self.classes)}")
        if shape[0] != len(self.classes):
            raise ValueError(f"confusion is for {shape[0]} classes, but {len(self.classes)} names were given")
        if (self.confusion < 0).any():
            raise ValueError("confusion holds a negative count; it must hold numbers of images")
