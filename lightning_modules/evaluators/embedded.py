"""Embeddings of whole data sets, for evaluators that compare images with each other."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from kernels.batch import Batch, Output
from lightning_modules.evaluators.base import Measurement, placed
from lightning_modules.network import Network


class Embedded(Measurement):
    """Keeps the embedding of every image, or its pooled features where the network gives none; subclasses say what
    becomes of them."""

    def __init__(self) -> None:
        self._parts: list[tuple[Tensor, Tensor, Tensor]] = []

    def add(self, batch: Batch, output: Output) -> None:
        """Keep a batch, on the host.

        Raises:
            ValueError: the network gives neither.
        """
        rows = output.features if output.embedding is None else output.embedding
        if rows is None:
            raise ValueError("the network gives no embedding and no features; retrieval needs one of them")
        rows = rows.detach().to(torch.promote_types(rows.dtype, torch.float32))
        self._parts.append((rows.cpu(), batch.label.cpu(), batch.index.cpu()))

    def whole(self) -> tuple[Tensor, Tensor, Tensor]:
        """Embeddings ``[N, D]``, labels and indices ``[N]`` of all batches.

        Raises:
            ValueError: there is no image.
        """
        if not self._parts:
            raise ValueError("there is no image to evaluate; check data.root and data.limit_test")
        embeddings, labels, index = (torch.cat([part[i] for part in self._parts]) for i in range(3))
        return embeddings, labels, index


@torch.no_grad()
def embedded(network: Network, batches: Iterable[Batch]) -> tuple[Tensor, Tensor, Tensor]:
    """Embeddings, labels and indices of all batches, as ``Embedded`` keeps them, in the network's present mode."""
    kept = Embedded()
    for batch in batches:
        batch = placed(batch, network)
        kept.add(batch, network(batch.image))
    return kept.whole()
