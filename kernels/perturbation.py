"""Sets of allowed perturbations of images in [0, 1], and the steps that attacks take in them.

Shape legend: B samples, C channels, H x W pixels.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Literal

import torch
from torch import Tensor

Norm = Literal["linf", "l2"]


def as_fraction(size: float | str) -> Fraction:
    """The exact size of a perturbation, from a number or from text such as ``8/255``.

    Raises:
        ValueError: it is negative, not finite or no number.

    Example:
        >>> as_fraction("8/255"), as_fraction(0.5)
        (Fraction(8, 255), Fraction(1, 2))
    """
    try:
        found = Fraction(size.strip() if isinstance(size, str) else size)
    except (ValueError, OverflowError, ZeroDivisionError) as error:
        raise ValueError(f"eps={size} is no size; write a number from 0 on, or a fraction such as 8/255") from error
    if found < 0:
        raise ValueError(f"eps={size} is out of range; allowed: eps >= 0, such as 8/255")
    return found


def box(image: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Lowest and highest images of the L-inf ball of radius ``eps`` inside [0, 1], in the dtype of the image.

    Bounds in float32 are those of float64 rounded towards the image, so that no number leaves the ball.

    Args:
        image: ``[B, C, H, W]`` in [0, 1].
        eps: radius.

    Returns:
        Two tensors like ``image``.
    """
    exact = image.double()
    low, high = (exact - eps).clamp_(min=0.0), (exact + eps).clamp_(max=1.0)
    return rounded_towards(image, low), rounded_towards(image, high)


def rounded_towards(image: Tensor, exact: Tensor) -> Tensor:
    """Float64 values in the dtype of the image, none farther from it than before."""
    found, here = exact.to(image.dtype), image.double()
    farther = (found.double() - here).abs() > (exact - here).abs()
    return torch.where(farther, torch.nextafter(found, image), found)


def norm_of(vector: Tensor) -> Tensor:
    """``[B, 1, 1, 1]`` L2 norm of each sample, in float64, at least 1e-12."""
    return torch.linalg.vector_norm(vector.double(), dim=(1, 2, 3), keepdim=True).clamp_(min=1e-12)


def project_l2(image: Tensor, moved: Tensor, eps: float) -> Tensor:
    """``moved`` put back into [0, 1] and, towards ``image``, into the L2 ball of radius ``eps`` around it.

    Clipping to [0, 1], where the image lies, never makes a distance longer, so clipping first and shortening then stays
    in both sets.
    """
    step = moved.clamp(0.0, 1.0).double() - image.double()
    length = norm_of(step)
    shorter = torch.where(length > eps, eps / length * (1 - 1e-12), torch.ones_like(length))
    return rounded_towards(image, image.double() + step * shorter)
