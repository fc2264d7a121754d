"""Retrieval metrics of ranked lists against lists that are enumerated in plain Python with exact fractions."""

from fractions import Fraction
from itertools import permutations, product
from pathlib import Path

import numpy as np
import pytest
import torch

from kernels.retrieval_metrics import (
    RankedLists,
    RelevantRanks,
    average_precision,
    cutoff_metrics,
    r_metrics,
    reciprocal_rank,
)

REFERENCE = Path(__file__).parents[1] / "reference/retrieval_eval/rank_list_examples.npz"
TIES = ["index", "optimistic", "pessimistic", "expected"]
KS = (1, 2, 3, 9)


def orders(runs, ties):
    """Every order of the items that a policy averages over; a run is a list of relevances of equal scores."""
    if ties == "index":
        return [[rel for run in runs for rel in run]]
    if ties != "expected":
        return [[rel for run in runs for rel in sorted(run, reverse=ties == "optimistic")]]
    every = product(*(list(permutations(run)) for run in runs))
    return [[rel for run in order for rel in run] for order in every]


def by_hand(runs, ties):
    """The mean of each metric over the orders."""
    total, metrics = sum(sum(run) for run in runs), {}
    every = orders(runs, ties)
    for order in every:
        hits = [sum(order[:i]) for i in range(len(order) + 1)]
        precision = [Fraction(hits[i], i) * order[i - 1] for i in range(1, len(order) + 1)]
        values = {
            "r_precision": Fraction(hits[total], total),
            "map@r": sum(precision[:total]) / total,
            "map": sum(precision) / total,
            "mrr": Fraction(1, order.index(1) + 1),
        }
        for k in KS:
            found = hits[min(k, len(order))]
            values |= {f"recall@{k}": Fraction(found > 0), f"precision@{k}": Fraction(found, k)}
            values[f"ir_recall@{k}"] = Fraction(found, total)
        for name, value in values.items():
            metrics[name] = metrics.get(name, 0) + value / len(every)
    return metrics


def kernel(runs, ties, length):
    """The same by the kernel, from the first ``length`` positions and the ranks of the relevant items."""
    flat, positions = [], []
    for run in runs:
        start = len(flat)
        flat += [(rel, start, len(run), sum(run)) for rel in run]
        positions += [(start + i + 1, start, len(run), sum(run)) for i, rel in enumerate(run) if rel]
    fields = [torch.tensor([[item[i] for item in flat[:length]]]) for i in range(4)]
    lists = RankedLists(fields[0].bool(), *fields[1:])
    ranks = RelevantRanks(*(torch.tensor([[item[i] for item in positions] + [0]]) for i in range(4)))
    total = torch.tensor([len(positions)])
    first = (field[:, 0] for field in (ranks.rank_QP, ranks.above_QP, ranks.size_QP, ranks.hits_QP))
    return {
        **cutoff_metrics(lists, total, [k for k in KS if k <= length or length == len(flat)], ties),
        **(r_metrics(lists, total, ties) if length >= len(positions) else {}),
        "map": average_precision(ranks, total, ties),
        "mrr": reciprocal_rank(*first, ties),
    }


def random_runs(rng):
    """One to four runs of one to four items, one of them relevant at least."""
    while True:
        runs = [[int(rng.random() < 0.4) for _ in range(rng.integers(1, 5))] for _ in range(rng.integers(1, 5))]
        if any(map(sum, runs)) and sum(map(len, runs)) <= 8:
            return runs


@pytest.mark.parametrize("ties", TIES)
def test_every_policy_against_enumeration(ties):
    rng = np.random.default_rng(0)
    for _ in range(60 if ties == "expected" else 200):
        runs = random_runs(rng)
        expected, items = by_hand(runs, ties), sum(map(len, runs))
        for length in {items, int(rng.integers(1, items + 1))}:
            for name, value in kernel(runs, ties, length).items():
                assert value.dtype == torch.float64 and value.shape == (1,)
                assert float(value) == pytest.approx(float(expected[name]), abs=1e-13), (runs, name, length)


def test_expected_lies_between_and_is_the_plain_value_without_ties():
    rng = np.random.default_rng(1)
    for _ in range(50):
        runs = random_runs(rng)
        length = sum(map(len, runs))
        low, middle, high = (kernel(runs, ties, length) for ties in ("pessimistic", "expected", "optimistic"))
        assert all(low[name] - 1e-12 <= middle[name] <= high[name] + 1e-12 for name in middle)
        single = [[rel] for run in runs for rel in run]
        values = [kernel(single, ties, length) for ties in TIES]
        assert all(torch.allclose(values[0][name], other[name], atol=1e-14) for other in values for name in other)


def test_reference_lists():
    with np.load(REFERENCE) as file:
        names = sorted({name.partition("|")[0] for name in file.files})
        assert len(names) == 4
        for name in names:
            relevant = torch.from_numpy(file[f"{name}|relevance"]).bool()[None]
            lists, total = RankedLists.without_ties(relevant), torch.tensor([10])
            metrics = cutoff_metrics(lists, total, [1], "index") | r_metrics(lists, total, "index")
            found = [float(metrics[key]) for key in ("precision@1", "r_precision", "map@r")]
            assert found == pytest.approx(file[f"{name}|p1_rp_mapr(R=10)"].tolist(), abs=1e-15)


def test_worked_example():
    """R = 10: the first alone, the last alone, the first two."""
    for hits, expected in (([0], (1, 0.1, 0.1)), ([9], (0, 0.1, 0.01)), ([0, 1], (1, 0.2, 0.2))):
        relevant = torch.zeros(1, 10, dtype=torch.bool)
        relevant[0, hits] = True
        lists, total = RankedLists.without_ties(relevant), torch.tensor([10])
        metrics = cutoff_metrics(lists, total, [1], "index") | r_metrics(lists, total, "index")
        found = tuple(float(metrics[key]) for key in ("precision@1", "r_precision", "map@r"))
        assert found == pytest.approx(expected, abs=1e-15)


def test_expected_hit_rate_is_hypergeometric():
    """The closed form 1 - C(t - p, f) / C(t, f) with a items above, f = min(K - a, t)."""
    from math import comb

    above, tied, relevant = 2, 7, 3
    place = torch.arange(9)
    start = torch.where(place < above, place, above)[None]
    size, hits = (torch.where(place < above, few, many)[None] for few, many in ((1, tied), (0, relevant)))
    lists = RankedLists(torch.zeros(1, 9, dtype=torch.bool), start, size, hits)
    metrics = cutoff_metrics(lists, torch.tensor([relevant]), range(1, 12), "expected")
    for k in range(1, 12):
        free = min(k - above, tied)
        expected = 0 if k <= above else 1 - comb(tied - relevant, free) / comb(tied, free)
        assert float(metrics[f"recall@{k}"]) == pytest.approx(expected, abs=1e-14)


@pytest.mark.parametrize(("above", "size", "hits"), [(0, 5000, 7), (31, 400, 1), (60_000, 2, 1), (12_345, 60, 60)])
def test_long_runs_keep_their_digits(above, size, hits):
    """Expected precisions of one run by a plain sum over its positions, in fractions."""
    exact = sum(
        Fraction(1, i) * (Fraction(hits, size) + Fraction((i - above - 1) * hits * (hits - 1), size * max(size - 1, 1)))
        for i in range(above + 1, above + size + 1)
    )
    row = torch.ones(1, hits, dtype=torch.int64)
    ranks = RelevantRanks(above + torch.arange(1, hits + 1)[None], row * above, row * size, row * hits)
    found = average_precision(ranks, torch.tensor([hits]), "expected")
    assert float(found) == pytest.approx(float(exact / hits), rel=1e-12)


def test_a_query_without_relevant_items_counts_nothing():
    lists, none = RankedLists.without_ties(torch.zeros(1, 4, dtype=torch.bool)), torch.tensor([0])
    metrics = cutoff_metrics(lists, none, [1, 9], "index") | r_metrics(lists, none, "index")
    assert all(float(value) == 0 for value in metrics.values())
