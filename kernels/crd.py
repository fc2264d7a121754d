"""Contrastive representation distillation: student and teacher are to tell a sample from others in each other's space.

Tian, Krishnan, Isola. "Contrastive Representation Distillation". ICLR 2020, arXiv 1910.10699. Official code:
HobbitLong/RepDistiller.

Shape legend: B samples, N rows of a bank, E dimensions, K negatives.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from kernels.counter_rng import uniform_like

#: Added to both denominators.
EPS = 1e-7


def bank_scores(rows_BE: Tensor, bank_NE: Tensor, index_BJ: Tensor, temperature: float) -> Tensor:
    """``<row, bank[index]> / temperature``, ``[B, J]``, in at least float32 also under autocast.

    All N products are formed: that is ``B N`` numbers, where picking rows first would be ``B J E``.

    Args:
        rows_BE: unit vectors.
        bank_NE: unit vectors, which carry no gradient.
        index_BJ: rows of the bank for each sample.
        temperature: tau > 0.
    """
    with torch.autocast(rows_BE.device.type, enabled=False):
        return (rows_BE @ bank_NE.to(rows_BE.dtype).T).gather(1, index_BJ) / temperature


def contrastive_nce(scores_BJ: Tensor, constant: Tensor, bank_rows: int) -> Tensor:
    """The loss of one of the two networks, that of noise-contrastive estimation with uniform noise.

    With ``u = exp(score) / Z``, the first score that of the sample itself and the K others those of negatives:

        h = -log(u_0 / (u_0 + K/N + eps)) - sum_k log((K/N) / (u_k + K/N + eps)),    eps = 1e-7

    Args:
        scores_BJ: ``[B, 1 + K]``, from ``bank_scores``.
        constant: Z, a scalar tensor: N times the mean of ``exp(score)`` over the first batch; float64 where it may be
            beyond float32.
        bank_rows: N.

    Returns:
        ``[B]``, finite for any finite scores; without negatives next to nothing.

    Example:
        >>> contrastive_nce(torch.zeros(1, 3), torch.tensor(4.0), 4)
        tensor([1.9095])
    """
    noise = (scores_BJ.shape[1] - 1) / bank_rows
    log_u_BJ = scores_BJ - constant.log().to(scores_BJ.dtype)
    beside_BJ = torch.logaddexp(log_u_BJ, torch.full_like(log_u_BJ[:1, :1], math.log(noise + EPS)))
    own_B = beside_BJ[:, 0] - log_u_BJ[:, 0]
    if noise == 0:
        return own_B
    return own_B + (beside_BJ[:, 1:] - math.log(noise)).sum(1)


class OtherClasses:
    """Samples by class, and draws of some of another class.

    Args:
        labels_N: the class of each sample, below 0 for one that is never drawn.
    """

    def __init__(self, labels_N: Tensor) -> None:
        known = labels_N >= 0
        self.count, self.device = int(known.sum()), labels_N.device
        self.order = torch.where(known, labels_N, torch.iinfo(labels_N.dtype).max).argsort(stable=True)[: self.count]
        self.size_C = torch.bincount(labels_N[known], minlength=1)
        self.first_C = self.size_C.cumsum(0) - self.size_C
        #: As many can be drawn for every sample.
        self.fewest = self.count - int(self.size_C.max())

    def draw(self, count: int, label_B: Tensor, seed: int, update: int, index_B: Tensor) -> Tensor:
        """``[B, count]`` different samples of other classes for each, a function of (seed, update, index).

        The candidates, in the order of their classes as a ring, are cut from a random place on into ``count`` pieces of
        equal size (to one), and one is drawn from each: every candidate is as likely as in a draw without replacement,
        at a cost that does not grow with N. Without the random place those of the smaller pieces would come more often.

        Args:
            count: at most ``fewest``.
            label_B: of the samples.
            seed: of the run.
            update: of the run.
            index_B: of the samples.
        """
        own_B1, first_B1 = self.size_C[label_B][:, None], self.first_C[label_B][:, None]
        candidates_B1 = self.count - own_B1
        bounds_BK = torch.arange(count + 1, device=self.device) * candidates_B1 // max(count, 1)
        low_BK, size_BK = bounds_BK[:, :-1], bounds_BK.diff(dim=1)
        empty = torch.empty(len(label_B), count, dtype=torch.float64, device=self.device)
        draw_BK = uniform_like(empty, seed, update, index_B, 0, "negatives")
        turn_B1 = uniform_like(empty.new_empty(len(label_B), 1), seed, update, index_B, 0, "negatives.turn")
        turn_B1 = (turn_B1 * candidates_B1).long()
        place_BK = (low_BK + (draw_BK * size_BK).long() + turn_B1) % candidates_B1.clamp_min(1)
        return self.order[place_BK + (place_BK >= first_B1) * own_B1]
