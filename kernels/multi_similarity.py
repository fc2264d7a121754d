"""Multi-Similarity loss with its mining.

Wang, Han, Huang, Dong, Scott. "Multi-Similarity Loss with General Pair Weighting for Deep Metric Learning". CVPR 2019,
arXiv 1904.06627.

Shape legend: B anchors, N candidates (the columns), D dimensions, C the anchors of one block.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from kernels.pairs import check_embeddings, check_labels, lengths

#: Similarities handled at a time: what the caches hold there, what fills the device here.
_BLOCK_CPU, _BLOCK_GPU = 1 << 20, 1 << 25
_INF = float("inf")


class _Form(NamedTuple):
    alpha: float
    beta: float
    base: float
    epsilon: float | None


def multi_similarity_loss(
    embeddings: Tensor,
    labels: Tensor,
    *,
    alpha: float = 2.0,
    beta: float = 40.0,
    base: float = 0.5,
    epsilon: float | None = 0.1,
    columns: Tensor | None = None,
    column_labels: Tensor | None = None,
    first_own: int = 0,
) -> Tensor:
    """Loss of each anchor, on cosine similarities ``S``; the loss of a batch is the mean over all anchors.

    ``l_i = 1/alpha log(1 + sum_p exp(-alpha (S_ip - base))) + 1/beta log(1 + sum_n exp(beta (S_in - base)))``

    over the kept positives p and negatives n: a negative with ``S_in + epsilon > min_p S_ip`` and a positive with
    ``S_ip - epsilon < max_n S_in``, both strict. An anchor that keeps nothing (a singleton of the batch, a batch of one
    class, classes far enough apart) has loss 0 and gradient 0, in the graph. No gradient passes through the mining.
    Computed in at least float32, with the largest exponent taken out, so that it overflows in no precision.

    The gradient has the closed form ``dl_i / dS_ij = -exp(-alpha (S_ij - base)) / (1 + sum_p ...)`` for kept positives
    (the same with the opposite sign for negatives), which takes the place of S block by block: beside blocks,
    forward and backward hold one ``[B, N]`` matrix. It cannot be differentiated twice.

    Args:
        embeddings: ``[B, D]``, of any length.
        labels: ``[B]`` integers.
        alpha: sharpness on positives, above 0.
        beta: sharpness on negatives, above 0; the paper has 50, the official code 40.
        base: similarity from which pairs count; the paper has 1, the official code 0.5.
        epsilon: margin of the mining; None keeps every pair.
        columns: ``[N, D]`` candidates in place of the batch itself; anchor i must be row ``first_own + i``.
        column_labels: ``[N]`` their classes.
        first_own: where the anchors start among the columns.

    Returns:
        ``[B]`` non-negative, in float32 or the wider type of embeddings and columns.

    Raises:
        ValueError: shapes or labels that do not fit, alpha or beta not positive, epsilon not finite.

    Example:
        >>> z = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
        >>> multi_similarity_loss(z, torch.tensor([0, 0, 1]), alpha=1.0, beta=1.0, base=0.0)
        tensor([2.0064, 1.3863, 0.0000])
    """
    if not (alpha > 0 and beta > 0):
        raise ValueError(f"alpha and beta must be positive, got {alpha} and {beta}")
    if epsilon is not None and not abs(epsilon) < _INF:
        raise ValueError(f"epsilon must be finite, got {epsilon}; None keeps every pair")
    check_embeddings(embeddings, columns)
    check_labels(embeddings, labels, columns, column_labels, first_own)
    form = _Form(alpha, beta, base, epsilon)
    with torch.autocast(embeddings.device.type, enabled=False):
        loss: Tensor = _MultiSimilarity.apply(embeddings, columns, labels, column_labels, first_own, form)  # type: ignore[no-untyped-call]
    return loss


def mine(similarity_BN: Tensor, positive_BN: Tensor, negative_BN: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """The positives and negatives that the mining keeps, boolean ``[B, N]``; no gradient passes.

    Example:
        >>> s = torch.tensor([[1.0, 0.6, 0.55, 0.1]])
        >>> positive, negative = torch.tensor([[False, True, False, False]]), torch.tensor([[False, False, True, True]])
        >>> mine(s, positive, negative, epsilon=0.1)[1]
        tensor([[False, False,  True, False]])
    """
    similarity_BN = similarity_BN.detach()
    least_B1 = similarity_BN.masked_fill(~positive_BN, _INF).amin(1, keepdim=True)
    most_B1 = similarity_BN.masked_fill(~negative_BN, -_INF).amax(1, keepdim=True)
    return positive_BN & (similarity_BN < most_B1 + epsilon), negative_BN & (similarity_BN > least_B1 - epsilon)


class _MultiSimilarity(torch.autograd.Function):
    """Embeddings to losses; keeps the derivatives with respect to the similarities, in the place of these."""

    @staticmethod
    def forward(
        ctx: Any,
        embeddings: Tensor,
        columns: Tensor | None,
        labels: Tensor,
        column_labels: Tensor | None,
        first_own: int,
        form: _Form,
    ) -> Tensor:
        wide = torch.promote_types(embeddings.dtype, torch.float32)
        wide = wide if columns is None else torch.promote_types(wide, columns.dtype)
        length_B1 = lengths(embeddings.to(wide))
        unit_BD = embeddings / length_B1
        length_N1 = None if columns is None else lengths(columns.to(wide))
        unit_ND = unit_BD if columns is None or length_N1 is None else columns / length_N1
        labels_N = labels if column_labels is None else column_labels
        needs_gradient = any(ctx.needs_input_grad[:2])
        weight_BN = unit_BD.new_empty(len(unit_BD), len(unit_ND)) if needs_gradient else None
        losses = []
        for own in _blocks(len(unit_BD), len(unit_ND), unit_BD.device.type):
            similarity_CN = torch.mm(unit_BD[own], unit_ND.T, out=None if weight_BN is None else weight_BN[own])
            same_CN = labels[own, None] == labels_N[None, :]
            losses.append(_weigh_(similarity_CN, same_CN, first_own + own.start, form))
        if needs_gradient:
            others = (None, None) if columns is None else (unit_ND, length_N1)
            ctx.save_for_backward(weight_BN, unit_BD, length_B1, *others)
            ctx.dtypes = embeddings.dtype, None if columns is None else columns.dtype
        return losses[0] if len(losses) == 1 else torch.cat([unit_BD.new_zeros(0), *losses])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_B: Tensor) -> tuple[Tensor | None, ...]:
        weight_BN, unit_BD, length_B1, unit_ND, length_N1 = ctx.saved_tensors
        grad_B1 = grad_B[:, None]
        if unit_ND is None:
            grad_BD = torch.empty_like(unit_BD)
            # the sum of dL/dS and its transpose, so one product instead of two
            for own in _blocks(len(weight_BN), len(weight_BN), weight_BN.device.type):
                both_CB = torch.mul(weight_BN[:, own].T, grad_B).addcmul_(weight_BN[own], grad_B1[own])
                torch.mm(both_CB, unit_BD, out=grad_BD[own])
            return _through_unit(grad_BD, unit_BD, length_B1).to(ctx.dtypes[0]), *[None] * 5
        grads: list[Tensor | None] = [None, None]
        if ctx.needs_input_grad[0]:
            grads[0] = _through_unit((weight_BN @ unit_ND).mul_(grad_B1), unit_BD, length_B1).to(ctx.dtypes[0])
        if ctx.needs_input_grad[1]:
            grads[1] = _through_unit(weight_BN.T @ (unit_BD * grad_B1), unit_ND, length_N1).to(ctx.dtypes[1])
        return *grads, *[None] * 4


def _blocks(size: int, count: int, device: str) -> Iterator[slice]:
    """Anchors handled at a time."""
    block = max(1, (_BLOCK_CPU if device == "cpu" else _BLOCK_GPU) // max(count, 1))
    return (slice(start, min(start + block, size)) for start in range(0, size, block))


def _weigh_(S: Tensor, same: Tensor, first_own: int, form: _Form) -> Tensor:
    """Losses ``[C]``; in place of the similarities S ``[C, N]`` their derivatives. Overwrites ``same`` as well."""
    alpha, beta, base, epsilon = form
    negative = S.masked_fill(same, -_INF)
    same.diagonal(first_own).fill_(False)
    positive = S.masked_fill_(same.logical_not_(), _INF)
    most, least = negative.amax(1, keepdim=True), positive.amin(1, keepdim=True)
    if epsilon is not None:
        below, above = most + epsilon, least - epsilon
        positive.masked_fill_(positive >= below, _INF)
        negative.masked_fill_(negative <= above, -_INF)
        least.masked_fill_(least >= below, _INF)  # the extremes are kept if anything is
        most.masked_fill_(most <= above, -_INF)
    shift_positive = least.sub_(base).mul_(-alpha).clamp_(min=0.0)  # the largest exponent, beside the 0 of the one
    shift_negative = most.sub_(base).mul_(beta).clamp_(min=0.0)
    torch.sub(alpha * base - shift_positive, positive, alpha=alpha, out=positive).exp_()
    torch.add(-beta * base - shift_negative, negative, alpha=beta, out=negative).exp_()
    rest_positive = positive.sum(1, keepdim=True).add_(torch.expm1(-shift_positive))
    rest_negative = negative.sum(1, keepdim=True).add_(torch.expm1(-shift_negative))
    loss = (shift_positive + rest_positive.log1p()) / alpha + (shift_negative + rest_negative.log1p()) / beta
    positive.div_(rest_positive.add_(1.0).neg_()).addcdiv_(negative, rest_negative.add_(1.0))
    return loss[:, 0]


def _through_unit(grad: Tensor, rows: Tensor, length: Tensor) -> Tensor:
    """The gradient of un-normalized rows from that of the unit rows: its part across the row, over the length."""
    along = torch.linalg.vecdot(grad, rows)[:, None]
    return grad.addcmul_(rows, along, value=-1.0).div_(length)
