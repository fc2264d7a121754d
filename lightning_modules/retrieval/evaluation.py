"""The evaluation of a network: its embeddings, their metrics, and what is shown and left of both."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from lightning_modules.evaluators.base import EvaluationData
from lightning_modules.evaluators.result import Evaluation
from lightning_modules.retrieval.files import save_neighbours
from lightning_modules.retrieval.index import APPROXIMATE, build, save_index
from lightning_modules.retrieval.inputs import checked
from lightning_modules.retrieval.scores import Scores
from lightning_modules.retrieval.view import SHOWN, at_cutoffs, embedding_map, galleries, worst_classes

if TYPE_CHECKING:
    from lightning_modules.evaluators.retrieval import RetrievalEvaluator


def evaluation_of(
    evaluator: RetrievalEvaluator, data: EvaluationData, embeddings: Tensor, labels: Tensor, index: Tensor
) -> Evaluation:
    """Metrics, curves, worst classes; pictures, map and files as the evaluator asks for them.

    Raises:
        ValueError: embeddings that cannot be ranked.
    """
    query = None if data.is_query is None else data.is_query.cpu()[index].bool()
    roles = {"is_query": query, "is_gallery": None if query is None else ~query}
    metrics, sums, classes = evaluator.measured(embeddings, labels, index_ids=index, **roles)
    if data.brief:
        return Evaluation(metrics=metrics)
    evaluation = Evaluation(metrics=metrics, figures=at_cutoffs(metrics, evaluator.ks))
    evaluation.tables = worst_classes(sums, classes, data.classes, evaluator.lone, evaluator.ks[0])
    if evaluator.map is not None:
        evaluation.maps = {"Test images": embedding_map(embeddings, labels.numpy(), data.classes, evaluator.map)}
    pictured = evaluator.num_queries if data.picture is not None else 0
    if not (pictured or evaluator.save):
        return evaluation
    found = evaluator.search(embeddings, min(SHOWN, len(labels)), **roles)
    if pictured and data.picture is not None:
        held = None if query is None else ~query.numpy()
        facts = labels.numpy(), held, index.numpy(), data.classes
        evaluation.queries = galleries(found, *facts, data.picture, pictured)
    if evaluator.save and data.output is not None:
        with open(data.output / "embeddings.npz", "wb") as file:
            np.savez(file, embeddings=embeddings.numpy(), labels=labels.numpy(), index=index.numpy())
        save_neighbours(data.output / "neighbours.npz", found)
        _save_index(data.output / "index.faiss", evaluator, embeddings, roles)
    return evaluation


def _save_index(path: Path, evaluator: RetrievalEvaluator, embeddings: Tensor, roles: dict[str, Any]) -> None:
    """The gallery in the approximate index that was evaluated, else in FAISS's flat one."""
    rows = checked(embeddings, np.zeros(len(embeddings), dtype=np.int64), evaluator.metric, **roles)
    scores = Scores(rows.embeddings, rows.queries, rows.gallery, evaluator.metric)
    approximate = evaluator.index in APPROXIMATE
    kind, options = (evaluator.index, evaluator.index_options) if approximate else ("flat", None)
    save_index(path, build(scores, kind, options))
