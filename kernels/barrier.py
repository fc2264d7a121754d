"""The logarithmic barrier of a box: the smooth lower level of bilevel adversarial training.

    lbar(d) = -l(d) - c sum_k [log(b_k - d_k) + log(d_k - a_k)],     a < d < b,  c > 0

Sow, Lin, Wang, Liang. "Doubly Robust Instance-Reweighted Adversarial Training". ICLR 2024, arXiv 2308.00311. Zhang,
Zhang, Khanduri, Hong, Chang, Liu. "Revisiting and Advancing Fast Adversarial Training Through the Lens of Bi-Level
Optimization". ICML 2022, arXiv 2112.12376.

Perturbations d and their bounds a, b are float64 whatever the images are: a gap to the border is a difference of nearly
equal numbers. Shape legend: B samples; the rest of a shape is free.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.perturbation import box


def bounds(image: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """a and b: lowest and highest perturbations of size ``eps`` that leave pixels in [0, 1], float64 like ``image``."""
    exact = image.double()
    return (-exact).clamp_(min=-eps), (1 - exact).clamp_(max=eps)


def moved_inside(image: Tensor, perturbation: Tensor, eps: float) -> Tensor:
    """``image + perturbation`` in the dtype of the image, strictly inside the box, also where rounding would reach it.

    Two spacings of numbers away from the border, so that the difference of the images too is inside. Pixels whose box
    is narrower than that (``eps=0``) get one of its ends.
    """
    low, high = box(image, eps)
    margin = 2 * torch.finfo(image.dtype).eps * high
    moved = (image.double() + perturbation).to(image.dtype)
    return moved.clamp(low + margin, high - margin).clamp(low, high)


def barrier(perturbation: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """``[B]`` the sum of ``-log(b - d) - log(d - a)`` over the numbers of each sample."""
    return -((high - perturbation).log() + (perturbation - low).log()).flatten(1).sum(1)


def linear_minimum(gradient: Tensor, low: Tensor, high: Tensor, c: float) -> Tensor:
    """Where ``gradient * d + c * barrier(d)`` is least, number by number, in closed form.

    With the middle m and half the width h of the box the minimum is at m + s, where g (h^2 - s^2) + 2 c s = 0:

        s = -g h^2 / (c + sqrt(c^2 + (g h)^2))

    For large c this is the middle, for c -> 0 the corner against the sign of the gradient: a sign step of full length.
    """
    middle, half = (low + high) / 2, (high - low) / 2
    slope = gradient * half
    return middle - slope * half / (c + (c * c + slope * slope).sqrt())


def inverse_hessian(perturbation: Tensor, low: Tensor, high: Tensor, c: float) -> Tensor:
    """The diagonal of ``H_bar^-1``, ``H_bar = diag(c / (b - d)^2 + c / (d - a)^2)``; 0 at the border and beyond."""
    above, below = ((high - perturbation).clamp(min=0.0) ** 2, (perturbation - low).clamp(min=0.0) ** 2)
    return above * below / (c * (above + below)).clamp(min=torch.finfo(above.dtype).tiny)
