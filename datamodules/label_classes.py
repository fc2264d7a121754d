"""The labels of label files to class numbers: integers as they are, names by their place in the list of classes."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from typing import NoReturn

import torch
from torch import Tensor

from datamodules.label_rows import LabelFile

_INTEGER = re.compile(r"0|[1-9][0-9]{0,8}")
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")


def are_integers(rows: LabelFile) -> bool:
    """Whether the labels of a file are integers (else they are names); the first row decides, the others must agree.

    Raises:
        ValueError: naming the line: a negative, a float, or a number among names and the reverse.
    """
    integers = _is_number(rows.labels[0])
    for label in dict.fromkeys(rows.labels):
        number = _is_number(label)
        if number != integers:
            kinds = ("a number", "a name") if number else ("a name", "a number")
            _refuse(rows, label, f"is {kinds[0]}, but {rows.unit} {rows.lines[0]} has {kinds[1]}; use one kind")
        if number and not _INTEGER.fullmatch(str(label)):
            _refuse(rows, label, "is no class number; class numbers are 0, 1, 2, ...")
    return integers


def _refuse(rows: LabelFile, label: str | int, why: str) -> NoReturn:
    """Raise ValueError naming the first line with this label."""
    rows.refuse(rows.labels.index(label), f"the label {label!r} {why}")


def _is_number(label: str | int) -> bool:
    return isinstance(label, int) or _NUMBER.fullmatch(label) is not None


def class_list(rows: LabelFile, given: Sequence[str] | None) -> tuple[str, ...]:
    """Names of the classes, in the order of their numbers, from the training rows.

    The given names where there are any; else the names that occur, sorted; else, for integers, ``0 .. largest``.

    Raises:
        ValueError: names given twice; an integer so large that it leaves classes without an image.
    """
    if given is not None:
        if not given or len(set(given)) != len(given):
            raise ValueError(f"data.classes must be a list of different names, got {list(given)[:10]}")
        return tuple(given)
    if not are_integers(rows):
        return tuple(sorted({str(label) for label in rows.labels}))
    by_number = {int(label): label for label in reversed(rows.labels)}
    if len(by_number) <= max(by_number):
        gap = next(number for number in range(len(by_number)) if number not in by_number)
        above = min(number for number in by_number if number > gap)
        _refuse(
            rows,
            by_number[above],
            f"follows none with {gap}; class numbers are 0, 1, 2, ... without gaps (correct it, or name all classes "
            "in data.classes)",
        )
    return tuple(str(number) for number in range(len(by_number)))


def to_labels(rows: LabelFile, classes: tuple[str, ...], integers: bool | None = None) -> Tensor:
    """Class numbers ``[N]`` int64.

    Args:
        rows: of any part.
        classes: names in the order of their numbers.
        integers: whether the labels must be integers, as those of training; None leaves it to the file.

    Raises:
        ValueError: naming the line: a number outside ``0 .. C - 1``, or a name that is not among the classes.
    """
    found = are_integers(rows)
    if integers is not None and found != integers:
        kinds = ("numbers", "names") if integers else ("names", "numbers")
        rows.refuse(0, f"the labels of training are {kinds[0]}, these are {kinds[1]}; use one kind")
    place: dict[str, int] = {str(number) if found else name: number for number, name in enumerate(classes)}
    for label in dict.fromkeys(rows.labels):
        if str(label) in place:
            continue
        if found:
            _refuse(rows, label, f"is outside 0..{len(classes) - 1} ({len(classes)} classes)")
        near = difflib.get_close_matches(str(label), classes[:10_000], n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        _refuse(rows, label, f"is not one of the {len(classes)} classes of training{hint}")
    return torch.tensor([place[str(label)] for label in rows.labels], dtype=torch.int64)
