"""Embeddings of whole data sets, for evaluators that compare images with each other."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_modules.evaluators.base import EvaluationData, placed
from lightning_modules.network import Network


@torch.inference_mode()
def embedded(network: Network, data: EvaluationData) -> tuple[Tensor, Tensor, Tensor]:
    """Embeddings ``[N, D]`` (pooled features of a network without any), labels and indices ``[N]`` of all batches.

    In eval mode, on the host; the network's mode is put back.

    Raises:
        ValueError: there is no image, or the network gives neither.
    """
    was_training, parts = network.training, []
    network.eval()
    try:
        for batch in data.batches:
            output = network(placed(batch, network).image)
            rows = output.features if output.embedding is None else output.embedding
            if rows is None:
                raise ValueError("the network gives no embedding and no features; retrieval needs one of them")
            parts.append((rows.to(torch.promote_types(rows.dtype, torch.float32)).cpu(), batch.label, batch.index))
    finally:
        network.train(was_training)
    if not parts:
        raise ValueError("there is no image to evaluate; check data.root and data.limit_test")
    embeddings, labels, index = (torch.cat([part[i].cpu() for part in parts]) for i in range(3))
    return embeddings, labels, index
