"""Alignment of gradients: what of the other losses opposes the first one is taken out of them.

Yang, Zong, Huang, Feng, An. "Dual-Head Knowledge Distillation: Enhancing Logits Utilization with an Auxiliary Head".
KDD 2025, arXiv 2411.08937. Official code: penghui-yang/DHKD. The projection is that of Yu et al., "Gradient Surgery for
Multi-Task Learning", NeurIPS 2020, arXiv 2001.06782, in one direction only: the anchor is never altered.

A gradient is one tensor for each parameter, None where the parameter is not involved. The gradients of the whole update
are aligned (averaged over processes, summed over micro-batches), and clipped after it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

Gradient = Sequence[Tensor | None]


class Products(NamedTuple):
    """Inner products of an anchor g_0 and another gradient g_k: of all their tensors together, or ``[B]`` of rows."""

    both: Tensor  # <g_0, g_k>
    anchor: Tensor  # <g_0, g_0>
    other: Tensor  # <g_k, g_k>

    def opposed(self) -> Tensor:
        """``min(0, <g_0, g_k>) / ||g_0||^2``: how much of the anchor is taken out of the other, as zero or less.

        A NaN is not below zero: gradients that are not finite stay as they are, for whoever looks for them.
        """
        tiny = torch.finfo(self.anchor.dtype).tiny
        return torch.where(self.both < 0, self.both, 0.0) / self.anchor.clamp_min(tiny)

    def cosine(self) -> Tensor:
        """Of the angle between the two; 0 where one of them is zero."""
        length = self.anchor.sqrt() * self.other.sqrt()
        return self.both / length.clamp_min(torch.finfo(length.dtype).tiny)


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
    return project(anchor, others, inside, inner_products(anchor, others, inside))


@torch.no_grad()
def inner_products(anchor: Gradient, others: Sequence[Gradient], inside: Sequence[bool]) -> list[Products]:
    """Those of the anchor with each of the others, over the tensors inside; a None counts as zeros.

    Args:
        anchor, others, inside: as ``align_within`` has them.

    Returns:
        For each of the others; scalars in at least float32.

    Raises:
        ValueError: as ``align_within``.
    """
    numbers = [len(anchor), *(len(other) for other in others), len(inside)]
    if len(set(numbers)) > 1:
        raise ValueError(
            f"an anchor of {numbers[0]} tensors, others of {numbers[1:-1]} and {numbers[-1]} marks; they must have one "
            "entry for each parameter, None where it is not involved"
        )
    scope = _within(anchor, inside)
    zero = next((g.new_zeros((), dtype=torch.float32) for g in anchor if g is not None), torch.zeros(()))
    square = _square(scope, zero)
    return [Products(_dot(scope, other, zero), square, _square(_within(other, inside), zero)) for other in others]


@torch.no_grad()
def project(
    anchor: Gradient, others: Sequence[Gradient], inside: Sequence[bool], products: Sequence[Products]
) -> list[Tensor | None]:
    """``align_within`` by products that are known already."""
    merged = [None if g is None else g.clone() for g in anchor]
    within = [g for g, chosen in zip(merged, inside, strict=True) if g is not None and chosen]
    if within and others:
        torch._foreach_mul_(within, 1 - sum(product.opposed() for product in products))
    for other in others:
        accumulate(merged, other)
    return merged


@torch.no_grad()
def row_products(anchor_BD: Tensor, other_BD: Tensor) -> Products:
    """Those of each row of the anchor with the same row of another gradient, ``[B]``, in at least float32."""
    anchor_BD, other_BD = _wide(anchor_BD), _wide(other_BD)
    return Products(*((a * b).sum(1) for a, b in ((anchor_BD, other_BD), (anchor_BD,) * 2, (other_BD,) * 2)))


@torch.no_grad()
def row_correction(anchor_BD: Tensor, products: Sequence[Products]) -> Tensor:
    """What has to be added to the sum of all gradients so that each row of it is aligned, as ``align`` does a whole.

    Each row is a vector of its own, such as the features of one sample. Zeros where nothing is opposed.

    Args:
        anchor_BD: g_0.
        products: ``row_products`` of it with each of the others.

    Returns:
        ``- sum_k min(0, <g_0, g_k>) / ||g_0||^2 g_0``, ``[B, D]`` in at least float32.

    Example:
        >>> anchor, other = torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([[-3.0, 1.0], [5.0, 1.0]])
        >>> row_correction(anchor, [row_products(anchor, other)])
        tensor([[3., 0.],
                [0., 0.]])
    """
    opposed_B = torch.stack([product.opposed() for product in products]).sum(0)
    return -opposed_B.unsqueeze(1) * _wide(anchor_BD)


@torch.no_grad()
def accumulate(merged: list[Tensor | None], other: Gradient) -> None:
    """Add one more gradient in place; where there was None its tensor is copied."""
    both = [(m, g) for m, g in zip(merged, other, strict=True) if m is not None and g is not None]
    if both:
        torch._foreach_add_([m for m, _ in both], [g for _, g in both])
    for position, g in enumerate(other):
        if merged[position] is None and g is not None:
            merged[position] = g.clone()


def _within(gradient: Gradient, inside: Sequence[bool]) -> list[Tensor | None]:
    return [g if chosen else None for g, chosen in zip(gradient, inside, strict=True)]


def _square(gradient: Gradient, zero: Tensor) -> Tensor:
    """``||g||^2``, in at least float32."""
    tensors = [_wide(g) for g in gradient if g is not None]
    return torch.stack(torch._foreach_norm(tensors)).square().sum() if tensors else zero


def _dot(first: Gradient, second: Gradient, zero: Tensor) -> Tensor:
    """The inner product, in at least float32; a tensor at a time, so no gradient is copied into one vector."""
    pairs = [(_wide(a), _wide(b)) for a, b in zip(first, second, strict=True) if a is not None and b is not None]
    if not pairs:
        return zero
    products = torch._foreach_mul([a for a, _ in pairs], [b for _, b in pairs])
    return torch.stack([product.sum() for product in products]).sum()


def _wide(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
