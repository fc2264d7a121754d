"""FAISS's indices of a gallery: approximate ones beside the exhaustive search, and what is left for serving.

Numbers for a paper come from the exhaustive search. An approximate index leaves neighbours out without a word, so its
recall against the exhaustive one is measured with it.

Source: Johnson, Douze, Jegou, "Billion-scale similarity search with GPUs" (2017), arXiv 1702.08734; Malkov, Yashunin,
"Efficient and Robust Approximate Nearest Neighbor Search Using HNSW Graphs" (2016), arXiv 1603.09320.

Shape legend: B queries, K neighbours, G gallery.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from lightning_modules.retrieval.scores import CHUNK, Array, Scores, pieces
from lightning_modules.retrieval.search import BLOCK, Ranking, exact, in_order, search

#: Settings of each kind of index; None is chosen by the size of the gallery or of the list.
OPTIONS: dict[str, dict[str, int | None]] = {
    "flat": {},
    "gpu": {},
    "sharded": {"shards": 2},
    "ivf": {"nlist": None, "nprobe": 16},
    "ivf_pq": {"nlist": None, "nprobe": 16, "m": None, "nbits": 8},
    "hnsw": {"m": 32, "ef_construction": 200, "ef_search": None},
}
APPROXIMATE = ("ivf", "ivf_pq", "hnsw")
SAMPLE = 1000  # queries over which the recall of an index is measured


def settings(kind: str, options: dict[str, Any] | None) -> dict[str, Any]:
    """The options of an index with those that were given.

    Raises:
        ValueError: an unknown kind or option.
    """
    if kind not in OPTIONS:
        raise ValueError(f"index={kind!r} is unknown; choose one of {', '.join(OPTIONS)}")
    given = {name: value for name, value in (options or {}).items() if value is not None}
    for name in given:
        if name not in OPTIONS[kind]:
            known = ", ".join(OPTIONS[kind]) or "none"
            raise ValueError(f"index_options hold {name!r}, and index={kind} has: {known}")
    return OPTIONS[kind] | given


def build(scores: Scores, kind: str, options: dict[str, Any] | None = None) -> Any:
    """A FAISS index of the gallery: inner products of unit rows under cosine, else squared distances.

    Raises:
        ValueError: the gallery is too small to train it, or its width does not divide.
    """
    faiss, index = faiss_for(f"an index on disk, or index={kind},"), None
    chosen, total, width = settings(kind, options), len(scores.gallery), scores.embeddings.shape[1]
    metric = faiss.METRIC_INNER_PRODUCT if scores.metric == "cosine" else faiss.METRIC_L2
    nlist = chosen.get("nlist") or max(int(4 * total**0.5), 1)
    if kind in ("ivf", "ivf_pq") and nlist > total:
        raise ValueError(f"nlist={nlist} needs a gallery of at least as many items, not {total}; use index=flat")
    if kind == "ivf":
        index = faiss.index_factory(width, f"IVF{nlist},Flat", metric)
    elif kind == "ivf_pq":
        m = chosen["m"] or next(m for m in range(max(width // 8, 1), width + 1) if width % m == 0)
        if width % m or total < 2 ** chosen["nbits"]:
            raise ValueError(
                f"ivf_pq with m={m}, nbits={chosen['nbits']}: m must divide the {width} dimensions, and the gallery "
                f"of {total} hold at least 2^nbits items; use index=flat"
            )
        index = faiss.index_factory(width, f"IVF{nlist},PQ{m}x{chosen['nbits']}", metric)
    elif kind == "hnsw":
        index = faiss.IndexHNSWFlat(width, chosen["m"], metric)
        index.hnsw.efConstruction = chosen["ef_construction"]
        index.hnsw.efSearch = chosen["ef_search"] or 128
    else:
        index = faiss.IndexFlat(width, metric)
    if not index.is_trained:
        sample = np.unique(np.linspace(0, total - 1, min(total, 64 * nlist + 16384)).astype(int))
        index.train(faiss_rows(scores, scores.gallery[sample]))
        index.nprobe = min(chosen["nprobe"], nlist)
    for part in pieces(total, CHUNK // width):
        index.add(faiss_rows(scores, scores.gallery[part]))
    return index


def faiss_rows(scores: Scores, rows: Array) -> Array:
    """Rows as an index holds them: float32, of length 1 under cosine."""
    tensor = scores.rows(rows) if scores.metric == "cosine" else scores.embeddings[rows]
    return np.ascontiguousarray(tensor.cpu().numpy(), dtype=np.float32)


def approximate(scores: Scores, index: Any, count: int, queries: Array | None = None) -> Iterator[Ranking]:
    """The first ``count`` of what an index finds, without the query itself and its group; in the order of the index."""
    hidden = 1
    if scores.groups is not None:
        hidden += int(np.unique(scores.groups[scores.gallery], return_counts=True)[1].max())
    wanted = min(count + hidden, len(scores.gallery))
    if hasattr(index, "hnsw"):
        index.hnsw.efSearch = max(index.hnsw.efSearch, 2 * wanted)
    queries = np.arange(len(scores.queries)) if queries is None else queries
    for block in pieces(len(queries), BLOCK):
        part = queries[block]
        score, column = index.search(faiss_rows(scores, scores.queries[part]), wanted)
        keep = (column >= 0) & ~scores.hidden(part, column)
        order = np.argsort(~keep, axis=1, kind="stable")[:, :count]  # what stays keeps its order
        kept = np.take_along_axis(keep, order, 1)
        sign = 1.0 if scores.metric == "cosine" else -0.5 * float(scores.scale_N[0]) ** 2
        columns = np.where(kept, np.take_along_axis(column, order, 1), -1)
        values = np.where(kept, np.take_along_axis(score, order, 1) * sign, -np.inf)
        place = np.tile(np.arange(columns.shape[1]), (len(part), 1))
        yield Ranking(part, columns, values, place, np.ones(len(part), int), np.zeros(len(part), int))


def index_recall(scores: Scores, index: Any, ks: tuple[int, ...]) -> dict[str, float]:
    """``index_recall@k``: the share of the true k neighbours that the index finds, over a sample of the queries.

    A neighbour found counts by its score: as close as the k-th true one, it is one of the nearest, whichever of equal
    items the exhaustive search has put first.
    """
    total, largest = len(scores.queries), min(ks[-1], len(scores.gallery))
    sample = np.unique(np.linspace(0, total - 1, min(total, SAMPLE)).astype(int))
    rankings = approximate(scores, index, largest, sample), search(scores, largest, queries=sample)
    found, true = (exact(scores, sample, in_order(ranking, total, largest)[0][sample]) for ranking in rankings)
    result = {}
    for k in sorted({min(k, largest) for k in ks}):
        known = true[:, :k] > -np.inf
        last = np.where(known, true[:, :k], np.inf).min(1, keepdims=True)  # inf where a query has no neighbour
        hit = (found[:, :k] >= last - scores.slack(last)) & (found[:, :k] > -np.inf)
        result[f"index_recall@{k}"] = float(hit.sum() / max(known.sum(), 1))
    return result


def save_index(path: str | Path, index: Any) -> None:
    """Write a FAISS index; ``faiss.read_index`` reads it."""
    faiss_for("an index on disk").write_index(index, str(path))


def faiss_for(use: str) -> Any:
    """The library, which the exact search can do without.

    Raises:
        ValueError: it is not installed.
    """
    try:
        import faiss
    except ImportError as error:
        raise ValueError(f"{use} needs FAISS: pip install faiss-gpu, or faiss-cpu") from error
    return faiss
