"""The labels of label files to class numbers: a label is text, and its number is its place in the list of classes."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from typing import NoReturn

import torch
from torch import Tensor

from datamodules.labels.label_rows import LabelFile
from datamodules.labels.unicode_form import differing_in_form, in_composed_form

_DIGITS = re.compile(r"[0-9]+")
_CLASS_NUMBER = re.compile(r"0|[1-9][0-9]*")
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
LISTED = "name all classes in data.classes"


def class_list(rows: LabelFile, given: Sequence[str] | None) -> tuple[str, ...]:
    """Names of the classes, in the order of their numbers, from the training rows.

    The given names where there are any; else the labels that occur, as text: sorted, by value where all of them are
    digits. So the class numbers 0 .. C-1 keep their meaning, and ``0002``, ``1998`` or numbers from 1 are names.

    Raises:
        ValueError: names given twice; labels that look like a mistake: numbers among names, numbers with a sign or a
            fraction, a number in two spellings, a name in two Unicode forms. With given names all of them are allowed.
    """
    if given is not None:
        if not given or len(set(given)) != len(given) or not all(isinstance(name, str) for name in given):
            raise ValueError(
                f"data.classes must be a list of different names, got {list(given)[:10]}; write names that look like "
                "numbers in quotes"
            )
        return tuple(given)
    labels = list(dict.fromkeys(rows.labels))
    names = [str(label) for label in labels]
    if _refuse_mixed(rows, labels):
        _refuse_odd_numbers(rows, labels)
    if twins := differing_in_form(names):
        _refuse(rows, twins[1], f"is {ascii(twins[1])} and differs from {ascii(twins[0])} in its Unicode form only")
    if all(_DIGITS.fullmatch(name) for name in names):
        return tuple(sorted(set(names), key=lambda name: (int(name), name)))
    return tuple(sorted(set(names)))


def _refuse_odd_numbers(rows: LabelFile, labels: list[str | int]) -> None:
    spelling: dict[int, str] = {}
    for label in labels:
        name = str(label)
        if not _DIGITS.fullmatch(name):
            _refuse(rows, label, f"is no class number; class numbers are 0, 1, 2, ... (if it is a name, {LISTED})")
        if spelling.setdefault(int(name), name) != name:
            _refuse(rows, label, f"is the number of {spelling[int(name)]!r}; write it one way, or {LISTED}")


def _refuse_mixed(rows: LabelFile, labels: list[str | int]) -> bool:
    """Whether the labels are numbers; ValueError where some are and some are not. The text of json is never one."""
    numbers = [isinstance(label, int) or (rows.unit == "line" and bool(_NUMBER.fullmatch(label))) for label in labels]
    if len(set(numbers)) > 1:
        kinds = ("a number", "a name") if numbers[0] else ("a name", "a number")
        why = f"is {kinds[1]}, but {rows.unit} {rows.lines[0]} has {kinds[0]}; use one kind, or {LISTED}"
        _refuse(rows, labels[numbers.index(not numbers[0])], why)
    return numbers[0]


def _refuse(rows: LabelFile, label: str | int, why: str) -> NoReturn:
    """Raise ValueError naming the first line with this label."""
    rows.refuse(rows.labels.index(label), f"the label {label!r} {why}")


def to_labels(rows: LabelFile, classes: tuple[str, ...], given: bool = False) -> Tensor:
    """Class numbers ``[N]`` int64.

    A label that is no name but for its Unicode form is that name.

    Args:
        rows: of any part.
        classes: names in the order of their numbers.
        given: they stand in ``data.classes``; then labels may be their places, 0 .. C-1, unless a name is a number.

    Raises:
        ValueError: naming the line of a label that is not among the classes.
    """
    place = {in_composed_form(name): number for number, name in enumerate(classes)}
    place |= {name: number for number, name in enumerate(classes)}
    digits = next((name for name in classes if _NUMBER.fullmatch(name)), None)
    if given and digits is None:
        place |= {str(number): number for number in range(len(classes))}
    found: dict[str | int, int] = {}
    for label in dict.fromkeys(rows.labels):
        number = place.get(str(label), place.get(in_composed_form(str(label))))
        if number is None:
            _refuse_unknown(rows, label, classes, given, digits)
        found[label] = number
    return torch.tensor([found[label] for label in rows.labels], dtype=torch.int64)


def _refuse_unknown(
    rows: LabelFile, label: str | int, classes: tuple[str, ...], given: bool, digits: str | None
) -> NoReturn:
    total, name = len(classes), str(label)
    if given and digits is None and _NUMBER.fullmatch(name):
        why = f"is outside 0..{total - 1}" if _CLASS_NUMBER.fullmatch(name) else "is no class number"
        _refuse(rows, label, f"{why} ({total} classes in data.classes)")
    near = difflib.get_close_matches(name, classes[:10_000], n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    if given and digits is not None and _NUMBER.fullmatch(name):
        hint = f"; since {digits!r} is one, labels are names and no places in data.classes"
    whose = "in data.classes" if given else "of training"
    _refuse(rows, label, f"is not one of the {total} classes {whose}{hint}")
