"""What losses on pairs share: cosine similarities of anchors with candidates, and which of the pairs are positive.

Shape legend: B anchors, N candidates (the columns), D dimensions of the embedding. Without ``columns`` the candidates
are the anchors themselves; with them, anchor i is column ``first_own + i`` (the gathered batch of several processes, a
memory of earlier batches behind it).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def unit(rows: Tensor) -> Tensor:
    """Rows of length 1, in at least float32 (float64 stays float64); a row of zeros stays one, with zero gradient."""
    rows = rows.to(torch.promote_types(rows.dtype, torch.float32))
    return F.normalize(rows, dim=-1)


def similarities(embeddings_BD: Tensor, columns_ND: Tensor | None = None) -> Tensor:
    """Cosine similarities ``[B, N]`` in at least float32, also under autocast.

    Raises:
        ValueError: shapes that do not fit.
    """
    columns_ND = embeddings_BD if columns_ND is None else columns_ND
    if embeddings_BD.ndim != 2 or columns_ND.ndim != 2 or embeddings_BD.shape[1] != columns_ND.shape[1]:
        raise ValueError(
            f"embeddings of shape {list(embeddings_BD.shape)} and columns of shape {list(columns_ND.shape)}; they must "
            "be [B, D] and [N, D]"
        )
    with torch.autocast(embeddings_BD.device.type, enabled=False):
        rows_BD = unit(embeddings_BD)
        return rows_BD @ (rows_BD if columns_ND is embeddings_BD else unit(columns_ND)).T


def pair_masks(
    labels_B: Tensor, column_labels_N: Tensor | None = None, first_own: int = 0
) -> tuple[Tensor, Tensor]:
    """Boolean ``[B, N]``: the pairs of one class without that of an anchor with itself, and the pairs of two classes.

    An anchor is left out by its position, so an exact duplicate of it is a positive like any other.

    Raises:
        ValueError: labels that are not ``[B]`` integers.
    """
    column_labels_N = labels_B if column_labels_N is None else column_labels_N
    for labels in (labels_B, column_labels_N):
        if labels.ndim != 1 or labels.is_floating_point():
            raise ValueError(
                f"labels of shape {list(labels.shape)} and dtype {labels.dtype}; pairs need one integer class a sample"
            )
    same_BN = labels_B[:, None] == column_labels_N[None, :]
    own_B = torch.arange(len(labels_B), device=labels_B.device)
    positive_BN = same_BN.clone()
    positive_BN[own_B, own_B + first_own] = False
    return positive_BN, ~same_BN
