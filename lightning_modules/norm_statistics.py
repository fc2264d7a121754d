"""Control of running norm statistics in passes that are not the update's own."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


def norm_modules(module: nn.Module) -> list[nn.Module]:
    """The norms inside that keep running statistics."""
    kept = ("running_mean", "running_var")  # EvoNorm has the second alone
    return [norm for norm in module.modules() if any(getattr(norm, name, None) is not None for name in kept)]


def norm_buffers(*modules: nn.Module) -> list[Tensor]:
    """Running means, variances and counters of the norms inside, each once."""
    norms = dict.fromkeys(norm for module in modules for norm in norm_modules(module))
    return [buffer for norm in norms for buffer in norm.buffers(recurse=False)]


def statistics_in_training(*modules: nn.Module) -> list[Tensor]:
    """Running means and variances of the norms inside that are in training mode: those that every update moves."""
    norms = [norm for module in modules for norm in norm_modules(module) if norm.training]
    buffers = [buffer for norm in norms for buffer in norm.buffers(recurse=False)]
    return [buffer for buffer in buffers if buffer.is_floating_point()]


@contextmanager
def norm_statistics_kept(*networks: nn.Module) -> Iterator[None]:
    """Whatever forwards happen inside, running means, variances and counters are put back afterwards."""
    norms = [norm for network in networks for norm in norm_modules(network)]
    saved = [{name: buffer.clone() for name, buffer in norm.named_buffers(recurse=False)} for norm in norms]
    try:
        yield
    finally:
        with torch.no_grad():
            for norm, buffers in zip(norms, saved, strict=True):
                for name, buffer in norm.named_buffers(recurse=False):
                    buffer.copy_(buffers[name])


@contextmanager
def norm_statistics_frozen(network: nn.Module) -> Iterator[None]:
    """Forwards inside normalize as they would outside and leave running means, variances and counters alone.

    For passes that are not the update's own, in training mode: the inner loop of an attack, a second view. Nothing is
    copied. The norms are told by ``track_running_stats``, which batch norms (torch's, timm's, synchronized ones) and
    the norms of this library's surgeries honour.

    Args:
        network: whose norms are meant. It may be nested.
    """
    norms: list[Any] = [norm for norm in norm_modules(network) if getattr(norm, "track_running_stats", False)]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True


class BufferCopy:
    """Tensors beside a second set of their size: ``save`` and ``restore`` are one fused copy for each dtype.

    Args:
        buffers: stay where they are; they must be written in place from here on.
    """

    def __init__(self, buffers: Iterable[Tensor]) -> None:
        groups: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
        for buffer in buffers:
            groups.setdefault((buffer.dtype, buffer.device), []).append(buffer)
        self._pairs = [(live, [torch.empty_like(buffer) for buffer in live]) for live in groups.values()]

    @torch.no_grad()
    def save(self) -> None:
        """Copy the present values."""
        for live, kept in self._pairs:
            torch._foreach_copy_(kept, live)

    @torch.no_grad()
    def restore(self) -> None:
        """Put the values of the last ``save`` back."""
        for live, kept in self._pairs:
            torch._foreach_copy_(live, kept)
