"""Steps onto a hyperplane that stay in the box of images, as FAB takes them.

Croce, Hein. "Minimally distorted Adversarial Examples with a Fast Adaptive Boundary Attack". ICML 2020,
arXiv 1907.02044, section 2 (the projection is theirs, the closed form below is one search over sorted levels).

Shape legend: B samples, P numbers of an image.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.perturbation import Norm

_TINY = 1e-300  # in float64: keeps 0 / 0 from being nan


def onto_hyperplane(point_BP: Tensor, normal_BP: Tensor, value_B: Tensor, norm: Norm) -> Tensor:
    """The shortest step to where a linear function is zero, inside of [0, 1].

    Minimizes ``||step||`` with ``value + <normal, step> = 0`` and ``0 <= point + step <= 1``. Every number moves
    against the sign of ``value * normal`` by ``min(level * rate, room)``, with rate 1 for L-inf and ``|normal|`` for
    L2. What that gains, ``sum |normal| min(level * rate, room)``, is increasing and piecewise linear in the level, so
    that the level follows from the numbers sorted by the level at which they reach their end of the box.

    Args:
        point_BP: ``[B, P]`` in [0, 1].
        normal_BP: ``[B, P]`` gradient of the function.
        value_B: ``[B]`` the function at the point.
        norm: of the step, ``linf`` or ``l2``.

    Returns:
        ``[B, P]`` float64. Where the box does not reach the hyperplane: as near as it lets, every number at its end.

    Example:
        >>> point, normal = torch.tensor([[0.5, 0.9]]), torch.tensor([[1.0, 1.0]])
        >>> onto_hyperplane(point, normal, torch.tensor([-0.5]), "linf")
        tensor([[0.4000, 0.1000]], dtype=torch.float64)
    """
    point_BP, normal_BP, value_B1 = point_BP.double(), normal_BP.double(), value_B.double()[:, None]
    towards_BP = -value_B1.sign() * normal_BP.sign()
    room_BP = torch.where(towards_BP > 0, 1 - point_BP, point_BP)
    weight_BP = normal_BP.abs()
    rate_BP = weight_BP if norm == "l2" else torch.ones_like(weight_BP)
    end_BP = torch.where(weight_BP > 0, room_BP / rate_BP.clamp(min=_TINY), 0.0)  # the level that fills the room
    end_BP, order_BP = end_BP.sort(1)
    filled_BP = (weight_BP * room_BP).gather(1, order_BP)
    before_BP = filled_BP.cumsum(1) - filled_BP
    slope_BP = (weight_BP * rate_BP).gather(1, order_BP).flip(1).cumsum(1).flip(1)  # of those not yet at their end
    at_B1 = (before_BP + slope_BP * end_BP < value_B1.abs()).sum(1, keepdim=True).clamp_(max=end_BP.shape[1] - 1)
    level_B1 = (value_B1.abs() - before_BP.gather(1, at_B1)) / slope_BP.gather(1, at_B1).clamp(min=_TINY)
    return towards_BP * torch.minimum(torch.minimum(level_B1, end_BP[:, -1:]) * rate_BP, room_BP)
