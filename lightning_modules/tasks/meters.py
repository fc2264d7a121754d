"""Sums kept on the device and read once an epoch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

FOLD_EVERY = 64


class Meter:
    """Adds named scalars, or vectors ``[B]`` of which the sum counts, on the device; ``read`` is the only host read.

    Values are kept and summed every 64 calls, in float64: an update costs a list append instead of an addition on the
    device, and there is no metric object and no logger call in the loop.
    """

    def __init__(self) -> None:
        self._pending: dict[str, list[Tensor]] = {}
        self._sums: dict[str, Tensor] = {}

    def add(self, values: dict[str, Tensor]) -> None:
        """Add values; the set of names may differ between calls (terms switch on and off)."""
        for name, value in values.items():
            pending = self._pending.setdefault(name, [])
            pending.append(value.detach())
            if len(pending) >= FOLD_EVERY:
                self._fold(name)

    def _fold(self, name: str) -> None:
        pending = self._pending.pop(name)
        total = (torch.cat if pending[0].ndim else torch.stack)(pending).sum(dtype=torch.float64)
        self._sums[name] = self._sums[name] + total if name in self._sums else total

    def read(self, reduce: Callable[[Tensor], Tensor] = lambda vector: vector) -> dict[str, float]:
        """Sums by name; forgets them.

        Args:
            reduce: sums a vector over the processes, where there are several; all must have the same names.
        """
        totals = self._totals()
        self._sums.clear()
        if not totals:
            return {}
        return dict(zip(totals, reduce(torch.stack(list(totals.values()))).tolist(), strict=True))

    def _totals(self) -> dict[str, Tensor]:
        for name in list(self._pending):
            self._fold(name)
        return self._sums.copy()

    def state(self) -> dict[str, Any]:
        """Plain data for a checkpoint inside an epoch. Pending values stay apart: folded earlier, they would round
        otherwise than in a run that was not interrupted."""
        sums = {name: total.cpu() for name, total in self._sums.items()}
        return {"sums": sums, "pending": {name: [v.cpu() for v in values] for name, values in self._pending.items()}}

    def load(self, state: dict[str, Any], device: torch.device) -> None:
        """The inverse of ``state``."""
        self._sums = {name: total.to(device) for name, total in state["sums"].items()}
        self._pending = {name: [v.to(device) for v in values] for name, values in state["pending"].items()}
