"""Embeddings of whole data sets, for evaluators that compare images with each other."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from kernels.batch import Batch, Output
from lightning_modules.evaluators.base import EvaluationData, Measurement, placed
from lightning_modules.evaluators.feature_cache import Rows, features_key
from lightning_modules.network import Network


class Embedded(Measurement):
    """Keeps the embedding of every image, or its pooled features where the network gives none; subclasses say what
    becomes of them.

    Where the cache of the data has them, no batch is needed; what was computed is left there.

    Args:
        network: as it is measured.
        data: its batches are those that are added, or not needed.
        part: which part of the data they are, for the cache.
    """

    def __init__(self, network: Network, data: EvaluationData, part: str = "test") -> None:
        self._parts: list[tuple[Tensor, Tensor, Tensor]] = []
        self._cache, self._key, self._found = data.cache, "", None
        if data.cache is not None and data.key is not None:
            self._key = features_key(network, data.key(part))
            self._found = data.cache.read(self._key)
        self.complete = self._found is not None

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

    def whole(self) -> Rows:
        """Embeddings ``[N, D]``, labels and indices ``[N]`` of all batches; not to be changed in place.

        Raises:
            ValueError: there is no image.
        """
        if self._found is None:
            if not self._parts:
                raise ValueError("there is no image to evaluate; check data.root and data.limit_test")
            embeddings, labels, index = (torch.cat([part[i] for part in self._parts]) for i in range(3))
            self._found, self._parts = (embeddings, labels, index), []
            if self._cache is not None and self._key:
                self._cache.keep(self._key, self._found)
        return self._found


@torch.no_grad()
def embedded(network: Network, data: EvaluationData, part: str, batches: Callable[[], Iterable[Batch]]) -> Rows:
    """Embeddings, labels and indices of another part of the data, as ``Embedded`` keeps them, in the network's present
    mode."""
    kept = Embedded(network, data, part)
    for batch in () if kept.complete else batches():
        batch = placed(batch, network)
        kept.add(batch, network(batch.image))
    return kept.whole()
