"""Ranks of relevant items against sorted float64 rows, in every way that they are counted."""

import weakref

import numpy as np
import pytest
import torch

from lightning_modules.retrieval import above, whole_rows
from lightning_modules.retrieval import ranks as ranks_module
from lightning_modules.retrieval.above import Items, TooClose
from lightning_modules.retrieval.labels import Relevance
from lightning_modules.retrieval.ranks import ranks
from lightning_modules.retrieval.scores import Scores
from lightning_modules.retrieval.whole_rows import from_whole_rows
from tests.lightning_modules.evaluators.test_retrieval_search import rows_of, true_scores

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
        monkeypatch.setattr(ranks_module, "SIDE", int(rng.choice([16, 64, 2048])))
        monkeypatch.setattr(above, "PENDING", int(rng.choice([20, 1 << 18])))
        monkeypatch.setattr(above, "CLOSE", int(rng.choice([0, 64, 1 << 20])))
        monkeypatch.setattr(ranks_module, "WORTH", float(rng.choice([-1, 0.5, 1000])))  # sort, choose, count
        monkeypatch.setattr(ranks_module, "SLOTS", int(rng.choice([0, 1 << 19])))
        monkeypatch.setattr(whole_rows, "SORTED", int(rng.choice([300, 1 << 20])))
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


def test_the_ways_agree_where_tiles_are_full_and_where_they_are_not():
    """Classes that are found (few scores matter), and classes that are not (most do)."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(900) % 180
    for spread in (0.2, 100.0):
        rows = torch.randn(180, 24, generator=generator)[labels] + spread * torch.randn(900, 24, generator=generator)
        every = np.arange(900)
        scores = Scores(rows, every, every)
        relevance = Relevance(labels.numpy(), every, every, scores.own_Q)
        items = Items.of(scores, relevance, every)
        ((_, exact),) = from_whole_rows(scores, relevance, every, False)
        for count in (ranks_module._counted(scores, items), ranks_module._counted_there(scores, items)):
            found = ranks_module._filled(items, slice(None), count.ranks())
            assert all(torch.equal(getattr(found, field), getattr(exact, field)) for field in FIELDS)


def test_a_collapsed_embedding_is_given_up_early(monkeypatch):
    """All scores are equal: float32 tells nothing, and comparing each pair by itself would take forever."""
    monkeypatch.setattr(above, "PENDING", 1000)
    rows, every = torch.ones(600, 4), np.arange(600)
    scores = Scores(rows, every, every)
    relevance = Relevance(every // 2, every, every, scores.own_Q)
    with pytest.raises(TooClose):
        ranks_module._counted(scores, Items.of(scores, relevance, every))
    found = list(ranks(scores, relevance, every))
    assert sum(len(part) for part, _ in found) == 600
    assert all((values.size_QP == 599).all() for _, values in found)


@pytest.mark.parametrize(("spread", "few"), [(0.2, True), (100.0, False)])
@pytest.mark.parametrize("size", [20, 200])
def test_rows_are_sorted_where_much_stands_before_relevant_items(spread, few, size):
    """Classes that are found, and classes that are not; small ones are counted all the same."""
    generator = torch.Generator().manual_seed(0)
    every, labels = np.arange(2000), np.arange(2000) % (2000 // size)
    rows = torch.randn(2000 // size, 24, generator=generator)[labels]
    rows += spread * torch.randn(2000, 24, generator=generator)
    scores = Scores(rows, every, every)
    relevance = Relevance(labels, every, every, scores.own_Q)
    assert ranks_module._few(scores, relevance, every, False) == (few and size == 20)
    assert ranks_module._few(scores, relevance, every, True) == (size == 20)
    pairs = np.where(every < 1000, every // 2, 500)  # most pairs are of the one large class
    assert not ranks_module._few(scores, Relevance(pairs, every, every, scores.own_Q), every, False)


@pytest.mark.parametrize("first_only", [False, True])
def test_equal_scores_on_both_sides_of_a_bucket(monkeypatch, first_only):
    """Steps of one bucket and of a fraction of it, each score a little off, less than what counts as equal."""
    rng, tie = np.random.default_rng(5), 2.0**-43
    for trial in range(40):
        total, classes = int(rng.integers(40, 400)), int(rng.choice([2, 5, 15]))
        step = float(rng.choice([1, 0.5, 3])) / (whole_rows.LAST - 1)
        exact = -rng.integers(0, whole_rows.LAST // 3 if trial % 4 == 0 else 30, (4, total)) * step
        if trial % 2:  # buckets end at whole steps
            exact[:, :classes], exact[:, classes] = -1, 0
        labels = np.concatenate([np.arange(classes), rng.integers(0, classes, total - classes)])
        row_BG = torch.from_numpy(exact + rng.uniform(-tie / 4, tie / 4, exact.shape))
        queries = rng.permutation(total)[:4]
        row_BG[torch.arange(4), torch.from_numpy(queries)] = -torch.inf
        every = np.arange(total)
        relevance = Relevance(labels, every, every, every)
        asked = np.flatnonzero(relevance.total_Q[queries] > 0)
        monkeypatch.setattr(whole_rows, "CHUNK", int(rng.choice([8, 1 << 18])))
        parts = whole_rows._ranks(tie, relevance, queries[asked], row_BG[asked], first_only)
        found = [(queries[asked][group], values) for group, values in parts]
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


def test_counters_are_freed_when_they_are_done():
    """Without the garbage collector: they hold the embeddings."""
    every, labels = np.arange(300), np.arange(300) % 100
    scores = Scores(torch.randn(300, 8), every, every)
    relevance = Relevance(labels, every, every, scores.own_Q)
    count = weakref.ref(ranks_module._counted(scores, Items.of(scores, relevance, every)))
    assert count() is None


@pytest.mark.parametrize("slots", [0, 1 << 19])
def test_parts_are_small_where_much_is_kept_of_a_query(monkeypatch, slots):
    monkeypatch.setattr(ranks_module, "SLOTS", slots)
    every, labels = np.arange(3000), np.arange(3000) % 1000
    scores = Scores(torch.randn(3000, 8), every, every)
    relevance = Relevance(labels, every, every, scores.own_Q)
    sizes = [len(part) for part, _ in ranks_module.ranks(scores, relevance, every, width=1000)]
    assert sum(sizes) == 3000 and max(sizes) <= ranks_module.CHUNK // 1000
