"""The part of a hypergradient that goes through the solution of the lower level.

    grad F = sum_i p_i G_i,   G_i = grad_theta l_i - (d2 lbar_i / dtheta dd) (d2 lbar_i / dd2)^-1 grad_d l_i

at perturbations d_i that minimise ``lbar_i = -l'_i + c * barrier`` (see ``kernels.barrier``), where l' is what the
attack raises and l what is trained on, usually the same. The barrier does not depend on theta, so the cross term is
``+ d/dtheta <grad_d l'_i, v_i>`` with ``v_i = (d2 lbar_i / dd2)^-1 p_i grad_d l_i`` held fixed: one mixed derivative.

Sow, Lin, Wang, Liang. "Doubly Robust Instance-Reweighted Adversarial Training". ICLR 2024, arXiv 2308.00311. The paper
takes for the Hessian that of the barrier, ``H_bar``, which is diagonal; for a smooth network the whole one,
``H_bar - d2 l' / dd2``, is what makes the formula exact.

Shape legend: B samples; the rest of a shape is free.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from kernels.barrier import inverse_hessian

#: ``(perturbation [B, ...]) -> [B]``; each value depends on the perturbation of its sample alone.
PerSample = Callable[[Tensor], Tensor]


def implicit_gradient(
    loss_of: PerSample,
    parameters: Sequence[Tensor],
    perturbation: Tensor,
    low: Tensor,
    high: Tensor,
    c: float,
    coefficients_B: Tensor,
    *,
    raised: PerSample | None = None,
    solver_steps: int = 0,
) -> list[Tensor]:
    """The cross term of ``sum_i p_i G_i``, one tensor for each parameter (zeros where it has none).

    Samples that ``cross_term`` leaves out have no part in it.

    Args:
        loss_of: l, as a function of the perturbation, differentiable in ``parameters``.
        parameters: theta.
        perturbation: ``[B, ...]`` d, strictly inside its box and (near) the solution of the lower level.
        low, high: a and b, like ``perturbation``, in float64.
        c: weight of the barrier, > 0.
        coefficients_B: ``[B]`` p, without gradient.
        raised: l', where it is another function than ``loss_of``.
        solver_steps: as for ``cross_term``.
    """
    inner = perturbation.detach().requires_grad_(True)
    (outer,) = torch.autograd.grad((coefficients_B.detach() * loss_of(inner)).sum(), inner)
    term, _ = cross_term(raised or loss_of, perturbation, low, high, c, outer, solver_steps)
    found = torch.autograd.grad(term, list(parameters), allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)]


def cross_term(
    raised: PerSample,
    perturbation: Tensor,
    low: Tensor,
    high: Tensor,
    c: float,
    outer: Tensor,
    solver_steps: int = 0,
    rounding: float = 1e-15,
) -> tuple[Tensor, Tensor]:
    """A scalar whose gradient by the parameters behind ``raised`` is the cross term; and which samples it leaves out.

    ``[B]`` those are, with a ``v_i`` that is not finite: where the network has no second derivative in numbers, there
    is no correction, and the rest of the batch keeps its own.

    Args:
        raised: l' as a function of the perturbation.
        perturbation, low, high, c: as for ``implicit_gradient``.
        outer: ``p_i grad_d l_i``, like ``perturbation``.
        solver_steps: 0 for the Hessian of the barrier alone; else the whole one, by as many steps of conjugate
            gradients, each of which takes another derivative of the network.
        rounding: relative error of a second derivative of ``raised``, where that is in lower precision than float64.
    """
    inner = perturbation.detach().requires_grad_(True)
    with torch.enable_grad():
        (gradient,) = torch.autograd.grad(raised(inner).sum(), inner, create_graph=True)
        inverse = inverse_hessian(perturbation.detach().double(), low, high, c)
        outer = outer.detach().double()
        solved = inverse * outer
        if solver_steps:

            def curvature(vector: Tensor) -> Tensor:
                along = vector.to(gradient.dtype)
                # Zeros where the gradient does not depend on the perturbation, as that of a linear function.
                (found,) = torch.autograd.grad(gradient, inner, along, retain_graph=True, materialize_grads=True)
                return found.double()

            solved = solve(curvature, inverse, outer, solver_steps, rounding)
        solved = solved.to(gradient.dtype)
        rows = (solved.isfinite() & gradient.isfinite()).flatten(1).all(1)
        kept = rows.view(-1, *[1] * (solved.ndim - 1))
        return torch.where(kept, gradient * torch.where(kept, solved, 0.0), 0.0).sum(), ~rows


def solve(
    curvature: Callable[[Tensor], Tensor], inverse: Tensor, outer: Tensor, steps: int, rounding: float = 1e-15
) -> Tensor:
    """``(D^-1 - C)^-1 outer`` of each sample by conjugate gradients, scaled from both sides by ``sqrt(D)``.

    A sample in a direction in which its matrix is not positive (the perturbation is no minimum of the lower level)
    keeps what it has found; where that is the first direction, ``D outer``. One whose curvature is not finite has none,
    and is not finite.

    Args:
        curvature: ``C v``, each sample by itself.
        inverse: the diagonal D, >= 0, ``[B, ...]``.
        outer: like ``inverse``.
        steps: of the method; the number of unknowns of a sample gives the exact solution.
        rounding: relative error of ``curvature``; what is positive by less counts as not positive.
    """
    scale = inverse.sqrt()
    residual = scale * outer
    found, direction, length = torch.zeros_like(residual), residual, _dot(residual, residual)
    alive = torch.ones_like(length, dtype=torch.bool)
    for step in range(steps):
        image = direction - scale * curvature(scale * direction)
        bend = _dot(direction, image)
        straight = _dot(direction, direction)
        positive = bend > rounding * (straight + (straight - bend).abs())
        if not step:
            found = torch.where(positive, found, residual)
        alive = alive & positive
        size = torch.where(alive, length / bend, 0.0)
        found, residual = found + size * direction, residual - size * image
        shorter = _dot(residual, residual)
        direction = residual + torch.where(alive, shorter / length, 0.0) * direction
        length = shorter
    return scale * (found + 0 * residual)


def _dot(one: Tensor, other: Tensor) -> Tensor:
    """``[B, 1, ...]`` the inner product of each sample."""
    return (one * other).flatten(1).sum(1).view(-1, *[1] * (one.ndim - 1))
