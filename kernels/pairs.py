"""What losses on pairs share: cosine similarities of anchors with candidates, and which of the pairs are positive.

Shape legend: B anchors, N candidates (the columns), D dimensions of the embedding. Without ``columns`` the candidates
are the anchors themselves; with them, anchor i is column ``first_own + i`` (the gathered batch of several processes, a
memory of earlier batches behind it).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

#: A row shorter than this has no direction.
SHORTEST = 1e-12


def lengths(rows: Tensor) -> Tensor:
    """Lengths of rows ``[..., 1]``; infinite for one without direction, so that dividing by it gives zeros."""
    length = torch.linalg.vector_norm(rows, dim=-1, keepdim=True)
    return length.masked_fill(length <= SHORTEST, float("inf"))


def unit(rows: Tensor) -> Tensor:
    """Rows of length 1, in at least float32 (float64 stays float64); a row of zeros stays one, with zero gradient.

    ``torch.nn.functional.normalize`` has the same values; its gradient at a row of zeros is 1e12 times the upstream.
    """
    rows = rows.to(torch.promote_types(rows.dtype, torch.float32))
    return rows / lengths(rows)


def check_embeddings(embeddings_BD: Tensor, columns_ND: Tensor | None = None) -> None:
    """Two matrices of rows of the same width.

    Raises:
        ValueError: shapes that do not fit.
    """
    columns_ND = embeddings_BD if columns_ND is None else columns_ND
    if embeddings_BD.ndim != 2 or columns_ND.ndim != 2 or embeddings_BD.shape[1] != columns_ND.shape[1]:
        raise ValueError(
            f"embeddings of shape {list(embeddings_BD.shape)} and columns of shape {list(columns_ND.shape)}; they must "
            "be [B, D] and [N, D]"
        )


def similarities(embeddings_BD: Tensor, columns_ND: Tensor | None = None) -> Tensor:
    """Cosine similarities ``[B, N]`` in at least float32, also under autocast.

    Raises:
        ValueError: shapes that do not fit.
    """
    check_embeddings(embeddings_BD, columns_ND)
    with torch.autocast(embeddings_BD.device.type, enabled=False):
        rows_BD = unit(embeddings_BD)
        return rows_BD @ (rows_BD if columns_ND is None or columns_ND is embeddings_BD else unit(columns_ND)).T


def check_labels(
    embeddings_BD: Tensor,
    labels_B: Tensor,
    columns_ND: Tensor | None = None,
    column_labels_N: Tensor | None = None,
    first_own: int = 0,
) -> None:
    """One integer class for each anchor and each column, and a place among the columns for each anchor.

    Raises:
        ValueError: labels of another kind or number, columns without labels or the reverse, a place out of range.
    """
    if (columns_ND is None) != (column_labels_N is None):
        raise ValueError("columns and column_labels belong together: give both or neither")
    columns_ND = embeddings_BD if columns_ND is None else columns_ND
    column_labels_N = labels_B if column_labels_N is None else column_labels_N
    for labels, rows in ((labels_B, embeddings_BD), (column_labels_N, columns_ND)):
        if labels.ndim != 1 or labels.is_floating_point() or labels.shape != rows.shape[:1]:
            raise ValueError(
                f"labels of shape {list(labels.shape)} and dtype {labels.dtype} for {list(rows.shape[:1])} samples; "
                "pairs need one integer class a sample"
            )
    if not 0 <= first_own <= len(column_labels_N) - len(labels_B):
        raise ValueError(
            f"first_own is {first_own}, but {len(labels_B)} anchors among {len(column_labels_N)} columns start at 0 .. "
            f"{len(column_labels_N) - len(labels_B)}"
        )


def pair_masks(labels_B: Tensor, column_labels_N: Tensor | None = None, first_own: int = 0) -> tuple[Tensor, Tensor]:
    """Boolean ``[B, N]``: the pairs of one class without that of an anchor with itself, and the pairs of two classes.

    An anchor is left out by its position, so an exact duplicate of it is a positive like any other.

    Raises:
        ValueError: labels that are not ``[B]`` integers, anchors that do not lie among the columns.
    """
    check_labels(labels_B, labels_B, column_labels_N, column_labels_N, first_own)
    same_BN = labels_B[:, None] == (labels_B if column_labels_N is None else column_labels_N)[None, :]
    negative_BN = ~same_BN
    same_BN.diagonal(first_own).fill_(False)
    return same_BN, negative_BN


def hardest(similarity_BN: Tensor, negative_BN: Tensor, k: int) -> Tensor:
    """Of the negatives of each anchor only the k most similar ones, boolean ``[B, N]``; of equals the first.

    Raises:
        ValueError: k below 1.
    """
    if k < 1:
        raise ValueError(f"k must be at least 1 negative an anchor, got {k}")
    if k >= negative_BN.shape[1]:
        return negative_BN.clone()
    ranked_BN = similarity_BN.detach().masked_fill(~negative_BN, float("-inf"))
    least_B1 = ranked_BN.topk(k, dim=1).values[:, -1:]
    above_BN = ranked_BN > least_B1
    equal_BN = (ranked_BN == least_B1) & negative_BN
    first_BN = equal_BN.cumsum(1) <= k - above_BN.sum(1, keepdim=True)
    return above_BN | (equal_BN & first_BN)


def pair_weights(loss: Callable[[Tensor], Tensor], similarity_BN: Tensor) -> Tensor:
    """General Pair Weighting: ``w_ij = |dL / dS_ij|`` of any loss on similarities, ``[B, N]``.

    Wang et al., CVPR 2019, arXiv 1904.06627: the loss has the gradient of ``sum_neg w_ij S_ij - sum_pos w_ij S_ij``
    with these weights held fixed, so they say which pairs it works on.

    Args:
        loss: similarities ``[B, N]`` to a tensor of losses, which are summed.
        similarity_BN: the point; left as it is.

    Example:
        >>> pair_weights(lambda s: s.square() / 2, torch.tensor([[0.5, -0.25]]))
        tensor([[0.5000, 0.2500]])
    """
    with torch.enable_grad():
        leaf_BN = similarity_BN.detach().clone().requires_grad_()
        return torch.autograd.grad(loss(leaf_BN).sum(), leaf_BN)[0].abs()
