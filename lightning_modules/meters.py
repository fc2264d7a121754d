"""Sums kept on the device and read once an epoch."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


class Meter:
    """Adds named device scalars; ``read`` is the only host read.

    One ``torch.stack`` and one in-place addition an update: no metric object, no logger call in the loop.
    """

    def __init__(self) -> None:
        self._sums: dict[tuple[str, ...], Tensor] = {}

    def add(self, values: dict[str, Tensor]) -> None:
        """Add scalars; the set of names may differ between calls (terms switch on and off)."""
        if not values:
            return
        names = tuple(values)
        vector = torch.stack([value.detach() for value in values.values()])
        sums = self._sums.get(names)
        if sums is None:
            self._sums[names] = vector.to(torch.float64)
        else:
            sums += vector  # in float64

    def read(self, reduce: Callable[[Tensor], Tensor] = lambda vector: vector) -> dict[str, float]:
        """Sums by name; forgets them.

        Args:
            reduce: sums a vector over the processes, where there are several.
        """
        totals: dict[str, float] = {}
        for names, vector in self._sums.items():
            for name, value in zip(names, reduce(vector).tolist(), strict=True):
                totals[name] = totals.get(name, 0.0) + value
        self._sums.clear()
        return totals

    def state(self) -> list[tuple[list[str], list[float]]]:
        """Plain values, for a checkpoint inside an epoch."""
        return [(list(names), vector.tolist()) for names, vector in self._sums.items()]

    def load(self, state: list[tuple[list[str], list[float]]], device: torch.device) -> None:
        """The inverse of ``state``."""
        self._sums = {tuple(names): torch.tensor(values, dtype=torch.float64, device=device) for names, values in state}
