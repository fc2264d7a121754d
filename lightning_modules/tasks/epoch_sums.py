"""What training has come to in the epoch so far."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lightning_modules.tasks.meters import Meter


class EpochSums:
    """Sums of loss terms and of what is measured, samples and seconds of training; a row at the end of the epoch.

    Attributes:
        samples: of the epoch so far, over all processes.
        seconds: of its updates so far; those of validation and saving are not among them.
    """

    def __init__(self) -> None:
        self.samples, self.seconds, self._began = 0, 0.0, 0.0
        self._meter = Meter()
        self._terms: set[str] = set()  # ever seen: their means are over updates, all others' over samples

    def begin(self) -> None:
        """A new epoch."""
        self.samples, self.seconds = 0, 0.0
        self.go_on()

    def go_on(self) -> None:
        """The clock runs from here on."""
        self._began = time.monotonic() - self.seconds

    def tick(self) -> None:
        """An update is done."""
        self.seconds = time.monotonic() - self._began

    def add(self, terms: dict[str, Tensor], measured: dict[str, Tensor], samples: int) -> None:
        """The scalars of one update, what was measured of its samples ``[B]``, and how many it had."""
        self.samples += samples
        self._terms |= terms.keys()
        self._meter.add(terms | measured)

    def row(self, updates: int, reduce: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """``loss``, means over samples, means over updates; forgets the sums.

        Args:
            updates: of the epoch that were made.
            reduce: sums a vector over the processes.
        """
        sums = self._meter.read(reduce)
        terms = {name: sums.pop(name) / updates for name in list(sums) if name in self._terms}
        means = {name: value / self.samples for name, value in sums.items()}
        return {"loss": sum(terms.values()) if updates else math.nan, **means, **terms}

    def state(self) -> dict[str, Any]:
        """Plain data for a checkpoint inside an epoch."""
        meter, terms = self._meter.state(), sorted(self._terms)
        return {"meter": meter, "terms": terms, "samples": self.samples, "seconds": self.seconds}

    def load(self, state: dict[str, Any], device: torch.device) -> None:
        """The inverse of ``state``; the clock stands until ``go_on``."""
        self._meter.load(state["meter"], device)
        self._terms = set(state["terms"])
        self.samples, self.seconds = state["samples"], state["seconds"]
