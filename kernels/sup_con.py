"""Supervised contrastive loss.

Khosla, Teterwak, Wang, Sarna, Tian, Isola, Maschinot, Liu, Krishnan. "Supervised Contrastive Learning". NeurIPS 2020,
arXiv 2004.11362.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.pairs import check_labels, pair_masks, similarities


def sup_con_loss(
    embeddings_BD: Tensor,
    labels_B: Tensor,
    *,
    temperature: float = 0.1,
    base_temperature: float | None = 0.07,
    columns: Tensor | None = None,
    column_labels: Tensor | None = None,
    first_own: int = 0,
) -> Tensor:
    """L_out: ``-(t / t0) mean_{p positive} log( exp(s_ip / t) / sum_{a != i} exp(s_ia / t) )`` of each anchor i.

    The denominator runs over positives and negatives. An anchor without a positive costs 0 and still counts where the
    caller takes the mean, as in the official code.

    Args:
        embeddings_BD: ``[B, D]``; they are normalized here. Two views are 2B rows with their labels repeated.
        labels_B: ``[B]`` integer classes; with names of instances this is NT-Xent.
        temperature: t > 0.
        base_temperature: t0 > 0 of the official code; None leaves the factor t / t0 out, as the paper prints it.
        columns: ``[N, D]`` candidates, by default the anchors (see ``kernels.pairs``).
        column_labels: ``[N]`` their classes.
        first_own: which column the first anchor is.

    Returns:
        ``[B]``, in at least float32; 0 without a positive.

    Raises:
        ValueError: a temperature that is not positive; labels or columns that do not fit.

    Example:
        >>> sup_con_loss(torch.eye(3), torch.tensor([0, 0, 1]), base_temperature=None)
        tensor([0.6931, 0.6931, 0.0000])
    """
    factor = 1.0 if base_temperature is None else base_temperature
    if not temperature > 0 or not factor > 0:
        raise ValueError(f"temperatures must be positive, got {temperature} and the base {base_temperature}")
    check_labels(embeddings_BD, labels_B, columns, column_labels, first_own)
    positive_BN, negative_BN = pair_masks(labels_B, column_labels, first_own)
    logits_BN = similarities(embeddings_BD, columns) / temperature
    never = torch.finfo(logits_BN.dtype).min  # finite: logsumexp of -inf alone has a gradient of NaN
    others_B1 = logits_BN.masked_fill(~(positive_BN | negative_BN), never).logsumexp(1, keepdim=True)
    cost_BN = (others_B1 - logits_BN).masked_fill(~positive_BN, 0.0)
    factor = 1.0 if base_temperature is None else temperature / base_temperature
    return factor * cost_BN.sum(1) / positive_BN.sum(1).clamp_min(1)
