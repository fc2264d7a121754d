"""Batch-channel normalization in the place of batch norm.

Qiao, Wang, Liu, Shen, Yuille. "Micro-Batch Training with Batch-Channel Normalization and Weight Standardization".
2019, arXiv 1903.10520. Official code: joe-siyuan-qiao/Batch-Channel-Normalization. Departures, with their reasons, are
in docs/weight_standardization_bcn.md.
"""

from __future__ import annotations

from typing import Annotated

from timm.layers import BatchNormAct2d
from torch import nn

from lightning_modules.surgery.anatomy import Anatomy, Layer
from lightning_modules.surgery.base import Surgery
from lightning_modules.surgery.batch_channel_norm_2d import CHECKPOINTING, BatchChannelNorm2d, check_statistics
from lightning_modules.surgery.changes import Changes

REPLACED = (nn.BatchNorm2d, BatchNormAct2d)


class BatchChannelNorm(Surgery):
    """Every ``BatchNorm2d`` becomes a ``BatchChannelNorm2d``; timm's ``BatchNormAct2d`` keeps its activation.

    Args:
        groups: at most so many; a norm takes the largest divisor of its channels that leaves two channels a group.
        estimate: normalize with running statistics in training too, so that batches of one or two images will do.
        update_rate: weight of a batch in the running statistics; None for the momentum of the norm that is replaced.
            No published code sets it (docs/weight_standardization_bcn.md).
        warmup: the rate of update t is at least 1 / (t + 1), so that the first statistics are plain averages; needs
            ``estimate``.
        all_reduce: estimates over the batches of all processes; needs ``estimate``.
        include: patterns of names that are considered; None for all.
        exclude: patterns of names that are left as they are.

    Raises:
        ValueError: a value outside its range, or an option that would do nothing.
    """

    phase = "replace"
    does = frozenset({"replaces_batch_norm"})
    refuses = {
        "replaces_batch_norm": "each of the two replaces the same batch norms, and the statistics of the first stage "
        "cannot follow two rules"
    }

    def __init__(
        self,
        *,
        groups: Annotated[int, "x >= 1"] = 32,
        estimate: bool = False,
        update_rate: Annotated[float, "0 <= x <= 1"] | None = 0.1,
        warmup: bool = False,
        all_reduce: bool = False,
        include: list[str] | None = None,
        exclude: list[str] | None = None,
    ) -> None:
        super().__init__(include=include, exclude=exclude)
        check_statistics(estimate, warmup, all_reduce)
        self.groups, self.update_rate = groups, update_rate
        self.estimate, self.warmup, self.all_reduce = estimate, warmup, all_reduce

    def apply(self, backbone: nn.Module, anatomy: Anatomy) -> Changes:
        """Replace the chosen norms.

        Raises:
            ValueError: applied before, no batch norm, or ``estimate`` together with activation checkpointing.
        """
        if any(isinstance(module, BatchChannelNorm2d) for module in backbone.modules()):
            raise ValueError("batch-channel normalization was applied before; apply it once, to a fresh backbone")
        if self.estimate and any(getattr(module, "grad_checkpointing", False) for module in backbone.modules()):
            raise ValueError(CHECKPOINTING)
        changes = Changes()
        found = self.chosen(anatomy.norms, changes, self._why_not)
        replace_modules(backbone, {layer.module: self._new(layer.module) for layer in found})
        for layer in found:
            new = backbone.get_submodule(layer.name)
            assert isinstance(new, BatchChannelNorm2d)
            zero = "; the zero weight went to the channel stage" if not new.channel_weight.any() else ""
            changes.changed[layer.name] = (
                f"batch-channel norm, {new.num_features} channels in {new.groups} groups{zero}"
            )
        called = {layer.name for layer in anatomy.norms}
        for name, module in backbone.named_modules():
            if type(module) in REPLACED and name not in called:
                changes.skipped[name] = "forward_features never calls it"
        changes.notes.append(
            "warning: the channel stage changes the function of weights that were trained with batch norm; train from "
            "scratch, or expect fine-tuning to start from another function"
        )
        return changes

    def fold(self, backbone: nn.Module) -> list[str]:
        """Nothing to fold: the channel stage depends on the sample."""
        count = sum(isinstance(module, BatchChannelNorm2d) for module in backbone.modules())
        if count == 0:
            return []
        return [
            f"{count} batch-channel norms stay: their second stage normalizes each sample by its own statistics, which "
            "no batch norm can do"
        ]

    def _new(self, norm: nn.Module) -> BatchChannelNorm2d:
        assert isinstance(norm, nn.BatchNorm2d)
        groups = largest_groups(norm.num_features, self.groups)
        rate = norm.momentum if self.update_rate is None else self.update_rate
        assert groups is not None and rate is not None
        return BatchChannelNorm2d.of(
            norm, groups, estimate=self.estimate, update_rate=rate, warmup=self.warmup, all_reduce=self.all_reduce
        )

    def _why_not(self, layer: Layer) -> str | None:
        norm = layer.module
        if type(norm) not in REPLACED:
            return f"a {type(norm).__name__} is no batch norm of images"
        assert isinstance(norm, nn.BatchNorm2d)
        if norm.running_mean is None:
            return "keeps no running statistics"
        if largest_groups(norm.num_features, self.groups) is None:
            return f"{norm.num_features} channels have no group of two"
        if self.update_rate is None and norm.momentum is None:
            return "averages over all updates, which is no rate; set update_rate"
        return None


def largest_groups(channels: int, most: int) -> int | None:
    """The largest divisor of ``channels`` up to ``most`` with two channels a group; None where there is none."""
    return next((g for g in range(min(most, channels // 2), 0, -1) if channels % g == 0), None)


def replace_modules(root: nn.Module, new: dict[nn.Module, nn.Module]) -> None:
    """Put other modules in the place of some, at every place where one is registered."""
    for parent in list(root.modules()):
        for name, child in parent._modules.items():
            if child in new:
                parent._modules[name] = new[child]
