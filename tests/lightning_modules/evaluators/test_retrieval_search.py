"""The exact search against whole float64 rows that are sorted, whatever the sizes of tiles, lists and queues."""

import numpy as np
import pytest
import torch

from lightning_modules.retrieval import best, tiles
from lightning_modules.retrieval import coarse as coarse_module
from lightning_modules.retrieval import search as search_module
from lightning_modules.retrieval.index import sharded
from lightning_modules.retrieval.scores import Scores
from lightning_modules.retrieval.search import dense, in_order, reach, search


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
    monkeypatch.setattr(search_module, "SMALL", 0)
    for trial in range(9):
        total, width = int(rng.integers(120, 300)), int(rng.choice([3, 8, 40]))
        count = int(rng.integers(1, total // 6 - 5))
        monkeypatch.setattr(tiles, "SIDE", int(rng.choice([16, 64, 2048])))
        monkeypatch.setattr(tiles, "MANY", int(rng.choice([1, 1 << 20])))
        monkeypatch.setattr(best, "PENDING", int(rng.choice([50, 1 << 19])))
        monkeypatch.setattr(best, "NUMBERS", int(rng.choice([64, 1 << 18])))
        monkeypatch.setattr(tiles, "PENDING", int(rng.choice([50, 1 << 15])))
        monkeypatch.setattr(tiles, "TOLD", int(rng.choice([64, 1 << 17])))
        monkeypatch.setattr(tiles, "STATE_BYTES", int(rng.choice([0, 1 << 30])))
        monkeypatch.setattr(coarse_module, "has_fast_bfloat16", lambda trial=trial: trial % 2 == 0)
        monkeypatch.setattr(coarse_module, "SIDE", 16)
        monkeypatch.setattr(coarse_module, "OPEN", float(rng.choice([0.05, 1])))
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
    whole = list(search(scores, 6))
    for shards in (1, 2, 7):
        parts = list(search(scores, 6, None, sharded(scores, reach(scores, 6), shards)))
        columns = (in_order(rankings, 800, 6)[0] for rankings in (whole, parts))
        assert np.array_equal(*columns)


def test_the_search_of_a_gpu_finds_the_same(monkeypatch):
    """Its code runs on any device; here on the CPU."""
    rng = np.random.default_rng(2)
    rows, every = rows_of("copies", 900, 8, rng), np.arange(900)
    scores = Scores(rows, every, every)
    found = search(scores, 5, None, tiles.selected(scores, reach(scores, 5), np.arange(len(scores.queries))))
    assert np.array_equal(*(in_order(rankings, 900, 5)[0] for rankings in (found, dense(scores, every, 5, None))))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu():
    rows, every = rows_of("copies", 3000, 16, np.random.default_rng(2)), np.arange(3000)
    both = [list(search(Scores(x, every, every), 9)) for x in (rows, rows.cuda())]
    assert np.array_equal(*(in_order(rankings, 3000, 9)[0] for rankings in both))


@pytest.mark.parametrize("length", [1.0, 3.0, 1e30, 1e-30])
@pytest.mark.parametrize("queries", [2048, 700])
def test_bfloat16_candidates_become_exact_neighbours(monkeypatch, queries, length):
    """The scores of unit rows and of others; a query that bfloat16 leaves undecided is asked again."""
    monkeypatch.setattr(coarse_module, "has_fast_bfloat16", lambda: True)
    monkeypatch.setattr(coarse_module, "SIDE", 512)
    again = []

    def counting(scores, count, ids, *precision):
        again.append(len(ids))
        return tiles.in_blocks(scores, count, ids, *precision)

    monkeypatch.setattr(search_module, "in_blocks", counting)
    rng = np.random.default_rng(0)
    rows = torch.from_numpy(rng.standard_normal((2048, 16))).float()
    rows = length * torch.nn.functional.normalize(torch.cat([rows, rows[:300], rows[:300]]), dim=1)
    total = len(rows)
    scores = Scores(rows, np.arange(queries), np.arange(total))
    found, true = (in_order(x, queries, 10) for x in (search(scores, 10), dense(scores, np.arange(queries), 10, None)))
    assert np.array_equal(found[0], true[0]) and np.abs(found[1] - true[1]).max() < 1e-6
    assert 0 < again[0] < queries / 4


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


def test_bfloat16_scores_are_within_their_bound():
    rng = np.random.default_rng(3)
    for width, shift in ((3, 0), (128, 0), (700, 3)):
        rows, every = torch.from_numpy(rng.standard_normal((300, width)) + shift).float(), np.arange(300)
        scores = Scores(rows, every, every)
        rough = scores.tile(scores.rows(every, torch.bfloat16), every, slice(0, 300)).double()
        exact = torch.from_numpy(scores.pairs(np.repeat(every, 300), np.tile(every, 300))).view(300, 300)
        off = ~torch.eye(300, dtype=torch.bool)
        bound = coarse_module._error(scores) + coarse_module.HALF * rough.abs()
        assert ((rough - exact).abs() <= bound)[off].all()
        assert (rough - exact)[off].abs().max() > bound[off].min() / 30  # not by far


def test_float32_scores_are_within_their_bound():
    """The bound that decides which comparisons are trusted, for both metrics and for rows far from the origin."""
    rng = np.random.default_rng(3)
    for metric, width, shift in (("cosine", 5, 0), ("cosine", 700, 3), ("l2", 64, 0), ("l2", 64, 100)):
        rows, every = torch.from_numpy(rng.standard_normal((300, width)) + shift).float(), np.arange(300)
        scores = Scores(rows, every, every, metric)
        single = scores.tile(scores.rows(every), every, slice(0, 300)).double()
        exact = torch.from_numpy(scores.pairs(np.repeat(every, 300), np.tile(every, 300))).view(300, 300)
        double = scores.tile(scores.rows(every, torch.float64), every, slice(0, 300))
        off = ~torch.eye(300, dtype=torch.bool)
        assert (single - exact)[off].abs().max() <= scores.error
        assert (double - exact)[off].abs().max() <= scores.tie
