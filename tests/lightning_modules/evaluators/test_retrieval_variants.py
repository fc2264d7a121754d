"""Indices, query expansion, k-reciprocal re-ranking, clusters, files, and the evaluator on a network."""

import math
import sys

import faiss
import numpy as np
import pytest
import torch

from kernels.batch import Batch
from lightning_modules.evaluators.base import EvaluationData
from lightning_modules.evaluators.retrieval import RetrievalEvaluator
from lightning_modules.retrieval.clusters import cluster_metrics
from lightning_modules.retrieval.index import build, faiss_rows, index_recall, save_index
from lightning_modules.retrieval.k_reciprocal import LIMIT, KReciprocalScores
from lightning_modules.retrieval.labels import Relevance
from lightning_modules.retrieval.query_expansion import expanded
from lightning_modules.retrieval.scores import Scores


def clustered(total=700, classes=40, width=16, noise=1.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (total,), generator=generator)
    centres = torch.randn(classes, width, generator=generator)
    return centres[labels] + noise * torch.randn(total, width, generator=generator), labels


def scores_of(rows, metric="cosine"):
    every = np.arange(len(rows))
    return Scores(rows, every, every, metric)


@pytest.mark.parametrize(
    ("index", "options", "bounds"),
    [
        ("ivf", {"nlist": 8, "nprobe": 8}, (1, 1)),
        ("ivf", {"nlist": 40, "nprobe": 1}, (0.1, 0.9)),
        ("ivf_pq", {"nlist": 4, "nprobe": 4, "m": 4, "nbits": 4}, (0.1, 0.9)),
        ("hnsw", {"ef_search": 200}, (0.95, 1)),
    ],
)
@pytest.mark.parametrize("metric", ["cosine", "l2"])
def test_approximate_indices_say_what_they_miss(metric, index, options, bounds):
    rows, labels = clustered()
    keys = {"ks": [1, 5], "metric": metric, "full_map": False}
    exact = RetrievalEvaluator(**keys)(rows, labels)
    found = RetrievalEvaluator(**keys, index=index, index_options=options)(rows, labels)
    recall = found["index_recall@5"]
    assert bounds[0] <= recall <= bounds[1] and 0 < found["index_recall@1"] <= 1
    assert "mrr" not in found and sum(name.startswith("mrr@") for name in found) == 1, "a rank that was cut off"
    if recall == 1:
        assert found["recall@5"] == exact["recall@5"] and found["map@r"] == pytest.approx(exact["map@r"], abs=0.01)


@pytest.mark.parametrize("metric", ["cosine", "l2"])
@pytest.mark.parametrize("index", ["hnsw", "ivf"])
def test_recall_of_an_index_counts_duplicates_by_their_score(metric, index):
    """Of equal items any may be found: 40 copies of each of 30 rows, and the ten nearest are all at distance 0."""
    rows = clustered(30)[0].repeat(40, 1)
    scores = scores_of(rows, metric)
    options = {"ef_search": 400} if index == "hnsw" else {"nlist": 4, "nprobe": 4}
    built = build(scores, index, options)
    assert index_recall(scores, built, (1, 10)) == {"index_recall@1": 1.0, "index_recall@10": 1.0}


def test_recall_of_an_index_counts_what_it_misses():
    """An index that sees every other row, against the share of true neighbours among those, found by sorting."""
    rows, _ = clustered(400)
    scores = scores_of(rows)
    half = faiss.IndexIDMap(faiss.IndexFlatIP(16))
    half.add_with_ids(faiss_rows(scores, np.arange(0, 400, 2)), np.arange(0, 400, 2))
    unit = torch.nn.functional.normalize(rows.double(), dim=1)
    near = (unit @ unit.T).fill_diagonal_(-2).argsort(dim=1, descending=True)[:, :5]
    assert index_recall(scores, half, (5,))["index_recall@5"] == pytest.approx(float((near % 2 == 0).float().mean()))


def test_approximate_neighbours_leave_out_the_query_and_its_group():
    rows, labels = clustered(300)
    rows = torch.cat([rows, rows + 1e-3 * torch.randn(300, 16, generator=torch.Generator().manual_seed(1))])
    groups = torch.arange(300).repeat(2)
    keys = {"ks": [1], "full_map": False}
    approximate = RetrievalEvaluator(**keys, index="ivf", index_options={"nlist": 4, "nprobe": 4})
    both = [e(rows, labels.repeat(2), groups=groups) for e in (RetrievalEvaluator(**keys), approximate)]
    assert both[1]["index_recall@1"] == 1 and both[0]["recall@1"] == both[1]["recall@1"] < 1


def test_sharded_equals_flat_and_gpu_needs_one():
    rows, labels = clustered(1500)
    flat = RetrievalEvaluator()(rows, labels)
    sharded = RetrievalEvaluator(index="sharded", index_options={"shards": 3})(rows, labels)
    assert sharded == pytest.approx(flat, abs=1e-12)
    if torch.cuda.is_available():
        assert RetrievalEvaluator(index="gpu")(rows, labels) == pytest.approx(flat, abs=1e-12)
    else:
        with pytest.raises(ValueError, match="index=gpu, and there is no GPU"):
            RetrievalEvaluator(index="gpu")(rows, labels)


def test_a_gallery_too_small_for_its_index():
    rows, _ = clustered(20)
    with pytest.raises(ValueError, match="nlist=50 needs a gallery of at least as many"):
        build(scores_of(rows), "ivf", {"nlist": 50})
    with pytest.raises(ValueError, match="m must divide the 16 dimensions"):
        build(scores_of(rows), "ivf_pq", {"nlist": 2, "m": 5})


def test_neighbours_and_index_on_disk(tmp_path):
    import faiss

    rows, _ = clustered(200)
    query = torch.arange(200) < 30
    evaluator = RetrievalEvaluator(metric="l2")
    found = evaluator.search(rows, 4, is_query=query, is_gallery=~query)
    distance = torch.cdist(rows[:30].double(), rows[30:].double(), compute_mode="donot_use_mm_for_euclid_dist")
    nearest = distance.topk(4, largest=False)
    assert np.array_equal(found.ids, nearest.indices.numpy() + 30) and np.array_equal(found.queries, np.arange(30))
    assert np.allclose(-found.scores, nearest.values.square().numpy(), rtol=1e-4)
    save_index(tmp_path / "gallery.faiss", build(scores_of(rows), "flat"))
    index = faiss.read_index(str(tmp_path / "gallery.faiss"))
    unit = torch.nn.functional.normalize(rows)
    assert np.array_equal(index.search(unit.numpy(), 2)[1][:, 1], RetrievalEvaluator().search(rows, 1).ids[:, 0])
    with pytest.raises(ValueError, match="count is 0"):
        evaluator.search(rows, 0)


def test_query_expansion_by_hand():
    rows, labels = clustered(120, 10)
    unit = torch.nn.functional.normalize(rows.double())
    cosine = unit @ unit.T
    cosine.fill_diagonal_(-torch.inf)
    for position in (0, 57):
        near = cosine[position].topk(3)
        new = unit[position] + sum(value.clamp(min=0) ** 3 * unit[i] for value, i in zip(*near, strict=True))
        expected = unit @ torch.nn.functional.normalize(new, dim=0)
        expected[position] = -torch.inf
        scores = expanded(scores_of(rows.double()), 3)
        one = np.array([position])
        found = scores.tile(scores.asked(one, torch.float64), one, slice(0, 120))[0]
        assert torch.allclose(found, expected, atol=1e-12)
    plain, wide = (RetrievalEvaluator(query_expansion=count)(rows, labels) for count in (0, 5))
    assert wide["map@r"] > plain["map@r"] + 0.01, "classes of twelve items gain by it"


def encode_by_the_paper(distance, k1, k2, weight):
    """d* of every pair, with sets and dense encodings."""
    total = len(distance)
    scaled = distance / distance.max(1, keepdims=True)
    order = [sorted(range(total), key=lambda j, i=i: (j != i, distance[i, j], j)) for i in range(total)]
    mutual = lambda p, k: {g for g in order[p][: k + 1] if p in order[g][: k + 1]}  # noqa: E731
    code = np.zeros((total, total))
    for p in range(total):
        members = wide = mutual(p, k1)
        for g in wide:
            other = mutual(g, round(k1 / 2))
            if len(wide & other) >= 2 / 3 * len(other) - 1e-12:
                members = members | other
        for g in members:
            code[p, g] = math.exp(-scaled[p, g])
        code[p] /= code[p].sum()
    code = np.stack([code[order[p][:k2]].mean(0) for p in range(total)])
    result = np.zeros((total, total))
    for p in range(total):
        for g in range(total):
            jaccard = 1 - np.minimum(code[p], code[g]).sum() / np.maximum(code[p], code[g]).sum()
            result[p, g] = (1 - weight) * jaccard + weight * scaled[p, g]
    return result


@pytest.mark.parametrize("metric", ["cosine", "l2"])
def test_k_reciprocal_by_the_paper(metric):
    rows, labels = clustered(90, 9)
    rows = rows.double()
    points = torch.nn.functional.normalize(rows) if metric == "cosine" else rows
    squared = torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist").square().numpy()
    expected = encode_by_the_paper(squared, k1=8, k2=3, weight=0.3)
    every = np.arange(90)
    scores = KReciprocalScores(scores_of(rows, metric), every, k1=8, k2=3, weight=0.3)
    found = -scores.tile(None, every, slice(0, 90)).numpy()
    off = ~np.eye(90, dtype=bool)
    assert np.isinf(np.diag(found)).all() and np.allclose(found[off], expected[off], atol=1e-12)
    pairs = scores.pairs(np.repeat(every, 90), np.tile(every, 90)).reshape(90, 90)
    assert np.allclose(-pairs[off], expected[off], atol=1e-12)
    order = np.argsort(np.where(off, expected, np.inf), axis=1, kind="stable")
    evaluator = RetrievalEvaluator(ks=[1], metric=metric, rerank={"k1": 8, "k2": 3})
    result, hits = evaluator(rows, labels), labels.numpy()[order[:, 0]] == labels.numpy()
    assert result["recall@1"] == pytest.approx(hits.mean(), abs=1e-12)
    assert np.array_equal(evaluator.search(rows, 4).ids, order[:, :4])


def test_k_reciprocal_helps_and_refuses():
    rows, labels = clustered(400, 30, noise=1.2)
    query = torch.arange(400) < 100
    keys = {"is_query": query, "is_gallery": ~query}
    plain, better = (RetrievalEvaluator(rerank=rerank)(rows, labels, **keys) for rerank in (None, {}))
    assert better["map"] > plain["map"] + 0.02
    with pytest.raises(ValueError, match="k1=20, k2=30"):
        RetrievalEvaluator(rerank={"k2": 30})(rows, labels)
    many = torch.ones(LIMIT + 1, 1)
    with pytest.raises(ValueError, match=f"every pair of {LIMIT + 1} items"):
        RetrievalEvaluator(rerank={})(many, torch.zeros(LIMIT + 1, dtype=torch.int64))


def test_clusters_of_the_evaluator():
    rows, labels = clustered(300, 6, noise=0.2)
    found = RetrievalEvaluator(clusters=True)(rows, labels)
    assert 0.85 < found["ami"] <= found["nmi"] <= 1
    again = cluster_metrics(scores_of(rows), np.arange(300), labels.numpy())
    assert again == pytest.approx({"nmi": found["nmi"], "ami": found["ami"]}), "seeds are fixed"
    noise = cluster_metrics(scores_of(torch.randn(300, 16)), np.arange(300), labels.numpy())
    assert abs(noise["ami"]) < 0.05


def test_relevance_counts_in_groups():
    rng = np.random.default_rng(0)
    labels, groups = rng.integers(0, 4, 60) * 10**12 - 7, rng.integers(-1, 4, 60)
    queries, gallery = np.flatnonzero(rng.random(60) < 0.6), np.flatnonzero(rng.random(60) < 0.6)
    for chosen in (None, groups):
        own = scores_of(torch.eye(60)).own_Q * 0 - 1
        own = np.array([np.flatnonzero(gallery == q)[0] if q in gallery else -1 for q in queries])
        relevance = Relevance(labels, queries, gallery, own, chosen)
        pairs = set(zip(*(array.tolist() for array in relevance.pairs(np.arange(len(queries)))), strict=True))
        expected = {
            (i, j)
            for i, q in enumerate(queries)
            for j, g in enumerate(gallery)
            if q != g and labels[q] == labels[g] and (chosen is None or groups[q] < 0 or groups[q] != groups[g])
        }
        assert pairs == expected
        assert relevance.total_Q.tolist() == [sum(i == k for i, _ in expected) for k in range(len(queries))]


def test_on_a_network(make_network, make_batch):
    network = make_network(batch_norm=True, dropout=0.5, dtype=torch.float32).train()
    batches: list[Batch] = [
        make_batch([*range(20, 40)], dtype=torch.float32),
        make_batch(range(22), dtype=torch.float32),
    ]
    data = EvaluationData(batches, ("a", "b", "c"))
    result = RetrievalEvaluator(ks=[1, 2])(network, data)
    assert network.training
    network.eval()
    whole = make_batch(range(40), dtype=torch.float32)
    with torch.no_grad():
        features = network(whole.image).features
    expected = RetrievalEvaluator(ks=[1, 2])(features, whole.label)
    assert result.metrics == pytest.approx(expected, abs=1e-12), "two images came twice"
    (table,) = result.tables.values()
    assert table.columns == ["class", "queries", "recall@1", "r_precision", "map@r"]
    assert sum(row[1] for row in table.rows) == 40 and {row[0] for row in table.rows} == {"a", "b", "c"}
    weighted = sum(row[1] * row[4] for row in table.rows) / 40
    assert weighted == pytest.approx(expected["map@r"]) and [row[4] for row in table.rows] == sorted(
        r[4] for r in table.rows
    )
    (figure,) = result.figures.values()
    assert figure.lines["recall"] == [expected["recall@1"], expected["recall@2"]]
    query = torch.arange(40) % 2 == 0
    split = RetrievalEvaluator(ks=[1])(network, EvaluationData(batches, ("a", "b", "c"), is_query=query))
    assert split.metrics == pytest.approx(
        RetrievalEvaluator(ks=[1])(features, whole.label, is_query=query, is_gallery=~query), abs=1e-12
    )
    with pytest.raises(ValueError, match="no image to evaluate"):
        RetrievalEvaluator()(network, EvaluationData([], ("a",)))


@pytest.mark.parametrize("metric", ["cosine", "l2"])
def test_embeddings_that_nearly_collapsed_are_told_of_under_either_metric(metric):
    rows = torch.ones(500, 16) + 1e-5 * torch.randn(500, 16, generator=torch.Generator().manual_seed(0))
    with pytest.warns(UserWarning, match="the embeddings look collapsed"):
        found = RetrievalEvaluator(ks=[1], metric=metric, full_map=False)(rows, torch.arange(500) % 5)
    assert 0 < found["embedding_std"] < 1e-4


@pytest.mark.parametrize("options", [{}, {"full_map": False}, {"rerank": {}}])
def test_the_share_of_tied_queries_is_of_those_that_were_looked_at(options):
    with pytest.warns(UserWarning, match="100% of the queries have several best neighbours"):
        assert RetrievalEvaluator(**options)(torch.ones(200, 4), torch.arange(200) % 5)["tied_top1"] == 1


@pytest.mark.parametrize("full_map", [True, False])
def test_the_default_dtype_of_the_program_does_not_matter(full_map):
    generator = torch.Generator().manual_seed(0)
    rows, labels = torch.randn(700, 8, generator=generator), torch.arange(700) % 200
    expected = RetrievalEvaluator(full_map=full_map)(rows, labels)
    torch.set_default_dtype(torch.float64)
    try:
        found = RetrievalEvaluator(full_map=full_map)(rows, labels)
    finally:
        torch.set_default_dtype(torch.float32)
    assert found == expected


@pytest.mark.parametrize("full_map", [True, False])
def test_without_faiss_the_numbers_are_the_same(monkeypatch, full_map):
    rows, labels = clustered(900)
    expected = RetrievalEvaluator(full_map=full_map)(rows, labels)
    monkeypatch.setitem(sys.modules, "faiss", None)
    assert RetrievalEvaluator(full_map=full_map)(rows, labels) == pytest.approx(expected, abs=1e-12)
    with pytest.raises(ValueError, match="index=hnsw, needs FAISS: pip install faiss"):
        RetrievalEvaluator(full_map=False, index="hnsw")(rows, labels)
    with pytest.raises(ValueError, match="clusters=true needs FAISS: pip install faiss"):
        RetrievalEvaluator(full_map=full_map, clusters=True)(rows, labels)
