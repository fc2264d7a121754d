"""Control of running norm statistics in passes that are not the update's own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def norm_statistics_kept(network: nn.Module) -> Iterator[None]:
    """Whatever forwards happen inside, running means, variances and counters are put back afterwards."""
    norms = [module for module in network.modules() if getattr(module, "running_mean", None) is not None]
    saved = [{name: buffer.clone() for name, buffer in norm.named_buffers(recurse=False)} for norm in norms]
    try:
        yield
    finally:
        with torch.no_grad():
            for norm, buffers in zip(norms, saved, strict=True):
                for name, buffer in norm.named_buffers(recurse=False):
                    buffer.copy_(buffers[name])
