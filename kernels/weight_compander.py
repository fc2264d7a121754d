"""Weight compander: every weight is an odd, increasing, saturating function of the parameter that is trained.

Cakaj, Mehnert, Yang. "Weight Compander: A Simple Weight Reparameterization for Regularization". 2023,
arXiv 2306.16993. Only the abstract could be checked: the form of the function is recalled, so it lives in ``CURVES``
alone, where a correction is one line.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import pi
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


@dataclass(frozen=True, slots=True)
class Curve:
    """The function ``f`` of ``w = a * f(v / b)``: odd, strictly increasing, of slope 1 at zero.

    Attributes:
        limit: supremum of ``f``.
        value: ``(v, b, out) -> f(v / b)`` into ``out``.
        inverse: of ``f``, on the open interval from ``-limit`` to ``limit``.
        slope: ``(v, w, a, b, out) -> dw/dv`` into ``out``, from whichever of ``v`` and ``w`` gives it without another
            transcendental function.
    """

    limit: float
    value: Callable[[Tensor, Tensor, Tensor], Tensor]
    inverse: Callable[[Tensor], Tensor]
    slope: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]


def _arctan(v: Tensor, b: Tensor, out: Tensor) -> Tensor:
    return torch.atan2(v, b, out=out)  # b > 0; half the time of a division and an arctan on a CPU


def _arctan_slope(v: Tensor, w: Tensor, a: Tensor, b: Tensor, out: Tensor) -> Tensor:
    return torch.div(a * b, torch.addcmul(b * b, v, v, out=out), out=out)


def _tanh(v: Tensor, b: Tensor, out: Tensor) -> Tensor:
    return torch.div(v, b, out=out).tanh_()


def _tanh_slope(v: Tensor, w: Tensor, a: Tensor, b: Tensor, out: Tensor) -> Tensor:
    return torch.addcmul(a * a, w, w, value=-1, out=out).div_(a * b)


CURVES = {
    "arctan": Curve(pi / 2, _arctan, torch.tan, _arctan_slope),
    "tanh": Curve(1.0, _tanh, torch.atanh, _tanh_slope),
}


def compand(v: Tensor, a: Tensor | float, b: Tensor | float, kind: Literal["arctan", "tanh"]) -> Tensor:
    """``a * arctan(v / b)`` or ``a * tanh(v / b)``: slope ``a / b`` at zero, bounded by ``a * limit(kind)``.

    Closed gradients, with G the gradient of the result: ``dv = G dw/dv`` where ``dw/dv = (a / b) / (1 + (v / b)^2)``
    for arctan and ``(a / b) (1 - (w / a)^2)`` for tanh; ``da = sum G w / a``; ``db = -sum G dw/dv v / b``. The backward
    keeps nothing but ``v`` and the result. It cannot be differentiated a second time. Computed in at least float32.

    Args:
        v: the trained parameter, of any shape and floating dtype.
        a: outer scale, a positive number or tensor without dimensions. A negative one is not looked for: that would
            wait for the device.
        b: inner scale, the same.
        kind: the function.

    Returns:
        The weight, of the shape, dtype and memory format of ``v``.

    Raises:
        ValueError: an unknown kind; ``a`` or ``b`` with dimensions.

    Example:
        >>> compand(torch.tensor([-1.0, 0.0, 1.0]), 2.0, 1.0, "arctan")
        tensor([-1.5708,  0.0000,  1.5708])
    """
    curve = _curve(kind)
    dtype = torch.promote_types(v.dtype, torch.float32)
    outer, inner = (torch.as_tensor(scale, dtype=dtype, device=v.device) for scale in (a, b))
    if outer.ndim or inner.ndim:
        raise ValueError(
            f"a and b are one number each for a whole weight, got shapes {tuple(outer.shape)} and {tuple(inner.shape)}"
        )
    weight: Tensor = _Compand.apply(v.to(dtype), outer, inner, curve)  # type: ignore[no-untyped-call]
    return weight.to(v.dtype)


def expand(w: Tensor, a: Tensor | float, b: Tensor | float, kind: Literal["arctan", "tanh"]) -> Tensor:
    """The inverse of ``compand``: ``b * tan(w / a)`` or ``b * artanh(w / a)``, for ``|w| < a * limit(kind)``.

    It explodes near the bound: at 0.98 of it, ``v / b`` is 32 for arctan and 2.3 for tanh. Clamp before.

    Args:
        w: weights strictly inside the bound, of any shape and floating dtype.
        a: outer scale, positive.
        b: inner scale, positive.
        kind: the function.

    Raises:
        ValueError: an unknown kind.
    """
    curve = _curve(kind)
    wide = w.to(torch.promote_types(w.dtype, torch.float32))
    return (curve.inverse(wide / a) * b).to(w.dtype)


def limit(kind: Literal["arctan", "tanh"]) -> float:
    """What bounds ``|w| / a``: pi / 2 for arctan and 1 for tanh."""
    return _curve(kind).limit


def _curve(kind: str) -> Curve:
    if kind not in CURVES:
        raise ValueError(f"kind must be one of {', '.join(CURVES)}, got {kind!r}")
    return CURVES[kind]


class _Compand(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, v: Tensor, a: Tensor, b: Tensor, curve: Curve) -> Tensor:
        weight = curve.value(v, b, torch.empty_like(v)).mul_(a)
        ctx.save_for_backward(v, weight, a, b)  # both live anyway: a parameter, and what the layer multiplies by
        ctx.curve = curve
        return weight

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        v, weight, a, b = ctx.saved_tensors
        grad_v = ctx.curve.slope(v, weight, a, b, torch.empty_like(v)).mul_(grad)
        grad_a = _inner(grad, weight) / a if ctx.needs_input_grad[1] else None
        grad_b = _inner(grad_v, v) / -b if ctx.needs_input_grad[2] else None
        return grad_v, grad_a, grad_b, None


def _inner(x: Tensor, y: Tensor) -> Tensor:
    """``sum x * y``, without a temporary where both lie in memory alike."""
    if x.stride() != y.stride() or not _dense(x):
        return (x * y).sum()
    with torch.autocast(x.device.type, enabled=False):  # which would cast a dot product down
        return torch.dot(x.as_strided((x.numel(),), (1,)), y.as_strided((y.numel(),), (1,)))


def _dense(x: Tensor) -> bool:
    return x.is_contiguous() or (x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last))
