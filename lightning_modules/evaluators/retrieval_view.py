"""What a retrieval evaluation shows: queries with what they found, and a map of the embedding."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import torch

from lightning_modules.evaluators.result import Curve, RankedImage, RankedQuery, Scatter, Table
from lightning_modules.retrieval.measure import ClassSums
from lightning_modules.retrieval.search import Neighbours

SHOWN = 10  # neighbours of a query
POINTS = 4000  # of the map
WORST = 100  # classes of the table
Array = np.ndarray[Any, Any]


def at_cutoffs(metrics: dict[str, float], ks: tuple[int, ...]) -> dict[str, Curve]:
    """Recall and precision over K, by title."""
    lines: dict[str, list[float | None]] = {
        name: [metrics[f"{name}@{k}"] for k in ks] for name in ("recall", "precision")
    }
    return {"Recall and precision at K": Curve([float(k) for k in ks], lines, "K", percent=True)}


def worst_classes(sums: ClassSums, classes: Array, names: tuple[str, ...], lone: str, first_k: int) -> dict[str, Table]:
    """The classes with the lowest MAP@R; one without a query that counts is left out."""
    shown, count = [f"recall@{first_k}", "r_precision", "map@r"], sums.counted(lone)
    asked = np.flatnonzero(count)
    means = sums.sums[asked][:, [sums.names.index(name) for name in shown]] / count[asked, None]
    rows: list[list[str | float | int | None]] = []
    for place in np.argsort(means[:, -1], kind="stable")[:WORST]:
        label = int(classes[asked[place]])
        rows.append([name_of(label, names), int(sums.queries[asked[place]]), *means[place].tolist()])
    return {"Classes with the lowest map@r": Table(["class", "queries", *shown], rows)}


def name_of(label: int, names: tuple[str, ...]) -> str:
    """Name of a class, or its number where it has none."""
    return names[label] if 0 <= label < len(names) else str(label)


def galleries(
    neighbours: Neighbours,
    labels: Array,
    gallery: Array | None,
    index: Array,
    names: tuple[str, ...],
    picture: Callable[[int], Array],
    count: int,
) -> dict[str, list[RankedQuery]]:
    """``count`` queries each: at even steps through the set, the worst and the best by the average precision of the
    first ``SHOWN`` neighbours.

    Args:
        neighbours: ``SHOWN`` of each query.
        labels: ``[N]`` of all rows.
        gallery: bool ``[N]``, None where every row is in the gallery of all others.
        index: ``[N]`` ``Batch.index`` of each row.
        names: of the classes.
        picture: the image with a ``Batch.index``.
        count: queries of a gallery.
    """
    hits = (labels[neighbours.ids] == labels[neighbours.queries][:, None]) & (neighbours.ids >= 0)
    precision = hits.cumsum(1) / np.arange(1, hits.shape[1] + 1)
    relevant = _relevant(labels, neighbours.queries, gallery)
    score = (precision * hits).sum(1) / relevant.clip(1, hits.shape[1])
    order = np.argsort(score, kind="stable")
    steps = np.linspace(0, len(order) - 1, min(count, len(order))).round().astype(np.int64)
    chosen = {"Queries at even steps": steps, "Worst queries": order[:count], "Best queries": order[::-1][:count]}

    def image(query: int, place: int) -> RankedImage:
        row = int(neighbours.ids[query, place])
        own = int(index[row])
        hit, score_of = bool(hits[query, place]), float(neighbours.scores[query, place])
        return RankedImage(picture(own), name_of(int(labels[row]), names), hit, score_of, own)

    def shown(query: int) -> RankedQuery:
        row = int(neighbours.queries[query])
        places = np.flatnonzero(neighbours.ids[query] >= 0)
        own = int(index[row])
        images = [image(query, int(place)) for place in places]
        label = name_of(int(labels[row]), names)
        return RankedQuery(picture(own), label, own, float(score[query]), images, f"average precision at {SHOWN}")

    return {title: [shown(int(query)) for query in rows] for title, rows in chosen.items()}


def _relevant(labels: Array, queries: Array, gallery: Array | None) -> Array:
    """How many items of the gallery are of the class of each query, itself left out."""
    held = labels if gallery is None else labels[gallery]
    known, counts = np.unique(held, return_counts=True)
    place = np.searchsorted(known, labels[queries]).clip(0, len(known) - 1)
    found = np.where(known[place] == labels[queries], counts[place], 0)
    own = 1 if gallery is None else gallery[queries].astype(np.int64)
    result: Array = found - own
    return result


def embedding_map(
    embeddings: torch.Tensor, labels: Array, names: tuple[str, ...], method: Literal["pca", "tsne"]
) -> Scatter:
    """Rows at even steps, at most ``POINTS``, in the plane.

    Args:
        embeddings: ``[N, E]``; they are brought to length 1 here.
        labels: ``[N]``.
        names: of the classes.
        method: ``pca``, the two directions of largest variance; ``tsne``, by scikit-learn (van der Maaten, Hinton,
            "Visualizing Data using t-SNE", JMLR 2008).

    Raises:
        ValueError: ``tsne`` without scikit-learn.
    """
    steps = np.linspace(0, len(labels) - 1, min(POINTS, len(labels))).round().astype(np.int64)
    rows = torch.nn.functional.normalize(embeddings[torch.from_numpy(steps)].cpu().double())
    if method == "tsne":
        plane = _tsne(rows.numpy())
        note = "t-SNE of the unit embeddings: near points are neighbours, distances between groups say little"
        labelled = ("", "")
    else:
        plane, shares = _pca(rows)
        note = f"the two directions of largest variance, {sum(shares):.0%} of all; what overlaps here may lie apart"
        labelled = (f"first direction ({shares[0]:.0%})", f"second direction ({shares[1]:.0%})")
    used, group = np.unique(labels[steps], return_inverse=True)
    shown = [name_of(label, names) for label in used.tolist()]
    return Scatter(plane[:, 0].tolist(), plane[:, 1].tolist(), group.tolist(), shown, *labelled, note)


def _pca(rows: torch.Tensor) -> tuple[Array, tuple[float, float]]:
    centred = rows - rows.mean(0)
    left, values, _ = torch.linalg.svd(centred, full_matrices=False)
    plane = torch.zeros(len(rows), 2, dtype=rows.dtype)
    kept = min(2, values.numel())
    plane[:, :kept] = left[:, :kept] * values[:kept]
    share = torch.zeros(2, dtype=rows.dtype)
    share[:kept] = values[:kept].square() / values.square().sum().clamp_min(1e-30)
    return plane.numpy(), (float(share[0]), float(share[1]))


def _tsne(rows: Array) -> Array:
    try:
        from sklearn.manifold import TSNE
    except ImportError as error:
        raise ValueError(
            "map=tsne needs scikit-learn: pip install scikit-learn, or set map=pca (the default)"
        ) from error
    plane: Array = TSNE(perplexity=min(30.0, max(len(rows) / 4, 1.0)), init="pca", random_state=0).fit_transform(rows)
    return plane
