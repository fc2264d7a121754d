"""Rankings into means: metrics of each query, summed by class as they come, so that no table of all queries is kept.

Shape legend: B queries, C classes, K positions.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from kernels.retrieval_metrics import (
    RankedLists,
    Ties,
    average_precision,
    cutoff_metrics,
    r_metrics,
    reciprocal_rank,
)
from lightning_modules.distributed import total_over_processes
from lightning_modules.retrieval.labels import Relevance
from lightning_modules.retrieval.ranks import ranks
from lightning_modules.retrieval.scores import Array, Scores
from lightning_modules.retrieval.search import Ranking


@dataclass(frozen=True, slots=True)
class Plan:
    """What is measured.

    Attributes:
        ks: cutoffs.
        ties: policy for equal scores.
        full_map: average precision over the whole gallery as well.
        cutoff: neighbours in the lists where ranks beyond them are unknown (an approximate index); else None.
    """

    ks: tuple[int, ...]
    ties: Ties
    full_map: bool
    cutoff: int | None = None

    @property
    def first_hit(self) -> str:
        """Name of the mean reciprocal rank: one that was cut off says where."""
        return "mrr" if self.cutoff is None else f"mrr@{self.cutoff}"

    @property
    def names(self) -> list[str]:
        recall, precision, ir_recall = (
            [f"{name}@{k}" for k in self.ks] for name in ("recall", "precision", "ir_recall")
        )
        whole = ["map@r", "r_precision", *(["map"] if self.full_map else []), self.first_hit]
        return [*recall, *whole, *precision, *ir_recall]  # what is quoted most comes first


class ClassSums:
    """Sums of metrics by class.

    Attributes:
        names: metrics, the columns of ``sums``.
        sums: ``[C, metrics]``.
        queries: ``[C]`` queries; ``lone`` of them without a relevant item.
        tied: queries with several best neighbours, and the queries that were looked at for it.
    """

    def __init__(self, names: list[str], classes: int) -> None:
        self.names, self.sums = names, np.zeros((classes, len(names)))
        self.queries, self.lone, self.tied = np.zeros(classes), np.zeros(classes), np.zeros(2)

    def add(self, classes_B: Array, metrics: dict[str, Tensor]) -> None:
        """Add the values of some queries; queries without a relevant item bring zeros."""
        for name, value_B in metrics.items():
            column = self.names.index(name)
            self.sums[:, column] += np.bincount(classes_B, value_B.numpy(), len(self.sums))

    def over_processes(self, device: torch.device) -> None:
        """Make them the sums over all processes."""
        fields = [self.sums, self.queries, self.lone, self.tied]
        flat = torch.from_numpy(np.concatenate([field.ravel() for field in fields])).to(device)
        total = total_over_processes(flat).cpu().numpy()
        for field, part in zip(fields, np.split(total, np.cumsum([field.size for field in fields])[:-1]), strict=True):
            field[:] = part.reshape(field.shape)

    def counted(self, lone: str) -> Array:
        """``[C]`` queries that the means are over."""
        return self.queries - self.lone if lone == "exclude" else self.queries

    def means(self, lone: str, macro: bool) -> dict[str, float]:
        """Means over queries, and over classes of their queries' means."""
        count = self.counted(lone)
        result = dict(zip(self.names, (self.sums.sum(0) / count.sum()).tolist(), strict=True))
        if macro:
            asked = count > 0
            over_classes = (self.sums[asked] / count[asked, None]).mean(0)
            result |= {f"macro_{name}": value for name, value in zip(self.names, over_classes.tolist(), strict=True)}
        return result


def measure(scores: Scores, relevance: Relevance, plan: Plan, rankings: Iterable[Ranking] | None) -> ClassSums:
    """Sums over all queries of the scores.

    Args:
        scores: of queries with the gallery.
        relevance: the relevant items.
        plan: what is measured.
        rankings: of all queries, each list as long as the largest cutoff or number of relevant items, or the gallery.
            None where all ranks of relevant items are to be counted: they tell the rest.
    """
    sums = ClassSums(plan.names, len(relevance.classes))
    sums.queries += np.bincount(relevance.class_Q, minlength=len(sums.queries))
    sums.lone += np.bincount(relevance.class_Q[relevance.total_Q == 0], minlength=len(sums.queries))
    left = np.flatnonzero(relevance.total_Q > 0)
    if rankings is not None:
        unknown = _add_lists(sums, relevance, plan, rankings)
        left = left if plan.full_map else unknown
    if plan.cutoff is None:
        _add_ranks(sums, scores, relevance, plan, left, rankings is None)
    return sums


def _add_lists(sums: ClassSums, relevance: Relevance, plan: Plan, rankings: Iterable[Ranking]) -> Array:
    """What the first neighbours tell; the queries whose first relevant item is not among them."""
    unknown = []
    for ranking in rankings:
        kind, total = relevance.class_Q[ranking.queries], relevance.total_Q[ranking.queries]
        lists = listed(ranking, relevance, plan.ties)
        sums.add(kind, _of_lists(lists, total, plan))
        if not plan.full_map:
            found_B, value_B = _first_hit(lists, plan.ties)
            sums.add(kind, {plan.first_hit: value_B})
            unknown.append(ranking.queries[~found_B.numpy() & (total > 0)])
    return np.concatenate(unknown) if unknown else np.empty(0, dtype=np.int64)


def _of_lists(lists: RankedLists, total: Array, plan: Plan) -> dict[str, Tensor]:
    total_B = torch.from_numpy(total)
    return cutoff_metrics(lists, total_B, plan.ks, plan.ties) | r_metrics(lists, total_B, plan.ties)


def _add_ranks(
    sums: ClassSums, scores: Scores, relevance: Relevance, plan: Plan, queries: Array, everything: bool
) -> None:
    """What needs ranks in the whole gallery, or all that they tell."""
    width = min(plan.ks[-1], len(scores.gallery)) if everything else 1
    for part, found in ranks(scores, relevance, queries, first_only=not (plan.full_map or everything), width=width):
        kind, total = relevance.class_Q[part], relevance.total_Q[part]
        rank, above, size, hits = (x[:, 0] for x in (found.rank_QP, found.above_QP, found.size_QP, found.hits_QP))
        values = {plan.first_hit: reciprocal_rank(rank, above, size, hits, plan.ties)}
        if plan.full_map:
            values["map"] = average_precision(found, torch.from_numpy(total), plan.ties)
        if everything:
            length = min(max(plan.ks[-1], int(total.max())), len(scores.gallery))
            values |= _of_lists(RankedLists.of_ranks(found, length), total, plan)
        sums.add(kind, values)


def listed(ranking: Ranking, relevance: Relevance, ties: Ties) -> RankedLists:
    """What the metrics need of a ranking."""
    relevant_BK = torch.from_numpy(relevance.hits(ranking.queries[:, None], ranking.columns))
    if ties == "index":
        return RankedLists.without_ties(relevant_BK)
    start_BK = torch.from_numpy(ranking.start)
    last_BK, empty = start_BK == start_BK[:, -1:], torch.zeros_like(start_BK)
    size_BK = empty.scatter_add(1, start_BK, torch.ones_like(start_BK)).gather(1, start_BK)
    hits_BK = empty.scatter_add(1, start_BK, relevant_BK.long()).gather(1, start_BK)
    size_BK = torch.where(last_BK, torch.from_numpy(ranking.last_size)[:, None], size_BK)
    hits_BK = torch.where(last_BK, torch.from_numpy(ranking.last_hits)[:, None], hits_BK)
    return RankedLists(relevant_BK, start_BK, size_BK, hits_BK)


def _first_hit(lists: RankedLists, ties: Ties) -> tuple[Tensor, Tensor]:
    """``[B]`` each: whether a list tells the rank of the first relevant item, and 1 / rank (0 where it does not)."""
    here_BK = lists.relevant_QK if ties == "index" else lists.hits_QK > 0
    found_B, place_B = here_BK.max(1)
    fields = (lists.start_QK, lists.size_QK, lists.hits_QK)
    start_B, size_B, hits_B = (field.gather(1, place_B[:, None])[:, 0] for field in fields)
    return found_B, reciprocal_rank(place_B + 1, start_B, size_B, hits_B.clamp(min=1), ties) * found_B
