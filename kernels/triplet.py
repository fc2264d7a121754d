"""Triplet loss with all, semi-hard or the hardest triplets of a batch, without an array of all triplets.

Schroff, Kalenichenko, Philbin. "FaceNet: A Unified Embedding for Face Recognition and Clustering". CVPR 2015, arXiv
1503.03832. Hermans, Beyer, Leibe. "In Defense of the Triplet Loss for Person Re-Identification". 2017, arXiv
1703.07737.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from kernels.contrastive import chord, whole_batch
from kernels.pairs import check_labels, pair_masks, similarities

DISTANCES = ("l2", "squared_l2", "cosine")
MININGS = ("all", "semi_hard", "hard")
BLOCK = 2**22  # triplets of the soft margin that lie in memory at once


class Mined(NamedTuple):
    """Of each anchor: the sum of its terms, the number of its triplets, and the number of those with a loss."""

    total_B: Tensor
    number_B: Tensor
    nonzero_B: Tensor


def triplet_loss(
    embeddings_BD: Tensor,
    labels_B: Tensor,
    *,
    margin: float | None,
    mining: Literal["all", "semi_hard", "hard"] = "all",
    distance: Literal["l2", "squared_l2", "cosine"] = "l2",
    over: Literal["mean", "nonzero"] = "mean",
    columns: Tensor | None = None,
    column_labels: Tensor | None = None,
    first_own: int = 0,
    anchors: int | None = None,
) -> Tensor:
    """Mean of ``relu(d(a, p) - d(a, n) + margin)`` over triplets of each anchor a, on embeddings of length 1.

    - "all": every positive p with every negative n. With a margin by sorting, O(B N log N) time and O(B N) memory;
      the soft margin visits every triplet, in blocks that are computed again in the backward.
    - "semi_hard": for each positive the nearest of the negatives that are farther than it (Schroff et al.); a positive
      with none forms no triplet. O(B N log N).
    - "hard": the farthest positive with the nearest negative (Hermans et al., "batch hard").

    Schroff et al. measure the squared distance of unit vectors (``squared_l2``, margin 0.2). "cosine" is ``1 - s``,
    half of that. Hermans et al. do not normalize; here embeddings are.

    Args:
        embeddings_BD: ``[B, D]``; they are normalized here.
        labels_B: ``[B]`` integer classes.
        margin: None for the soft margin of Hermans et al., ``log(1 + exp(d(a, p) - d(a, n)))``.
        mining: which triplets.
        distance: how pairs are measured.
        over: "mean" over the triplets of an anchor. "nonzero" is one value of the batch, the mean over its triplets
            with a loss, spread over the anchors: its mean over them is that value.
        columns: ``[N, D]`` candidates, by default the anchors (see ``kernels.pairs``).
        column_labels: ``[N]`` their classes.
        first_own: which column the first anchor is.
        anchors: for "nonzero" with columns, as in ``contrastive_loss``.

    Returns:
        ``[B]``, in at least float32; 0 without a triplet.

    Raises:
        ValueError: an unknown choice, labels or columns that do not fit, columns without ``anchors`` where they
            are needed.

    Example:
        >>> points = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
        >>> triplet_loss(points, torch.tensor([0, 0, 1]), margin=0.5, distance="cosine")
        tensor([1.5000, 0.5000, 0.0000])
    """
    if mining not in MININGS or distance not in DISTANCES or over not in ("mean", "nonzero"):
        raise ValueError(
            f"mining {mining!r}, distance {distance!r}, over {over!r}; choose {', '.join(MININGS)}; "
            f"{', '.join(DISTANCES)}; mean or nonzero"
        )
    check_labels(embeddings_BD, labels_B, columns, column_labels, first_own)
    if not len(labels_B):
        return similarities(embeddings_BD, columns).sum(1)  # nothing, in the graph of what would have been compared

    def mine(rows: Tensor, labels: Tensor, first: int) -> Mined:
        positive_BN, negative_BN = pair_masks(labels, column_labels, first)
        similarity_BN = similarities(rows, columns)
        if distance == "l2":
            distance_BN = chord(similarity_BN)
        else:
            distance_BN = (1 - similarity_BN) * (2 if distance == "squared_l2" else 1)
        chosen = _all if mining == "all" else _semi_hard if mining == "semi_hard" else _hard
        return chosen(distance_BN, positive_BN, negative_BN, margin)

    mined = mine(embeddings_BD, labels_B, first_own)
    if over == "mean":
        return mined.total_B / mined.number_B.clamp_min(1)
    counted_B = mined.nonzero_B
    if columns is not None and column_labels is not None:
        whole = whole_batch(len(labels_B), len(columns), first_own, anchors)
        with torch.no_grad():
            counted_B = mine(columns[:whole], column_labels[:whole], 0).nonzero_B
    return len(counted_B) * mined.total_B / counted_B.sum().clamp_min(1)


def _cost(difference: Tensor, margin: float | None) -> Tensor:
    return F.softplus(difference) if margin is None else F.relu(difference + margin)


def _hard(distance_BN: Tensor, positive_BN: Tensor, negative_BN: Tensor, margin: float | None) -> Mined:
    farthest_B = distance_BN.masked_fill(~positive_BN, -torch.inf).amax(1)
    nearest_B = distance_BN.masked_fill(~negative_BN, torch.inf).amin(1)
    cost_B = _cost(farthest_B - nearest_B, margin)  # of -inf, without one of the two: 0 with zero gradient
    nonzero_B = (cost_B > 0).long()
    return Mined(cost_B, torch.ones_like(nonzero_B), nonzero_B)


def _semi_hard(distance_BN: Tensor, positive_BN: Tensor, negative_BN: Tensor, margin: float | None) -> Mined:
    sorted_BN = distance_BN.masked_fill(~negative_BN, torch.inf).sort(1).values
    farther_BN = torch.searchsorted(sorted_BN.detach(), distance_BN.detach(), right=True)
    nearest_BN = sorted_BN.gather(1, farther_BN.clamp_max(distance_BN.shape[1] - 1))
    triplet_BN = positive_BN & (farther_BN < negative_BN.sum(1, keepdim=True))
    cost_BN = _cost((distance_BN - nearest_BN).masked_fill(~triplet_BN, -torch.inf), margin)
    return Mined(cost_BN.sum(1), triplet_BN.sum(1), (cost_BN > 0).sum(1))


def _all(distance_BN: Tensor, positive_BN: Tensor, negative_BN: Tensor, margin: float | None) -> Mined:
    number_B = positive_BN.sum(1) * negative_BN.sum(1)
    if margin is None:
        return Mined(_soft_sum(distance_BN, positive_BN, negative_BN), number_B, number_B)
    sorted_BN = distance_BN.masked_fill(~negative_BN, torch.inf).sort(1).values
    reach_BN = distance_BN + margin
    below_BN = torch.searchsorted(sorted_BN.detach(), reach_BN.detach())  # the negatives that cost something
    running_BN = F.pad(sorted_BN.cumsum(1), (1, 0))  # infinite only behind the last negative, where none points
    cost_BN = below_BN * reach_BN - running_BN.gather(1, below_BN)
    return Mined((cost_BN * positive_BN).sum(1), number_B, (below_BN * positive_BN).sum(1))


def _soft_sum(distance_BN: Tensor, positive_BN: Tensor, negative_BN: Tensor) -> Tensor:
    """Sum of the soft margin over all triplets of each anchor, a block of anchor-positive pairs at a time."""

    def block(distance_BN: Tensor, anchor_M: Tensor, positive_M: Tensor) -> Tensor:
        difference_MN = distance_BN[anchor_M, positive_M][:, None] - distance_BN[anchor_M]
        return _cost(difference_MN.masked_fill(~negative_BN[anchor_M], -torch.inf), None).sum(1)

    total_B = distance_BN.new_zeros(len(distance_BN))
    for pairs in positive_BN.nonzero().split(max(1, BLOCK // distance_BN.shape[1])):  # one empty block for no pair
        anchor_M, positive_M = pairs.unbind(1)
        cost_M = checkpoint(block, distance_BN, anchor_M, positive_M, use_reentrant=False, preserve_rng_state=False)
        total_B = total_B.index_add(0, anchor_M, cost_M)
    return total_B
