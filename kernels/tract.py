"""TrAct: the weight gradient of a first layer that realizes a gradient step on its outputs.

Petersen, Borgelt, Ermon. "TrAct: Making First-layer Pre-Activations Trainable". NeurIPS 2024, arXiv 2410.23970.
Official code: Felix-Petersen/tract. Departures, with their reasons, are listed in docs/tract.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import conv2d, linear

from kernels.second_moment import Window, conv2d_second_moment, linear_second_moment

#: Sums a tensor over all processes.
Total = Callable[[Tensor], Tensor]


def tract_linear(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, lam: float = 0.1, *, total: Total | None = None
) -> Tensor:
    """``input @ weight.T + bias``, whose weight gradient is that of TrAct.

    With the rows ``X [R, n]`` of the input (all leading dimensions are rows) and the plain weight gradient ``g``,

        ``weight.grad = g A^-1``,  ``A = X^T X / R + lam I``

    Outputs and all other gradients are those of the plain layer. A is computed when, and only when, the gradient of the
    weight is; in float32 at least, also under autocast. The gradient cannot be differentiated again.

    Args:
        input: ``[..., n]``.
        weight: ``[m, n]``, a parameter or the result of a parametrization.
        bias: ``[m]``.
        lam: lambda > 0, added to the second moment of the inputs.
        total: sums ``[n * n + 1]`` over all processes, so that A is that of the global batch; None for the local one.

    Returns:
        ``[..., m]``.

    Raises:
        ValueError: lam not positive.

    Example:
        >>> tract_linear(torch.ones(2, 3), torch.ones(1, 3))
        tensor([[3.],
                [3.]])
    """
    return linear(input, _observed(weight, input, None, lam, total), bias)


def tract_conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] | str = 0,
    dilation: int | tuple[int, int] = 1,
    lam: float = 0.1,
    *,
    total: Total | None = None,
) -> Tensor:
    """A convolution whose weight gradient is that of TrAct; see ``tract_linear``.

    The rows of X are the R = B * H_out * W_out windows of the input, zero padding included, n = C * kh * kw.

    Args:
        input: ``[B, C, H, W]`` or ``[C, H, W]``.
        weight: ``[O, C, kh, kw]``; there are no groups.
        bias: ``[O]``.
        stride: of both sides, or (height, width).
        padding: as the stride, or ``"same"`` or ``"valid"``.
        dilation: as the stride.
        lam: lambda > 0.
        total: as in ``tract_linear``.

    Returns:
        ``[B, O, H_out, W_out]`` or ``[O, H_out, W_out]``.

    Raises:
        ValueError: lam not positive; a grouped convolution.
    """
    if weight.shape[1] != input.shape[-3]:
        raise ValueError(
            f"the weight takes {weight.shape[1]} channels and the input has {input.shape[-3]}: TrAct has one second "
            "moment for all channels, and groups are not supported"
        )
    kernel, strides, dilations = (weight.shape[2], weight.shape[3]), _pair(stride), _pair(dilation)
    window = Window(kernel, strides, _pads(padding, kernel, dilations), dilations)
    return conv2d(input, _observed(weight, input, window, lam, total), bias, stride, padding, dilation)


def _pair(value: int | tuple[int, int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[-1])


def _pads(
    padding: int | tuple[int, int] | str, kernel: tuple[int, int], dilation: tuple[int, int]
) -> tuple[int, int, int, int]:
    """(left, right, top, bottom); "same" puts an odd pixel to the right and below, as PyTorch does."""
    if padding == "same":
        total_h, total_w = ((k - 1) * d for k, d in zip(kernel, dilation, strict=True))
        return total_w // 2, total_w - total_w // 2, total_h // 2, total_h - total_h // 2
    height, width = (0, 0) if isinstance(padding, str) else _pair(padding)
    return width, width, height, height


def _observed(weight: Tensor, input: Tensor, window: Window | None, lam: float, total: Total | None) -> Tensor:
    """The weight itself, with a node in its graph that turns the plain gradient into that of TrAct."""
    if not lam > 0:
        raise ValueError(f"lam must be positive, got {lam}; it bounds the inverse of the second moment")
    if not (weight.requires_grad and torch.is_grad_enabled()):
        return weight
    # Detached: a path from here to the input would have the node run for the gradient of an image alone.
    observed: Tensor = _Precondition.apply(weight, input.detach(), window, lam, total)  # type: ignore[no-untyped-call]
    return observed


class _Precondition(torch.autograd.Function):
    """Identity of the weight; its backward multiplies by ``(X^T X / R + lam I)^-1``.

    It lies between the weight and the plain operation, so the engine itself leaves it out of every backward that does
    not lead to the weight (an attack), and the plain gradient comes from the native kernels.
    """

    @staticmethod
    def forward(weight: Tensor, input: Tensor, window: Window | None, lam: float, total: Total | None) -> Tensor:
        return weight.view_as(weight)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, input, ctx.window, ctx.lam, ctx.total = inputs
        ctx.save_for_backward(input)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None, None]:
        (input,) = ctx.saved_tensors
        with torch.autocast(grad.device.type, enabled=False), _full_float32():
            mean_nn = _mean_second_moment(input, grad, ctx.window, ctx.total)
            return _divided(grad, mean_nn, ctx.lam), None, None, None, None


def _mean_second_moment(input: Tensor, grad: Tensor, window: Window | None, total: Total | None) -> Tensor:
    """``X^T X / R [n, n]``, of this call or of all processes."""
    dtype = torch.promote_types(torch.promote_types(input.dtype, grad.dtype), torch.float32)
    if window is None:
        moment_nn, rows = linear_second_moment(input, dtype), input.shape[:-1].numel()
    else:
        height, width = window.positions(input.shape[-2], input.shape[-1])
        moment_nn, rows = conv2d_second_moment(input, window, dtype), input.shape[:-3].numel() * height * width
    if total is None:
        return moment_nn.div_(max(1, rows))
    summed = total(torch.cat([moment_nn.flatten(), moment_nn.new_tensor([rows])]))
    return summed[:-1].view_as(moment_nn) / summed[-1].clamp(min=1)


def _divided(grad: Tensor, mean_nn: Tensor, lam: float) -> Tensor:
    """``g (M + lam I)^-1`` by a Cholesky factorization, in the layout and dtype of g; NaN where it does not exist."""
    mean_nn.diagonal().add_(lam)
    factor_nn, failed = torch.linalg.cholesky_ex(mean_nn)  # does not wait for the device to say whether it failed
    grad_mn = grad.reshape(len(grad), -1).to(mean_nn.dtype)
    solved_nm = torch.cholesky_solve(grad_mn.T, factor_nn).masked_fill_(failed > 0, torch.nan)
    return torch.empty_like(grad).copy_(solved_nm.T.reshape(grad.shape))


@contextmanager
def _full_float32() -> Iterator[None]:
    """Products of float32 in float32: TF32 or bfloat16 would lose the small eigenvalues of the second moment."""
    if torch.compiler.is_compiling():  # the setting is fixed when the graph is
        yield
        return
    backends = torch.backends.cuda.matmul, torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before = [backend.fp32_precision for backend in backends]
    try:
        for backend in backends:
            backend.fp32_precision = "ieee"
        yield
    finally:
        for backend, precision in zip(backends, before, strict=True):
            backend.fp32_precision = precision
