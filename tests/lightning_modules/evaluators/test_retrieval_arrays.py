"""The array operations of the search, against numpy's own."""

import numpy as np
import pytest

from lightning_modules.retrieval.arrays import Waiting, by_number, places


@pytest.mark.parametrize("shape", [(0,), (5,), (8,), (7, 13), (16, 64), (3, 1001)])
@pytest.mark.parametrize("density", [0, 0.01, 0.5, 1])
def test_places_of_a_mask(shape, density):
    mask = np.random.default_rng(0).random(shape) < density
    assert np.array_equal(places(mask), np.flatnonzero(mask))


@pytest.mark.parametrize("bound", [7, 1 << 16, (1 << 16) + 1, 1 << 20])
def test_numbers_are_sorted_and_equal_ones_stay_in_order(bound):
    numbers = np.random.default_rng(0).integers(0, bound, 5000)
    numbers[::7] = bound - 1
    assert np.array_equal(by_number(numbers, bound), np.argsort(numbers, kind="stable"))


@pytest.mark.parametrize("most", [1, 7, 100])
def test_what_waits_is_worked_on_once(most):
    done, waiting, rng = [], Waiting(most, np.int64, np.float32), np.random.default_rng(0)

    def work(numbers, halves):
        assert len(numbers) <= max(most, 12) and np.array_equal(numbers / 2, halves)
        done.extend(numbers.tolist())

    start = 0
    for more in rng.integers(0, 12, 50):
        numbers = np.arange(start, start + more)
        waiting.add(work, numbers, numbers / 2)
        start += more
    waiting.finish(work)
    waiting.finish(work)
    assert sorted(done) == list(range(start))
