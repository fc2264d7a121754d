"""What a network of the run gives to those that learn from it, and how large its map is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lightning_modules.frozen import Frozen


def gives_of(network: nn.Module) -> frozenset[str]:
    """What its output has, of ``logits``, ``embedding`` and ``features``."""
    own: Any = getattr(network, "gives", None)
    if own is not None:
        return frozenset(own)
    head: Any = _itself(network).head
    return frozenset(head.gives | {"features"})


def width_of(network: nn.Module) -> int:
    """D of the features of one that gives them."""
    known: Any = getattr(network, "num_features", None)
    return int(_itself(network).num_features if known is None else known)


def map_of(network: nn.Module, channels: int, image_size: int) -> Tensor:
    """The final map ``[1, ...]`` of an image of zeros, in eval mode.

    Modes, norm statistics and the random state stay as they are.
    """
    with _at_rest(_itself(network)) as inner:
        weight = next((p for p in inner.parameters() if p.is_floating_point()), torch.zeros(()))
        image = torch.zeros(1, channels, image_size, image_size, dtype=weight.dtype, device=weight.device)
        found: Tensor = network(image, want_maps=("final",)).maps["final"]
        return found


def _itself(network: nn.Module) -> Any:
    return network.network if isinstance(network, Frozen) else network


@contextmanager
def _at_rest(network: nn.Module) -> Iterator[nn.Module]:
    modes = [(module, module.training) for module in network.modules()]
    for module, _ in modes:
        module.training = False
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            yield network
    finally:
        for module, mode in modes:
            module.training = mode
