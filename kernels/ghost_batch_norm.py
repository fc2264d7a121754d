"""Ghost batch normalization: statistics of small parts of a large batch.

Hoffer, Hubara, Soudry. "Train longer, generalize better: closing the generalization gap in large batch training of
neural networks". NeurIPS 2017, arXiv 1705.08741. Official code: eladhoffer/bigBatch.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import batch_norm


def ghost_batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    *,
    ghost_size: int,
    training: bool,
    momentum: float = 0.1,
    momentum_mode: Literal["scaled", "sequential"] = "scaled",
    eps: float = 1e-5,
) -> Tensor:
    """Batch norm over each of ``k = ceil(B / ghost_size)`` consecutive chunks of ``ceil(B / k)`` samples.

    The last chunk may be smaller. Gradients flow through the statistics of each chunk. Running statistics are updated
    in place, chunk by chunk, with the rate ``r``: after one call the old value weighs ``(1 - r)^k`` and chunk i (from
    0) ``r (1 - r)^(k - 1 - i)``; the variance is the unbiased one. Outside training, and for at most ``ghost_size``
    samples, this is batch norm itself, bit for bit.

    On a CPU every chunk is written into its place in the output, in one autograd node that cannot be differentiated
    twice; elsewhere, in mixed precision and under ``torch.compile`` it is the plain loop.

    Args:
        input: ``[B, C, H, W]``; other numbers of dimensions behind ``C`` work too.
        running_mean: ``[C]``, updated; None for none.
        running_var: ``[C]``, the same.
        weight: ``[C]`` or None.
        bias: ``[C]`` or None.
        ghost_size: samples of a chunk, at most.
        training: normalize by the statistics of chunks instead of the running ones.
        momentum: weight eta of a batch in the running statistics.
        momentum_mode: ``scaled`` has ``r = 1 - (1 - eta)^(1 / k)``, so that a call forgets as much as batch norm does;
            ``sequential`` has ``r = eta``, as the official code.
        eps: added to the variance.

    Raises:
        ValueError: a ghost size below 1, an unknown mode, or a chunk with one value a channel, which has no variance.

    Example:
        >>> x = torch.tensor([0.0, 2.0, 10.0, 12.0]).view(4, 1, 1, 1)
        >>> ghost_batch_norm(x, None, None, None, None, ghost_size=2, training=True, eps=0.0).flatten()
        tensor([-1.,  1., -1.,  1.])
    """
    if ghost_size < 1:
        raise ValueError(f"ghost_size must be at least 1 sample, got {ghost_size}")
    if momentum_mode not in ("scaled", "sequential"):
        raise ValueError(f"momentum_mode must be 'scaled' or 'sequential', got {momentum_mode!r}")
    ghosts = -(-len(input) // ghost_size)
    if not training or ghosts <= 1:
        return batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)
    _check_last(input, ghosts)
    rate = 1.0 - (1.0 - momentum) ** (1.0 / ghosts) if momentum_mode == "scaled" else momentum
    if _writes_in_place(input, running_mean, weight):
        kept: Tensor = _Ghosts.apply(input, running_mean, running_var, weight, bias, ghosts, rate, eps)  # type: ignore[no-untyped-call]
        return kept
    chunks = input.chunk(ghosts)
    return torch.cat([batch_norm(x, running_mean, running_var, weight, bias, True, rate, eps) for x in chunks])


def _check_last(input: Tensor, ghosts: int) -> None:
    """The last chunk is the smallest."""
    size = -(-len(input) // ghosts)
    last = len(input) - (ghosts - 1) * size
    if last * input[0, 0].numel() == 1:
        raise ValueError(
            f"a batch of {len(input)} in {ghosts} ghosts of at most {size} leaves one of a single sample, whose "
            f"{'x'.join(map(str, input.shape[2:])) or '1'} map has one value a channel and no variance; choose another "
            "ghost_size or data.batch_size, or set data.drop_last=true"
        )


def _writes_in_place(input: Tensor, *others: Tensor | None) -> bool:
    """Whether the fused version applies: on a CPU, everything in the same dtype."""
    same = all(other is None or other.dtype == input.dtype for other in others)
    full = input.dtype in (torch.float32, torch.float64)
    return input.device.type == "cpu" and same and full and input.ndim == 4 and not torch.compiler.is_compiling()


class _Ghosts(torch.autograd.Function):
    """The loop without its ``cat``: chunks of the output are written by batch norm itself."""

    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        weight: Tensor | None,
        bias: Tensor | None,
        ghosts: int,
        rate: float,
        eps: float,
    ) -> Tensor:
        channels_last = input.is_contiguous(memory_format=torch.channels_last)
        input = input if channels_last else input.contiguous()
        output = torch.empty_like(input)
        mean, invstd = input.new_empty(2, ghosts, input.shape[1])
        for x, y, save_mean, save_invstd in zip(
            input.chunk(ghosts), output.chunk(ghosts), mean.unbind(), invstd.unbind(), strict=True
        ):
            torch.ops.aten.native_batch_norm.out(
                x, weight, bias, running_mean, running_var, True, rate, eps,
                out=y, save_mean=save_mean, save_invstd=save_invstd,
            )  # fmt: skip
        ctx.save_for_backward(input, weight, mean, invstd)
        ctx.ghosts = ghosts
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        input, weight, mean, invstd = ctx.saved_tensors
        channels_last = input.is_contiguous(memory_format=torch.channels_last)
        grad = grad.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
        pairs = list(zip(grad.chunk(ctx.ghosts), input.chunk(ctx.ghosts), strict=True))
        grad_input = torch.empty_like(input) if ctx.needs_input_grad[0] else None
        if grad_input is None:
            sums = [
                _sums(g, x, weight, *saved)
                for (g, x), *saved in zip(pairs, mean.unbind(), invstd.unbind(), strict=True)
            ]
        else:
            sums = _write(pairs, weight, mean, invstd, grad_input)
        grad_weight = torch.stack([of_weight for of_weight, _ in sums]).sum(0) if ctx.needs_input_grad[3] else None
        grad_bias = torch.stack([of_bias for _, of_bias in sums]).sum(0) if ctx.needs_input_grad[4] else None
        return grad_input, None, None, grad_weight, grad_bias, None, None, None


def _sums(g: Tensor, x: Tensor, weight: Tensor | None, mean: Tensor, invstd: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of weight and bias of one chunk."""
    _, of_weight, of_bias = torch.ops.aten.native_batch_norm_backward.default(
        g, x, weight, None, None, mean, invstd, True, 0.0, [False, True, True]
    )
    return of_weight, of_bias


def _write(
    pairs: list[tuple[Tensor, Tensor]], weight: Tensor | None, mean_KC: Tensor, invstd_KC: Tensor, grad_input: Tensor
) -> list[tuple[Tensor, Tensor]]:
    """Write the gradient of the input, ``s g + c1 x + c0`` with s = weight * invstd, chunk by chunk into its place.

    c1 and c0 hold the sums of the chunk. Where channels are not last, batch norm with fixed statistics is the fastest
    ``c1 x + c0`` there is.
    """
    channels_last = grad_input.is_contiguous(memory_format=torch.channels_last)
    s_KC = invstd_KC if weight is None else weight * invstd_KC
    share_KC = torch.stack([s * (-x.shape[1] / x.numel()) for s, (_, x) in zip(s_KC.unbind(), pairs, strict=True)])
    columns = s_KC.view(len(pairs), -1, 1, 1), share_KC, share_KC * invstd_KC, mean_KC, invstd_KC
    rows = zip(*(column.unbind() for column in columns), strict=True)
    zero, one, unused = torch.zeros_like(mean_KC[0]), torch.ones_like(mean_KC[0]), torch.empty_like(mean_KC[0])
    sums = []
    for (g, x), place, (s, share, scale, mean, invstd) in zip(pairs, grad_input.chunk(len(pairs)), rows, strict=True):
        of_weight, of_bias = _sums(g, x, weight, mean, invstd)
        c1 = scale * of_weight
        c0 = torch.addcmul(share * of_bias, c1, mean, value=-1)
        if channels_last:
            torch.addcmul(c0.view(-1, 1, 1), x, c1.view(-1, 1, 1), out=place)
        else:
            torch.ops.aten.native_batch_norm.out(
                x, c1, c0, zero, one, False, 0.0, 0.0, out=place, save_mean=unused, save_invstd=unused
            )
        place.addcmul_(g, s)
        sums.append((of_weight, of_bias))
    return sums
