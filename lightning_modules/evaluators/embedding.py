"""What validation looks at while an embedding is trained: retrieval among its images, and the embedding's shape."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.batch import Batch, Output
from kernels.embedding_statistics import tolerance, uniformity
from lightning_modules.evaluators.base import EvaluationData, Evaluator, Measurement
from lightning_modules.evaluators.result import Evaluation
from lightning_modules.evaluators.retrieval import RetrievalEvaluator
from lightning_modules.network import Network

SAMPLED = 2048


class EmbeddingEvaluator(Evaluator):
    """Recall@1, R-precision and MAP@R of each image among the others; MAP@R selects, then recall@1.

    Beside them stand uniformity and tolerance of the embeddings: how evenly they fill the sphere, how near a class
    lies. Of a network without an embedding the pooled features are meant.
    Musgrave, Belongie, Lim (2020), "A Metric Learning Reality Check", arXiv 2003.08505.
    """

    compares = "none"
    needs_matches = True
    selects = ("map@r", "recall@1")
    measures = ("recall@1", "r_precision", "map@r", "uniformity", "tolerance")

    def begin(self, network: Network, data: EvaluationData) -> Measurement:
        return _Rows(data.is_query)


class _Rows(Measurement):
    """Keeps the rows of every batch, on the device."""

    def __init__(self, is_query: Tensor | None) -> None:
        self.is_query = is_query
        self._rows: list[tuple[Tensor, Tensor, Tensor]] = []

    def add(self, batch: Batch, output: Output) -> None:
        rows = output.features if output.embedding is None else output.embedding
        if rows is None:
            raise ValueError("the network gives no embedding and no features; retrieval needs one of them")
        self._rows.append((rows.detach().float(), batch.label, batch.index))

    def result(self) -> Evaluation:
        """Over all processes; uniformity and tolerance over the rows of the first one."""
        embeddings, labels, index = (torch.cat([rows[i] for rows in self._rows]) for i in range(3))
        keys = {"index_ids": index}
        if self.is_query is not None:
            is_query = self.is_query.to(index.device)[index]
            keys |= {"is_query": is_query, "is_gallery": ~is_query}
        found = RetrievalEvaluator(ks=[1], full_map=False)(embeddings, labels, **keys)
        metrics = {name: found[name] for name in ("recall@1", "r_precision", "map@r")}
        return Evaluation(metrics=metrics | _shape(embeddings, labels))


def _shape(embeddings: Tensor, labels: Tensor) -> dict[str, float]:
    """Uniformity and tolerance (Wang, Isola 2020, arXiv 2005.10242; Wang, Liu 2021, arXiv 2012.09740), of at most
    ``SAMPLED`` rows of this process."""
    some = slice(None, None, -(-len(labels) // SAMPLED))
    values = {"uniformity": uniformity(embeddings[some]), "tolerance": tolerance(embeddings[some], labels[some])}
    return {name: float(value) for name, value in values.items()}
