"""Retrieval: how far up the items of its class stand when each item asks all the others.

Source: Musgrave, Belongie, Lim, "A Metric Learning Reality Check" (2020), arXiv 2003.08505; the formulas, and what is
done about equal scores, are in ``kernels/retrieval_metrics.py``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal, overload

import numpy as np
import torch
from torch import Tensor

from lightning_modules.distributed import share_of
from lightning_modules.evaluators.base import EvaluationData, Evaluator, Measurement
from lightning_modules.evaluators.embedded import Embedded
from lightning_modules.evaluators.result import Evaluation
from lightning_modules.evaluators.retrieval_saved import save_gallery, save_vectors
from lightning_modules.evaluators.retrieval_view import (
    SHOWN,
    at_cutoffs,
    embedding_map,
    galleries,
    name_of,
    worst_classes,
)
from lightning_modules.network import Network
from lightning_modules.retrieval.clusters import cluster_metrics
from lightning_modules.retrieval.collapse import best_is_tied, collapse
from lightning_modules.retrieval.index import APPROXIMATE, approximate, build, index_recall, settings
from lightning_modules.retrieval.inputs import Rows, checked, exact_products, gathered_once, on_gpu
from lightning_modules.retrieval.k_reciprocal import KReciprocalScores, check_reranking
from lightning_modules.retrieval.labels import Relevance
from lightning_modules.retrieval.measure import ClassSums, Plan, measure
from lightning_modules.retrieval.query_expansion import expanded
from lightning_modules.retrieval.scores import Array, Scores
from lightning_modules.retrieval.search import Hits, Neighbours, Ranking, exact, in_order, search

MANY = 256  # neighbours from which on the ranks of relevant items are counted: they tell all metrics


class RetrievalEvaluator(Evaluator):
    """Recall@K, precision@K, R-precision, MAP@R, mAP, MRR and more, of every query against the whole gallery.

    Rankings are exact: by descending score, equal scores by ascending row. Works on a network and its data, or on
    embeddings alone; some tens of megabytes are held beyond them, at any size (more where most scores are tied).

    Metrics: ``recall@k`` (the share of queries with a hit among the first k), ``precision@k``, ``ir_recall@k`` (the
    share of the relevant items found), ``r_precision``, ``map@r``, ``map``, ``mrr``, ``queries`` and
    ``queries_without_match``: those with no relevant item in the gallery.

    Args:
        ks: cutoffs.
        metric: cosine, or l2 for distances of the rows as they are.
        ties: order of equal scores: by row (index), relevant ones first (optimistic) or last (pessimistic), or the mean
            over all orders (expected).
        lone: queries without a relevant item are left out of the means (exclude) or count as failures (zero).
        full_map: ``map``, which needs the ranks of all relevant items in the whole gallery.
        macro: means over classes as well, as ``macro_NAME``.
        clusters: ``nmi`` and ``ami`` of k-means with as many clusters as classes.
        index: flat, gpu (both exhaustive) and sharded give the same numbers; ivf, ivf_pq and hnsw are approximate, and
            their ``index_recall@k`` is measured with them.
        index_options: settings of the index: shards; nlist, nprobe, m, nbits; m, ef_construction, ef_search.
        query_expansion: number of neighbours that join each query (alpha query expansion); 0 for none.
        rerank: k1, k2 and weight of k-reciprocal re-ranking ({} for 20, 6 and 0.3); None for none.
        num_queries: pictured queries of each gallery (at even steps, worst, best); 0 for none.
        map: how the embedding is laid out in the plane; None for no map.
        save: leave vectors, index and names in the output folder, so that new photographs can ask the gallery.

    Example:
        >>> evaluator = RetrievalEvaluator(ks=[1])
        >>> embeddings = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.1, 0.9]])
        >>> evaluator(embeddings, torch.tensor([0, 0, 1, 1]))["recall@1"]
        1.0
    """

    compares = "none"

    def __init__(
        self,
        *,
        ks: list[Annotated[int, "x >= 1"]] | tuple[Annotated[int, "x >= 1"], ...] = (1, 2, 4, 8),
        metric: Literal["cosine", "l2"] = "cosine",
        ties: Literal["index", "optimistic", "pessimistic", "expected"] = "index",
        lone: Literal["exclude", "zero"] = "exclude",
        full_map: bool = True,
        macro: bool = False,
        clusters: bool = False,
        index: Literal["flat", "gpu", "sharded", "ivf", "ivf_pq", "hnsw"] = "flat",
        index_options: dict[str, Annotated[int, "x >= 1"]] | None = None,
        query_expansion: Annotated[int, "x >= 0"] = 0,
        rerank: dict[str, Annotated[float, "x >= 0"]] | None = None,
        num_queries: Annotated[int, "x >= 0"] = 6,
        map: Literal["pca", "tsne"] | None = "pca",
        save: bool = False,
    ) -> None:
        if not isinstance(ks, list | tuple):
            raise ValueError(f"ks is {ks!r}; it must be a list of integers, such as [1, 2, 4, 8]")
        self.ks = tuple(sorted(set(ks)))
        self.metric, self.ties, self.lone, self.full_map, self.macro = metric, ties, lone, full_map, macro
        self.clusters, self.index, self.index_options = clusters, index, settings(index, index_options)
        self.query_expansion, self.rerank = query_expansion, rerank
        self.num_queries, self.map, self.save = num_queries, map, save
        self.needs_matches = lone == "exclude"
        self._check()

    def _check(self) -> None:
        if not self.ks or not all(isinstance(k, int) and not isinstance(k, bool) and k >= 1 for k in self.ks):
            raise ValueError(f"ks are {list(self.ks)}; they must be integers of at least 1, such as [1, 2, 4, 8]")
        choices = {
            "metric": ("cosine", "l2"),
            "ties": ("index", "optimistic", "pessimistic", "expected"),
            "lone": ("exclude", "zero"),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}={getattr(self, name)!r} is unknown; choose one of {', '.join(allowed)}")
        if self.map not in ("pca", "tsne", None):
            raise ValueError(f"map={self.map!r} is unknown; choose pca, tsne or null")
        if self.query_expansion and self.metric != "cosine":
            raise ValueError("query_expansion weights neighbours by their cosine; it needs metric=cosine")
        if self.rerank is not None and not set(self.rerank) <= {"k1", "k2", "weight"}:
            raise ValueError(f"rerank has the keys {sorted(self.rerank)}; it knows k1, k2 and weight")
        check_reranking(**(self.rerank or {}))
        if self.rerank is not None and (self.index != "flat" or self.query_expansion):
            raise ValueError("rerank looks at whole rows of the gallery: set index=flat and query_expansion=0 with it")
        if self.index in APPROXIMATE and (self.full_map or self.ties != "index" or self.query_expansion):
            raise ValueError(
                f"index={self.index} is approximate: it does not know the ranks of all items, nor ties; set "
                "full_map=false, ties=index and query_expansion=0, or index=flat"
            )

    @overload
    def __call__(self, network: Network, data: EvaluationData, /) -> Evaluation: ...

    @overload
    def __call__(
        self,
        embeddings: Tensor | np.ndarray,
        labels: Tensor | np.ndarray,
        /,
        *,
        is_query: Any = None,
        is_gallery: Any = None,
        groups: Any = None,
        index_ids: Any = None,
    ) -> dict[str, float]: ...

    def __call__(self, network: Any, data: Any, /, **keys: Any) -> Any:
        """Evaluate a network on data, or embeddings.

        Args:
            network: a network, or embeddings ``[N, D]`` (rounded to float32 where they have fewer bits).
            data: its data, or labels ``[N]`` of any integer type.
            **keys: for embeddings: ``is_query`` and ``is_gallery``, bool ``[N]`` (all rows are both without them; a
                query never meets its own row); ``groups``, integers ``[N]`` (a query ignores the gallery items of its
                own group, whatever their class; negative: no group); ``index_ids``, integers ``[N]``: the rows of all
                processes are gathered, of each id one row is kept, in the order of ids, and the work is shared.

        Returns:
            An ``Evaluation`` of a network, metrics by name of embeddings.

        Raises:
            ValueError: embeddings that cannot be ranked, or no query with a relevant item.
            TypeError: labels that are not integers, masks that are not boolean.
        """
        if isinstance(network, torch.nn.Module):
            return super().__call__(network, data)  # type: ignore[arg-type]
        return self.measured(network, data, **keys)[0]

    def begin(self, network: Network, data: EvaluationData) -> Measurement:
        """Keep the embedding of every image; what they come to is told at the end.

        Raises:
            ValueError: files without a folder to write to.
        """
        if self.save and data.output is None:
            raise ValueError("save=true needs a folder to write to: EvaluationData.output")
        return _Rows(self, network, data)

    def search(self, embeddings: Any, count: int, *, is_query: Any = None, is_gallery: Any = None) -> Neighbours:
        """The ``count`` nearest neighbours of each query, as the metrics see them.

        Raises:
            ValueError: as for a call, or a count below 1.
        """
        if count < 1:
            raise ValueError(f"count is {count}; it must be at least 1")
        labels = np.zeros(len(embeddings), dtype=np.int64)
        with exact_products():
            rows = checked(embeddings, labels, self.metric, is_query, is_gallery)
            scores = self._scores(rows, rows.queries)
            index = build(scores, self.index, self.index_options) if self.index in APPROXIMATE else None
            length = min(count, len(rows.gallery))
            column, _ = in_order(self._rankings(scores, length, None, index), len(rows.queries), length)
            value = exact(scores, np.arange(len(column)), column)
        return Neighbours(rows.queries, np.where(column >= 0, rows.gallery[column], -1), scores.published(value))

    def measured(
        self,
        embeddings: Any,
        labels: Any,
        *,
        is_query: Any = None,
        is_gallery: Any = None,
        groups: Any = None,
        index_ids: Any = None,
    ) -> tuple[dict[str, float], ClassSums, Array]:
        """Metrics, and what they are made of: sums by class, and the label of each class."""
        shared = index_ids is not None
        if shared:
            given = embeddings, labels, is_query, is_gallery, groups
            embeddings, labels, is_query, is_gallery, groups = gathered_once(index_ids, *given)
        with exact_products():
            rows = checked(embeddings, labels, self.metric, is_query, is_gallery, groups)
            total = len(rows.queries)
            asked = rows.queries[slice(*share_of(total))] if shared else rows.queries
            scores = self._scores(rows, asked)
            metrics, sums, classes = self._sums(rows, asked, scores)
            if shared:
                sums.over_processes(rows.embeddings.device)
            if not sums.counted(self.lone).any():
                raise ValueError(
                    f"none of {total} queries has a relevant item in the gallery of {len(rows.gallery)}; check the "
                    "labels and the masks, or set lone=zero"
                )
            metrics = sums.means(self.lone, self.macro) | metrics
            metrics |= {"queries": total, "queries_without_match": int(sums.lone.sum())}
            if self.clusters:
                used = np.union1d(rows.queries, rows.gallery)
                plain = Scores(rows.embeddings, used, used, self.metric)
                metrics |= cluster_metrics(plain, used, rows.labels[used])
            metrics |= collapse(scores, float(sums.tied[0] / max(sums.tied[1], 1)))
        return metrics, sums, classes

    def _sums(self, rows: Rows, asked: Array, scores: Scores) -> tuple[dict[str, float], ClassSums, Array]:
        """What is known of the index, sums over these queries by class, and the labels of the classes."""
        relevance = Relevance(rows.labels, asked, rows.gallery, scores.own_Q, rows.groups)
        count = max(self.ks[-1], int(relevance.total_Q.max(initial=1)))
        count = min(count, len(rows.gallery))
        index = build(scores, self.index, self.index_options) if self.index in APPROXIMATE else None
        plan = Plan(self.ks, self.ties, self.full_map, None if index is None else count)
        counted = (self.full_map or count >= MANY) and self.index in ("flat", "gpu")  # all ranks tell everything
        # First, because the memory it takes is used again by what follows.
        tied = best_is_tied(scores, asked, rows.queries)
        sums = measure(
            scores, relevance, plan, None if counted else self._rankings(scores, count, relevance.hits, index)
        )
        sums.tied += tied
        return {} if index is None else index_recall(scores, index, self.ks), sums, relevance.classes

    def _scores(self, rows: Rows, queries: Array) -> Scores:
        vectors = rows.embeddings
        if self.index == "gpu":
            vectors = on_gpu(vectors)
        scores = Scores(vectors, queries, rows.gallery, self.metric, rows.groups)
        if self.rerank is not None:
            return KReciprocalScores(scores, np.union1d(rows.queries, rows.gallery), **self.rerank)  # type: ignore[arg-type]
        return expanded(scores, self.query_expansion) if self.query_expansion else scores

    def _rankings(self, scores: Scores, count: int, hits: Hits | None, index: Any) -> Iterator[Ranking]:
        if index is not None:
            return approximate(scores, index, count)
        return search(scores, count, hits, shards=self.index_options.get("shards") or 1)


class _Rows(Embedded):
    """The embeddings of a network, and what they come to."""

    def __init__(self, evaluator: RetrievalEvaluator, network: Network, data: EvaluationData) -> None:
        super().__init__(network, data)
        self.evaluator, self.network, self.data = evaluator, network, data

    def result(self) -> Evaluation:
        """Metrics, curves, worst classes; pictures, map and files as the evaluator asks for them."""
        own, data, (embeddings, labels, index) = self.evaluator, self.data, self.whole()
        query = None if data.is_query is None else data.is_query.cpu()[index].bool()
        roles = {"is_query": query, "is_gallery": None if query is None else ~query}
        metrics, sums, classes = own.measured(embeddings, labels, index_ids=index, **roles)
        if data.brief:
            return Evaluation(metrics=metrics)
        evaluation = Evaluation(metrics=metrics, figures=at_cutoffs(metrics, own.ks))
        evaluation.tables = worst_classes(sums, classes, data.classes, own.lone, own.ks[0])
        if own.map is not None:
            evaluation.maps = {"Test images": embedding_map(embeddings, labels.numpy(), data.classes, own.map)}
        pictured = own.num_queries if data.picture is not None else 0
        if not (pictured or own.save):
            return evaluation
        found = own.search(embeddings, min(SHOWN, len(labels)), **roles)
        if pictured and data.picture is not None:
            held = None if query is None else ~query.numpy()
            facts = labels.numpy(), held, index.numpy(), data.classes
            evaluation.queries = galleries(found, *facts, data.picture, pictured)
        if own.save and data.output is not None:
            save_vectors(data.output, embeddings, labels, index, found)
            names = np.array([name_of(label, data.classes) for label in labels.tolist()], dtype=object)
            rows = np.arange(len(labels)) if query is None else np.flatnonzero(~query.numpy())
            kind, options = (own.index, own.index_options) if own.index in APPROXIMATE else ("flat", None)
            save_gallery(self.network, data, (embeddings, names, index.numpy()), rows, own.metric, kind, options)
        return evaluation
