"""Names that others chose, cut to a length that cannot swell the page: a class name stands in many places of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, TypeVar

from lightning_modules.evaluators.result import Curve, Evaluation, Mistake, PictureRow, RankedQuery, Scatter, Table
from recipes.report.run_files import RunFiles

MAX_NAME = 120  # characters
MAX_NOTE = 600  # characters of a sentence or two
Value = TypeVar("Value")


def short(text: str, limit: int = MAX_NAME) -> str:
    """The text, its middle left out where it is longer than ``limit``.

    Example:
        >>> len(short("x" * 10_000))
        120
    """
    return text if len(text) <= limit else f"{text[: limit - 21]}…{text[-20:]}"


def bounded_run(run: RunFiles) -> RunFiles:
    """The run with short names of its metrics and results."""
    return replace(
        run, recipe=short(run.recipe), name=short(run.name), metrics=_named(run.metrics), results=_tree(run.results)
    )


def bounded_evaluation(found: Evaluation) -> Evaluation:
    """The evaluation with short names of classes, metrics, tables, lines, cells, queries, maps and pictures."""
    return replace(
        found,
        metrics=_named(found.metrics),
        tables={title: _table(table) for title, table in _named(found.tables).items()},
        figures={title: _curve(curve) for title, curve in _named(found.figures).items()},
        classes=[short(name) for name in found.classes],
        mistakes=[_mistake(mistake) for mistake in found.mistakes],
        queries={title: [_query(query) for query in queries] for title, queries in _named(found.queries).items()},
        maps={title: _map(scatter) for title, scatter in _named(found.maps).items()},
        pictures={title: [_pictures(row) for row in rows] for title, rows in _named(found.pictures).items()},
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


def _query(query: RankedQuery) -> RankedQuery:
    neighbours = [replace(found, label=short(found.label)) for found in query.neighbours]
    return replace(query, label=short(query.label), score_name=short(query.score_name), neighbours=neighbours)


def _map(scatter: Scatter) -> Scatter:
    names, note = [short(name) for name in scatter.names], short(scatter.note, MAX_NOTE)
    return replace(scatter, names=names, note=note, x_label=short(scatter.x_label), y_label=short(scatter.y_label))


def _pictures(row: PictureRow) -> PictureRow:
    return replace(
        row, note=short(row.note), pictures=[replace(one, caption=short(one.caption)) for one in row.pictures]
    )
