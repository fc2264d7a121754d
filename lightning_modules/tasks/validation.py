"""Validation: evaluators on the validation part, and the names among their metrics that select an epoch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from kernels.batch import Batch, Output
from lightning_modules.evaluators.base import EvaluationData, Evaluator, Measurement
from lightning_modules.network import Network


class Validation:
    """Measures a network with every evaluator, and says how good an epoch was.

    The columns of the first evaluator are ``val/METRIC``, those of another ``val/NAME/METRIC``.

    Args:
        evaluators: by name, in the order of their columns.
        select: metrics that decide which epoch is the best, the first one first: ``METRIC`` of the first evaluator or
            ``NAME/METRIC``, with a minus sign where lower is better. None for what the first evaluator selects by.

    Attributes:
        chosen: whether ``select`` was given.
        selecting: {column of a row: 1 where higher is better, -1 where lower is}, the one that decides first.

    Raises:
        ValueError: a metric of an evaluator that does not validate or does not measure it, or one metric given twice.
    """

    def __init__(self, evaluators: Mapping[str, Evaluator], select: Sequence[str] | None = None) -> None:
        self.evaluators = dict(evaluators)
        self.chosen = select is not None
        self.selecting = _columns(self.evaluators, select)
        self._under_way: dict[str, Measurement] = {}

    def begin(self, network: Network, data: EvaluationData) -> None:
        """A new validation of ``network``, which is in eval mode."""
        self._under_way = {name: evaluator.begin(network, data) for name, evaluator in self.evaluators.items()}

    def add(self, batch: Batch, output: Output) -> None:
        """One batch, and what the network gives for it."""
        for measurement in self._under_way.values():
            measurement.add(batch, output)

    def columns(self) -> dict[str, float]:
        """Columns of the whole validation, over all processes; forgets what was measured.

        Raises:
            ValueError: a metric that is to select is not among them.
        """
        columns: dict[str, float] = {}
        try:
            for number, (name, measurement) in enumerate(self._under_way.items()):
                prefix = f"val/{name}/" if number else "val/"
                columns |= {f"{prefix}{metric}": value for metric, value in measurement.result().metrics.items()}
        finally:
            self._forget()
        if missing := [column for column in self.selecting if column not in columns]:
            raise ValueError(
                f"select names {', '.join(missing)}, and this validation gives {', '.join(columns)}; "
                "write METRIC of the first evaluator, or NAME/METRIC"
            )
        return columns

    def _forget(self) -> None:
        for measurement in self._under_way.values():
            measurement.close()
        self._under_way = {}

    def rank(self, row: Mapping[str, float]) -> tuple[float, ...] | None:
        """How good an epoch's row is, higher is better; None for one that was not validated, or not finite."""
        values = [sign * row.get(column, math.nan) for column, sign in self.selecting.items()]
        return tuple(values) if values and all(map(math.isfinite, values)) else None


def _columns(evaluators: Mapping[str, Evaluator], select: Sequence[str] | None) -> dict[str, float]:
    first = next(iter(evaluators), "")
    names = list(evaluators[first].selects if first and select is None else select or ())
    found: dict[str, float] = {}
    for text in names:
        name, _, metric = text.removeprefix("-").rpartition("/")
        if name and name not in evaluators:
            raise ValueError(
                f"select={text}: no evaluator {name} validates; there are {', '.join(evaluators) or 'none'}: "
                f"add it with validation=[..., {name}]"
            )
        measures = evaluators[name or first].measures if first else ()
        if measures and metric not in measures:
            raise ValueError(f"select={text}: {name or first} measures {', '.join(measures)}, and no {metric!r}")
        column = f"val/{metric}" if name in ("", first) else f"val/{name}/{metric}"
        if column in found:
            raise ValueError(f"select names {column} twice; it decides once")
        found[column] = -1.0 if text.startswith("-") else 1.0
    return found
