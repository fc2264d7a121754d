"""InfoNCE: a positive pair against negatives, all of them or the hardest of each anchor.

van den Oord, Li, Vinyals. "Representation Learning with Contrastive Predictive Coding". 2018, arXiv 1807.03748.
Two views (NT-Xent): Chen, Kornblith, Norouzi, Hinton. "A Simple Framework for Contrastive Learning of Visual
Representations". ICML 2020, arXiv 2002.05709. Hard negatives only: Wang, Liu. "Understanding the Behaviour of
Contrastive Loss". CVPR 2021, arXiv 2012.09740.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.pairs import check_labels, pair_masks, similarities


def info_nce_loss(
    embeddings_BD: Tensor,
    labels_B: Tensor,
    *,
    temperature: float = 0.1,
    hard_fraction: float = 1.0,
    columns: Tensor | None = None,
    column_labels: Tensor | None = None,
    first_own: int = 0,
) -> Tensor:
    """Mean over the positives p of each anchor i of ``-log(e_ip / (e_ip + sum_{n negative} e_in))``.

    ``e_ij = exp(s_ij / temperature)``, s the cosine similarity. Other positives are not in the denominator, unlike in
    ``sup_con_loss``; with one positive an anchor (labels that name instances) both are NT-Xent.

    Args:
        embeddings_BD: ``[B, D]``; they are normalized here.
        labels_B: ``[B]`` integer classes, or names of instances.
        temperature: > 0.
        hard_fraction: share of the negatives of each anchor that are kept, the most similar, to the nearest number
            and at least one; useful for temperatures from about 0.3 up, where all negatives weigh alike. Which are
            kept is detached; equal similarities are kept together.
        columns: ``[N, D]`` candidates, by default the anchors (see ``kernels.pairs``).
        column_labels: ``[N]`` their classes.
        first_own: which column the first anchor is.

    Returns:
        ``[B]``, in at least float32; 0 without a positive or without a negative.

    Raises:
        ValueError: temperature or fraction outside its range; labels or columns that do not fit.

    Example:
        >>> info_nce_loss(torch.eye(4), torch.tensor([0, 0, 1, 1]))
        tensor([1.0986, 1.0986, 1.0986, 1.0986])
    """
    if not temperature > 0 or not 0 < hard_fraction <= 1:
        raise ValueError(
            f"temperature {temperature} and hard_fraction {hard_fraction}; the first must be positive, the second in "
            "(0, 1], where 1 keeps all negatives"
        )
    check_labels(embeddings_BD, labels_B, columns, column_labels, first_own)
    positive_BN, negative_BN = pair_masks(labels_B, column_labels, first_own)
    logits_BN = similarities(embeddings_BD, columns) / temperature
    if hard_fraction < 1:
        negative_BN = _hardest(logits_BN.detach(), negative_BN, hard_fraction)
    never = torch.finfo(logits_BN.dtype).min  # finite: logsumexp of -inf alone has a gradient of NaN
    against_B1 = logits_BN.masked_fill(~negative_BN, never).logsumexp(1, keepdim=True)
    cost_BN = torch.logaddexp(logits_BN, against_B1) - logits_BN
    return (cost_BN * positive_BN).sum(1) / positive_BN.sum(1).clamp_min(1)


def nt_xent_loss(
    first_BD: Tensor, second_BD: Tensor, *, temperature: float = 0.1, hard_fraction: float = 1.0
) -> Tensor:
    """NT-Xent of two views: each view of a sample must find the other one among all the 2B - 1 others.

    Several processes call ``info_nce_loss`` instead, with ``Batch.index`` as labels and the gathered views as columns.

    Args:
        first_BD: ``[B, D]`` embeddings of one view.
        second_BD: ``[B, D]`` embeddings of the other one, in the same order.
        temperature: > 0.
        hard_fraction: as in ``info_nce_loss``.

    Returns:
        ``[B]`` the mean of the losses of both views of each sample.

    Raises:
        ValueError: shapes that differ; as ``info_nce_loss``.

    Example:
        >>> nt_xent_loss(torch.eye(2), torch.eye(2), temperature=1.0)
        tensor([0.5514, 0.5514])
    """
    if first_BD.shape != second_BD.shape:
        raise ValueError(
            f"views of shapes {list(first_BD.shape)} and {list(second_BD.shape)}; they must be the same samples"
        )
    instance_2B = torch.arange(len(first_BD), device=first_BD.device).repeat(2)
    both = torch.cat([first_BD, second_BD])
    return info_nce_loss(both, instance_2B, temperature=temperature, hard_fraction=hard_fraction).view(2, -1).mean(0)


def _hardest(logits_BN: Tensor, negative_BN: Tensor, fraction: float) -> Tensor:
    """Of the negatives of each row, the given share with the largest logits."""
    ordered_BN = logits_BN.masked_fill(~negative_BN, -torch.inf).sort(1, descending=True).values
    kept_B1 = (fraction * negative_BN.sum(1, keepdim=True)).round().long().clamp_min(1)
    return negative_BN & (logits_BN >= ordered_BN.gather(1, kept_B1 - 1))
