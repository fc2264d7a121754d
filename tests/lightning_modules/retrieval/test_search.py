"""The exact search against whole float64 rows that are sorted, whatever the sizes of blocks, pieces and lists."""

import sys

import numpy as np
import pytest
import torch

from lightning_modules.retrieval import search as search_module
from lightning_modules.retrieval.scores import Scores
from lightning_modules.retrieval.search import candidates, dense, in_order, search


def rows_of(kind, total, width, rng):
    if kind == "generic":
        rows = rng.standard_normal((total, width))
    elif kind == "quantized":
        rows = rng.integers(-3, 4, (total, width)).astype(float)
        rows[(rows == 0).all(1)] = 1
    elif kind == "copies":
        rows = rng.standard_normal((total // 5, width))[rng.integers(0, total // 5, total)]
    elif kind == "close":  # closer than float32 can tell
        rows = np.ones((total, width)) + 1e-7 * rng.standard_normal((total, width))
    else:
        rows = np.ones((total, width))
    return torch.from_numpy(rows).to(torch.float64 if kind == "close" else torch.float32)


def true_scores(rows, metric):
    rows = rows.double()
    if metric == "cosine":
        unit = rows / rows.norm(dim=1, keepdim=True)
        return (unit @ unit.T).numpy()
    return -torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist").square().numpy()


def every_third(queries, columns):
    return (columns % 3 == 0) & (columns >= 0)


def check(rankings, rows, metric, queries, gallery, count, groups, hits):
    scores, asked = true_scores(rows, metric), 0
    for ranking in rankings:
        for i, position in enumerate(ranking.queries):
            query, asked = queries[position], asked + 1
            row = np.round(scores[query][gallery], 12)
            row[gallery == query] = -np.inf
            if groups is not None and groups[query] >= 0:
                row[groups[gallery] == groups[query]] = -np.inf
            order = np.lexsort((np.arange(len(row)), -row))
            order = order[row[order] > -np.inf][:count]
            expected = np.array([*order, *[-1] * (count - len(order))])
            tied = row == row[order[-1]] if len(order) == count else row > np.inf
            if hits is None:
                assert ranking.columns[i].tolist() == expected.tolist()
                assert ranking.start[i][: len(order)].tolist() == [int((row > row[column]).sum()) for column in order]
                assert not tied.any() or ranking.last_size[i] == tied.sum()
            else:
                assert np.array_equal(hits(position, ranking.columns[i]), hits(position, expected))
                if 0 < tied[::3].sum() < tied.sum():
                    assert (ranking.last_size[i], ranking.last_hits[i]) == (tied.sum(), tied[::3].sum())
    assert asked == len(queries)


@pytest.mark.parametrize("metric", ["cosine", "l2"])
@pytest.mark.parametrize("kind", ["generic", "quantized", "copies", "constant"])
def test_search(monkeypatch, kind, metric):
    rng = np.random.default_rng(5)
    for trial in range(9):
        total, width = int(rng.integers(120, 300)), int(rng.choice([3, 8, 40]))
        count = int(rng.integers(1, total // 6 - 5))
        monkeypatch.setattr(search_module, "BLOCK", int(rng.choice([7, 64, 2048])))
        monkeypatch.setattr(search_module, "PIECE", int(rng.choice([100, 1000, 1 << 21])))
        monkeypatch.setattr(search_module, "GROUP", int(rng.choice([0, 64])))
        monkeypatch.setattr(search_module, "ROWS", int(rng.choice([1000, 1 << 21])))
        rows, every = rows_of(kind, total, width, rng), np.arange(total)
        queries = every if trial % 3 else np.flatnonzero(rng.random(total) < 0.5)
        gallery = every if trial % 3 else np.flatnonzero(rng.random(total) < 0.7)
        groups = rng.integers(-1, 5, total) if trial % 4 == 0 else None
        scores = Scores(rows, queries, gallery, metric, groups)
        for hits in (None, every_third):
            check(search(scores, count, hits), rows, metric, queries, gallery, count, groups, hits)


def test_float64_rows_that_float32_cannot_tell_apart():
    rng = np.random.default_rng(0)
    rows, every = rows_of("close", 700, 4, rng), np.arange(700)
    scores = Scores(rows, every, every, "l2")
    true = true_scores(rows, "l2")
    np.fill_diagonal(true, -np.inf)
    for ranking in search(scores, 3):
        expected = np.argsort(-true[ranking.queries], axis=1, kind="stable")[:, :3]
        gaps = np.take_along_axis(true[ranking.queries], expected, 1)
        clear = (gaps[:, :-1] - gaps[:, 1:] > 1e-3 * np.abs(gaps[:, 1:])).all(1)
        assert clear.sum() > 0.9 * len(clear) and (ranking.columns[clear] == expected[clear]).all()


@pytest.mark.parametrize("kind", ["generic", "copies"])
def test_shards_are_one_gallery(kind):
    rng = np.random.default_rng(1)
    rows, every = rows_of(kind, 800, 8, rng), np.arange(800)
    groups = rng.integers(-1, 30, 800)
    scores = Scores(rows, every, every, "cosine", groups)
    whole = in_order(search(scores, 6), 800, 6)[0]
    for shards in (2, 7):
        assert np.array_equal(whole, in_order(search(scores, 6, shards=shards), 800, 6)[0])


@pytest.mark.parametrize("metric", ["cosine", "l2"])
def test_without_faiss_and_on_a_gpu_pytorch_finds_the_same(monkeypatch, metric):
    """Its code runs on any device; here on the CPU."""
    monkeypatch.setitem(sys.modules, "faiss", None)
    rng = np.random.default_rng(2)
    rows, every = rows_of("copies", 900, 8, rng), np.arange(900)
    scores = Scores(rows, every, every, metric)
    found = search(scores, 5)
    assert np.array_equal(*(in_order(rankings, 900, 5)[0] for rankings in (found, dense(scores, every, 5, None))))


def test_some_queries_alone():
    rows, every = rows_of("copies", 900, 8, np.random.default_rng(2)), np.arange(900)
    scores, some = Scores(rows, every, every), np.array([3, 4, 500, 899])
    whole, part = (in_order(search(scores, 5, queries=asked), 900, 5)[0] for asked in (None, some))
    assert np.array_equal(whole[some], part[some]) and (part[5] == -1).all()


def test_few_queries_go_to_whole_rows(monkeypatch):
    """Generic rows are decided by their candidates; those with more copies than a list holds are not."""
    asked = []

    def counting(scores, queries, count, hits):
        asked.append(len(queries))
        return dense(scores, queries, count, hits)

    monkeypatch.setattr(search_module, "dense", counting)
    rng = np.random.default_rng(0)
    rows = torch.from_numpy(rng.standard_normal((2000, 16))).float()
    rows = torch.cat([rows, rows[:1].expand(30, 16)])
    every = np.arange(len(rows))
    scores = Scores(rows, every, every)
    found = in_order(search(scores, 10), 2030, 10)[0]
    assert 31 <= asked[0] < 60
    assert np.array_equal(found, in_order(dense(scores, every, 10, None), 2030, 10)[0])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu():
    rows, every = rows_of("copies", 3000, 16, np.random.default_rng(2)), np.arange(3000)
    both = [list(search(Scores(x, every, every), 9)) for x in (rows, rows.cuda())]
    assert np.array_equal(*(in_order(rankings, 3000, 9)[0] for rankings in both))


@pytest.mark.parametrize("metric", ["cosine", "l2"])
@pytest.mark.parametrize(
    ("length", "dtype"),
    [(1e37, torch.float32), (1e-36, torch.float32), (1e140, torch.float64), (1e-140, torch.float64)],
)
def test_rows_of_any_length(length, dtype, metric):
    rng, every = np.random.default_rng(0), np.arange(1500)
    rows = torch.nn.functional.normalize(torch.from_numpy(rng.standard_normal((1500, 16))), dim=1)
    long, unit = (Scores((rows * scale).to(dtype), every, every, metric) for scale in (length, 1.0))
    columns = (in_order(search(scores, 10), 1500, 10)[0] for scores in (long, unit))
    assert np.mean(np.equal(*columns)) > 0.999  # rounding of the rows may swap neighbours


@pytest.mark.parametrize("queries", [300, 7])
def test_float32_scores_are_within_their_bound(queries):
    """The bound that decides which comparisons are trusted: of FAISS and of tiles, for both metrics, for many queries
    and for few (which FAISS multiplies in another way), and for rows far from the origin."""
    rng = np.random.default_rng(3)
    for metric, width, shift in (("cosine", 5, 0), ("cosine", 700, 3), ("l2", 64, 0), ("l2", 64, 100)):
        rows, every = torch.from_numpy(rng.standard_normal((300, width)) + shift).float(), np.arange(300)
        asked = every[:queries]
        scores = Scores(rows, asked, every, metric)
        single = scores.tile(scores.asked(asked), asked, slice(0, 300)).double()
        double = scores.tile(scores.asked(asked, torch.float64), asked, slice(0, 300))
        exact = torch.from_numpy(scores.pairs(np.repeat(asked, 300), np.tile(every, queries))).view(queries, 300)
        off = ~torch.eye(300, dtype=torch.bool)[:queries]
        assert (single - exact)[off].abs().max() <= scores.error
        assert (double - exact)[off].abs().max() <= scores.tie
        ((_, score, column),) = candidates(scores, 300, asked)
        assert (torch.from_numpy(score) - exact.gather(1, torch.from_numpy(column))).abs().max() <= scores.error
