"""Binomial deviance loss."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from kernels import pair_form
from kernels.pair_form import clean_loss
from kernels.pairs import pair_masks, similarities
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

    def __init__(self, *, beta: float = 2.0, gamma: float = 40.0, margin: float = 0.5, **memory: Any) -> None:
        super().__init__(**memory)
        self.pair_form = pair_form.binomial(beta, gamma, margin)

    def of_anchors(self, rows_BE: Tensor, labels_B: Tensor, **candidates: Any) -> Tensor:
        assert self.pair_form is not None
        return of_form(self.pair_form, rows_BE, labels_B, **candidates)


def of_form(
    form: pair_form.PairForm,
    rows_BE: Tensor,
    labels_B: Tensor,
    *,
    columns: Tensor | None = None,
    column_labels: Tensor | None = None,
    first_own: int = 0,
    anchors: int = 0,
) -> Tensor:
    """The loss ``[B]`` of each anchor by its generic form."""
    return clean_loss(form, similarities(rows_BE, columns), *pair_masks(labels_B, column_labels, first_own))
