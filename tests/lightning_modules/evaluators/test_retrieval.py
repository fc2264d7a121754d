"""The retrieval evaluator against plain Python loops with integers and fractions, and what must always hold."""

import warnings
from fractions import Fraction
from itertools import permutations, product

import numpy as np
import pytest
import torch

from lightning_modules.evaluators.retrieval import RetrievalEvaluator
from lightning_modules.retrieval import ranks as ranks_module
from lightning_modules.retrieval import search as search_module

TIES = ["index", "optimistic", "pessimistic", "expected"]


@pytest.fixture(autouse=True)
def small_inputs_collapse():
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "the embeddings look collapsed")
        yield


def closeness(metric, a, b):
    """Exact for integers: the squared cosine with its sign, or minus the squared distance."""
    if metric == "l2":
        return -int(((a - b) ** 2).sum())
    dot = int((a * b).sum())
    return Fraction(dot * abs(dot), int((a * a).sum()) * int((b * b).sum()))


def ranked(rows, labels, metric, query, gallery, groups):
    """Runs of equal scores, best first, in the order of the gallery, as lists of relevances."""
    runs = {}
    for g in np.flatnonzero(gallery):
        hidden = g == query or (groups is not None and groups[g] == groups[query] >= 0)
        if not hidden:
            score = closeness(metric, rows[query], rows[g])
            runs.setdefault(score, []).append(int(labels[g] == labels[query]))
    return [runs[score] for score in sorted(runs, reverse=True)]


def orders(runs, ties):
    if ties == "index":
        return [[rel for run in runs for rel in run]]
    if ties != "expected":
        return [[rel for run in runs for rel in sorted(run, reverse=ties == "optimistic")]]
    return [[rel for run in order for rel in run] for order in product(*(list(permutations(r)) for r in runs))]


def values(order, ks):
    total, hits = sum(order), np.cumsum([0, *order]).tolist()
    found = {}
    for k in ks:
        seen = hits[min(k, len(order))]
        found |= {f"recall@{k}": int(seen > 0), f"precision@{k}": seen / k, f"ir_recall@{k}": seen / total}
    precisions = [hits[i] / i * order[i - 1] for i in range(1, len(order) + 1)]
    found |= {"r_precision": hits[total] / total, "map@r": sum(precisions[:total]) / total}
    return found | {"map": sum(precisions) / total, "mrr": 1 / (order.index(1) + 1)}


def brute_force(rows, labels, metric, ties, ks, is_query, is_gallery, groups):
    """Means over the queries with a relevant item, and the number of the others."""
    results, lone = [], 0
    for query in np.flatnonzero(is_query):
        runs = ranked(rows, labels, metric, query, is_gallery, groups)
        if not any(map(sum, runs)):
            lone += 1
            continue
        every = [values(order, ks) for order in orders(runs, ties)]
        results.append({name: np.mean([found[name] for found in every]) for name in every[0]})
    return {name: np.mean([found[name] for found in results]) for name in results[0]} if results else {}, lone


def case(rng, trial, largest):
    """Rows of small integers, so that scores tie and duplicates abound."""
    total = int(rng.integers(3, largest))
    rows = rng.integers(-2, 3, (total, int(rng.integers(1, 5))))
    rows[(rows == 0).all(1)] = 1
    masks = [rng.random(total) < 0.7 if trial % 3 == 0 else np.ones(total, dtype=bool) for _ in range(2)]
    groups = rng.integers(-1, 3, total) if trial % 4 == 0 else None
    return rows, rng.integers(0, 4, total), [mask if mask.any() else ~mask for mask in masks], groups


@pytest.mark.parametrize("few", [0, 1000], ids=["whole rows", "counted"])
@pytest.mark.parametrize("ties", TIES)
@pytest.mark.parametrize("metric", ["cosine", "l2"])
def test_equals_brute_force(monkeypatch, metric, ties, few):
    monkeypatch.setattr(ranks_module, "FEW", few)
    monkeypatch.setattr(ranks_module, "MOST", 1)
    rng = np.random.default_rng(3)
    for trial in range(12 if ties == "expected" else 30):
        monkeypatch.setattr(search_module, "BLOCK", int(rng.choice([4, 8, 2048])))
        rows, labels, (is_query, is_gallery), groups = case(rng, trial, 8 if ties == "expected" else 30)
        ks = (1, 2, 3, len(rows) + 2)
        expected, lone = brute_force(rows, labels, metric, ties, ks, is_query, is_gallery, groups)
        if not expected:
            continue
        keys = {"is_query": is_query, "is_gallery": is_gallery, "groups": groups}
        for full_map in (False, True):
            evaluator = RetrievalEvaluator(ks=ks, metric=metric, ties=ties, full_map=full_map)
            found = evaluator(rows.astype(np.float32), labels, **keys)
            assert found["queries"] == is_query.sum() and found["queries_without_match"] == lone
            assert ("map" in found) == full_map
            for name in set(expected) - ({"map"} if not full_map else set()):
                assert found[name] == pytest.approx(expected[name], abs=1e-12), (trial, name)


def clustered(total=900, classes=60, width=16, noise=1.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (total,), generator=generator)
    centres = torch.randn(classes, width, generator=generator)
    return centres[labels] + noise * torch.randn(total, width, generator=generator), labels


def test_larger_sets_against_a_float64_sort():
    """Generic rows, several tiles, duplicates of a third of them."""
    rows, labels = clustered()
    rows = torch.cat([rows, rows[::3]])
    labels = torch.cat([labels, labels[::3].roll(1)])
    unit = torch.nn.functional.normalize(rows.double())
    scores = (unit @ unit.T).mul(1e12).round()  # equal ones are equal
    scores.fill_diagonal_(-torch.inf)
    order = torch.sort(scores, dim=1, descending=True, stable=True).indices[:, :-1]
    relevant = labels[order] == labels[:, None]
    kept = relevant.any(1)
    found = RetrievalEvaluator(ks=[1, 5], full_map=True)(rows, labels)
    lists = [values(row, (1, 5)) for row in relevant[kept].int().tolist()]
    for name in lists[0]:
        assert found[name] == pytest.approx(np.mean([row[name] for row in lists]), abs=1e-12)
    quick = RetrievalEvaluator(ks=[1, 5], full_map=False)(rows, labels)
    assert quick["mrr"] == pytest.approx(found["mrr"], abs=1e-12)


def test_what_always_holds():
    rows, labels = clustered(400, 30, noise=2.0)
    total = len(rows)
    evaluator = RetrievalEvaluator(ks=[1, 2, 4, 8, 50, total - 1])
    found = evaluator(rows, labels)
    recalls = [found[f"recall@{k}"] for k in evaluator.ks]
    assert recalls == sorted(recalls) and recalls[-1] == 1 and found["recall@1"] == found["precision@1"]
    assert found["map@r"] <= found["r_precision"] <= 1 and found["map@r"] <= found["map"]
    generator = torch.Generator().manual_seed(1)
    order = torch.randperm(total, generator=generator)
    turn = torch.linalg.qr(torch.randn(16, 16, generator=generator, dtype=torch.float64)).Q
    scale = torch.rand(total, 1, generator=generator) * 100 + 0.01
    shifted = RetrievalEvaluator(ks=evaluator.ks, metric="l2")
    for changed, same in (
        (evaluator(rows[order], labels[order]), found),
        (evaluator(rows.double() @ turn, labels), found),
        (evaluator(rows * scale, labels), found),
        (evaluator(rows.numpy(), labels.numpy() * 2**40 - 5), found),
        (shifted(torch.nn.functional.normalize(rows), labels), found),
        (shifted(rows.double() + 1000, labels), shifted(rows, labels)),
    ):
        assert changed == pytest.approx(same, abs=1e-12)


def test_perfect_clusters_and_random_rows():
    centres = torch.eye(10)
    labels = torch.arange(40) % 10
    found = RetrievalEvaluator(ks=[1, 3])(centres[labels] + 0.01 * torch.rand(40, 10), labels)
    assert all(found[name] == 1 for name in ("recall@1", "precision@3", "r_precision", "map@r", "map", "mrr"))
    rows = torch.randn(3000, 32, generator=torch.Generator().manual_seed(0))
    found = RetrievalEvaluator(full_map=False)(rows, torch.arange(3000) % 100)
    assert found["r_precision"] == pytest.approx(29 / 2999, abs=0.001)


def test_duplicates_are_no_self_match():
    """Rows 0 and 1 are equal and of two classes: each finds the other first, not its class."""
    rows = torch.tensor([[1.0, 0], [1, 0], [0.9, 0.1], [0.9, 0.12], [0, 1]])
    found = RetrievalEvaluator(ks=[1])(rows, torch.tensor([0, 1, 0, 1, 7]))
    assert found["recall@1"] == 0 and found["queries_without_match"] == 1


def test_collapsed_embeddings():
    """With ties=optimistic a constant embedding is perfect; expected tells the truth, and all of them warn."""
    labels, rows = torch.arange(50) % 5, torch.ones(50, 4)
    found = {}
    for ties in TIES:
        with pytest.warns(
            UserWarning, match="look collapsed, or are mostly copies: standard deviation 0 .* 100% of the queries"
        ):
            found[ties] = RetrievalEvaluator(ks=[1], ties=ties)(rows, labels)
    assert found["optimistic"]["recall@1"] == 1 and found["pessimistic"]["recall@1"] == 0
    assert found["expected"]["recall@1"] == pytest.approx(9 / 49, abs=1e-12)
    assert found["expected"]["tied_top1"] == 1 and found["expected"]["embedding_std"] == 0
    rows, labels = clustered()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert "tied_top1" not in RetrievalEvaluator()(rows, labels)


def test_lone_queries_and_means_over_classes():
    rows = torch.tensor([[1.0, 0], [1, 0.1], [0, 1], [1, 0.05], [-1, 0]])
    labels = torch.tensor([3, 3, 3, 8, 5])  # recall@1: row 0 finds 3 (class 8), so does 1, row 2 finds 1
    found = RetrievalEvaluator(ks=[1], macro=True)(rows, labels)
    assert found["recall@1"] == pytest.approx(1 / 3) and found["queries_without_match"] == 2
    assert found["macro_recall@1"] == found["recall@1"], "one class counts"
    zero = RetrievalEvaluator(ks=[1], lone="zero", macro=True)(rows, labels)
    assert zero["recall@1"] == pytest.approx(1 / 5) and zero["macro_recall@1"] == pytest.approx(1 / 9)
    with pytest.raises(ValueError, match="none of 3 queries has a relevant item .* lone=zero"):
        RetrievalEvaluator()(rows[:3], torch.arange(3))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtypes_and_the_program_s_precision_change_nothing(dtype):
    rows, labels = clustered(300, 20)
    rows = rows.to(dtype)
    expected = RetrievalEvaluator()(rows.double(), labels)
    chosen, kept = torch.get_float32_matmul_precision(), rows.clone()
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = RetrievalEvaluator()(rows, labels.int())
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(chosen)
    assert found == pytest.approx(expected, abs=1e-12) and torch.equal(rows, kept)


ROWS, LABELS = torch.eye(4), torch.tensor([0, 0, 1, 1])


@pytest.mark.parametrize(
    ("rows", "labels", "keys", "error", "text"),
    [
        (torch.eye(4)[:, 0], LABELS, {}, ValueError, r"shape \[4\]; they must be \[N, D\]"),
        (torch.eye(4).long(), LABELS, {}, TypeError, "dtype torch.int64; they must be floating"),
        (ROWS, LABELS.float(), {}, TypeError, "labels have dtype float32; they must be integers"),
        (ROWS, LABELS[:3], {}, ValueError, r"labels have shape \[3\]; there are 4 embeddings"),
        (ROWS.clone().fill_(torch.nan), LABELS, {}, ValueError, "4 of 4 embeddings hold NaN .* first is row 0"),
        (ROWS * torch.tensor([[1], [0], [1], [0.0]]), LABELS, {}, ValueError, "2 of 4 embeddings are zero.* row 1"),
        (ROWS, LABELS, {"is_query": LABELS}, TypeError, "is_query has dtype int64 .* bool mask"),
        (ROWS, LABELS, {"is_gallery": LABELS > 5}, ValueError, "is_gallery selects no row of 4"),
        (ROWS, LABELS, {"groups": LABELS.double()}, TypeError, "groups have dtype float64"),
        (ROWS[:0], LABELS[:0], {}, ValueError, "is_query selects no row of 0"),
        (ROWS, np.full(4, 2**63, dtype=np.uint64), {}, ValueError, "beyond 2\\^63 - 1"),
        (ROWS, LABELS, {"index_ids": torch.rand(4)}, TypeError, "index_ids have dtype torch.float32"),
        (ROWS, LABELS, {"index_ids": torch.arange(3)}, ValueError, "3 index_ids for columns of"),
    ],
)
def test_refuses(rows, labels, keys, error, text):
    with pytest.raises(error, match=text):
        RetrievalEvaluator()(rows, labels, **keys)


@pytest.mark.parametrize(
    ("keys", "text"),
    [
        ({"ks": [0, 1]}, r"ks=\[0, 1\] is out of range; allowed: ks >= 1"),
        ({"ks": []}, "ks are"),
        ({"metric": "dot"}, "metric='dot' is unknown; choose one of cosine, l2"),
        ({"ties": "random"}, "ties='random' is unknown"),
        ({"lone": "keep"}, "lone='keep' is unknown"),
        ({"index": "lsh"}, "index='lsh' is unknown; choose one of flat"),
        ({"index_options": {"nlist": 4}}, "index_options hold 'nlist', and index=flat has: none"),
        (
            {"index": "sharded", "index_options": {"shards": 0}},
            r"index_options=.*: 0} is out of range; allowed: index_options >= 1",
        ),
        ({"index": "hnsw"}, "index=hnsw is approximate.* full_map=false"),
        ({"query_expansion": -1}, "query_expansion=-1"),
        ({"query_expansion": 2, "metric": "l2"}, "it needs metric=cosine"),
        ({"rerank": {"k": 3}}, "rerank has the keys"),
        ({"rerank": {}, "query_expansion": 1}, "set index=flat and query_expansion=0"),
    ],
)
def test_refuses_settings(keys, text):
    with pytest.raises(ValueError, match=text):
        RetrievalEvaluator(**keys)
