"""What the report of a retrieval shows: which queries, which hits, and where the points of the map lie."""

import numpy as np
import pytest
import torch

from lightning_modules.evaluators.retrieval_view import POINTS, at_cutoffs, embedding_map, galleries
from lightning_modules.retrieval.search import Neighbours

LABELS = np.array([0, 0, 0, 1, 1, 7])
IDS = np.array([[1, 2, 3], [3, 0, 4], [3, 4, 5], [4, 0, 1], [0, 3, -1], [0, 1, 2]])
INDEX = np.array([10, 11, 12, 13, 14, 15])


def picture(index):
    return np.full((2, 2, 3), index, dtype=np.uint8)


def shown(count=6, gallery=None):
    scores = np.where(IDS >= 0, 0.5, -np.inf).astype(np.float32)
    found = Neighbours(np.arange(6), IDS, scores)
    return galleries(found, LABELS, gallery, INDEX, ("a", "b"), picture, count)


def test_queries_are_ordered_by_the_average_precision_of_what_is_shown():
    """Hits are 110, 010, 000, 100, 01, 000; classes have 2, 2, 2, 1, 1 and no other items."""
    best, worst = shown()["Best queries"], shown()["Worst queries"]
    found = {query.index: query.score for query in best}
    assert found == pytest.approx({10: 1.0, 11: 0.25, 12: 0.0, 13: 1.0, 14: 0.5, 15: 0.0})
    assert [query.score for query in worst] == sorted(found.values())
    assert [query.index for query in worst][:2] == [12, 15], "equal ones in the order of the set"
    assert [len(rows) for rows in shown(2).values()] == [2, 2, 2]
    assert [query.index for query in shown(2)["Queries at even steps"]] == [10, 15]


def test_a_query_shows_what_it_found():
    rows = {query.index: query for query in shown()["Queries at even steps"]}
    assert [(n.label, n.correct, n.index) for n in rows[11].neighbours] == [
        ("b", False, 13), ("a", True, 10), ("b", False, 14),
    ]  # fmt: skip
    assert len(rows[14].neighbours) == 2 and rows[15].label == "7" and rows[15].picture[0, 0, 0] == 15


def test_items_outside_the_gallery_do_not_count_as_missed():
    """Queries 0 and 2 look into a gallery with one item of their class: finding it at once is all there is to find."""
    ids = np.array([[1, 3, 4], [3, 4, 1]])
    found = Neighbours(np.array([0, 2]), ids, np.full((2, 3), 0.5, dtype=np.float32))
    held = np.array([0, 1, 0, 1, 1, 0], dtype=bool)
    rows = galleries(found, LABELS, held, INDEX, ("a", "b"), picture, 2)["Best queries"]
    assert {row.index: row.score for row in rows} == pytest.approx({10: 1.0, 12: 1 / 3})


def test_the_map_keeps_the_two_directions_of_largest_variance():
    generator = torch.Generator().manual_seed(0)
    points = torch.nn.functional.normalize(torch.randn(50, 5, generator=generator) + torch.tensor([3.0, 0, 0, 0, 0]))
    found = embedding_map(4.0 * points, np.arange(50) % 3, ("a", "b", "c"), "pca")
    centred = (points - points.mean(0)).double()
    values, vectors = torch.linalg.eigh(centred.T @ centred)
    for ours, vector in ((found.x, vectors[:, -1]), (found.y, vectors[:, -2])):
        theirs = centred @ vector
        sign = float(theirs[0].sign()) * np.sign(ours[0])
        np.testing.assert_allclose(ours, sign * theirs.numpy(), atol=1e-6)
    share = float(values[-1] / values.sum())
    assert found.x_label == f"first direction ({share:.0%})" and found.group[:4] == [0, 1, 2, 0]


@pytest.mark.parametrize("rows", [1, 2, POINTS + 500])
def test_maps_of_few_and_many_points(rows):
    found = embedding_map(torch.ones(rows, 1), np.zeros(rows, dtype=np.int64), ("a",), "pca")
    assert len(found.x) == len(found.y) == min(rows, POINTS) and not any(found.x) and found.names == ["a"]


def test_t_sne_brings_neighbours_together():
    pytest.importorskip("sklearn")
    centres = torch.eye(4)[torch.arange(80) % 4] * 5 + 0.1 * torch.randn(
        80, 4, generator=torch.Generator().manual_seed(0)
    )
    found = embedding_map(centres, np.arange(80) % 4, tuple("abcd"), "tsne")
    plane = np.column_stack([found.x, found.y])
    distance = np.linalg.norm(plane[:, None] - plane[None], axis=2) + 1e9 * np.eye(80)
    assert (distance.argmin(1) % 4 == np.arange(80) % 4).all()


def test_t_sne_without_its_package(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "sklearn.manifold", None)
    with pytest.raises(ValueError, match="map=tsne needs scikit-learn: pip install scikit-learn"):
        embedding_map(torch.eye(4), np.arange(4), ("a", "b", "c", "d"), "tsne")


def test_curves_over_the_cutoffs():
    metrics = {"recall@1": 0.5, "recall@4": 0.75, "precision@1": 0.5, "precision@4": 0.25}
    curve = at_cutoffs(metrics, (1, 4))["Recall and precision at K"]
    assert curve.x == [1.0, 4.0] and curve.lines == {"recall": [0.5, 0.75], "precision": [0.5, 0.25]}
