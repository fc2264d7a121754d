"""Binomial deviance loss."""

from __future__ import annotations

from typing import Annotated, Any

from kernels import pair_form
from lightning_modules.losses.pairs import PairLoss


class Binomial(PairLoss):
    """``sum_p log(1 + exp(-beta (s - margin))) + sum_n log(1 + exp(gamma (s - margin)))`` over the pairs of an anchor.

    Yi, Lei, Li. "Deep Metric Learning for Practical Person Re-Identification". 2014, arXiv 1407.4979.

    Args:
        beta: sharpness on positives.
        gamma: sharpness on negatives.
        margin: similarity at which both sides are in balance.
        **memory: the keys of ``PairLoss``.
    """

    def __init__(
        self,
        *,
        beta: Annotated[float, "x > 0"] = 2.0,
        gamma: Annotated[float, "x > 0"] = 40.0,
        margin: Annotated[float, "-1 <= x <= 1"] = 0.5,
        **memory: Any,
    ) -> None:
        super().__init__(**memory)
        self.pair_form = pair_form.binomial(beta, gamma, margin)
