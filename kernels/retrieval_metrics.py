"""Retrieval metrics of ranked lists, for one query a row, under four policies for tied scores.

Shape legend: Q queries, K positions of the ranked list, P relevant items of a query, padded. All results are float64.

A *run* is a maximal stretch of equal scores. At a position of the list, ``start`` is the number of items before its
run, ``size`` the number of items in the run and ``hits`` the relevant ones among them; both count the whole run, also
what lies beyond the list. The policies:

- ``index``: tied items stand in the order of their gallery ids, as the lists here do.
- ``optimistic`` / ``pessimistic``: the relevant items of a run come first / last.
- ``expected``: the mean over all orders of every run, in closed form. In a run of t items, p of them relevant, a
  position is relevant with probability p / t, two of its positions are with p (p - 1) / (t (t - 1)), and f of its
  positions hold no relevant item with C(t - p, f) / C(t, f). Expectations of counts, precision, average precision, hit
  rates and reciprocal ranks follow by linearity, since runs are independent of each other.

Source: Musgrave, Belongie, Lim, "A Metric Learning Reality Check" (2020), arXiv 2003.08505 (R-precision, MAP@R);
Oh Song et al., "Deep Metric Learning via Lifted Structured Feature Embedding" (2016), arXiv 1511.06452 (Recall@K as a
hit rate); McSherry, Najork, "Computing Information Retrieval Performance Measures Efficiently in the Presence of Tied
Scores" (2008).
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Ties = Literal["index", "optimistic", "pessimistic", "expected"]


@dataclass(frozen=True, slots=True)
class RelevantRanks:
    """Where the relevant items of each query stand in the whole gallery; padded with ``size_QP = 0``.

    Attributes:
        rank_QP: position from 1 in the order (score descending, gallery id ascending), ascending in each row.
        above_QP: items with a higher score.
        size_QP: items with this score, itself included.
        hits_QP: relevant items with this score, itself included.
    """

    rank_QP: Tensor
    above_QP: Tensor
    size_QP: Tensor
    hits_QP: Tensor


@dataclass(frozen=True, slots=True)
class RankedLists:
    """The first K positions of each query's list.

    Attributes:
        relevant_QK: bool, in the order (score descending, gallery id ascending).
        start_QK: items before the run of the position; ``arange(K)`` where nothing is tied.
        size_QK: items in the run of the position; 1 where nothing is tied.
        hits_QK: relevant items in that run.
    """

    relevant_QK: Tensor
    start_QK: Tensor
    size_QK: Tensor
    hits_QK: Tensor

    @classmethod
    def without_ties(cls, relevant_QK: Tensor) -> RankedLists:
        """Lists in which every score is different."""
        start_QK = torch.arange(relevant_QK.shape[1], device=relevant_QK.device).expand(relevant_QK.shape)
        return cls(relevant_QK, start_QK, torch.ones_like(start_QK), relevant_QK.long())

    @classmethod
    def of_ranks(cls, ranks: RelevantRanks, length: int) -> RankedLists:
        """What the ranks of the relevant items tell of the first positions: all, but ties among irrelevant items."""
        real_QP = ranks.size_QP > 0
        relevant_QK = torch.zeros(len(real_QP), length + 1, dtype=torch.bool, device=real_QP.device)
        relevant_QK.scatter_(1, torch.where(real_QP, ranks.rank_QP - 1, length).clamp(max=length), True)
        position_QK = torch.arange(length, device=real_QP.device).expand(len(real_QP), length).contiguous()
        above_QP = torch.where(real_QP, ranks.above_QP, torch.iinfo(torch.int64).max)
        item_QK = torch.searchsorted(above_QP, position_QK, right=True) - 1  # the last that begins here or before
        above_QK, size_QK, hits_QK = (
            field.gather(1, item_QK.clamp(min=0)) for field in (ranks.above_QP, ranks.size_QP, ranks.hits_QP)
        )
        inside_QK = (item_QK >= 0) & (position_QK < above_QK + size_QK)
        return cls(
            relevant_QK[:, :length],
            torch.where(inside_QK, above_QK, position_QK),
            torch.where(inside_QK, size_QK, 1),
            torch.where(inside_QK, hits_QK, 0),
        )


def cutoff_metrics(lists: RankedLists, relevant_Q: Tensor, ks: Sequence[int], ties: Ties) -> dict[str, Tensor]:
    """Metrics of the first K positions, ``[Q]`` each: ``recall@k``, ``precision@k``, ``ir_recall@k`` for every k.

    ``recall@k`` is the share of queries with a hit among the first k; ``ir_recall@k`` the share of the relevant items
    that is found there. A gallery shorter than k adds misses: ``precision@k`` divides by k all the same.

    Args:
        lists: ranked lists; shorter than k only where the gallery is.
        relevant_Q: number of relevant items in the gallery. A query without any gets zeros.
        ks: cutoffs, at least 1.
        ties: the policy.
    """
    single_QK, _ = _moments(lists, ties)
    missed_QK = _no_hit(lists, ties)
    hits_QK, found = single_QK.cumsum(1), relevant_Q.clamp(min=1).double()
    metrics: dict[str, Tensor] = {}
    for k in ks:
        last = min(k, hits_QK.shape[1]) - 1
        hits_Q = hits_QK[:, last] if last >= 0 else torch.zeros_like(found)
        metrics[f"recall@{k}"] = 1 - missed_QK[:, last] if last >= 0 else torch.zeros_like(found)
        metrics[f"precision@{k}"] = hits_Q / k
        metrics[f"ir_recall@{k}"] = hits_Q / found
    return metrics


def r_metrics(lists: RankedLists, relevant_Q: Tensor, ties: Ties) -> dict[str, Tensor]:
    """``r_precision`` and ``map@r``, ``[Q]`` each; the list reaches the largest number of relevant items.

    R-precision is hits(R) / R, MAP@R is (1 / R) sum over i <= R of precision(i) rel(i), R that of the query.
    """
    single_QK, joint_QK = _moments(lists, ties)
    position_K = torch.arange(1, single_QK.shape[1] + 1, device=single_QK.device)
    within_QK = position_K <= relevant_Q[:, None]
    divisor_Q = relevant_Q.clamp(min=1).double()
    return {
        "r_precision": (single_QK * within_QK).sum(1) / divisor_Q,
        "map@r": (joint_QK / position_K * within_QK).sum(1) / divisor_Q,
    }


def average_precision(ranks: RelevantRanks, relevant_Q: Tensor, ties: Ties) -> Tensor:
    """Average precision over the whole gallery, ``[Q]``: (1 / R) sum of the precisions at relevant items."""
    real_QP = ranks.size_QP > 0
    order_QP = torch.arange(1, real_QP.shape[1] + 1, device=real_QP.device).expand(real_QP.shape).double()
    if ties == "expected":
        terms_QP = _expected_precision(ranks, order_QP)
    else:
        terms_QP = order_QP / _tied_ranks(ranks, order_QP, ties).clamp(min=1)
    return (terms_QP * real_QP).sum(1) / relevant_Q.clamp(min=1)


def reciprocal_rank(rank_Q: Tensor, above_Q: Tensor, size_Q: Tensor, hits_Q: Tensor, ties: Ties) -> Tensor:
    """1 / rank of the first relevant item, ``[Q]``, from the run that holds it: as in ``RelevantRanks``."""
    if ties == "index":
        return 1 / rank_Q.double()
    if ties == "optimistic":
        return 1 / (above_Q + 1).double()
    if ties == "pessimistic":
        return 1 / (above_Q + size_Q - hits_Q + 1).double()
    result_Q = 1 / (above_Q + 1).double()
    for row in (size_Q > hits_Q).nonzero()[:, 0].tolist():
        result_Q[row] = _expected_reciprocal(int(above_Q[row]), int(size_Q[row]), int(hits_Q[row]))
    return result_Q


def _moments(lists: RankedLists, ties: Ties) -> tuple[Tensor, Tensor]:
    """``[Q, K]`` each: E[rel(i)] and E[rel(i) hits(i)], hits counted up to and with position i."""
    if ties != "expected":
        relevant_QK = _relevance(lists, ties)
        return relevant_QK, relevant_QK * relevant_QK.cumsum(1)
    start_QK, size_QK, hits_QK = lists.start_QK, lists.size_QK.double(), lists.hits_QK.double()
    chance_QK = hits_QK / size_QK
    before_QK = torch.nn.functional.pad(chance_QK.cumsum(1), (1, 0)).gather(1, start_QK).round()  # whole runs: a count
    inside_QK = torch.arange(start_QK.shape[1], device=start_QK.device) - start_QK
    pair_QK = hits_QK * (hits_QK - 1) / (size_QK * (size_QK - 1)).clamp(min=1)
    return chance_QK, chance_QK * (1 + before_QK) + inside_QK * pair_QK


def _relevance(lists: RankedLists, ties: Ties) -> Tensor:
    """``[Q, K]`` 0 or 1 under a policy that fixes the order."""
    if ties == "index":
        return lists.relevant_QK.double()
    inside_QK = torch.arange(lists.start_QK.shape[1], device=lists.start_QK.device) - lists.start_QK
    if ties == "optimistic":
        return (inside_QK < lists.hits_QK).double()
    return (inside_QK >= lists.size_QK - lists.hits_QK).double()


def _no_hit(lists: RankedLists, ties: Ties) -> Tensor:
    """``[Q, K]`` probability that the positions up to i hold no relevant item: a product of conditional ones."""
    if ties != "expected":
        return (_relevance(lists, ties).cumsum(1) == 0).double()
    left_QK = lists.size_QK - torch.arange(lists.start_QK.shape[1], device=lists.start_QK.device) + lists.start_QK
    return ((left_QK - lists.hits_QK).clamp(min=0) / left_QK.double()).cumprod(1)


def _tied_ranks(ranks: RelevantRanks, order_QP: Tensor, ties: Ties) -> Tensor:
    """``[Q, P]`` rank of the r-th relevant item under a policy that fixes the order."""
    if ties == "index":
        return ranks.rank_QP.double()
    place_QP = order_QP - 1 - _hits_above(ranks, order_QP)  # its place among the relevant items of its run
    behind_QP = ranks.size_QP - ranks.hits_QP if ties == "pessimistic" else torch.zeros_like(ranks.size_QP)
    return ranks.above_QP + behind_QP + place_QP + 1


def _hits_above(ranks: RelevantRanks, order_QP: Tensor) -> Tensor:
    """``[Q, P]`` relevant items with a higher score than the r-th."""
    first_QP = torch.ones_like(order_QP, dtype=torch.bool)
    first_QP[:, 1:] = ranks.above_QP[:, 1:] != ranks.above_QP[:, :-1]
    return ((order_QP - 1) * first_QP).cummax(1).values


def _expected_precision(ranks: RelevantRanks, order_QP: Tensor) -> Tensor:
    """``[Q, P]`` share of each relevant item in the expected sum of precisions of its run.

    With a items and H relevant ones above a run of t items, p of them relevant, the run adds
    sum over i = a + 1 .. a + t of (1 / i) [p / t (1 + H) + (i - a - 1) p (p - 1) / (t (t - 1))].
    """
    above_QP, size_QP, hits_QP = ranks.above_QP.double(), ranks.size_QP.double(), ranks.hits_QP.double()
    harmonic_QP = _harmonic(above_QP + 1, size_QP)
    single_QP = (1 + _hits_above(ranks, order_QP)) * harmonic_QP / size_QP.clamp(min=1)
    pair_QP = (hits_QP - 1) / (size_QP * (size_QP - 1)).clamp(min=1)
    return single_QP + pair_QP * (size_QP - (above_QP + 1) * harmonic_QP)


def _harmonic(first: Tensor, count: Tensor) -> Tensor:
    """Sum of 1 / i over ``count`` integers from ``first``: the difference of two digammas, without its cancellation."""
    after = first + count
    log = torch.log1p(count / first) + count / (2 * first * after)
    log = log + count * (first + after) / (12 * (first * after) ** 2)
    log = log - (first**-4 - after**-4) / 120 + (first**-6 - after**-6) / 252
    result = torch.where(first < 32, torch.digamma(after) - torch.digamma(first), log)
    return torch.where(count == 1, 1 / first, result)


@functools.lru_cache(maxsize=4096)  # a collapsed embedding asks for the same run again and again
def _expected_reciprocal(above: int, size: int, hits: int) -> float:
    """Mean of 1 / rank of the first of ``hits`` relevant items in random order among ``size``, behind ``above``."""
    left = torch.arange(size, 0, -1, dtype=torch.float64)  # items not placed yet
    missed = ((left - hits).clamp(min=0) / left).cumprod(0)
    first = torch.cat([torch.ones(1, dtype=torch.float64), missed[:-1]]) - missed
    return float((first / (above + 1 + torch.arange(size))).sum())
