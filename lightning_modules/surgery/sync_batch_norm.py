"""Batch norm whose statistics are those of the batch of all processes."""

from __future__ import annotations

from timm.layers import BatchNormAct2d, convert_sync_batchnorm
from timm.layers.norm_act import SyncBatchNormAct
from torch import nn

from lightning_modules.surgery.anatomy import Anatomy, Layer
from lightning_modules.surgery.base import Surgery
from lightning_modules.surgery.batch_channel_norm import replace_modules
from lightning_modules.surgery.changes import Changes


class SyncBatchNorm(Surgery):
    """Every batch norm becomes torch's ``SyncBatchNorm``, by timm's converter.

    torch's own converter, which the trainer's ``sync_batchnorm`` calls, drops the activation inside timm's
    ``BatchNormAct2d``. Parameters and keys stay the same. With one process nothing is synchronized and the norm is
    plain batch norm; with several it needs GPUs (torch has no collective for it on CPUs).

    Args:
        include: patterns of names that are considered; None for all.
        exclude: patterns of names that are left as they are.
    """

    phase = "replace"
    does = frozenset({"replaces_batch_norm"})
    refuses = {
        "replaces_batch_norm": "each of the two replaces the same batch norms; what one computes from part of a batch, "
        "or behind a batch norm, is lost in a norm over the batch of all processes"
    }

    def __init__(self, *, include: list[str] | None = None, exclude: list[str] | None = None) -> None:
        super().__init__(include=include, exclude=exclude)

    def apply(self, backbone: nn.Module, anatomy: Anatomy) -> Changes:
        """Convert the chosen norms.

        Raises:
            ValueError: a norm is synchronized already, or there is no batch norm.
        """
        if any(isinstance(module, nn.SyncBatchNorm) for module in backbone.modules()):
            raise ValueError("this backbone has synchronized batch norms already; apply sync_bn once, to a fresh one")
        changes = Changes()
        found = self.chosen(anatomy.norms, changes, _why_not)
        replace_modules(backbone, {layer.module: convert_sync_batchnorm(layer.module) for layer in found})
        changes.changed = {layer.name: "statistics of the batch of all processes" for layer in found}
        return changes

    def fold(self, backbone: nn.Module) -> list[str]:
        """Plain batch norms again, with their activations."""
        synced = [module for module in backbone.modules() if isinstance(module, nn.SyncBatchNorm)]
        replace_modules(backbone, {norm: _plain(norm) for norm in synced})
        return []


def _why_not(layer: Layer) -> str | None:
    if type(layer.module) in (nn.BatchNorm2d, BatchNormAct2d):
        return None
    return f"a {type(layer.module).__name__} has no synchronized form"


def _plain(norm: nn.SyncBatchNorm) -> nn.BatchNorm2d:
    """The batch norm that was converted, with the same tensors."""
    acts = isinstance(norm, SyncBatchNormAct)
    plain = BatchNormAct2d(norm.num_features) if acts else nn.BatchNorm2d(norm.num_features)
    for name in ("act", "drop") if acts else ():
        setattr(plain, name, getattr(norm, name))
    for name in ("eps", "momentum", "affine", "track_running_stats", "training"):
        setattr(plain, name, getattr(norm, name))
    for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
        setattr(plain, name, getattr(norm, name))
    return plain
