"""The module of batch-channel normalization.

Qiao, Wang, Liu, Shen, Yuille. "Micro-Batch Training with Batch-Channel Normalization and Weight Standardization".
2019, arXiv 1903.10520.
"""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor, nn

from kernels.batch_channel_norm import batch_channel_norm
from kernels.ranges import RangeChecked
from lightning_modules.distributed import total_over_processes

CHECKPOINTING = (
    "estimate=true cannot be combined with activation checkpointing: the recomputed forward would update the running "
    "statistics a second time and normalize with others than the first did, so gradients would be wrong; turn one of "
    "the two off"
)


class BatchChannelNorm2d(RangeChecked, nn.modules.batchnorm._NormBase):
    """The module: a batch norm, then a group norm with one affine pair a group, then ``drop`` and ``act``.

    Parameters and buffers of the batch stage have the names of ``nn.BatchNorm2d``; ``channel_weight`` and
    ``channel_bias`` ``[G]`` are new. It is no subclass of ``nn.BatchNorm2d``, because whatever converts or freezes
    batch norms would drop the channel stage.

    Args:
        num_features: channels C.
        groups: G, a divisor of C.
        eps: of both stages.
        estimate: normalize with running statistics in training, too.
        update_rate: weight of a batch in the running statistics.
        warmup: the rate of update t, from 0, is at least 1 / (t + 1) (``estimate`` only).
        all_reduce: the estimates are of the batches of all processes (``estimate`` only).
        affine: whether the batch stage has a weight and a bias.

    Raises:
        ValueError: groups that do not divide C; options that contradict each other.

    Example:
        >>> BatchChannelNorm2d(64, groups=32)(torch.randn(2, 64, 8, 8)).shape
        torch.Size([2, 64, 8, 8])
    """

    def __init__(
        self,
        num_features: int,
        groups: int,
        *,
        eps: Annotated[float, "x > 0"] = 1e-5,
        estimate: bool = False,
        update_rate: Annotated[float, "0 <= x <= 1"] = 0.1,
        warmup: bool = False,
        all_reduce: bool = False,
        affine: bool = True,
    ) -> None:
        super().__init__(num_features, eps=eps, momentum=update_rate, affine=affine)
        if groups < 1 or num_features % groups:
            raise ValueError(f"groups must divide the {num_features} channels, got {groups}")
        check_statistics(estimate, warmup, all_reduce)
        self.groups, self.estimate, self.warmup, self.all_reduce = groups, estimate, warmup, all_reduce
        self.update_rate = update_rate
        self.channel_weight, self.channel_bias = nn.Parameter(torch.ones(groups)), nn.Parameter(torch.zeros(groups))
        self.drop: nn.Module = nn.Identity()
        self.act: nn.Module = nn.Identity()

    @staticmethod
    def of(norm: nn.BatchNorm2d, groups: int, **options: bool | float) -> BatchChannelNorm2d:
        """What replaces ``norm``: its affine, statistics, activation and dropout, on its device and in its dtype.

        A weight of zeros, by which residual branches start as nothing, becomes the weight of the channel stage: in the
        batch stage it would feed a constant to the channel stage, which multiplies its gradient by 1 / sqrt(eps).

        Args:
            norm: with running statistics.
            groups: G.
            options: of ``BatchChannelNorm2d``.
        """
        assert norm.running_mean is not None and norm.running_var is not None
        new = BatchChannelNorm2d(norm.num_features, groups, eps=norm.eps, affine=norm.affine, **options)  # type: ignore[arg-type]
        new.to(device=norm.running_mean.device, dtype=norm.running_mean.dtype)
        with torch.no_grad():
            for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
                if (source := getattr(norm, name)) is not None:
                    getattr(new, name).copy_(source)
            if norm.affine and not norm.weight.any():
                new.weight.fill_(1.0)
                new.channel_weight.zero_()
        for name, parameter in norm.named_parameters(recurse=False):
            getattr(new, name).requires_grad_(parameter.requires_grad)
        for name in ("drop", "act"):
            if hasattr(norm, name):
                setattr(new, name, getattr(norm, name))
        return new.train(norm.training)

    @property
    def uses_batch_statistics(self) -> bool:
        """Whether training normalizes by statistics of the batch, so that one image is too few."""
        return not self.estimate

    def reset_parameters(self) -> None:
        super().reset_parameters()
        if "channel_weight" in self._parameters:
            nn.init.ones_(self.channel_weight)
            nn.init.zeros_(self.channel_bias)

    def forward(self, x: Tensor) -> Tensor:
        update = self.training and self.track_running_stats
        if update:
            if self.estimate:
                _refuse_recomputation()
            self.num_batches_tracked.add_(1)  # type: ignore[union-attr]
        normed = batch_channel_norm(
            x,
            self.running_mean,
            self.running_var,
            self.weight,
            self.bias,
            self.channel_weight,
            self.channel_bias,
            groups=self.groups,
            training=self.training,
            estimate=self.estimate,
            update_rate=self._rate(update),
            eps=self.eps,
            update_statistics=update,
            total=total_over_processes if self.all_reduce else None,
        )
        return self.act(self.drop(normed))

    def _rate(self, counted: bool) -> float | Tensor:
        """r, on the device where it depends on the number of updates."""
        if not self.warmup:
            return self.update_rate
        seen = self.num_batches_tracked if counted else self.num_batches_tracked + 1  # type: ignore[operator]
        assert isinstance(seen, Tensor)
        return seen.double().reciprocal().clamp_min(self.update_rate)

    def extra_repr(self) -> str:
        return (
            f"{self.num_features}, groups={self.groups}, eps={self.eps}, estimate={self.estimate}, "
            f"update_rate={self.update_rate}, warmup={self.warmup}, all_reduce={self.all_reduce}"
        )


def check_statistics(estimate: bool, warmup: bool, all_reduce: bool) -> None:
    """Refuse options that would do nothing."""
    for name, on in (("warmup", warmup), ("all_reduce", all_reduce)):
        if on and not estimate:
            raise ValueError(
                f"{name}=true is about estimated statistics, and estimate=false normalizes by the batch; set "
                f"estimate=true or {name}=false"
            )


def _refuse_recomputation() -> None:
    """Inside a backward pass a forward is the second one of activation checkpointing.

    Raises:
        RuntimeError: it is.
    """
    if not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1:
        raise RuntimeError(CHECKPOINTING)
