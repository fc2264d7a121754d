"""The metric-learning task: embeddings, measured by retrieval among the images of validation."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from kernels.batch import Batch, Output
from kernels.embedding_statistics import tolerance, uniformity
from lightning_modules.evaluators.retrieval import RetrievalEvaluator
from lightning_modules.network import Network
from lightning_modules.task import Task

SAMPLED = 2048


class EmbeddingMeter:
    """Keeps rows of every batch; ``read`` gives them as whole tensors."""

    def __init__(self) -> None:
        self._rows: dict[str, list[Tensor]] = {}

    def add(self, rows: dict[str, Tensor]) -> None:
        """Keep ``[B, ...]`` of each name."""
        for name, value in rows.items():
            self._rows.setdefault(name, []).append(value.detach())

    def read(self) -> dict[str, Tensor]:
        """``[N, ...]`` by name; forgets them."""
        whole = {name: torch.cat(values) for name, values in self._rows.items()}
        self._rows = {}
        return whole


class MetricLearner(Task):
    """Trains an embedding; validation retrieves each image among the others, and MAP@R selects the epoch.

    Beside it stand uniformity and tolerance of the embeddings: how evenly they fill the sphere, how near a class lies.

    Musgrave, Belongie, Lim (2020), "A Metric Learning Reality Check", arXiv 2003.08505: validation classes are none of
    those trained on (``data.val_fraction`` of the training classes), and the test classes never select.
    ``data.select_on=test_best`` selects on them all the same, to compare with papers that do.

    Args:
        *common: those of ``Task``.
        **keys: those of ``Task``.
    """

    validation_meter = EmbeddingMeter
    needs = frozenset({"embedding"})
    retrieves = True

    def measure_training(self, outputs: dict[str, Output], batch: Batch) -> dict[str, Tensor]:
        """Nothing but the loss terms."""
        return {}

    def measure_validation(self, network: Network, batch: Batch) -> dict[str, Tensor]:
        embedding_BE = network(batch.image).embedding
        assert embedding_BE is not None  # the loss needs one, which the head was checked for
        return {"embeddings": embedding_BE.float(), "labels": batch.label, "index_ids": batch.index}

    def validation_metrics(self) -> dict[str, float]:
        """Retrieval among all validation images, over all processes; how even and how tight their embeddings are."""
        rows = self.val_meter.read()
        if (roles := self.context.val_is_query) is not None:
            is_query = roles.to(rows["index_ids"].device)[rows["index_ids"]]
            rows |= {"is_query": is_query, "is_gallery": ~is_query}
        embeddings, labels = rows.pop("embeddings"), rows.pop("labels")
        found = RetrievalEvaluator(ks=[1], full_map=False)(embeddings, labels, **rows)
        return {name: found[name] for name in ("recall@1", "r_precision", "map@r")} | _statistics(embeddings, labels)

    def metrics(self, sums: dict[str, float], samples: float) -> dict[str, float]:
        """Of training: none but the loss terms."""
        return {}

    def selection(self, row: dict[str, float]) -> tuple[float, ...] | None:
        """Higher validation MAP@R, then higher R@1."""
        if "val/map@r" not in row or not math.isfinite(row["val/map@r"]):
            return None
        return row["val/map@r"], row["val/recall@1"]


def _statistics(embeddings: Tensor, labels: Tensor) -> dict[str, float]:
    """Uniformity and tolerance (Wang, Isola 2020, arXiv 2005.10242; Wang, Liu 2021, arXiv 2012.09740), of at most
    ``SAMPLED`` rows of this process."""
    some = slice(None, None, -(-len(labels) // SAMPLED))
    values = {"uniformity": uniformity(embeddings[some]), "tolerance": tolerance(embeddings[some], labels[some])}
    return {name: float(value) for name, value in values.items()}
