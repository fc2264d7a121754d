"""The tail of the classes by hand, and the random rows of a stream."""

from fractions import Fraction

import numpy as np
import pytest
import torch

from lightning_modules.evaluators.random_rows import RandomRows
from lightning_modules.evaluators.robust_view import ClassCounts, class_table, tail_accuracy


@pytest.mark.parametrize(("classes", "count"), [(1, 1), (2, 1), (3, 1), (4, 1), (5, 2), (10, 3), (15, 5), (43, 13)])
def test_the_tail_is_the_worst_thirty_percent_rounded_half_up(classes, count):
    accuracy = np.random.default_rng(classes).permutation(classes) / classes  # 0, 1/C, 2/C, ...
    expected = sum(Fraction(i, classes) for i in range(count)) / count
    assert tail_accuracy(accuracy) == pytest.approx(float(expected), abs=1e-12)
    exact = Fraction(3, 10) * classes
    assert count == max(1, int(exact + Fraction(1, 2)))


def test_ten_classes_by_hand():
    assert tail_accuracy(np.array([0.9, 0.5, 0.2, 0.8, 0.1, 0.7, 0.6, 0.6, 0.3, 1.0])) == pytest.approx(0.2)


def test_classes_without_images_are_left_out():
    label = torch.tensor([0, 0, 2, 2, 2, 3])
    right = torch.tensor([1, 1, 1, 1, 0, 1]).bool()
    robust = torch.tensor([1, 0, 0, 1, 0, 0]).bool()
    counts = ClassCounts.of(label, right, robust, 5)
    (table,) = class_table(counts, "abcde").values()
    assert table.rows == [["d", 1.0, 0.0, 1], ["c", 2 / 3, 1 / 3, 3], ["a", 1.0, 0.5, 2]]
    assert tail_accuracy(counts.robust_accuracy()) == 0.0


@pytest.mark.parametrize("count", [0, 1, 10, 200])
def test_random_rows_are_the_same_in_any_order(count):
    index = torch.arange(100) * 5
    kept = []
    for order, size in ((torch.arange(100), 100), (torch.randperm(100), 7)):
        rows = RandomRows(count, 3, "test")
        for part in index[order].split(size):
            at = rows.wanted(part)
            rows.add(part[at], [int(part[i]) for i in at])
        kept.append(rows.rows())
    assert kept[0] == kept[1] == sorted(kept[0]) and len(kept[0]) == min(count, 100)


def test_an_index_may_come_twice():
    rows = RandomRows(3, 0, "test")
    rows.add(torch.tensor([4, 4, 4, 4]), [torch.zeros(2)] * 4)
    assert len(rows.rows()) == 3


def test_every_row_is_as_likely():
    """Over seeds, each of ten images is kept about as often."""
    counts = torch.zeros(10)
    for seed in range(600):
        rows = RandomRows(3, seed, "test")
        rows.add(torch.arange(10), list(range(10)))
        counts[rows.rows()] += 1
    assert counts.sum() == 1800 and ((counts - 180).abs() < 5 * (600 * 0.3 * 0.7) ** 0.5).all()
