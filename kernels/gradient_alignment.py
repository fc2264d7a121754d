"""Alignment of gradients: what of the other losses opposes the first one is taken out of them.

Yang, Zong, Huang, Feng, An. "Dual-Head Knowledge Distillation: Enhancing Logits Utilization with an Auxiliary Head".
KDD 2025, arXiv 2411.08937. Official code: penghui-yang/DHKD. The projection is that of Yu et al., "Gradient Surgery for
Multi-Task Learning", NeurIPS 2020, arXiv 2001.06782, in one direction only: the anchor is never altered.

A gradient is one tensor for each parameter, None where the parameter is not involved. The gradients of the whole update
are aligned (averaged over processes, summed over micro-batches), and clipped after it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

Gradient = Sequence[Tensor | None]


@torch.no_grad()
def align(anchor: Gradient, others: Sequence[Gradient]) -> list[Tensor | None]:
    """``g_0 + sum_k g_k'`` with ``g_k' = g_k - min(0, <g_0, g_k>) / ||g_0||^2 g_0``, each against the anchor alone.

    Products and norms are over all the tensors together, and a None counts as zeros. Weights of the losses are in the
    gradients already. An anchor of zeros, or one that opposes nothing, leaves the plain sum.

    Where ``g_0`` has parameters that no other gradient has (a head of its own), some conflict remains on the shared
    ones, because the projection also uses ``||g_0||`` of the rest; ``align_within`` removes it.

    Args:
        anchor: g_0.
        others: g_1, g_2, ..., each as long as the anchor.

    Returns:
        New tensors in the order of the parameters, None where every gradient has None.

    Raises:
        ValueError: gradients of different numbers of tensors.

    Example:
        >>> align([torch.tensor([1.0, 0.0]), None], [[torch.tensor([-2.0, 1.0]), torch.ones(1)]])
        [tensor([1., 1.]), tensor([1.])]
    """
    return align_within(anchor, others, [True] * len(anchor))


@torch.no_grad()
def align_within(anchor: Gradient, others: Sequence[Gradient], inside: Sequence[bool]) -> list[Tensor | None]:
    """``align`` on some of the parameters, the backbone's for instance; on the others the plain sum.

    Args:
        anchor: g_0.
        others: g_1, g_2, ..., each as long as the anchor.
        inside: for each parameter, whether it is aligned.

    Returns:
        As ``align``.

    Raises:
        ValueError: gradients, or ``inside``, of different numbers of tensors.

    Example:
        >>> head, flat = torch.tensor([3.0]), torch.tensor([1.0])
        >>> align_within([flat, head], [[-flat, None]], [True, False])
        [tensor([1.]), tensor([3.])]
    """
    numbers = [len(anchor), *(len(other) for other in others), len(inside)]
    if len(set(numbers)) > 1:
        raise ValueError(
            f"an anchor of {numbers[0]} tensors, others of {numbers[1:-1]} and {numbers[-1]} marks; they must have one "
            "entry for each parameter, None where it is not involved"
        )
    scope = [g if within else None for g, within in zip(anchor, inside, strict=True)]
    chosen = [g for g in scope if g is not None]
    merged = [None if g is None else g.clone() for g in anchor]
    if chosen and others:
        factor = 1 - sum(_coefficients(scope, others))
        torch._foreach_mul_([g for g, s in zip(merged, scope, strict=True) if g is not None and s is not None], factor)
    for other in others:
        _accumulate(merged, other)
    return merged


def _coefficients(anchor: Gradient, others: Sequence[Gradient]) -> list[Tensor]:
    """``min(0, <g_0, g_k>) / ||g_0||^2`` of each, on the device."""
    tensors = [_wide(g) for g in anchor if g is not None]
    square = torch.stack(torch._foreach_norm(tensors)).square().sum()
    square = square.clamp_min(torch.finfo(square.dtype).tiny)
    products = [_dot(anchor, other) for other in others]
    # A NaN is not below zero: gradients that are not finite reach the sum as they are, for whoever looks for them.
    return [torch.where(product < 0, product, 0.0) / square for product in products]


def _dot(first: Gradient, second: Gradient) -> Tensor:
    """The inner product, in at least float32; a tensor at a time, so no gradient is copied into one vector."""
    pairs = [(a, b) for a, b in zip(first, second, strict=True) if a is not None and b is not None]
    if not pairs:
        device = next(g.device for g in first if g is not None)
        return torch.zeros((), device=device)
    ours, theirs = ([_wide(pair[side]) for pair in pairs] for side in (0, 1))
    products = torch._foreach_mul(ours, theirs)
    return torch.stack([product.sum() for product in products]).sum()


def _accumulate(merged: list[Tensor | None], other: Gradient) -> None:
    """Add one more gradient in place."""
    both = [(m, g) for m, g in zip(merged, other, strict=True) if m is not None and g is not None]
    if both:
        torch._foreach_add_([m for m, _ in both], [g for _, g in both])
    for position, g in enumerate(other):
        if merged[position] is None and g is not None:
            merged[position] = g.clone()


def _wide(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
