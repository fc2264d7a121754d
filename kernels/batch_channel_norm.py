"""Batch-channel normalization.

Qiao, Wang, Liu, Shen, Yuille. "Micro-Batch Training with Batch-Channel Normalization and Weight Standardization".
2019, arXiv 1903.10520; "Rethinking Normalization and Elimination Singularity in Neural Networks". 2019, arXiv
1911.09738.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import batch_norm, group_norm


def batch_channel_norm(
    x_BCHW: Tensor,
    running_mean_C: Tensor | None,
    running_var_C: Tensor | None,
    batch_weight_C: Tensor | None,
    batch_bias_C: Tensor | None,
    channel_weight_G: Tensor,
    channel_bias_G: Tensor,
    *,
    groups: int,
    training: bool,
    estimate: bool = False,
    update_rate: float | Tensor = 0.1,
    eps: float = 1e-5,
    update_statistics: bool = True,
    total: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """A norm over the batch for each channel, then a norm over groups of channels for each sample.

        y = batch_weight * (x - mean) / sqrt(var + eps) + batch_bias            by channel
        z = (y - mean_g(y)) / sqrt(var_g(y) + eps)                              by sample and group
        out = channel_weight[g] * z + channel_bias[g]                           one pair a group

    In eval mode ``mean`` and ``var`` are the running ones. In training they are those of the batch, through which the
    gradient flows, or with ``estimate`` the running ones after this update, as constants:

        m = mean of x,   v = mean of (x - running_mean)^2                       around the old running mean
        running_mean <- (1 - r) running_mean + r m,   running_var <- (1 - r) running_var + r v

    Statistics are computed in at least float32 and the result has the dtype of the input.

    Args:
        x_BCHW: ``[B, C, ...]``, any memory format.
        running_mean_C: ``[C]``, written in place by a training forward; None only in batch mode.
        running_var_C: likewise.
        batch_weight_C: ``[C]``, gamma of the batch stage; None for 1.
        batch_bias_C: ``[C]``, beta of the batch stage; None for 0.
        channel_weight_G: ``[G]``, gamma of the channel stage.
        channel_bias_G: ``[G]``, beta of the channel stage.
        groups: G, a divisor of C.
        training: whether the batch counts.
        estimate: normalize with running statistics in training too, which one image suffices for.
        update_rate: r, the weight of this batch in the running statistics; a tensor only with ``estimate``.
        eps: inside both roots.
        update_statistics: off, a training forward normalizes as ever and leaves the running statistics alone.
        total: sums a tensor over processes, so that ``m`` and ``v`` are those of the global batch (``estimate`` only).

    Returns:
        A tensor like ``x_BCHW``.

    Raises:
        ValueError: groups that do not divide C, ``estimate`` without running statistics.

    Example:
        >>> x, one, zero = torch.randn(2, 4, 3, 3), torch.ones(2), torch.zeros(2)
        >>> batch_channel_norm(x, None, None, None, None, one, zero, groups=2, training=True).shape
        torch.Size([2, 4, 3, 3])
    """
    channels = x_BCHW.shape[1]
    if groups < 1 or channels % groups:
        raise ValueError(f"groups must divide the {channels} channels, got {groups}")
    mean_C, var_C, batch_statistics = running_mean_C, running_var_C, training
    if estimate:
        if mean_C is None or var_C is None:
            raise ValueError("estimate=True needs running_mean and running_var, got None; pass both, or estimate=False")
        batch_statistics = False
        if training:
            mean_C, var_C = estimated_statistics(x_BCHW, mean_C, var_C, update_rate, total)
    elif training and not update_statistics:
        mean_C = var_C = None
    rate = 0.0 if estimate else float(update_rate)
    y_BCHW = batch_norm(x_BCHW, mean_C, var_C, batch_weight_C, batch_bias_C, batch_statistics, rate, eps)
    if estimate and training and update_statistics:
        assert running_mean_C is not None and running_var_C is not None and mean_C is not None and var_C is not None
        with torch.no_grad():
            running_mean_C.copy_(mean_C)
            running_var_C.copy_(var_C)
    y_BCHW = y_BCHW.to(torch.promote_types(y_BCHW.dtype, torch.float32))
    weight_C, bias_C = (
        affine_G.to(y_BCHW.dtype).repeat_interleave(channels // groups)
        for affine_G in (channel_weight_G, channel_bias_G)
    )
    return group_norm(y_BCHW, groups, weight_C, bias_C, eps).to(x_BCHW.dtype)


@torch.no_grad()
def estimated_statistics(
    x_BCHW: Tensor,
    running_mean_C: Tensor,
    running_var_C: Tensor,
    update_rate: float | Tensor,
    total: Callable[[Tensor], Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """New running mean and variance after this batch; the old ones are left as they are.

    Args:
        x_BCHW: ``[B, C, ...]``.
        running_mean_C: the old mean, which the variance of the batch is taken around.
        running_var_C: the old variance.
        update_rate: r in [0, 1]; a 0-dimensional tensor needs no host synchronization.
        total: sums a tensor over processes.

    Returns:
        Two tensors ``[C]`` of the dtype of the old ones.
    """
    dtype = torch.promote_types(x_BCHW.dtype, torch.float32)
    dims = [dim for dim in range(x_BCHW.ndim) if dim != 1]
    old_C = running_mean_C.to(dtype)
    mean_C = x_BCHW.mean(dims, dtype=dtype)
    # x in its own dtype minus float32 is float32: half precision squares would overflow beyond 256
    var_C = (x_BCHW - old_C.view(-1, *[1] * (x_BCHW.ndim - 2))).square_().mean(dims)
    if total is not None:
        count = x_BCHW.numel() // x_BCHW.shape[1]
        sums = total(torch.cat([mean_C * count, var_C * count, mean_C.new_full((1,), count)]))
        mean_C, var_C = (sums[:-1] / sums[-1]).chunk(2)
    rate = update_rate.to(dtype) if isinstance(update_rate, Tensor) else update_rate
    new_mean_C = torch.lerp(old_C, mean_C, rate)
    new_var_C = torch.lerp(running_var_C.to(dtype), var_C, rate)
    return new_mean_C.to(running_mean_C.dtype), new_var_C.to(running_var_C.dtype)
