"""Ranks of relevant items against sorted float64 rows, counted and from whole rows."""

import weakref

import numpy as np
import pytest
import torch

from lightning_modules.evaluators.retrieval import RetrievalEvaluator
from lightning_modules.retrieval import ranks as ranks_module
from lightning_modules.retrieval.labels import Relevance
from lightning_modules.retrieval.ranks import ranks, sorted_ranks
from lightning_modules.retrieval.scores import Scores
from lightning_modules.retrieval.search import whole_rows
from tests.lightning_modules.retrieval.test_search import rows_of, true_scores

FIELDS = ("rank_QP", "above_QP", "size_QP", "hits_QP")


def expected(true, labels, query, gallery, groups):
    """Rank, items above, items with the same score and relevant ones among them, of each relevant item."""
    row = np.round(true[query][gallery], 12)
    hidden = gallery == query
    if groups is not None and groups[query] >= 0:
        hidden |= groups[gallery] == groups[query]
    row[hidden] = -np.inf
    relevant = (labels[gallery] == labels[query]) & ~hidden
    order = np.lexsort((np.arange(len(row)), -row))
    rank = np.empty(len(row), dtype=int)
    rank[order] = np.arange(1, len(row) + 1)
    same = row[:, None] == row
    table = [rank, (row[:, None] < row).sum(1), same.sum(1), (same & relevant).sum(1)]
    return np.stack([column[order][relevant[order]] for column in table])


def check(found, true, labels, queries, gallery, groups, first_only=False):
    seen = []
    for part, values in found:
        seen += part.tolist()
        for i, position in enumerate(part):
            right = expected(true, labels, queries[position], gallery, groups)
            got = np.stack([getattr(values, field)[i].numpy() for field in FIELDS])
            right = right[:, :1] if first_only else right
            assert (got[:, right.shape[1] :][2] == 0).all()
            assert got[:, : right.shape[1]].tolist() == right.tolist()
    return sorted(seen)


@pytest.mark.parametrize("metric", ["cosine", "l2"])
@pytest.mark.parametrize("kind", ["generic", "quantized", "copies", "constant"])
def test_ranks(monkeypatch, kind, metric):
    rng = np.random.default_rng(7)
    for trial in range(12):
        monkeypatch.setattr(ranks_module, "BLOCK", int(rng.choice([5, 64, 2048])))
        monkeypatch.setattr(ranks_module, "TILE", int(rng.choice([300, 1 << 19])))
        monkeypatch.setattr(ranks_module, "CLOSE", int(rng.choice([0, 64, 1 << 20])))
        monkeypatch.setattr(ranks_module, "MOST", float(rng.choice([0.25, 1])))
        monkeypatch.setattr(ranks_module, "FEW", int(rng.choice([0, 16, 1000])))  # sort, choose, count
        total, width = int(rng.integers(60, 200)), int(rng.choice([3, 8, 40]))
        rows, every = rows_of(kind, total, width, rng), np.arange(total)
        queries = every if trial % 3 else np.flatnonzero(rng.random(total) < 0.5)
        gallery = every if trial % 3 else np.flatnonzero(rng.random(total) < 0.7)
        groups = rng.integers(-1, 5, total) if trial % 4 == 0 else None
        labels = rng.integers(0, int(rng.choice([3, 20, 60])), total)
        scores, true = Scores(rows, queries, gallery, metric, groups), true_scores(rows, metric)
        relevance = Relevance(labels, queries, gallery, scores.own_Q, groups)
        asked = np.flatnonzero(relevance.total_Q > 0)
        for first_only in (False, True):
            found = ranks(scores, relevance, asked, first_only=first_only)
            assert check(found, true, labels, queries, gallery, groups, first_only) == asked.tolist()


def by_sorting(scores, relevance, queries):
    ((part, row_BG),) = whole_rows(scores, queries)
    return sorted_ranks(scores, relevance, part, row_BG.numpy())


@pytest.mark.parametrize("first_only", [False, True])
@pytest.mark.parametrize("spread", [0.2, 100.0])
def test_the_ways_agree_where_tiles_are_full_and_where_they_are_not(monkeypatch, spread, first_only):
    """Classes that are found (few scores matter), and classes that are not (most do)."""
    monkeypatch.setattr(ranks_module, "MOST", 1)
    generator = torch.Generator().manual_seed(0)
    every, labels = np.arange(900), np.arange(900) % 180
    rows = torch.randn(180, 24, generator=generator)[labels] + spread * torch.randn(900, 24, generator=generator)
    scores = Scores(rows, every, every)
    relevance = Relevance(labels, every, every, scores.own_Q)
    exact = by_sorting(scores, relevance, every)
    found = ranks_module._counted(scores, relevance, every, first_only)
    width = 1 if first_only else 4
    assert all(torch.equal(getattr(found, field), getattr(exact, field)[:, :width]) for field in FIELDS)


def test_a_collapsed_embedding_is_given_up_early(monkeypatch):
    """All scores are equal: float32 tells nothing, and comparing each pair by itself would take forever."""
    seen = []
    see = ranks_module._Counts.see
    monkeypatch.setattr(ranks_module._Counts, "see", lambda *args: seen.append(see(*args)) or seen[-1])
    monkeypatch.setattr(ranks_module, "TILE", 600 * 10)
    monkeypatch.setattr(ranks_module, "CHUNK", 1 << 13)
    monkeypatch.setattr(ranks_module, "CLOSE", 8)
    monkeypatch.setattr(ranks_module, "MOST", 1)
    rows, every = torch.ones(600, 4), np.arange(600)
    scores = Scores(rows, every, every)
    relevance = Relevance(every // 2, every, every, scores.own_Q)
    found = list(ranks(scores, relevance, every))
    assert seen[-1] is False and len(seen) < 10
    assert sum(len(part) for part, _ in found) == 600
    assert all((values.size_QP == 599).all() for _, values in found)


@pytest.mark.parametrize(("classes", "counted"), [(100, True), (10, False)])
def test_large_classes_are_ranked_from_whole_rows(monkeypatch, classes, counted):
    ways = []
    monkeypatch.setattr(ranks_module, "_counted", lambda *args: ways.append("counted"))
    every, labels = np.arange(1000), np.arange(1000) % classes
    scores = Scores(torch.randn(1000, 8, generator=torch.Generator().manual_seed(0)), every, every)
    relevance = Relevance(labels, every, every, scores.own_Q)
    found = list(ranks(scores, relevance, every))
    assert bool(ways) == counted and sum(len(part) for part, _ in found) == 1000


def test_where_most_scores_matter_rows_are_sorted():
    """An untrained network: relevant items stand anywhere."""
    every, labels = np.arange(1000), np.arange(1000) % 100
    scores = Scores(torch.randn(1000, 8, generator=torch.Generator().manual_seed(0)), every, every)
    relevance = Relevance(labels, every, every, scores.own_Q)
    assert ranks_module._counted(scores, relevance, every, False) is None
    assert ranks_module._counted(scores, relevance, every, True) is not None
    found = list(ranks(scores, relevance, every))
    assert sum(len(part) for part, _ in found) == 1000


@pytest.mark.parametrize("first_only", [False, True])
def test_scores_that_differ_by_less_than_counts_are_equal(first_only):
    """Each score a little off, less than what counts as equal; steps far smaller than float32 tells."""
    rng, tie = np.random.default_rng(5), 2.0**-43
    for trial in range(40):
        total, classes = int(rng.integers(40, 400)), int(rng.choice([2, 5, 15]))
        step = float(rng.choice([1, 0.5, 3])) / (1 << 16)
        exact = -rng.integers(0, 20_000 if trial % 4 == 0 else 30, (4, total)) * step
        labels = np.concatenate([np.arange(classes), rng.integers(0, classes, total - classes)])
        row_BG = exact + rng.uniform(-tie / 4, tie / 4, exact.shape)
        queries = rng.permutation(total)[:4]
        row_BG[np.arange(4), queries] = -np.inf
        every = np.arange(total)
        relevance = Relevance(labels, every, every, every)
        alike = Scores(torch.ones(total, 1), every, every)  # whose slack is meant
        assert alike.slack(exact[0])[0] == tie
        asked = np.flatnonzero(relevance.total_Q[queries] > 0)
        found = [(queries[asked], sorted_ranks(alike, relevance, queries[asked], row_BG[asked], first_only))]
        true = np.full((total, total), np.nan)
        true[queries[asked]] = exact[asked] * 1e3  # ``expected`` rounds
        assert check(found, true, labels, every, every, None, first_only) == sorted(queries[asked])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu():
    rows, every = rows_of("copies", 3000, 16, np.random.default_rng(2)), np.arange(3000)
    labels = np.random.default_rng(3).integers(0, 700, 3000)
    results = []
    for x in (rows, rows.cuda()):
        scores = Scores(x, every, every)
        relevance = Relevance(labels, every, every, scores.own_Q)
        parts = list(ranks(scores, relevance, np.flatnonzero(relevance.total_Q > 0)))
        results.append({int(q): values.rank_QP[i].tolist() for part, values in parts for i, q in enumerate(part)})
    for query, positions in results[0].items():
        known = [rank for rank in positions if rank > 0]
        assert results[1][query][: len(known)] == known


def test_counters_are_freed_when_they_are_done(monkeypatch):
    """Without the garbage collector: they hold the embeddings."""
    monkeypatch.setattr(ranks_module, "MOST", 1)
    made = []
    result = ranks_module._Counts.result
    monkeypatch.setattr(ranks_module._Counts, "result", lambda own: made.append(weakref.ref(own)) or result(own))
    every, labels = np.arange(300), np.arange(300) % 100
    scores = Scores(torch.randn(300, 8), every, every)
    relevance = Relevance(labels, every, every, scores.own_Q)
    assert ranks_module._counted(scores, relevance, every, False) is not None
    assert made[0]() is None


def test_parts_are_small_where_much_is_kept_of_a_query():
    every, labels = np.arange(3000), np.arange(3000) % 1000
    scores = Scores(torch.randn(3000, 8), every, every)
    relevance = Relevance(labels, every, every, scores.own_Q)
    sizes = [len(part) for part, _ in ranks_module.ranks(scores, relevance, every, width=1000)]
    assert sum(sizes) == 3000 and max(sizes) <= ranks_module.CHUNK // 1000


def brute_force(rows, labels):
    """recall@1 and map of distances between whole numbers, in Python's own arithmetic."""
    right = average = asking = 0
    for q, own in enumerate(rows.tolist()):
        others = [g for g in range(len(rows)) if g != q]
        distance = {g: sum((int(a) - int(b)) ** 2 for a, b in zip(own, rows[g].tolist(), strict=True)) for g in others}
        hits = [labels[g] == labels[q] for g in sorted(others, key=lambda g: (distance[g], g))]
        if any(hits):
            found = np.flatnonzero(hits)
            asking, right = asking + 1, right + hits[0]
            average += ((np.arange(len(found)) + 1) / (found + 1)).mean()
    return right / asking, average / asking


@pytest.mark.parametrize("outlier", [0, 2**14, 2**22])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_distances_beside_a_row_that_is_far_away(outlier, dtype):
    """What counts as equal is a share of the distance, not of the longest row; and all ways decide alike."""
    rng = np.random.default_rng(0)
    rows, labels = rng.integers(-200, 200, (150, 8)), rng.integers(0, 40, 150)
    rows[-1] += outlier
    embeddings, true = torch.tensor(rows, dtype=dtype), brute_force(rows, labels)
    for full_map in (True, False):
        found = RetrievalEvaluator(ks=[1, 4], metric="l2", full_map=full_map)(embeddings, torch.tensor(labels))
        assert found["recall@1"] == pytest.approx(true[0], abs=1e-12)
        assert "map" not in found or found["map"] == pytest.approx(true[1], abs=1e-12)


@pytest.mark.parametrize("metric", ["cosine", "l2"])
def test_lists_and_counts_chain_near_ties_alike(metric):
    """Each score is within rounding of the next, and the first is not within rounding of the last."""
    step = torch.arange(60, dtype=torch.float64) * 2.0**-45
    rows = torch.stack([torch.ones(61), torch.cat([torch.zeros(1), (1 + step).sqrt() if metric == "l2" else step])], 1)
    labels = torch.tensor([0] + [i % 3 for i in range(60)])
    if metric == "cosine":  # scores 1 / sqrt(1 + y^2): wide enough apart around y = 1
        rows[1:, 1] = 1 + step
    both = [
        RetrievalEvaluator(ks=[1, 4], metric=metric, ties="expected", full_map=full)(rows, labels) for full in (0, 1)
    ]
    for name in both[0].keys() & both[1].keys():
        assert both[0][name] == pytest.approx(both[1][name], abs=1e-12), name
