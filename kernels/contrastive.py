"""Contrastive loss: pairs of one class are drawn together, pairs of two classes are pushed apart up to a margin.

Hadsell, Chopra, LeCun. "Dimensionality Reduction by Learning an Invariant Mapping". CVPR 2006. Without
squares, and with the two means over what is not zero, as the code of: Venkataramanan, Psomas, Kijak, Amsaleg,
Karantzalos, Avrithis. "It Takes Two to Tango: Mixup for Deep Metric Learning". ICLR 2022, arXiv 2106.04990.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from kernels.pairs import check_labels, pair_masks, similarities

POS_MARGINS = {"cosine": 1.0, "l2": 0.0}  # what a pair at distance zero has: all positives are drawn together


def contrastive_loss(
    embeddings_BD: Tensor,
    labels_B: Tensor,
    *,
    distance: Literal["cosine", "l2"] = "cosine",
    pos_margin: float | None = None,
    neg_margin: float = 0.5,
    squared: bool = False,
    over: Literal["sum", "nonzero"] = "sum",
    columns: Tensor | None = None,
    column_labels: Tensor | None = None,
    first_own: int = 0,
    anchors: int | None = None,
) -> Tensor:
    """Contrastive loss of each anchor.

    With ``s`` the cosine similarity and ``d`` the distance of the embeddings brought to length 1, a pair costs

    ========  =========================  =========================
    distance  pair of one class          pair of two classes
    ========  =========================  =========================
    cosine    ``relu(pos_margin - s)``   ``relu(s - neg_margin)``
    l2        ``relu(d - pos_margin)``   ``relu(neg_margin - d)``
    ========  =========================  =========================

    - The generic form of pair losses (``-s`` and ``relu(s - m)``, sums): the defaults, which only add the constant 1
      for each positive pair, so that the loss has its minimum at zero.
    - Hadsell et al.: ``distance="l2", squared=True, neg_margin=1`` (half of the squares of the table).
    - Code of Venkataramanan et al.: ``distance="l2", over="nonzero"``.

    Args:
        embeddings_BD: ``[B, D]`` of any length; they are normalized here.
        labels_B: ``[B]`` integer classes.
        distance: how pairs are measured.
        pos_margin: None for 1 (cosine) and 0 (l2).
        neg_margin: where a pair of two classes begins to cost.
        squared: half of the square of each term.
        over: "sum" over the pairs of an anchor. "nonzero" is one value of the batch, the mean of the positive terms
            that are not zero plus that of the negative ones, spread over the anchors: its mean over them is that value.
        columns: ``[N, D]`` candidates, by default the anchors (see ``kernels.pairs``).
        column_labels: ``[N]`` their classes.
        first_own: which column the first anchor is.
        anchors: for "nonzero" with columns: how many columns, from the first, are anchors of the whole batch (N for a
            gathered batch; without the memory where one follows). All their terms are counted.

    Returns:
        ``[B]``, in at least float32; 0 without a pair.

    Raises:
        ValueError: an unknown distance or reduction, labels or columns that do not fit, columns without ``anchors``
            where they are needed.

    Example:
        >>> contrastive_loss(torch.eye(2), torch.tensor([0, 0]))
        tensor([1., 1.])
    """
    if distance not in POS_MARGINS or over not in ("sum", "nonzero"):
        raise ValueError(f"distance {distance!r} over {over!r}; choose cosine or l2, and sum or nonzero")
    check_labels(embeddings_BD, labels_B, columns, column_labels, first_own)
    pos_margin = POS_MARGINS[distance] if pos_margin is None else pos_margin

    def terms(rows: Tensor, labels: Tensor, first: int) -> tuple[Tensor, Tensor]:
        positive_BN, negative_BN = pair_masks(labels, column_labels, first)
        cost_BN = similarities(rows, columns)
        cost_BN = -cost_BN if distance == "cosine" else chord(cost_BN)
        sign = -1.0 if distance == "cosine" else 1.0
        pull_BN, push_BN = F.relu(cost_BN - sign * pos_margin), F.relu(sign * neg_margin - cost_BN)
        if squared:
            pull_BN, push_BN = pull_BN.square() / 2, push_BN.square() / 2
        return pull_BN * positive_BN, push_BN * negative_BN

    pull_BN, push_BN = terms(embeddings_BD, labels_B, first_own)
    if over == "sum":
        return pull_BN.sum(1) + push_BN.sum(1)
    counted = pull_BN, push_BN
    if columns is not None and column_labels is not None:
        whole = whole_batch(len(labels_B), len(columns), first_own, anchors)
        with torch.no_grad():
            counted = terms(columns[:whole], column_labels[:whole], 0)
    pulls, pushes = (term.count_nonzero().clamp_min(1) for term in counted)
    return len(counted[0]) * (pull_BN.sum(1) / pulls + push_BN.sum(1) / pushes)


def chord(similarity: Tensor) -> Tensor:
    """Euclidean distance of unit vectors from their cosine, ``sqrt(2 - 2 s)``; zero with zero gradient at s = 1."""
    return root(2 - 2 * similarity)


def root(value: Tensor) -> Tensor:
    """Square root; zero with zero gradient below what rounding leaves of ``2 - 2 s`` for a vector with itself."""
    floor = 16 * torch.finfo(value.dtype).eps  # 11 was the most of 256 vectors in 16 to 2048 dimensions
    return torch.where(value > floor, value.clamp_min(floor).sqrt(), 0.0)


def whole_batch(own: int, columns: int, first_own: int, anchors: int | None) -> int:
    """The number of leading columns that are anchors of the whole batch.

    Raises:
        ValueError: it is not said, or these anchors are not among them.
    """
    if anchors is None or not first_own + own <= anchors <= columns:
        raise ValueError(
            f"anchors={anchors} with {columns} columns, of which {first_own} to {first_own + own - 1} are the anchors "
            'here; over="nonzero" counts the terms of the whole batch, so say how many columns it is (the gathered '
            "batch, without a memory behind it)"
        )
    return anchors
