"""Names that others chose, cut to a length that cannot swell the page: a class name stands in many places of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, TypeVar

from lightning_modules.evaluators.result import Curve, Evaluation, Mistake, Table
from recipes.report.run_files import RunFiles

MAX_NAME = 120  # characters
Value = TypeVar("Value")


def short(text: str) -> str:
    """The text, its middle left out where it is longer than ``MAX_NAME``.

    Example:
        >>> len(short("x" * 10_000))
        120
    """
    return text if len(text) <= MAX_NAME else f"{text[: MAX_NAME - 21]}…{text[-20:]}"


def bounded_run(run: RunFiles) -> RunFiles:
    """The run with short names of its metrics and results."""
    return replace(
        run, recipe=short(run.recipe), name=short(run.name), metrics=_named(run.metrics), results=_tree(run.results)
    )


def bounded_evaluation(found: Evaluation) -> Evaluation:
    """The evaluation with short names of classes, metrics, tables, lines and cells."""
    return replace(
        found,
        metrics=_named(found.metrics),
        tables={title: _table(table) for title, table in _named(found.tables).items()},
        figures={title: _curve(curve) for title, curve in _named(found.figures).items()},
        classes=[short(name) for name in found.classes],
        mistakes=[_mistake(mistake) for mistake in found.mistakes],
    )


def _named(entries: Mapping[str, Value]) -> dict[str, Value]:
    """The entries under short names, none lost where two become equal."""
    named: dict[str, Value] = {}
    for name, value in entries.items():
        key, number = short(str(name)), 2
        while key in named:
            key, number = f"{short(str(name))} ({number})", number + 1
        named[key] = value
    return named


def _tree(entries: dict[str, Any]) -> dict[str, Any]:
    return {name: _tree(value) if isinstance(value, dict) else value for name, value in _named(entries).items()}


def _table(table: Table) -> Table:
    rows = [[short(cell) if isinstance(cell, str) else cell for cell in row] for row in table.rows]
    return Table([short(name) for name in table.columns], rows)


def _curve(curve: Curve) -> Curve:
    return replace(curve, lines=_named(curve.lines), x_label=short(curve.x_label))


def _mistake(mistake: Mistake) -> Mistake:
    return replace(mistake, true=short(mistake.true), predicted=short(mistake.predicted))
