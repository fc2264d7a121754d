"""Unified negative pair generation: negative pairs of the batch beside the classes of a margin softmax.

Jung, Lee, Oh, Park, Park, Son. "Unified Negative Pair Generation toward Well-discriminative Feature Space for Face
Recognition". BMVC 2022, arXiv 2203.11593.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from kernels.margin_softmax import class_labels
from kernels.pairs import pair_masks


def unpg_negatives(
    similarity_BN: Tensor,
    labels_B: Tensor,
    *,
    wisk: float = 1.5,
    column_labels: Tensor | None = None,
    first_own: int = 0,
) -> Tensor:
    """Similarities of the pairs of two classes, each pair once, without the outliers of a box-and-whisker plot.

    With the n values sorted, ``q1 = value[n // 4]``, ``q3 = value[3 n // 4]``; kept is what lies within
    ``[q1 - wisk (q3 - q1), q3 + wisk (q3 - q1)]``: a pair too similar may be a wrong label, a pair too far teaches
    nothing. The choice is detached; gradients flow through the values.

    Args:
        similarity_BN: cosines of the batch with itself (see ``kernels.pairs.similarities``). Several processes give
            those of the gathered batch with itself, on each of them: the box is that of the whole batch.
        labels_B: ``[B]`` integer classes; samples of class -1 form no pair.
        wisk: length of the whiskers in boxes; infinity keeps every pair.
        column_labels: ``[N]`` classes of the columns where they are not the rows.
        first_own: which column the first row is; pairs with earlier columns belong to other rows.

    Returns:
        ``[K]`` kept similarities; none without pairs.

    Raises:
        ValueError: a negative ``wisk``; labels that are not integers.

    Example:
        >>> unpg_negatives(torch.eye(3), torch.tensor([0, 1, 1]))
        tensor([0., 0.])
    """
    if not wisk >= 0:
        raise ValueError(f"wisk must be at least 0 (infinity keeps every pair), got {wisk}")
    columns = labels_B if column_labels is None else column_labels
    negative_BN = pair_masks(labels_B, column_labels, first_own)[1]
    negative_BN = negative_BN & (labels_B >= 0)[:, None] & (columns >= 0)
    pairs_n = similarity_BN[negative_BN.triu(1 + first_own)]
    n = len(pairs_n)
    if n == 0 or wisk == float("inf"):
        return pairs_n
    ordered_n = pairs_n.detach().sort().values
    q1, q3 = ordered_n[n // 4], ordered_n[3 * n // 4]
    whisker = wisk * (q3 - q1)
    return pairs_n[(pairs_n.detach() >= q1 - whisker) & (pairs_n.detach() <= q3 + whisker)]


def unpg_loss(logits_BC: Tensor, labels_B: Tensor, pairs_K: Tensor) -> Tensor:
    """Cross-entropy of each row over its own logits and, as further negatives, the pairs that all rows share.

    ``-log( exp(z_y) / (sum_c exp(z_c) + sum_k exp(pair_k)) )``. The sum over pairs is one number for all rows, so
    nothing of size B x K is made.

    Args:
        logits_BC: ``[B, C]`` scaled logits with their margin (see ``kernels.margin_softmax``).
        labels_B: ``[B]`` classes below C; -1 costs nothing.
        pairs_K: ``[K]`` what ``unpg_negatives`` kept, times the scale of the logits.

    Returns:
        ``[B]``, in at least float32; the plain cross-entropy for K = 0.

    Raises:
        ValueError: labels that do not fit.

    Example:
        >>> unpg_loss(torch.zeros(1, 2), torch.tensor([0]), torch.zeros(2))
        tensor([1.3863])
    """
    logits_BC = logits_BC.to(torch.promote_types(logits_BC.dtype, torch.float32))
    labels_B = class_labels(labels_B, logits_BC)
    if len(pairs_K) == 0:
        return F.cross_entropy(logits_BC, labels_B, reduction="none", ignore_index=-1)
    shared = pairs_K.to(logits_BC.dtype).logsumexp(0)
    own_B = logits_BC.gather(1, labels_B.clamp_min(0)[:, None]).squeeze(1)
    return (torch.logaddexp(logits_BC.logsumexp(1), shared) - own_B).masked_fill(labels_B < 0, 0.0)
