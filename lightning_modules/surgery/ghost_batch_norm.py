"""Ghost batch norm in the place of batch norm.

Hoffer, Hubara, Soudry. "Train longer, generalize better: closing the generalization gap in large batch training of
neural networks". NeurIPS 2017, arXiv 1705.08741. Official code: eladhoffer/bigBatch. Departures, with their reasons,
are listed in docs/ghost_batch_norm.md.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from timm.layers import BatchNormAct2d
from torch import Tensor, nn

from kernels.ghost_batch_norm import ghost_batch_norm
from lightning_modules.surgery.anatomy import Anatomy, Layer
from lightning_modules.surgery.base import Surgery
from lightning_modules.surgery.changes import Changes


class GhostBatchNorm2d(nn.BatchNorm2d):
    """Batch norm whose training statistics are those of at most ``ghost_size`` samples; made by the surgery.

    ``num_batches_tracked`` counts forwards, not chunks. Without ``track_running_stats`` nothing is updated.
    """

    ghost_size: int
    momentum_mode: Literal["scaled", "sequential"]

    def forward(self, input: Tensor) -> Tensor:
        return _normalize(self, input)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, ghost_size={self.ghost_size}, momentum_mode={self.momentum_mode!r}"


class GhostBatchNormAct2d(BatchNormAct2d):
    """The same with timm's dropout and activation behind the norm."""

    ghost_size: int
    momentum_mode: Literal["scaled", "sequential"]

    def forward(self, x: Tensor) -> Tensor:
        normed: Tensor = self.act(self.drop(_normalize(self, x)))
        return normed

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, ghost_size={self.ghost_size}, momentum_mode={self.momentum_mode!r}"


#: The class that takes the place of each; a class of its own may have another forward and is left alone.
GHOSTS: dict[type[nn.Module], type[nn.Module]] = {
    nn.BatchNorm2d: GhostBatchNorm2d,
    BatchNormAct2d: GhostBatchNormAct2d,
}


class GhostBatchNorm(Surgery):
    """Every batch norm takes its training statistics from chunks of the batch; in eval mode it is batch norm.

    Modules, activations, parameters, buffers and keys stay: only the class of the module changes.

    Args:
        ghost_size: samples of a chunk, at most; 128 is the paper's.
        momentum_mode: ``scaled`` forgets as much a step as batch norm does; ``sequential`` applies the full momentum
            after each chunk, as the official code.
        include: patterns of names that are considered; None for all.
        exclude: patterns of names that are left as they are.

    Raises:
        ValueError: a value outside its range.
    """

    phase = "replace"
    does = frozenset({"replaces_batch_norm"})
    refuses = {
        "replaces_batch_norm": "each of the two replaces the same batch norms, and a norm cannot take its statistics "
        "both from parts of the batch and by another rule"
    }

    def __init__(
        self,
        *,
        ghost_size: Annotated[int, "x >= 1"] = 32,
        momentum_mode: Literal["scaled", "sequential"] = "scaled",
        include: list[str] | None = None,
        exclude: list[str] | None = None,
    ) -> None:
        super().__init__(include=include, exclude=exclude)
        if momentum_mode not in ("scaled", "sequential"):
            raise ValueError(f"momentum_mode must be 'scaled' or 'sequential', got {momentum_mode!r}")
        self.ghost_size, self.momentum_mode = ghost_size, momentum_mode

    def apply(self, backbone: nn.Module, anatomy: Anatomy) -> Changes:
        """Change the class of the chosen norms.

        Raises:
            ValueError: applied before, a synchronized batch norm, or no batch norm.
        """
        for name, module in backbone.named_modules():
            if isinstance(module, tuple(GHOSTS.values())):
                raise ValueError(f"{name} is a ghost batch norm already; apply ghost_bn once, to a fresh backbone")
            if isinstance(module, nn.SyncBatchNorm):
                raise ValueError(
                    f"{name} is a SyncBatchNorm, whose statistics are those of all processes; ghosts are parts of one "
                    "process's batch; take one of the two"
                )
        changes = Changes()
        for layer in self.chosen(anatomy.norms, changes, _why_not):
            norm: Any = layer.module
            norm.__class__ = GHOSTS[type(norm)]
            norm.ghost_size, norm.momentum_mode = self.ghost_size, self.momentum_mode
            changes.changed[layer.name] = (
                f"statistics of at most {self.ghost_size} samples, {self.momentum_mode} momentum"
            )
        return changes

    def fold(self, backbone: nn.Module) -> list[str]:
        """Plain batch norms again: in eval mode they are the same."""
        plain = {ghost: norm for norm, ghost in GHOSTS.items()}
        for module in backbone.modules():
            if type(module) in plain:
                module.__class__ = plain[type(module)]
                del module.ghost_size, module.momentum_mode
        return []


def _normalize(norm: Any, x: Tensor) -> Tensor:
    """The norm alone, with its statistics and its counter."""
    update = norm.training and norm.track_running_stats
    if update and norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
    keeps = update or not norm.training
    return ghost_batch_norm(
        x,
        norm.running_mean if keeps else None,
        norm.running_var if keeps else None,
        norm.weight,
        norm.bias,
        ghost_size=norm.ghost_size,
        training=norm.training,
        momentum=norm.momentum,
        momentum_mode=norm.momentum_mode,
        eps=norm.eps,
    )


def _why_not(layer: Layer) -> str | None:
    norm = layer.module
    if type(norm) not in GHOSTS:
        return f"a {type(norm).__name__} is no plain batch norm of images"
    assert isinstance(norm, nn.BatchNorm2d)
    if norm.running_mean is None:
        return "keeps no running statistics"
    if norm.momentum is None:
        return "averages over all updates (momentum=None), which is no rate to divide among ghosts"
    return None
