"""The gradient of the sum of all terms."""

from __future__ import annotations

from lightning_modules.gradients.base import Gradient, Seat, sum_terms


class Sum(Gradient):
    """One backward of the sum of the terms, for each micro-batch."""

    def forward(self, seat: Seat) -> None:
        for one in seat.passes():
            seat.backward(sum_terms(one.terms))
